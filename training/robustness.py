"""Accuracy of a checkpoint on one fold, clean and as visitors' devices would send it, through the door of every answer.

    python -m training.robustness --model best_model.pth --data DIR --fold 5 [--json PATH] [--clips 40]

`--aside` in place of the fold: on the recordings that its run kept aside of the training folds (`inner_share`).

Everything random is drawn from (seed, condition, file name): a row depends neither on the other rows nor on the order.
"""

import argparse
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from scipy import signal

from cnn.audio import AudioError, load, resample
from cnn.checkpoint import CheckpointError, find
from cnn.classifier import Classifier
from training.data import DataError, Row
from training.evaluate import add_where, check_place, clips_of, warn_of_trained, where, wilson, write_whole

Sound = bytes | tuple[int, np.ndarray]  # a file, or (rate, samples): what cnn.audio.load takes


@dataclass(frozen=True, eq=False)
class Case:
    """A clip of the fold before something happens to it."""

    samples: np.ndarray  # (N,) float32, full scale 1
    rate: int  # Hz
    rng: np.random.Generator
    others: Sequence[Path] = ()  # those of the clips measured on that are of other classes


CONDITIONS: dict[str, Callable[[Case], Sound]] = {
    "clean": lambda c: (c.rate, c.samples),
    "8 kHz": lambda c: (8_000, resample(c.samples, c.rate, 8_000)),
    "11.025 kHz": lambda c: (11_025, resample(c.samples, c.rate, 11_025)),
    "8-bit": lambda c: wav(c, "PCM_U8"),
    "mu-law": lambda c: wav(c, "ULAW"),
    "mp3 64 kbit/s": lambda c: encoded(c, "libmp3lame", "mp3", 64),
    "mp3 32 kbit/s": lambda c: encoded(c, "libmp3lame", "mp3", 32),
    "opus 24 kbit/s": lambda c: encoded(c, "libopus", "ogg", 24),
    "telephone 300-3,400 Hz": lambda c: (c.rate, band_pass(c, 300, 3_400)),
    "level -30 dB": lambda c: (c.rate, amplified(c, -30)),
    "level +12 dB, clipped": lambda c: (c.rate, amplified(c, 12).clip(-1, 1)),
    "pink noise 20 dB": lambda c: (c.rate, mixed(c, pink(c), 20)),
    "pink noise 10 dB": lambda c: (c.rate, mixed(c, pink(c), 10)),
    "pink noise 5 dB": lambda c: (c.rate, mixed(c, pink(c), 5)),
    "another clip 20 dB": lambda c: (c.rate, mixed(c, background(c), 20)),
    "another clip 10 dB": lambda c: (c.rate, mixed(c, background(c), 10)),
    "another clip 5 dB": lambda c: (c.rate, mixed(c, background(c), 5)),
    "reverberation 0.6 s": lambda c: (c.rate, reverberated(c, 0.6, 0.0)),
    "speed 0.95": lambda c: (c.rate, resample(c.samples, 95, 100)),  # longer and lower
    "speed 1.05": lambda c: (c.rate, resample(c.samples, 105, 100)),
    "silence trimmed": lambda c: (c.rate, trimmed(c)),
    "moved": lambda c: (c.rate, moved(c)),
    "DC offset +0.1": lambda c: (c.rate, c.samples + np.float32(0.1)),
}
# Percentage points below clean that a row may lose.
ALLOWED = dict.fromkeys(CONDITIONS, 8.0) | {"pink noise 5 dB": 12.0, "another clip 5 dB": 12.0, "silence trimmed": 3.0}
ALLOWED_MEAN = 3.0  # over all rows but clean

QUIET = 1 / 32_768  # digital silence: nothing beyond one step of 16 bits (ESC-50's padding, resampled, ripples by one)
BATCH = 16


# --- what happens to a clip ------------------------------------------------------------------------------------------


def wav(case: Case, subtype: str) -> bytes:
    """A WAV file at the clip's own rate, in one of libsndfile's codings; without dither."""
    file = io.BytesIO()
    soundfile.write(file, case.samples, case.rate, format="WAV", subtype=subtype)
    return file.getvalue()


def encoded(case: Case, codec: str, container: str, kbit: int) -> bytes:
    """A file of one of FFmpeg's encoders, at the clip's rate or the next above it that the encoder knows."""
    known = sorted(av.Codec(codec, "w").audio_rates)
    rate = next((r for r in known if r >= case.rate), known[-1])
    file, samples = io.BytesIO(), np.ascontiguousarray(resample(case.samples, case.rate, rate))
    with av.open(file, "w", format=container) as box:
        stream = box.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 1_000 * kbit
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = rate
        converter = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate)
        for part in [*converter.resample(frame), None]:
            box.mux(stream.encode(part))
    return file.getvalue()


def band_pass(case: Case, low: float, high: float) -> np.ndarray:
    """Butterworth, causal, of order 4 at each edge: -3 dB at `low` and `high` Hz, 24 dB per octave beyond."""
    sos = signal.butter(4, (low, high), "bandpass", fs=case.rate, output="sos")
    return signal.sosfilt(sos, case.samples).astype(np.float32)


