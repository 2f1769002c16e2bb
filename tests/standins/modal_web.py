"""HTTP for the stand-in for Modal: web endpoints on loopback, a port for each, and uploads of large files.

A request becomes one input of its function and a stream of ASGI messages each way, as on Modal. No WebSockets.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from modal._serialization import deserialize_data_format, serialize, serialize_data_format
from modal_proto import api_pb2 as pb

from tests.standins.loopback import address, listening

Message = dict[str, Any]
Answer = Callable[[pb.FunctionInput, bytes], AsyncIterator[Message]]  # of a request's input and body
HOP = ("transfer-encoding", "connection")  # between the function and this server only


def chunk(index: int, message: Message) -> pb.DataChunk:
    data = serialize_data_format(message, pb.DATA_FORMAT_ASGI)
    return pb.DataChunk(data_format=pb.DATA_FORMAT_ASGI, data=data, index=index)


def message(chunk: pb.DataChunk) -> Message:
    return deserialize_data_format(chunk.data, chunk.data_format, None)


class Sites:
    """The HTTP servers, until they are closed."""

    def __init__(self) -> None:
        self.runners: list[web.AppRunner] = []
        self.starts: list[asyncio.Task] = []

    def _serve(self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        """Address of a server that is about to start: whoever connects sooner waits."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        listener = listening()

        async def start() -> None:
            await runner.setup()
            await web.SockSite(runner, listener).start()

        self.runners.append(runner)
        self.starts.append(asyncio.get_running_loop().create_task(start()))
        return address(listener)

    def endpoint(self, method: str, answer: Answer) -> str:
        """Address of a server whose requests are inputs of a function's or class's `method`."""

        async def handler(request: web.Request) -> web.StreamResponse:
            scope = {
                "type": "http", "http_version": "1.1", "method": request.method, "scheme": "http",
                "path": request.path, "query_string": request.query_string.encode(), "extensions": {},
                "headers": [(key.lower(), value) for key, value in request.raw_headers], "client": ("127.0.0.1", 0),
            }  # fmt: skip
            asked = pb.FunctionInput(
                args=serialize(((scope,), {})), data_format=pb.DATA_FORMAT_PICKLE, method_name=method
            )
            response = web.StreamResponse(status=500)
            async for part in answer(asked, await request.read()):
                if part["type"] == "http.response.start":
                    response.set_status(part["status"])
                    for key, value in part["headers"]:
                        if key.decode().lower() not in HOP:
                            response.headers.add(key.decode(), value.decode("latin1"))
                    await response.prepare(request)
                elif part["type"] == "http.response.body" and part.get("body"):
                    await response.write(part["body"])
            if not response.prepared:  # the function failed
                return web.Response(status=500)
            await response.write_eof()
            return response

        return self._serve(handler)

    def uploads(self, folder: Path) -> str:
        """Address of a server that keeps what is PUT below it."""

        async def handler(request: web.Request) -> web.Response:
            data = await request.read()
            (folder / request.match_info["path"]).write_bytes(data)
            return web.Response(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

        return self._serve(handler)

    async def close(self) -> None:
        for runner in self.runners:
            await runner.cleanup()
