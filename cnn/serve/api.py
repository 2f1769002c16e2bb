"""The JSON API: POST /v1/classify, /v1/maps and /v1/explain, GET /v1/inside, /v1/models and /healthz, described in GET
/v1/openapi.json.

    curl -F file=@rain.m4a 'http://127.0.0.1:7860/v1/classify?top=5&include=logits'
    curl -F file=@rain.m4a 'http://127.0.0.1:7860/v1/maps?tap=layer4&channels=3,17'

Whatever goes wrong is answered with {"error": one sentence} and a status that fits it.
"""

import asyncio
import base64
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from cnn.audio import Clip
from cnn.classifier import Prediction
from cnn.explain import DEFAULT_METHOD, METHODS
from cnn.labels import ESC50
from cnn.serve import maps
from cnn.serve.body import decoded, received, unless_gone
from cnn.serve.gate import ApiError, Hand
from cnn.serve.glass import MOST, LocalGlass
from cnn.serve.models import about
from cnn.serve.payload import INCLUDES, family, v1
from cnn.serve.schema import (
    BODY,
    EXAMPLE,
    INSIDE_EXAMPLE,
    LOCKED,
    MAPS_EXAMPLE,
    MISTAKE,
    NO_NETWORK,
    PROBLEMS,
    WHY_EXAMPLE,
    Answer,
    Health,
    Inside,
    Maps,
    Model,
    Models,
    Why,
)
from cnn.serve.service import Busy, Opener, Service

IN_HAND = 400_000_000  # bytes of all bodies together that are kept until they are decoded
DECODERS = max(2, min(os.cpu_count() or 2, 8))  # threads
SEEDS = 2**31
MANY = 1024  # channels that are chosen at once
WHOLE = {
    "top": f"from 1 to {len(ESC50)}",
    "most": f"from 1 to {MANY}",
    "window": "from 0 on",
    "seed": f"from 0 to {SEEDS}",
}
OF_WINDOWS = Query(ge=0, description="Of a longer sound; without it the one that is surest of the first name.")
NAMED = Query(description="A network of /v1/models.", examples=["resnet34"])

log = logging.getLogger(__name__)


