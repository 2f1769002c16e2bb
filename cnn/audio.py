"""From anything a user may have to sound: a file, its bytes or an array -> `Clip`; resampling; windows of equal length.

    clip = load("rain.m4a")                                  # or load(data, name="rain.m4a"), load((44100, array))
    pieces, starts = windows(resample(clip.samples, clip.rate, 16_000), 16_000)

The decoders themselves are in cnn.decoding.
"""

import io
import math
import os
import re
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
import soundfile
import soxr

from cnn.decoding import (
    HEAD,
    MAX_CHANNELS,
    TRACK_SLACK,
    AudioError,
    NoSamples,
    Track,
    check_rate,
    not_sound,
    openers,
    title,
)

__all__ = ["AudioError", "Clip", "duration", "load", "resample", "windows"]

MAX_BYTES = 200_000_000  # larger files are refused before anything is read
MAX_SECONDS = 60.0  # what is used of a longer sound
SILENCE_DBFS = -60.0  # a clip without a sample above this is silent
MAX_SAMPLE = 2.0**32  # float files hold integers up to 2**31; beyond that is damage (squared, it leaves float32)
CANCELLED = 1e-2  # of the power that unrelated channels leave in their mix; lossy codings keep some of -30 dB
MIN_OVERHANG = 0.05  # seconds; what goes on for less after the last window is not worth another


@dataclass(frozen=True, eq=False)
class Clip:
    """A sound in hand. `samples` (N,) float32, mono, finite, read-only, N >= 1, at the source's own `rate` in Hz.

    Full scale is 1; samples beyond it (float files, decoder overshoot) and a constant offset are kept as they are.
    """

    samples: np.ndarray
    rate: int
    name: str = ""  # file name without folders, for people
    format: str = ""  # 'WAV, 16-bit PCM', 'MP3', 'AAC in MP4', 'array, int16'
    lossy: bool = False  # the coding loses something: mp3, aac, Vorbis, Opus, WMA, GSM, AMR, ADPCM, mu-law, A-law
    channels: int = 1  # of the source, before the mix-down
    notes: tuple[str, ...] = ()  # whole sentences for the reader: cut, broken off, NaN, channels that cancel

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    @property
    def peak_dbfs(self) -> float:
        """Level of the loudest sample in dB of full scale; -inf for digital silence."""
        peak = float(np.abs(self.samples).max())
        return 20 * math.log10(peak) if peak > 0 else -math.inf

    @property
    def is_silent(self) -> bool:
        return self.peak_dbfs <= SILENCE_DBFS


def load(
    source: str | os.PathLike | bytes | tuple[int, np.ndarray],
    *,
    name: str | None = None,
    max_seconds: float = MAX_SECONDS,
) -> Clip:
    """Decode a path, the bytes of a file, or (rate in Hz, array (N,) or (N, C)); all three agree to the sample.

    Channels are averaged, unless they cancel each other: then the loudest is used. Integer arrays are scaled by their
    own type (unsigned: offset binary), floats taken as they are. No more than `max_seconds` is decoded, however much a
    header promises. `name` is what people call the sound. Raises AudioError; TypeError for any other kind of source.
    """
    if isinstance(source, tuple):
        return _from_array(source, _file_name(name or ""), max_seconds)
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, size = _file_name(name or ""), memoryview(source).nbytes
        _check_size(size, name)
        with io.BytesIO(source) as file:
            return _from_file(file, size, name, max_seconds)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"load() takes a path, the bytes of a file or (rate, array), not {type(source).__name__}; "
            "a Clip goes to Classifier.predict()."
        )
    path = os.fsdecode(source)
    name = _file_name(path if name is None else name)
    if "\0" in path:
        raise AudioError(f"{title(name)} is not a possible file name; check it.")
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise AudioError(f"{title(name)} is a folder; choose a sound file in it.")
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
            raise AudioError(f"{title(name)} is not a regular file; save the sound to a file first.")
        _check_size(status.st_size, name)
        # Opened by descriptor, the file object has a number for a name: soundfile cannot believe its extension.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), "rb") as file:
            return _from_file(file, status.st_size, name, max_seconds)
    except OSError as e:
        reason = (e.strerror or "input/output error").lower()
        raise AudioError(f"{title(name)} cannot be read ({reason}); check its name, folder and permissions.") from e


