"""The Inside tab: every corner of the network while it listens to the sound in hand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from cnn.anatomy import Anatomy
from cnn.classifier import Prediction
from cnn.inside import Look
from cnn.labels import spoken
from cnn.pictures import percent
from cnn.serve.remote import Network
from cnn.ui import panels
from cnn.ui.compare import build_comparison
from cnn.ui.endpoints import NETWORK, PLACES
from cnn.ui.figures import scale_of, transport
from cnn.ui.glass import Glass
from cnn.ui.guests import MAX_FILE, Guests
from cnn.ui.keep import InHand
from cnn.ui.listen import KEPT, NARROW_SCREEN, Hand
from cnn.ui.moments import moments
from cnn.ui.said import FORGOTTEN, NoSuch, alert, busy, page_view, told
from cnn.ui.stops import HEAD, PICTURE, PYRAMID, Step, stages, stop_title, stop_words, walk
from cnn.ui.strip import asking, strip

EMPTY = """
<div class="empty"><h2>First, a sound</h2>
<p>Hear one on the <b>Listen</b> tab. Here you then see the network at work on it, from the first filter to the name:
every layer, every block and every channel.</p></div>
"""
PAGES, OWN = "the page's network", "your own network"
ASKING = """
window.addEventListener("inside-ask", (event) => { if (element.isConnected) trigger("select", event.detail); });
"""  # whatever is clicked in this tab comes this way (assets/inside.js)
IS_OPEN = "!!document.getElementById('inside')?.offsetParent"


@dataclass(frozen=True)
class View:
    """Where a visitor stands."""

    stop: str = "conv1"  # 'picture', a stage, a part of it ('layer2.block0', 'fpn.p1') or 'head'
    before: bool = False  # of a block, the sum before its last ReLU
    channel: int | None = None  # large; None: the mean
    step: int | None = None  # of the walk


@dataclass(eq=False)
class Room:
    """What one visitor looks at: a sound and the network that hears it. Looks are kept while it is open."""

    hand: InHand
    token: str | None  # of a visitor's own network; None: the page's
    through: Callable[[], Glass]  # asked anew each time: what is kept here must not keep a guest's network alive
    prediction: Prediction
    anatomy: Anatomy
    view: View = View()
    looks: dict[tuple, Look] = field(default_factory=dict)
    widest: tuple[float, float] | None = None

    @property
    def glass(self) -> Glass:
        """Raises NotAtHand where a guest's network has gone."""
        return self.through()

    def look(self, tap: str, label: str, channel: int | None = None) -> Look:
        """With the channels that count most; with `channel`, with that one alone."""
        key = (tap, label, channel)
        if key not in self.looks:
            while len(self.looks) >= 12:
                del self.looks[next(iter(self.looks))]
            chosen = () if channel is None else (channel,)
            self.looks[key] = self.glass.look(
                self.prediction.clip, tap, label=label, window=self.prediction.window, channels=chosen
            )
        return self.looks[key]

    def ruler(self, narrow: bool, colours: str) -> panels.Ruler:
        if colours == panels.NETWORK and self.widest is None:
            self.widest = self.glass.widest(self.prediction.clip, self.prediction.window)
        return panels.Ruler(scale_of(self.prediction), narrow, colours, self.widest)


