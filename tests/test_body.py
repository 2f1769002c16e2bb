"""What is sent to the JSON API: refused in one sentence, counted while it comes, given up when its caller has gone."""

import asyncio
import io
import json
import threading
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import soundfile
from fastapi import FastAPI
from fastapi.testclient import TestClient

from cnn.audio import Clip, load
from cnn.classifier import Classifier
from cnn.serve import api as module
from cnn.serve import body, gate
from cnn.serve.api import build_api
from cnn.serve.service import Service
from tests.standins.asking import DOG, Slow, asked, coded, sent


@pytest.fixture(scope="module")
def service(tiny_classifier: Classifier) -> Iterator[Service]:
    service = Service(tiny_classifier)
    yield service
    service.close()


@pytest.fixture(scope="module")
def api(service: Service) -> FastAPI:
    """As the class on Modal serves it: the family's call beside /v1."""
    return build_api({"tiny": lambda: service}, "tiny", ancestral=True)


BAD = {
    "nothing": ({}, {}, "neither a form nor JSON"),
    "no JSON": ({}, {"content": b"{"}, "neither a form nor JSON"),
    "deep JSON": ({}, {"content": b"[" * 200_000}, "neither a form nor JSON"),
    "a long list": ({}, {"json": {"audio_data": [{}] * 2000}}, "far more than one sound"),
    "a list": ({}, {"json": []}, "has no audio_data"),
    "an address": ({}, {"json": {"url": "http://127.0.0.1:1/a.wav"}}, "has no audio_data"),
    "an address as sound": ({}, {"json": {"audio_data": "http://127.0.0.1:1/a.wav"}}, "is not base64"),
    "a number": ({}, {"json": {"audio_data": 5}}, "audio_data is empty or no text"),
    "empty text": ({}, {"json": {"audio_data": ""}}, "audio_data is empty"),
    "blanks": ({}, {"json": {"audio_data": " \n"}}, "The sound is empty"),
    "punctuation": ({}, {"json": {"audio_data": "!!!!"}}, "is not base64"),  # a lax decoder skips it
    "junk": ({}, {"json": {"audio_data": "Größe"}}, "is not base64"),
    "a data address": ({}, {"json": {"audio_data": "data:audio/wav;base64,AAAA"}}, "without any prefix"),
    "noise": ({}, coded(np.random.default_rng(0).bytes(5000)), "The sound cannot be decoded"),
    "an empty file": ({}, {"files": {"file": ("a.wav", b"")}}, "a.wav is empty"),
    "text": ({}, {"files": {"file": ("a.wav", b"a letter")}}, "a.wav is text"),
    "a path": ({}, {"files": {"file": ("../../etc/passwd.wav", b"a letter")}}, "passwd.wav is text"),
    "markup": ({}, {"files": {"file": ("<b>a.wav", b"a letter")}}, "<b>a.wav is text"),  # JSON: no page shows it
    "another field": ({}, {"files": {"sound": ("a.wav", b"a letter")}}, 'no field "file"'),
    "two files": ({}, {"files": [("file", ("a.wav", b"a")), ("file", ("b.wav", b"b"))]}, "too many files"),
    "a field": ({}, {"files": {"file": (None, b"a letter")}}, "-F file=@sound.wav"),
    "no boundary": ({}, {"content": b"a", "headers": {"content-type": "multipart/form-data"}}, "missing boundary"),
    "broken form": ({}, {"content": b"--x\r\nA", "headers": {"content-type": "multipart/x; boundary=x"}}, "form"),
    "top 0": ({"top": "0"}, sent(), "top is '0'; give a whole number from 1 to 50"),
    "top 51": ({"top": "51"}, sent(), "from 1 to 50"),
    "top many": ({"top": "many"}, sent(), "top is 'many'"),
    "include": ({"include": "logits,secrets"}, sent(), "include 'secrets' is unknown; known are spectrogram,"),
    "model": ({"model": "../tiny"}, sent(), "model '../tiny' is unknown; known are tiny."),
}  # fmt: skip


