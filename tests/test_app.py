"""The page's programs' side: what an import costs, the public endpoint, how it is served."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file

from cnn.classifier import Classifier
from cnn.ui.page import Opener, build_page
from cnn.ui.theme import ASSETS, serving

DOG = ASSETS / "examples" / "dog.ogg"


@pytest.fixture(scope="module")
def client(tiny: Path) -> Iterator[Client]:
    page = build_page(Opener(str(tiny), "cpu"))
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **serving())
    yield Client(url, verbose=False)
    page.close()


def test_importing_the_app_loads_no_weights(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(Classifier, "open", refuse)
    assert importlib.import_module("app").demo is not None


def test_modal_serves_the_same_page(monkeypatch: pytest.MonkeyPatch):
    module = importlib.import_module("app")
    monkeypatch.setattr(module, "warm_up", lambda: None)
    with TestClient(module.page.local()) as visitor:
        answer = visitor.get("/")
    assert answer.status_code == 200 and "What is that sound?" in answer.text


def test_the_endpoint_answers_as_the_classifier_does(client: Client, tiny_classifier: Classifier):
    answer = client.predict(handle_file(DOG), api_name="/classify")
    expected = tiny_classifier.predict(DOG).to_dict(top=3)
    assert answer["predictions"] == expected["predictions"]
    assert (answer["format"], answer["device"]) == (expected["format"], "cpu")


def test_a_bad_file_gets_its_sentence_and_the_next_one_an_answer(client: Client, tmp_path: Path):
    bad = tmp_path / "letter.wav"
    bad.write_text("this is no sound")
    with pytest.raises(Exception, match="letter.wav is text"):
        client.predict(handle_file(bad), api_name="/classify")
    soundfile.write(tmp_path / "still.wav", np.zeros(8000), 8000)
    assert client.predict(handle_file(tmp_path / "still.wav"), api_name="/classify")["verdict"] == "silent"


def test_only_classify_is_public(client: Client):
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/classify"]


@pytest.mark.parametrize("data", [[], [None], ["dog.wav"], [{"name": "dog.wav"}]])
def test_a_call_without_a_file_is_told_what_to_send(client: Client, data: list, capfd: pytest.CaptureFixture):
    call = f"{client.src}gradio_api/call/classify"
    event = httpx.post(call, json={"data": data}).json()["event_id"]
    assert "Send one sound file" in httpx.get(f"{call}/{event}", timeout=60).text
    assert "Traceback" not in capfd.readouterr().err


def test_visitors_of_a_page_without_a_network_learn_nothing_of_the_server(capfd: pytest.CaptureFixture):
    page = build_page(Opener("/srv/secret.pth"))
    (hear,) = (f for f in page.fns.values() if f.api_name == "hear")
    update = list(hear.fn(str(DOG), False))[-1]
    said = " ".join(str(value) for value in update.values())
    assert "no network to name sounds with yet" in said
    assert "secret" not in said
    assert "secret.pth" in capfd.readouterr().err


def test_a_network_that_is_not_there_is_refused_before_the_page_is_served(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "app.py", "--model", str(tmp_path / "none.pth")],
        cwd=ASSETS.parent, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "none.pth" in done.stderr and "Traceback" not in done.stderr
    assert "Running on" not in done.stdout


def test_maps_that_were_given_up_are_said_to_be(tiny: Path):
    page = build_page(Opener(str(tiny), "cpu"))
    (unfold,) = (f for f in page.fns.values() if f.api_name == "unfold_layer2")
    assert "Kept for an hour only" in unfold.fn(None, False)


def test_files_of_the_server_cannot_be_named(client: Client):
    call = f"{client.src}gradio_api/call/classify"
    data = [{"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}]
    event = httpx.post(call, json={"data": data}).json()["event_id"]
    answer = httpx.get(f"{call}/{event}", timeout=60).text
    assert "event: error" in answer
    assert "hostname is" not in answer  # refused by Gradio, never decoded


def test_stylesheet_and_scripts_ask_no_other_server():
    served = serving()
    assert "http" not in (ASSETS / "page.css").read_text()
    assert "@import" not in served["css"]
    assert set(re.findall(r"""url\(["']?([a-z]*:?)""", served["css"])) == {"data:"}
    assert "://" not in served["head"]
    assert (served["show_error"], served["ssr_mode"], served["run_history"]) == (False, False, False)
