"""What is drawn of a clip: bars, waveform, mel spectrogram and feature maps, as PNG with a light and a dark variant.

matplotlib draws frames, ticks and letters once per layout (Figure and Agg, never pyplot) and its magma colours the
data; the data themselves are set cell by cell, so no map is ever smoothed. A picture is held as palette numbers: both
themes share the pixels and differ in the palette alone. All rasters of a layout lie on the same pixels from left to
right: the eye can go straight down from the waveform to the deepest map.

F mel bins, T frames, f x t cells of a feature map; lengths in CSS pixels unless the name says device.
"""

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

INK = {"light": (31, 35, 48), "dark": (232, 234, 240)}  # letters and frames, on the page's own background
ACCENT = {"light": (156, 46, 127), "dark": (240, 132, 180)}
COLOUR_MAP = "magma"  # perceptually uniform, safe for colour-blind eyes, the same in light and dark

# the palette: transparent, ink in 32 strengths, accent in 32 strengths, then the colour map
_STEPS = 32
_INK, _ACCENT, _COLOUR = 0, _STEPS, 2 * _STEPS + 1  # ink is _INK + 1..32, accent _ACCENT + 1..32
_COLOURS = 256 - _COLOUR

_DENSITY = 2  # device pixels per CSS pixel
_DPI = 72 * _DENSITY  # so that one point is one CSS pixel

_FONTS = Path(__file__).resolve().parents[1] / "assets" / "fonts"
for _file in sorted(_FONTS.glob("*.ttf")):
    font_manager.fontManager.addfont(_file)
_FAMILY = ["Atkinson Hyperlegible Next", "DejaVu Sans"]  # the second has the letters that the first lacks


@dataclass(frozen=True)
class Layout:
    """Where things lie in a picture. `left` and `right` are shared by all pictures of a clip."""

    width: int
    left: int
    right: int
    names: int  # width of the class names in front of the bars
    text: float

    @property
    def axis(self) -> int:
        return self.width - self.left - self.right


WIDE = Layout(width=880, left=52, right=78, names=150, text=12.5)
NARROW = Layout(width=360, left=46, right=62, names=118, text=12)
_GAP, _BAR = 10, 12  # between raster and colour bar; width of the colour bar
_TOP, _FOOT = 24, 22  # title above the raster, tick labels below


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


