"""The API beside the page: flags and variables, one port, one share link, one password."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio.tunneling import BINARY_FILENAME

import app
from cnn.classifier import Classifier
from cnn.serve.service import Opener
from cnn.ui.theme import ASSETS, MAX_CALL
from tests.standins.asking import DOG, sent

ROOT = ASSETS.parent


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


def test_page_and_api_share_a_port_a_link_and_a_password(server: tuple[str, str], tiny_classifier: Classifier):
    expected = tiny_classifier.predict(DOG).to_dict(top=3)["predictions"]
    for address in server:
        with httpx.Client(base_url=address, timeout=60) as visitor:
            assert "<html" in visitor.get("/").text
            assert visitor.get("/healthz").json()["status"] == "ok"
            assert visitor.get("/config").status_code == 401
            assert visitor.post("/v1/classify", **sent()).status_code == 401
            assert visitor.post("/gradio_api/call/classify", content=b" " * (MAX_CALL + 1)).status_code == 413
            reply = visitor.post("/v1/classify", auth=("ann", "secret"), **sent())
            assert reply.json()["predictions"] == expected
            assert "/v1/classify" in visitor.get("/v1/openapi.json").json()["paths"]