def build_inside_tab(
    classifier: Callable[[], Network], hand: Hand, tab: gr.Tab, box: Callable[[str], Callable[[], Network]]
) -> None:
    """Lay out and connect the tab in the Blocks at hand. Nothing is computed until `tab` is opened. `box` as in
    build_page."""
    guests = Guests()
    room = gr.State(None, time_to_live=KEPT)
    own = gr.State(None, time_to_live=KEPT, delete_callback=guests.dismiss)  # the token of a visitor's network
    asker = gr.HTML("", elem_id="inside-asker", js_on_load=ASKING)
    with gr.Column(elem_id="inside"):
        status = gr.HTML("", elem_id="inside-status")
        empty = gr.HTML(EMPTY, elem_id="inside-empty")
        with gr.Column(visible=False, elem_id="inside-desk") as desk:
            top = gr.HTML(elem_id="inside-top")
            gr.HTML(transport(), elem_id="inside-clock", elem_classes="clock")
            with gr.Row(elem_id="inside-view"):
                with gr.Column(elem_id="inside-pictures", min_width=300):
                    sound = gr.HTML(elem_id="inside-sound")
                    large = gr.HTML(elem_id="inside-large")
                stop = gr.HTML(elem_id="inside-stop")
            with gr.Row(elem_id="inside-choices") as choices:
                label = gr.Dropdown([], label="Which channels count for", elem_id="inside-label", filterable=True)
                colours = gr.Radio(
                    [("each map's own", panels.OWN), ("one for this layer", panels.LAYER),
                     ("one for the network", panels.NETWORK)],
                    value=panels.OWN, label="Colour scale", elem_id="inside-colours",
                )  # fmt: skip
            below = gr.HTML(elem_id="inside-below")
        build_comparison(classifier, hand, guests, own, status, box)
        with gr.Accordion("Your own network", open=False, elem_id="inside-own"):
            gr.HTML(
                f"<p>Load a <code>best_model.pth</code> that was trained with this project (at most "
                f"{MAX_FILE / 1e6:.0f} MB). Only weights and plain values are read from it, no code is run. It is for "
                "you alone and is forgotten after an hour, or earlier if other visitors bring theirs.</p>"
            )
            with gr.Row():
                file = gr.File(label="best_model.pth", file_types=[".pth"], type="filepath", elem_id="inside-file")
                which = gr.Radio([PAGES], value=PAGES, label="Look into", elem_id="inside-network", visible=False)
            loaded = gr.HTML("", elem_id="inside-loaded")
    narrow, is_open = gr.Checkbox(visible=False), gr.Checkbox(visible=False)  # the browser knows
    outputs = [status, empty, desk, top, sound, large, stop, choices, label, below, room]

    def enter(
        kept: InHand | None,
        before: Room | None,
        network: str,
        token: str | None,
        scale: str,
        is_narrow: bool,
        is_shown: bool = True,
    ) -> Iterator[dict[Any, Any]]:
        """Another sound or another network: all is drawn anew, at the same stop if there is one."""
        token = None if network == PAGES else token or ""
        if not is_shown or (before and before.hand is kept and before.token == token):
            yield {status: gr.skip()}
            return
        if kept is None or kept.prediction.verdict != "named":
            said = "" if kept is None else "<p>There was nothing to hear in this sound, so nothing to see here.</p>"
            yield {status: said, empty: gr.HTML(EMPTY, visible=True), desk: gr.Column(visible=False), room: None}
            return
        yield {status: busy("Opening the network")}

        def draw() -> dict[Any, Any]:
            if token is None:
                seen, prediction = page_view(classifier, kept.prediction)
            else:
                seen = guests.seen(token)
                prediction = seen.predict(kept.prediction.clip)
            through = partial(guests.seen, token) if token else lambda: seen
            entered = Room(kept, token, through, prediction, seen.anatomy())
            if before and _is_stop(before.view.stop, entered.anatomy):
                entered.view = replace(before.view, channel=None, step=None)
            choices = [(f"{spoken(x.name)} ({percent(x.probability)})", x.name) for x in prediction.labels]
            best = prediction.labels[0].name
            return {
                empty: gr.HTML(visible=False), desk: gr.Column(visible=True), room: entered,
                label: gr.Dropdown(choices, value=best), top: _headline(entered) + strip(entered.anatomy, prediction),
                sound: panels.sound_picture(prediction, entered.ruler(is_narrow, scale)),
            } | show(entered, best, scale, is_narrow)  # fmt: skip

        yield from told(draw, status)

    def answer(
        event: gr.EventData, entered: Room | None, name: str, scale: str, is_narrow: bool
    ) -> Iterator[dict[Any, Any]]:
        """What a click in the tab asks for."""
        if entered is None:
            yield {status: alert(FORGOTTEN)}
            return
        asked = event._data if isinstance(event._data, dict) else {}
        yield {status: busy("Looking")}

        def move() -> dict[Any, Any]:
            entered.view = _moved(entered.view, asked, entered.anatomy, entered.prediction.labels[0].name)
            return show(entered, name, scale, is_narrow)

        yield from told(move, status)

    def again(entered: Room | None, name: str, scale: str, is_narrow: bool) -> Iterator[dict[Any, Any]]:
        """Another class or another colour scale."""
        if entered is None:
            yield {status: gr.skip()}
            return
        yield {status: busy("Looking")}
        yield from told(lambda: show(entered, name, scale, is_narrow), status)

    def show(entered: Room, name: str, scale: str, is_narrow: bool) -> dict[Any, Any]:
        shown = _shown(entered, name, entered.ruler(is_narrow, scale))
        done = f'<p role="status" class="unseen">{escape(stop_title(entered.view.stop, entered.anatomy))} is open.</p>'
        chosen = gr.Row(visible=tap_of(entered.view, entered.anatomy) is not None)
        return {large: shown[0], stop: shown[1], choices: chosen, below: shown[2], status: done}

    def bring(path: str | None, token: str | None) -> tuple[Any, ...]:
        """Load a visitor's own file; the one before goes."""
        if path is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        name = Path(path).name
        try:
            admitted = guests.admit(Path(path), name)
        except ValueError as error:  # CheckpointError is one; others are settings that no network can run with
            return alert(f"{error}."), gr.skip(), gr.skip(), None
        finally:
            Path(path).unlink(missing_ok=True)  # in memory or refused: nothing of it stays on the disk
        guests.dismiss(token)
        radio = gr.Radio([PAGES, OWN], value=OWN, visible=True)
        return f'<p role="status">{escape(name)} is loaded, for you alone.</p>', admitted, radio, None

    quiet = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
    quiet |= {"concurrency_id": NETWORK, "concurrency_limit": PLACES}
    entering = [hand.state, room, which, own, colours, narrow, is_open]
    going = f"(...all) => [...all.slice(0, 5), {NARROW_SCREEN}, {IS_OPEN}]"
    tab.select(enter, entering, outputs, js=going.replace(IS_OPEN, "true"), api_name="inside", **quiet)
    for event in hand.heard:
        event.then(enter, entering, outputs, js=going, api_name=None, **quiet)
    which.input(enter, entering, outputs, js=going, api_name="inside_network", **quiet)
    viewing = [room, label, colours, narrow]
    looking = f"(...all) => [...all.slice(0, 3), {NARROW_SCREEN}]"
    asker.select(answer, viewing, outputs, js=looking, api_name="inside_look", **quiet)
    for choice in (label, colours):
        choice.input(again, viewing, outputs, js=looking, api_name=f"inside_{choice.elem_id}", **quiet)
    file.upload(
        bring, [file, own], [loaded, own, which, file], api_name="inside_load", api_visibility="private",
        concurrency_limit=1, show_progress="minimal",
    ).success(enter, entering, outputs, js=going, api_name=None, **quiet)  # fmt: skip


