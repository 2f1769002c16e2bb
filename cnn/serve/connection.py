"""The line to another server of this project: within how many seconds it is asked how often, and in which words it is
said that it did not answer.

    Connection("https://sounds.example.org").ask("/v1/models", {}, read)

Connections that fail and servers that are busy or restarting are asked again, all within the time that a visitor waits.
A server that fails all the same is left alone for DOWN seconds: only the first visitor waits for it.
"""

import asyncio
import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx
import soundfile

from cnn.audio import AudioError, Clip

VARIABLE = "AUDIO_CNN_REMOTE"
CLASSIFY = "/v1/classify"  # what every server of this project answers
PATIENCE = 20.0  # seconds that a visitor waits for it, retries included
RETRIES = 2
PAUSE = 0.3  # seconds before the first retry, doubled before each further one
DOWN = 60.0  # seconds for which a server that did not answer is not asked again
MAX_ANSWER = 32_000_000  # bytes; the largest true answer, a minute with every map, has less than a tenth
AGAIN = (429, 502, 503, 504)  # what may succeed when asked again

T = TypeVar("T")


class Unavailable(RuntimeError):
    """The network elsewhere gave no answer. The message is the reason, to stand within a sentence: 'https://... did
    not answer within 20 s'."""


class Connection:
    """To the server at `url`. Safe to use from several threads."""

    def __init__(self, url: str, *, timeout: float = PATIENCE, retries: int = RETRIES) -> None:
        """Raises ValueError for what is no address."""
        try:
            address = httpx.URL(url.strip())
        except httpx.InvalidURL as e:
            raise ValueError(f"{VARIABLE} is no address ({e}); https://HOST is needed") from e
        if address.scheme not in ("http", "https") or not address.host or address.query or address.fragment:
            raise ValueError(f"{VARIABLE} is {_public(address)!r}; the address of a server is needed, https://HOST")
        self.timeout, self.retries = timeout, retries
        self.place = _public(address).rstrip("/")  # for people, without a password
        self._url = address
        self._tls = httpx.create_ssl_context()  # once: it reads every certificate that is trusted
        self._lock = threading.Lock()
        self._down_until, self._why = 0.0, ""

    def ask(self, path: str, query: Mapping[str, Any], read: Callable[[Any], T], clip: Clip | None = None) -> T:
        """What `read` makes of the JSON that comes back: GET, with a clip POST. Raises AudioError for what the server
        says of the question, and Unavailable; also for an answer that `read` raises at."""
        self._check()
        answer = self._ask(path, query, clip)
        try:
            made = read(answer)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
            print(f"{self.place} answered what no server of this project does: {e!r}"[:300], file=sys.stderr)
            raise self._failed(f"{self.place} gave an answer that makes no sense") from e
        self._lives()
        return made

    def _check(self) -> None:
        """Raises Unavailable while the server counts as down. When that is over, one caller tries it for all."""
        with self._lock:
            now = time.monotonic()
            if now < self._down_until:
                raise Unavailable(f"{self._why} and is left alone for {max(1, round(self._down_until - now))} s")
            if self._down_until:
                self._down_until = now + self.timeout

    def _failed(self, why: str) -> Unavailable:
        with self._lock:
            self._down_until, self._why = time.monotonic() + DOWN, why
        return Unavailable(why)

    def _lives(self) -> None:
        with self._lock:
            self._down_until = 0.0

    def _ask(self, path: str, query: Mapping[str, Any], clip: Clip | None) -> Any:
        """The JSON that comes back. Raises AudioError and Unavailable."""
        end = time.monotonic() + self.timeout
        file = (clip.name or "sound.wav", wav(clip), "audio/wav") if clip else None
        for k in range(self.retries + 1):
            pause, cause = PAUSE * 2**k, None
            try:
                status, headers, content = asyncio.run(self._send(path, query, file, end))
            except TimeoutError as e:
                raise self._failed(f"{self.place} did not answer within {self.timeout:g} s") from e
            except httpx.DecodingError as e:
                raise self._failed(f"{self.place} gave an answer that makes no sense") from e
            except httpx.TransportError as e:
                status, why, cause = 0, f"{self.place} cannot be reached ({type(e).__name__})", e
            else:
                if status == 200:
                    return self._json(content)
                if status not in AGAIN:
                    raise self._refused(path, status, content)
                why = f"{self.place} is not well (it answers {status})"
                if status == 429:
                    pause = max(pause, _seconds(headers.get("retry-after", "")))
            if k == self.retries or time.monotonic() + pause >= end:
                break
            time.sleep(pause)
        if status == 429:  # others may have more luck
            self._lives()
            raise Unavailable(f"{self.place} is busy")
        raise self._failed(why) from cause

    async def _send(
        self, path: str, query: Mapping[str, Any], file: tuple[str, bytes, str] | None, end: float
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and content. Raises httpx's errors, and TimeoutError whatever it is that takes too long:
        httpx's own limit is for each piece."""
        url = self._url.copy_with(path=self._url.path.rstrip("/") + path)
        method, sent = ("POST", {"files": {"file": file}}) if file else ("GET", {})
        content = bytearray()
        async with (
            asyncio.timeout(end - time.monotonic()),
            httpx.AsyncClient(headers={"Accept": "application/json"}, verify=self._tls, timeout=None) as client,
            client.stream(method, url, params=query, **sent) as response,
        ):
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER:
                    raise httpx.DecodingError("more than any true answer")
            return response.status_code, response.headers, bytes(content)

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as e:
            raise self._failed(f"{self.place} gave an answer that makes no sense") from e

    def _refused(self, path: str, status: int, content: bytes) -> Exception:
        if status == 401:
            return self._failed(f"{self.place} asks for a user and a password ({VARIABLE}=https://USER:PASSWORD@HOST)")
        if status in (400, 404, 405, 413):
            try:
                said = json.loads(content)["error"]
            except (ValueError, KeyError, TypeError, RecursionError):
                said = None
            if isinstance(said, str) and said:
                if status in (400, 413):
                    self._lives()
                    return AudioError(said[:500])
                if path != CLASSIFY:  # so says a server of this project that has not learned it yet
                    self._lives()
                    return Unavailable(f"{self.place} runs an older version, which names sounds only")
        if 300 <= status < 400:
            return self._failed(f"{self.place} sends visitors elsewhere; give the address it sends to")
        if status >= 500:
            return self._failed(f"{self.place} is not well (it answers {status})")
        return self._failed(f"{self.place} does not answer as a server of this project (status {status})")


def wav(clip: Clip) -> bytes:
    """Its samples to the last bit."""
    file = io.BytesIO()
    soundfile.write(file, clip.samples, clip.rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def _public(address: httpx.URL) -> str:
    return str(address.copy_with(username=None, password=None, query=None, fragment=None))


def _seconds(retry_after: str) -> float:
    """The header may also hold a date: then the own pause is used."""
    return float(retry_after) if re.fullmatch(r"\d{1,6}", retry_after) else 0.0
