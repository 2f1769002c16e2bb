"""Set up .venv for the Makefile: `python .ci/environment.py ready|install app|tests` (standard library only).

`ready` exits 0 when .venv holds what is pinned. `install` makes it so: it rebuilds a .venv that does not run, repairs
packages that an interrupted installation left behind, and writes its stamp only after pip has succeeded.
TORCH_INDEX, when set, is the package index that torch and torchaudio come from; the choice stays with the .venv.
"""

import hashlib
import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
FILES = {"app": ROOT / "requirements.txt", "tests": ROOT / "tests" / "requirements.txt"}  # tests include app
OLDEST = (3, 11)
INDEX = os.environ.get("TORCH_INDEX", "").strip()
INDEX_NOTE = VENV / "torch-index"  # the index that this .venv's torch came from


def pins(what: str) -> dict[str, str]:
    """Package name -> pinned version, for the app or for app and tests."""
    text = "\n".join(FILES[name].read_text() for name in ("app", "tests")[: 1 + (what == "tests")])
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE))


def stamp(what: str) -> Path:
    return VENV / f"installed-{what}"


def key(what: str) -> str:
    return hashlib.sha256(repr(sorted(pins(what).items())).encode()).hexdigest()


def ready(what: str) -> bool:
    """Whether the .venv that runs this script has the stamp and the versions that are pinned."""
    if sys.version_info < OLDEST or not stamp(what).is_file() or stamp(what).read_text() != key(what):
        return False
    if INDEX and INDEX != INDEX_NOTE.read_text():
        return False
    try:  # torch 2.14.1+cpu counts as 2.14.1
        return all(metadata.version(name).split("+")[0] == version for name, version in pins(what).items())
    except metadata.PackageNotFoundError:
        return False


def pip(*arguments: str) -> None:
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    subprocess.run([PYTHON, "-m", "pip", "--disable-pip-version-check", "install", *quiet, *arguments], check=True)


def runs() -> bool:
    """Whether .venv has a Python that is new enough and a pip that starts."""
    check = f"import sys, pip._internal.cli.main; sys.exit(sys.version_info < {OLDEST})"
    try:
        return subprocess.run([PYTHON, "-c", check], capture_output=True).returncode == 0
    except OSError:
        return False


def forget_broken() -> None:
    """Delete the records of packages that lack files, so that pip lays them down again."""
    for record in VENV.glob("lib/python*/site-packages/*.dist-info"):
        files = [file for file in metadata.Distribution.at(record).files or [] if file.suffix != ".pyc"]
        if not files or not all(os.path.exists(record.parent / file) for file in files):
            print(f"Repairing {record.name.split('-')[0]}, which lacks files.", flush=True)
            shutil.rmtree(record)


def install(what: str) -> None:
    index = INDEX or (INDEX_NOTE.read_text() if INDEX_NOTE.is_file() else "")
    if VENV.exists() and not runs():
        print("Rebuilding .venv: its Python does not run any more.", flush=True)
        shutil.rmtree(VENV)
    elif INDEX and VENV.exists() and (not INDEX_NOTE.is_file() or INDEX != INDEX_NOTE.read_text()):
        print(f"Rebuilding .venv: its torch does not come from {INDEX}.", flush=True)
        shutil.rmtree(VENV)
    if not VENV.exists():
        version = ".".join(map(str, sys.version_info[:3]))
        print(f"Making .venv with Python {version}. Once: it downloads gigabytes and takes minutes.", flush=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    INDEX_NOTE.write_text(index)
    for other in FILES:
        if stamp(other).is_file() and stamp(other).read_text() != key(other):
            stamp(other).unlink()
    forget_broken()
    if index:  # alone and without dependencies: the pinned installation below finds torch there and adds the rest
        print(f"Installing torch from {index} ...", flush=True)
        pip("--no-deps", "--index-url", index, *(f"{name}=={pins('app')[name]}" for name in ("torch", "torchaudio")))
    print(f"Installing {FILES[what].relative_to(ROOT)} into .venv ...", flush=True)
    pip("-r", str(FILES[what]))
    for done in ("app", "tests")[: 1 + (what == "tests")]:
        stamp(done).write_text(key(done))
    print("The environment is ready.", flush=True)


if __name__ == "__main__":
    action, what = sys.argv[1:]
    if action == "ready":
        sys.exit(not ready(what))
    try:
        install(what)
    except subprocess.CalledProcessError:
        sys.exit("Setting up .venv failed, for the reason above; the next try goes on from there.")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the next try goes on from there.")