@dataclass(frozen=True)
class Box:
    """The raster's place in the picture, device pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, eq=False)
class Picture:
    pixels: np.ndarray  # (height, width) uint8, numbers of the palette, device pixels
    box: Box
    alt: str  # what it shows, for those who cannot see it

    @property
    def width(self) -> int:
        return self.pixels.shape[1] // _DENSITY

    @property
    def height(self) -> int:
        return self.pixels.shape[0] // _DENSITY

    def png(self, theme: str = "light") -> bytes:
        """The picture as an indexed PNG for a 'light' or a 'dark' background (its own is transparent)."""
        height, width = self.pixels.shape
        head = struct.pack(">2I5B", width, height, 8, 3, 0, 0, 0)
        colours, alphas = _palette(theme)
        chunks = (b"IHDR", head), (b"PLTE", colours), (b"tRNS", alphas), (b"IDAT", self._packed), (b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )

    @cached_property
    def _packed(self) -> bytes:
        rows = np.zeros((self.pixels.shape[0], self.pixels.shape[1] + 1), np.uint8)  # filter 0 before every row
        rows[:, 1:] = self.pixels
        return zlib.compress(rows.tobytes(), 1)  # long runs of one number: more effort gains little and costs time


@lru_cache
def _palette(theme: str) -> tuple[bytes, bytes]:
    """Colours (256 x RGB) and opacities (256) of a theme."""
    colours = np.zeros((256, 3), np.uint8)
    alphas = np.full(256, 255, np.uint8)
    alphas[0] = 0
    ramp = np.round(np.arange(1, _STEPS + 1) / _STEPS * 255)
    for base, colour in ((_INK, INK[theme]), (_ACCENT, ACCENT[theme])):
        colours[base + 1 : base + _STEPS + 1] = colour
        alphas[base + 1 : base + _STEPS + 1] = ramp
    colours[_COLOUR:] = np.round(colormaps[COLOUR_MAP](np.linspace(0, 1, _COLOURS))[:, :3] * 255)
    return colours.tobytes(), alphas.tobytes()


# ---- letters and frames, drawn by matplotlib once and kept


def _strength(alpha: np.ndarray) -> np.ndarray:
    """Opacity 0..255 -> palette numbers of the ink."""
    return ((alpha.astype(np.uint16) * _STEPS + 127) // 255).astype(np.uint8)


@lru_cache(maxsize=2048)
def _letters(text: str, size: float, bold: bool) -> np.ndarray:
    """A line of text as ink (h, w); its baseline lies a quarter of the height above the foot, whatever the letters."""
    font = FontProperties(family=_FAMILY, size=size, weight=700 if bold else 400)
    ruler = RendererAgg(8, 8, _DPI)
    width, _, _ = ruler.get_text_width_height_descent(text, font, False)
    height = round(size * 1.4 * _DENSITY)
    pen = RendererAgg(math.ceil(width) + 4, height, _DPI)
    pen.draw_text(pen.new_gc(), 1, height * 0.75, text, font, 0)
    return _strength(np.asarray(pen.buffer_rgba())[..., 3])


def _write(
    pixels: np.ndarray, text: str, x: float, y: float, size: float, *, bold: bool = False, align: str = "left"
) -> float:
    """Write with the middle of the line at (x, y); returns where the line ends. Cut at the picture's edge."""
    ink = _letters(text, size, bold)
    left = round(x * _DENSITY) - {"left": 0, "right": ink.shape[1]}[align]
    top = round(y * _DENSITY) - ink.shape[0] // 2
    left, top = max(left, 0), max(top, 0)
    place = pixels[top : top + ink.shape[0], left : left + ink.shape[1]]
    np.maximum(place, ink[: place.shape[0], : place.shape[1]], out=place)
    return (left + ink.shape[1]) / _DENSITY


Ticks = tuple[tuple[float, str], ...]  # place on the axis 0..1, label


@lru_cache(maxsize=32)
def _frame(layout: Layout, height: int, x_ticks: Ticks, y_ticks: Ticks, colour_bar: bool) -> np.ndarray:
    """Axes with ticks, and the colour bar's, around a raster of `height`: palette numbers of the whole picture."""
    full = _TOP + height + _FOOT
    figure = Figure(figsize=(layout.width / 72, full / 72), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    place = (layout.left / layout.width, _FOOT / full, layout.axis / layout.width, height / full)
    axes = [figure.add_axes(place)]
    axes[0].set(xlim=(0, 1), ylim=(0, 1))
    axes[0].set_xticks([x for x, _ in x_ticks], [label for _, label in x_ticks])
    axes[0].set_yticks([y for y, _ in y_ticks], [label for _, label in y_ticks])
    if colour_bar:
        left = (layout.left + layout.axis + _GAP) / layout.width
        axes.append(figure.add_axes((left, place[1], _BAR / layout.width, place[3])))
        axes[1].set_xticks([])
        axes[1].set_yticks([0, 0.5, 1], ["", "", ""])
        axes[1].yaxis.tick_right()
    for ax in axes:
        ax.patch.set_alpha(0)
        ax.tick_params(length=3, width=0.75, pad=3, labelsize=layout.text - 0.5)
        ax.spines[:].set(linewidth=0.75, alpha=0.6)
        for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
            label.set_fontfamily(_FAMILY)
        for (at, _), label in zip(y_ticks, ax.get_yticklabels(), strict=False):  # none reaches beyond the axis
            label.set_verticalalignment("bottom" if at < 0.02 else "top" if at > 0.98 else "center_baseline")
    canvas.draw()
    return _strength(np.asarray(canvas.buffer_rgba())[..., 3])


def _box(layout: Layout, height: int) -> Box:
    return Box(
        layout.left * _DENSITY,
        _TOP * _DENSITY,
        (layout.left + layout.axis) * _DENSITY,
        (_TOP + height) * _DENSITY,
    )


@lru_cache
def _time_ticks(start: float, seconds: float, most: int) -> Ticks:
    step = next((s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60) if seconds / s <= most), 300)
    first, last = math.ceil(start / step - 0.02), math.floor((start + seconds) / step + 0.02)
    times = [k * step for k in range(first, last + 1)]
    return tuple((min(max((t - start) / seconds, 0), 1), f"{t:g}" + (" s" if t == times[-1] else "")) for t in times)


