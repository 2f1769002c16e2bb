"""Compare what is in hand: with another sound on the same network, or with another network on the same sound. Side by
side, on the same axes and colours."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from cnn.anatomy import Anatomy
from cnn.audio import load
from cnn.canvas import NARROW, Layout
from cnn.classifier import Prediction
from cnn.labels import spoken
from cnn.pictures import Scale, bars, feature_map, percent, seconds_in_words, spectrogram
from cnn.serve.remote import Network
from cnn.ui.endpoints import NETWORK, PLACES, boxed
from cnn.ui.figures import figure, scale_of
from cnn.ui.glass import Glass, glass
from cnn.ui.guests import Guests
from cnn.ui.keep import EXAMPLES, InHand, examples
from cnn.ui.listen import NARROW_SCREEN, Hand
from cnn.ui.panels import plain
from cnn.ui.said import FORGOTTEN, alert, busy, page_view, told
from cnn.ui.strip import short

SIDE = Layout(width=430, left=44, right=62, names=118, text=12)  # two beside each other
OWN = "own"


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two."""

    name: str
    prediction: Prediction
    anatomy: Anatomy


def build_comparison(
    classifier: Callable[[], Network], hand: Hand, guests: Guests, own: gr.State, status: gr.HTML,
    box: Callable[[str], Callable[[], Network]],
) -> None:  # fmt: skip
    """Lay out and connect it in the Blocks at hand. `own` holds the token of a visitor's network; `box` as in
    build_page."""
    with gr.Accordion("Compare with another sound or another network", open=False, elem_id="inside-compare") as fold:
        other = gr.Dropdown([], label="Compare what is in hand with", value=None, elem_id="inside-other")
        result = gr.HTML(
            "<p>Both are then shown side by side, every pair of maps on the same axes and colours.</p>",
            elem_id="inside-compared",
        )
    narrow = gr.Checkbox(visible=False)  # the browser knows
    network = cache(box)  # by its folder; opened when it is first compared with

    def choices(kept: InHand | None, token: str | None) -> Any:
        """The examples but for what is in hand; the networks in the box but for the page's; the visitor's own."""
        skip = kept.example if kept else ""
        known = [(f"the sound: {spoken(clip['label'])}", f"sound:{k}") for k, clip in examples().items() if k != skip]
        known += [(f"the network: {told['name']}", f"network:{told['name']}") for told in boxed() if not is_page(told)]
        return gr.Dropdown([*known, *[("your own network", OWN)] * bool(token and guests.get(token))], value=None)

    def is_page(told: dict[str, Any]) -> bool:
        """Is the network in the box the page's? One that is elsewhere does not say."""
        if (known := getattr(classifier(), "checkpoint", None)) is None:
            return False
        ours = {"network": known.network, "accuracy": known.metrics.get("accuracy"), "fold": known.metrics.get("fold")}
        return ours.items() <= told.items()

    def through(what: str, token: str | None) -> tuple[str, Glass]:
        if what == OWN:
            return "your own network", guests.seen(token)
        name = what.removeprefix("network:")
        return name, glass(network(name)())

    def compare(what: str | None, kept: InHand | None, token: str | None, is_narrow: bool) -> Iterator[dict[Any, Any]]:
        if what is None:
            yield {status: ""}
            return
        if kept is None or kept.prediction.verdict != "named":
            yield {status: alert(FORGOTTEN)}
            return
        yield {status: busy("Comparing")}

        def work() -> dict[Any, Any]:
            seen, prediction = page_view(classifier, kept.prediction)
            here = Side(kept.name, prediction, seen.anatomy())
            if what.startswith("sound:"):
                clip = load(EXAMPLES / examples()[what.removeprefix("sound:")]["file"])
                there = Side(clip.name, seen.predict(clip), here.anatomy)
            else:
                name, through_it = through(what, token)
                there = Side(name, through_it.predict(kept.prediction.clip), through_it.anatomy())
                here = Side("this page's network", here.prediction, here.anatomy)
            return {result: side_by_side(here, there, NARROW if is_narrow else SIDE)}

        yield from told(work, status)

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    fold.expand(choices, [hand.state, own], other, api_name="inside_others", **quiet)
    own.change(choices, [hand.state, own], other, api_name="inside_others_and_own", **quiet)
    other.input(
        compare, [other, hand.state, own, narrow], [status, result], api_name="inside_compare",
        js=f"(...all) => [...all.slice(0, 3), {NARROW_SCREEN}]", trigger_mode="always_last", concurrency_id=NETWORK,
        concurrency_limit=PLACES, **quiet,
    )  # fmt: skip
    for event in hand.heard:  # what was compared is no longer in hand
        event.then(lambda: "", None, result, api_name=None, **quiet).then(
            choices, [hand.state, own], other, api_name=None, **quiet
        )  # fmt: skip


