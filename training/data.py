"""ESC-50 from a folder of the upstream layout: `audio/` and `meta/esc50.csv`."""

import csv
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnn import audio
from cnn.labels import ESC50
from cnn.mel import LogMel, MelConfig
from training.cache import default_cache, keep, look_up

FRONT_END = 2  # to be raised when cnn.decoding, cnn.audio or cnn.mel come to make another thing of the same sound
LIBRARIES = ("av", "numpy", "soundfile", "soxr", "torch", "torchaudio")  # so may these
LATER = ("floor_db", "relative", "mean", "std")  # of the front end, applied after the pictures kept here
NOTES, NOTE = 3, 300  # what is told of odd clips: of how many of them, in how many characters
PART = 64  # clips decoded ahead at the most: what waits for the front end is in memory


class DataError(ValueError):
    """The data folder is not what it should be; the message says what is missing and the way out."""


@dataclass(frozen=True)
class Row:
    path: Path
    fold: int
    label: str
    source: str = ""  # the recording that the clip was cut from: its takes must not be on both sides of a split


def read_rows(root: Path, *, esc10: bool = False) -> list[Row]:
    """The rows of `meta/esc50.csv` in its order; file names are taken from it, never built.

    Raises DataError where the folder, the csv or a column is missing, it cannot be read or a class is unknown.
    """
    table = Path(root) / "meta" / "esc50.csv"
    rows = []
    try:
        if not table.is_file():
            raise DataError(f"{table} is missing: --data wants a folder of ESC-50's layout, audio/ and meta/esc50.csv")
        with table.open(newline="", encoding="utf-8-sig") as file:  # Excel puts a byte order mark first
            for line, row in enumerate(csv.DictReader(file), start=2):
                try:
                    if row["category"] not in ESC50:
                        raise DataError(f"{table}, line {line}: {row['category']!r} is not a class of ESC-50")
                    if not esc10 or _flag(row["esc10"]):
                        path = Path(root) / "audio" / row["filename"]
                        rows.append(Row(path, int(row["fold"]), row["category"], row.get("src_file") or ""))
                except DataError:
                    raise
                except (KeyError, TypeError, ValueError) as e:
                    needed = "the columns filename, fold (a number), category, esc10 (True or False) are needed"
                    raise DataError(f"{table}, line {line}: {needed}") from e
    except UnicodeDecodeError as e:
        raise DataError(f"{table} is not UTF-8: save it as CSV in UTF-8") from e
    except csv.Error as e:
        raise DataError(f"{table} cannot be read as a table of comma-separated values ({e})") from e
    except OSError as e:
        raise DataError(f"{table} cannot be read ({e.strerror}): check its permissions") from e
    if not rows:
        raise DataError(f"{table} names no clip{' of ESC-10: its column esc10 is never True' if esc10 else ''}")
    return rows


def _flag(text: str | None) -> bool:
    """What is in the column esc10, also as spreadsheets write it. Raises KeyError for anything else."""
    return {"true": True, "1": True, "false": False, "0": False}[str(text).lower()]


def in_folds(rows: Iterable[Row], folds: Iterable[int]) -> list[Row]:
    """The rows of these folds. Raises DataError where there are none, naming the folds there are."""
    rows, wanted = list(rows), set(folds)
    chosen = [r for r in rows if r.fold in wanted]
    if not chosen:
        there = ", ".join(map(str, sorted({r.fold for r in rows})))
        raise DataError(f"no clip in fold {', '.join(map(str, sorted(wanted)))}; there are {there} (--fold, --folds)")
    return chosen


@dataclass(frozen=True)
class Heard:
    """What decoding the clips told."""

    lowest_rate: int  # of the sources, in Hz
    odd: int = 0  # clips that are not as they should be
    notes: tuple[str, ...] = ()  # of the first of them: 'a.wav: The file breaks off early ...'