def build_api(
    services: Mapping[str, Callable[[], Service]],
    default: str,
    *,
    auth: tuple[str, str] | None = None,
    ancestral: bool = False,
) -> FastAPI:
    """The API over the named networks, of which `default` answers when none is asked for. Those that are no Opener are
    taken to have theirs at hand. With `auth` (user, password) /v1 asks for it by HTTP Basic; /healthz does not.
    `ancestral`: a POST to / is answered with the family's payload."""
    api = FastAPI(
        title="What is that sound?",
        version="1",
        description="Names a sound: one of 50 everyday classes, with what the network saw. Errors are "
        '{"error": one sentence}.',
        openapi_url="/v1/openapi.json",
        docs_url=None,  # its page would be loaded from another server
        redoc_url=None,
        exception_handlers={
            ApiError: _say,
            HTTPException: _say_http,
            RequestValidationError: _say_query,
            Exception: _say_mistake,
        },
    )
    threads = ThreadPoolExecutor(DECODERS, "decode")
    hand = Hand(IN_HAND)
    router = APIRouter(prefix="/v1", dependencies=[Depends(_guard(auth))] if auth else [])

    async def opened(name: str) -> Service:
        opener = services[name]
        if isinstance(opener, Opener) and opener.opened is None:
            try:
                return await asyncio.to_thread(opener)
            except ValueError as error:  # CheckpointError is one
                log.error("The API cannot name sounds: %s", error)
                raise ApiError(503, NO_NETWORK) from error
        return opener()

    def named(model: str | None) -> str:
        if model is not None and model not in services:
            raise ApiError(400, f"model {model[:60]!r} is unknown; known are {', '.join(services)}.")
        return default if model is None else model

    @cache
    def seen(service: Service) -> LocalGlass:
        return LocalGlass(service.classifier)

    async def turn(request: Request, service: Service, place: Callable[[Clip, float], "Future[Any]"]) -> Any:
        """What comes of the place in the queue that the sound in the body is given, once it is decoded in so many
        seconds."""
        loop = asyncio.get_running_loop()
        try:
            service.check()  # before anything is read
            with hand.holding() as take:
                clip, seconds = await unless_gone(
                    request, loop.run_in_executor(threads, decoded, *await received(request, take))
                )
            waiting = asyncio.wrap_future(place(clip, seconds))
        except Busy as busy:
            raise ApiError(429, str(busy), busy.seconds) from busy
        return await unless_gone(request, waiting)

    async def heard(request: Request, service: Service, maps: str) -> Prediction:
        return await turn(request, service, lambda clip, s: service.submit(clip, maps=maps, decoded=s))

    async def shown(request: Request, service: Service, work: Callable[[Clip], Any]) -> Any:
        """What `work` makes of the sound in the body; where it says that there is no such thing, the caller is told."""
        try:
            return await turn(request, service, lambda clip, _: service.work(clip, lambda: work(clip)))
        except ValueError as error:  # AudioError is one
            raise ApiError(400, f"{str(error).removesuffix('.')}.") from error

    async def written(answer: Callable[[], dict[str, Any]]) -> Response:
        """As JSON. It is made in a thread: pictures are large."""

        def text() -> bytes:
            return json.dumps(answer(), allow_nan=False, separators=(",", ":")).encode()

        loop = asyncio.get_running_loop()
        return Response(await loop.run_in_executor(threads, text), media_type="application/json")

    @router.post(
        "/classify",
        summary="Name a sound",
        response_model=None,
        responses={200: {"model": Answer, "content": {"application/json": {"example": EXAMPLE}}}, **PROBLEMS},
        openapi_extra={"requestBody": BODY},
    )
    async def classify(
        request: Request,
        top: Annotated[int, Query(ge=1, le=len(ESC50), description="How many names.")] = 3,
        include: Annotated[
            list[str] | None,
            Query(
                description="What to add, with commas between: spectrogram, waveform, stages (feature maps of the "
                "network's stages), maps (of every tap), logits, windows.",
                examples=[["spectrogram,stages"]],
            ),
        ] = None,
        model: Annotated[str | None, NAMED] = None,
    ) -> Response:
        """Name one sound: the likeliest classes with their confidences, and what else `include` asks for.

        Any sound file will do (wav, flac, ogg, opus, mp3, m4a, webm, aiff ...), whatever it is called. The network
        hears windows of five seconds; of a longer sound the answer is the mean over windows.
        """
        wanted = _included(include, INCLUDES)
        service = await opened(name := named(model))
        kind = "all" if "maps" in wanted else "stages" if "stages" in wanted else "none"
        prediction = await heard(request, service, kind)
        who = {"model": name}
        return await written(
            lambda: v1(prediction, top, wanted, service.labels) | who | {"weights": seen(service).weights}
        )

    @router.post(
        "/maps",
        summary="Look inside while a sound is heard",
        response_model=None,
        responses={200: {"model": Maps, "content": {"application/json": {"example": MAPS_EXAMPLE}}}, **PROBLEMS},
        openapi_extra={"requestBody": BODY},
    )
    async def look(
        request: Request,
        tap: Annotated[
            str,
            Query(
                description="Where to look: a map (conv1, layer1 ... layer4, layerK.blockJ.conv before and "
                "layerK.blockJ.relu after a block's last ReLU, fpn.pK) or a block's gates (layerK.blockJ.se).",
                examples=["layer4"],
            ),
        ],
        channels: Annotated[
            str | None,
            Query(description="Which channels to send, with commas between; without them those that matter most.",
                  examples=["3,17"]),
        ] = None,
        most: Annotated[int, Query(ge=1, le=MANY, description="How many of those that matter most.")] = MOST,
        label: Annotated[
            str | None,
            Query(description="The class whose logit the channels share; without it the sound's first name.",
                  examples=["dog"]),
        ] = None,
        window: Annotated[int | None, OF_WINDOWS] = None,
        include: Annotated[
            list[str] | None,
            Query(description="What to add, with commas between: gates (of every block), range (of the whole network).",
                  examples=["range"]),
        ] = None,
        model: Annotated[str | None, NAMED] = None,
    ) -> Response:  # fmt: skip
        """One tap of the network while it hears one window of a sound: the mean over the channels, what each channel
        adds to the logit of a class, and the maps of some channels. Only what is asked for is computed and sent.

        A share is exact where the head is linear in the tap (`exact`); elsewhere it is gradient times activation.
        """
        wanted = frozenset(_included(include, maps.INCLUDES))
        service = await opened(name := named(model))
        glass = seen(service)
        asked = maps.Question(tap[:100], _channels(channels), most, label and label[:100], window, wanted)
        answer = await shown(request, service, lambda clip: maps.maps(glass, clip, asked))
        return await written(lambda: answer | _given_by(name, service, glass))

    @router.post(
        "/explain",
        summary="Why a sound is named so, and whether to believe it",
        response_model=None,
        responses={200: {"model": Why, "content": {"application/json": {"example": WHY_EXAMPLE}}}, **PROBLEMS},
        openapi_extra={"requestBody": BODY},
    )
    async def explain(
        request: Request,
        label: Annotated[str | None, Query(description="The class; without it the first name.", examples=["dog"])]
        = None,
        against: Annotated[str | None, Query(description="Why it and not this class.", examples=["cat"])] = None,
        method: Annotated[
            str, Query(description=f"How the evidence is found: {', '.join(METHODS)}.", examples=[DEFAULT_METHOD])
        ] = DEFAULT_METHOD,
        tap: Annotated[
            str | None,
            Query(description="The layer that a class-activation map asks: a stage such as layer2, or fpn.p1.",
                  examples=["layer3"]),
        ] = None,
        window: Annotated[int | None, OF_WINDOWS] = None,
        seed: Annotated[int, Query(ge=0, le=SEEDS, description="Of the random masks and of the search.")] = 0,
        include: Annotated[
            list[str] | None,
            Query(description="What to add, with commas between: map (as the method gives it), audio (WAV files of the "
                  "parts, base64), random (of that part alone), heard (all that the network says of each part).",
                  examples=["audio"]),
        ] = None,
        model: Annotated[str | None, NAMED] = None,
    ) -> Response:  # fmt: skip
        """The evidence for a class in one window of a sound: a mask over its spectrogram, and what the network says of
        the sound that the mask keeps, of the rest, and of what a random mask of the same area keeps."""
        wanted = _included(include, maps.WHY_INCLUDES)
        asked = {"label": label and label[:100], "against": against and against[:100], "method": method[:100],
                 "tap": tap and tap[:100], "window": window, "seed": seed}  # fmt: skip
        service = await opened(name := named(model))
        glass = seen(service)
        found = await shown(request, service, lambda clip: glass.explain(clip, **asked))
        return await written(lambda: maps.explained(found, wanted, service.labels) | _given_by(name, service, glass))

    @router.get(
        "/inside",
        summary="What a network is made of",
        response_model=None,
        responses={200: {"model": Inside, "content": {"application/json": {"example": INSIDE_EXAMPLE}}},
                   **{status: PROBLEMS[status] for status in (400, 401, 503, "default")}},
    )  # fmt: skip
    async def inside(
        include: Annotated[
            list[str] | None,
            Query(
                description="What is wanted, with commas between: anatomy (parts, shapes, costs, receptive fields), "
                "kernels (of the first layer), atlas (which clips excite each channel).",
                examples=["anatomy,kernels"],
            ),
        ] = None,
        model: Annotated[str | None, NAMED] = None,
    ) -> Response:
        """What is the same for every sound. Without `include` the anatomy."""
        wanted = _included(include, maps.PARTS) or {"anatomy"}
        service = await opened(name := named(model))
        glass = seen(service)
        return await written(lambda: maps.static(glass, wanted) | _given_by(name, service, glass))

    @router.get("/models", summary="List the networks", responses={401: PROBLEMS[401], 503: PROBLEMS[503]})
    async def models() -> Models:
        """The networks that this server can answer with: what they know, how good they are, and their licence."""
        checkpoints = {name: (await opened(name)).checkpoint for name in services}
        return Models(models=[Model(**about(n, weights, default=n == default)) for n, weights in checkpoints.items()])

    @api.get("/healthz", summary="Is the server well?")
    async def healthz() -> Health:
        """Always 200 while the server answers; never waits for a network."""
        ready = [s.opened if isinstance(s, Opener) else s() for s in services.values()]
        running = [s for s in ready if s is not None]
        return Health(status="ok", loaded=bool(running), waiting=sum(s.queued for s in running))

    if ancestral:

        @api.post(
            "/",
            summary="Name a sound, as the family's servers do",
            response_model=None,
            responses=PROBLEMS,
            dependencies=router.dependencies,
            openapi_extra={"requestBody": BODY},
        )
        async def inference(request: Request) -> Response:
            """Three names, the mel picture in dB, the waveform and the channel means of every tap, as plain numbers."""
            prediction = await heard(request, await opened(default), "all")
            return await written(lambda: family(prediction))

    api.include_router(router)
    return api