PATHS = ("/v1/classify", "/v1/maps?tap=layer1", "/v1/explain", "/")
BAD_CALLS = [(path, kind) for path in PATHS for kind, (params, *_) in BAD.items() if path == PATHS[0] or not params]


@pytest.mark.parametrize(("path", "kind"), BAD_CALLS)
def test_what_is_wrong_is_said_in_one_sentence(path: str, kind: str, api: FastAPI):
    params, call, words = BAD[kind]
    reply = TestClient(api).post(path, params=params or None, **call)
    assert reply.status_code == 400
    assert list(reply.json()) == ["error"]
    error = reply.json()["error"]
    assert words in error and error.endswith(".") and "\n" not in error and "Traceback" not in error
    assert "etc/" not in error  # of a path only the name


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("told", [True, False])
def test_too_much_is_refused_before_all_of_it_has_come(
    path: str, kind: str, told: bool, api: FastAPI, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(body, "MAX_FORM", 1000)
    monkeypatch.setattr(body, "MAX_JSON", 1000)
    came = 0

    async def receive() -> dict:
        nonlocal came
        came += 1
        assert came < 10  # it has no end
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' if came == 1 else b""
        return {"type": "http.request", "body": head + b"0" * 400, "more_body": True}

    status, answer = asked(api, receive, {"content-type": kind} | ({"content-length": "9000"} if told else {}), path)
    assert status == 413 and "larger than the 200 MB" in answer["error"]
    assert came == (0 if told else 3)


@pytest.mark.parametrize("path", PATHS)
def test_of_all_callers_bodies_only_so_much_is_kept(path: str, service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "IN_HAND", DOG.stat().st_size + 1000)
    client = TestClient(build_api({"tiny": lambda: service}, "tiny", ancestral=True))
    for _ in range(2):  # what is decoded is let go
        assert client.post(path, **sent()).status_code == 200
    reply = client.post(path, content=b" " * (DOG.stat().st_size + 1001))
    assert reply.status_code == 429 and int(reply.headers["retry-after"]) > 0


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_stops_coming_is_given_up(path: str, api: FastAPI, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gate, "STALLED", 0.05)

    async def receive() -> dict:
        await asyncio.sleep(60)
        raise AssertionError("waited for")

    status, answer = asked(api, receive, path=path)
    assert status == 408 and "send the sound again" in answer["error"]


@pytest.mark.parametrize("path", PATHS[:3])
def test_who_hangs_up_leaves_his_place(path: str):
    slow = Slow()
    body = json.dumps(coded(DOG.read_bytes())["json"]).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> dict:
        if len(messages) == 1:
            await asyncio.to_thread(slow.submitted.wait, 30)
        return messages.pop(0)

    status, _ = asked(build_api({"slow": lambda: slow}, "slow"), receive, path=path)
    assert status == 499
    assert slow.given[0].cancelled()


def test_fifty_callers_start_no_fifty_decodes_and_nothing_blocks(service: Service, monkeypatch: pytest.MonkeyPatch):
    at_once, most, gate, lock = 0, 0, threading.Event(), threading.Lock()

    def slowly(*args: object, **kwargs: object) -> Clip:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        assert gate.wait(30)
        with lock:
            at_once -= 1
        return load(*args, **kwargs)

    monkeypatch.setattr(body, "load", slowly)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).normal(0, 0.1, 800), 8000, format="WAV")

    async def crowd() -> list[int]:
        transport = httpx.ASGITransport(build_api({"tiny": lambda: service}, "tiny"))
        async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=60) as visitor:
            calls = [asyncio.ensure_future(visitor.post("/v1/classify", **coded(buffer.getvalue()))) for _ in range(50)]
            async with asyncio.timeout(60):
                while most == 0:
                    await asyncio.sleep(0.01)
            assert (await visitor.get("/healthz")).status_code == 200  # while all decoders are at work
            gate.set()
            return [(await call).status_code for call in calls]

    assert asyncio.run(crowd()) == [200] * 50
    assert most <= module.DECODERS
