"""The Why tab: the evidence for a name, to see and to hear; whether to believe it; what if the sound were another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from threading import Lock
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from cnn import cam
from cnn.anatomy import Anatomy
from cnn.audio import AudioError
from cnn.canvas import NARROW, WIDE
from cnn.classifier import Prediction
from cnn.explain import DEFAULT_METHOD, METHODS, Explanation, Part
from cnn.labels import spoken
from cnn.pictures import percent, seconds_in_words
from cnn.serve.glass import Glass, Network, NotAtHand
from cnn.ui import evidence
from cnn.ui.endpoints import NETWORK, PLACES, TOLD
from cnn.ui.evidence import title
from cnn.ui.figures import transport
from cnn.ui.keep import InHand, save, stem
from cnn.ui.listen import DOWNLOAD, KEPT, NARROW_SCREEN, Hand
from cnn.ui.said import FORGOTTEN, NoSuch, alert, busy, page_view, told
from cnn.ui.stops import part_of, stages
from cnn.ui.uploads import no_room
from cnn.ui.whatif import FORMS, TOOLS, moved, steps
from cnn.whatif import History, apply

EMPTY = """
<div class="empty"><h2>First, a sound</h2>
<p>Hear one on the <b>Listen</b> tab. Here you then see and hear which parts of it made the network say its name, and
whether that explanation can be believed.</p></div>
"""
ABOUT = """<h3>How it is tested</h3>
<p>The network points at what it goes by; that part of the sound can be played alone. To see whether it points at the
right thing, the network hears the part again without the rest, then the rest without the part, and a part of the same
size chosen at random. <b>Good evidence alone still gets the name, and without it the name is gone.</b></p>
"""
METHOD_WORDS = {
    "hirescam": "HiResCAM: how strongly every place answers, times how much that moves the score. It shows only what "
    "the layer uses there.",
    "layercam": "LayerCAM: the same, but only what moves the score up is counted, so nothing cancels out.",
    "gradcam": "Grad-CAM: one weight for each channel in all places. The best known, and the least exact.",
    "perturbation": "Perturbation: seeks the least part that still gets the name, and without which the name goes. It "
    "asks the whole network and no layer, and is slower.",
}
LAYER_WORDS = "{}: {} × {} cells, each of which sees {} of the window."
PYRAMID_WORDS = " It knows what the deepest layers mean, at the places that the first ones still know."
ASKING = """
window.addEventListener("why-ask", (event) => { if (element.isConnected) trigger("select", event.detail); });
"""  # what is asked by mouse and forms comes this way (assets/why.js)
IS_OPEN = "!!document.getElementById('why')?.offsetParent"
ANY = "any other class"
TOP = 4  # classes that have a button
CACHED = 6  # explanations of one visitor that are kept: each some 5 MB, for it holds five seconds of sound


@dataclass(frozen=True)
class Question:
    label: str
    against: str | None = None
    method: str = DEFAULT_METHOD
    tap: str | None = None  # None: the default


@dataclass(eq=False)
class Room:
    """What one visitor asks why of. Explanations are kept: to play them or to undo costs nothing."""

    hand: InHand
    glass: Glass
    prediction: Prediction
    question: Question
    history: History = History()
    untouched: Part | None = None  # the window before it was changed
    explained: dict[tuple, tuple[tuple[str, ...], Explanation]] = field(default_factory=dict)
    turn: Lock = field(default_factory=Lock)  # quick clicks are answered one after the other, and none is lost

    def ask(self, question: Question, history: History) -> Explanation:
        """The answer; only then what was asked becomes what is shown. Raises NoSuch, NotAtHand, AudioError."""
        key = (question, history.done)
        if key not in self.explained:
            found = self._explain(question, history)
            while len(self.explained) >= CACHED:
                del self.explained[next(iter(self.explained))]
            self.explained[key] = found
        self.question, self.history = question, history
        explanation = self.explained[key][1]
        if self.untouched is None:
            self.untouched = replace(explanation.original, name="before")
        return explanation

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known about the sound as it is now."""
        return self.explained[self.question, self.history.done][0]

    @property
    def before(self) -> Part | None:
        """The sound as it came, if it has been changed, and how sure the network was of what is now asked about."""
        if self.untouched is None or not self.history.done:
            return None
        return replace(self.untouched, probability=self.untouched.prediction.probability(self.question.label))

    def _explain(self, question: Question, history: History) -> tuple[tuple[str, ...], Explanation]:
        try:
            clip = apply(self.prediction.clip, history.done)
        except ValueError as error:  # a sentence
            raise NoSuch(str(error)) from error
        try:
            return clip.notes, self.glass.explain(
                clip, label=question.label, against=question.against, method=question.method,
                tap=question.tap if question.method in cam.METHODS else None, window=self.prediction.window,
            )  # fmt: skip
        except AudioError as error:
            if not history.done:
                raise
            raise NoSuch("Nothing would be left to hear, so this change was not made.") from error
        except ValueError as error:  # of what there is not, such as a window that the change has silenced
            raise NoSuch(f"{str(error)[:1].upper()}{str(error)[1:]}.") from error


