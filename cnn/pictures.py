"""What is drawn of a clip: bars, waveform, mel spectrogram and feature maps.

The data are set cell by cell, so no map is ever smoothed. All rasters of a layout lie on the same pixels from left to
right: the eye can go straight down from the waveform to the deepest map.

F mel bins, T frames, f x t cells of a feature map; lengths in CSS pixels unless the name says device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cnn.canvas import (
    ACCENT_AT,
    BAR,
    COLOUR,
    COLOURS,
    DENSITY,
    FOOT,
    GAP,
    INK_AT,
    STEPS,
    TOP,
    WIDE,
    Box,
    Layout,
    Picture,
    Ticks,
    box_of,
    frame,
    write,
)

LOUDEST = 80.0  # dB below the loudest cell of a spectrogram that the colours span
DIMMED = 0.35  # of its colour, that is left to a cell which is no evidence


@dataclass(frozen=True)
class Scale:
    """The clip's own axes: the time of every frame and the frequency of every mel bin of the window shown."""

    seconds: float  # length of the window
    hop: float  # seconds from frame to frame
    centres: tuple[float, ...]  # Hz, lowest first, (F,)
    start: float = 0.0  # seconds into the clip

    @property
    def frames(self) -> int:
        return math.floor(self.seconds / self.hop + 1e-6) + 1


@lru_cache
def _time_ticks(start: float, seconds: float, most: int) -> Ticks:
    step = next((s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60) if seconds / s <= most), 300)
    first, last = math.ceil(start / step - 0.02), math.floor((start + seconds) / step + 0.02)
    times = [k * step for k in range(first, last + 1)]
    return tuple((min(max((t - start) / seconds, 0), 1), f"{t:g}" + (" s" if t == times[-1] else "")) for t in times)


def _mel(hertz: float | np.ndarray) -> float | np.ndarray:
    return 2595 * np.log10(1 + hertz / 700)


@lru_cache
def _pitch_ticks(centres: tuple[float, ...], height: int) -> Ticks:
    """Round frequencies at their true places on the mel rows, the highest first, as many as have room."""
    bins = len(centres)
    mel = _mel(np.asarray(centres))  # the rows are even on this scale
    ticks: list[tuple[float, str]] = []
    for hertz in (16000, 8000, 4000, 2000, 1000, 500, 250, 100):
        at = (np.interp(hertz, centres, np.arange(bins), left=-1, right=np.nan) + 0.5) / bins
        if math.isnan(at) and bins > 1:  # above the last centre: at most the upper foot of its filter
            at = (bins - 0.5 + (_mel(hertz) - mel[-1]) / (mel[-1] - mel[-2])) / bins
            at = min(at, 1.0) if at < 1 + 0.6 / bins else math.nan
        if math.isnan(at) or at < 0 or (ticks and (ticks[-1][0] - at) * height < 14):
            continue
        ticks.append((float(at), f"{hertz / 1000:g}" + ("" if ticks else " kHz")))
    return tuple(ticks)


# ---- numbers as people read them


def percent(probability: float) -> str:
    """0.934 -> '93 %', 0.041 -> '4.1 %': two significant digits, and only what is certain is '100 %'."""
    value = 100 * probability
    if value >= 100:
        return "100 %"
    if value >= 99.95:
        return "> 99.9 %"
    if 9.95 <= value < 99.5:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.095 else "< 0.1 %"


def hertz_in_words(hertz: float) -> str:
    """Two significant digits: '31 Hz', '440 Hz', '1.2 kHz', '22 kHz'."""
    rounded = float(f"{hertz:.2g}")
    return f"{rounded / 1000:g} kHz" if rounded >= 1000 else f"{rounded:g} Hz"


def seconds_in_words(seconds: float) -> str:
    """Two significant digits: '0.34 s', '5 s', '12 s', '61 s'; from two minutes on '12 min'."""
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 9.95 else f"{float(f'{seconds:.2g}'):g} s"


def _stretch(start: float, end: float) -> str:
    return f"{start:.1f} to {end:.1f} s"


def _number(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}".replace("-", "−")


def _labels(low: float, high: float) -> tuple[list[str], str]:
    """Numbers at the foot, middle and top of an axis, and the power of ten that all are in units of ('' for none).

    As many digits as the half of the span needs to be told to two: 10.01, 10.21, 10.40. One number where all is equal,
    none where there is none.
    """
    if math.isnan(low):
        return ["", "", ""], ""
    largest = max(abs(low), abs(high))
    power = math.floor(math.log10(largest)) if largest > 0 else 0
    power = power if power < -2 or power > 3 else 0
    low, high = low / 10.0**power, high / 10.0**power
    half = (high - low) / 2
    digits = min(max(1 - math.floor(math.log10(half or abs(high) or 1)), 0), 6)
    values = (low, low + half, high) if half > 0 else (low,)
    labels = [f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else "0" for value in values]
    unit = f"×10{str(power).translate(_RAISED)}" if power else ""
    return labels + [""] * (3 - len(labels)), unit


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


