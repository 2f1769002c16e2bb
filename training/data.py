"""ESC-50 from a folder of the upstream layout: `audio/` and `meta/esc50.csv`."""

import csv
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cnn import audio
from cnn.labels import ESC50
from cnn.mel import LogMel, MelConfig


class DataError(ValueError):
    """The data folder is not what it should be; the message says what is missing and the way out."""


@dataclass(frozen=True)
class Row:
    path: Path
    fold: int
    label: str


def read_rows(root: Path, *, esc10: bool = False) -> list[Row]:
    """The rows of `meta/esc50.csv` in its order; file names are taken from it, never built.

    Raises DataError where the folder, the csv or a column is missing or a class is unknown.
    """
    table = Path(root) / "meta" / "esc50.csv"
    if not table.is_file():
        raise DataError(f"{table} is missing: --data wants a folder of ESC-50's layout, audio/ and meta/esc50.csv")
    rows = []
    with table.open(newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                if row["category"] not in ESC50:
                    raise DataError(f"{table}, line {line}: {row['category']!r} is not a class of ESC-50")
                if not esc10 or row["esc10"] == "True":
                    rows.append(Row(Path(root) / "audio" / row["filename"], int(row["fold"]), row["category"]))
            except (KeyError, TypeError, ValueError) as e:
                if isinstance(e, DataError):
                    raise
                raise DataError(f"{table}, line {line}: the columns filename, fold, category, esc10 are needed") from e
    if not rows:
        raise DataError(f"{table} names no clip")
    return rows


def in_folds(rows: Iterable[Row], folds: Iterable[int]) -> list[Row]:
    """The rows of these folds. Raises DataError where there are none."""
    wanted = set(folds)
    chosen = [r for r in rows if r.fold in wanted]
    if not chosen:
        raise DataError(f"no clip in fold {', '.join(map(str, sorted(wanted)))}")
    return chosen


def load_db(rows: list[Row], mel: MelConfig) -> tuple[Tensor, int]:
    """Every clip as the front end's absolute dB mel (n, F, T), float32, floor -100 dB; the sources' lowest rate in Hz.

    Not standardised and not relative: augmentation works on levels. Raises AudioError or DataError naming the clip.
    """
    front_end = LogMel(mel)
    out = torch.empty(len(rows), mel.n_mels, mel.frames)
    lowest = sys.maxsize
    for i, row in enumerate(rows):
        if not row.path.is_file():
            raise DataError(f"{row.path} is named in meta/esc50.csv but missing")
        clip = audio.load(row.path)
        lowest = min(lowest, clip.rate)
        sound = audio.resample(clip.samples, clip.rate, mel.sample_rate)
        window = np.zeros(mel.samples, np.float32)
        window[: min(len(sound), mel.samples)] = sound[: mel.samples]
        with torch.inference_mode():
            power = front_end.power(torch.from_numpy(window)[None])
            out[i] = 10.0 * power[0].clamp_min(1e-10).log10()
    return out, lowest