def side_by_side(here: Side, there: Side, layout: Layout) -> str:
    """Names, numbers and agreement, then the pictures in pairs."""
    sides = (here, there)
    heads = "".join(f"<h3>{escape(side.name)}</h3>" for side in sides)
    named = [side.prediction for side in sides]
    scales = [scale_of(prediction) for prediction in named]
    rows = [_pair(sides, [_bars(prediction, layout) for prediction in named])]
    rows.append(_pair(sides, [_sound(p, scale, layout) for p, scale in zip(named, scales, strict=True)]))
    stages = [tap for tap in here.prediction.maps if "." not in tap or tap.startswith("fpn.")]
    for tap in stages:
        maps = [prediction.maps.get(tap) for prediction in named]
        if any(values is None for values in maps):
            continue
        limits = (min(float(v.min()) for v in maps), max(float(v.max()) for v in maps))
        both = [
            figure(
                feature_map(values, scale, title=tap, shape=p.shapes[tap], layout=layout, height=74, limits=limits),
                scale=scale, values=values, tap=tap,
            )
            for values, p, scale in zip(maps, named, scales, strict=True)
        ]  # fmt: skip
        rows.append(_pair(sides, both) + (_alike(tap, *maps) if here.anatomy is not there.anatomy else ""))
    pairs = "".join(f'<div class="pair">{row}</div>' for row in rows)
    return f'<div class="pair">{heads}</div>{_numbers(sides)}<p>{_agreement(here, there)}</p>{pairs}'


def _pair(sides: tuple[Side, Side], pictures: list[str]) -> str:
    """Beside each other; where one lies below the other, on a phone, with whose each is."""
    return "".join(
        f'<div class="side" data-name="{escape(side.name)}">{picture}</div>'
        for side, picture in zip(sides, pictures, strict=True)
    )


def _bars(prediction: Prediction, layout: Layout) -> str:
    if prediction.verdict != "named":
        return f"<p>{escape(prediction.message)}</p>"
    return figure(bars([(spoken(x.name), x.probability) for x in prediction.labels[:3]], layout=layout))


def _sound(prediction: Prediction, scale: Scale, layout: Layout) -> str:
    floor = prediction.mel_config.floor_db
    picture = spectrogram(prediction.mel, scale, floor=floor, layout=layout, height=100)
    return figure(picture, scale=scale, values=prediction.mel, unit="dB")


def _numbers(sides: tuple[Side, Side]) -> str:
    """What each network is and costs; '' for two sounds on one."""
    if sides[0].anatomy is sides[1].anatomy:
        return ""
    rows = [
        ("network", [side.prediction.network for side in sides]),
        ("parameters", [short(side.anatomy.parameters) for side in sides]),
        ("multiply-adds for one window", [short(side.anatomy.multiply_adds) for side in sides]),
        ("time in the network", [_time(side.prediction) for side in sides]),
    ]
    cells = "".join(
        f'<tr><th scope="row">{what}</th>' + "".join(f"<td>{escape(value)}</td>" for value in values) + "</tr>"
        for what, values in rows
    )
    names = "".join(f'<th scope="col">{escape(side.name)}</th>' for side in sides)
    return f'<table class="compared"><tr><td></td>{names}</tr>{cells}</table>'


def _time(prediction: Prediction) -> str:
    spent = prediction.timings.get("network")
    return "not told" if spent is None else seconds_in_words(spent)


def _agreement(here: Side, there: Side) -> str:
    first, second = here.prediction, there.prediction
    if "named" not in (first.verdict, second.verdict) or not (first.labels and second.labels):
        return "One of the two was silent."
    p, q = ({x.name: x.probability for x in prediction.labels} for prediction in (first, second))
    common = sum(min(p[name], q.get(name, 0.0)) for name in p)
    best = [escape(spoken(prediction.labels[0].name)) for prediction in (first, second)]
    verdicts = f"Both say <b>{best[0]}</b>" if best[0] == best[1] else f"<b>{best[0]}</b> here, <b>{best[1]}</b> there"
    return (
        f"{verdicts}. Of the probability they hand out, {percent(common)} goes to the same names (100 % would be full "
        "agreement)."
    )


def _alike(tap: str, first: np.ndarray, second: np.ndarray) -> str:
    """How much two maps of the same sound look alike, in words; '' where their cells are not the same."""
    if first.shape != second.shape or not (first.std() and second.std()):
        return ""
    r = float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
    kind = "nearly the same" if r > 0.9 else "much alike" if r > 0.6 else "somewhat alike" if r > 0.3 else "different"
    return f'<p class="legend">{tap}: {kind} (correlation of the two maps {plain(r)}).</p>'