@lru_cache
def _pitch_ticks(centres: tuple[float, ...], height: int) -> Ticks:
    """Round frequencies at their true places on the mel rows, the highest first, as many as have room."""
    bins = len(centres)
    mel = 2595 * np.log10(1 + np.asarray(centres) / 700)  # the rows are even on this scale
    ticks: list[tuple[float, str]] = []
    for hertz in (16000, 8000, 4000, 2000, 1000, 500, 250, 100):
        at = (np.interp(hertz, centres, np.arange(bins), left=-1, right=np.nan) + 0.5) / bins
        if math.isnan(at) and bins > 1:  # above the last centre: at most the upper foot of its filter
            at = (bins - 0.5 + (2595 * math.log10(1 + hertz / 700) - mel[-1]) / (mel[-1] - mel[-2])) / bins
            at = min(at, 1.0) if at < 1 + 0.6 / bins else math.nan
        if math.isnan(at) or at < 0 or (ticks and (ticks[-1][0] - at) * height < 14):
            continue
        ticks.append((float(at), f"{hertz / 1000:g}" + ("" if ticks else " kHz")))
    return tuple(ticks)


# ---- numbers as people read them


def percent(probability: float) -> str:
    """0.934 -> '93 %', 0.041 -> '4.1 %': two significant digits."""
    value = 100 * probability
    if value >= 9.95:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.095 else "< 0.1 %"


def kilohertz(hertz: float) -> str:
    return f"{float(f'{hertz / 1000:.2g}'):g} kHz"


def _number(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}".replace("-", "−")


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
    """(f, t), lowest frequency first -> palette numbers of the box, lowest frequency at the foot. NaN: transparent."""
    span = high - low if high > low else 1.0
    numbers = np.clip((values - low) / span, 0, 1) * (_COLOURS - 1) + _COLOUR + 0.5
    numbers = np.where(np.isfinite(values), numbers, 0).astype(np.uint8)
    width, height, bins = box.right - box.left, box.bottom - box.top, len(scale.centres)
    per_pixel = scale.seconds / scale.hop / width  # frames
    columns = _cells(values.shape[1], scale.frames, width, per_pixel / 2, per_pixel)
    rows = _cells(values.shape[0], bins, height, bins / height / 2 - 0.5, bins / height)
    return numbers[rows[::-1]][:, columns]


def _with_colour_bar(
    values: np.ndarray, scale: Scale, layout: Layout, height: int, limits: tuple[float, float], labels: Sequence[str]
) -> tuple[np.ndarray, Box]:
    x_ticks = _time_ticks(scale.start, scale.seconds, 6)
    pixels = _frame(layout, height, x_ticks, _pitch_ticks(scale.centres, height), True).copy()
    box = _box(layout, height)
    pixels[box.top : box.bottom, box.left : box.right] = _raster(values, *limits, scale, box)
    left = box.right + _GAP * _DENSITY
    ramp = _COLOUR + np.linspace(_COLOURS - 1, 0, box.bottom - box.top).astype(np.uint8)
    pixels[box.top : box.bottom, left : left + _BAR * _DENSITY] = ramp[:, None]
    for label, at in zip(labels, (height - 5, height / 2, 5), strict=True):  # low, middle, high
        _write(pixels, label, layout.left + layout.axis + _GAP + _BAR + 5, _TOP + at, layout.text - 0.5)
    return pixels, box