# ---- rasters


@lru_cache(maxsize=256)
def _cells(cells: int, of: int, pixels: int, first: float, step: float) -> np.ndarray:
    """Which cell each pixel shows, (pixels,): the one whose centre is nearest.

    The axis has `of` places (frames or bins) of which the map keeps every 2^k-th: its cells are centred on places
    0, 2^k, 2 * 2^k ... (strided convolutions with symmetric padding). Pixel p lies at place first + p * step.
    """
    stride = 1
    while -(-of // stride) > cells:
        stride *= 2
    places = first + np.arange(pixels) * step
    return np.clip(np.floor(places / stride + 0.5), 0, cells - 1).astype(np.intp)


def _raster(values: np.ndarray, low: float, high: float, scale: Scale, box: Box) -> np.ndarray:
    """(f, t), lowest frequency first -> palette numbers of the box, lowest frequency at the foot.

    What is not finite is transparent.
    """
    span = high - low if high > low else 1.0
    numbers = np.clip((values.astype(np.float64) - low) / span, 0, 1) * (COLOURS - 1) + COLOUR + 0.5
    return _spread(np.where(np.isfinite(values), numbers, 0).astype(np.uint8), scale, box)


def _spread(values: np.ndarray, scale: Scale, box: Box) -> np.ndarray:
    """(f, t), lowest frequency first -> the box's pixels, lowest frequency at the foot."""
    width, height, bins = box.right - box.left, box.bottom - box.top, len(scale.centres)
    per_pixel = scale.seconds / scale.hop / width  # frames
    columns = _cells(values.shape[1], scale.frames, width, per_pixel / 2, per_pixel)
    rows = _cells(values.shape[0], bins, height, bins / height / 2 - 0.5, bins / height)
    return values[rows[::-1]][:, columns]


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest finite value; NaN where there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)


def _with_colour_bar(
    values: np.ndarray,
    scale: Scale,
    layout: Layout,
    height: int,
    limits: tuple[float, float],
    labels: Sequence[str],
    unit: str = "",
) -> tuple[np.ndarray, Box]:
    """The raster in its frame; the colour bar with labels at foot, middle and top, and their unit below it."""
    x_ticks = _time_ticks(scale.start, scale.seconds, 6)
    pixels = frame(layout, height, x_ticks, _pitch_ticks(scale.centres, height), True).copy()
    box = box_of(layout, height)
    pixels[box.top : box.bottom, box.left : box.right] = _raster(values, *limits, scale, box)
    left = box.right + GAP * DENSITY
    ramp = COLOUR + np.linspace(COLOURS - 1, 0, box.bottom - box.top).astype(np.uint8)
    pixels[box.top : box.bottom, left : left + BAR * DENSITY] = ramp[:, None]
    size = layout.text - 0.5
    for label, at in zip(labels, (height - 5, height / 2, 5), strict=True):
        write(pixels, label, layout.left + layout.axis + GAP + BAR + 5, TOP + at, size)
    write(pixels, unit, layout.width, TOP + height + FOOT / 2 + 1, size, align="right")
    return pixels, box


def _place(values: np.ndarray, scale: Scale) -> str:
    """Where the largest finite value lies, in words."""
    largest = np.where(np.isfinite(values), values, -np.inf).argmax()
    row, column = np.unravel_index(largest, values.shape)
    f_stride, t_stride = (
        2 ** math.ceil(math.log2(of / cells))
        for cells, of in zip(values.shape, (len(scale.centres), scale.frames), strict=True)
    )
    seconds = min(column * t_stride * scale.hop, scale.seconds)
    pitch = hertz_in_words(scale.centres[min(row * f_stride, len(scale.centres) - 1)])
    return f"{scale.start + seconds:.1f} s and {pitch}"


