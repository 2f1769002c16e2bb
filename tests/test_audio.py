"""Files, bytes and arrays -> Clip. Every sound here is made by the test itself."""

import io
import re
import struct
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import av
import numpy as np
import pytest
import soundfile

from cnn import audio, decoding
from cnn.audio import AudioError, load, resample, windows

HZ, LEVEL = 1000.0, 0.5  # every test tone: frequency and amplitude


def tone(rate: int, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    """(N, channels) float32, all channels equal."""
    wave = LEVEL * np.sin(2 * np.pi * HZ * np.arange(round(rate * seconds)) / rate)
    return np.repeat(wave.astype(np.float32)[:, None], channels, axis=1)


def sf(form: str, subtype: str, rate: int = 44100, channels: int = 1, seconds: float = 1.0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(rate, seconds, channels), rate, format=form, subtype=subtype)
    return file.getvalue()


def ff(codec: str, form: str, rate: int = 48000, channels: int = 1, seconds: float = 1.0, **options: str) -> bytes:
    file, layout = io.BytesIO(), {1: "mono", 2: "stereo", 8: "7.1"}[channels]
    with av.open(file, "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 96_000 * channels
        frame = av.AudioFrame.from_ndarray(tone(rate, seconds, channels).reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate = rate
        converter = av.AudioResampler(format=stream.codec_context.format or "fltp", layout=layout, rate=rate)
        for part in [*converter.resample(frame), None]:
            container.mux(stream.encode(part))
    return file.getvalue()


def silent_film() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    return file.getvalue()


def dominant_hz(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax()) * rate / len(samples)


def level_db(samples: np.ndarray) -> float:
    """Level of the middle half against the test tone's."""
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(np.float64)
    return 10 * np.log10(np.mean(middle**2) / (LEVEL**2 / 2))


# name of the file: how it is made, rate, channels, format in words, lossy
FORMATS = {
    "8.wav": (partial(sf, "WAV", "PCM_U8", 22050), 22050, 1, "WAV, 8-bit PCM", False),
    "16.wav": (partial(sf, "WAV", "PCM_16", 44100, 2), 44100, 2, "WAV, 16-bit PCM", False),
    "24.wav": (partial(sf, "WAV", "PCM_24", 96000), 96000, 1, "WAV, 24-bit PCM", False),
    "32.wav": (partial(sf, "WAV", "PCM_32"), 44100, 1, "WAV, 32-bit PCM", False),
    "float.wav": (partial(sf, "WAV", "FLOAT"), 44100, 1, "WAV, 32-bit float", False),
    "double.wav": (partial(sf, "WAV", "DOUBLE"), 44100, 1, "WAV, 64-bit float", False),
    "eight.wav": (partial(sf, "WAVEX", "PCM_16", 192_000, 8), 192_000, 8, "WAV, 16-bit PCM", False),
    "mulaw.wav": (partial(sf, "WAV", "ULAW", 8000), 8000, 1, "WAV, mu-law", True),
    "ima.wav": (partial(sf, "WAV", "IMA_ADPCM"), 44100, 1, "WAV, IMA ADPCM", True),
    "ms.wav": (partial(sf, "WAV", "MS_ADPCM"), 44100, 1, "WAV, Microsoft ADPCM", True),
    "gsm.wav": (partial(sf, "WAV", "GSM610", 8000), 8000, 1, "WAV, GSM 6.10", True),
    "mp3.wav": (partial(ff, "mp3", "wav"), 48000, 1, "MP3 in WAV", True),
    "x.flac": (partial(sf, "FLAC", "PCM_24", 48000, 8), 48000, 8, "FLAC, 24-bit PCM", False),
    "x.ogg": (partial(sf, "OGG", "VORBIS", 44100, 2), 44100, 2, "Ogg Vorbis", True),
    "x.opus": (partial(sf, "OGG", "OPUS", 48000), 48000, 1, "Opus in Ogg", True),
    "x.mp3": (partial(sf, "MP3", "MPEG_LAYER_III", 44100, 2), 44100, 2, "MP3", True),
    "8k.mp3": (partial(ff, "mp3", "mp3", 8000), 8000, 1, "MP3", True),
    "x.aiff": (partial(sf, "AIFF", "PCM_16"), 44100, 1, "AIFF, 16-bit PCM", False),
    "x.au": (partial(sf, "AU", "PCM_16"), 44100, 1, "AU, 16-bit PCM", False),
    "x.caf": (partial(sf, "CAF", "PCM_16"), 44100, 1, "CAF, 16-bit PCM", False),
    "x.m4a": (partial(ff, "aac", "ipod", 44100, 2), 44100, 2, "AAC in MP4", True),
    "alac.m4a": (partial(ff, "alac", "ipod", channels=2), 48000, 2, "Apple Lossless in MP4", False),
    "eight.mka": (partial(ff, "wavpack", "matroska", channels=8), 48000, 8, "WavPack in Matroska", False),  # planar
    "x.aac": (partial(ff, "aac", "adts"), 48000, 1, "AAC", True),
    "x.webm": (partial(ff, "libopus", "webm", channels=2), 48000, 2, "Opus in WebM", True),
    "live.webm": (partial(ff, "libopus", "webm", live="1"), 48000, 1, "Opus in WebM", True),
    "packed.mka": (partial(ff, "pcm_s16le", "matroska", channels=2), 48000, 2, "16-bit PCM in Matroska", False),
    "x.wma": (partial(ff, "wmav2", "asf", 44100), 44100, 1, "WMA in ASF", True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_decodes_to_the_tone_from_path_and_bytes_alike(name, tmp_path):
    make, rate, channels, form, lossy = FORMATS[name]
    path = tmp_path / name.upper()
    path.write_bytes(data := make())
    clip = load(path)
    assert (clip.rate, clip.channels, clip.format, clip.lossy) == (rate, channels, form, lossy)
    assert clip.samples.dtype == np.float32 and clip.samples.ndim == 1 and not clip.samples.flags.writeable
    assert clip.seconds == pytest.approx(1.0, abs=0.09)
    assert dominant_hz(clip.samples, rate) == pytest.approx(HZ, abs=2)
    assert abs(level_db(clip.samples)) < 1  # a mix of equal channels keeps the level
    assert clip.name == name.upper() and clip.notes == ()
    np.testing.assert_array_equal(load(data).samples, clip.samples)


@pytest.mark.parametrize("name", FORMATS)
def test_a_twentieth_of_a_second_is_a_sound_in_every_format(name):
    make, rate, channels, form, _ = FORMATS[name]
    clip = load(make(seconds=0.05))
    assert (clip.rate, clip.channels, clip.format, clip.notes) == (rate, channels, form, ())
    assert 0.04 < clip.seconds < 0.1  # some encoders fill their last packet
    assert clip.peak_dbfs == pytest.approx(-6, abs=3)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_path_bytes_and_array_agree_to_the_sample(dtype, tmp_path):
    rng = np.random.default_rng(0)
    wave = rng.uniform(-1, 1, (1000, 3))
    if dtype.startswith("float"):
        array = wave.astype(dtype) * 2  # beyond full scale is kept
    else:
        info = np.iinfo(dtype)
        array = rng.integers(info.min, info.max, wave.shape, dtype, endpoint=True)
    coding = {"uint8": "PCM_U8", "int16": "PCM_16", "int32": "PCM_32", "float32": "FLOAT", "float64": "DOUBLE"}[dtype]
    path = tmp_path / "x.wav"
    with soundfile.SoundFile(path, "w", 16000, 3, coding) as file:
        file.write(((array.astype(np.int16) - 128) << 8) if dtype == "uint8" else array)
    expected = load((16000, array))
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(load(source).samples, expected.samples)
    assert expected.channels == 3 and expected.format == f"array, {dtype}"


def test_integers_are_scaled_by_their_type_and_floats_are_kept():
    assert load((8000, np.array([0, 128, 192], np.uint8))).samples.tolist() == [-1, 0, 0.5]
    assert load((8000, np.array([-(2**15), 2**14], ">i2"))).samples.tolist() == [-1, 0.5]
    assert load((8000, np.array([[2**30, 0]], np.int32))).samples.tolist() == [0.25]
    assert load((8000, np.array([3.0, -4.0]))).samples.tolist() == [3, -4]
    assert load((8000.0, np.array([1.0]))).samples.tolist() == [1]


def test_the_content_is_believed_not_the_extension(tmp_path):
    for name, made in {"a.mp3": "16.wav", "a.raw": "16.wav", "a.wav": "x.m4a", "a.txt": "x.mp3", "a": "x.webm"}.items():
        (tmp_path / name).write_bytes(FORMATS[made][0]())
        assert load(tmp_path / name).format == FORMATS[made][3]


def test_levels():
    assert load((8000, np.full(100, 0.5))).peak_dbfs == pytest.approx(-6.02, abs=0.01)
    assert load((8000, np.full(100, 0.0011))).is_silent is False
    assert load((8000, np.full(100, 0.0009))).is_silent is True
    nothing = load((8000, np.zeros(100)))
    assert nothing.peak_dbfs == -np.inf and nothing.is_silent


def test_samples_that_are_no_sensible_numbers_count_as_zero_and_are_told():
    array = np.ones((5, 2), np.float32)
    array[0, 0], array[1], array[3, 1], array[4] = np.nan, [np.inf, -1e20], 1e38, 2.0**31  # the last: a 32-bit integer
    file = io.BytesIO()
    soundfile.write(file, array, 8000, format="WAV", subtype="FLOAT")
    for source in ((8000, array), file.getvalue()):
        clip = load(source)
        assert clip.samples.tolist() == [0.5, 0, 1, 0.5, 2.0**31]
        assert clip.notes == ("4 samples were NaN, infinite or beyond any scale and count as zero.",)


CANCEL = "The channels cancel each other; only the loudest one is used."


@pytest.mark.parametrize("coding", ["array", "WAV", "MP3"])
def test_channels_that_cancel_each_other_are_not_silence(coding, monkeypatch):
    monkeypatch.setattr(decoding, "_BLOCK", 3000)  # several blocks, the first of which are silent
    wave = np.concatenate([np.zeros((8000, 1), np.float32), tone(8000)])
    stereo, file = np.hstack([wave, -1.02 * wave]), io.BytesIO()
    source = (8000, stereo)
    if coding != "array":
        form, subtype = ("WAV", "FLOAT") if coding == "WAV" else ("MP3", "MPEG_LAYER_III")
        soundfile.write(file, stereo, 8000, format=form, subtype=subtype)
        source = file.getvalue()
    for cap, cut in ((60, ()), (1.5, ("Only the first 1.5 s of 2 s are used.",))):
        clip = load(source, max_seconds=cap)
        assert clip.notes == (*cut, CANCEL) and clip.channels == 2
        if coding == "MP3":
            assert clip.peak_dbfs == pytest.approx(-6, abs=3)
        else:
            np.testing.assert_array_equal(clip.samples, stereo[: len(clip.samples), 1])


def test_channels_that_do_not_cancel_are_averaged():
    wave = tone(8000)
    for gains in ([1, 1], [1, -0.5], [1, 0], [1] + [0] * 63, [0, 0]):
        clip = load((8000, wave * np.array(gains, np.float32)))
        assert clip.notes == ()
        np.testing.assert_allclose(clip.samples, wave[:, 0] * np.mean(gains), atol=1e-6)


LONG = {  # 75 s; whether the container tells
    "wav": (lambda: sf("WAV", "PCM_16", 8000, 2, 75), True),
    "mp3": (lambda: sf("MP3", "MPEG_LAYER_III", 8000, 1, 75), True),
    "mp3 without Xing": (lambda: ff("mp3", "mp3", 8000, 1, 75, write_xing="0"), False),
    "aac": (lambda: ff("aac", "adts", 8000, 1, 75), False),
    "webm": (lambda: ff("libopus", "webm", 8000, 1, 75), True),
    "live webm": (lambda: ff("libopus", "webm", 8000, 1, 75, live="1"), False),
    "array": (lambda: (8000, tone(8000, 75)), True),
}


@pytest.mark.parametrize("name", LONG)
def test_of_a_long_sound_the_first_minute_is_used_and_the_reader_is_told(name):
    source, told = LONG[name][0](), LONG[name][1]
    clip = load(source)
    assert clip.seconds == 60
    assert clip.notes == (f"Only the first 60 s{' of 75 s' if told else ''} are used.",)
    assert load(source, max_seconds=100).notes == ()


def test_of_a_whole_hour_a_minute_is_decoded():
    file, minute = io.BytesIO(), (tone(8000, 60) * 2**15).astype(np.int16)
    with soundfile.SoundFile(file, "w", 8000, 1, format="FLAC", compression_level=0) as sound:
        for gain in [1] + [0] * 59:
            sound.write(minute * np.int16(gain))
    tracemalloc.start()
    clip = load(file.getvalue())
    peak = tracemalloc.get_traced_memory()[1] - len(file.getvalue())
    tracemalloc.stop()
    assert clip.seconds == 60 and clip.notes == ("Only the first 60 s of 60 min are used.",)
    assert peak < 5 * clip.samples.nbytes


def test_a_header_that_promises_hours_costs_nothing_and_is_not_repeated():
    """Ten minutes of FLAC that claim 2**36 - 1 samples: a minute is decoded, the claim of 99 days not passed on."""
    file = io.BytesIO()
    soundfile.write(file, np.tile(tone(8000), (600, 1)), 8000, format="FLAC")
    data = bytearray(file.getvalue())
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    tracemalloc.start()
    clip = load(bytes(data))
    peak = tracemalloc.get_traced_memory()[1] - len(data)
    tracemalloc.stop()
    assert clip.seconds == 60 and clip.notes == ("Only the first 60 s are used.",)
    assert peak < 5 * clip.samples.nbytes


@pytest.mark.parametrize("name", "16.wav x.aiff x.au x.flac x.mp3 8k.mp3 x.webm live.webm x.aac".split())
def test_of_a_file_that_breaks_off_what_is_there_is_used(name, capfd):
    data = FORMATS[name][0]()
    clip = load(data[: len(data) // 2])
    assert 0.3 < clip.seconds < 0.6
    assert dominant_hz(clip.samples, clip.rate) == pytest.approx(HZ, abs=4)
    if name == "x.aac":  # the last packet is half a packet
        assert clip.notes == ("Parts of the file are damaged and were left out.",)
    elif name != "live.webm":  # nothing in it tells how long it should be
        assert re.fullmatch(r"The file breaks off early: 0\.\d+ s of 1(\.0\d)? s are there\.", *clip.notes)
    assert capfd.readouterr() == ("", "")  # no decoder writes into the user's terminal


def test_a_header_that_points_nowhere_prints_nothing(capfd, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)  # where exceptions end that C code called up
    data = bytearray(sf("AIFF", "PCM_16"))
    assert data[38:42] == b"SSND"
    data[38:42] = b"XXXX"  # no sound where libsndfile then looks: at byte -1
    with pytest.raises(AudioError):
        load(bytes(data))
    assert printed == [] and capfd.readouterr() == ("", "")


def test_a_wav_whose_recorder_crashed_is_read_to_its_end():
    data = bytearray(sf("WAV", "PCM_16"))
    for size in (0, 0xFFFFFFFF):
        data[40:44] = struct.pack("<I", size)
        clip = load(bytes(data))
        assert clip.seconds == 1 and clip.notes == ()


def wav_header(rate: int, channels: int) -> bytes:
    data = bytearray(sf("WAV", "PCM_16"))
    data[22:36] = struct.pack("<HIIHH", channels, rate, rate * channels * 2 % 2**32, channels * 2 % 2**16, 16)
    return bytes(data)


BAD_FILES = {
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: "Grüße, a shopping list\n".encode() * 300, "is text"),
    "utf-16 text": (lambda: "a shopping list\n".encode("utf-16") * 300, "is text"),
    "web page": (lambda: b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "is a playlist"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "is a picture"),
    "zip": (lambda: b"PK\3\4" + np.random.default_rng(1).bytes(300_000), "is a zip archive"),
    "noise": (lambda: np.random.default_rng(2).bytes(300_000), "cannot be decoded"),
    "mpeg junk": (lambda: b"\xff\xfb\x90\xc4" + np.random.default_rng(3).bytes(300_000), "cannot be decoded"),
    "zeros": (lambda: bytes(100_000), "cannot be decoded"),
    "truncated to nothing": (lambda: sf("WAV", "PCM_16")[:20], "cannot be decoded"),
    "no samples": (lambda: sf("WAV", "PCM_16", seconds=0), "has no samples"),
    "no samples, aiff": (lambda: sf("AIFF", "PCM_16", seconds=0), "has no samples"),
    "film": (silent_film, "has no sound track"),
    "unknown codec": (lambda: ff("libopus", "webm").replace(b"A_OPUS", b"A_XXXX"), "has no sound track that can be"),
    "moov missing": (lambda: ff("aac", "ipod")[:3000], "cannot be decoded"),
    "300 channels": (lambda: wav_header(44100, 300), "has 300 channels"),
    "65535 channels": (lambda: wav_header(44100, 65535), "has no sound track that can be"),
    "900 Hz": (lambda: wav_header(900, 1), "sample rate of 900 Hz"),
    "2 GHz": (lambda: wav_header(2_000_000_000, 1), "sample rate of 2,000,000,000 Hz"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_gets_one_sentence_that_names_it(kind, tmp_path, capfd):
    make, words = BAD_FILES[kind]
    path = tmp_path / "some folder" / "bad.wav"
    path.parent.mkdir()
    path.write_bytes(make())
    for source, name in ((path, None), (path.read_bytes(), "bad.wav")):
        with pytest.raises(AudioError) as caught:
            load(source, name=name)
        message = str(caught.value)
        assert message.startswith("bad.wav ") and words in message
        assert message.endswith(".") and "\n" not in message and "some folder" not in message
        assert ";" in message  # the way out
    if words in ("cannot be decoded", "has no samples"):
        assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


def test_what_is_no_readable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    for path, words in (
        (tmp_path / "folder", "folder is a folder; "),
        (f"{tmp_path}/folder/", "folder is a folder; "),
        (tmp_path / "none.wav", "none.wav cannot be read (no such file or directory); "),
        ("/dev/zero", "zero is not a regular file; "),
        ("", "The sound cannot be read (no such file or directory); "),
        ("http://127.0.0.1:1/rain.wav", "rain.wav cannot be read (no such file or directory); "),
        ("a\0b.wav", "ab.wav is not a possible file name; "),
        ("x" * 300 + ".wav", "x" * 40 + "…" + "x" * 15 + ".wav cannot be read (file name too long); "),
        (tmp_path / "two\nlines\x1b[2J\u202e.wav", "twolines[2J.wav cannot be read"),
    ):
        with pytest.raises(AudioError) as caught:
            load(path)
        assert str(caught.value).startswith(words)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret.wav").write_bytes(b"x")
    monkeypatch.setattr(audio.os, "open", refuse)
    with pytest.raises(AudioError, match=r"^secret\.wav cannot be read \(permission denied\); ") as caught:
        load(tmp_path / "secret.wav")
    assert isinstance(caught.value.__cause__, PermissionError)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "big.wav"
    with open(path, "wb") as file:
        file.truncate(audio.MAX_BYTES + 1)  # sparse: takes no room
    monkeypatch.setattr(audio.os, "open", None)  # opening it would fail otherwise
    for source in (path, bytes(audio.MAX_BYTES + 1)):
        with pytest.raises(AudioError, match=r"^big\.wav is larger than the 200 MB that are read; "):
            load(source, name="big.wav")


@pytest.mark.parametrize(
    "source, words",
    [
        ((8000, np.zeros(0)), "has no samples"),
        ((8000, np.zeros((5, 0))), "has no samples"),
        ((8000, np.zeros((2, 100))), "transpose"),
        ((8000, np.zeros((2, 3, 4))), "shape (2, 3, 4)"),
        ((8000, np.float32(1)), "shape ()"),
        ((8000, np.zeros(9, bool)), "type bool"),
        ((8000, np.zeros(9, complex)), "type complex128"),
        ((8000, np.array([None, "a"])), "type object"),
        ((999, np.zeros(9)), "999 Hz"),
        ((800_000, np.zeros(9)), "800,000 Hz"),
        ((44100.5, np.zeros(9)), "whole number"),
        (("44100", np.zeros(9)), "whole number"),
    ],
)
def test_a_bad_array_gets_one_sentence(source, words):
    with pytest.raises(AudioError) as caught:
        load(source, name="microphone")
    assert str(caught.value).startswith("microphone ") and words in str(caught.value)


@pytest.mark.parametrize("source", [None, 8000, [8000, [0.5]], np.zeros(9), load((8000, np.zeros(9)))])
def test_another_kind_of_source_is_told_the_right_ones(source):
    kind = type(source).__name__
    with pytest.raises(TypeError, match=rf"a path, the bytes .* or \(rate, array\), not {kind}; a Clip goes to "):
        load(source)


@pytest.mark.parametrize("suffix", [b"", b"#\1\n"])  # a control character passes the first barrier: no text
@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile 'other.wav'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1,\n{folder}/other.wav\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1,\nfile://{folder}/other.wav\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_playlist_fetches_nothing(text, suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.wav").write_bytes(sf("WAV", "PCM_16"))
    (tmp_path / "list.wav").write_bytes(text.format(folder=tmp_path).encode() + suffix)
    for source in (tmp_path / "list.wav", (tmp_path / "list.wav").read_bytes()):
        with pytest.raises(AudioError, match="list.wav"):
            load(source, name="list.wav")


def test_threads_decode_the_same():
    files = [FORMATS[name][0]() for name in ("16.wav", "x.mp3", "x.ogg", "x.m4a", "x.webm")] * 4
    alone = [load(data).samples for data in files[:5]] * 4
    with ThreadPoolExecutor(8) as pool:
        for clip, expected in zip(pool.map(load, files), alone, strict=True):
            np.testing.assert_array_equal(clip.samples, expected)


@pytest.mark.parametrize("rate, to", [(44100, 16000), (8000, 44100), (192_000, 22050), (16000, 16000)])
def test_resampling_keeps_a_tones_frequency_and_level(rate, to):
    clip = load((rate, tone(rate)))
    out = resample(clip.samples, rate, to)
    assert out.dtype == np.float32 and len(out) == to
    assert dominant_hz(out, to) == pytest.approx(HZ, abs=2)
    assert abs(level_db(out)) < 0.05


def test_resampling_removes_what_the_new_rate_cannot_hold():
    wave = np.sin(2 * np.pi * 15_000 * np.arange(44100) / 44100)
    assert level_db(resample(wave, 44100, 16000)) < -90


@pytest.mark.parametrize("length", [1, 2, 33, 441, 12345])
def test_resampling_rounds_the_length(length):
    for rate, to in ((44100, 16000), (8000, 48000), (768_000, 16000)):
        out = resample(np.ones(length, np.float32), rate, to)
        assert len(out) == max(1, round(length * to / rate)) and np.isfinite(out).all()


@pytest.mark.parametrize(
    "seconds, starts",
    [(0.05, [0]), (5, [0]), (5.5, [0, 0.5]), (7, [0, 2]), (7.5, [0, 2.5]), (12, [0, 2.5, 5, 7])],
)
def test_windows_cover_the_sound_and_the_last_ends_with_it(seconds, starts):
    rate = 1000
    samples = np.arange(1, round(seconds * rate) + 1, dtype=np.float32)
    pieces, at = windows(samples, rate)
    assert pieces.shape == (len(starts), 5 * rate) and pieces.dtype == np.float32
    assert at.tolist() == starts
    for piece, start in zip(pieces, at, strict=True):
        there = samples[round(start * rate) :][: 5 * rate]
        np.testing.assert_array_equal(piece[: len(there)], there)  # a shorter sound stands at the start
        assert not piece[len(there) :].any()  # and digital silence follows
    assert seconds < 5 or pieces[-1, -1] == samples[-1]