def amplified(case: Case, db: float) -> np.ndarray:
    return case.samples * np.float32(10 ** (db / 20))


def pink(case: Case) -> np.ndarray:
    """Gaussian noise as long as the clip, equal power per octave from 20 Hz up, nothing below."""
    spectrum = np.fft.rfft(case.rng.standard_normal(len(case.samples)))
    hz = np.fft.rfftfreq(len(case.samples), 1 / case.rate)
    return np.fft.irfft(spectrum * (hz >= 20) / np.sqrt(hz.clip(20)), len(case.samples))


def background(case: Case) -> np.ndarray:
    """A clip of another class, drawn from those measured on, as long as the clip in hand.

    Its digital silence is cut out; what sounds is repeated end to end, beginning anywhere.
    """
    if not case.others:
        raise DataError("the clips are of one class only; 'another clip' as background wants a second")
    other = load(case.others[case.rng.integers(len(case.others))])
    samples = resample(other.samples, other.rate, case.rate)
    if sounding(samples, case.rate).any():
        samples = samples[sounding(samples, case.rate)]
    return np.resize(np.roll(samples, -case.rng.integers(len(samples))), len(case.samples))


def mixed(case: Case, noise: np.ndarray, snr: float) -> np.ndarray:
    """Clip plus noise; `snr` in dB is the clip's power where it sounds over the whole noise's, both without their mean.

    The noise also fills the clip's digital silence. Nothing is clipped.
    """
    sound = case.samples[sounding(case.samples, case.rate)]
    power = np.var(sound, dtype=np.float64) if len(sound) else 0.0
    noise = noise - noise.mean(dtype=np.float64)
    gain = np.sqrt(power / (max(np.mean(noise**2), 1e-20) * 10 ** (snr / 10)))
    return (case.samples + gain * noise).astype(np.float32)


def reverberated(case: Case, t60: float, ratio: float) -> np.ndarray:
    """The direct sound as it is, and after it white noise that decays by 60 dB in `t60` seconds.

    `ratio`: energy of the direct over that of the reverberant sound, in dB. What rings on after the clip is cut off.
    """
    tail = np.arange(1, round(1.5 * t60 * case.rate)) / t60 / case.rate
    tail = case.rng.standard_normal(len(tail)) * 10 ** (-3 * tail)
    tail *= np.sqrt(10 ** (-ratio / 10) / np.sum(tail**2))
    impulse = np.concatenate([[1.0], tail])
    return signal.fftconvolve(case.samples, impulse)[: len(case.samples)].astype(np.float32)


def trimmed(case: Case) -> np.ndarray:
    """Without the digital silence at both ends; a clip that is nothing else stays as it is."""
    loud = np.flatnonzero(np.abs(case.samples) > QUIET)
    return case.samples[loud[0] : loud[-1] + 1] if len(loud) else case.samples


def moved(case: Case) -> np.ndarray:
    """The sound elsewhere in the clip, whose length stays.

    Where its ends hold half a second of digital silence or more, what lies between is placed anywhere in silence; else
    the clip is shifted circularly by any amount.
    """
    sound, length = trimmed(case), len(case.samples)
    if length - len(sound) < 0.5 * case.rate:
        return np.roll(case.samples, case.rng.integers(length))
    before = case.rng.integers(length - len(sound) + 1)
    return np.pad(sound, (before, length - len(sound) - before))