def bars(labels: Sequence[tuple[str, float]], *, layout: Layout = WIDE) -> Picture:
    """The (name, probability) pairs as bars from zero to the width that stands for 100 %."""
    row, thick, size = 28, 14, layout.text + 1.5
    left, right = layout.names, layout.width - 60
    pixels = np.zeros((row * len(labels) * DENSITY, layout.width * DENSITY), np.uint8)
    x0, x1 = left * DENSITY, right * DENSITY
    for k, (name, probability) in enumerate(labels):
        middle = row * k + row / 2
        top, bottom = round((middle - thick / 2) * DENSITY), round((middle + thick / 2) * DENSITY)
        pixels[top:bottom, x0:x1] = INK_AT + 3
        pixels[top:bottom, x0 : x0 + round((x1 - x0) * probability)] = ACCENT_AT + (STEPS if k == 0 else 20)
        write(pixels, name, left - 10, middle, size, bold=k == 0, align="right")
        write(pixels, percent(probability), right + 8, middle, size, bold=k == 0)
    said = ", ".join(f"{name} {percent(probability)}" for name, probability in labels)
    return Picture(pixels, Box(x0, 0, x1, pixels.shape[0]), f"Bars from 0 to 100 %: {said}.")


def envelope(samples: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest sample of every column: (N,) and column edges (W + 1,) as sample numbers -> (W,), (W,).

    Each column also holds the first sample of the next one, so that the line is never broken and a click of a single
    sample never lost. Columns past the end of the sound are NaN.
    """
    samples = samples[: edges[-1] + 1]  # the last column ends with the window, not with the sound
    inside = edges[:-1] < len(samples)
    low, high = np.full((2, len(inside)), np.nan, np.float32)
    if not inside.any():
        return low, high
    first = edges[:-1][inside]
    after = samples[np.minimum(edges[1:][inside], len(samples) - 1)]
    low[inside] = np.minimum(np.minimum.reduceat(samples, first), after)
    high[inside] = np.maximum(np.maximum.reduceat(samples, first), after)
    return low, high


def waveform(
    samples: np.ndarray,
    rate: int,
    *,
    seconds: float,
    start: float = 0.0,
    mark: tuple[float, float] | None = None,
    title: str = "Waveform",
    layout: Layout = WIDE,
    height: int = 76,
) -> Picture:
    """Loudness over time from `start` for `seconds`: per column the smallest and the largest sample, (N,) at `rate`.

    The scale reaches as far as the loudest sample shown. `mark` shades a stretch of time (absolute seconds).
    """
    box = box_of(layout, height)
    width, tall = box.right - box.left, box.bottom - box.top
    edges = np.floor((start + np.arange(width + 1) * seconds / width) * rate + 1e-6).astype(np.intp)
    low, high = envelope(samples, edges)
    known = np.isfinite(high)
    peak = float(max(np.abs(low[known]).max(), np.abs(high[known]).max())) if known.any() else 0.0
    limit = peak if peak > 0 else 1.0
    labels, unit = _labels(-limit, limit)
    ticks = tuple(zip((0.0, 0.5, 1.0), labels, strict=True))
    pixels = frame(layout, height, _time_ticks(start, seconds, 6), ticks, False).copy()
    inner = pixels[box.top : box.bottom, box.left : box.right]
    middle = (tall - 1) / 2
    top = np.round(middle - np.where(known, high, 0) / limit * (middle - 2))
    foot = np.round(middle - np.where(known, low, 0) / limit * (middle - 2))
    y = np.arange(tall)[:, None]
    if mark is not None:
        a, b = (round((t - start) / seconds * width) for t in mark)
        inner[:, max(a, 0) : max(b, 0)] = ACCENT_AT + 6
    inner[(y >= top) & (y <= foot) & known] = ACCENT_AT + STEPS
    after = write(pixels, title, layout.left, TOP / 2 - 1, layout.text + 0.5, bold=True)
    write(pixels, unit, after + 8, TOP / 2 - 1, layout.text)
    end = min(start + seconds, len(samples) / rate)
    alt = f"{title}, {_stretch(start, end)}, largest sample {_number(peak)} of full scale"
    if peak > 0:
        loudest = np.nanargmax(np.fmax(np.abs(low), np.abs(high)))
        alt += f" at {start + loudest / width * seconds:.1f} s"
    return Picture(pixels, box, alt + ".")


def spectrogram(
    db: np.ndarray, scale: Scale, *, floor: float = -math.inf, layout: Layout = WIDE, height: int = 176
) -> Picture:
    """Mel spectrogram (F, T) in dB, low frequencies at the foot. The colours span the loudest 80 dB.

    `floor`: what the front end lifted every quieter cell to; the label at the foot then says 'at most'.
    """
    low, high = _limits(db)
    least = max(high - LOUDEST, floor, low)
    labels, unit = _labels(least, high)
    if least > low or low <= floor:
        labels[0] = f"≤ {labels[0]}"
    pixels, box = _with_colour_bar(db, scale, layout, height, (least, high), labels, unit)
    end = write(pixels, "Mel spectrogram", layout.left, TOP / 2 - 1, layout.text + 0.5, bold=True)
    write(pixels, "in dB", end + 8, TOP / 2 - 1, layout.text)
    band = f"{hertz_in_words(scale.centres[0])} to {hertz_in_words(scale.centres[-1])}"
    when = _stretch(scale.start, scale.start + scale.seconds)
    alt = f"Mel spectrogram, {when}, {band}, low frequencies at the foot"
    if high > low:
        alt += f"; loudest ({labels[2]} dB) at {_place(db, scale)}"
    return Picture(pixels, box, alt + ".")


def evidence(
    db: np.ndarray,
    mask: np.ndarray,
    scale: Scale,
    *,
    title: str,
    where: str,
    floor: float = -math.inf,
    layout: Layout = WIDE,
    height: int = 176,
) -> Picture:
    """The mel spectrogram (F, T) in dB, as bright as `mask` (F, T) in 0..1 is large, down to DIMMED of its colours, and
    a line, light within dark, around what is at least half evidence: neither needs an eye for colours. There is no
    colour bar, for dimmed colours are not those of their dB. `where`: what the picture shows, in words."""
    ticks = _time_ticks(scale.start, scale.seconds, 6), _pitch_ticks(scale.centres, height)
    pixels, box = frame(layout, height, *ticks, False).copy(), box_of(layout, height)
    low, high = _limits(db)
    colours = _raster(db, max(high - LOUDEST, floor, low), high, scale, box)
    strength = _spread(mask, scale, box)
    share = DIMMED + (1 - DIMMED) * strength
    inner = np.where(colours >= COLOUR, COLOUR + (colours - float(COLOUR)) * share + 0.5, 0).astype(np.uint8)
    half = strength >= 0.5
    inner[_grown(half, 2 * DENSITY) & ~half] = COLOUR
    inner[half & _grown(~half, DENSITY)] = COLOUR + COLOURS - 1
    pixels[box.top : box.bottom, box.left : box.right] = inner
    end = write(pixels, title, layout.left, TOP / 2 - 1, layout.text + 0.5, bold=True)
    write(pixels, "outlined where strong, dimmed where weak", end + 8, TOP / 2 - 1, layout.text)
    return Picture(pixels, box, f"{title}, drawn over the mel spectrogram: {where}.")


def _grown(region: np.ndarray, pixels: int) -> np.ndarray:
    """(h, w) bool: the region and what lies within so many pixels of it, up, down, left or right."""
    for axis in (0, 1):
        padded = np.pad(region, [(pixels, pixels) if a == axis else (0, 0) for a in (0, 1)])
        region = np.lib.stride_tricks.sliding_window_view(padded, 2 * pixels + 1, axis=axis).any(axis=-1)
    return region


def feature_map(
    values: np.ndarray,
    scale: Scale,
    *,
    title: str,
    shape: tuple[int, ...],
    layout: Layout = WIDE,
    height: int = 104,
    limits: tuple[float, float] | None = None,
) -> Picture:
    """Channel means (f, t) of a tap of true size `shape` (C, f, t), with axes and colour bar; or, `shape` being (f, t)
    itself, one channel. `limits`: the values at the ends of the colours, shared by several maps; None: its own.
    """
    low, high = _limits(values)
    labels, unit = _labels(*(limits or (low, high)))
    pixels, box = _with_colour_bar(values, scale, layout, height, limits or (low, high), labels, unit)
    one = len(shape) == 2
    size = f"{shape[0]} × {shape[1]}" if one else f"{shape[0]} channels × {shape[1]} × {shape[2]}"
    end = write(pixels, title, layout.left, TOP / 2 - 1, layout.text + 0.5, bold=True)
    write(pixels, size, end + 8, TOP / 2 - 1, layout.text)
    alt = f"Feature map {title}, {size}, {'one channel' if one else 'mean over the channels'}"
    if high > low:
        (least, _, most), unit = _labels(low, high)
        of = f", in units of {unit[1:]}" if unit else ""
        alt += f", from {least} to {most}{of}; strongest at {_place(values, scale)}"
    else:
        alt += ", no number anywhere" if math.isnan(low) else f", {_number(low)} everywhere"
    return Picture(pixels, box, alt + ".")


def tap_title(tap: str) -> str:
    """'layer1.block0.conv' -> 'layer1.block0, before ReLU'; stages keep their names."""
    block, _, place = tap.rpartition(".")
    when = {"conv": "before ReLU", "relu": "after ReLU"}.get(place)
    return f"{block}, {when}" if when else tap
