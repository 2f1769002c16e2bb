"""The Listen tab: record, upload or click; the name; what the network was shown; what each layer made of it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context
from gradio.events import Dependency

from cnn.audio import load
from cnn.canvas import NARROW, WIDE, Layout
from cnn.classifier import Prediction
from cnn.labels import spoken
from cnn.pictures import feature_map, tap_title
from cnn.serve.remote import Network
from cnn.ui.endpoints import NETWORK, PLACES, TOLD, predict
from cnn.ui.figures import draw, facts, figure, scale_of, sentence, shown, transport, verdict
from cnn.ui.keep import EXAMPLES, LINK, SHORTEST, InHand, alone, answered, examples, is_answer, place, playable, save
from cnn.ui.uploads import no_room

STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")
PYRAMID = "fpn"  # taps of a network that has one

EMPTY = """
<div class="empty"><h2>First, a sound</h2>
<ol><li><b>Record</b> a few seconds of something that is not speech: a clap, keys, a kettle.</li>
<li>Or <b>upload</b> a file of any kind. Of a long one the first minute is used.</li>
<li>Or <b>click an example</b>, a sound that the network in the box has never heard before.</li></ol>
<p>You will see its name, the sound as the network sees it, and what every layer makes of it.</p></div>
"""
MICROPHONE = "The microphone is asked for the plain sound: no echo cancellation, noise suppression or automatic gain."
KEPT = 3600  # seconds that the maps of an answer wait for a fold to be opened
FORGOTTEN = "<p>Kept for an hour only; hear the sound again.</p>"
TO_THE_ANSWER = """(sound, played, example, answer, stretch) => {
  window.link.set({ example, answer });
  window.clock.load(played?.url).then(() => stretch && window.clock.select(...stretch));
  const name = document.getElementById("name");
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (name && name.getBoundingClientRect().top > window.innerHeight * 0.7)
    name.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
  if (name) window.sayIfUnplayable(sound);
  return [];
}"""  # on a phone the answer lies below the input
ASKED_FOR = "...['example', 'answer', 'from', 'to'].map(window.link.asked)"
OTHER_NUMBERS = "Another one answers here now, so the numbers are not those of the link."
STRETCH = "(hand) => [hand, window.clock.stretch?.from ?? 0, window.clock.stretch?.to ?? 0]"
DOWNLOAD = """(file) => {
  const link = document.createElement("a");
  [link.href, link.download] = [file.url, file.orig_name];
  link.click();
  return [];
}"""
NARROW_SCREEN = "window.matchMedia('(max-width: 700px)').matches"
IS_RECORDING = (
    "sound?.orig_name === 'audio.wav' && "
    "!!document.querySelector(`#sound .source-selection .selected[aria-label='Record audio']`)"
)


@dataclass(frozen=True, eq=False)
class Hand:
    """Where other tabs find the sound in hand."""

    state: gr.State  # of InHand | None; kept for an hour
    heard: list[Dependency]  # the events after which it may be another: each has a .then


def build_listen_tab(classifier: Callable[[], Network]) -> Hand:
    """Lay out and connect the tab in the Blocks at hand. `classifier` is first called when a sound is to be named."""
    with gr.Row(elem_id="desk"):
        with gr.Column(elem_id="hear", min_width=280):
            sound = gr.Audio(
                sources=["microphone", "upload"], type="filepath", label="Your sound", elem_id="sound", buttons=[]
            )
            problem = gr.HTML(elem_id="problem")
            gr.HTML('<p id="refused" role="alert"></p><p id="unplayable" role="status"></p>')  # filled by upload.js
            status = gr.HTML(_status("Ready to listen."), elem_id="status")
            gr.HTML(f'<p id="granted">{MICROPHONE}</p>', elem_id="microphone")
            buttons = _examples()
        with gr.Column(elem_id="answer", min_width=300):
            answer = gr.HTML(EMPTY, elem_id="verdict")
            player = gr.HTML(transport(), elem_classes=["clock", "names"], visible=False)
            only = gr.HTML(elem_id="only")
            pictures = gr.HTML(elem_id="pictures")
            with gr.Row(visible=False, elem_id="keep") as keep:
                saving = gr.Button("Save report", elem_id="save", scale=0, min_width=140)
                gr.HTML("<p>One file with the sound, the pictures and the numbers; it opens offline.</p>" + LINK)
            unsaved = gr.HTML(elem_id="unsaved")
            with gr.Column(visible=False, elem_id="layers") as layers:
                gr.HTML(
                    "<h2>What each layer makes of it</h2><p>Straight below the spectrogram, on the same clock: "
                    "the mean over a layer's channels. Each picture has its own colours; the numbers "
                    "beside it say what they mean.</p>"
                )
                stages = [gr.HTML(elem_id=f"map-{stage}") for stage in STAGES[:1]]
                blocks, folds = {}, {}
                for stage in STAGES[1:]:
                    stages.append(gr.HTML(elem_id=f"map-{stage}"))
                    with gr.Accordion(f"Every block of {stage}", open=False, elem_id=f"fold-{stage}") as folds[stage]:
                        blocks[stage] = gr.HTML(elem_id=f"blocks-{stage}")
                stages.append(gr.HTML(elem_id="map-pyramid"))
    narrow, recorded = gr.Checkbox(visible=False), gr.Checkbox(visible=False)  # the browser knows
    hand = gr.State(None, time_to_live=KEPT)
    played, saved = gr.File(visible=False), gr.File(visible=False)  # the sound as it was heard; the report
    example, stretch = gr.Textbox(visible=False), gr.JSON(visible=False)  # what an address holds
    start, end = gr.Number(visible=False), gr.Number(visible=False)  # what the browser sends of them
    answer_text, start_text, end_text, address = (gr.Textbox(visible=False) for _ in range(4))
    naming = gr.Button("Name only the stretch", visible="hidden", elem_id="name-stretch")  # the clock presses it
    parts = [answer, player, only, pictures, keep, unsaved, played, example, answer_text, stretch]
    outputs = [sound, problem, status, *parts, layers, *stages, *folds.values(), *blocks.values(), hand]

    def cleared() -> dict[Any, Any]:
        return {
            problem: "", answer: EMPTY, player: gr.HTML(visible=False), keep: gr.Row(visible=False), played: None,
            example: "", answer_text: "", stretch: None, layers: gr.Column(visible=False), hand: None,
            **dict.fromkeys([only, pictures, unsaved], ""),
            **dict.fromkeys([*stages, *blocks.values()], ""),
            **{fold: gr.Accordion(open=False) for fold in folds.values()},
        }  # fmt: skip

    def hear(
        path: str | None, is_narrow: bool, is_recording: bool = False, address: str = ""
    ) -> Iterator[dict[Any, Any]]:
        if path is None:
            yield cleared() | {status: _status("Ready to listen.")}
            return
        begin = time.perf_counter()
        yield {problem: "", status: _status("Listening. This takes about a second; the first time, a few.", busy=True)}
        try:
            prediction = predict(classifier, load(path, name="Recording" if is_recording else None), "all")
        except TOLD as error:
            alert = _alert("That did not work.", str(error))
            yield cleared() | {problem: alert, status: _status("Ready for another sound.")}
            return
        except Exception:
            alert = _alert("The app made a mistake.", "The server has noted it; try another sound.")
            yield cleared() | {problem: alert, status: _status("Ready for another sound.")}
            raise
        html = _answer(prediction, NARROW if is_narrow else WIDE, begin)
        update = cleared() | {answer: html["answer"], status: _status("Done. Ready for the next sound.")}
        update |= {pictures: html["pictures"], player: gr.HTML(visible=True), keep: gr.Row(visible=True)}
        update |= {hand: InHand(prediction, prediction.clip.name or "Recording", address), example: address}
        update[answer_text] = answered(prediction)
        try:
            update[played] = playable(prediction.clip, played)
        except OSError as error:
            update[problem] = _alert("It cannot be played.", no_room(error))
        if prediction.verdict == "named":
            update[layers] = gr.Column(visible=True)
            update |= {part: html[place] for part, place in zip(stages, (*STAGES, PYRAMID), strict=True)}
            for stage, fold in folds.items():
                count = sum(tap.startswith(f"{stage}.") and tap.endswith(".relu") for tap in prediction.maps)
                label = f"Inside {stage}: {count} blocks, each before and after its last ReLU"
                update[fold] = gr.Accordion(label=label, open=False, visible=count > 0)
        yield update

    def hear_example(file: str, is_narrow: bool) -> Iterator[dict[Any, Any]]:
        path = str(EXAMPLES / file)
        for k, update in enumerate(hear(path, is_narrow, address=Path(file).stem)):
            yield update | ({sound: path} if k == 0 else {})

    def restore(asked: str, before: str, begin: str, finish: str, is_narrow: bool) -> Iterator[dict[Any, Any]]:
        """What the page's address asks for: nothing, an example, or a stretch of it. `before`: what was answered when
        the address was made."""
        if not asked:
            yield {unsaved: ""}
            return
        if asked not in examples():
            said = f"There is no example {asked[:40]!r}; there are {', '.join(examples())}."
            yield {problem: _alert("This link leads nowhere.", said)}
            return
        for update in hear_example(examples()[asked]["file"], is_narrow):
            if kept := update.get(hand):
                update |= stretched(kept, begin, finish) if begin or finish else {}
                if before and not is_answer(before, kept.prediction):
                    other = _alert("This link was made with another network.", OTHER_NUMBERS)
                    update[only] = other + update.get(only, "")
            yield update

    def stretched(kept: InHand, begin: str, finish: str) -> dict[Any, Any]:
        seconds = kept.prediction.clip.seconds
        try:
            a, b = place(begin, seconds), place(finish, seconds)
            if b - a < SHORTEST:
                raise ValueError("no stretch")
        except ValueError:
            said = f"From {begin[:20]!r} to {finish[:20]!r} is no stretch of it: it lasts {seconds:.2f} s."
            return {problem: _alert("This link has a mistake.", said)}
        return {only: name_stretch(kept, a, b), stretch: [a, b]}

    def name_stretch(kept: InHand | None, begin: float, finish: float) -> str:
        if kept is None:
            return FORGOTTEN
        if not 0 <= begin <= finish - SHORTEST < kept.prediction.clip.seconds:
            return _alert("Nothing is selected.", "Drag over a picture first.")
        try:
            return alone(classifier, kept, begin, finish)
        except TOLD as error:
            return _alert("That did not work.", str(error))

    def save_report(kept: InHand | None, address: str) -> tuple[str | None, str]:
        if kept is None:
            return None, FORGOTTEN
        try:
            return save(classifier(), kept, address, saved), ""
        except OSError as error:
            return None, _alert("It cannot be saved.", no_room(error))

    def unfold(stage: str, kept: InHand | None, is_narrow: bool) -> str:
        if kept is None:
            return FORGOTTEN
        prediction, layout = kept.prediction, NARROW if is_narrow else WIDE
        scale = scale_of(prediction)
        return "".join(
            figure(
                feature_map(values, scale, title=tap_title(tap), shape=prediction.shapes[tap], layout=layout),
                scale=scale, values=values, tap=tap,
            )
            for tap, values in prediction.maps.items()
            if tap.startswith(f"{stage}.")
        )  # fmt: skip

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    quiet |= {"concurrency_id": NETWORK, "concurrency_limit": PLACES}
    heard = [sound.input(
        hear, [sound, narrow, recorded], outputs, js=f"(sound) => [sound, {NARROW_SCREEN}, {IS_RECORDING}]",
        api_name="hear", trigger_mode="always_last", **quiet,
    )]  # fmt: skip
    for file, button in buttons.items():
        heard.append(button.click(
            partial(hear_example, file), [narrow], outputs, js=f"() => [{NARROW_SCREEN}]",
            api_name=f"hear_{Path(file).stem}", **quiet,
        ))  # fmt: skip
    heard.append(Context.root_block.load(
        restore, [example, answer_text, start_text, end_text, narrow], outputs,
        js=f"() => [{ASKED_FOR}, {NARROW_SCREEN}]", api_name="restore", **quiet,
    ))  # fmt: skip
    for event in heard:
        event.success(None, [sound, played, example, answer_text, stretch], js=TO_THE_ANSWER)
    naming.click(name_stretch, [hand, start, end], only, js=STRETCH, api_name="name_stretch", **quiet)
    saving.click(
        save_report, [hand, address], [saved, unsaved], js="(hand) => [hand, window.link.address()]",
        api_name="save_report", api_visibility="private", show_progress="minimal",
    ).success(None, [saved], js=DOWNLOAD)  # fmt: skip
    for stage, fold in folds.items():
        fold.expand(
            partial(unfold, stage), [hand, narrow], blocks[stage], js=f"(hand, _) => [hand, {NARROW_SCREEN}]",
            api_name=f"unfold_{stage}", api_visibility="private", show_progress="minimal",
        )  # fmt: skip
    return Hand(hand, heard)


def _status(text: str, busy: bool = False) -> str:
    return f'<p role="status" class="{"busy" if busy else "idle"}">{escape(text)}</p>'


def _alert(what: str, why: str) -> str:
    return f'<p role="alert"><b>{escape(what)}</b> {escape(why)}</p>'


def _examples() -> dict[str, gr.Button]:
    """One button per example clip, by its file; what each is and who made it, folded away below."""
    clips = list(examples().values())
    with gr.Group(elem_id="examples"):
        gr.HTML('<h2 id="examples-title">Or hear an example</h2>')
        with gr.Row(elem_id="example-buttons"):
            buttons = {c["file"]: gr.Button(spoken(c["label"]), size="sm", min_width=80) for c in clips}
        credits = "".join(
            f'<li>{escape(spoken(c["label"]))}: <a href="{escape(c["url"])}" target="_blank" rel="noopener">'
            f"{escape(c['title'])}</a> by {escape(c['author'])} ({escape(c['licence'])})</li>"
            for c in clips
        )
        gr.HTML(
            "<details><summary>Who recorded these</summary><p>From ESC-10, the fold that was held out of training."
            f"</p><ul>{credits}</ul></details>"
        )
    return buttons


def _answer(prediction: Prediction, layout: Layout, begin: float) -> dict[str, str]:
    """HTML by place: 'answer', 'pictures', every stage and the pyramid; empty where there is nothing to show."""
    taps = [tap for tap in prediction.maps if tap in STAGES or tap.startswith(f"{PYRAMID}.")]
    drawn = draw(prediction, layout=layout, taps=taps)
    html = {key: shown(key, picture, prediction, sentence(key, prediction)) for key, picture in drawn.items()}
    top = "".join(html[key] for key in ("clip", "waveform", "spectrogram") if key in html)
    head = verdict(prediction, time.perf_counter() - begin) + html.get("bars", "")
    pyramid = "".join(value for key, value in html.items() if key.startswith(f"{PYRAMID}."))
    answer = {"answer": head, "pictures": top + facts(prediction), PYRAMID: pyramid}
    return answer | {stage: html.get(stage, "") for stage in STAGES}
