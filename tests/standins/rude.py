"""Servers that do wrong, and one that does right: what stands at the other end of a remote network."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import uvicorn

from cnn.serve.api import build_api
from cnn.serve.service import Service
from tests.standins.loopback import address, listening

Behaviour = Callable[[BaseHTTPRequestHandler], None]
SHORT = 1.0  # seconds of patience with a server that is known to be slow


@contextmanager
def served(services: Mapping[str, Callable[[], Service]], default: str) -> Iterator[str]:
    """The address of a true server of this project with these networks."""
    listener = listening()
    config = uvicorn.Config(build_api(services, default), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield address(listener)
    finally:
        server.should_exit = True
        thread.join(10)


class Rude:
    """A server that behaves as it is told, request by request; the last behaviour stays."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.requests, outer = 0, self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                if deaf not in behaviours:
                    self.rfile.read(int(self.headers.get("Content-Length", 0)))
                behaviours[min(outer.requests, len(behaviours)) - 1](self)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Rude":
        threading.Thread(target=self.server.serve_forever, args=(0.05,)).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def says(body: object, status: int = 200, **headers: str) -> Behaviour:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()

    def behave(to: BaseHTTPRequestHandler) -> None:
        to.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            to.send_header(name.replace("_", "-"), value)
        to.end_headers()
        to.wfile.write(content)

    return behave


def dies(to: BaseHTTPRequestHandler) -> None:
    """In the middle of its answer."""
    to.send_response(200)
    to.send_header("Content-Length", "5000")
    to.end_headers()
    to.wfile.write(b'{"predictions": [')


def late(to: BaseHTTPRequestHandler) -> None:
    time.sleep(2 * SHORT)


def trickles(to: BaseHTTPRequestHandler) -> None:
    """Never silent for long, and never done."""
    to.send_response(200)
    to.send_header("Content-Length", "5000")
    to.end_headers()
    drip(to)


def trickles_headers(to: BaseHTTPRequestHandler) -> None:
    to.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    drip(to)


def deaf(to: BaseHTTPRequestHandler) -> None:
    """Takes no more of the question than fits into the line."""
    time.sleep(2 * SHORT)


def drip(to: BaseHTTPRequestHandler) -> None:
    with suppress(OSError):  # who asked has gone
        for _ in range(round(60 * SHORT)):
            to.wfile.write(b" ")
            to.wfile.flush()
            time.sleep(0.05)


SLOW = (late, trickles, trickles_headers, deaf)
