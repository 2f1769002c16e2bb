"""The JSON API: POST /v1/classify, GET /v1/models, GET /healthz, described in GET /v1/openapi.json.

    curl -F file=@rain.m4a 'http://127.0.0.1:7860/v1/classify?top=5&include=logits'

Whatever goes wrong is answered with {"error": one sentence} and a status that fits it.
"""

import asyncio
import base64
import binascii
import json
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from cnn.audio import MAX_BYTES, AudioError, Clip, load
from cnn.classifier import Prediction
from cnn.labels import ESC50
from cnn.serve.gate import MAX_FORM, TOO_LARGE, ApiError, Hand, Take, counted, gone
from cnn.serve.payload import INCLUDES, family, v1
from cnn.serve.schema import BODY, EXAMPLE, LOCKED, MISTAKE, NO_NETWORK, PROBLEMS, Answer, Health, Model, Models
from cnn.serve.service import Busy, Opener, Service

MAX_JSON = -(-MAX_BYTES // 3) * 4 + 2**20  # base64 makes four bytes of three
IN_HAND = 400_000_000  # bytes of all bodies together that are kept until they are decoded
DECODERS = max(2, min(os.cpu_count() or 2, 8))  # threads
HOW = 'send one sound file as the form field "file", or {"audio_data": "<base64 of a file>"} as JSON'

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

    async def heard(request: Request, name: str, maps: str) -> tuple[Prediction, Service]:
        """What the named network says of the sound in the body, and its service."""
        service = await opened(name)
        loop = asyncio.get_running_loop()
        try:
            service.check()  # before anything is read
            with hand.holding() as take:
                clip, seconds = await _unless_gone(
                    request, loop.run_in_executor(threads, _clip, *await _body(request, take))
                )
            waiting = asyncio.wrap_future(service.submit(clip, maps=maps, decoded=seconds))
        except Busy as busy:
            raise ApiError(429, str(busy), busy.seconds) from busy
        return await _unless_gone(request, waiting), service

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
        model: Annotated[str | None, Query(description="A network of /v1/models.", examples=["resnet34"])] = None,
    ) -> Response:
        """Name one sound: the likeliest classes with their confidences, and what else `include` asks for.

        Any sound file will do (wav, flac, ogg, opus, mp3, m4a, webm, aiff ...), whatever it is called. The network
        hears windows of five seconds; of a longer sound the answer is the mean over windows.
        """
        wanted = _included(include)
        name = default if model is None else model
        if name not in services:
            raise ApiError(400, f"model {name[:60]!r} is unknown; known are {', '.join(services)}.")
        maps = "all" if "maps" in wanted else "stages" if "stages" in wanted else "none"
        prediction, service = await heard(request, name, maps)
        return await written(lambda: v1(prediction, top, wanted, service.labels) | {"model": name})

    @router.get("/models", summary="List the networks", responses={401: PROBLEMS[401], 503: PROBLEMS[503]})
    async def models() -> Models:
        """The networks that this server can answer with: what they know, how good they are, and their licence."""
        return Models(models=[_model(name, name == default, await opened(name)) for name in services])

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
            prediction, _ = await heard(request, default, "all")
            return await written(lambda: family(prediction))

    api.include_router(router)
    return api


def _model(name: str, default: bool, service: Service) -> Model:
    weights = service.checkpoint
    return Model(
        name=name,
        default=default,
        network=service.network,
        sample_rate=service.mel.sample_rate,
        classes=list(service.labels),
        accuracy=weights.metrics.get("accuracy"),
        fold=weights.metrics.get("fold"),
        data=str(weights.provenance.get("data", "not stated")),
        licence=str(weights.provenance.get("licence", "not stated")),
    )


