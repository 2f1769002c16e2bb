"""A folder of arrays that took long to make, each in one file: read by memory map, checked whenever it is opened.

A file is named after its key. It holds 64 hexadecimal digits, the SHA-256 of all that follows; a JSON header, padded to
HEADER bytes; the values, float32. So every change shows: a flipped byte, a missing end, a file put in another's place.

The folder keeps LIMIT bytes: what goes beyond that is deleted, the file used longest ago first, when one is added.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HEADER = 4096  # bytes before the values
DIGITS = 64
LIMIT = 2_000_000_000  # bytes; ESC-50 takes 257 MB at 16 kHz, 221 at 22.05 and 441 at 44.1
ABANDONED = 86_400.0  # seconds after which what an interrupted process began to write is deleted
OURS = re.compile(r"[0-9a-f]{64}\.mel(\.[0-9a-f]{32}\.part)?")  # nothing else is ever deleted


def default_cache() -> Path:
    """`AUDIO_CNN_CACHE`, or audio-cnn in `XDG_CACHE_HOME` or in ~/.cache."""
    if chosen := os.environ.get("AUDIO_CNN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audio-cnn"


def look_up(folder: Path, key: str) -> tuple[Tensor, dict[str, Any]] | None:
    """The values, mapped copy-on-write, and what was noted with them; None where they are not there.

    A file that is not as it was written counts as not there, and a line on stderr says so.
    """
    path = _path(folder, key)
    try:
        with path.open("rb") as file:
            digest = file.read(DIGITS)
            if hashlib.file_digest(file, "sha256").hexdigest().encode() != digest:
                problem = "is damaged"
            else:
                file.seek(DIGITS)
                header = json.loads(file.read(HEADER - DIGITS))
                if header["key"] == key:
                    values = np.memmap(file, np.float32, "c", HEADER, tuple(header["shape"]))
                    with contextlib.suppress(OSError):  # a folder that may only be read
                        os.utime(path)  # used now
                    return torch.from_numpy(values), header["notes"]
                problem = "holds something else"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        problem = f"cannot be read ({e.strerror})"
    print(f"{path} {problem}: it is made anew", file=sys.stderr, flush=True)
    return None


def keep(folder: Path, key: str, values: Tensor, notes: dict[str, Any]) -> None:
    """Write the file whole or not at all, then make room. Raises OSError where that cannot be done.

    Processes that write the same file at once each write their own, and the last one stays.
    """
    path = _path(folder, key)
    array = values.numpy()
    head = json.dumps({"key": key, "shape": array.shape, "notes": notes}).encode().ljust(HEADER - DIGITS)
    digest = hashlib.sha256(head)
    digest.update(array)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("xb") as file:  # written, not mapped: a full disk is an error then, not a signal
            file.write(digest.hexdigest().encode() + head)
            file.write(array)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    _make_room(folder, path)


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.mel"


def _make_room(folder: Path, newest: Path) -> None:
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process has just deleted it
            if OURS.fullmatch(path.name):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for used, size, path in sorted(found, reverse=True):
        part = path.suffix == ".part"
        total += 0 if part else size
        if (time.time() - used > ABANDONED) if part else (total > LIMIT and path != newest):
            with contextlib.suppress(OSError):
                path.unlink()
