"""The JSON API: what is asked of it, what is refused and in which words, and its place beside the page."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gradio.tunneling import BINARY_FILENAME

import app
from cnn.audio import Clip, load
from cnn.classifier import Classifier, Prediction
from cnn.serve import api as module
from cnn.serve import gate
from cnn.serve.api import build_api
from cnn.serve.payload import INCLUDES, family, matrix, numbers, outline, v1
from cnn.serve.schema import Answer
from cnn.serve.service import Busy, Opener, Service
from cnn.ui.theme import ASSETS, MAX_CALL
from tests import fuzz

ROOT = ASSETS.parent
DOG = ASSETS / "examples" / "dog.ogg"
EVERYTHING = {"include": ",".join(INCLUDES)}


@pytest.fixture(scope="module")
def service(tiny_classifier: Classifier) -> Iterator[Service]:
    service = Service(tiny_classifier)
    yield service
    service.close()


@pytest.fixture(scope="module")
def api(service: Service) -> FastAPI:
    return build_api({"tiny": lambda: service}, "tiny")


@pytest.fixture(scope="module")
def client(api: FastAPI) -> TestClient:
    return TestClient(api)


@pytest.fixture(scope="module")
def ancestral(service: Service) -> FastAPI:
    """As the class on Modal serves it: the family's call beside /v1."""
    return build_api({"tiny": lambda: service}, "tiny", ancestral=True)


@pytest.fixture(scope="module")
def seen(tiny_classifier: Classifier) -> Prediction:
    return tiny_classifier.predict(DOG, maps="all")


def sent(path: Path = DOG, name: str | None = None) -> dict:
    return {"files": {"file": (name or path.name, path.read_bytes())}}


def asked(
    api: FastAPI,
    receive: Callable[[], Awaitable[dict]],
    headers: dict[str, str] | None = None,
    path: str = "/v1/classify",
) -> tuple[int, dict]:
    """Status and answer of a POST with a body that comes as `receive` (of ASGI) tells."""
    said: list[dict] = []

    async def send(message: dict) -> None:
        said.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": raw,
             "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)}  # fmt: skip
    asyncio.run(api(scope, receive, send))
    return said[0]["status"], json.loads(said[1]["body"])


# --- answers ---------------------------------------------------------------------------------------------------------


def test_form_and_json_are_answered_as_the_classifier_does_in_less_than_2_kb(client: TestClient, seen: Prediction):
    text = base64.encodebytes(DOG.read_bytes()).decode()  # with line breaks, as some encoders make them
    by_form, by_json = client.post("/v1/classify", **sent()), client.post("/v1/classify", json={"audio_data": text})
    for answer in (by_form, by_json):
        assert answer.status_code == 200 and len(answer.content) < 2000
        assert answer.headers["content-type"] == "application/json"
        answer = answer.json()
        assert answer["predictions"] == seen.to_dict(top=3)["predictions"]
        assert (answer["format"], answer["sample_rate"], answer["model"]) == ("Ogg Vorbis", seen.clip.rate, "tiny")
        Answer.model_validate(answer)


def test_with_everything_a_prediction_can_be_rebuilt_from_half_of_the_familys_bytes(
    client: TestClient, ancestral: FastAPI, seen: Prediction
):
    reply = client.post("/v1/classify", params={"top": 50, "include": INCLUDES}, **sent())
    answer = reply.json()
    Answer.model_validate(answer)
    assert len(reply.content) <= len(TestClient(ancestral).post("/", **sent()).content) / 2
    assert len(answer["predictions"]) == 50
    assert list(answer["logits"].values()) == pytest.approx(seen.logits.tolist(), abs=1e-4)
    assert list(answer["logits"]) == list(client.get("/v1/models").json()["models"][0]["classes"])
    windows = answer["windows"]
    assert windows["starts"] == pytest.approx(seen.starts.tolist()) and windows["shown"] == seen.window
    np.testing.assert_allclose(windows["probabilities"], seen.window_probabilities, atol=1e-4)
    mel = numbers(answer["spectrogram"])
    np.testing.assert_allclose(mel, seen.mel, atol=2 * np.ptp(seen.mel) / 65535)
    assert answer["spectrogram"]["front_end"]["sample_rate"] == 16_000
    assert list(answer["maps"]) == list(seen.maps)
    for tap, values in seen.maps.items():
        assert tuple(answer["maps"][tap]["size"]) == seen.shapes[tap]
        np.testing.assert_allclose(numbers(answer["maps"][tap]), values, atol=1e-4 + 2 * np.ptp(values) / 65535)
    assert np.abs(numbers(answer["waveform"])).max() == pytest.approx(np.abs(seen.clip.samples).max(), rel=1e-3)


