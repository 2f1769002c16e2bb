"""What if the sound were another: changes that one can make to a clip, hear, and take back.

    apply(clip, (Erase(1.2, 1.6, 1000, 3000), Noise(20.0)))

Every change keeps the rate and the length, and so the windows in which a network hears the clip.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from cnn.audio import MAX_SAMPLE, Clip
from cnn.spectrum import erase

MOST = 20  # changes at a time
NOISE, GAIN = (-20.0, 80.0), (-60.0, 40.0)  # dB
TOO_LOUD = (
    "It is now louder than full scale, where a recorder would clip; the network hears it unclipped, and it is turned "
    "down for playing."
)


@dataclass(frozen=True)
class Erase:
    """Silence in a rectangle of the spectrogram: `start` to `end` in seconds, `low` to `high` in Hz."""

    start: float
    end: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"erased {self.start:.2f} to {self.end:.2f} s, {_hertz(self.low)} to {_hertz(self.high)}"

    def check(self, clip: Clip) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"From {self.start:g} to {self.end:g} s is no stretch: let it end after it begins.")
        if self.start >= clip.seconds:
            raise ValueError(f"The rectangle begins after the end of the sound, which lasts {clip.seconds:.2f} s.")
        _check_band(self.low, self.high, clip.rate)

    def on(self, samples: np.ndarray, rate: int) -> np.ndarray:
        return erase(samples, rate, (self.start, self.end), (self.low, self.high))


@dataclass(frozen=True)
class Noise:
    """White noise, `below` dB weaker than the sound is on average (both as root mean square over the clip)."""

    below: float
    seed: int = 0

    def __str__(self) -> str:
        weaker = f"{self.below:g} dB weaker than" if self.below > 0 else f"{-self.below:g} dB stronger than"
        return f"white noise added, {weaker if self.below else 'as strong as'} the sound"

    def check(self, clip: Clip) -> None:
        low, high = NOISE
        if not low <= self.below <= high:
            raise ValueError(f"Noise can be {low:g} to {high:g} dB weaker than the sound, not {self.below:g} dB.")

    def on(self, samples: np.ndarray, rate: int) -> np.ndarray:
        level = math.sqrt(np.square(samples, dtype=np.float64).mean()) * 10 ** (-self.below / 20)
        noise = np.random.default_rng(self.seed).standard_normal(len(samples), dtype=np.float32)
        return samples + np.float32(level) * noise


@dataclass(frozen=True)
class Band:
    """Only what lies from `low` to `high` Hz is kept; None: no limit on that side. A low-, a high- or a band-pass."""

    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None:
            return f"low-pass: kept what lies below {_hertz(self.high)}"
        if self.high is None:
            return f"high-pass: kept what lies above {_hertz(self.low)}"
        return f"band-pass: kept {_hertz(self.low)} to {_hertz(self.high)}"

    def check(self, clip: Clip) -> None:
        if self.low is None and self.high is None:
            raise ValueError("A filter needs at least one edge: a frequency below or above which to keep the sound.")
        for edge in (self.low, self.high):
            if edge is not None and not 0 < edge < clip.rate / 2:
                raise ValueError(
                    f"An edge at {_hertz(edge)} changes nothing: this sound holds frequencies above 0 and below "
                    f"{_hertz(clip.rate / 2)}."
                )
        if self.low is not None and self.high is not None:
            _check_band(self.low, self.high, clip.rate)

    def on(self, samples: np.ndarray, rate: int) -> np.ndarray:
        always = (0.0, len(samples) / rate)
        if self.low is not None:
            samples = erase(samples, rate, always, (0.0, self.low))
        return samples if self.high is None else erase(samples, rate, always, (self.high, rate / 2))


@dataclass(frozen=True)
class Gain:
    """Louder by `db`, softer where that is below 0."""

    db: float

    def __str__(self) -> str:
        return f"{abs(self.db):g} dB {'louder' if self.db > 0 else 'softer'}"

    def check(self, clip: Clip) -> None:
        low, high = GAIN
        if not low <= self.db <= high or not self.db:
            raise ValueError(f"A gain is from {low:g} to {high:g} dB and not 0, but {self.db:g} dB was asked for.")

    def on(self, samples: np.ndarray, rate: int) -> np.ndarray:
        return samples * np.float32(10 ** (self.db / 20))


@dataclass(frozen=True)
class Shift:
    """Later by `seconds`, earlier where that is below 0; what leaves at one end comes in at the other."""

    seconds: float

    def __str__(self) -> str:
        return f"moved {abs(self.seconds):g} s {'later' if self.seconds > 0 else 'earlier'}"

    def check(self, clip: Clip) -> None:
        if not 0 < abs(self.seconds) < clip.seconds:
            raise ValueError(
                f"A sound of {clip.seconds:.2f} s can be moved by less than that, later or earlier, but "
                f"{self.seconds:g} s was asked for."
            )

    def on(self, samples: np.ndarray, rate: int) -> np.ndarray:
        return np.roll(samples, round(self.seconds * rate))


Edit = Erase | Noise | Band | Gain | Shift


def apply(clip: Clip, edits: Sequence[Edit]) -> Clip:
    """The clip after these changes, one after the other; the very clip where there are none.

    Raises ValueError with one sentence for people where a change makes no sense for the clip.
    """
    if len(edits) > MOST:
        raise ValueError(f"{MOST} changes at a time are the most; undo some first.")
    changed = clip
    for edit in edits:
        if not all(math.isfinite(x) for x in astuple(edit) if x is not None):
            raise ValueError("A change needs plain numbers.")
        edit.check(changed)
        with np.errstate(over="ignore"):  # what is infinite is refused
            samples = edit.on(changed.samples, changed.rate)
        if not np.abs(samples).max() <= MAX_SAMPLE:  # false for NaN
            raise ValueError("That would be louder than any sound can be written down; choose something softer.")
        samples.flags.writeable = False
        changed = replace(changed, samples=samples)
    if np.abs(changed.samples).max() > max(1.0, np.abs(clip.samples).max()):
        changed = replace(changed, notes=(*clip.notes, TOO_LOUD))
    return changed


@dataclass(frozen=True)
class History:
    """What was done, and what was undone and can be done again, the next first."""

    done: tuple[Edit, ...] = ()
    undone: tuple[Edit, ...] = ()

    def then(self, edit: Edit) -> "History":
        return History((*self.done, edit))

    def undo(self) -> "History":
        return History(self.done[:-1], (*self.done[-1:], *self.undone))

    def redo(self) -> "History":
        return History((*self.done, *self.undone[:1]), self.undone[1:])

    def reset(self) -> "History":
        """All undone."""
        return History((), (*self.done, *self.undone))


def _check_band(low: float, high: float, rate: int) -> None:
    if not 0 <= low < high:
        raise ValueError(
            f"The low edge, {_hertz(low)}, does not lie below the high edge, {_hertz(high)}: exchange the two."
        )
    if low >= rate / 2:
        raise ValueError(f"This sound holds nothing above {_hertz(rate / 2)}, half of its sample rate.")


def _hertz(value: float) -> str:
    return f"{value:,.0f} Hz"
