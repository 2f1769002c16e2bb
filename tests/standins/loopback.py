"""An event loop in a thread of the tests' process, for the stand-ins: they end with the test that started them."""

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any


class Loop:
    """Runs coroutines of other threads in its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def __call__(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)


@contextmanager
def event_loop() -> Iterator[Loop]:
    """A running loop; what is left in it is cancelled at the end."""
    run = Loop()
    thread = threading.Thread(target=run.loop.run_forever, daemon=True)
    thread.start()
    try:
        yield run
    finally:
        run(_cancel_all())
        run.loop.call_soon_threadsafe(run.loop.stop)
        thread.join(10)
        run.loop.close()


async def _cancel_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def listening() -> socket.socket:
    """A socket on a free loopback port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def address(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"