def test_stages_are_fewer_maps_and_only_what_is_wanted_comes(client: TestClient, seen: Prediction):
    stages = client.post("/v1/classify", params={"include": "stages", "top": 1}, **sent()).json()
    assert list(stages["maps"]) == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert len(stages["predictions"]) == 1
    assert not stages.keys() & {"spectrogram", "waveform", "logits", "windows"}


def test_silence_is_an_answer_in_every_payload(client: TestClient, tiny_classifier: Classifier, tmp_path: Path):
    soundfile.write(tmp_path / "still.wav", np.zeros(8000), 8000)
    answer = client.post("/v1/classify", params=EVERYTHING, **sent(tmp_path / "still.wav")).json()
    Answer.model_validate(answer)
    assert (answer["verdict"], answer["predictions"], answer["maps"]) == ("silent", [], {})
    assert "Nothing to hear" in answer["message"] and answer["spectrogram"]["shape"] == [0, 0]
    assert family(tiny_classifier.predict(tmp_path / "still.wav", maps="all"))["visualization"] == {}


def test_the_familys_payload_is_what_its_clients_draw(ancestral: FastAPI, seen: Prediction):
    reply = TestClient(ancestral).post("/", **coded(DOG.read_bytes()))
    answer = reply.json()
    assert reply.status_code == 200 and reply.headers["content-type"] == "application/json"
    assert list(answer) == ["predictions", "visualization", "input_spectrogram", "waveform"]
    assert answer["predictions"] == seen.to_dict(top=3)["predictions"]
    assert list(answer["visualization"]) == list(seen.maps)
    for drawn in [*answer["visualization"].values(), answer["input_spectrogram"]]:
        assert np.shape(drawn["values"]) == tuple(drawn["shape"])
    assert answer["input_spectrogram"]["shape"] == [128, 251]
    assert 7000 < len(answer["waveform"]["values"]) <= 8100
    assert answer["waveform"]["sample_rate"] == seen.clip.rate
    assert answer["waveform"]["duration"] == pytest.approx(seen.clip.seconds, abs=1e-3)


def test_a_click_is_seen_in_the_outline_of_a_minute():
    samples = np.zeros(44_100 * 60, np.float32)
    samples[1_234_567], samples[1_234_570] = -0.5, 1.0
    points = outline(samples)
    assert 7000 < len(points) <= 8100
    low, high = int(points.argmin()), int(points.argmax())
    assert (points[low], points[high]) == (-0.5, 1.0) and high == low + 1
    assert outline(samples[:8000]).shape == (8000,)


@pytest.mark.parametrize("values", [[[0.25]], [[np.nan, 1.0, -3.0]], [[np.inf, -np.inf, 0.0, 2.0]], [[np.nan]]])
def test_a_matrix_survives_what_json_cannot_say(values: list):
    given = np.array(values, np.float32)
    back = numbers(json.loads(json.dumps(matrix(given), allow_nan=False)))
    finite = np.isfinite(given)
    assert back.shape == given.shape and np.isfinite(back).all()
    np.testing.assert_allclose(back[finite], given[finite], atol=1e-4)


def test_numbers_that_are_none_are_no_numbers_in_json(seen: Prediction):
    odd = replace(seen, logits=np.full(50, np.nan, np.float32), maps={"conv1": np.full((2, 2), np.nan, np.float32)})
    json.dumps([family(odd), v1(odd, 3, INCLUDES)], allow_nan=False)


def test_the_models_say_what_they_are(client: TestClient, service: Service):
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["name"], model["default"], model["network"]) == ("tiny", True, service.network)
    assert model["classes"] == list(service.labels) and model["sample_rate"] == 16_000
    assert model["accuracy"] is None  # this file says nothing of it


def test_a_network_is_chosen_by_its_name(service: Service, tiny: Path):
    opener = Opener(str(tiny), "cpu")
    both = TestClient(build_api({"first": opener, "second": lambda: service}, "second"))
    assert both.post("/v1/classify", **sent()).json()["model"] == "second"
    assert opener.opened is None  # nobody asked for it
    assert both.post("/v1/classify", params={"model": "first"}, **sent()).json()["model"] == "first"
    opener().close()