def sounding(samples: np.ndarray, rate: int) -> np.ndarray:
    """(N,) -> (N,) bool: the blocks of 10 ms that are not digital silence."""
    block = max(1, rate // 100)
    blocks = np.pad(np.abs(samples), (0, -len(samples) % block)).reshape(-1, block)
    return np.repeat(blocks.max(axis=1) > QUIET, block)[: len(samples)]


# --- measuring -------------------------------------------------------------------------------------------------------


def generator(seed: int, condition: str, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{condition}/{name}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def measure(
    model: Path | Classifier,
    data: Path,
    fold: int | None,
    *,
    device: str = "auto",
    seed: int = 0,
    clips: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """The table of one fold as plain types (see `pool`); `clips`: only so many of it, drawn by the seed.

    `fold` None: of the recordings that the network's run kept aside. Raises CheckpointError, DataError or AudioError.
    """
    classifier = model if isinstance(model, Classifier) else Classifier.open(model, device)
    rows = sorted(clips_of(classifier, data, fold), key=lambda r: r.path.name)
    chosen = rows if clips is None else _draw(rows, clips, seed)
    hits: dict[str, list[bool]] = {name: [] for name in CONDITIONS}
    for at in range(0, len(chosen), BATCH):
        part = chosen[at : at + BATCH]
        loaded = [load(r.path) for r in part]
        others = [[o.path for o in rows if o.label != r.label] for r in part]
        for name, condition in CONDITIONS.items():
            sounds = [
                condition(Case(clip.samples, clip.rate, generator(seed, name, row.path.name), other))
                for row, clip, other in zip(part, loaded, others, strict=True)
            ]
            answers = classifier.predict_batch(sounds)
            # A sound too faint to be heard gets no name, and that is wrong too.
            hits[name] += [[x.name for x in a.labels[:1]] == [r.label] for r, a in zip(part, answers, strict=True)]
        progress(at + len(part), len(chosen))
    return _table(sorted({r.fold for r in rows}), [r.path.name for r in chosen], hits, seed)


def pool(tables: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Several folds' tables as one over all their clips.

    `folds`, `seed`, `files` (clips in the order of every row's `hits`), `rows`: condition -> {clips, correct, accuracy,
    interval (95 %), loss (points below clean), hits}; `mean_loss`, `worst`, `worst_loss` over the rows but clean;
    `missed`: the conditions, or 'mean', that lose more than they may.
    """
    tables = list(tables)
    if len({t["seed"] for t in tables}) != 1:
        raise ValueError("tables of different seeds, or none, do not make one table")
    hits = {name: [hit for t in tables for hit in t["rows"][name]["hits"]] for name in CONDITIONS}
    folds, files = ([x for t in tables for x in t[key]] for key in ("folds", "files"))
    return _table(folds, files, hits, tables[0]["seed"])


def part(table: dict[str, Any], fold: int, folds: Mapping[str, int]) -> dict[str, Any] | None:
    """What a pooled table says of one fold, None for nothing; `folds`: of every clip by its file's name."""
    inside = [folds[name] == fold for name in table["files"]]
    if not any(inside):
        return None
    hits = {name: list(itertools.compress(row["hits"], inside)) for name, row in table["rows"].items()}
    return _table([fold], list(itertools.compress(table["files"], inside)), hits, table["seed"])


def _draw(rows: list[Row], clips: int, seed: int) -> list[Row]:
    if clips < 1:
        raise ValueError(f"--clips {clips}: at least one clip is needed")
    return [rows[i] for i in sorted(np.random.default_rng(seed).permutation(len(rows))[:clips])]


def _table(folds: list[int], files: list[str], hits: dict[str, list[bool]], seed: int) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    clean = sum(hits["clean"])
    for name, row in hits.items():
        n, correct = len(row), sum(row)
        rows[name] = {"clips": n, "correct": correct, "accuracy": correct / n, "interval": list(wilson(correct, n)),
                      "loss": 100 * (clean - correct) / n, "hits": row}  # fmt: skip
    losses = {name: row["loss"] for name, row in rows.items() if name != "clean"}
    mean, worst = round(sum(losses.values()) / len(losses), 9), max(losses, key=losses.__getitem__)
    missed = [name for name, loss in losses.items() if loss > ALLOWED[name]] + ["mean"] * (mean > ALLOWED_MEAN)
    return {"folds": folds, "seed": seed, "files": files, "rows": rows, "mean_loss": mean, "worst": worst,
            "worst_loss": losses[worst], "missed": missed}  # fmt: skip


def text(table: dict[str, Any]) -> str:
    """A table as lines for people."""
    lines = [f"{'condition':<24}{'accuracy':>10}{'95 % interval':>17}{'to clean':>10}{'may lose':>10}"]
    for name, row in table["rows"].items():
        low, high = (100 * x for x in row["interval"])
        line = f"{name:<24}{100 * row['accuracy']:>8.2f} %{f'{low:.1f}-{high:.1f} %':>17}"
        if name != "clean":
            missed = "  missed" if name in table["missed"] else ""
            line += f"{-row['loss'] or 0.0:>+10.2f}{ALLOWED[name]:>10g}{missed}"
        lines.append(line)
    mean = 100 * table["rows"]["clean"]["accuracy"] - table["mean_loss"]
    lines.append(f"mean of the rows but clean: {mean:.2f} %, {table['mean_loss']:.2f} points below clean "
                 f"(may lose {ALLOWED_MEAN:g}); worst: {table['worst']}, {table['worst_loss']:.2f}")  # fmt: skip
    return "\n".join([*lines, f"targets: {'missed: ' + ', '.join(table['missed']) if table['missed'] else 'all hold'}"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.robustness", description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="best_model.pth; default: the network in the box")
    parser.add_argument("--data", type=Path, required=True, help="a folder of ESC-50's layout")
    add_where(parser)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--clips", type=int, help="only so many of the clips, for a quick look")
    parser.add_argument("--json", type=Path, help="also write the table there, with every clip's outcome")
    args = parser.parse_args(argv)
    try:
        if args.json:
            check_place(args.json)
        path = find(args.model)
        classifier = Classifier.open(path, args.device)
        warn_of_trained(classifier, args.fold)
        table = measure(classifier, args.data, args.fold, clips=args.clips, progress=_tell)
        print(f"{path}: {len(table['files'])} clips {where(args.fold)}\n{text(table)}")
        if args.json:
            write_whole(args.json, (json.dumps(table) + "\n").encode())
    except KeyboardInterrupt:
        print("\nstopped: there is no table before all clips are named; --clips 40 makes a quick one", file=sys.stderr)
        return 130
    except (AudioError, CheckpointError, DataError, OSError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def _tell(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {of} clips", end="\n" if done == of else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