def _guard(auth: tuple[str, str]) -> Callable[[Request], None]:
    expected = base64.b64encode(":".join(auth).encode())

    def guard(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic" or not secrets.compare_digest(given.strip().encode(), expected):
            raise ApiError(401, LOCKED)

    return guard


# --- what is sent ----------------------------------------------------------------------------------------------------


def _included(include: list[str] | None) -> set[str]:
    wanted = {word.strip() for text in include or [] for word in text.split(",")} - {""}
    if unknown := sorted(wanted - set(INCLUDES)):
        raise ApiError(400, f"include {unknown[0][:60]!r} is unknown; known are {', '.join(INCLUDES)}.")
    return wanted


async def _body(request: Request, take: Take) -> tuple[bytes | bytearray, str | None]:
    """The bytes of a file and what it is called; or of a JSON text, and None."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        return await _from_form(request, take)
    body = bytearray()
    async for chunk in _chunks(request, MAX_JSON, take):
        body += chunk
    return body, None


def _clip(body: bytes | bytearray, name: str | None) -> tuple[Clip, float]:
    """What _body has read, decoded, and the seconds that took."""
    begin = time.perf_counter()
    clip = _decode(_from_json(body), "") if name is None else _decode(body, name)
    return clip, time.perf_counter() - begin


def _chunks(request: Request, limit: int, take: Take) -> AsyncGenerator[bytes, None]:
    """The body piece by piece; too much of it is refused as soon as that is known."""
    return Request(request.scope, counted(request.scope, request.receive, limit, TOO_LARGE, take)).stream()


async def _from_form(request: Request, take: Take) -> tuple[bytes, str]:
    """The field "file": its bytes and what it is called. They stay in memory: no temporary folder can be full."""
    parser = MultiPartParser(request.headers, _chunks(request, MAX_FORM, take), max_files=1, max_fields=16)
    parser.spool_max_size = MAX_FORM
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError(400, f"The form cannot be read ({error.message.rstrip('.').lower()}); {HOW}.") from error
    upload = form.get("file")
    if upload is None:
        raise ApiError(400, f'The form has no field "file"; {HOW}.')
    if isinstance(upload, str):
        raise ApiError(400, 'The field "file" is text without a file name; with curl that is -F file=@sound.wav.')
    return await upload.read(), upload.filename or ""


def _from_json(body: bytearray) -> bytes:
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is neither a form nor JSON; {HOW}.") from error
    if not isinstance(sent, dict) or "audio_data" not in sent:
        raise ApiError(400, f"The JSON has no audio_data; {HOW}.")
    return _from_base64(sent["audio_data"])


def _from_base64(text: Any) -> bytes:
    if not isinstance(text, str) or not text:
        raise ApiError(400, "audio_data is empty or no text; it is the base64 of a sound file.")
    if len(text) > MAX_JSON:
        raise ApiError(413, TOO_LARGE)
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # encoders break lines
    except (binascii.Error, ValueError) as error:  # the second: beyond ASCII
        raise ApiError(400, "audio_data is not base64; encode the file's bytes, without any prefix.") from error


def _decode(data: bytes | bytearray, name: str) -> Clip:
    if len(data) > MAX_BYTES:
        raise ApiError(413, TOO_LARGE)
    try:
        return load(data, name=name)
    except AudioError as error:
        raise ApiError(400, str(error)) from error


async def _unless_gone(request: Request, work: "asyncio.Future[Any]") -> Any:
    """The result of `work`, which is given up when the caller hangs up meanwhile. The body must have been read."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise gone()
        return work.result()
    finally:
        watch.cancel()
        work.cancel()


# --- what goes wrong -------------------------------------------------------------------------------------------------


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


async def _say(_: Request, error: ApiError) -> Response:
    return error.answer()


async def _say_http(request: Request, error: HTTPException) -> Response:
    doors = "POST /v1/classify, GET /v1/models and GET /healthz, as /v1/openapi.json describes them"
    told = f"{request.method} {request.url.path[:100]} is not answered here; {doors}, are."
    return _error(error.status_code, told, error.headers)


async def _say_query(_: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    given = str(first.get("input"))[:60]
    return _error(400, f"{first['loc'][-1]} is {given!r}; give a whole number from 1 to {len(ESC50)}.")


async def _say_mistake(_: Request, error: Exception) -> Response:
    """The error goes on to the server, which logs it with its trace."""
    return _error(500, MISTAKE)
