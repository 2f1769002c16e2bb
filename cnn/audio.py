"""From anything a user may have to sound: a file, its bytes or an array -> `Clip`; resampling; windows of equal length.

    clip = load("rain.m4a")                                  # or load(data, name="rain.m4a"), load((44100, array))
    pieces, starts = windows(resample(clip.samples, clip.rate, 16_000), 16_000)

libsndfile (soundfile) decodes what it knows, FFmpeg's libraries (PyAV) the rest; both come inside their wheels, so no
system package is needed. Files are judged by their content: both decoders are handed a stream without a name.
"""

import codecs
import contextlib
import io
import itertools
import math
import operator
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import av
import numpy as np
import soundfile
import soxr

MAX_BYTES = 200_000_000  # larger files are refused before anything is read
MAX_SECONDS = 60.0       # what is used of a longer sound
SILENCE_DBFS = -60.0     # a clip without a sample above this is silent
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MAX_CHANNELS = 64

_HEAD = 4096             # bytes looked at before a decoder is chosen
_BLOCK = 2**24           # values (frames x channels) decoded at once: bounds the memory whatever a header declares
_TRACK_SLACK = 0.1       # seconds by which a whole file may be shorter than declared (encoder padding)

# FFmpeg may open these containers and nothing else: no playlists, no scripts, no pictures, no headerless guesses.
_DEMUXERS = ("aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,eac3,flac,flv,matroska,mov,mp3,mpegts,ogg,oma,rm,tak,tta,voc,w64,"
             "wav,wv,xwma")

_NOT_SOUND = {
    b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"GIF8": "a picture", b"%PDF": "a PDF document",
    b"PK\3\4": "a zip archive or an office document", b"\x1f\x8b": "an archive", b"7z\xbc\xaf": "an archive",
    b"Rar!": "an archive", b"\xfd7zXZ": "an archive", b"\x7fELF": "a program",
}  # fmt: skip
_PLAYLISTS = ("#extm3u", "ffconcat", "[playlist]", "<asx", "<?xml", "<smil", "<mpd", "v=0")
_WEB_PAGES = ("<!doctype html", "<html")

_SUBTYPES = {
    "FLOAT": "32-bit float", "DOUBLE": "64-bit float", "ULAW": "mu-law", "ALAW": "A-law", "IMA_ADPCM": "IMA ADPCM",
    "MS_ADPCM": "Microsoft ADPCM", "GSM610": "GSM 6.10",
}  # fmt: skip
_LOSSLESS_SUBTYPES = ("PCM_", "FLOAT", "DOUBLE", "ALAC_", "DWVW_", "DPCM_")
_CODECS = {
    "aac": "AAC", "ac3": "AC-3", "alac": "Apple Lossless", "eac3": "E-AC-3", "flac": "FLAC", "mp2float": "MP2",
    "mp3float": "MP3", "opus": "Opus", "speex": "Speex", "vorbis": "Vorbis", "wavpack": "WavPack", "wmav1": "WMA",
    "wmav2": "WMA",
}  # fmt: skip
_BOXES = {"mov": "MP4", "ogg": "Ogg", "asf": "ASF", "wav": "WAV", "avi": "AVI", "flv": "FLV", "mpegts": "MPEG-TS",
          "webm": "WebM", "matroska": "Matroska"}  # fmt: skip


class AudioError(ValueError):
    """A sound that cannot be had. The message is one sentence for the user: it names the file and the way out."""


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
    source_seconds: float | None = None  # length of the source; None: it was cut and its container does not tell
    notes: tuple[str, ...] = ()  # whole sentences for the reader: cut, broken off, NaN

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

    Channels are averaged. Integer arrays are scaled by their own type (unsigned: offset binary), floats taken as they
    are. No more than `max_seconds` is decoded, however much a header promises. `name` is what people call the sound.
    Raises AudioError.
    """
    if isinstance(source, tuple):
        return _from_array(source, _file_name(name or ""), max_seconds)
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, size = _file_name(name or ""), memoryview(source).nbytes
        _check_size(size, name)
        with io.BytesIO(source) as file:
            return _from_file(file, size, name, max_seconds)
    path = os.fsdecode(source)
    name = _file_name(path if name is None else name)
    if "\0" in path:
        raise AudioError(f"{_title(name)} is not a possible file name; check it.")
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise AudioError(f"{_title(name)} is a folder; choose a sound file in it.")
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
            raise AudioError(f"{_title(name)} is not a regular file; save the sound to a file first.")
        _check_size(status.st_size, name)
        # Opened by descriptor, the file object has a number for a name: soundfile cannot believe its extension.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), "rb") as file:
            return _from_file(file, status.st_size, name, max_seconds)
    except OSError as e:
        reason = (e.strerror or "input/output error").lower()
        raise AudioError(f"{_title(name)} cannot be read ({reason}); check its name, folder and permissions.") from e


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
    seconds as long as a whole window fits; if the last of these does not end with the sound, one that does is added.
    """
    length, step = round(seconds * rate), max(1, round(hop * rate))
    if len(samples) <= length:
        return np.pad(np.asarray(samples, np.float32), (0, length - len(samples)))[None], np.zeros(1)
    starts = np.arange(0, len(samples) - length + 1, step)
    if starts[-1] + length < len(samples):
        starts = np.append(starts, len(samples) - length)
    return np.stack([samples[s : s + length] for s in starts]).astype(np.float32, copy=False), starts / rate