def _given_by(name: str, service: Service, glass: LocalGlass) -> dict[str, str]:
    return {"model": name, "network": service.network, "weights": glass.weights}


def _guard(auth: tuple[str, str]) -> Callable[[Request], None]:
    expected = base64.b64encode(":".join(auth).encode())

    def guard(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic" or not secrets.compare_digest(given.strip().encode(), expected):
            raise ApiError(401, LOCKED)

    return guard


def _included(include: list[str] | None, known: Sequence[str]) -> set[str]:
    wanted = {word.strip() for text in include or [] for word in text.split(",")} - {""}
    if unknown := sorted(wanted - set(known)):
        raise ApiError(400, f"include {unknown[0][:60]!r} is unknown; known are {', '.join(known)}.")
    return wanted


def _channels(text: str | None) -> tuple[int, ...]:
    try:
        return maps.channels(text)
    except ValueError as error:
        raise ApiError(400, f"{error}.") from error


# --- what goes wrong -------------------------------------------------------------------------------------------------


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


async def _say(_: Request, error: ApiError) -> Response:
    return error.answer()


async def _say_http(request: Request, error: HTTPException) -> Response:
    doors = "POST /v1/classify, /v1/maps and /v1/explain, GET /v1/inside, /v1/models and /healthz are, as "
    doors += "/v1/openapi.json describes them"
    told = f"{request.method} {request.url.path[:100]} is not answered here; {doors}."
    return _error(error.status_code, told, error.headers)


async def _say_query(_: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    name, given = first["loc"][-1], str(first.get("input"))[:60]
    if first["type"] == "missing":
        return _error(400, f"{name} is missing; /v1/openapi.json describes it.")
    return _error(400, f"{name} is {given!r}; give a whole number {WHOLE[name]}.")


async def _say_mistake(_: Request, error: Exception) -> Response:
    """The error goes on to the server, which logs it with its trace."""
    return _error(500, MISTAKE)
