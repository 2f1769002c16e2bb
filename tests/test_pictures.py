"""What the pictures promise: true places, nothing smoothed or lost, one time axis."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from cnn import pictures
from cnn.mel import MEL_16K
from cnn.pictures import NARROW, WIDE, Picture, Scale

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
def answer() -> dict[str, Picture]:
    noise = np.random.default_rng(0)
    cells = {"conv1": (64, 32, 63), "layer3": (256, 8, 16), "layer4": (512, 4, 8), "layer4.block0.conv": (512, 4, 8)}
    maps = {tap: noise.random(shape[1:]).astype(np.float32) for tap, shape in cells.items()}
    samples = noise.uniform(-0.5, 0.5, 20 * 44_100).astype(np.float32)
    db = noise.uniform(-80, 10, (128, 251)).astype(np.float32)
    labels = [("crying baby", 0.5), ("dog", 0.25), ("rain", 0.0001)]
    return pictures.all_pictures(labels, samples, 44_100, db, maps, cells, SCALE)


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
    assert "0.9 of full scale at 2.3 s" in picture.alt


@pytest.mark.parametrize(("count", "rate"), [(400, 8_000), (1, 44_100), (192_000, 192_000)])
def test_a_waveform_ends_where_the_sound_ends(count: int, rate: int):
    inner = raster(pictures.waveform(np.full(count, 0.1, np.float32), rate, seconds=5)) == ACCENT
    drawn = np.flatnonzero(inner.any(axis=0))
    assert drawn[0] == 0
    assert drawn[-1] + 1 == pytest.approx(count / rate / 5 * inner.shape[1], abs=1.01)


@pytest.mark.parametrize("layout", [WIDE, NARROW])
def test_all_pictures_share_one_time_axis(answer: dict[str, Picture], layout: pictures.Layout):
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


def test_constant_and_broken_maps_are_drawn():
    flat = pictures.feature_map(np.zeros((4, 8)), SCALE, title="flat", shape=(512, 4, 8))
    assert (raster(flat) == COLOUR).all()
    values = np.full((4, 8), np.nan)
    assert (raster(pictures.feature_map(values, SCALE, title="nan", shape=(512, 4, 8))) == 0).all()


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
    for colour in (pictures.INK[theme], pictures.ACCENT[theme]):
        low, high = sorted((luminance(colour), luminance(background)))
        assert (high + 0.05) / (low + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("probability", "text"), [(0.934, "93 %"), (1.0, "100 %"), (0.0414, "4.1 %"), (0.0958, "9.6 %"), (0.0, "< 0.1 %")]
)
def test_percentages_have_two_digits(probability: float, text: str):
    assert pictures.percent(probability) == text


def test_time_ticks_are_round_and_absolute():
    assert [label for _, label in pictures._time_ticks(0.0, 5.0, 6)] == ["0", "1", "2", "3", "4", "5 s"]
    ticks = pictures._time_ticks(12.5, 5.0, 6)
    assert [label for _, label in ticks] == ["13", "14", "15", "16", "17 s"]
    assert math.isclose(ticks[0][0], 0.1)
