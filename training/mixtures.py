"""Sounds to explain: clips of a fold and mixtures of two; how much of each source there is in a part of a mixture."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cnn.audio import Clip, load, resample
from cnn.classifier import Classifier
from training.data import DataError, Row

PEAK = 0.5  # of a mixture; full scale is 1
MOST_SDR = 60.0  # dB; what is beyond it, either way, counts as this
TRIES = 1000  # draws for one mixture


@dataclass(frozen=True, eq=False)
class Sound:
    """What is explained: a clip of the fold, or a mixture of two."""

    name: str
    clip: Clip
    sources: tuple[tuple[str, np.ndarray], ...] = ()  # of a mixture: class and samples as they are in it


def clips(rows: Sequence[Row], limit: int | None, seed: int) -> Iterator[Sound]:
    """The clips, or `limit` of them drawn by the seed: those of a smaller limit are among those of a larger."""
    order = range(len(rows)) if limit is None else np.random.default_rng(seed).permutation(len(rows))[:limit]
    for i in order:
        yield Sound(rows[i].path.name, load(rows[i].path))


def mixtures(rows: Sequence[Row], count: int, seed: int) -> Iterator[Sound]:
    """`count` sums of two clips of different classes, drawn by the seed, in which both have the same power (0 dB).

    Constant offsets are taken out, the shorter clip lies at the start of the longer, the sum's peak is PEAK. A silent
    clip is drawn again. Raises DataError where all clips that sound are of one class.
    """
    rng, read = np.random.default_rng([seed, 1]), functools.cache(load)
    for _ in range(count):
        for _ in range(TRIES):
            pair = [rows[i] for i in rng.integers(len(rows), size=2)]
            found = [read(row.path) for row in pair]
            if pair[0].label != pair[1].label and not any(c.is_silent for c in found):
                break
        else:
            raise DataError("mixtures want audible clips of two classes")
        rate = max(c.rate for c in found)
        parts = [resample(c.samples, c.rate, rate).astype(np.float64) for c in found]
        parts = [(p - p.mean()) / p.std() for p in parts]
        length = max(map(len, parts))
        energy = [np.pad(p / math.sqrt(len(p)), (0, length - len(p))) for p in parts]
        gain = PEAK / np.abs(sum(energy)).max()
        held = [(gain * p).astype(np.float32) for p in energy]
        name = " + ".join(r.path.name for r in pair)
        sources = tuple((r.label, p) for r, p in zip(pair, held, strict=True))
        yield Sound(name, Clip(held[0] + held[1], rate, name), sources)


def window_of(classifier: Classifier, sound: Sound) -> Sound | None:
    """The stretch of it that the network hears in the window that a Prediction shows; None for silence."""
    said = classifier.predict(sound.clip)
    if not said.labels:
        return None
    rate = sound.clip.rate
    start = round(float(said.starts[said.window]) * rate)
    held = slice(start, start + round(classifier.mel.seconds * rate))
    clip = Clip(sound.clip.samples[held], rate, sound.name)
    return Sound(sound.name, clip, tuple((label, samples[held]) for label, samples in sound.sources))


def si_sdr(estimate: np.ndarray, target: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508) of (N,) against (N,),
    both without their means: power of the estimate along the target over the power of the rest, within MOST_SDR. An
    estimate that holds nothing at all has the least.
    """
    estimate, target = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (estimate, target))
    along = estimate @ target / max(target @ target, 1e-30) * target
    held, rest = along @ along, np.sum((estimate - along) ** 2)
    if held == 0:
        return -MOST_SDR
    return float(np.clip(10 * np.log10(held / max(rest, 1e-30 * held)), -MOST_SDR, MOST_SDR))
