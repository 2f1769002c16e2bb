"""The repository as a Space: what its front matter promises, and the upload to a Hub that stands in for the real one.

Also what the Dockerfile has in common with the rest: it cannot be built here.
"""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from cnn.checkpoint import DEFAULT
from cnn.serve.space import ROOT, main, tracked
from tests.standins.hub_standin import Hub, hub_standin

TOKEN = "hf_test"
SPACE = "spaces/tester/sounds"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "blobs").mkdir()
    with hub_standin(tmp_path / "blobs", TOKEN) as hub:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}.items():
            monkeypatch.setenv(name, value)
        # read from the environment when the package is imported, which another test may have done
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield hub


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with README, weights and a file that git does not track, in place of this one."""
    root = tmp_path / "clone"
    (root / "assets").mkdir(parents=True)
    shutil.copy(ROOT / "README.md", root)
    (root / "assets" / "best_model.pth").write_bytes(bytes(range(256)) * 5000)
    (root / "deleted.txt").write_text("tracked, but no longer there")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=root, check=True)
    (root / "secret.env").write_text("not for anybody")
    (root / "deleted.txt").unlink()
    monkeypatch.setattr("cnn.serve.space.ROOT", root)
    return root


def pins() -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))


def test_the_front_matter_makes_a_space_that_installs_these_pins():
    head = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    told = {key: value.strip('"') for key, value in re.findall(r"^(\w+): *(\S.*)$", head, re.MULTILINE)}
    assert told["sdk"] == "gradio" and told["sdk_version"] == pins()["gradio"]
    assert "'" not in head and re.search(r'^python_version: "3\.\d+"$', head, re.MULTILINE)  # 3.10 without quotes: 3.1
    oldest = re.search(r"OLDEST = (\(\d+, \d+\))", (ROOT / ".ci" / "environment.py").read_text())[1]
    assert tuple(map(int, told["python_version"].split("."))) >= ast.literal_eval(oldest)
    names = {node.id for node in ast.walk(ast.parse((ROOT / told["app_file"]).read_text())) if hasattr(node, "id")}
    assert "demo" in names
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {told["colorFrom"], told["colorTo"]} <= colours
    assert 0 < len(told["short_description"]) <= 60 and told["title"] and told["emoji"] and told["license"] == "mit"


def test_weights_lie_in_the_box_and_nothing_is_fetched_at_the_wake_up():
    head = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert DEFAULT.relative_to(ROOT).as_posix() in tracked(ROOT)
    assert "preload" not in head and "suggested_hardware" not in head


def test_what_git_tracks_goes_up_in_one_commit_and_what_is_no_longer_tracked_goes(hub: Hub, clone: Path, capsys):
    assert main(["tester/sounds", "--private"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"{hub.url}/{SPACE}")
    made, uploaded = hub.repos[SPACE]
    assert hub.sdks == {SPACE: "gradio"} and hub.private == {SPACE}
    expected = {name: (clone / name).read_bytes() for name in ("README.md", "assets/best_model.pth")}
    assert uploaded.files == made.files | expected
    hub.add(SPACE, uploaded.files | {"old.py": b"from an older version"})
    (clone / "README.md").write_text((clone / "README.md").read_text() + "\nMore.\n")
    assert main(["tester/sounds"]) == 0
    assert len(hub.repos[SPACE]) == 4
    assert set(hub.repos[SPACE][-1].files) == set(uploaded.files)
    assert hub.repos[SPACE][-1].files["README.md"].endswith(b"\nMore.\n")


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ("tester/sounds", "", "no token of the Hugging Face Hub: run hf auth login, or set HF_TOKEN"),
        ("tester/sounds", "hf_wrong", "refuses the token for the Space tester/sounds"),
        ("other/sounds", TOKEN, "the token may not write to the Space other/sounds"),
        ("sounds", TOKEN, "OWNER/NAME is needed"),
        ("tester/sounds@main", TOKEN, "OWNER/NAME is needed"),
        ("tester/so--unds", TOKEN, "Cannot have -- or .."),  # and not: the front matter is refused
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub: Hub, clone: Path, monkeypatch, capsys, repo, token, words):
    monkeypatch.setenv("HF_TOKEN", token)
    assert main([repo]) == 1
    said = capsys.readouterr().err.strip().split("\n")
    assert said[-1].startswith("error: ") and words in said[-1] and hub.repos == {}


def test_front_matter_that_the_hub_refuses_and_a_folder_without_git_are_told(hub: Hub, clone: Path, capsys):
    (clone / "README.md").write_text("# No front matter\n")
    assert main(["tester/sounds"]) == 1
    assert "refuses the front matter of README.md" in capsys.readouterr().err
    shutil.rmtree(clone / ".git")
    assert main(["tester/sounds"]) == 1
    assert "upload from a git clone" in capsys.readouterr().err


def test_make_space_asks_for_a_name():
    done = subprocess.run(["make", "space", "REPO="], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "make space REPO=OWNER/NAME" in done.stderr


def test_the_image_holds_what_the_app_needs_and_runs_it_as_nobody_special():
    steps = re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    copied = [name for step, words in steps if step == "COPY" for name in words.split()[:-1]]
    assert {"app.py", "cnn", "assets", "requirements.txt"} <= set(copied)
    assert set(copied) == set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert all((ROOT / name).exists() for name in copied)
    order = [step for step, _ in steps]
    assert order.index("USER") < order.index("CMD") and dict(steps)["USER"] == "app"
    told = dict(steps)
    port = told["EXPOSE"]
    assert f"AUDIO_CNN_PORT={port} " in told["ENV"] and f":{port}/healthz" in told["HEALTHCHECK"]
    for flag in re.findall(r"AUDIO_CNN_(\w+)=", told["ENV"]):
        assert f'"{flag}"' in (ROOT / "app.py").read_text()
    python = re.search(r"^FROM python:([\d.]+)-slim$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert f'python_version: "{python}"' in (ROOT / "README.md").read_text()
    for pin in ("torch", "torchaudio"):  # what the expression in the Dockerfile must find for TORCH_INDEX
        assert re.search(rf"^{pin}==[0-9.]+(?= )", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