def build_why_tab(classifier: Callable[[], Network], hand: Hand, tab: gr.Tab) -> None:
    """Lay out and connect the tab in the Blocks at hand. Nothing is computed until `tab` is opened."""
    room = gr.State(None, time_to_live=KEPT)
    asker = gr.HTML("", elem_id="why-asker", js_on_load=ASKING)
    with gr.Column(elem_id="why"):
        status = gr.HTML("", elem_id="why-status")
        empty = gr.HTML(EMPTY, elem_id="why-empty")
        with gr.Column(visible=False, elem_id="why-desk") as desk:
            head = gr.HTML(elem_id="why-head")
            with gr.Row(elem_id="why-choices"):
                top = gr.Radio([], label="Why", elem_id="why-top", scale=3)
                label = gr.Dropdown([], label="or any class", elem_id="why-label", min_width=150)
                against = gr.Dropdown([], label="and not", elem_id="why-against", min_width=150)
            with gr.Accordion("How the evidence is found", open=False, elem_id="why-how"):
                with gr.Row():
                    method = gr.Radio(
                        [(_short(METHOD_WORDS[name]), name) for name in METHODS], value=DEFAULT_METHOD, label="Method",
                        elem_id="why-method",
                    )  # fmt: skip
                    layer = gr.Radio([], label="Layer", elem_id="why-layer")
                words = gr.HTML(elem_id="why-words")
            gr.HTML(transport(), elem_id="why-clock", elem_classes="clock")
            with gr.Row(elem_id="why-view"):
                pictures = gr.HTML(elem_id="why-map")
                verdict = gr.HTML(elem_id="why-verdict")
                with gr.Column(elem_id="why-more", min_width=300):
                    gr.HTML(TOOLS, elem_id="why-tools")
                    done = gr.HTML(elem_id="why-steps")
                    saving = gr.Button("Save report with this evidence", elem_id="why-save", size="md")
                    gr.HTML(ABOUT, elem_id="why-about")
            gr.HTML(f"<h3>What if the sound were another?</h3>{FORMS}", elem_id="why-forms")
    narrow, is_open = gr.Checkbox(visible=False), gr.Checkbox(visible=False)  # the browser knows
    files = gr.File(visible=False, file_count="multiple")  # the parts, to be played and kept
    saved, address = gr.File(visible=False), gr.Textbox(visible=False)
    outputs = [status, empty, desk, head, top, label, against, method, layer, words]
    outputs += [pictures, done, verdict, files, room]

    def enter(
        kept: InHand | None, before: Room | None, is_narrow: bool, is_shown: bool = True
    ) -> Iterator[dict[Any, Any]]:
        if not is_shown or (before and before.hand is kept):
            yield {status: gr.skip()}
            return
        if kept is None or kept.prediction.verdict != "named":
            said = "" if kept is None else "<p>There was nothing to hear in this sound, so nothing to explain.</p>"
            yield {
                status: said, empty: gr.HTML(EMPTY, visible=True), desk: gr.Column(visible=False), room: None,
                files: None,
            }  # fmt: skip
            return
        yield {status: busy("Looking for the evidence")}

        def draw() -> dict[Any, Any]:
            glass, prediction = page_view(classifier, kept.prediction)
            taps = layers(glass.anatomy())
            question = Question(prediction.labels[0].name)
            if before:  # what is asked how stays
                how = before.question
                question = replace(question, method=how.method, tap=how.tap if how.tap in taps else None)
            entered = Room(kept, glass, prediction, question)
            tap = entered.ask(question, entered.history).tap
            return show(entered, is_narrow) | {
                empty: gr.HTML(visible=False), desk: gr.Column(visible=True), room: entered, words: _words(taps),
                layer: gr.Radio(list(taps), value=tap or None, visible=bool(tap)),
            }  # fmt: skip

        yield from told(draw, status)

    def ask(work: Callable[[Room], Any], entered: Room | None, is_narrow: bool) -> Iterator[dict[Any, Any]]:
        if entered is None:
            yield {status: alert(FORGOTTEN)}
            return
        yield {status: busy("Looking for the evidence")}

        def answer() -> dict[Any, Any]:
            with entered.turn:
                try:
                    work(entered)
                except (NoSuch, NotAtHand, *TOLD) as error:
                    return choices(entered) | {status: alert(str(error))}
                return show(entered, is_narrow)

        yield from told(answer, status)

    def change(event: gr.EventData, entered: Room | None, is_narrow: bool) -> Iterator[dict[Any, Any]]:
        """What a form, a button or the mouse asks for."""
        asked = event._data if isinstance(event._data, dict) else {}
        yield from ask(lambda room: room.ask(room.question, moved(room.history, asked)), entered, is_narrow)

    def choose(what: str, value: str | None, entered: Room | None, is_narrow: bool) -> Iterator[dict[Any, Any]]:
        def work(room: Room) -> None:
            room.ask(chosen(room.question, what, value), room.history)

        yield from ask(work, entered, is_narrow)

    def choices(entered: Room) -> dict[Any, Any]:
        """What was asked for and could be answered; the classes as the window is heard now, the likeliest first."""
        question = entered.question
        explanation = entered.ask(question, entered.history)
        heard, tap = explanation.original.prediction.labels, explanation.tap
        names = [(f"{spoken(x.name)} ({percent(x.probability)})", x.name) for x in heard]
        likely = any(x.name == question.label for x in heard[:TOP])
        return {
            top: gr.Radio(names[:TOP], value=question.label if likely else None),
            label: gr.Dropdown(names, value=question.label),
            against: gr.Dropdown([(ANY, ""), *names], value=question.against or ""),
            method: gr.update(value=question.method), layer: gr.update(value=tap or None, visible=bool(tap)),
        }  # fmt: skip

    def show(entered: Room, is_narrow: bool) -> dict[Any, Any]:
        explanation = entered.ask(entered.question, entered.history)
        layout = NARROW if is_narrow else WIDE
        shown = choices(entered) | {
            head: _head(entered, explanation), pictures: evidence.pictures(explanation, layout),
            done: steps(entered.history, entered.notes),
            verdict: evidence.judgement(explanation) + evidence.parts(explanation, entered.before),
            status: f'<p role="status" class="unseen">{escape(f"{title(explanation)} {explanation.verdict}")}</p>',
        }  # fmt: skip
        try:
            made = evidence.sounds(explanation, entered.before).items()
            name = stem(entered.hand.name)
            kept = [save_bytes_to_cache(data, f"{name} {part}.wav", files.GRADIO_CACHE) for part, data in made]
        except OSError as error:
            return shown | {files: None, status: alert(no_room(error))}
        return shown | {files: kept}

    def save_report(entered: Room | None, link: str) -> tuple[str | None, str]:
        if entered is None:
            return None, alert(FORGOTTEN)
        explanation = entered.ask(entered.question, entered.history)
        changes = steps(entered.history, entered.notes) if entered.history.done else ""
        try:
            why = evidence.section(explanation, changes, entered.before)
            return save(classifier(), entered.hand, link, saved, why), ""
        except OSError as error:
            return None, alert(no_room(error))

    quiet = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
    quiet |= {"concurrency_id": NETWORK, "concurrency_limit": PLACES}
    entering = [hand.state, room, narrow, is_open]
    going = f"(hand, room) => [hand, room, {NARROW_SCREEN}, {IS_OPEN}]"
    asked = [tab.select(enter, entering, outputs, js=going.replace(IS_OPEN, "true"), api_name="why", **quiet)]
    asked += [event.then(enter, entering, outputs, js=going, api_name=None, **quiet) for event in hand.heard]
    looking = f"(...all) => [...all.slice(0, 2), {NARROW_SCREEN}]"
    asked.append(asker.select(
        change, [room, narrow], outputs, js=f"(room) => [room, {NARROW_SCREEN}]", api_name="why_change",
        **quiet | {"trigger_mode": "multiple"},
    ))  # fmt: skip
    controls = {"label": (top, label), "against": (against,), "method": (method,), "tap": (layer,)}
    for what, components in controls.items():
        for component in components:
            asked.append(component.input(
                partial(choose, what), [component, room, narrow], outputs, js=looking,
                api_name=component.elem_id.replace("-", "_"), **quiet,
            ))  # fmt: skip
    saving.click(
        save_report, [room, address], [saved, status], js="(room) => [room, window.link.address()]",
        api_name="why_report", api_visibility="private", show_progress="minimal",
    ).success(None, [saved], js=DOWNLOAD)  # fmt: skip
    for event in asked:
        event.success(None, [files], js="(files) => (window.parts.offer(files), [])")