def test_health_needs_no_network_and_loads_none(tiny: Path):
    opener = Opener(str(tiny), "cpu")
    client = TestClient(build_api({"tiny": opener}, "tiny", auth=("ann", "secret")))
    assert client.get("/healthz").json() == {"status": "ok", "loaded": False, "waiting": 0}
    assert opener.opened is None


def test_what_the_description_shows_is_true(client: TestClient):
    described = client.get("/v1/openapi.json").json()
    assert set(described["paths"]) == {"/v1/classify", "/v1/models", "/healthz"}
    call = described["paths"]["/v1/classify"]["post"]
    Answer.model_validate(call["responses"]["200"]["content"]["application/json"]["example"])
    assert {"400", "401", "413", "429", "500"} < set(call["responses"])
    assert "422" not in call["responses"]  # FastAPI's own, in another shape
    shown = call["requestBody"]["content"]
    assert set(shown) == {"multipart/form-data", "application/json"}
    example = client.post("/v1/classify", json=shown["application/json"]["example"])
    assert example.json()["error"] == "The sound has no samples; record or export it again."
    (include,) = (p for p in call["parameters"] if p["name"] == "include")
    assert all(name in include["description"] for name in INCLUDES)


# --- refusals --------------------------------------------------------------------------------------------------------


def coded(data: bytes) -> dict:
    return {"json": {"audio_data": base64.b64encode(data).decode()}}


BAD = {
    "nothing": ({}, {}, "neither a form nor JSON"),
    "no JSON": ({}, {"content": b"{"}, "neither a form nor JSON"),
    "deep JSON": ({}, {"content": b"[" * 200_000}, "neither a form nor JSON"),
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


BAD_CALLS = [("/v1/classify", kind) for kind in BAD] + [("/", kind) for kind, (params, *_) in BAD.items() if not params]


@pytest.mark.parametrize(("path", "kind"), BAD_CALLS)
def test_what_is_wrong_is_said_in_one_sentence(path: str, kind: str, ancestral: FastAPI):
    params, call, words = BAD[kind]
    reply = TestClient(ancestral).post(path, params=params, **call)
    assert reply.status_code == 400
    assert list(reply.json()) == ["error"]
    error = reply.json()["error"]
    assert words in error and error.endswith(".") and "\n" not in error and "Traceback" not in error
    assert "etc/" not in error  # of a path only the name


def test_an_address_that_is_not_there_is_told_the_others(client: TestClient):
    for reply, status in ((client.get("/v1/nothing"), 404), (client.get("/v1/classify"), 405)):
        assert reply.status_code == status and "POST /v1/classify" in reply.json()["error"]


@pytest.mark.parametrize("path", ["/v1/classify", "/"])
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("told", [True, False])
def test_too_much_is_refused_before_all_of_it_has_come(
    path: str, kind: str, told: bool, ancestral: FastAPI, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MAX_FORM", 1000)
    monkeypatch.setattr(module, "MAX_JSON", 1000)
    came = 0

    async def receive() -> dict:
        nonlocal came
        came += 1
        assert came < 10  # it has no end
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' if came == 1 else b""
        return {"type": "http.request", "body": head + b"0" * 400, "more_body": True}

    status, answer = asked(
        ancestral, receive, {"content-type": kind} | ({"content-length": "9000"} if told else {}), path
    )
    assert status == 413 and "larger than the 200 MB" in answer["error"]
    assert came == (0 if told else 3)


@pytest.mark.parametrize("path", ["/v1/classify", "/"])
def test_of_all_callers_bodies_only_so_much_is_kept(path: str, service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "IN_HAND", DOG.stat().st_size + 1000)
    client = TestClient(build_api({"tiny": lambda: service}, "tiny", ancestral=True))
    for _ in range(2):  # what is decoded is let go
        assert client.post(path, **sent()).status_code == 200
    reply = client.post(path, content=b" " * (DOG.stat().st_size + 1001))
    assert reply.status_code == 429 and int(reply.headers["retry-after"]) > 0


def test_a_body_that_stops_coming_is_given_up(api: FastAPI, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gate, "STALLED", 0.05)

    async def receive() -> dict:
        await asyncio.sleep(60)
        raise AssertionError("waited for")

    status, answer = asked(api, receive)
    assert status == 408 and "send the sound again" in answer["error"]


class Slow:
    """A service in the place of a real one: its answers come when they are set."""

    def __init__(self) -> None:
        self.given: list = []
        self.submitted = threading.Event()

    def check(self) -> None:
        pass

    def submit(self, clip: Clip, **_: object) -> object:
        self.given.append(Future())
        self.submitted.set()
        return self.given[-1]


def test_who_hangs_up_leaves_his_place():
    slow = Slow()
    body = json.dumps(coded(DOG.read_bytes())["json"]).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> dict:
        if len(messages) == 1:
            await asyncio.to_thread(slow.submitted.wait, 30)
        return messages.pop(0)

    status, _ = asked(build_api({"slow": lambda: slow}, "slow"), receive)
    assert status == 499
    assert slow.given[0].cancelled()


def test_a_full_queue_is_429_with_the_seconds_to_wait(monkeypatch: pytest.MonkeyPatch):
    slow = Slow()
    monkeypatch.setattr(slow, "submit", lambda *_, **__: (_ for _ in ()).throw(Busy("64 wait; try again in 7 s.", 7)))
    reply = TestClient(build_api({"slow": lambda: slow}, "slow")).post("/v1/classify", **sent())
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert reply.json() == {"error": "64 wait; try again in 7 s."}


def test_a_bug_is_logged_and_not_shown(monkeypatch: pytest.MonkeyPatch):
    slow = Slow()
    monkeypatch.setattr(slow, "submit", lambda *_, **__: {}["secret"])
    api = build_api({"slow": lambda: slow}, "slow")
    reply = TestClient(api, raise_server_exceptions=False).post("/v1/classify", **sent())
    assert reply.status_code == 500 and reply.json() == {"error": "The server made a mistake; its log has it."}
    with pytest.raises(KeyError, match="secret"):  # goes on to the server, whose log has the trace
        TestClient(api).post("/v1/classify", **sent())


def test_without_a_network_visitors_learn_nothing_of_the_server(caplog: pytest.LogCaptureFixture):
    client = TestClient(build_api({"own": Opener("/srv/secret.pth")}, "own"))
    for reply in (client.post("/v1/classify", **sent()), client.get("/v1/models")):
        assert reply.status_code == 503 and "no network to name sounds with yet" in reply.json()["error"]
        assert "secret" not in reply.text
    assert "secret.pth" in caplog.text


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

    monkeypatch.setattr(module, "load", slowly)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).normal(0, 0.1, 800), 8000, format="WAV")

    async def crowd() -> list[int]:
        transport = httpx.ASGITransport(build_api({"tiny": lambda: service}, "tiny"))
        async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=60) as visitor:
            calls = [asyncio.ensure_future(visitor.post("/v1/classify", **coded(buffer.getvalue()))) for _ in range(50)]
            while most == 0:
                await asyncio.sleep(0.01)
            assert (await visitor.get("/healthz")).status_code == 200  # while all decoders are at work
            gate.set()
            return [(await call).status_code for call in calls]

    assert asyncio.run(crowd()) == [200] * 50
    assert most <= module.DECODERS


