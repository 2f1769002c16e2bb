"""What pictures are drawn on: palette, layouts, letters, frames with ticks, and the PNG that comes of them.

matplotlib draws frames, ticks and letters once per layout (Figure and Agg, never pyplot). A picture is held as palette
numbers: a light and a dark page share the pixels and differ in the palette alone. Lengths in CSS pixels unless the
name says device.
"""

import math
import struct
import zlib
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
STEPS = 32
INK_AT, ACCENT_AT, COLOUR = 0, STEPS, 2 * STEPS + 1  # ink is INK_AT + 1..32, accent ACCENT_AT + 1..32
COLOURS = 256 - COLOUR

DENSITY = 2  # device pixels per CSS pixel
_DPI = 72 * DENSITY  # so that one point is one CSS pixel

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
NARROW = Layout(width=360, left=46, right=66, names=118, text=12)
GAP, BAR = 10, 12  # between raster and colour bar; width of the colour bar
TOP, FOOT = 24, 22  # title above the raster, tick labels below
SMALLEST = 7.0  # letters that have too little room do not get smaller than this


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
        return self.pixels.shape[1] // DENSITY

    @property
    def height(self) -> int:
        return self.pixels.shape[0] // DENSITY

    def png(self, theme: str = "light") -> bytes:
        """The picture as an indexed PNG for a 'light' or a 'dark' page (its own background is transparent), or on
        'paper': white, for a file that a viewer shows on whatever it likes."""
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
    ramp = np.arange(1, STEPS + 1) / STEPS
    for base, by_theme in ((INK_AT, INK), (ACCENT_AT, ACCENT)):
        colours[base + 1 : base + STEPS + 1] = by_theme["light" if theme == "paper" else theme]
        alphas[base + 1 : base + STEPS + 1] = np.round(ramp * 255)
    colours[COLOUR:] = np.round(colormaps[COLOUR_MAP](np.linspace(0, 1, COLOURS))[:, :3] * 255)
    if theme == "paper":
        colours = np.round(255 - (255.0 - colours) * alphas[:, None] / 255).astype(np.uint8)
        alphas[:] = 255
    return colours.tobytes(), alphas.tobytes()


# ---- letters and frames, drawn by matplotlib once and kept


def _strength(alpha: np.ndarray) -> np.ndarray:
    """Opacity 0..255 -> palette numbers of the ink."""
    return ((alpha.astype(np.uint16) * STEPS + 127) // 255).astype(np.uint8)


@lru_cache(maxsize=2048)
def _letters(text: str, size: float, bold: bool) -> np.ndarray:
    """A line of text as ink (h, w); its baseline lies a quarter of the height above the foot, whatever the letters."""
    font = FontProperties(family=_FAMILY, size=size, weight=700 if bold else 400)
    ruler = RendererAgg(8, 8, _DPI)
    width, _, _ = ruler.get_text_width_height_descent(text, font, False)
    height = round(size * 1.4 * DENSITY)
    pen = RendererAgg(math.ceil(width) + 4, height, _DPI)
    pen.draw_text(pen.new_gc(), 1, height * 0.75, text, font, 0)
    return _strength(np.asarray(pen.buffer_rgba())[..., 3])


def write(
    pixels: np.ndarray, text: str, x: float, y: float, size: float, *, bold: bool = False, align: str = "left"
) -> float:
    """Write with the middle of the line at (x, y); returns where the line ends.

    A line that would reach beyond the picture's edge is written smaller.
    """
    room = pixels.shape[1] - x * DENSITY if align == "left" else x * DENSITY
    ink = _letters(text, size, bold)
    while ink.shape[1] > room and size > SMALLEST:
        size -= 0.5
        ink = _letters(text, size, bold)
    left = round(x * DENSITY) - {"left": 0, "right": ink.shape[1]}[align]
    top = round(y * DENSITY) - ink.shape[0] // 2
    left, top = max(left, 0), max(top, 0)
    place = pixels[top : top + ink.shape[0], left : left + ink.shape[1]]
    np.maximum(place, ink[: place.shape[0], : place.shape[1]], out=place)
    return (left + ink.shape[1]) / DENSITY


Ticks = tuple[tuple[float, str], ...]  # place on the axis 0..1, label


@lru_cache(maxsize=32)
def frame(layout: Layout, height: int, x_ticks: Ticks, y_ticks: Ticks, colour_bar: bool) -> np.ndarray:
    """Axes with ticks, and the colour bar's, around a raster of `height`: palette numbers of the whole picture."""
    full = TOP + height + FOOT
    figure = Figure(figsize=(layout.width / 72, full / 72), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    place = (layout.left / layout.width, FOOT / full, layout.axis / layout.width, height / full)
    axes = [figure.add_axes(place)]
    axes[0].set(xlim=(0, 1), ylim=(0, 1))
    axes[0].set_xticks([x for x, _ in x_ticks], [label for _, label in x_ticks])
    axes[0].set_yticks([y for y, _ in y_ticks], [label for _, label in y_ticks])
    if colour_bar:
        left = (layout.left + layout.axis + GAP) / layout.width
        axes.append(figure.add_axes((left, place[1], BAR / layout.width, place[3])))
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


def box_of(layout: Layout, height: int) -> Box:
    """Where a raster of `height` lies in its frame."""
    return Box(
        layout.left * DENSITY,
        TOP * DENSITY,
        (layout.left + layout.axis) * DENSITY,
        (TOP + height) * DENSITY,
    )
