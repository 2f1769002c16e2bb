"""What comes in by HTTP: how large a body may be, how long it may pause, how much all of them may take, and in which
words one is refused. The API counts its bodies with this; the Gate stands before a whole server that does not."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cnn.audio import MAX_BYTES

MAX_FORM = MAX_BYTES + 2**20  # bytes of a body: the file and what a form puts around it
STALLED = 30.0  # seconds without a byte after which a body is given up
AT_THE_GATE = 1_000_000_000  # bytes of all bodies together that are under way through one Gate
TOO_LARGE = (
    f"The sound is larger than the {MAX_BYTES / 1e6:.0f} MB that are read; cut it, or save it as mp3, ogg or m4a."
)

Take = Callable[[int], None]


class ApiError(Exception):
    """What the caller is told: a status of HTTP and one sentence; in `seconds`, if given, it is worth a new try."""

    def __init__(self, status: int, sentence: str, seconds: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.seconds = status, sentence, seconds

    def answer(self) -> JSONResponse:
        headers = {"Retry-After": str(self.seconds)} if self.seconds else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="What is that sound?", charset="UTF-8"'
        return JSONResponse({"error": self.sentence}, self.status, headers)


def gone() -> ApiError:
    return ApiError(499, "The caller hung up.")  # nobody reads it


class Hand:
    """The bodies that are kept at this moment, of all callers together no more than `most` bytes."""

    def __init__(self, most: int) -> None:
        self._most, self._total = most, 0

    @contextmanager
    def holding(self) -> Iterator[Take]:
        """Gives a function that takes so many more bytes, or raises ApiError; all are let go in the end."""
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self._total + count > self._most:
                raise ApiError(429, "Too many large files are being sent at once; try again in 5 s.", 5)
            self._total += count
            mine += count

        try:
            yield take
        finally:
            self._total -= mine


def counted(scope: Scope, receive: Receive, limit: int, over: str, take: Take) -> Receive:
    """`receive` of a body of at most `limit` bytes. More raises ApiError, 413 with the sentence `over`, as soon as that
    is known: here, if the length is declared. Calling it raises ApiError also for a body that stalls or breaks off."""
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdecimal() and int(declared[:18]) > limit:
        raise ApiError(413, over)
    size, whole = 0, False

    async def receive_counted() -> Message:
        nonlocal size, whole
        if whole:  # only hanging up is left to be told
            return await receive()
        try:
            async with asyncio.timeout(STALLED):
                message = await receive()
        except TimeoutError as error:
            raise ApiError(408, f"Nothing came for {STALLED:.0f} s; send the sound again.") from error
        if message["type"] == "http.disconnect":
            raise gone()
        count = len(message.get("body", b""))
        size += count
        if size > limit:
            raise ApiError(413, over)
        take(count)
        whole = not message.get("more_body", False)
        return message

    return receive_counted


class Gate:
    """ASGI middleware. `rule` gives for a path how many bytes a body may have and the sentence for more, or None where
    the application counts them itself; for a path that is not let in at all it raises ApiError."""

    def __init__(self, app: ASGIApp, rule: Callable[[str], tuple[int, str] | None]) -> None:
        self.app, self.rule = app, rule
        self._hand = Hand(AT_THE_GATE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        with self._hand.holding() as take:
            try:
                found = self.rule(scope["path"].removeprefix(scope.get("root_path", "")))
                inward = found and counted(scope, receive, *found, take)
            except ApiError as error:
                return await error.answer()(scope, receive, send)
            if inward is None:
                return await self.app(scope, receive, send)
            await self._pass(scope, inward, receive, send)

    async def _pass(self, scope: Scope, inward: Receive, receive: Receive, send: Send) -> None:
        refused: ApiError | None = None
        begun = False

        async def receive_or_refuse() -> Message:
            nonlocal refused
            try:
                return await inward()
            except ApiError as error:
                refused = error
                # the one error after which Gradio's parser of forms deletes what it has written of a file
                raise MultiPartException(error.sentence) from error

        async def send_unless_refused(message: Message) -> None:
            nonlocal begun
            if refused is None:
                begun = True
                await send(message)

        try:
            await self.app(scope, receive_or_refuse, send_unless_refused)
        except Exception:  # what became of it in there, perhaps in a group
            if refused is None:
                raise
        if refused is not None and not begun:
            await refused.answer()(scope, receive, send)