def test_a_locked_server_lets_in_who_knows_the_password(service: Service):
    client = TestClient(build_api({"tiny": lambda: service}, "tiny", auth=("änn", "pass:wörd")))
    for auth in (None, ("änn", "password"), ("", "")):
        for reply in (client.post("/v1/classify", auth=auth, **sent()), client.get("/v1/models", auth=auth)):
            assert reply.status_code == 401 and "password" in reply.json()["error"]
            assert reply.headers["www-authenticate"].startswith("Basic ")
    assert client.get("/v1/models", headers={"authorization": b"Basic \xff"}).status_code == 401
    assert client.post("/v1/classify", auth=("änn", "pass:wörd"), **sent()).status_code == 200


# --- beside the page -------------------------------------------------------------------------------------------------


def launched(monkeypatch: pytest.MonkeyPatch, *flags: str, **environment: str) -> dict:
    """What app.py hands to Gradio's launch(), without launching."""
    given: dict = {}
    monkeypatch.setattr(sys, "argv", ["app.py", *flags])
    monkeypatch.setattr(app.demo, "launch", lambda **kwargs: given.update(kwargs))
    monkeypatch.setattr(app.demo, "block_thread", lambda: None)
    monkeypatch.setattr(app, "warm_up", lambda: None)
    monkeypatch.setattr(app, "classifier", Opener())
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    app.main()
    return given | {"device": app.classifier.device, "batch": app.classifier.batch}


