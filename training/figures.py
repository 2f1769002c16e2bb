"""Pictures of a cross-validation: confusion matrix, reliability diagram, training curves.

Each is a Figure on matplotlib's Agg, never pyplot, of what `training.evaluate.recompute` or a run's log gives. White
paper: they are looked at in a report, a README and a model card.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cnn.canvas import ACCENT, COLOUR_MAP, INK  # and, by its import, the project's typeface
from cnn.labels import ESC50, spoken
from training.evaluate import wilson

DPI = 144
GROUPS = ("animals", "nature", "people", "indoors", "outdoors")  # ESC-50's five major categories, ten classes each
_INK, _ACCENT = (to_hex([x / 255 for x in colour["light"]]) for colour in (INK, ACCENT))
_FAINT = "#d8dae2"
_FOLDS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by colour-blind eyes (Okabe, Ito 2008)
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # and without colour
_STYLE = {
    "font.family": ["Atkinson Hyperlegible Next", "DejaVu Sans"],
    "font.size": 10, "axes.edgecolor": _INK, "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _INK,
    "ytick.color": _INK, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
}  # fmt: skip


def confusion_matrix(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """Counts (N, N), true class by row; colours show the share of the class, numbers the clips.

    The classes stay in ESC-50's order, which keeps those of one category together.
    """
    counts = np.asarray(confusion)
    n = len(labels)
    share = counts / counts.sum(axis=1, keepdims=True).clip(1)
    side = max(3.0, 0.2 * n)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(side + 2.5, side + 1.7), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        # the square root: one clip of forty is to be seen at all; where there is none, the paper shows
        norm = PowerNorm(0.5, 0, 1)
        shown = axes.imshow(np.ma.masked_equal(share, 0), cmap=f"{COLOUR_MAP}_r", norm=norm, interpolation="nearest")
        names = [spoken(name) for name in labels]
        axes.set_xticks(range(n), names, rotation=90, fontsize=8.5)
        axes.set_yticks(range(n), names, fontsize=8.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for i, j in zip(*counts.nonzero(), strict=True):
            colour = "white" if share[i, j] > 0.2 else _INK
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=6.5, color=colour)
        axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=_FAINT, linewidth=0.3)
        axes.tick_params(which="minor", length=0)
        category = [ESC50.index(name) // 10 if name in ESC50 else len(GROUPS) for name in labels]
        starts = [i for i in range(n) if i == 0 or category[i] != category[i - 1]]
        for start, end in zip(starts, [*starts[1:], n], strict=True):
            if start:
                axes.axhline(start - 0.5, color=_INK, linewidth=0.8)
                axes.axvline(start - 0.5, color=_INK, linewidth=0.8)
            if category[start] < len(GROUPS) and end - start > 2:
                middle, name = (start + end - 1) / 2, GROUPS[category[start]]
                axes.text(middle, -1.0, name, ha="center", va="bottom", fontsize=9, color=_ACCENT)
        axes.set_ylabel("what the clip is")
        axes.set_xlabel("what the network named")
        bar = figure.colorbar(shown, ax=axes, shrink=0.4, aspect=30, pad=0.01, ticks=[0, 0.025, 0.1, 0.25, 0.5, 1])
        bar.ax.set_yticklabels(["0", "2.5 %", "10 %", "25 %", "50 %", "100 %"])
        bar.set_label("of the class's clips")
        bar.outline.set_visible(False)
        return _laid_out(figure)


def reliability_diagram(bins: Sequence[Mapping[str, Any]], ece: float) -> Figure:
    """Accuracy of the clips by the probability of their top class, with 95 % intervals; below, how many clips."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 6.4), dpi=DPI, layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle="--")
        upper.text(0.5, 0.53, "as sure as right", ha="center", va="bottom", rotation=45, rotation_mode="anchor",
                   transform_rotates_text=True, fontsize=9)  # fmt: skip
        for row in bins:
            if row["n"]:
                low, high = wilson(round(row["accuracy"] * row["n"]), row["n"])
                upper.plot([row["confidence"]] * 2, [low, high], color=_ACCENT, linewidth=1.5, clip_on=False)
                upper.plot(row["confidence"], row["accuracy"], "o", color=_ACCENT, markersize=6, clip_on=False)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="named rightly")
        upper.set_title(f"Expected calibration error {100 * ece:.1f} points", fontsize=11)
        places = [(row["from"] + row["to"]) / 2 for row in bins]
        counts = [row["n"] for row in bins]
        lower.bar(places, counts, width=0.9 / len(bins), color=_ACCENT)
        for place, count in zip(places, counts, strict=True):
            lower.text(place, count, str(count), ha="center", va="bottom", fontsize=7.5)
        lower.set(ylabel="clips", xlabel="probability of the class named", ylim=(0, 1.15 * max(counts)))
        lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        for axes, which in ((upper, "xy"), (lower, "x")):
            for axis in which:
                getattr(axes, f"set_{axis}ticks")(np.linspace(0, 1, 6), ["0", "20 %", "40 %", "60 %", "80 %", "100 %"])
        return _laid_out(figure)


def training_curves(logs: Mapping[int, Mapping[str, Sequence[tuple[int, float]]]]) -> Figure:
    """Loss, accuracy and learning rate by epoch, a line per fold held out; {fold: {tag: [(epoch, value)]}}.

    What was measured on an inner part of the training folds is a thin line. Single points are left out.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 7.6), dpi=DPI, layout="constrained")
        loss, accuracy, lr = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 1))
        for place, (fold, tags) in enumerate(sorted(logs.items())):
            colour, dash = _FOLDS[place % len(_FOLDS)], _DASHES[place % len(_DASHES)]
            for tag, points in sorted(tags.items()):
                axes = {"loss": loss, "accuracy": accuracy, "lr": lr}.get(tag.split("/")[-1])
                if axes is None or tag.count("/") > 1 or len(points) < 2:
                    continue
                main = tag in ("train/loss", "train/accuracy", "lr")
                epochs, values = zip(*points, strict=True)
                axes.plot(epochs, values, color=colour, linestyle=dash, linewidth=1.6 if main else 0.7,
                          label=f"fold {fold} held out" if tag == "train/loss" else None)  # fmt: skip
        _label(loss, "loss")
        _label(accuracy, "accuracy")
        _label(lr, "learning rate")
        accuracy.set_ylim(0, 1)
        accuracy.set_yticks(np.linspace(0, 1, 6), ["0", "20 %", "40 %", "60 %", "80 %", "100 %"])
        lr.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=True)
        lr.set_ylim(bottom=0)
        lr.set_xlim(left=0)
        lr.set_xlabel("epoch")
        lr.xaxis.set_major_locator(MaxNLocator(integer=True))
        if loss.lines:
            loss.legend(frameon=False, fontsize=9)
        return _laid_out(figure)


def _label(axes: Axes, text: str) -> None:
    axes.set_ylabel(text)
    axes.grid(color=_FAINT, linewidth=0.5)


def _laid_out(figure: Figure) -> Figure:
    """The figure with all its letters made, while the style holds."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it would be laid out again with every drawing
    return figure


def png(figure: Figure) -> bytes:
    """The same figure gives the same bytes."""
    file = io.BytesIO()
    figure.canvas.print_png(file, metadata={"Software": None})
    return file.getvalue()