def _is_stop(name: str, anatomy: Anatomy) -> bool:
    known = {PICTURE, HEAD, *(part.stage for part in anatomy.parts), *(part.name for part in anatomy.parts)}
    return name in known


def _moved(view: View, asked: dict[str, Any], anatomy: Anatomy, label: str) -> View:
    """Where a click leads. Raises NoSuch for what no button of this page asks."""
    if "walk" in asked:
        return _walked(view, asked["walk"], walk(anatomy, label))
    if "open" in asked:
        stop = asked["open"]
        if not isinstance(stop, str) or not _is_stop(stop, anatomy):
            raise NoSuch("This network has no such stop.")
        return replace(view, stop=stop, before=False, channel=None)
    if "before" in asked:
        return replace(view, before=asked["before"] is True)
    channel = asked.get("channel")
    tap = tap_of(view, anatomy)
    count = next((p.shape[0] for p in anatomy.parts if tap in p.taps), 0)
    if channel is not None and (type(channel) is not int or not 0 <= channel < count):
        raise NoSuch(f"There are channels 0 to {count - 1} here.")
    return replace(view, channel=channel)


def _walked(view: View, how: Any, steps: tuple[Step, ...]) -> View:
    if how == "end":
        return replace(view, step=None)
    at = 0 if how == "begin" or view.step is None else view.step + (1 if how == "next" else -1)
    at = min(max(at, 0), len(steps) - 1)
    return View(stop=steps[at].stop, channel=-1 if steps[at].strongest else None, step=at)


def tap_of(view: View, anatomy: Anatomy) -> str | None:
    """The tap that a stop shows: of a pyramid its finest level, of the head the last map before it; none of the
    picture and of gates."""
    if view.stop == PICTURE or view.stop.endswith(".se"):
        return None
    if view.stop == PYRAMID:
        return "fpn.p1"
    if view.stop == HEAD:
        return stages(anatomy)[-1]
    part = next((part for part in anatomy.parts if part.name == view.stop), None)
    if part is None or part.kind != "block":
        return view.stop
    return part.taps[0 if view.before else 1]


