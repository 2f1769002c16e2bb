"""What make load sees of a server that does wrong: answers mixed up, requests lost, clients never served."""

import asyncio
import json
import time
from collections.abc import Callable

import numpy as np
import pytest

from tests import load
from tests.load import Item, Tally

ITEMS = [
    Item("a.wav", b"", load.request("a.wav", b"one"), np.array([1.0, 2.0])),
    Item("b.wav", b"", load.request("b.wav", b"another"), np.array([3.0, 4.0])),
    Item("letter.wav", b"", load.request("letter.wav", b"no sound"), None, "letter.wav is text."),
]
Behaviour = Callable[[Item], bytes | None]  # the answer; nothing: it hangs up


def reply(status: int, answer: object, head: str = "") -> bytes:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return f"HTTP/1.1 {status} Said\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def true(item: Item) -> bytes:
    if item.logits is None:
        return reply(400, {"error": item.refusal})
    return reply(200, {"logits": dict(enumerate(item.logits))})


def mixed_up(item: Item) -> bytes:
    return true(ITEMS[0] if item.logits is not None else item)


def wrong_words(item: Item) -> bytes:
    return true(item) if item.logits is not None else reply(400, {"error": "No."})


def garbage(item: Item) -> bytes:
    return true(item) if item.logits is None else reply(200, b"<html>It works!</html>")


def not_numbers(item: Item) -> bytes:
    return true(item) if item.logits is None else reply(200, {"logits": {"dog": float("nan"), "cat": 0.0}})


def busy(item: Item) -> bytes:
    return reply(429, {"error": "Later."}, "Retry-After: 1\r\n")


def busy_at_first(item: Item, seen: list[Item] = []) -> bytes:  # noqa: B006 (it is the memory)
    seen.append(item)
    return true(item) if len(seen) > 3 else reply(429, {"error": "Later."}, "Retry-After: 0\r\n")


def hangs_up(item: Item) -> None:
    return None


def tells_nothing(item: Item) -> bytes:
    return b"HTTP/1.1 200 OK\r\n"


async def crowd(behaviour: Behaviour, seconds: float) -> Tally:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]))
                (item,) = (i for i in ITEMS if head + body == i.request)
                if (answer := behaviour(item)) is None:
                    return
                writer.write(answer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()

    tally = Tally()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        until = time.perf_counter() + seconds
        await asyncio.gather(*(load.client(port, ITEMS, number, until, tally) for number in range(3)))
    return tally


@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [
        (true, None), (busy_at_first, None), (mixed_up, "wrong"), (wrong_words, "wrong"), (garbage, "wrong"),
        (not_numbers, "wrong"), (hangs_up, "lost"), (tells_nothing, "lost"), (busy, "unserved"),
    ],
)  # fmt: skip
def test_what_a_server_does_wrong_is_counted_and_the_time_is_kept(behaviour: Behaviour, complaint, monkeypatch):
    monkeypatch.setattr(load, "PATIENCE", 0.2 if behaviour is tells_nothing else 20.0)
    monkeypatch.setattr(load, "BAD_SHARE", 0.3)
    begin = time.perf_counter()
    tally = asyncio.run(crowd(behaviour, 0.5))
    assert time.perf_counter() - begin < 5
    found = {"wrong": len(tally.wrong), "lost": len(tally.lost), "unserved": tally.unserved}
    if complaint in ("lost", "unserved"):
        assert tally.unserved == 3 and not tally.good and not tally.bad
    if complaint == "lost":
        found.pop("unserved")
    assert {kind for kind, count in found.items() if count} == ({complaint} if complaint else set())
    assert complaint in ("lost", "unserved") or (tally.good and tally.bad)
    assert (tally.busy > 0) == (behaviour in (busy, busy_at_first))
    if behaviour is mixed_up:
        assert {words.partition(":")[0] for words in tally.wrong} == {"b.wav"}
        assert all(words.endswith("the answer to a.wav") for words in tally.wrong)