def _place(values: np.ndarray, scale: Scale) -> str:
    """Where the largest value lies, in words."""
    row, column = np.unravel_index(np.nanargmax(values), values.shape)
    f_stride, t_stride = (
        2 ** math.ceil(math.log2(of / cells))
        for cells, of in zip(values.shape, (len(scale.centres), scale.frames), strict=True)
    )
    seconds = min(column * t_stride * scale.hop, scale.seconds)
    return f"{scale.start + seconds:.1f} s and {kilohertz(scale.centres[min(row * f_stride, len(scale.centres) - 1)])}"


def bars(labels: Sequence[tuple[str, float]], *, layout: Layout = WIDE) -> Picture:
    """The (name, probability) pairs as bars from zero to the width that stands for 100 %."""
    row, thick, size = 28, 14, layout.text + 1.5
    left, right = layout.names, layout.width - 60
    pixels = np.zeros((row * len(labels) * _DENSITY, layout.width * _DENSITY), np.uint8)
    x0, x1 = left * _DENSITY, right * _DENSITY
    for k, (name, probability) in enumerate(labels):
        middle = row * k + row / 2
        top, bottom = round((middle - thick / 2) * _DENSITY), round((middle + thick / 2) * _DENSITY)
        pixels[top:bottom, x0:x1] = _INK + 3
        pixels[top:bottom, x0 : x0 + round((x1 - x0) * probability)] = _ACCENT + (_STEPS if k == 0 else 20)
        _write(pixels, name, left - 10, middle, size, bold=k == 0, align="right")
        _write(pixels, percent(probability), right + 8, middle, size, bold=k == 0)
    said = ", ".join(f"{name} {percent(probability)}" for name, probability in labels)
    return Picture(pixels, Box(x0, 0, x1, pixels.shape[0]), f"Bars from 0 to 100 %: {said}.")