def _shown(room: Room, name: str, ruler: panels.Ruler) -> tuple[str, str, str]:
    """HTML of the large map, of the words beside it, and of what lies below."""
    view, anatomy, prediction = room.view, room.anatomy, room.prediction
    words = _words(room, name)
    tap = tap_of(view, anatomy)
    if view.stop.endswith(".se"):
        return _gates(room, ruler, name), words, ""
    if tap is None:
        return "", words, ""
    look = room.look(tap, name)
    if view.stop == HEAD:
        return panels.mean_map(look, ruler), words, panels.head(prediction, look)
    if view.channel == -1:  # the walk asks for the one that counts most
        room.view = view = replace(view, channel=int(look.shares.argmax()))
    large = panels.mean_map(look, ruler)
    if view.channel is not None:
        channel = next((c for c in look.channels if c.index == view.channel), None)
        channel = channel or room.look(tap, name, view.channel).channels[0]
        large = panels.large_channel(channel, look, ruler)
    below = panels.channels(look, ruler, view.channel)
    if view.stop == "conv1":
        below += panels.kernels(room.glass.kernels(), view.channel)
    if view.stop.split(".")[0] == PYRAMID:
        levels = {t: v for t, v in prediction.maps.items() if t.startswith(f"{PYRAMID}.")}
        below = panels.pyramid(levels, anatomy, ruler, tap) + below
    if view.channel is not None:
        below = _excites(room, tap, view.channel, channel.high) + below
    return large, words, below


def _excites(room: Room, tap: str, channel: int, here: float) -> str:
    atlas, why = room.glass.atlas()
    if atlas is None:
        return f'<p class="legend">{escape(why)}</p>'
    if tap not in atlas.excites:
        return ""
    return panels.excites(moments(atlas, tap, channel), here, tap, channel)


def _gates(room: Room, ruler: panels.Ruler, name: str) -> str:
    tap = room.view.stop
    now = room.glass.gates(room.prediction.clip, room.prediction.window)[tap]
    atlas, _ = room.glass.atlas()
    return panels.gates(now, atlas.gates.get(tap) if atlas else None, tap)


def _words(room: Room, name: str) -> str:
    """Title, two or three sentences, what it costs, and the walk."""
    view, anatomy, mel = room.view, room.anatomy, room.prediction.mel_config
    said = stop_words(view.stop, anatomy, mel, len(room.prediction.labels))
    about = panels.facts(view.stop, anatomy, mel)
    turn = ""
    part = next((part for part in anatomy.parts if part.name == view.stop), None)
    if part is not None and part.kind == "block":
        turn = '<div class="ways">' + "".join(
            f'<button type="button" aria-pressed="{str(view.before is before).lower()}" {asking(before=before)}>'
            f"{'before' if before else 'after'} ReLU</button>"
            for before in (True, False)
        ) + "</div>"  # fmt: skip
    tap = tap_of(view, anatomy) or ""
    seen = anatomy.fields.get(tap)
    sees = f'data-tap="{tap}" data-field="{seen.stride} {seen.size} {seen.start}"' if seen else ""
    return (
        f'<section class="stop-words" data-open="{escape(view.stop)}" data-room="{id(room):x}" {sees}>'
        f"<h2>{escape(stop_title(view.stop, anatomy))}</h2><p>{escape(said)}</p>{turn}"
        f'<p id="inside-field" aria-live="polite"></p>{about}'
        f"{_walk(view, walk(anatomy, room.prediction.labels[0].name))}</section>"
    )


def _walk(view: View, steps: tuple[Step, ...]) -> str:
    if view.step is None:
        return (
            f'<aside class="walk"><h3>Five minutes, {len(steps)} stops</h3><p>A guided walk through this sound, from '
            f'the picture to the name.</p><button type="button" class="next" {asking(walk="begin")}>Begin the walk'
            "</button></aside>"
        )
    last = view.step == len(steps) - 1
    ways = [("Back", "back")] * (view.step > 0) + [("End the walk", "end")] + [("Next", "next")] * (not last)
    buttons = "".join(
        f'<button type="button" class="{"next" if how == "next" or (last and how == "end") else ""}" '
        f"{asking(walk=how)}>{text}</button>"
        for text, how in ways
    )
    return (
        f'<aside class="walk"><h3>Walk, stop {view.step + 1} of {len(steps)}</h3>'
        f'<p>{escape(steps[view.step].task)}</p><div class="ways">{buttons}</div></aside>'
    )


def _headline(room: Room) -> str:
    prediction = room.prediction
    best, start = prediction.labels[0], float(prediction.starts[prediction.window])
    window = f"{start:.1f} to {start + prediction.mel_config.seconds:.1f} s"
    whose = "" if room.token is None else " (your own)"
    return (
        f'<header class="inside-head"><h2>{escape(room.hand.name)}</h2><p>{escape(spoken(best.name))}, '
        f"{percent(best.probability)} sure · {window} · {escape(prediction.network)}{whose} "
        f"on {escape(prediction.device)}</p></header>"
    )
