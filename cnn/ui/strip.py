"""The network as a row of stops that can be clicked, each with what it made of the sound in hand."""

import base64
import json
import math
from collections import defaultdict
from html import escape

import numpy as np

from cnn.anatomy import Anatomy, Part
from cnn.canvas import COLOUR, COLOURS, Box, Picture
from cnn.classifier import Prediction
from cnn.labels import spoken
from cnn.pictures import percent
from cnn.ui.stops import HEAD, PICTURE, PYRAMID, stop_title

SLAB, FLATTER = (84, 46), 0.35  # CSS pixels of the picture's slab; how much of a map's smallness a slab shows


def asking(**what: object) -> str:
    """Attributes of an element that asks for `what` when it is clicked (assets/inside.js)."""
    return f'data-ask="{escape(json.dumps(what))}"'


def strip(anatomy: Anatomy, prediction: Prediction) -> str:
    """From the picture to the name: shape, parameters and multiply-adds of every stage, and a button for each of its
    blocks and gates."""
    by_stage: dict[str, list[Part]] = defaultdict(list)
    for part in anatomy.parts:
        by_stage[part.stage].append(part)
    bins, frames = anatomy.picture
    mel = prediction.mel if prediction.mel is not None else np.zeros((1, 1))
    slab = _slab(mel, (1, bins, frames), anatomy)
    stops = [_stop(PICTURE, slab, f"{bins} × {frames}", "no parameters<br>to be learned", "")]
    for stage, parts in by_stage.items():
        numbers = [short(sum(p.parameters for p in parts)), short(sum(p.multiply_adds for p in parts))]
        costs = f"{numbers[0]} parameters<br>{numbers[1]} multiply-adds"
        if stage == HEAD:
            best = prediction.labels[0]
            name = f'<span class="slab-name"><b>{escape(spoken(best.name))}</b>{percent(best.probability)}</span>'
            stops.append(_stop(HEAD, name, f"{parts[0].shape[0]} names", costs, ""))
            continue
        of_maps = [part for part in parts if part.kind != "gate"]
        tap = of_maps[0 if stage == PYRAMID else -1].taps[-1]
        channels, f, t = shape = next(part.shape for part in of_maps if tap in part.taps)
        chips = _chips("levels" if stage == PYRAMID else "blocks", of_maps) if stage != "conv1" else ""
        chips += _chips("gates", [part for part in parts if part.kind == "gate"])
        slab = _slab(prediction.maps[tap], shape, anatomy)
        stops.append(_stop(stage, slab, f"{channels} × {f} × {t}", costs, chips, anatomy))
    whole = f"{short(anatomy.parameters)} parameters, {short(anatomy.multiply_adds)} multiply-adds for one window"
    return (
        f'<nav class="strip" aria-label="The network from the picture to the name"><ol>{"".join(stops)}</ol></nav>'
        f'<p class="legend">Each stop shows the mean over its channels. Sizes are channels × rows × columns. In all '
        f"{whole}: each is one number times another, added to a sum.</p>"
    )


def short(number: float) -> str:
    """Three significant digits: '9.41 k', '21.3 M', '3.6 G'."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def _stop(stop: str, slab: str, shape: str, costs: str, chips: str, anatomy: Anatomy | None = None) -> str:
    name = {PICTURE: "picture", HEAD: "name", PYRAMID: "pyramid"}.get(stop, stop)
    label = stop_title(stop, anatomy) if anatomy else name
    return (
        f'<li><button type="button" class="stop" {asking(open=stop)} title="{escape(label)}">'
        f'<span class="slab-place">{slab}</span><b>{escape(name)}</b><span class="shape">{shape}</span>'
        f'<span class="costs">{costs}</span></button>{chips}</li>'
    )


def _chips(what: str, parts: list[Part]) -> str:
    """One small button per block, gate or level."""
    if not parts:
        return ""
    buttons = "".join(
        f'<button type="button" class="chip" {asking(open=part.name)} '
        f'aria-label="{escape(_said(what, k, part))}">{k}</button>'
        for k, part in enumerate(parts, start=1)
    )
    return f'<div class="chips"><span>{what}</span><div>{buttons}</div></div>'


def _said(what: str, number: int, part: Part) -> str:
    inside = {"blocks": f"Block {number}", "gates": f"Gates of block {number}", "levels": f"Level {number}"}[what]
    return f"{inside} of {'the pyramid' if what == 'levels' else part.stage}"


def _slab(values: np.ndarray, shape: tuple[int, ...], anatomy: Anatomy) -> str:
    """The map itself, smaller the fewer its cells and thicker the more its channels."""
    channels, f, t = shape
    width, height = (
        round(full * (cells / of) ** FLATTER)
        for full, cells, of in zip(SLAB, (t, f), anatomy.picture[::-1], strict=True)
    )
    plates = max(round(math.log2(channels)) - 3, 0)
    shadow = ", ".join(f"{2 * k}px -{2 * k}px 0 0 var(--plate-{k % 2})" for k in range(1, plates + 1))
    return (
        f'<img class="slab" alt="" width="{width}" height="{height}" src="{tiny(values)}" '
        f'style="box-shadow: {shadow or "none"}">'
    )


def tiny(values: np.ndarray) -> str:
    """(f, t), lowest frequency first, as an image of one pixel per cell in its own colours: a data URL."""
    low, high = float(values.min()), float(values.max())
    numbers = (values - low) / ((high - low) or 1.0) * (COLOURS - 1) + COLOUR + 0.5
    pixels = np.ascontiguousarray(numbers.astype(np.uint8)[::-1])
    picture = Picture(pixels, Box(0, 0, pixels.shape[1], pixels.shape[0]), "")
    return f"data:image/png;base64,{base64.b64encode(picture.png('light')).decode()}"
