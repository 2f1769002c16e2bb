"""The page's programs' side: what an import costs, the public endpoint, how it is served."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file
from starlette.routing import Route

from cnn.classifier import Classifier
from cnn.labels import ESC50
from cnn.serve.api import build_api
from cnn.serve.service import Opener
from cnn.ui.endpoints import uploaded
from cnn.ui.page import build_page
from cnn.ui.theme import ASSETS, serving

DOG = ASSETS / "examples" / "dog.ogg"


@pytest.fixture(scope="module")
def client(tiny: Path) -> Iterator[Client]:
    opener = Opener(str(tiny), "cpu")
    page, api = build_page(opener), build_api({"tiny": opener}, "tiny")
    _, url, _ = page.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1",
        app_kwargs={"routes": [Route("/v1/{rest:path}", api)]}, **serving(),
    )  # fmt: skip
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


def test_the_public_endpoints_say_what_they_take_and_answer(client: Client):
    told = client.view_api(return_format="dict")["named_endpoints"]
    assert list(told) == ["/classify", "/models"]
    assert "50 everyday sounds" in told["/classify"]["description"] and "licence" in told["/models"]["description"]
    (sound,) = told["/classify"]["parameters"]
    assert sound["parameter_name"] == "sound" and "http" not in json.dumps(sound["example_input"])


def test_the_networks_in_the_box_are_listed(client: Client):
    (net,) = [net for net in client.predict(api_name="/models") if net["name"] == "resnet34"]
    assert net["classes"] == list(ESC50) and 0.7 < net["accuracy"] < 1 and net["parameters"] > 1e6
    assert "non-commercial" in net["licence"]


def mcp(client: Client, method: str, **parameters: Any) -> dict[str, Any]:
    """One call of the Model Context Protocol over HTTP."""
    call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
    accept = {"Accept": "application/json, text/event-stream"}
    reply = httpx.post(f"{client.src}gradio_api/mcp/", json=call, headers=accept, timeout=120)
    return json.loads(re.search(r"^data: (.*)$", reply.text, re.MULTILINE)[1])["result"]


def test_language_models_find_the_same_endpoints_and_hear_only_uploads(client: Client):
    tools = {tool["name"]: tool for tool in mcp(client, "tools/list")["tools"]}
    assert list(tools) == ["classify", "models"] and "/gradio_api/upload" in tools["classify"]["description"]
    assert "the uploaded file" in tools["classify"]["inputSchema"]["properties"]["sound"]["description"]
    listed = mcp(client, "tools/call", name="models", arguments={})
    assert "resnet34" in listed["content"][0]["text"]
    for elsewhere in ("https://example.org/dog.wav", f"{client.src}gradio_api/file=/etc/hostname",
                      "data:audio/wav;base64,UklGRg=="):  # fmt: skip
        refused = mcp(client, "tools/call", name="classify", arguments={"sound": elsewhere})
        assert refused["isError"] and "Only uploads are heard" in refused["content"][0]["text"]


README = (ASSETS.parent / "README.md").read_text(encoding="utf-8")
CALLS = [block for block in re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if "7860/" in block]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_every_call_that_the_readme_shows_works(client: Client, tiny_classifier: Classifier, tmp_path: Path):
    assert len(CALLS) == 3, "gradio_client, curl and MCP"
    shutil.copy(ASSETS / "examples" / "rain.ogg", tmp_path / "rain.m4a")
    best = tiny_classifier.predict(tmp_path / "rain.m4a").to_dict(top=1)["predictions"][0]
    for block in CALLS:
        python = "import" in block
        script = block[block.index("from gradio_client") :] if python else block
        script = script.replace("http://127.0.0.1:7860/", client.src)
        done = subprocess.run(
            [sys.executable, "-c", script] if python else ["bash", "-euc", script],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        answer = done.stdout.replace("\\", "")
        assert f"{best['class']}" in answer and f"{best['confidence']}" in answer, done.stdout + done.stderr


def upload(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "path", ["http://169.254.169.254/latest/meta-data", "https://example.org/dog.wav", "/etc/hostname", "app.py", "",
             "http://127.0.0.1:7860/gradio_api/file=/etc/hostname", "UPLOADS/../../etc/hostname", "UPLOADS/a\0b"]
)  # fmt: skip
def test_nothing_is_fetched_and_no_file_of_the_server_read_for_a_visitor(path: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    own = str(tmp_path / "uploads" / "ab 1" / "dog.wav")
    asked = path.replace("UPLOADS", str(tmp_path / "uploads"))
    for place in ([upload(asked), False], [None, {"value": [upload(asked)]}]):  # a checkbox may be sent anything
        with pytest.raises(gr.Error, match="Only uploads are heard"):
            uploaded(place)
    address = f"http://127.0.0.1:7860/gradio_api/file={own.replace(' ', '%20')}"
    assert uploaded([upload(own), None, upload(address)]) == [upload(own), None, upload(own)]


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
        cwd=ASSETS.parent, capture_output=True, text=True, timeout=600,
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
    assert "event: error" in answer and "Only uploads are heard" in answer


def test_stylesheet_and_scripts_ask_no_other_server():
    served = serving()
    assert "http" not in (ASSETS / "page.css").read_text()
    assert "@import" not in served["css"]
    assert set(re.findall(r"""url\(["']?([a-z]*:?)""", served["css"])) == {"data:"}
    assert "://" not in served["head"]
    assert (served["show_error"], served["ssr_mode"], served["run_history"]) == (False, False, False)