def chosen(question: Question, what: str, value: str | None) -> Question:
    """The question with another class, class to tell it from, method or layer; no class is told from itself."""
    question = replace(question, **{what: value or None})
    if question.against == question.label:
        if what == "against":
            raise NoSuch("Choose two different classes: why this one and not that one.")
        question = replace(question, against=None)
    return question


def layers(anatomy: Anatomy) -> dict[str, str]:
    """Which of its layers can be asked, as cam.taps has them, and what each one sees."""
    told = {}
    for tap in cam.worth({k: anatomy.fields[k].stride for k in (*stages(anatomy), cam.PYRAMID) if k in anatomy.fields}):
        _, f, t = part_of(anatomy, tap).shape
        seen = min(anatomy.fields[tap].size / anatomy.picture[1], 1.0)
        told[tap] = LAYER_WORDS.format(tap, f, t, percent(seen)) + PYRAMID_WORDS * (tap == cam.PYRAMID)
    return told


def _words(taps: dict[str, str]) -> str:
    listed = "".join(f"<li>{escape(text)}</li>" for text in (*(METHOD_WORDS[name] for name in METHODS), *taps.values()))
    return f"<ul>{listed}</ul>"


def _short(words: str) -> str:
    return words.partition(":")[0]


def _head(room: Room, explanation: Explanation) -> str:
    end = explanation.start + explanation.original.clip.seconds
    heard = f"{explanation.start:.1f} to {end:.1f} s of {seconds_in_words(room.prediction.clip.seconds)}"
    changed = " · changed" if room.history.done else ""
    return (
        f'<header class="inside-head"><h2>{escape(title(explanation))}</h2><p>{escape(room.hand.name)} · '
        f"{heard}{changed}</p></header>"
    )
