"""Pictures and words as the page shows them: HTML with true alternative text. Everything from outside is escaped."""

import base64
import math
from html import escape

from cnn.classifier import Prediction
from cnn.labels import spoken
from cnn.pictures import Picture, Scale, kilohertz, percent

SENTENCES = {
    "bars": "What the network would bet on: the three likeliest of its {classes} classes.",
    "clip": "The whole clip. The shaded window is the one shown below: the one most sure of the name.",
    "waveform": "How the air swings: tall where the sound is loud, thin where it is quiet.",
    "spectrogram": "The sound as the network sees it: time runs to the right, pitch upwards, bright is loud.",
    "conv1": "The first filters look for edges: onsets light up as upright strokes, hums as level ones.",
    "layer1": "Close to the spectrogram still: the same strokes, cleaned and sharpened.",
    "layer2": "Half as fine, twice as many channels: strokes join to small shapes, a sweep or a click with its ring.",
    "layer3": "Shapes join to pieces of a sound. One cell here stands for {cell} of it.",
    "layer4": "Coarse in place, rich in meaning: one cell stands for {cell}, and whole sounds are told apart.",
    "fpn.p1": "The pyramid: what the deep layers mean, at the places that layer1 still knows. It names the sound.",
}


def figure(picture: Picture, sentence: str = "") -> str:
    """One picture for both themes (css shows the fitting one) and the sentence that says what one sees."""
    images = "".join(
        f'<img class="on-{theme}" alt="{escape(picture.alt)}" width="{picture.width}" height="{picture.height}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.png(theme)).decode()}">'
        for theme in ("light", "dark")
    )
    caption = f"<figcaption>{escape(sentence)}</figcaption>" if sentence else ""
    return f'<figure class="picture">{images}{caption}</figure>'


def scale_of(prediction: Prediction) -> Scale:
    """The axes of the window that the pictures show."""
    mel = prediction.mel_config
    return Scale(
        seconds=mel.seconds,
        hop=mel.hop_length / mel.sample_rate,
        centres=tuple(float(c) for c in mel.centres),
        start=float(prediction.starts[prediction.window]),
    )


def seconds_in_words(seconds: float) -> str:
    """Two significant digits: '0.34 s', '5 s', '12 s', '61 s'; from two minutes on '12 min'."""
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 9.95 else f"{float(f'{seconds:.2g}'):g} s"


def facts(prediction: Prediction) -> str:
    """What was decoded, what is to be known about it, and where the network's band ends."""
    clip, mel = prediction.clip, prediction.mel_config
    channels = {1: "mono", 2: "stereo"}.get(clip.channels, f"{clip.channels} channels")
    lossy = " (lossy)" if clip.lossy else ""
    what = f"{clip.format}{lossy}, {clip.rate / 1000:g} kHz, {channels}, {seconds_in_words(clip.seconds)}"
    notes = list(clip.notes)
    if clip.seconds < mel.seconds and prediction.verdict == "named":
        notes.append(f"The network hears {mel.seconds:g} s at a time: the rest of its window is silence.")
    if len(prediction.starts) > 1 and prediction.verdict == "named":
        notes.append(f"Heard in {len(prediction.starts)} windows of {mel.seconds:g} s; the answer is their mean.")
    if clip.rate / 2 > mel.f_max * 1.001 and prediction.verdict == "named":
        notes.append(f"This network hears up to {kilohertz(mel.f_max)}; what lies above plays no part in its answer.")
    said = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f'<p class="facts"><b>{escape(clip.name or "Recording")}</b> <span id="format">{escape(what)}</span></p>'
        f'<ul class="notes">{said}</ul>'
    )


def verdict(prediction: Prediction, seconds: float) -> str:
    """The name in large letters, how sure, how long it took and where it ran; or that there was nothing to hear."""
    took = f"Answered in {seconds_in_words(seconds)} on {prediction.device}"
    if prediction.verdict == "silent":
        head = f'<h2 id="name">nothing to hear</h2><p class="sure">{escape(prediction.message)}</p>'
    else:
        best = prediction.labels[0]
        head = f'<h2 id="name">{escape(spoken(best.name))}</h2><p class="sure">{percent(best.probability)} sure</p>'
        took += f" by {prediction.network}"
    return (
        f'<header class="verdict"><div class="named">{head}</div><p class="took" id="took">{escape(took)}.</p></header>'
    )


def sentence(key: str, prediction: Prediction) -> str:
    """What one sees in the picture, in the words of a teacher. A tap without words of its own has none."""
    cell = ""
    if key in prediction.maps:
        mel = prediction.mel_config
        stride = 2 ** round(math.log2(mel.frames / prediction.maps[key].shape[1]))
        cell = seconds_in_words(stride * mel.hop_length / mel.sample_rate)
    return SENTENCES.get(key, "").format(classes=len(prediction.labels), cell=cell)
