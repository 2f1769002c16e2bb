"""What the pictures promise: true places, nothing smoothed or lost, one time axis."""

import io
import json
import math
import re
from collections.abc import Callable
from html import unescape

import numpy as np
import pytest
from PIL import Image

from cnn import canvas, pictures
from cnn.audio import Clip
from cnn.canvas import NARROW, WIDE, Layout, Picture
from cnn.classifier import Label, Prediction
from cnn.mel import MEL_16K
from cnn.pictures import Scale
from cnn.serve.payload import numbers
from cnn.ui.figures import draw, facts, figure

SCALE = Scale(seconds=5.0, hop=0.02, centres=tuple(float(c) for c in MEL_16K.centres))
COLOUR = 65  # first number of the colour map in the palette
ACCENT = 64  # the accent at full strength


def raster(picture: Picture) -> np.ndarray:
    box = picture.box
    return picture.pixels[box.top : box.bottom, box.left : box.right]


def brightest_row(picture: Picture) -> float:
    """Place of the brightest row on the axis: 0 at the foot, 1 at the top."""
    inner = raster(picture).astype(float)
    rows = np.flatnonzero(inner.mean(axis=1) == inner.mean(axis=1).max())
    return 1 - (rows.mean() + 0.5) / len(inner)


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    """Of 20 s, which are 7 windows; the last two are silent."""
    noise = np.random.default_rng(0)
    cells = {"conv1": (64, 32, 63), "layer3": (256, 8, 16), "layer4": (512, 4, 8), "layer4.block0.conv": (512, 4, 8)}
    maps = {tap: noise.random(shape[1:]).astype(np.float32) for tap, shape in cells.items()}
    samples = noise.uniform(-0.5, 0.5, 20 * 44_100).astype(np.float32)
    db = noise.uniform(-80, 10, (128, 251)).astype(np.float32)
    labels = tuple(Label(n, p, 0.0) for n, p in (("crying_baby", 0.5), ("dog", 0.25), ("rain", 0.0001)))
    probabilities = np.full((7, 50), 0.02)
    probabilities[5:] = 0
    clip, starts = Clip(samples, 44_100), np.arange(7) * 2.5
    return Prediction(clip, labels, "named", "", starts, probabilities, 0, db, MEL_16K, maps, cells, np.zeros(50))


@pytest.fixture(scope="module")
def answer(prediction: Prediction) -> dict[str, Picture]:
    return draw(prediction)


def test_a_low_tone_lies_at_the_foot_and_a_high_one_at_the_top():
    for bin_, low, high in ((3, 0.0, 0.05), (124, 0.95, 1.0)):
        db = np.full((128, 251), -60.0)
        db[bin_] = 0.0
        assert low <= brightest_row(pictures.spectrogram(db, SCALE)) <= high


def test_a_tick_stands_where_its_frequency_is():
    db = np.full((128, 251), -60.0)
    db[np.abs(MEL_16K.centres - 1000).argmin()] = 0.0
    place = {label: at for at, label in pictures._pitch_ticks(SCALE.centres, 176)}["1"]
    assert brightest_row(pictures.spectrogram(db, SCALE)) == pytest.approx(place, abs=1 / 128)


