"""How the tests ask the JSON API: sounds as it takes them, bodies that come as a test wants, a service that is slow."""

import asyncio
import base64
import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path

from fastapi import FastAPI

from cnn.audio import Clip
from cnn.ui.theme import ASSETS

DOG = ASSETS / "examples" / "dog.ogg"


def sent(path: Path = DOG, name: str | None = None) -> dict:
    return {"files": {"file": (name or path.name, path.read_bytes())}}


def coded(data: bytes) -> dict:
    return {"json": {"audio_data": base64.b64encode(data).decode()}}


def asked(
    api: FastAPI,
    receive: Callable[[], Awaitable[dict]],
    headers: dict[str, str] | None = None,
    path: str = "/v1/classify",
) -> tuple[int, dict]:
    """Status and answer of a POST with a body that comes as `receive` (of ASGI) tells."""
    said: list[dict] = []
    path, _, query = path.partition("?")

    async def send(message: dict) -> None:
        said.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "headers": raw,
             "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)}  # fmt: skip
    asyncio.run(api(scope, receive, send))
    return said[0]["status"], json.loads(said[1]["body"])


class Slow:
    """A service in the place of a real one: its answers come when they are set."""

    classifier = None

    def __init__(self) -> None:
        self.given: list = []
        self.submitted = threading.Event()

    def check(self) -> None:
        pass

    def submit(self, clip: Clip, *_: object, **__: object) -> Future:
        self.given.append(Future())
        self.submitted.set()
        return self.given[-1]

    work = submit