def test_every_flag_is_an_environment_variable_and_the_flag_wins(monkeypatch: pytest.MonkeyPatch):
    environment = {"HOST": "0.0.0.0", "PORT": "8123", "SHARE": "true", "AUTH": "ann:a:b", "BATCH": "1"}
    given = launched(monkeypatch, **{f"AUDIO_CNN_{name}": value for name, value in environment.items()})
    assert (given["server_name"], given["server_port"], given["share"]) == ("0.0.0.0", 8123, True)
    assert (given["auth"], given["batch"]) == (("ann", "a:b"), 1)
    given = launched(monkeypatch, "--host", "127.0.0.1", "--port", "8124", "--auth", "bob:c")
    assert (given["server_name"], given["server_port"], given["auth"]) == ("127.0.0.1", 8124, ("bob", "c"))


def test_what_a_space_has_set_is_not_overruled(monkeypatch: pytest.MonkeyPatch):
    given = launched(monkeypatch)
    assert (given["server_name"], given["server_port"], given["auth"]) == (None, None, None)  # Gradio reads its own
    assert given["share"] is False


@pytest.mark.parametrize("flags", [["--auth", "ann"], ["--auth", ":x"], ["--batch", "0"], ["--device", "tpu"]])
def test_a_wrong_flag_is_said_before_anything_starts(flags: list, monkeypatch: pytest.MonkeyPatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        launched(monkeypatch, *flags)
    assert flags[0] in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """`python app.py` with a password and a share link: its own address and the shared one."""
    home = tmp_path_factory.mktemp("hub")
    frpc = home / "gradio" / "frpc" / BINARY_FILENAME
    frpc.parent.mkdir(parents=True)
    frpc.write_text(f"#!{sys.executable}\n" + (ROOT / "tests" / "standins" / "frpc.py").read_text())
    frpc.chmod(0o755)
    port = free_port()
    environment = os.environ | {
        "AUDIO_CNN_MODEL": str(tiny), "AUDIO_CNN_AUTH": "ann:secret", "AUDIO_CNN_SHARE": "1", "AUDIO_CNN_DEVICE": "cpu",
        "HF_HOME": str(home), "GRADIO_SHARE_SERVER_ADDRESS": "127.0.0.1:1", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0,  # it and its tunnel
    )  # fmt: skip
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if shared := re.search(r"public URL: https://(\S+)", line):
                break
        else:
            pytest.fail("app.py shared nothing: " + "".join(lines))
        yield f"http://127.0.0.1:{port}", f"http://{shared[1]}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


def test_page_and_api_share_a_port_a_link_and_a_password(server: tuple[str, str], seen: Prediction):
    for address in server:
        with httpx.Client(base_url=address, timeout=60) as visitor:
            assert "<html" in visitor.get("/").text
            assert visitor.get("/healthz").json()["status"] == "ok"
            assert visitor.get("/config").status_code == 401
            assert visitor.post("/v1/classify", **sent()).status_code == 401
            assert visitor.post("/gradio_api/call/classify", content=b" " * (MAX_CALL + 1)).status_code == 413
            reply = visitor.post("/v1/classify", auth=("ann", "secret"), **sent())
            assert reply.json()["predictions"] == seen.to_dict(top=3)["predictions"]
            assert "/v1/classify" in visitor.get("/v1/openapi.json").json()["paths"]


# --- damaged files (make fuzz: thousands) ----------------------------------------------------------------------------


def test_forty_damaged_files_do_no_harm():
    faults, counts, _ = fuzz.run(40, seed=7)
    assert faults == []
    assert counts["heard"] > 5 and counts["refused"] > 5


@pytest.mark.parametrize(
    "end, words, limit",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV", 60),
        ("raise SystemExit(3)", "ended with 3", 60),
        ("import time; time.sleep(60)", "hung", 0.5),
    ],
)
def test_what_kills_or_stops_a_decoder_is_named(end: str, words: str, limit: float, tmp_path: Path):
    ready = json.dumps({"outcome": "ready"})
    child = f"import sys\nprint({ready!r}, flush=True)\nsys.stdin.buffer.read(9)\n{end}"
    faults, counts, _ = fuzz.run(1, limit=limit, keep=tmp_path, command=(sys.executable, "-c", child))
    assert [fault.what.split("\n")[0].startswith(words) for fault in faults] == [True]
    assert counts == {"DEAD": 1} and len(list(tmp_path.iterdir())) == 1
