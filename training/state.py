"""What a run leaves on disk beside its weights: the state it resumes from, and where it came from."""

import dataclasses
import hashlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from cnn.checkpoint import unpacked, why
from training.config import CHOSEN, TrainConfig, differences
from training.data import Row
from training.parallel import ALONE, Ranks

FORMAT = "audio-cnn-resume/9"  # 9: batches are drawn otherwise, an older run would not end as it began
FREE = ("checkpoint_every", "device")  # may change on the way: the first changes nothing, the second the rounding
SPARE = 10_000_000  # bytes for TensorBoard's files and what zip archives add


class TrainingError(RuntimeError):
    """The run cannot go on; the message says where it stands and the way out."""


class NotWritten(TrainingError):
    """What the run leaves behind finds no room, or no right to be written."""


@contextmanager
def alone_in(out: Path, ranks: Ranks = ALONE) -> Iterator[None]:
    """Hold `out` for this run: two would write each other's checkpoints. A run that was killed holds nothing.

    Raises TrainingError where another run is at work there.
    """
    lock = FileLock(out / "run.lock", timeout=0)

    def take() -> None:
        try:
            lock.acquire()
        except Timeout as e:
            told = "wait for it, stop it, or choose another folder"
            raise TrainingError(f"another run is at work in {out}: {told}") from e
        except (OSError, NotImplementedError):  # a file system without locks; what cannot be written is told by the run
            return

    ranks.agreed(take)
    try:
        yield
    finally:
        lock.release()


def write(state: dict[str, Any], path: Path) -> None:
    """The file whole or not at all. Raises NotWritten; an older file there stays as it was."""
    part = path.with_suffix(".part")
    try:
        torch.save({"format": FORMAT, **state}, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut could leave the new name with nothing in it
        os.replace(part, path)
    except (OSError, RuntimeError) as e:  # torch's zip writer reports a full disk as RuntimeError
        there = "; the last good one is still there" if path.exists() else ""
        raise NotWritten(
            f"{path} could not be written ({e}){there}: free some space or make the folder writable"
            f"{', then go on with --resume' if there else ''}"
        ) from e
    finally:
        part.unlink(missing_ok=True)


def room(network: int, patience: bool) -> int:
    """Bytes that a run of a network of so many bytes takes at the most: two late states, and the weights in half.

    A late state holds the network, its average, AdamW's two moments and with `patience` the best average; the next one
    is written beside it.
    """
    return 2 * (5 if patience else 4) * network + network // 2 + SPARE


def check_room(path: Path, network: int, patience: bool) -> None:
    """Raises NotWritten where the run would not fit; a state there at `path` already has a part of its room."""
    there = path.stat().st_size if path.exists() else 0
    need, free = room(network, patience) - there, shutil.disk_usage(path.parent).free
    if free < need:
        raise NotWritten(f"{path.parent} has {free / 1e6:.0f} MB left, this run needs {need / 1e6:.0f} MB: free "
                         "some space or choose another folder")  # fmt: skip


def read(path: Path, config: TrainConfig) -> dict[str, Any]:
    """Raises TrainingError where it cannot be read or belongs to other settings."""
    try:
        state = unpacked(path)
    except (OSError, MemoryError) as e:
        raise TrainingError(f"{path} cannot be read now ({why(e)}): check its permissions and the disk") from e
    except Exception as e:  # in whatever way: the advice is the same
        raise TrainingError(f"{path} is damaged: delete it to start again") from e
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainingError(f"{path} is not a resume state of this version: delete it to start again")
    if told := differences(state["config"], dataclasses.asdict(config), FREE):
        raise TrainingError(f"{path} belongs to other settings ({told}): use those, or another folder")
    return state


def sha256(path: Path) -> str:
    """Of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(rows: list[Row]) -> str:
    """SHA-256 over fold, class and bytes of every clip, in their order. Raises OSError."""

    def told(row: Row) -> str:
        return f"{row.fold} {row.label} {sha256(row.path)}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return hashlib.sha256("\n".join(pool.map(told, rows)).encode()).hexdigest()


def check_data(path: Path, state: dict[str, Any], data: Path, found: str) -> None:
    """Raises TrainingError where the run of this state began with clips of another fingerprint than `found`.

    A state from before there were fingerprints goes on with whatever it is given.
    """
    if state["provenance"].get("data_sha256", found) != found:
        raise TrainingError(f"{path} belongs to other data than {data}: give the --data that the run began with, or "
                            "choose another folder")  # fmt: skip


def provenance(data: Path, folds: set[int], config: TrainConfig, lowest_rate: int, warned: list[str]) -> dict[str, Any]:
    """Taken at the start of a run: the repository may move on while it goes. `folds`: all there are."""
    return {
        "data": f"ESC-50 ({data.resolve().name}, {lowest_rate} Hz), K. J. Piczak 2015, doi 10.1145/2733373.2806390",
        "licence": "the data is CC BY-NC 3.0: these weights are for non-commercial use",
        "folds_trained_on": sorted(folds - {config.fold}),
        "fold_held_out": config.fold,
        "commit": commit(),
        # plain strings: torch's own version type would keep the file from loading with weights_only
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "chosen_here": list(CHOSEN.get(config.recipe, ())),
        "warnings": warned,
    }


def commit() -> str:
    """Of the repository, with a remark on local changes; AUDIO_CNN_COMMIT tells it where there is none."""
    if told := os.environ.get("AUDIO_CNN_COMMIT"):
        return told
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return (_git("rev-parse", "HEAD") or "unknown") + (" with local changes" if changed else "")


def _git(*args: str) -> str:
    try:
        found = subprocess.run(["git", *args], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    except OSError:  # no git here: a downloaded archive, a slim container
        return ""
    return found.stdout.strip()
