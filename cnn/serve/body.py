"""What is sent to the JSON API: the sound in the body, as a form or as JSON, read while it comes and never beyond its
limit; and who sent it, who may hang up."""

import asyncio
import base64
import binascii
import json
import string
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from starlette.formparsers import MultiPartException, MultiPartParser

from cnn.audio import MAX_BYTES, AudioError, Clip, load
from cnn.serve.gate import MAX_FORM, TOO_LARGE, ApiError, Take, counted, gone

MAX_JSON = -(-MAX_BYTES // 3) * 4 + 2**20  # base64 makes four bytes of three
MAX_COMMAS = 1000  # of a JSON text, between its values: a body full of {} takes twenty times its size in memory
HOW = 'send one sound file as the form field "file", or {"audio_data": "<base64 of a file>"} as JSON'


async def received(request: Request, take: Take) -> tuple[bytes | bytearray, str | None]:
    """The bytes of a file and what it is called; or of a JSON text, and None."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        return await _from_form(request, take)
    body = bytearray()
    async for chunk in _chunks(request, MAX_JSON, take):
        body += chunk
    return body, None


def decoded(body: bytes | bytearray, name: str | None) -> tuple[Clip, float]:
    """What `received` has read, decoded, and the seconds that took."""
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
    if body.count(b",") > MAX_COMMAS:
        raise ApiError(400, f"The JSON holds far more than one sound; {HOW}.")
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
        plain = text.encode("ascii").translate(None, string.whitespace.encode())  # encoders break lines
        return base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError) as error:  # the second: beyond ASCII
        raise ApiError(400, "audio_data is not base64; encode the file's bytes, without any prefix.") from error


def _decode(data: bytes | bytearray, name: str) -> Clip:
    if len(data) > MAX_BYTES:
        raise ApiError(413, TOO_LARGE)
    try:
        return load(data, name=name)
    except AudioError as error:
        raise ApiError(400, str(error)) from error


async def unless_gone(request: Request, work: "asyncio.Future[Any]") -> Any:
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
