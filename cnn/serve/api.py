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
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from cnn.audio import MAX_BYTES, AudioError, Clip, load
from cnn.labels import ESC50
from cnn.serve.payload import INCLUDES, family, v1
from cnn.serve.schema import BODY, EXAMPLE, LOCKED, MISTAKE, NO_NETWORK, PROBLEMS, Answer, Health, Model, Models
from cnn.serve.service import Busy, Opener, Service

MAX_FORM = MAX_BYTES + 2**20  # bytes of a body: the file and what a form puts around it
MAX_JSON = -(-MAX_BYTES // 3) * 4 + 2**20  # base64 makes four bytes of three
IN_HAND = 400_000_000  # bytes of all bodies together that are kept until they are decoded
STALLED = 30.0  # seconds without a byte after which a body is given up
DECODERS = max(2, min(os.cpu_count() or 2, 8))  # threads
HOW = 'send one sound file as the form field "file", or {"audio_data": "<base64 of a file>"} as JSON'

log = logging.getLogger(__name__)


class ApiError(Exception):
    """What the caller is told: a status of HTTP and one sentence; in `seconds`, if given, it is worth a new try."""

    def __init__(self, status: int, sentence: str, seconds: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.seconds = status, sentence, seconds


def build_api(
    services: Mapping[str, Callable[[], Service]], default: str, *, auth: tuple[str, str] | None = None
) -> FastAPI:
    """The API over the named networks, of which `default` answers when none is asked for. Those that are no Opener are
    taken to have theirs at hand. With `auth` (user, password) /v1 asks for it by HTTP Basic; /healthz does not."""
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
    hand = _Hand()
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
        service = await opened(name)
        loop = asyncio.get_running_loop()
        try:
            service.check()  # before anything is read
            with hand.holding() as take:
                clip, seconds = await _unless_gone(
                    request, loop.run_in_executor(threads, _clip, *await _body(request, take))
                )
            maps = "all" if "maps" in wanted else "stages" if "stages" in wanted else "none"
            waiting = asyncio.wrap_future(service.submit(clip, maps=maps, decoded=seconds))
        except Busy as busy:
            raise ApiError(429, str(busy), busy.seconds) from busy
        prediction = await _unless_gone(request, waiting)

        def written() -> bytes:
            answer = v1(prediction, top, wanted, service.labels) | {"model": name}
            return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()

        return Response(await loop.run_in_executor(threads, written), media_type="application/json")

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

    api.include_router(router)
    return api


def classify_family(service: Service, audio_data: str) -> dict[str, Any]:
    """The family's own call: base64 of a file -> its payload. Blocking. Raises ApiError."""
    try:
        clip = _decode(_from_base64(audio_data), "")
        return family(service.predict(clip, maps="all"))
    except Busy as busy:
        raise ApiError(429, str(busy), busy.seconds) from busy


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


class _Hand:
    """The bodies that are in memory at this moment, of all callers together no more than IN_HAND bytes."""

    def __init__(self) -> None:
        self._total = 0

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes so many more bytes, or raises ApiError; all are let go in the end."""
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self._total + count > IN_HAND:
                raise ApiError(429, "Too many large files are being sent at once; try again in 5 s.", 5)
            self._total += count
            mine += count

        try:
            yield take
        finally:
            self._total -= mine


def _included(include: list[str] | None) -> set[str]:
    wanted = {word.strip() for text in include or [] for word in text.split(",")} - {""}
    if unknown := sorted(wanted - set(INCLUDES)):
        raise ApiError(400, f"include {unknown[0][:60]!r} is unknown; known are {', '.join(INCLUDES)}.")
    return wanted


async def _body(request: Request, take: Callable[[int], None]) -> tuple[bytes | bytearray, str | None]:
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


async def _chunks(request: Request, limit: int, take: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
    """The body piece by piece; too much of it is refused as soon as that is known."""
    declared = request.headers.get("content-length", "")
    size, stream = 0, request.stream()
    if declared.isdecimal() and int(declared[:18]) > limit:
        raise _too_large()
    while True:
        try:
            async with asyncio.timeout(STALLED):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise ApiError(408, f"Nothing came for {STALLED:.0f} s; send the sound again.") from error
        except ClientDisconnect as error:
            raise _gone() from error
        if chunk is None:
            return
        size += len(chunk)
        if size > limit:
            raise _too_large()
        take(len(chunk))
        yield chunk


async def _from_form(request: Request, take: Callable[[int], None]) -> tuple[bytes, str]:
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
        raise _too_large()
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # encoders break lines
    except (binascii.Error, ValueError) as error:  # the second: beyond ASCII
        raise ApiError(400, "audio_data is not base64; encode the file's bytes, without any prefix.") from error


def _decode(data: bytes | bytearray, name: str) -> Clip:
    if len(data) > MAX_BYTES:
        raise _too_large()
    try:
        return load(data, name=name)
    except AudioError as error:
        raise ApiError(400, str(error)) from error


def _too_large() -> ApiError:
    return ApiError(413, f"The sound is larger than the {MAX_BYTES / 1e6:.0f} MB that are read; "
                    "cut it, or save it as mp3, ogg or m4a.")  # fmt: skip


async def _unless_gone(request: Request, work: "asyncio.Future[Any]") -> Any:
    """The result of `work`, which is given up when the caller hangs up meanwhile. The body must have been read."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise _gone()
        return work.result()
    finally:
        watch.cancel()
        work.cancel()


def _gone() -> ApiError:
    return ApiError(499, "The caller hung up.")  # nobody reads it


# --- what goes wrong -------------------------------------------------------------------------------------------------


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


async def _say(_: Request, error: ApiError) -> Response:
    headers = {"Retry-After": str(error.seconds)} if error.seconds else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="What is that sound?", charset="UTF-8"'
    return _error(error.status, error.sentence, headers)


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
