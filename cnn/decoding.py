"""The decoders behind cnn.audio: a stream of bytes -> a sound track, block by block, or what is wrong with it.

libsndfile (soundfile) decodes what it knows, FFmpeg's libraries (PyAV) the rest; both come inside their wheels, so no
system package is needed. Files are judged by their content: both decoders are handed a stream without a name.
"""

import codecs
import contextlib
import itertools
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import av
import numpy as np
import soundfile

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MAX_CHANNELS = 64

HEAD = 4096  # bytes looked at before a decoder is chosen
_BLOCK = 2**24  # values (frames x channels) decoded at once: bounds the memory whatever a header declares
TRACK_SLACK = 0.1  # seconds by which a whole file may be shorter than declared (encoder padding)

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


@dataclass
class Track:
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


class NoSamples(Exception):
    """A decoder opened the file and found nothing in it."""


def openers(head: bytes) -> tuple[Callable, ...]:
    """The decoders to try on a file that begins with `head`, in their order."""
    if _is_mpeg(head):  # libsndfile's MPEG decoder (mpg123) writes its warnings to the terminal; FFmpeg's does not
        return (_open_av,)
    if b"OpusHead" in head[:64]:  # libsndfile leaves the encoder's 6.5 ms of run-in at the start
        return (_open_av, _open_soundfile)
    return (_open_soundfile, _open_av)


class _Seekable:
    """What libsndfile reads from. A damaged header sends it to places that no file has; an exception there ends in its
    C code, which prints a traceback into the terminal. As in C, such a seek fails by not moving."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.tell, self.readinto = file, file.tell, file.readinto

    def seek(self, offset: int, whence: int) -> None:
        with contextlib.suppress(ValueError, OverflowError, OSError):
            self._file.seek(offset, whence)


@contextlib.contextmanager
def _open_soundfile(file: BinaryIO, head: bytes, size: int, name: str, max_seconds: float) -> Iterator[Track]:
    with soundfile.SoundFile(_Seekable(file)) as sound:
        rate, channels = check_rate(sound.samplerate, name), _channels(sound.channels, name)

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
        yield Track(
            rate, channels, f"Ogg {coding}" if container == "Ogg" else f"{container}, {coding}",
            not subtype.startswith(_LOSSLESS_SUBTYPES), _believable(declared, size), True, blocks(),
        )  # fmt: skip


@contextlib.contextmanager
def _open_av(file: BinaryIO, head: bytes, size: int, name: str, max_seconds: float) -> Iterator[Track]:
    tells_length = _tells_length(file)
    file.seek(0)
    # No protocol is allowed, so nothing but this stream can be opened, whatever a playlist or a reference asks for.
    options = {"protocol_whitelist": "none", "format_whitelist": _DEMUXERS}
    with av.open(file, options=options, metadata_errors="replace") as container:
        stream = container.streams.best("audio")
        if stream is None or stream.codec_context is None:  # no track; a coding that FFmpeg does not know
            raise AudioError(f"{title(name)} has no sound track that can be decoded; choose a file with sound.")
        kind = container.format.name.split(",")[0]
        if kind == "matroska" and b"webm" in head[:64]:
            kind = "webm"
        pcm = re.fullmatch(r"pcm_([suf])(\d+).*", stream.codec.name)
        if pcm:
            coding = f"{pcm[2]}-bit {'float' if pcm[1] == 'f' else 'PCM'}"
        else:
            coding = _CODECS.get(stream.codec.name, stream.codec.long_name)
        track = Track(
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
            raise NoSamples("no samples")
        track.rate, track.channels = check_rate(first.sample_rate, name), _channels(first.layout.nb_channels, name)
        track.blocks = _blocks(itertools.chain([first], frames), track)
        yield track


def _frames(container: av.container.InputContainer, stream: av.AudioStream, track: Track) -> Iterator[av.AudioFrame]:
    """Decoded frames. Undecodable packets are counted and left out; after more of them than frames, the rest is junk.
    Raises the decoder's error if there was hardly anything but junk."""
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
    if error and good < min(track.damaged, 20):
        raise error


def _blocks(frames: Iterator[av.AudioFrame], track: Track) -> Iterator[np.ndarray]:
    """Frames as (n, C) arrays: planar ones come as (C, n), packed ones as (1, n * C)."""
    for frame in frames:
        if frame.sample_rate != track.rate:
            track.notes.append(f"The sample rate changes to {frame.sample_rate:,} Hz; only the part before is used.")
            return
        channels = frame.layout.nb_channels
        if frame.format.is_planar and channels >= 8:
            # PyAV 18 looks for planes up to a null pointer; there is none after the eighth, and it crashes.
            (frame,) = av.AudioResampler(frame.format.packed, frame.layout, frame.sample_rate).resample(frame)
        values = frame.to_ndarray()
        yield values.T if frame.format.is_planar else values.reshape(-1, channels)


# --- judging a file --------------------------------------------------------------------------------------------------


def not_sound(head: bytes) -> str | None:
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
    frame = head + file.read(HEAD)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def _believable(seconds: float | None, size: int) -> float | None:
    """A declared length, unless it is nonsense: no codec here needs less than a byte a second."""
    return seconds if seconds and 0 < seconds <= size else None


def check_rate(rate: int, name: str) -> int:
    try:
        hertz = int(rate) if isinstance(rate, float) and rate.is_integer() else operator.index(rate)
    except TypeError as e:
        raise AudioError(f"{title(name)} has the sample rate {rate!r}; give a whole number in Hz.") from e
    if not MIN_RATE <= hertz <= MAX_RATE:
        raise AudioError(
            f"{title(name)} has a sample rate of {hertz:,} Hz; save it at {MIN_RATE:,} to {MAX_RATE:,} Hz."
        )
    return hertz


def _channels(channels: int, name: str) -> int:
    if channels > MAX_CHANNELS:
        raise AudioError(f"{title(name)} has {channels:,} channels; save it with {MAX_CHANNELS} or fewer.")
    return channels


def title(name: str) -> str:
    """How a message begins."""
    if not name:
        return "The sound"
    return name if len(name) <= 60 else f"{name[:40]}…{name[-19:]}"