def test_evidence_keeps_its_colours_and_a_line_around_it_while_the_rest_is_dimmed():
    db = np.random.default_rng(0).uniform(-60, 0, (128, 251))
    mask = np.zeros((128, 251), np.float32)
    mask[32:64, 100:150] = 1
    drawn = pictures.evidence(db, mask, SCALE, title="Evidence for dog", where="most evidence 2.0-3.0 s")
    inner, plain = raster(drawn), raster(pictures.spectrogram(db, SCALE))
    assert drawn.box == pictures.spectrogram(db, SCALE).box and drawn.alt.endswith("most evidence 2.0-3.0 s.")
    height, width = inner.shape
    columns, rows = slice(int(width * 0.41), int(width * 0.58)), slice(int(height * 0.53), int(height * 0.72))
    np.testing.assert_array_equal(inner[rows, columns], plain[rows, columns])
    outside = np.s_[: height // 3]
    assert (inner[outside] <= COLOUR + 0.36 * (plain[outside].astype(float) - COLOUR) + 1).all()
    light, dark = (inner == 255) & (plain != 255), (inner == COLOUR) & (plain > COLOUR + 10)
    line = np.flatnonzero(light[height * 5 // 8])  # along one row: the line's left and right sides
    np.testing.assert_allclose(line[[0, -1]] / width * 5, [2.0, 3.0], atol=0.02)
    assert (
        dark[height * 5 // 8][line[0] - 4 : line[0]].all() and dark[height * 5 // 8][line[-1] + 1 : line[-1] + 5].all()
    )


def test_on_paper_nothing_is_transparent_and_the_page_is_white():
    picture = pictures.bars([("dog", 0.5)])
    paper = np.asarray(Image.open(io.BytesIO(picture.png("paper"))).convert("RGBA"))
    light = Image.open(io.BytesIO(picture.png("light"))).convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", light.size, "white"), light)
    assert (paper[..., 3] == 255).all() and np.abs(paper.astype(int) - np.asarray(white)).max() <= 1


def test_map_cells_lie_at_their_own_time_and_pitch():
    # layer3 keeps every 16th frame and bin: the cell (row 2, column 5) is centred on bin 32 and frame 80, 1.6 s
    values = np.zeros((8, 16), np.float32)
    values[2, 5] = 1
    inner = raster(pictures.feature_map(values, SCALE, title="layer3", shape=(256, 8, 16)))
    rows, columns = np.nonzero(inner == 255)
    assert (columns.mean() + 0.5) / inner.shape[1] * 5 == pytest.approx(1.6, abs=0.01)
    assert (1 - (rows.mean() + 0.5) / len(inner)) * 128 - 0.5 == pytest.approx(32, abs=1.5)
    assert set(np.unique(inner)) == {COLOUR, 255}  # nothing between the cells: no smoothing


def test_the_envelope_keeps_a_click_of_one_sample():
    samples = np.zeros(5 * 44_100, np.float32)
    samples[100_001] = 0.9
    picture = pictures.waveform(samples, 44_100, seconds=5)
    inner = raster(picture) == ACCENT
    tall = np.flatnonzero(inner.sum(axis=0) > len(inner) / 3)
    assert len(tall) in (1, 2)
    assert tall[0] / inner.shape[1] * 5 == pytest.approx(100_001 / 44_100, abs=0.01)
    assert "0.0 to 5.0 s, largest sample 0.9 of full scale at 2.3 s" in picture.alt


def test_what_comes_after_the_window_plays_no_part_in_its_waveform():
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, 12 * 8000).astype(np.float32)
    clicked = samples.copy()
    clicked[9 * 8000] = 0.9
    with_click, without = (pictures.waveform(s, 8000, seconds=5, start=2.5) for s in (clicked, samples))
    assert (with_click.pixels == without.pixels).all()
    assert with_click.alt == without.alt


@pytest.mark.parametrize(("count", "rate"), [(400, 8_000), (1, 44_100), (192_000, 192_000)])
def test_a_waveform_ends_where_the_sound_ends(count: int, rate: int):
    inner = raster(pictures.waveform(np.full(count, 0.1, np.float32), rate, seconds=5)) == ACCENT
    drawn = np.flatnonzero(inner.any(axis=0))
    assert drawn[0] == 0
    assert drawn[-1] + 1 == pytest.approx(count / rate / 5 * inner.shape[1], abs=1.01)


def drawn_labels(monkeypatch: pytest.MonkeyPatch, draw_one: Callable[[], Picture]) -> list[str]:
    """What is written in a picture; none of it may be cut at its edge."""
    written = []
    original = canvas._letters

    def letters(text: str, size: float, bold: bool) -> np.ndarray:
        written.append(text)
        return original(text, size, bold)

    monkeypatch.setattr(canvas, "_letters", letters)
    pixels = draw_one().pixels
    assert not pixels[:, -1].any()
    return written


@pytest.mark.parametrize("layout", [WIDE, NARROW])
@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (10.01, 10.4, ["10.01", "10.21", "10.40"]),
        (-0.000021, 0.00034, ["−0.2", "1.6", "3.4", "×10⁻⁴"]),
        (0, 123_456, ["0", "0.62", "1.23", "×10⁵"]),
        (-7.25, 4.75, ["−7.2", "−1.2", "4.8"]),
        (-1000.25, -1000.0, ["−1000.25", "−1000.12", "−1000.00"]),
    ],
)
def test_a_colour_bar_says_what_its_colours_are(
    monkeypatch: pytest.MonkeyPatch, layout: Layout, low: float, high: float, labels: list[str]
):
    values = np.linspace(low, high, 32 * 63).reshape(32, 63)
    title, shape = "layer1.block2, before ReLU", (256, 32, 63)
    written = drawn_labels(
        monkeypatch, lambda: pictures.feature_map(values, SCALE, title=title, shape=shape, layout=layout)
    )
    assert [text for text in dict.fromkeys(written) if text in labels] == labels


@pytest.mark.parametrize(
    ("least", "top", "floor", "foot"),
    [(-80, 0, -80, "≤ −80"), (-60, 0, -80, "−60"), (-100, -31, -100, "≤ −100"), (-90, 20, -100, "≤ −60")],
)
def test_the_foot_of_the_spectrogram_says_what_was_clamped(
    monkeypatch: pytest.MonkeyPatch, least: float, top: float, floor: float, foot: str
):
    db = np.linspace(least, top, 128 * 251).reshape(128, 251)
    written = drawn_labels(monkeypatch, lambda: pictures.spectrogram(db, SCALE, floor=floor, layout=NARROW))
    assert foot in written
    assert "in dB" in written


def test_facts_count_the_windows_that_were_heard(prediction: Prediction):
    assert "Heard in 5 windows of 5 s; 2 silent ones were left out." in facts(prediction)


@pytest.mark.parametrize("layout", [WIDE, NARROW])
def test_all_pictures_share_one_time_axis(answer: dict[str, Picture], layout: Layout):
    short = pictures.waveform(np.ones(8000, np.float32), 8000, seconds=5, layout=layout)
    others = [pictures.spectrogram(np.zeros((128, 251)), SCALE, layout=layout)]
    others.append(pictures.feature_map(np.ones((4, 8)), SCALE, title="x", shape=(9, 4, 8), layout=layout))
    if layout is WIDE:
        others += [picture for name, picture in answer.items() if name != "bars"]
    for picture in others:
        assert (picture.box.left, picture.box.right, picture.width) == (short.box.left, short.box.right, short.width)


def test_bars_start_at_zero_and_end_at_their_share(answer: dict[str, Picture]):
    inner = raster(answer["bars"])
    rows = np.array_split(inner, 3)
    filled = [np.mean((row > 32) & (row <= 64), axis=1).max() for row in rows]
    assert filled == pytest.approx([0.5, 0.25, 0.0], abs=0.002)
    assert rows[0][len(rows[0]) // 2, 0] == ACCENT
    assert "crying baby 50 %, dog 25 %, rain < 0.1 %" in answer["bars"].alt


def test_each_map_says_its_true_size_and_its_own_numbers(answer: dict[str, Picture]):
    assert list(answer)[:4] == ["bars", "clip", "waveform", "spectrogram"]
    for tap, size in (("layer4", "512 channels × 4 × 8"), ("layer4.block0.conv", "512 channels × 4 × 8")):
        assert size in answer[tap].alt
    assert "layer4.block0, before ReLU" in answer["layer4.block0.conv"].alt
    assert len({answer[tap].alt for tap in answer}) == len(answer)
    # the colour bar beside the raster holds the whole colour map
    beside = answer["layer4"].pixels[:, answer["layer4"].box.right :]
    assert set(range(COLOUR, 256)) <= set(np.unique(beside))


def test_maps_on_one_colour_scale_can_be_compared(monkeypatch: pytest.MonkeyPatch):
    values = np.linspace(0, 1, 32).reshape(4, 8)
    drawn = {}

    def shared() -> Picture:
        drawn["one"] = pictures.feature_map(values, SCALE, title="x", shape=(4, 8), limits=(-1.0, 3.0))
        return drawn["one"]

    labels = ["−1.0", "1.0", "3.0"]
    assert [text for text in drawn_labels(monkeypatch, shared) if text in labels] == labels
    # 0 lies at a quarter of the scale, 1 at a half
    ends = raster(drawn["one"]).min(), raster(drawn["one"]).max()
    assert ends == (COLOUR + round(190 / 4), COLOUR + 190 // 2)
    assert "4 × 8, one channel, from 0 to 1.00" in drawn["one"].alt, "its own numbers"


def test_a_figure_on_the_clock_says_where_its_raster_lies_and_what_its_cells_are(prediction: Prediction):
    picture, values = pictures.spectrogram(prediction.mel, SCALE), prediction.mel
    told = dict(re.findall(r'data-([a-z]+)="([^"]*)"', figure(picture, scale=SCALE, values=values, unit="dB")))
    tall, wide = picture.pixels.shape
    box = np.array(told["box"].split(), float) * (wide, tall, wide, tall)
    assert box == pytest.approx([picture.box.left, picture.box.top, picture.box.right, picture.box.bottom], abs=0.01)
    assert (told["start"], told["seconds"], told["hop"], told["unit"]) == ("0.0", "5.0", "0.02", "dB")
    read = numbers(json.loads(unescape(told["map"])))
    assert read == pytest.approx(values, abs=2 * np.ptp(values) / 65535)
    assert np.array(told["centres"].split(), float) == pytest.approx(SCALE.centres, rel=1e-4)
    assert "timed" not in figure(picture)


def test_constant_and_broken_maps_are_drawn():
    flat = pictures.feature_map(np.zeros((4, 8)), SCALE, title="flat", shape=(512, 4, 8))
    assert (raster(flat) == COLOUR).all()
    for value in (np.nan, np.inf):
        values = np.full((4, 8), value)
        assert (raster(pictures.feature_map(values, SCALE, title="nan", shape=(512, 4, 8))) == 0).all()
        assert (raster(pictures.spectrogram(np.full((128, 251), value), SCALE, floor=-80)) == 0).all()
    assert (raster(pictures.spectrogram(np.zeros((128, 251)), SCALE)) == COLOUR).all()
    values[0, 0] = 1
    assert "1 everywhere" in pictures.feature_map(values, SCALE, title="one", shape=(512, 4, 8)).alt


def test_light_and_dark_differ_in_ink_and_not_in_colours(answer: dict[str, Picture]):
    both = [Image.open(io.BytesIO(answer["conv1"].png(theme))).convert("RGBA") for theme in ("light", "dark")]
    light, dark = (np.asarray(image).astype(int) for image in both)
    assert both[0].size == (WIDE.width * 2, answer["conv1"].height * 2)
    box = answer["conv1"].box
    assert (light == dark)[box.top : box.bottom, box.left : box.right].all()
    assert (light[..., 3] == dark[..., 3]).all()
    assert (light != dark).any()
    assert (light[0, 0, 3], dark[0, 0, 3]) == (0, 0)  # the page's own background shows


def luminance(colour: tuple[int, int, int]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize(("theme", "background"), [("light", (251, 250, 252)), ("dark", (27, 30, 39))])
def test_ink_and_accent_can_be_read(theme: str, background: tuple[int, int, int]):
    for colour in (canvas.INK[theme], canvas.ACCENT[theme]):
        low, high = sorted((luminance(colour), luminance(background)))
        assert (high + 0.05) / (low + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.934, "93 %"), (1.0, "100 %"), (0.0414, "4.1 %"), (0.0958, "9.6 %"), (0.0, "< 0.1 %"), (0.996, "99.6 %"),
     (0.9996, "> 99.9 %"), (0.9999999, "> 99.9 %")],
)  # fmt: skip
def test_percentages_have_two_digits(probability: float, text: str):
    assert pictures.percent(probability) == text


@pytest.mark.parametrize(("hertz", "text"), [(31.3, "31 Hz"), (996, "1 kHz"), (440, "440 Hz"), (7800, "7.8 kHz")])
def test_frequencies_below_a_kilohertz_are_in_hertz(hertz: float, text: str):
    assert pictures.hertz_in_words(hertz) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0512, "0.051 s"), (5.001, "5 s"), (2.75, "2.8 s"), (61.4, "61 s"), (750, "12 min")]
)
def test_lengths_have_two_digits(seconds: float, text: str):
    assert pictures.seconds_in_words(seconds) == text


def test_time_ticks_are_round_and_absolute():
    assert [label for _, label in pictures._time_ticks(0.0, 5.0, 6)] == ["0", "1", "2", "3", "4", "5 s"]
    ticks = pictures._time_ticks(12.5, 5.0, 6)
    assert [label for _, label in ticks] == ["13", "14", "15", "16", "17 s"]
    assert math.isclose(ticks[0][0], 0.1)
