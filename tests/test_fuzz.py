"""Damaged files by the handful; make fuzz: by the thousand."""

import json
import sys
from pathlib import Path

import pytest

from tests import fuzz


def test_forty_damaged_files_do_no_harm():
    faults, counts, _ = fuzz.run(40, seed=7)
    assert faults == []
    assert counts["heard"] > 5 and counts["refused"] > 5


@pytest.mark.parametrize(
    "end, words, limit",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV", 60),
        ("raise SystemExit(3)", "ended with 3", 60),
        ("import time; time.sleep(60)", "hung", 0.5),
    ],
)
def test_what_kills_or_stops_a_decoder_is_named(end: str, words: str, limit: float, tmp_path: Path):
    ready = json.dumps({"outcome": "ready"})
    child = f"import sys\nprint({ready!r}, flush=True)\nsys.stdin.buffer.read(9)\n{end}"
    faults, counts, _ = fuzz.run(1, limit=limit, keep=tmp_path, command=(sys.executable, "-c", child))
    assert [fault.what.split("\n")[0].startswith(words) for fault in faults] == [True]
    assert counts == {"DEAD": 1} and len(list(tmp_path.iterdir())) == 1
