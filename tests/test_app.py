"""The page's programs' side: what an import costs, the public endpoint, how it is served."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file

from cnn.classifier import Classifier
from cnn.ui.figures import seconds_in_words
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


def test_files_of_the_server_cannot_be_named(client: Client):
    call = f"{client.src}gradio_api/call/classify"
    data = [{"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}]
    event = httpx.post(call, json={"data": data}).json()["event_id"]
    answer = httpx.get(f"{call}/{event}", timeout=60).text
    assert "event: error" in answer
    assert "hostname is" not in answer  # refused by Gradio, never decoded


def test_stylesheet_and_scripts_ask_no_other_server():
    served = serving()
    assert "http" not in served["css"].replace("https://", "http://").split("@font-face", 1)[0]
    assert "url(http" not in served["css"].replace('"', "").replace("'", "")
    assert "://" not in served["head"]
    assert (served["show_error"], served["ssr_mode"], served["run_history"]) == (False, False, False)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0512, "0.051 s"), (5.001, "5 s"), (2.75, "2.8 s"), (61.4, "61 s"), (750, "12 min")]
)
def test_lengths_have_two_digits(seconds: float, text: str):
    assert seconds_in_words(seconds) == text
