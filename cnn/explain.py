"""Why: the evidence for a class in one window of a sound, to see and to hear, and whether to believe it.

    explain(classifier, load("dog.ogg")).where      # 'most evidence 1.2-1.6 s, 1-3 kHz; without it dog falls ...'

A map of what the network itself holds (cnn.cam) becomes a soft mask, or a mask is sought for this very window
(cnn.perturbation). It splits the sound in two at its own rate (cnn.spectrum), and the network hears both parts again,
beside what random masks of the same area keep.

F mel bins, T frames, f x t cells of a map.
"""

import io
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import soundfile

from cnn import cam
from cnn.audio import AudioError, Clip
from cnn.canvas import WIDE, Layout, Picture
from cnn.classifier import Classifier, Prediction
from cnn.inside import window_of
from cnn.labels import spoken
from cnn.mel import MelConfig
from cnn.perturbation import sought_mask
from cnn.pictures import Scale, evidence, hertz_in_words, percent
from cnn.spectrum import between, split

METHODS = (*cam.METHODS, "perturbation")
DEFAULT_METHOD = "perturbation"
STRONGEST, FAINTEST = 0.2, 0.1  # of a map: the share of its places that count in full; the least that does, of the most
RANDOM = 3  # random masks that the evidence must beat; odd, so that one of them is the median
MARGIN = 0.2  # of probability, by which it must
MOST = 2 / 3  # of the evidence's power, that the words 'most evidence' stand for


@dataclass(frozen=True, eq=False)
class Part:
    """What the network hears again: a share of the window's sound, at its place in the window."""

    name: str  # 'original', 'evidence', 'remainder' or 'random'
    clip: Clip  # at the sound's own rate and level, as long as the sound within the window
    probability: float  # of the label; 0 where there is nothing to hear: then the network gives no class a share
    prediction: Prediction | None  # all that it says of it; None where there is nothing to hear


@dataclass(frozen=True, eq=False)
class Explanation:
    label: str
    against: str | None  # the class that the map tells the label from
    method: str
    tap: str  # '' for a method that needs none
    window: int
    start: float  # of the window, seconds into the sound
    mel_config: MelConfig
    map: np.ndarray  # (f, t) >= 0, as the method gives it
    mask: np.ndarray  # (F, T) in 0..1, as it was laid over the sound
    area: float  # mean of the mask over the frames that lie within the sound
    original: Part
    evidence: Part
    remainder: Part  # original - evidence, sample by sample
    random: Part  # what the random mask keeps, of the same area: of RANDOM the one with the median contrast
    random_remainder: float  # probability of the label in what that mask leaves
    reliable: bool  # see `explain`
    verdict: str  # one sentence on `reliable`
    where: str  # one sentence for those who cannot see the picture

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.original, self.evidence, self.remainder, self.random

    @cached_property
    def gain(self) -> float:
        """The one factor with which all parts are played, so that none clips and all can be compared: at most 1."""
        return 1.0 / max(1.0, *(float(np.abs(part.clip.samples).max()) for part in self.parts))

    @property
    def scale(self) -> Scale:
        """The axes of every picture of the window."""
        config = self.mel_config
        hop = config.hop_length / config.sample_rate
        return Scale(config.seconds, hop, tuple(config.centres.tolist()), self.start)

    @property
    def numbers(self) -> str:
        """'evidence alone: dog 88 % · without it: dog 9 % · random mask of the same area: dog 61 %'."""
        named = (("evidence alone", self.evidence), ("without it", self.remainder))
        named += (("random mask of the same area", self.random),)
        return " · ".join(f"{name}: {spoken(self.label)} {percent(part.probability)}" for name, part in named)

    def wav(self, part: Part) -> bytes:
        """The part with the shared gain as WAV at its own rate. 24 bits: with 16, rounding would keep a quiet sound's
        evidence and remainder from adding up."""
        file = io.BytesIO()
        soundfile.write(file, part.clip.samples * self.gain, part.clip.rate, format="WAV", subtype="PCM_24")
        return file.getvalue()

    def picture(self, layout: Layout = WIDE) -> Picture:
        """The mask over the mel spectrogram of the window, with `where` as its alternative text."""
        heard, floor = self.original.prediction.mel, self.mel_config.floor_db
        title = f"Evidence for {spoken(self.label)}"
        title += f" rather than {spoken(self.against)}" if self.against else ""
        return evidence(heard, self.mask, self.scale, title=title, where=self.where, floor=floor, layout=layout)

    def files(self) -> dict[str, bytes]:
        """Everything to keep, by file name: the three parts that add up, as sound, and the picture."""
        sounds = {f"{part.name}.wav": self.wav(part) for part in (self.original, self.evidence, self.remainder)}
        return sounds | {"map.png": self.picture().png("paper")}

    def to_dict(self, top: int = 3) -> dict[str, Any]:
        """Plain types for JSON, four significant digits."""
        return {
            "class": self.label,
            "against": self.against,
            "method": self.method,
            "tap": self.tap,
            "window": self.window,
            "start": _short(self.start),
            "seconds": _short(self.original.clip.seconds),
            "area": _short(self.area),
            "parts": {part.name: _said(part, top) for part in self.parts},
            "random_remainder": _short(self.random_remainder),
            "reliable": self.reliable,
            "verdict": self.verdict,
            "where": self.where,
        }