def load_db(rows: list[Row], mel: MelConfig, cache: Path | None = None) -> tuple[Tensor, Heard]:
    """Every clip as the front end's absolute dB mel (n, F, T), float32, floor -100 dB, and what was heard.

    Not standardised and not relative: augmentation works on levels. Decoded once and kept in the folder `cache` (None:
    training.cache.default_cache()) under the clips' bytes and the settings that matter; the tensor is mapped from that
    file: index it, and only what is asked for is read. Where nothing can be kept, a line on stderr says so and the
    tensor is in memory. Raises AudioError or DataError naming the clip.
    """
    folder = cache or default_cache()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        key = _key(pool.map(_digest, rows), mel)
        if found := look_up(folder, key):
            return found[0], _heard(found[1])
        db, heard = _decode(rows, mel, pool)
    try:
        keep(folder, key, db, dataclasses.asdict(heard))
    except OSError as e:
        print(f"{folder} cannot keep the {len(rows)} decoded clips ({e.strerror}): they stay in memory, and the next "
              "run decodes them again; AUDIO_CNN_CACHE names another folder", file=sys.stderr, flush=True)  # fmt: skip
        return db, heard
    found = look_up(folder, key)
    return (found[0] if found else db), heard


def _heard(told: dict[str, Any]) -> Heard:
    """From a cache's notes."""
    return Heard(told["lowest_rate"], told["odd"], tuple(told["notes"]))


def _digest(row: Row) -> str:
    """SHA-256 of the clip's file."""
    try:
        if not row.path.is_file():
            raise DataError(f"{row.path} is named in meta/esc50.csv but missing")
        with row.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise DataError(f"{row.path} cannot be read ({e.strerror}): check its permissions") from e


def _key(clips: Iterable[str], mel: MelConfig) -> str:
    """Everything that decides the pictures: the files' digests in their order, the settings, the code."""
    settings = {name: value for name, value in dataclasses.asdict(mel).items() if name not in LATER}
    versions = {name: metadata.version(name) for name in LIBRARIES}
    told = {"front end": FRONT_END, "libraries": versions, "settings": settings, "clips": list(clips)}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _decode(rows: list[Row], mel: MelConfig, pool: ThreadPoolExecutor) -> tuple[Tensor, Heard]:
    """Pictures (n, F, T) in memory. The pool decodes and resamples, this thread does the rest."""

    def window(row: Row) -> tuple[np.ndarray, int, str]:
        clip = audio.load(row.path)
        sound = audio.resample(clip.samples, clip.rate, mel.sample_rate)
        out = np.zeros(mel.samples, np.float32)
        out[: min(len(sound), mel.samples)] = sound[: mel.samples]
        return out, clip.rate, noted(row, clip.notes)

    front_end = LogMel(mel)
    out = torch.empty(len(rows), mel.n_mels, mel.frames)
    lowest, notes, live = sys.maxsize, [], sys.stderr.isatty()
    try:
        for at in range(0, len(rows), PART):
            for i, (samples, rate, told) in enumerate(pool.map(window, rows[at : at + PART]), start=at):
                lowest = min(lowest, rate)
                notes += [told] if told else []
                with torch.inference_mode():
                    power = front_end.power(torch.from_numpy(samples)[None])
                    out[i] = 10.0 * power[0].clamp_min(1e-10).log10()
                if live:
                    print(f"\rdecoding clip {i + 1} of {len(rows)}", end="", file=sys.stderr, flush=True)
    finally:
        if live:
            print(file=sys.stderr, flush=True)  # what is told next has a line of its own
    if out.amax() == out.amin():
        raise DataError(f"there is no sound in any of the {len(rows)} clips in {rows[0].path.parent}: all are silence")
    return out, Heard(lowest, len(notes), tuple(notes[:NOTES]))


def noted(row: Row, notes: Sequence[str]) -> str:
    """What decoding a clip told, after its name; '' where it is as it should be."""
    return f"{row.path.name}: {' '.join(notes)}"[:NOTE] if notes else ""


def odd_clips(count: int, notes: Sequence[str]) -> str:
    """A sentence on so many clips that are not as they should be, with what is noted of the first of them."""
    more = " ..." if count > NOTES else ""
    return (f"{count} clip{' is' if count == 1 else 's are'} not as a clip should be: {' '.join(notes[:NOTES])}{more} "
            "`python -m training.esc50` says how to fetch them again")  # fmt: skip