def envelope(samples: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest sample of every column: (N,) and column edges (W + 1,) as sample numbers -> (W,), (W,).

    Each column also holds the first sample of the next one, so that the line is never broken and a click of a single
    sample never lost. Columns past the end of the sound are NaN.
    """
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
    box = _box(layout, height)
    width, tall = box.right - box.left, box.bottom - box.top
    edges = np.floor((start + np.arange(width + 1) * seconds / width) * rate + 1e-6).astype(np.intp)
    low, high = envelope(samples, edges)
    known = np.isfinite(high)
    peak = float(max(np.abs(low[known]).max(), np.abs(high[known]).max())) if known.any() else 0.0
    limit = peak if peak > 0 else 1.0
    ticks = ((0.0, _number(-limit)), (0.5, "0"), (1.0, _number(limit)))
    pixels = _frame(layout, height, _time_ticks(start, seconds, 6), ticks, False).copy()
    inner = pixels[box.top : box.bottom, box.left : box.right]
    middle = (tall - 1) / 2
    top = np.round(middle - np.where(known, high, 0) / limit * (middle - 2))
    foot = np.round(middle - np.where(known, low, 0) / limit * (middle - 2))
    y = np.arange(tall)[:, None]
    if mark is not None:
        a, b = (round((t - start) / seconds * width) for t in mark)
        inner[:, max(a, 0) : max(b, 0)] = _ACCENT + 6
    inner[(y >= top) & (y <= foot) & known] = _ACCENT + _STEPS
    _write(pixels, title, layout.left, _TOP / 2 - 1, layout.text + 0.5, bold=True)
    end = min(start + seconds, len(samples) / rate)
    alt = f"{title}, {start:g} to {end:.3g} s, largest sample {_number(peak)} of full scale"
    if peak > 0:
        loudest = np.nanargmax(np.fmax(np.abs(low), np.abs(high)))
        alt += f" at {start + loudest / width * seconds:.1f} s"
    return Picture(pixels, box, alt + ".")


def spectrogram(db: np.ndarray, scale: Scale, *, layout: Layout = WIDE, height: int = 176) -> Picture:
    """Mel spectrogram (F, T) in dB, low frequencies at the foot. The colours span the loudest 80 dB."""
    top = float(np.nanmax(db))
    low = float(np.nanmin(db))
    cut = low < top - 80
    low = top - 80 if cut else low
    labels = [f"{'< ' if cut else ''}{low:.0f}", f"{(low + top) / 2:.0f}", f"{top:.0f} dB"]
    labels = [label.replace("-", "−") for label in labels]
    pixels, box = _with_colour_bar(db, scale, layout, height, (low, top), labels)
    _write(pixels, "Mel spectrogram", layout.left, _TOP / 2 - 1, layout.text + 0.5, bold=True)
    band = f"{kilohertz(scale.centres[0])} to {kilohertz(scale.centres[-1])}"
    alt = f"Mel spectrogram, {scale.start:g} to {scale.start + scale.seconds:g} s, {band}, low frequencies at the foot"
    return Picture(pixels, box, f"{alt}; loudest ({labels[2]}) at {_place(db, scale)}.")


def feature_map(
    values: np.ndarray,
    scale: Scale,
    *,
    title: str,
    shape: tuple[int, ...],
    layout: Layout = WIDE,
    height: int = 104,
) -> Picture:
    """Channel means (f, t) of a tap of true size `shape` (C, f, t), with its own axes and colour bar."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    labels = [_number(low), _number((low + high) / 2), _number(high)] if high > low else [_number(low), "", ""]
    pixels, box = _with_colour_bar(values, scale, layout, height, (low, high), labels)
    size = f"{shape[0]} channels × {shape[1]} × {shape[2]}"
    end = _write(pixels, title, layout.left, _TOP / 2 - 1, layout.text + 0.5, bold=True)
    _write(pixels, size, end + 8, _TOP / 2 - 1, layout.text)
    alt = f"Feature map {title}, {size}, mean over the channels, from {labels[0]} to {_number(high)}"
    if high > low:
        alt += f"; strongest at {_place(values, scale)}"
    return Picture(pixels, box, alt + ".")


def tap_title(tap: str) -> str:
    """'layer1.block0.conv' -> 'layer1.block0, before ReLU'; stages keep their names."""
    block, _, place = tap.rpartition(".")
    when = {"conv": "before ReLU", "relu": "after ReLU"}.get(place)
    return f"{block}, {when}" if when else tap


def all_pictures(
    labels: Sequence[tuple[str, float]],
    samples: np.ndarray,
    rate: int,
    db: np.ndarray,
    maps: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    scale: Scale,
    *,
    layout: Layout = WIDE,
) -> dict[str, Picture]:
    """Every picture of an answer in reading order: bars, (clip,) waveform, spectrogram, then one per map by its tap.

    `samples` (N,) is the whole clip; 'clip' shows all of it with the window marked, where it is longer than a window.
    """
    pictures = {"bars": bars(labels, layout=layout)}
    total = len(samples) / rate
    if total > scale.seconds + 0.01:
        mark = (scale.start, scale.start + scale.seconds)
        pictures["clip"] = waveform(
            samples, rate, seconds=total, mark=mark, title="Whole clip", layout=layout, height=44
        )
    pictures["waveform"] = waveform(samples, rate, seconds=scale.seconds, start=scale.start, layout=layout)
    pictures["spectrogram"] = spectrogram(db, scale, layout=layout)
    for tap, values in maps.items():
        pictures[tap] = feature_map(values, scale, title=tap_title(tap), shape=shapes[tap], layout=layout)
    return pictures
