"""The Listen tab: record, upload or click; the name; what the network was shown; what each layer made of it."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from cnn.audio import load
from cnn.canvas import NARROW, WIDE, Layout
from cnn.classifier import Prediction
from cnn.labels import spoken
from cnn.pictures import Scale, feature_map, tap_title
from cnn.serve.remote import Network
from cnn.ui.endpoints import NETWORK, PLACES, TOLD, predict
from cnn.ui.figures import draw, facts, figure, scale_of, sentence, verdict
from cnn.ui.theme import ASSETS

EXAMPLES = ASSETS / "examples"
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
TO_THE_ANSWER = """(sound) => {
  const name = document.getElementById("name");
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (name && name.getBoundingClientRect().top > window.innerHeight * 0.7)
    name.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
  if (name) window.sayIfUnplayable(sound);
  return [];
}"""  # on a phone the answer lies below the input
NARROW_SCREEN = "window.matchMedia('(max-width: 700px)').matches"
IS_RECORDING = (
    "sound?.orig_name === 'audio.wav' && "
    "!!document.querySelector(`#sound .source-selection .selected[aria-label='Record audio']`)"
)


@dataclass(frozen=True, eq=False)
class Seen:
    """What stays in hand of an answer, for pictures that are drawn on demand."""

    maps: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, int, int]]
    scale: Scale


def build_listen_tab(classifier: Callable[[], Network]) -> None:
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
    seen = gr.State(None, time_to_live=KEPT)
    outputs = [sound, problem, status, answer, layers, *stages, *folds.values(), *blocks.values(), seen]

    def cleared() -> dict[Any, Any]:
        return {
            problem: "", answer: EMPTY, layers: gr.Column(visible=False), seen: None,
            **dict.fromkeys([*stages, *blocks.values()], ""),
            **{fold: gr.Accordion(open=False) for fold in folds.values()},
        }  # fmt: skip

    def hear(path: str | None, is_narrow: bool, is_recording: bool = False) -> Iterator[dict[Any, Any]]:
        if path is None:
            yield cleared() | {status: _status("Ready to listen.")}
            return
        begin = time.perf_counter()
        yield {problem: "", status: _status("Listening. This takes about a second; the first time, a few.", busy=True)}
        try:
            prediction = predict(classifier, load(path, name="Recording" if is_recording else None), "all")
        except TOLD as error:
            alert = f'<p role="alert"><b>That did not work.</b> {escape(str(error))}</p>'
            yield cleared() | {problem: alert, status: _status("Ready for another sound.")}
            return
        except Exception:
            alert = '<p role="alert"><b>The app made a mistake.</b> The server has noted it; try another sound.</p>'
            yield cleared() | {problem: alert, status: _status("Ready for another sound.")}
            raise
        shown = _answer(prediction, NARROW if is_narrow else WIDE, begin)
        update = cleared() | {answer: shown["answer"], status: _status("Done. Ready for the next sound.")}
        if prediction.verdict == "named":
            update[seen] = Seen(prediction.maps, prediction.shapes, scale_of(prediction))
            update[layers] = gr.Column(visible=True)
            update |= {part: shown[place] for part, place in zip(stages, (*STAGES, PYRAMID), strict=True)}
            for stage, fold in folds.items():
                count = sum(tap.startswith(f"{stage}.") and tap.endswith(".relu") for tap in prediction.maps)
                label = f"Inside {stage}: {count} blocks, each before and after its last ReLU"
                update[fold] = gr.Accordion(label=label, open=False, visible=count > 0)
        yield update

    def hear_example(file: str, is_narrow: bool) -> Iterator[dict[Any, Any]]:
        path = str(EXAMPLES / file)
        for k, update in enumerate(hear(path, is_narrow)):
            yield update | ({sound: path} if k == 0 else {})

    def unfold(stage: str, kept: Seen | None, is_narrow: bool) -> str:
        if kept is None:
            return "<p>Kept for an hour only; hear the sound again.</p>"
        layout = NARROW if is_narrow else WIDE
        return "".join(
            figure(feature_map(values, kept.scale, title=tap_title(tap), shape=kept.shapes[tap], layout=layout))
            for tap, values in kept.maps.items()
            if tap.startswith(f"{stage}.")
        )

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    quiet |= {"concurrency_id": NETWORK, "concurrency_limit": PLACES}
    heard = sound.input(
        hear, [sound, narrow, recorded], outputs, js=f"(sound) => [sound, {NARROW_SCREEN}, {IS_RECORDING}]",
        api_name="hear", trigger_mode="always_last", **quiet,
    )  # fmt: skip
    heard.success(None, [sound], js=TO_THE_ANSWER)
    for file, button in buttons.items():
        heard = button.click(
            partial(hear_example, file), [narrow], outputs, js=f"() => [{NARROW_SCREEN}]",
            api_name=f"hear_{Path(file).stem}", **quiet,
        )  # fmt: skip
        heard.success(None, [sound], js=TO_THE_ANSWER)
    for stage, fold in folds.items():
        fold.expand(
            partial(unfold, stage), [seen, narrow], blocks[stage], js=f"(seen, _) => [seen, {NARROW_SCREEN}]",
            api_name=f"unfold_{stage}", api_visibility="private", show_progress="minimal",
        )  # fmt: skip


def _status(text: str, busy: bool = False) -> str:
    return f'<p role="status" class="{"busy" if busy else "idle"}">{escape(text)}</p>'


def _examples() -> dict[str, gr.Button]:
    """One button per example clip, by its file; what each is and who made it, folded away below."""
    clips = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
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
    """HTML by place: 'answer', every stage and the pyramid; empty where there is nothing to show."""
    taps = [tap for tap in prediction.maps if tap in STAGES or tap.startswith(f"{PYRAMID}.")]
    drawn = draw(prediction, layout=layout, taps=taps)
    html = {key: figure(picture, sentence(key, prediction)) for key, picture in drawn.items()}
    top = "".join(html[key] for key in ("bars", "clip", "waveform", "spectrogram") if key in html)
    head = verdict(prediction, time.perf_counter() - begin)
    pyramid = "".join(value for key, value in html.items() if key.startswith(f"{PYRAMID}."))
    return {"answer": head + top + facts(prediction), PYRAMID: pyramid} | {s: html.get(s, "") for s in STAGES}
