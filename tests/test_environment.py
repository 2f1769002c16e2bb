""".ci/environment.py on a project of its own, with a stand-in for venv and for pip: offline, no package is real."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PINS = {"requirements.txt": "torch==1.0\ntorchaudio==1.0\npage==1.0  # a remark\n",
        "tests/requirements.txt": "-r ../requirements.txt\nlinter==1.0\n"}  # fmt: skip

# `python -m venv DIR`: a shell script that starts this Python without its own packages, and the pip below.
VENV = """
import os, pathlib, shutil, sys
root = pathlib.Path(sys.argv[1])
site = root / "lib/python3/site-packages"
(site / "pip/_internal/cli").mkdir(parents=True)
for package in ("pip", "pip/_internal", "pip/_internal/cli"):
    (site / package / "__init__.py").touch()
(site / "pip/_internal/cli/main.py").touch()
shutil.copy(pathlib.Path(__file__).with_name("pip.py"), site / "pip/__main__.py")
(root / "bin").mkdir()
(root / "bin/python").write_text(f'#!/bin/sh\\nPYTHONPATH="{site}" exec "{sys.executable}" -S "$@"\\n')
(root / "bin/python").chmod(0o755)
"""

# Notes its arguments; lays down what is asked for unless a record says that it is there; dies after PIP_DIES records.
PIP = """
import os, pathlib, shutil, sys
site = pathlib.Path(__file__).parent.parent
with open("pip.log", "a") as log:
    print(*sys.argv[1:], file=log)
def asked(words):
    for flag, word in zip(["", *words], words):
        if flag == "-r":
            path = pathlib.Path(word)
            lines = (line.split("#")[0].split() for line in path.read_text().splitlines())
            for line in lines:
                yield from asked([line[0], str(path.parent / line[1])] if line[:1] == ["-r"] else line)
        elif "==" in word:
            yield word.split("==")
for done, (name, version) in enumerate(asked(sys.argv[1:]), start=1):
    record = site / f"{name}-{version}.dist-info"
    if not record.exists():
        for old in site.glob(f"{name}-*.dist-info"):
            shutil.rmtree(old)
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        (record / "RECORD").write_text(f"{name}.py,,\\n{record.name}/METADATA,,\\n")
        if str(done) == os.environ.get("PIP_DIES"):
            sys.exit("pip: no route to host")
        (site / f"{name}.py").write_text("raise SystemExit('imported')")
"""


class Project:
    """A folder with the script, its pins and the stand-ins."""

    def __init__(self, root: Path) -> None:
        self.root, self.site = root, root / ".venv/lib/python3/site-packages"
        (root / ".ci").mkdir()
        (root / "tests").mkdir()
        (root / "stand-ins").mkdir()
        shutil.copy(ROOT / ".ci" / "environment.py", root / ".ci")
        for file, text in PINS.items() | {"stand-ins/venv.py": VENV, "stand-ins/pip.py": PIP}.items():
            (root / file).write_text(text)

    def run(self, action: str, what: str, **env: str) -> int:
        """The script's exit code. As in the Makefile, `ready` is asked of .venv's own Python."""
        python, path = sys.executable, str(self.root / "stand-ins")  # a folder on the path hides the real venv module
        if action == "ready":
            python, path = str(self.root / ".venv/bin/python"), ""
        base = {name: value for name, value in os.environ.items() if name != "TORCH_INDEX"} | {"PYTHONPATH": path}
        command = [python, ".ci/environment.py", action, what]
        return subprocess.run(command, cwd=self.root, env=base | env, capture_output=True).returncode

    def pip(self) -> list[str]:
        """What pip was called with since the last time."""
        log = self.root / "pip.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def installed(self) -> set[str]:
        return {record.name.removesuffix(".dist-info") for record in self.site.glob("*.dist-info")}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_it_installs_once_and_ready_neither_installs_nor_imports(project: Project):
    assert project.run("install", "tests") == 0
    assert len(project.pip()) == 1
    assert project.installed() == {"torch-1.0", "torchaudio-1.0", "page-1.0", "linter-1.0"}
    for what in ("app", "tests"):
        assert project.run("ready", what) == 0  # a package that is imported would end it
    assert project.pip() == []
    before = {path: path.stat().st_mtime_ns for path in project.site.rglob("*.py")}
    assert project.run("install", "tests") == 0  # once more changes nothing
    assert before == {path: path.stat().st_mtime_ns for path in project.site.rglob("*.py")}


def test_the_app_alone_does_not_make_it_ready_for_the_tests(project: Project):
    assert project.run("install", "app") == 0
    assert (project.run("ready", "app"), project.run("ready", "tests")) == (0, 1)


def test_an_interrupted_installation_is_repaired(project: Project):
    assert project.run("install", "app", PIP_DIES="2") != 0
    assert (project.site / "torchaudio-1.0.dist-info").exists() and not (project.site / "torchaudio.py").exists()
    assert project.run("ready", "app") == 1
    assert project.run("install", "app") == 0
    assert project.run("ready", "app") == 0 and (project.site / "torchaudio.py").exists()
    (project.root / ".venv/bin/python").write_text("#!/bin/sh\nexit 1\n")  # as after an upgrade of the system's Python
    assert project.run("ready", "app") == 1
    assert project.run("install", "app") == 0 == project.run("ready", "app")


def test_changed_pins_are_installed(project: Project):
    assert project.run("install", "app") == 0
    pins = project.root / "requirements.txt"
    pins.write_text(pins.read_text().replace("page==1.0", "page==1.1"))
    assert project.run("ready", "app") == 1
    assert project.run("install", "app") == 0 == project.run("ready", "app")
    assert project.installed() == {"torch-1.0", "torchaudio-1.0", "page-1.1"}
    shutil.rmtree(project.site / "page-1.1.dist-info")  # taken away by hand: the stamp alone is not believed
    assert project.run("ready", "app") == 1


def test_another_index_for_torch_rebuilds_and_stays(project: Project):
    assert project.run("install", "app") == 0
    (project.site / "mark").touch()
    project.pip()
    small = {"TORCH_INDEX": "https://example.org/cpu"}
    assert project.run("ready", "app", **small) == 1
    assert project.run("install", "app", **small) == 0 == project.run("ready", "app", **small)
    assert not (project.site / "mark").exists()
    assert "--index-url https://example.org/cpu torch==1.0 torchaudio==1.0" in project.pip()[0]
    (project.site / "mark").touch()
    assert project.run("ready", "app") == 0 == project.run("install", "tests")  # without it, the choice stays
    assert (project.site / "mark").exists() and "example.org" in project.pip()[0]
