"""Modal's commands as processes of their own, told of the stand-in."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.standins.modal_local import Standin

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0  # seconds for what takes a few where nothing else runs


def modal(standin: Standin, *words: str, folder: Path = ROOT, **environment: str) -> subprocess.Popen:
    """`modal run ...`, started in the folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "modal", *words], cwd=folder, env=standin.environment() | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and everything it said."""
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"still running after {PATIENCE:.0f} s: {process.communicate()[0]}")
    return process.returncode, said