def check(
    classifier: Classifier,
    label: str | None = None,
    against: str | None = None,
    method: str = DEFAULT_METHOD,
    tap: str | None = None,
) -> None:
    """Raises ValueError for what `explain` cannot be asked of this network, naming what it can."""
    for name in (label, against):
        if name is not None and name not in classifier.labels:
            raise ValueError(f"class {name!r} is unknown; known are {', '.join(classifier.labels)}")
    if label is not None and label == against:
        raise ValueError(f"why {label} rather than {against} was asked; name two classes")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; known are {', '.join(METHODS)}")
    if tap is not None and method == "perturbation":
        raise ValueError(f"the method perturbation asks the whole network and no tap; leave out {tap!r}")
    if tap is not None and tap not in cam.taps(classifier):
        known = ", ".join(cam.taps(classifier))
        raise ValueError(f"no evidence is sought in {tap!r}; {classifier.config.name} has it in {known}")


def explain(
    classifier: Classifier,
    clip: Clip,
    *,
    label: str | None = None,
    against: str | None = None,
    method: str = DEFAULT_METHOD,
    tap: str | None = None,
    window: int | None = None,
    seed: int = 0,
) -> Explanation:
    """Why the network hears `label` in one window of the clip, or why it rather than `against`.

    Without a label it is the sound's first name other than `against`; without a window the one that is most like the
    label; without a tap the first of cam.taps; perturbation takes none. `seed` is that of the random masks and of the
    search.

    A mask's contrast is the probability of the label in what the mask keeps, less that in what it leaves: 1 if all that
    the network goes by is in the one and nothing in the other. The answer is reliable if the evidence's is MARGIN above
    0 and above the median of RANDOM random masks'. (To keep the label is not enough: half of a steady rain is rain. Nor
    is to take it away: a fault in the sound may.) Raises AudioError where there is nothing to hear, ValueError as
    `check` and for a window that there is not.
    """
    check(classifier, label, against, method, tap)
    if window is None and label is not None:
        shares = classifier.predict(clip).window_probabilities[:, classifier.labels.index(label)]
        window = int(shares.argmax()) if shares.any() else None
    waveform, window, start, found = window_of(classifier, clip, window, label)
    if found == against:
        found = classifier.predict(clip).labels[1].name
    label = found
    rate, config = clip.rate, classifier.mel
    samples = clip.samples[round(start * rate) :][: round(config.seconds * rate)].copy()  # the rest may be forgotten
    frames = config.frames_within(len(samples) / rate)
    if method == "perturbation":
        tap, values = "", sought_mask(classifier, waveform, label, against=against, seed=seed)
        mask = np.where(np.arange(config.frames) < frames, values, np.float32(0))
    else:
        tap = tap or cam.taps(classifier)[0]
        values = np.maximum(cam.cam(classifier, waveform, tap, label, against, method=method), 0)
        mask = mask_of(values, classifier.model.taps[tap].stride, config, frames)
    sounds = dict(zip(("evidence", "remainder"), split(samples, rate, mask, config), strict=True))
    sounds["original"] = samples
    for k, other in enumerate(random_masks(mask, frames, RANDOM, np.random.default_rng(seed))):
        sounds[f"random {k}"], sounds[f"rest {k}"] = split(samples, rate, other, config)
    heard = _hear(classifier, clip, sounds, label)
    original, kept, left = (heard[name] for name in ("original", "evidence", "remainder"))
    if original.prediction is None:
        raise AudioError("There is nothing to hear in this window; choose another.")
    pairs = [(heard[f"random {k}"], heard[f"rest {k}"]) for k in range(RANDOM)]
    chance, rest = sorted(pairs, key=lambda pair: _contrast(*pair))[RANDOM // 2]
    reliable, verdict = _verdict(label, kept, left, chance, rest)
    return Explanation(
        label=label,
        against=against,
        method=method,
        tap=tap,
        window=window,
        start=start,
        mel_config=config,
        map=values,
        mask=mask,
        area=float(mask[:, :frames].mean()),
        original=original,
        evidence=kept,
        remainder=left,
        random=replace(chance, name="random"),
        random_remainder=rest.probability,
        reliable=reliable,
        verdict=verdict,
        where=_where(mask[:, :frames], config, start, label, original, left),
    )


def mask_of(values: np.ndarray, stride: int, config: MelConfig, frames: int | None = None) -> np.ndarray:
    """A map (f, t) of a tap -> a soft mask (F, T) float32 in 0..1; 0 from `frames` on, where a short sound has ended.

    What speaks against the class counts as nothing. A cell stands where it looks, at bin and frame i * stride (strided
    convolutions with symmetric padding); between the cells it is bilinear. The STRONGEST share of all places counts in
    full, and the others as much as they are weaker; but what is weaker than FAINTEST of the most never counts in full.
    """
    frames = config.frames if frames is None else frames
    places = (np.arange(config.n_mels) / stride, np.arange(config.frames) / stride)
    mask = between(np.maximum(values, 0), *(np.minimum(p, n - 1) for p, n in zip(places, values.shape, strict=True)))
    mask[:, frames:] = 0
    full = max(float(np.quantile(mask[:, :frames], 1 - STRONGEST)), FAINTEST * float(mask.max()), 1e-30)
    return np.minimum(mask / full, 1).astype(np.float32)


def random_masks(mask: np.ndarray, frames: int, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """`count` masks (F, T) of the same area within the first `frames`, the sound, and just as smooth: the mask itself,
    moved around by any number of frames and bins (what leaves at one side comes in at the other) and mirrored in time,
    in frequency, in both or not at all. Noise would be as large but patchier, and easier to beat."""
    masks = []
    for _ in range(count):
        other = np.zeros_like(mask)
        inside = mask[:: rng.choice((-1, 1)), :frames][:, :: rng.choice((-1, 1))]
        other[:, :frames] = np.roll(inside, (rng.integers(len(mask)), rng.integers(frames)), axis=(0, 1))
        masks.append(other)
    return masks


def _hear(classifier: Classifier, clip: Clip, sounds: dict[str, np.ndarray], label: str) -> dict[str, Part]:
    """All sounds in one forward pass."""
    clips = [Clip(samples, clip.rate, f"{clip.name} ({name})".strip()) for name, samples in sounds.items()]
    parts = {}
    for name, part, said in zip(sounds, clips, classifier.predict_batch(clips), strict=True):
        parts[name] = Part(name, part, said.probability(label), said if said.labels else None)
    return parts


def _contrast(kept: Part, left: Part) -> float:
    return kept.probability - left.probability


def _verdict(label: str, kept: Part, left: Part, chance: Part, rest: Part) -> tuple[bool, str]:
    """Of the evidence and what it leaves, beside a random mask and what that leaves."""
    a, b, c, d = (percent(part.probability) for part in (kept, left, chance, rest))
    said = (
        f"the evidence alone is heard as {spoken(label)} with {a}, the rest with {b}; "
        f"a random mask of the same area has {c} and {d}."
    )
    if _contrast(kept, left) >= max(_contrast(chance, rest), 0.0) + MARGIN:
        return True, f"This is what the network goes by: {said}"
    return False, f"Careful, this explanation is not reliable for this clip: {said}"


def _where(mask: np.ndarray, config: MelConfig, start: float, label: str, original: Part, remainder: Part) -> str:
    """Where MOST of the power lies that the mask (F, frames within the sound) keeps, and what becomes of the label
    without it."""
    before, after = percent(original.probability), percent(remainder.probability)
    course = "falls" if remainder.probability < original.probability else "rises"
    course = f"stays at {before}" if before == after else f"{course} from {before} to {after}"
    then = f"without it {spoken(label)} {course}"
    if not mask.any():
        return f"no evidence anywhere; {then}"
    db = original.prediction.mel[:, : mask.shape[1]].astype(np.float64)
    power = mask**2 * 10 ** ((db - db.max()) / 10)
    hop = config.hop_length / config.sample_rate
    first, last = _shortest(power.sum(axis=0), MOST**0.5)
    low, high = _shortest(power[:, first : last + 1].sum(axis=1), MOST**0.5)
    begin, end = max((first - 0.5) * hop, 0.0), min((last + 0.5) * hop, original.clip.seconds)
    edges = np.concatenate([[config.f_min], (config.centres[1:] + config.centres[:-1]) / 2, [config.f_max]])
    digits = 1 if end - begin >= 0.15 else 2
    when = f"{start + begin:.{digits}f}-{start + end:.{digits}f} s"
    return f"most evidence {when}, {_band(edges[low], edges[high + 1])}; {then}"


def _shortest(mass: np.ndarray, share: float) -> tuple[int, int]:
    """First and last place of the shortest stretch that holds `share` of all mass (n,), the middle one of equals."""
    sums = np.concatenate([[0.0], np.cumsum(mass)])
    ends = np.searchsorted(sums, sums[:-1] + share * sums[-1] * (1 - 1e-9))
    lengths = np.where(ends < len(sums), ends - np.arange(len(mass)), len(sums))
    equals = np.flatnonzero(lengths == lengths.min())
    first = int(equals[len(equals) // 2])
    return first, int(ends[first]) - 1


def _band(low: float, high: float) -> str:
    """'1-3 kHz', '310-940 Hz', '310 Hz-1.2 kHz'."""
    a, b = hertz_in_words(low), hertz_in_words(high)
    number, _, unit = a.partition(" ")
    return f"{number}-{b}" if b.endswith(f" {unit}") else f"{a}-{b}"


def _said(part: Part, top: int) -> dict[str, Any]:
    labels = part.prediction.labels[:top] if part.prediction else ()
    return {
        "confidence": _short(part.probability),
        "predictions": [{"class": x.name, "confidence": _short(x.probability)} for x in labels],
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")