# --- arrays ----------------------------------------------------------------------------------------------------------


def _from_array(source: tuple[int, np.ndarray], name: str, max_seconds: float) -> Clip:
    if len(source) != 2:
        raise AudioError(f"{_title(name)} must be given as (rate, array), not as {len(source)} values.")
    rate, array = _rate(source[0], name), np.asarray(source[1])
    if array.dtype.kind not in "iuf":
        raise AudioError(f"{_title(name)} is an array of type {array.dtype}; give integers or real floats.")
    if array.ndim not in (1, 2):
        raise AudioError(f"{_title(name)} is an array of shape {array.shape}; give (samples,) or (samples, channels).")
    if array.size == 0:
        raise AudioError(f"{_title(name)} has no samples; record it again or give another array.")
    block = array[:, None] if array.ndim == 1 else array
    if block.shape[1] > MAX_CHANNELS:
        raise AudioError(
            f"{_title(name)} is an array of shape {array.shape}, which means {block.shape[1]} channels; "
            "give (samples, channels), so transpose it if it is (channels, samples)."
        )
    coding, declared = f"array, {array.dtype.name}", len(array) / rate
    return _clip(_Track(rate, block.shape[1], coding, False, declared, True, iter([block])), name, max_seconds)


def _to_float32(array: np.ndarray) -> np.ndarray:
    """Integers scaled by their own type to [-1, 1), unsigned ones read as offset binary; floats as they are."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and counted as such
            return array.astype(np.float32, copy=False)
    half = 2.0 ** (8 * array.dtype.itemsize - 1)
    if array.dtype.kind == "u":
        return ((array.astype(np.float64) - half) / half).astype(np.float32)
    return array.astype(np.float32) / np.float32(half)


def _mono(block: np.ndarray) -> tuple[np.ndarray, int]:
    """(n, C) of any number type -> (n,) float32 channel mean, and how many values were NaN or infinite (taken as 0)."""
    block = _to_float32(block)
    finite = np.isfinite(block)
    bad = block.size - int(np.count_nonzero(finite))
    if bad:
        block = np.where(finite, block, np.float32(0))
    return (block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float64).astype(np.float32)), bad


# --- files -----------------------------------------------------------------------------------------------------------


@dataclass
class _Track:
    """A sound track opened by one of the decoders. `blocks` yields (n, C) arrays as they are decoded."""

    rate: int
    channels: int
    format: str
    lossy: bool
    declared: float | None  # seconds according to the container; None: it does not tell
    own: bool  # `declared` is of this very track: ending earlier means that the file breaks off
    blocks: Iterator[np.ndarray]
    damaged: int = 0  # packets that could not be decoded
    notes: list[str] = field(default_factory=list)


def _from_file(file: BinaryIO, size: int, name: str, max_seconds: float) -> Clip:
    """Try the decoders in turn. Zero samples from one is not the last word: a recorder that crashed leaves a WAV header
    of length 0, which FFmpeg reads to its end."""
    if size == 0:
        raise AudioError(f"{_title(name)} is empty; record or export it again.")
    head = file.read(_HEAD)
    if what := _not_sound(head):
        raise AudioError(f"{_title(name)} is {what}, not a sound; choose a sound file such as wav, flac, mp3 or m4a.")
    # libsndfile's MPEG decoder (mpg123) writes its warnings to the terminal; FFmpeg's does not.
    decoders = (_open_av,) if _is_mpeg(head) else (_open_soundfile, _open_av)
    causes: list[Exception] = []
    for decoder in decoders:
        file.seek(0)
        try:
            with decoder(file, head, size, name, max_seconds) as track:
                return _clip(track, name, max_seconds)
        except (soundfile.SoundFileError, av.FFmpegError, _NoSamples) as e:
            causes.append(e)
    if any(isinstance(e, _NoSamples) for e in causes):
        raise AudioError(f"{_title(name)} has no samples; record or export it again.") from causes[-1]
    raise AudioError(
        f"{_title(name)} cannot be decoded (damaged, protected or not a sound); "
        "save it again as wav, flac, mp3, ogg or m4a."
    ) from causes[-1]


class _NoSamples(Exception):
    """A decoder opened the file and found nothing in it."""


def _clip(track: _Track, name: str, max_seconds: float) -> Clip:
    """Read a track up to the cap, mix it down, and say what a reader should know about it."""
    cap = round(max_seconds * track.rate)
    parts, count, bad = [], 0, 0
    for block in track.blocks:
        samples, wrong = _mono(block[: cap - count])
        parts.append(samples)
        count += len(block)
        bad += wrong
        if count > cap:
            break
    if count == 0:
        raise _NoSamples("no samples")
    samples = np.concatenate(parts)
    samples.flags.writeable = False
    seconds, declared, notes = len(samples) / track.rate, track.declared, list(track.notes)
    if cut := count > cap:
        declared = declared if declared and declared > seconds else None
        whole = f" of {_duration(declared)}" if declared else ""
        notes.append(f"Only the first {_duration(seconds)}{whole} are used.")
    elif track.own and declared and declared - seconds > _TRACK_SLACK:
        notes.append(f"The file breaks off early: {_duration(seconds)} of {_duration(declared)} are there.")
    elif track.damaged:
        notes.append("Parts of the file are damaged and were left out.")
    if bad:
        were, counts = ("sample was", "counts") if bad == 1 else ("samples were", "count")
        notes.append(f"{bad:,} {were} NaN or infinite and {counts} as zero.")
    length = declared if cut else seconds
    return Clip(samples, track.rate, name, track.format, track.lossy, track.channels, length, tuple(notes))


@contextlib.contextmanager
def _open_soundfile(file: BinaryIO, head: bytes, size: int, name: str, max_seconds: float) -> Iterator[_Track]:
    with soundfile.SoundFile(file) as sound:
        rate, channels = _rate(sound.samplerate, name), _channels(sound.channels, name)

        def blocks() -> Iterator[np.ndarray]:
            # Few large reads: soundfile seeks after each, which Vorbis and Opus do not do to the sample.
            left = round(max_seconds * rate) + 1
            while left and len(block := sound.read(min(left, _BLOCK // channels), dtype="float32", always_2d=True)):
                left -= len(block)
                yield block

        declared = sound.frames / rate
        # libsndfile silently corrects a length that the file does not have; its log keeps what the header said.
        said = re.search(r"(?:data|Data Size|SSND)\s*: (\d+) \(should be (\d+)\)", sound.extra_info)
        if said and int(said[1]) < 0x7FFF0000 and int(said[2]) > 0:  # larger: a stream's 'unknown'
            declared *= int(said[1]) / int(said[2])
        container = {"WAVEX": "WAV", "RF64": "WAV", "W64": "Wave64", "OGG": "Ogg"}.get(sound.format, sound.format)
        subtype = sound.subtype
        bits = re.fullmatch(r"PCM_[SU]?(\d+)", subtype)
        coding = f"{bits[1]}-bit PCM" if bits else _SUBTYPES.get(subtype) or sound.subtype_info
        yield _Track(
            rate, channels, f"Ogg {coding}" if container == "Ogg" else f"{container}, {coding}",
            not subtype.startswith(_LOSSLESS_SUBTYPES), _believable(declared, size), True, blocks(),
        )  # fmt: skip


@contextlib.contextmanager
def _open_av(file: BinaryIO, head: bytes, size: int, name: str, max_seconds: float) -> Iterator[_Track]:
    tells_length = _tells_length(file)
    file.seek(0)
    # No protocol is allowed, so nothing but this stream can be opened, whatever a playlist or a reference asks for.
    options = {"protocol_whitelist": "none", "format_whitelist": _DEMUXERS}
    with av.open(file, options=options, metadata_errors="replace") as container:
        stream = container.streams.best("audio")
        if stream is None or stream.codec_context is None:  # no track; a coding that FFmpeg does not know
            raise AudioError(f"{_title(name)} has no sound track that can be decoded; choose a file with sound.")
        kind = container.format.name.split(",")[0]
        if kind == "matroska" and b"webm" in head[:64]:
            kind = "webm"
        pcm = re.fullmatch(r"pcm_([suf])(\d+).*", stream.codec.name)
        if pcm:
            coding = f"{pcm[2]}-bit {'float' if pcm[1] == 'f' else 'PCM'}"
        else:
            coding = _CODECS.get(stream.codec.name, stream.codec.long_name)
        track = _Track(
            rate=0, channels=0, format=f"{coding} in {_BOXES[kind]}" if kind in _BOXES else coding,
            lossy=stream.codec.lossy and not stream.codec.lossless, declared=None, own=False, blocks=iter(()),
        )  # fmt: skip
        # Raw AAC and AC-3, and mp3 without a table of its length, do not tell: there FFmpeg guesses from the bit rate.
        if kind not in ("aac", "ac3", "eac3") and (kind != "mp3" or tells_length):
            if stream.duration:
                track.declared, track.own = float(stream.duration * stream.time_base), True
            elif container.duration:
                track.declared, track.own = container.duration / av.time_base, len(container.streams) == 1
            track.declared = _believable(track.declared, size)
        # The frames know better than the header: AAC with SBR has twice the rate that its container says.
        frames = _frames(container, stream, track)
        if (first := next(frames, None)) is None:
            raise _NoSamples("no samples")
        track.rate, track.channels = _rate(first.sample_rate, name), _channels(first.layout.nb_channels, name)
        track.blocks = _blocks(itertools.chain([first], frames), track)
        yield track


def _frames(container: av.container.InputContainer, stream: av.AudioStream, track: _Track) -> Iterator[av.AudioFrame]:
    """Decoded frames. Undecodable packets are counted and left out; junk that only looks like sound ends soon."""
    packets, good, error = container.demux(stream), 0, None
    while True:
        try:
            frames = next(packets).decode()
        except StopIteration:
            break
        except av.FFmpegError as e:
            error = e
            track.damaged += 1
            if track.damaged > 20 + good:
                break
            continue
        good += len(frames)
        yield from frames
    if error and (not good or track.damaged > 20 + good):
        raise error


def _blocks(frames: Iterator[av.AudioFrame], track: _Track) -> Iterator[np.ndarray]:
    """Frames as (n, C) arrays: planar ones come as (C, n), packed ones as (1, n * C)."""
    for frame in frames:
        if frame.sample_rate != track.rate:
            track.notes.append(f"The sample rate changes to {frame.sample_rate:,} Hz; only the part before is used.")
            return
        values = frame.to_ndarray()
        yield values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)


# --- judging a file --------------------------------------------------------------------------------------------------


def _not_sound(head: bytes) -> str | None:
    """What a file obviously is instead of a sound, in words; None if it may be one."""
    for magic, what in _NOT_SOUND.items():
        if head.startswith(magic):
            return what
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a picture"
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)  # incremental: the head may end inside a character
    except UnicodeDecodeError:
        return None
    if not all(c.isprintable() or c in "\t\n\r\f\v" or ord(c) > 127 for c in text):
        return None
    start = text.lstrip().lower()
    if start.startswith(_WEB_PAGES):
        return "a web page"
    return "a playlist" if start.startswith(_PLAYLISTS) else "text"


def _is_mpeg(head: bytes) -> bool:
    """MPEG audio (mp3, raw AAC), bare, tagged or in a WAV."""
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        return True
    at = head.find(b"fmt ") if head[8:12] == b"WAVE" else -1
    return at >= 0 and head[at + 8 : at + 10] in (b"\x50\0", b"\x55\0")


def _tells_length(file: BinaryIO) -> bool:
    """Whether an mp3's first frame carries a table of its length (Xing, Info or VBRI)."""
    head = file.read(10)
    if head[:3] == b"ID3" and len(head) == 10:  # the tag's size: four bytes of seven bits
        file.seek(head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
    frame = head + file.read(_HEAD)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def _believable(seconds: float | None, size: int) -> float | None:
    """A declared length, unless it is nonsense: no codec here needs less than a byte a second."""
    return seconds if seconds and 0 < seconds <= size else None


def _check_size(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise AudioError(
            f"{_title(name)} has {size / 1e6:,.0f} MB, more than the {MAX_BYTES / 1e6:,.0f} MB that are read; "
            "cut it, or save it as mp3, ogg or m4a."
        )


def _rate(rate: int, name: str) -> int:
    try:
        hertz = int(rate) if isinstance(rate, float) and rate.is_integer() else operator.index(rate)
    except TypeError as e:
        raise AudioError(f"{_title(name)} has the sample rate {rate!r}; give a whole number in Hz.") from e
    if not MIN_RATE <= hertz <= MAX_RATE:
        raise AudioError(
            f"{_title(name)} has a sample rate of {hertz:,} Hz; save it at {MIN_RATE:,} to {MAX_RATE:,} Hz."
        )
    return hertz


def _channels(channels: int, name: str) -> int:
    if channels > MAX_CHANNELS:
        raise AudioError(f"{_title(name)} has {channels:,} channels; save it with {MAX_CHANNELS} or fewer.")
    return channels


# --- words -----------------------------------------------------------------------------------------------------------


def _file_name(path: str) -> str:
    """The last part of a path (of either system), fit to be shown: nothing that moves the cursor or turns the text."""
    last = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    return "".join(c for c in last if c.isprintable()).strip()


def _title(name: str) -> str:
    """How a message begins."""
    if not name:
        return "The sound"
    return name if len(name) <= 60 else f"{name[:40]}…{name[-19:]}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
