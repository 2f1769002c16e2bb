"""What one does with the sound in hand: hear it, name a stretch of it, save a report, send its address."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from cnn.audio import Clip
from cnn.canvas import WIDE
from cnn.classifier import Prediction
from cnn.labels import spoken
from cnn.pictures import percent
from cnn.report import Drawn, report, wav
from cnn.serve.glass import NotAtHand
from cnn.serve.remote import Network
from cnn.ui.endpoints import TOLD, predict
from cnn.ui.evidence import section
from cnn.ui.figures import draw, facts, sentence, shown, transport, verdict
from cnn.ui.glass import view
from cnn.ui.theme import ASSETS

EXAMPLES = ASSETS / "examples"
SHORTEST = 0.04  # seconds; a little below assets/clock.js's own, for addresses are rounded
SAME = 0.01  # by how much logits of one network may differ: an address holds two digits, and processors differ by less
LINK = """<div class="link" hidden><label>Link to this sound <input type="text" readonly></label>
<button type="button">Copy</button> <span role="status"></span></div>"""


@dataclass(frozen=True, eq=False)
class InHand:
    """The sound that a visitor looks at, in every tab, and what the network said of it."""

    prediction: Prediction  # with the maps of every tap
    name: str  # for people: its file's, or Recording
    example: str = ""  # of an example clip, its name in an address: ?example=dog


@cache
def examples() -> dict[str, dict[str, str]]:
    """The example clips by their names in an address: file, label, title, author, licence and url."""
    clips = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
    return {clip["file"].rpartition(".")[0]: clip for clip in clips}


def playable(clip: Clip, component: gr.components.Component) -> str:
    """Path of the sound as the network heard it, where Gradio serves it and deletes it later. Raises OSError."""
    return save_bytes_to_cache(wav(clip), "sound.wav", component.GRADIO_CACHE)


def place(text: str, length: float) -> float:
    """Seconds into a sound of that length, as an address holds them. Raises ValueError."""
    seconds = float(text)
    if not 0 <= seconds <= length + 0.01:  # false for NaN; addresses are rounded to hundredths
        raise ValueError(f"{text} s is not within the sound")
    return seconds


def answered(prediction: Prediction) -> str:
    """The answer as an address holds it, 'dog-12.34': name and logit, by which another network can be told."""
    return f"{prediction.labels[0].name}-{prediction.labels[0].logit:.2f}" if prediction.labels else ""


def is_answer(text: str, prediction: Prediction) -> bool:
    """Whether an address with this text was made of the same answer."""
    name, _, logit = text.partition("-")
    try:
        return name == prediction.labels[0].name and abs(float(logit) - prediction.labels[0].logit) <= SAME
    except (ValueError, IndexError):
        return False


def alone(classifier: Callable[[], Network], kept: InHand, start: float, end: float) -> str:
    """What the network says of a stretch (seconds) as if it were a sound of its own. Raises what predict does."""
    clip = kept.prediction.clip
    first, last = round(start * clip.rate), round(end * clip.rate)
    cut = replace(clip, samples=clip.samples[first:last], name=f"{kept.name}, {start:.2f} to {end:.2f} s", notes=())
    answer = predict(classifier, cut)
    if answer.verdict == "silent":
        said = f"<b>nothing to hear.</b> {escape(answer.message)}"
    else:
        best, *others = answer.labels[:3]
        told = ", ".join(f"{escape(spoken(x.name))} {percent(x.probability)}" for x in others)
        said = f"<b>{escape(spoken(best.name))}</b>, {percent(best.probability)} sure; then {told}."
    return f'<p class="alone" role="status">Only {start:.2f} to {end:.2f} s: {said}</p>'


def save(network: Network, kept: InHand, link: str, component: gr.components.Component, why: str = "") -> str:
    """Write the report of what is in hand where Gradio serves it; its path. Raises OSError."""
    text = written(network, kept, link, why)
    return save_bytes_to_cache(text.encode(), f"{stem(kept.name)} report.html", component.GRADIO_CACHE)


def stem(name: str) -> str:
    """The beginning of a file's name, for what is made of the sound."""
    return "".join(c if c.isalnum() or c in " -_" else "_" for c in name.rpartition(".")[0] or name)[:60] or "sound"


def written(network: Network, kept: InHand, link: str, why: str = "") -> str:
    """The report of what is in hand. `link`: the address that the browser shows; only an example's is used. `why`: the
    evidence, as cnn.ui.evidence.section; '': that for the first name."""
    prediction = kept.prediction
    stages = [tap for tap in prediction.maps if "." not in tap.removeprefix("fpn.")]
    drawn = draw(prediction, layout=WIDE, taps=stages)
    html = {key: shown(key, picture, prediction, sentence(key, prediction)) for key, picture in drawn.items()}
    above = ("bars", "clip", "waveform", "spectrogram")
    pieces = Drawn(
        verdict=verdict(prediction, prediction.timings["total"]),
        player=transport(),
        pictures=[html[key] for key in above if key in html],
        layers=[html[tap] for tap in stages],
        facts=facts(prediction),
        evidence=why or _why(network, prediction),
    )
    about = _known_of(network)
    if kept.example:
        clip = examples()[kept.example]
        about["Recorded by"] = f"{clip['author']}: {clip['title']} ({clip['licence']}), {clip['url']}"
    http = urlsplit(link).scheme in ("http", "https")
    return report(prediction, kept.name, pieces, link=link[:2000] if kept.example and http else "", about=about)


def _why(network: Network, prediction: Prediction) -> str:
    """The evidence for the first name; where there is none, why not."""
    if not prediction.labels:
        return ""
    try:
        glass, seen = view(network, prediction)
        return section(glass.explain(seen.clip, label=seen.labels[0].name, window=seen.window))
    except (NotAtHand, *TOLD) as error:
        return f"<h2>Why {escape(spoken(prediction.labels[0].name))}?</h2><p>{escape(str(error))}</p>"


def _known_of(network: Any) -> dict[str, str]:
    """What the checkpoint says of itself; nothing of a network that is elsewhere."""
    checkpoint = getattr(network, "checkpoint", None)
    if checkpoint is None:
        return {}
    accuracy, fold = checkpoint.metrics.get("accuracy"), checkpoint.metrics.get("fold")
    told = {name: checkpoint.provenance.get(key) for name, key in (("Trained on", "data"), ("Licence", "licence"))}
    if accuracy is not None:
        told["Accuracy"] = f"{100 * accuracy:.2f} %" + (f" on fold {fold}, held out" if fold is not None else "")
    return {name: str(value) for name, value in told.items() if value}