def resample(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    """(N,) at `rate` Hz -> (max(1, round(N * to / rate)),) float32 at `to` Hz; soxr's high quality, no delay."""
    samples = np.asarray(samples, np.float32)
    if rate == to:
        return samples
    length = max(1, round(len(samples) * to / rate))
    out = soxr.resample(samples, rate, to, quality="HQ")[:length]
    return np.pad(out, (0, length - len(out)))


def windows(samples: np.ndarray, rate: int, seconds: float = 5.0, hop: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Windows of equal length: (W, round(seconds * rate)) float32 and their starts (W,) in seconds.

    A shorter sound stands at the start of one window with digital silence after it. A longer one is cut every `hop`
    seconds as long as a whole window fits; if more than MIN_OVERHANG of it is left after the last, one that ends with
    the sound is added. (Five-second clips come as 5.001 s from some encoders: nobody wants them heard twice.)
    """
    length, step = round(seconds * rate), max(1, round(hop * rate))
    if len(samples) <= length:
        return np.pad(np.asarray(samples, np.float32), (0, length - len(samples)))[None], np.zeros(1)
    starts = np.arange(0, len(samples) - length + 1, step)
    if len(samples) - length - starts[-1] > MIN_OVERHANG * rate:
        starts = np.append(starts, len(samples) - length)
    return np.stack([samples[s : s + length] for s in starts]).astype(np.float32, copy=False), starts / rate


# --- arrays ----------------------------------------------------------------------------------------------------------


def _from_array(source: tuple[int, np.ndarray], name: str, max_seconds: float) -> Clip:
    if len(source) != 2:
        raise AudioError(f"{title(name)} must be given as (rate, array), not as {len(source)} values.")
    rate, array = check_rate(source[0], name), np.asarray(source[1])
    if array.dtype.kind not in "iuf":
        raise AudioError(f"{title(name)} is an array of type {array.dtype}; give integers or real floats.")
    if array.ndim not in (1, 2):
        raise AudioError(f"{title(name)} is an array of shape {array.shape}; give (samples,) or (samples, channels).")
    if array.size == 0:
        raise AudioError(f"{title(name)} has no samples; record it again or give another array.")
    block = array[:, None] if array.ndim == 1 else array
    if block.shape[1] > MAX_CHANNELS:
        raise AudioError(
            f"{title(name)} is an array of shape {array.shape}, which means {block.shape[1]} channels; "
            "give (samples, channels), so transpose it if it is (channels, samples)."
        )
    coding, declared = f"array, {array.dtype.name}", len(array) / rate

    def opened() -> AbstractContextManager[Track]:
        return nullcontext(Track(rate, block.shape[1], coding, False, declared, True, iter([block])))

    return _clip(opened, name, max_seconds)


def _to_float32(array: np.ndarray) -> np.ndarray:
    """Integers scaled by their own type to [-1, 1), unsigned ones read as offset binary; floats as they are."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and counted as such
            return array.astype(np.float32, copy=False)
    half = 2.0 ** (8 * array.dtype.itemsize - 1)
    if array.dtype.kind == "u":
        return ((array.astype(np.float64) - half) / half).astype(np.float32)
    return array.astype(np.float32) / np.float32(half)


def _clean(block: np.ndarray) -> tuple[np.ndarray, int]:
    """(n, C) of any number type -> (n, C) float32 of sensible numbers, and how many were none (now 0)."""
    block = _to_float32(block)
    sensible = np.abs(block) <= MAX_SAMPLE  # false for NaN
    bad = block.size - int(np.count_nonzero(sensible))
    return (np.where(sensible, block, np.float32(0)) if bad else block), bad


# --- files -----------------------------------------------------------------------------------------------------------


def _from_file(file: BinaryIO, size: int, name: str, max_seconds: float) -> Clip:
    """Try the decoders in turn. Zero samples from one is not the last word: a recorder that crashed leaves a WAV header
    of length 0, which FFmpeg reads to its end."""
    if size == 0:
        raise AudioError(f"{title(name)} is empty; record or export it again.")
    head = file.read(HEAD)
    if what := not_sound(head):
        raise AudioError(f"{title(name)} is {what}, not a sound; choose a sound file such as wav, flac, mp3 or m4a.")
    causes: list[Exception] = []
    for decoder in openers(head):

        def opened(decoder: Callable = decoder) -> AbstractContextManager[Track]:
            file.seek(0)
            return decoder(file, head, size, name, max_seconds)

        try:
            return _clip(opened, name, max_seconds)
        except (soundfile.SoundFileError, av.FFmpegError, NoSamples) as e:
            causes.append(e)
    if any(isinstance(e, NoSamples) for e in causes):
        raise AudioError(f"{title(name)} has no samples; record or export it again.") from causes[-1]
    raise AudioError(
        f"{title(name)} cannot be decoded (damaged, protected or not a sound); "
        "save it again as wav, flac, mp3, ogg or m4a."
    ) from causes[-1]


def _clip(opened: Callable[[], AbstractContextManager[Track]], name: str, max_seconds: float) -> Clip:
    """Read a track up to the cap, mix it down, and say what a reader should know about it."""
    with opened() as track:
        samples, more, bad, instead = _read(track, max_seconds)
    if instead is not None:  # decoded once more: keeping 64 channels in case they cancel would take gigabytes
        with opened() as again:
            samples = _read(again, max_seconds, instead)[0]
    samples.flags.writeable = False
    seconds, declared, notes = len(samples) / track.rate, track.declared, list(track.notes)
    if more:
        whole = f" of {duration(declared)}" if declared and declared > seconds else ""
        notes.append(f"Only the first {duration(seconds)}{whole} are used.")
    elif track.own and declared and declared - seconds > TRACK_SLACK:
        notes.append(f"The file breaks off early: {duration(seconds)} of {duration(declared)} are there.")
    elif track.damaged:
        notes.append("Parts of the file are damaged and were left out.")
    if bad:
        were, counts = ("sample was", "counts") if bad == 1 else ("samples were", "count")
        notes.append(f"{bad:,} {were} NaN, infinite or beyond any scale and {counts} as zero.")
    if instead is not None:
        notes.append("The channels cancel each other; only the loudest one is used.")
    return Clip(samples, track.rate, name, track.format, track.lossy, track.channels, tuple(notes))


def _read(track: Track, max_seconds: float, channel: int | None = None) -> tuple[np.ndarray, bool, int, int | None]:
    """The mix (N,) of a track's channels, or one `channel`, up to the cap; whether there is more; how many values were
    no sensible numbers; the loudest channel if the mix is what next to nothing is left in."""
    cap = round(max_seconds * track.rate)
    parts, count, bad = [], 0, 0
    power, left = np.zeros(track.channels), 0.0  # of the channels, of their mix
    for block in track.blocks:
        values, wrong = _clean(block[: cap - count])
        mono = values.shape[1] == 1
        parts.append(values[:, channel or 0] if mono or channel is not None else _mix(values))
        if values.shape[1] != track.channels:  # some codings change it on the way
            left = math.inf
        elif not mono:
            power += np.einsum("nc,nc->c", values, values, dtype=np.float64)
            left += float(np.einsum("n,n->", parts[-1], parts[-1], dtype=np.float64))
        count += len(block)
        bad += wrong
        if count > cap:
            break
    if count == 0:
        raise NoSamples("no samples")
    cancelled = track.channels > 1 and left < CANCELLED * power.sum() / track.channels**2
    return np.concatenate(parts), count > cap, bad, int(power.argmax()) if cancelled else None


def _mix(values: np.ndarray) -> np.ndarray:
    """(n, C) -> (n,) float32, the channels' mean."""
    return values.mean(axis=1, dtype=np.float64).astype(np.float32)


def _check_size(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise AudioError(
            f"{title(name)} is larger than the {MAX_BYTES / 1e6:,.0f} MB that are read; "
            "cut it, or save it as mp3, ogg or m4a."
        )


# --- words -----------------------------------------------------------------------------------------------------------


def _file_name(path: str) -> str:
    """The last part of a path (of either system), fit to be shown: nothing that moves the cursor or turns the text."""
    last = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    return "".join(c for c in last if c.isprintable()).strip()


def duration(seconds: float) -> str:
    """'0.05 s', '12.3 s', '12 min', '2 h 5 min'."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
