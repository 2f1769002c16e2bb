"""The door on Modal: the class and the page in this process, and Modal's commands against a stand-in for it."""

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file
from modal.exception import RemoteError

from cnn.audio import AudioError, Clip, load
from cnn.classifier import Classifier
from cnn.serve import api, modal_network
from cnn.serve.modal_network import AudioClassifier, ModalClassifier
from cnn.serve.payload import family
from cnn.serve.remote import Unavailable, WithFallback
from tests.standins.modal_command import PATIENCE, ended, modal
from tests.standins.modal_local import Standin, modal_standin

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "assets" / "examples"
DOG = EXAMPLES / "dog.ogg"
ELSEWHERE = {"Origin": "https://elsewhere.example"}
local = pytest.mark.filterwarnings("ignore:The .* function is executing locally")


def sent(path: Path) -> dict[str, str]:
    """As the family's clients send a file."""
    return {"audio_data": base64.b64encode(path.read_bytes()).decode()}


# --- the bodies


@pytest.fixture
def volume(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The volume's root, with weights."""
    monkeypatch.setattr(modal_network, "MODELS", tmp_path)
    shutil.copy(tiny, tmp_path / "best_model.pth")
    return tmp_path


def test_the_volumes_weights_are_used_under_either_name_and_told_in_the_log_if_broken(
    volume: Path, capfd: pytest.CaptureFixture
):
    assert modal_network.weights() == volume / "best_model.pth"
    shutil.copy(volume / "best_model.pth", volume / "best_models.pth")
    (volume / "best_model.pth").write_bytes(b"half a fi")
    assert modal_network.weights() == volume / "best_models.pth"
    assert f"{volume}/best_model.pth cannot be read" in capfd.readouterr().err
    (volume / "best_models.pth").unlink()
    assert modal_network.weights() is None  # the shipped ones are
    (volume / "best_model.pth").unlink()
    capfd.readouterr()
    assert modal_network.weights() is None and capfd.readouterr().err == ""  # an empty volume is nothing to report


@local
def test_the_class_answers_as_the_classifier_does(volume: Path, tiny_classifier: Classifier, tone: Clip):
    network = AudioClassifier()
    for sound in (tone, load(DOG), load((8000, np.ones(80, np.float32)))):
        answer, expected = network.predict.local(sound, "all"), tiny_classifier.predict(sound, maps="all")
        np.testing.assert_allclose(answer.logits, expected.logits, atol=1e-4)
        assert [label.name for label in answer.labels] == [label.name for label in expected.labels]
        assert answer.maps.keys() == expected.maps.keys() and answer.clip is sound
    network.service.close()


@local
def test_the_classs_own_address_speaks_the_familys_language(volume: Path, tiny_classifier: Classifier):
    with TestClient(AudioClassifier().inference.local(), headers=ELSEWHERE) as browser:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        allowed = browser.options("/", headers=asked)
        assert allowed.status_code == 200 and "POST" in allowed.headers["access-control-allow-methods"]
        answer = browser.post("/", json=sent(DOG))
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "*"
        expected = family(tiny_classifier.predict(DOG, maps="all"))
        assert answer.json().keys() == expected.keys()
        assert answer.json()["predictions"] == expected["predictions"]
        assert answer.json()["waveform"] == expected["waveform"]
        assert {"conv1", "layer1", "layer4", "layer1.block0.relu"} <= answer.json()["visualization"].keys()
        for junk in (b"", b"[" * 100_000, b"[]", b"{}", b'{"audio_data": 3}', b'{"audio_data": "no base64!"}',
                     b'{"audio_data": "bm8gc291bmQ="}'):  # fmt: skip
            refused = browser.post("/", content=junk)
            assert refused.status_code == 400 and refused.headers["access-control-allow-origin"] == "*"
            assert list(refused.json()) == ["error"] and re.fullmatch(r"[^\n]+\.", refused.json()["error"])
        assert browser.get("/healthz").json()["status"] == "ok"
        assert browser.post("/v1/classify", json=sent(DOG)).json()["predictions"] == expected["predictions"]


@local
def test_of_all_bodies_sent_to_the_class_at_once_only_so_much_is_kept(volume: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(api, "IN_HAND", 1000)
    network = AudioClassifier()
    with TestClient(network.inference.local(), headers=ELSEWHERE) as browser:
        reply = browser.post("/", json=sent(DOG))
    network.service.close()
    assert reply.status_code == 429 and int(reply.headers["retry-after"]) > 0
    assert reply.headers["access-control-allow-origin"] == "*"


@local
def test_what_is_asked_at_the_same_time_is_heard_in_batches(volume: Path, monkeypatch: pytest.MonkeyPatch):
    sizes, answers = [], {}
    hear, go = Classifier.predict_batch, threading.Event()

    def counted(self: Classifier, sounds: list, **how: Any) -> list:
        sizes.append(len(sounds))
        assert go.wait(PATIENCE)
        return hear(self, sounds, **how)

    monkeypatch.setattr(Classifier, "predict_batch", counted)
    network = AudioClassifier()
    clips = [load((16_000, np.full(800, 0.1 + 0.1 * k, np.float32))) for k in range(6)]

    def ask(k: int) -> None:
        answers[k] = network.predict.local(clips[k])

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(len(clips))]
    threads[0].start()
    wait_for(lambda: sizes)
    for thread in threads[1:]:
        thread.start()
    wait_for(lambda: network.service.queued == len(clips) - 1)
    go.set()
    for thread in threads:
        thread.join(PATIENCE)
    network.service.close()
    assert sizes == [1, len(clips) - 1]
    assert all(answers[k].clip is clips[k] for k in range(len(clips)))


def wait_for(found: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# --- the page's way to it


class Gpu:
    """AudioClassifier, in its place: sleeps until it is `awake`."""

    def __init__(self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
        self.classifier, self.awake, self.asked, self.error = classifier, threading.Event(), 0, None
        predict = SimpleNamespace(remote=self.remote)
        monkeypatch.setattr(modal_network, "AudioClassifier", lambda: SimpleNamespace(predict=predict))
        monkeypatch.setattr(modal_network, "PATIENCE", patience)

    def remote(self, clip: Clip, maps: str) -> Any:
        self.asked += 1
        assert self.awake.wait(PATIENCE)
        if self.error:
            raise self.error
        return self.classifier.predict(clip, maps=maps)


def test_while_a_gpu_wakes_the_page_answers_itself_and_says_so(
    tiny_classifier: Classifier, tone: Clip, monkeypatch: pytest.MonkeyPatch
):
    gpu = Gpu(tiny_classifier, monkeypatch, 0.3)
    away = ModalClassifier()
    network = WithFallback(away, lambda: tiny_classifier)
    answer = network.predict(tone)
    assert re.fullmatch(r"cpu, as the GPU is still waking up after \d+ s", answer.device)
    with pytest.raises(Unavailable, match=r"still waking up after \d+ s"):
        away.predict(tone)
    assert gpu.asked == 1  # nobody waits for what is known to take longer
    gpu.awake.set()
    wait_for(lambda: network.predict(tone).device == "cpu")
    answer = network.predict(tone, maps="all")
    assert answer.maps.keys() == set(tiny_classifier.map_taps) and answer.clip is tone


def test_a_gpu_that_fails_is_replaced_and_a_bad_file_never_sent(
    tiny_classifier: Classifier, tone: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
):  # fmt: skip
    gpu = Gpu(tiny_classifier, monkeypatch, PATIENCE)
    gpu.awake.set()
    (tmp_path / "letter.wav").write_text("this is no sound")
    with pytest.raises(AudioError, match="letter.wav is text"):
        ModalClassifier().predict(tmp_path / "letter.wav")
    assert gpu.asked == 0
    gpu.error = RemoteError("the container's memory is full")
    with pytest.raises(Unavailable, match="^the GPU did not answer$"):
        ModalClassifier().predict(tone)
    assert "memory is full" in capfd.readouterr().err
    gpu.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        ModalClassifier().predict(tone)


# --- Modal's commands


@pytest.fixture
def standin(tiny: Path, tmp_path: Path) -> Iterator[Standin]:
    """A Modal with small weights in its volume."""
    with modal_standin(tmp_path) as standin:
        shutil.copy(tiny, standin.volume("esc-model") / "best_models.pth")
        yield standin


def test_a_deployed_page_wakes_the_class_and_both_answer_alike(standin: Standin, tiny_classifier: Classifier):
    code, said = ended(modal(standin, "deploy", "app.py"))
    assert code == 0, said
    address = standin.urls["AudioClassifier.inference"]
    assert address in said and standin.urls["page"] in said
    expected = tiny_classifier.predict(DOG).to_dict()["predictions"]

    page = Client(standin.urls["page"], verbose=False, httpx_kwargs={"timeout": PATIENCE})
    first = page.predict(handle_file(DOG), api_name="/classify")  # whichever network it came from
    assert re.fullmatch(r"cpu(, as the GPU is still waking up after \d+ s)?", first["device"])
    assert first["predictions"] == expected
    with httpx.Client(headers=ELSEWHERE, timeout=PATIENCE) as browser:
        answer = browser.post(address, json=sent(DOG))
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.json()["predictions"] == expected
        refused = browser.post(address, json={"audio_data": "bm8gc291bmQ="})
        assert refused.status_code == 400 and "not a sound" in refused.json()["error"]
        beside = browser.post(f"{standin.urls['page']}/v1/classify", json=sent(DOG))
        assert beside.json()["predictions"] == expected
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "models", "arguments": {}}}
        headers = {"Accept": "application/json, text/event-stream", "X-Forwarded-Host": "127.0.0.1:9"}  # not true
        told = browser.post(f"{standin.urls['page']}/gradio_api/mcp/", json=call, headers=headers)
        assert "resnet34" in told.text
    awake = page.predict(handle_file(DOG), api_name="/classify")
    assert (awake["device"], awake["predictions"]) == ("cpu", expected)
    assert {c.function for c in standin.containers.values()} == set(standin.layout.values())

    choices = standin.functions["AudioClassifier.*"]
    assert [choice.resources.gpu_config.gpu_type for choice in choices] == ["A10G", "L4", "T4"]
    network, (served,) = choices[0], standin.functions["page"]
    assert served.autoscaler_settings.max_containers == 1 and not served.resources.gpu_config.gpu_type
    for function in (network, served):
        assert function.max_concurrent_inputs > 8 and function.autoscaler_settings.scaledown_window >= 300
        assert function.checkpointing_enabled and all(mount.read_only for mount in function.volume_mounts)


def test_a_served_page_is_the_one_in_the_editor_until_ctrl_c(standin: Standin, tmp_path: Path):
    folder = tmp_path / "edited"
    for name in ("cnn", "assets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pth", "__pycache__"))
    for name in ("app.py", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    process = modal(standin, "serve", "app.py", folder=folder)
    try:
        said = []
        while not any("hit Ctrl-C" in line for line in said):
            said.append(process.stdout.readline())
            assert said[-1], "".join(said)
        assert standin.urls["page"] in "".join(said)
        with httpx.Client(timeout=PATIENCE) as visitor:
            assert "What is that sound?" in visitor.get(standin.urls["page"]).text
            page = folder / "cnn" / "ui" / "page.py"
            page.write_text(page.read_text().replace("What is that sound?", "What was that sound?"))
            wait_for(lambda: "What was that sound?" in visitor.get(standin.urls["page"]).text)
        os.kill(process.pid, signal.SIGINT)
        code, rest = ended(process)
    finally:
        process.kill()
    assert code == 0, rest
    assert not standin.containers and not standin.running


def test_modal_run_names_a_sound_and_refuses_what_is_none(standin: Standin, tmp_path: Path):
    bad = tmp_path / "letter.wav"
    bad.write_text("this is no sound")
    code, said = ended(modal(standin, "run", "app.py", "--file", str(bad)))
    assert code == 1 and "letter.wav is text, not a sound" in said and "Traceback" not in said
    assert not standin.calls  # no GPU was woken for it
    code, said = ended(modal(standin, "run", "app.py", AUDIO_CNN_GPU="L40S"))
    assert code == 0, said
    assert [choice.resources.gpu_config.gpu_type for choice in standin.functions["AudioClassifier.*"]] == ["L40S"]
    assert "dog.ogg  (5 s, 44.1 kHz, Ogg Vorbis)" in said and len(re.findall(r"^  [a-z ]+ \d+\.\d%", said, re.M)) == 5
    assert len(re.search(r"waveform ((-?[\d.e-]+ )+)\.\.\.", said)[1].split()) == 10
    assert re.search(r"duration 5(\.\d+)? s", said)


def test_a_snapshot_holds_no_thread_no_connection_and_no_gpu():
    """What is there when Modal takes it: app.py has been imported, nothing has been called."""
    script = """
import os, threading, torch
torch.cuda.is_available = torch.cuda.device_count = lambda: exit("the GPU was looked for")
import app
table = [line.split() for kind in ("tcp", "tcp6", "udp", "udp6") for line in open(f"/proc/self/net/{kind}")]
files = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
mine = {os.readlink(file) for file in files if os.path.lexists(file)}
print([t.name for t in threading.enumerate()], [row for row in table if f"socket:[{row[9]}]" in mine])
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GRADIO")}  # Modal has none
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout.strip() == "['MainThread'] []", done.stdout + done.stderr
