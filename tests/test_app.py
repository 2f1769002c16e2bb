"""The page's programs' side: what an import costs, the public endpoint, how it is served."""

import importlib
import io
import json
import pickle
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient
from gradio import route_utils
from gradio_client import Client, handle_file
from starlette.routing import Route

from cnn import checkpoint
from cnn.classifier import Classifier
from cnn.labels import ESC50
from cnn.serve.api import build_api
from cnn.serve.service import Opener
from cnn.ui.endpoints import PLACES
from cnn.ui.page import build_page
from cnn.ui.theme import ASSETS, serving
from cnn.ui.uploads import uploaded

DOG = ASSETS / "examples" / "dog.ogg"


@pytest.fixture(scope="module")
def page(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gr.Blocks]:
    """Launched, the API beside it, uploads in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads").resolve()))
        opener = Opener(str(tiny), "cpu")
        page, api = build_page(opener), build_api({"tiny": opener}, "tiny")
        page.launch(
            prevent_thread_lock=True, quiet=True, server_name="127.0.0.1",
            app_kwargs={"routes": [Route("/v1/{rest:path}", api)]}, **serving(),
        )  # fmt: skip
        yield page
        page.close()


@pytest.fixture(scope="module")
def client(page: gr.Blocks) -> Client:
    return Client(page.local_url, verbose=False)


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
    assert list(told) == ["/classify", "/maps", "/explain", "/models"]
    assert "50 everyday sounds" in told["/classify"]["description"] and "licence" in told["/models"]["description"]
    (sound,) = told["/classify"]["parameters"]
    assert sound["parameter_name"] == "sound" and "http" not in json.dumps(sound["example_input"])


def test_the_networks_in_the_box_are_listed(client: Client):
    (net,) = [net for net in client.predict(api_name="/models") if net["name"] == checkpoint.DEFAULT.parent.name]
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
    assert (
        list(tools) == ["classify", "maps", "explain", "models"]
        and "/gradio_api/upload" in tools["classify"]["description"]
    )
    assert "the uploaded file" in tools["classify"]["inputSchema"]["properties"]["sound"]["description"]
    listed = mcp(client, "tools/call", name="models", arguments={})
    assert checkpoint.DEFAULT.parent.name in listed["content"][0]["text"]
    for elsewhere in ("https://example.org/dog.wav", f"{client.src}gradio_api/file=/etc/hostname",
                      "data:audio/wav;base64,UklGRg=="):  # fmt: skip
        refused = mcp(client, "tools/call", name="classify", arguments={"sound": elsewhere})
        assert refused["isError"] and "Only uploads are heard" in refused["content"][0]["text"]


README = (ASSETS.parent / "README.md").read_text(encoding="utf-8")
CALLS = [block for block in re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if "7860/" in block]


def test_every_call_that_the_readme_shows_works(client: Client, tiny_classifier: Classifier, tmp_path: Path):
    assert len(CALLS) == 3, "gradio_client, curl and MCP"
    assert shutil.which("curl"), "no curl: apt-get install curl"
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
        assert "share" in answer and not done.returncode, done.stdout + done.stderr  # of the maps
        assert "without it" in answer or "mcp" in block, done.stdout + done.stderr  # why


def upload(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "path", ["http://169.254.169.254/latest/meta-data", "https://example.org/dog.wav", "/etc/hostname", "app.py", "",
             "http://127.0.0.1:7860/gradio_api/file=/etc/hostname", "UPLOADS/../../etc/hostname", "UPLOADS/a\0b",
             "UPLOADS", "UPLOADS/ab 1"]
)  # fmt: skip
def test_nothing_is_fetched_and_no_file_of_the_server_read_for_a_visitor(path: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads" / "ab 1").mkdir(parents=True)
    own = str(tmp_path / "uploads" / "ab 1" / "dog.wav")
    Path(own).touch()
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


WEIGHTS: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda whole: None,
    "truncated": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "of another format": lambda whole: b"\x89HDF\r\n\x1a\n" * 100,
    "a malicious pickle": lambda whole: pickle.dumps(Malice()),
}


class Malice:
    def __reduce__(self) -> tuple[Callable, tuple]:
        return pytest.fail, ("code of the file was run",)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_cannot_be_used_end_in_a_sentence_at_every_door(kind: str, tiny: Path, tmp_path, capfd, caplog):
    path = tmp_path / "secret.pth"
    if (data := WEIGHTS[kind](tiny.read_bytes())) is not None:
        path.write_bytes(data)
    opener = Opener(str(path), "cpu")
    functions = {f.api_name: f.fn for f in build_page(opener).fns.values()}
    said = [" ".join(map(str, list(functions["hear"](str(DOG), False))[-1].values()))]
    with pytest.raises(gr.Error) as caught:
        functions["classify"](str(DOG))
    said.append(caught.value.message)
    with TestClient(build_api({"given": opener}, "given")) as api, DOG.open("rb") as file:
        answer = api.post("/v1/classify", files={"file": file})
    assert answer.status_code == 503 and opener.opened is None
    for words in (*said, answer.text):
        assert "no network to name sounds with yet" in words and "secret" not in words
    for log in (capfd.readouterr().err, caplog.text):
        assert str(path) in log and "Traceback" not in log


def test_maps_that_were_given_up_are_said_to_be(tiny: Path):
    page = build_page(Opener(str(tiny), "cpu"))
    (unfold,) = (f for f in page.fns.values() if f.api_name == "unfold_layer2")
    assert "Kept for an hour only" in unfold.fn(None, False)


@contextmanager
def a_full_disk(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def in_a_tab(page: gr.Blocks, session: str, name: str, *sent: Any) -> dict[str, Any]:
    """What the page's own event `name` answers a browser's tab in the end."""
    (event,) = (f for f in page.fns.values() if f.api_name == name)
    data = [*sent, *[None] * (len(event.inputs) - len(sent))]
    url = f"{page.local_url}gradio_api/queue/"
    httpx.post(f"{url}join", json={"data": data, "fn_index": event._id, "session_hash": session}).raise_for_status()
    with httpx.stream("GET", f"{url}data", params={"session_hash": session}, timeout=60) as lines:
        for line in lines.iter_lines():
            message = json.loads(line.removeprefix("data:") or "{}")
            if message.get("msg") == "process_completed":
                return message["output"]
    raise AssertionError("it ended without an answer")


def called(client: Client, path: str) -> str:
    """What POST and GET of /call/classify answer to an upload. (gradio_client would upload it once more.)"""
    call = f"{client.src}gradio_api/call/classify"
    event = httpx.post(call, json={"data": [upload(path)]}).json()["event_id"]
    return httpx.get(f"{call}/{event}", timeout=60).text


def test_a_full_disk_refuses_uploads_in_a_sentence_and_the_api_needs_no_disk(page: gr.Blocks, client: Client, capfd):
    sound = io.BytesIO()
    soundfile.write(sound, np.random.default_rng(0).normal(0, 0.1, 20 * 44_100), 44_100, format="WAV")
    upload_url = f"{client.src}gradio_api/upload"
    kept = httpx.post(upload_url, files={"files": ("dog.ogg", DOG.read_bytes())}).json()[0]
    before = sorted(Path(page.app.uploaded_file_dir).rglob("*"))
    with a_full_disk(20_000):  # enough for what is captured of the log
        answer = httpx.post(upload_url, files={"files": ("long.wav", sound.getvalue())})
        assert answer.status_code == 507 and "The server has no room to keep a file" in answer.text
        assert sorted(Path(page.app.uploaded_file_dir).rglob("*")) == before  # nor is a part of it left
        assert "The server has no room" in str(in_a_tab(page, "full", "hear_rooster"))  # an example is copied, too
        files = {"file": ("long.wav", sound.getvalue())}
        assert httpx.post(f"{client.src}v1/classify", files=files, timeout=60).json()["verdict"] == "named"
        assert '"verdict": "named"' in called(client, kept)
    assert "No file can be kept in" in capfd.readouterr().err
    assert client.predict(handle_file(DOG), api_name="/classify")["verdict"] == "named"


def test_a_folder_that_cannot_be_written_refuses_uploads_in_a_sentence(page: gr.Blocks, client: Client, monkeypatch):
    monkeypatch.setattr(page.app, "uploaded_file_dir", "/proc/no/folder")  # where root may write nothing either
    monkeypatch.setattr(tempfile, "tempdir", "/proc/no/folder")
    file = ("dog.ogg", DOG.read_bytes())
    answer = httpx.post(f"{client.src}gradio_api/upload", files={"files": file})
    assert answer.status_code == 507 and "The server has no room to keep a file" in answer.text
    assert "/proc" not in answer.text
    assert httpx.post(f"{client.src}v1/classify", files={"file": file}, timeout=60).json()["verdict"] == "named"


def test_an_upload_that_has_been_deleted_is_said_to_be(client: Client):
    kept = httpx.post(f"{client.src}gradio_api/upload", files={"files": ("a.ogg", DOG.read_bytes())}).json()[0]
    Path(kept).unlink()
    assert "no longer kept; send the sound again" in called(client, kept)


def test_uploads_are_deleted_when_they_are_old_whatever_else_happens(page: gr.Blocks, client: Client):
    files = [("files", (f"{k}.ogg", DOG.read_bytes() + bytes([k]))) for k in range(2)]
    kept = [Path(path) for path in httpx.post(f"{client.src}gradio_api/upload", files=files).json()]
    folder = Path(page.app.uploaded_file_dir) / "folder"
    (folder / "full").mkdir(parents=True)
    page.upload_file_set.update({str(folder), str(folder / "gone.ogg")})  # Gradio's own deleting ends for good here
    route_utils.delete_files_created_by_app(page, 3600)
    assert all(path.is_file() for path in kept)
    route_utils.delete_files_created_by_app(page, 0)
    assert not any(path.parent.exists() for path in kept)
    assert page.upload_file_set == {str(folder)}
    page.upload_file_set.clear()


def test_two_tabs_at_once_keep_their_sounds_apart(page: gr.Blocks, client: Client):
    examples = [ASSETS / "examples" / f"{name}.ogg" for name in ("dog", "rain")]
    kept = httpx.post(f"{client.src}gradio_api/upload", files=[("files", (p.name, p.read_bytes())) for p in examples])
    sounds = dict(zip(("first", "second"), map(upload, kept.json()), strict=True))
    with ThreadPoolExecutor(2) as tabs:
        for _ in range(2):  # the second time with something in hand
            list(tabs.map(lambda tab: in_a_tab(page, tab, "hear", sounds[tab]), sounds))
    in_a_tab(page, "alone", "hear", sounds["first"])
    unfolded = {tab: in_a_tab(page, tab, "unfold_layer2")["data"][0] for tab in (*sounds, "alone", "none")}
    assert unfolded["first"] == unfolded["alone"] != unfolded["second"]
    assert "<img" in unfolded["second"] and "<img" not in unfolded["none"]


def test_a_visitor_who_leaves_takes_nobodys_place(page: gr.Blocks, client: Client):
    kept = httpx.post(f"{client.src}gradio_api/upload", files={"files": ("a.ogg", DOG.read_bytes())}).json()[0]
    call = f"{client.src}gradio_api/call/classify"
    for _ in range(2 * PLACES):  # all the places and as many again
        event = httpx.post(call, json={"data": [upload(kept)]}).json()["event_id"]
        with httpx.stream("GET", f"{call}/{event}"):
            pass  # closed before the answer
    assert client.predict(handle_file(DOG), api_name="/classify")["verdict"] == "named"


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
