"""Pictures and words as the page shows them: HTML with true alternative text. Everything from outside is escaped."""

import base64
import json
import math
from collections.abc import Collection
from html import escape

import numpy as np

from cnn.canvas import WIDE, Layout, Picture
from cnn.classifier import Prediction
from cnn.labels import spoken
from cnn.mel import MelConfig
from cnn.pictures import (
    Scale,
    bars,
    feature_map,
    hertz_in_words,
    percent,
    seconds_in_words,
    spectrogram,
    tap_title,
    waveform,
)
from cnn.serve.payload import matrix

SENTENCES = {
    "bars": "What the network would bet on: the three likeliest of its {classes} classes.",
    "clip": "The whole clip. The shaded window is the one shown below: the one most sure of the name.",
    "waveform": "How the air swings: tall where the sound is loud, thin where it is quiet.",
    "spectrogram": "The sound as the network sees it: time runs to the right, pitch upwards, bright is loud; {zero}.",
    "conv1": "What the first filters find in it: a sudden start, a hum, a rising tone. One cell stands for {cell}.",
    "layer1": "As fine as conv1: what its filters find is put together to larger patterns.",
    "layer2": "Half as fine, twice as many channels: patterns join to shapes. One cell stands for {cell}.",
    "layer3": "Shapes join to pieces of a sound. One cell here stands for {cell} of it.",
    "layer4": "Coarse in place, rich in meaning: one cell stands for {cell}, and whole sounds are told apart.",
    "fpn.p1": "The pyramid: what the deep layers mean, at the places that layer1 still knows. "
    "The name is read from all of its levels.",
}


def figure(
    picture: Picture,
    sentence: str = "",
    *,
    scale: Scale | None = None,
    values: np.ndarray | None = None,
    tap: str = "",
    channel: int | None = None,
    unit: str = "",
) -> str:
    """One picture for both themes (css shows the fitting one) and the sentence that says what one sees.

    With `scale` it lies on the clock: assets/clock.js moves the cursor over it, a click seeks, a drag selects a
    stretch. With `values` (f, t) as well, the cells that the picture shows, a hover reads value (in `unit`), seconds
    and Hz, and a click tells others the cell, its `tap` and its `channel`.
    """
    images = "".join(
        f'<img class="on-{theme}" alt="{escape(picture.alt)}" width="{picture.width}" height="{picture.height}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.png(theme)).decode()}">'
        for theme in ("light", "dark")
    )
    caption = f"<figcaption>{escape(sentence)}</figcaption>" if sentence else ""
    if scale is None:
        return f'<figure class="picture">{images}{caption}</figure>'
    tall, wide = picture.pixels.shape
    box = picture.box
    left, top, right, bottom = box.left / wide, box.top / tall, box.right / wide, box.bottom / tall
    data = {"box": f"{left:.6f} {top:.6f} {right:.6f} {bottom:.6f}", "start": scale.start, "seconds": scale.seconds}
    if values is not None:
        data |= {"map": json.dumps(matrix(values)), "hop": scale.hop, "unit": unit}
        data |= {"centres": " ".join(f"{hertz:.5g}" for hertz in scale.centres)}
    data |= {"tap": tap} if tap else {}
    data |= {"channel": channel} if channel is not None else {}
    told = " ".join(f'data-{name}="{escape(str(value))}"' for name, value in data.items())
    # empty: filled by the clock. It lies on the raster alone, whatever the width at which the picture is shown
    place = f"left:{left:.5%};top:{top:.5%};width:{right - left:.5%};height:{bottom - top:.5%}"
    shows = '<i class="stretch" hidden></i><i class="cursor"></i>'
    plane = f'<div class="plane" tabindex="-1" style="{place}">{shows}</div>'
    return f'<figure class="picture timed" {told}><div class="drawn">{images}{plane}</div>{caption}</figure>'


def scale_of(prediction: Prediction) -> Scale:
    """The axes of the window that the pictures show."""
    mel = prediction.mel_config
    return Scale(
        seconds=mel.seconds,
        hop=mel.hop_length / mel.sample_rate,
        centres=tuple(float(c) for c in mel.centres),
        start=float(prediction.starts[prediction.window]),
    )


def draw(prediction: Prediction, *, layout: Layout = WIDE, taps: Collection[str] | None = None) -> dict[str, Picture]:
    """Every picture of an answer in reading order: bars, (clip,) waveform, spectrogram, then one per map by its tap.

    'clip' shows all of a sound that is longer than a window. `taps` says which maps, None all. Silence has a waveform.
    """
    samples, rate = prediction.clip.samples, prediction.clip.rate
    total = prediction.clip.seconds
    if prediction.mel is None:
        return {"waveform": waveform(samples, rate, seconds=max(total, 0.1), layout=layout)}
    scale, mel = scale_of(prediction), prediction.mel_config
    pictures = {"bars": bars([(spoken(x.name), x.probability) for x in prediction.labels[:3]], layout=layout)}
    if total > scale.seconds + 0.01:
        mark = (scale.start, scale.start + scale.seconds)
        pictures["clip"] = waveform(
            samples, rate, seconds=total, mark=mark, title="Whole clip", layout=layout, height=44
        )
    pictures["waveform"] = waveform(samples, rate, seconds=scale.seconds, start=scale.start, layout=layout)
    pictures["spectrogram"] = spectrogram(prediction.mel, scale, floor=mel.floor_db, layout=layout)
    for tap, values in prediction.maps.items():
        if taps is None or tap in taps:
            pictures[tap] = feature_map(
                values, scale, title=tap_title(tap), shape=prediction.shapes[tap], layout=layout
            )
    return pictures


def transport() -> str:
    """The clock's buttons: assets/clock.js makes every one of them, wherever it stands, work on the one clock."""
    return """<div class="transport" role="group" aria-label="Play the sound">
<button type="button" data-do="play"><span>Play</span></button>
<button type="button" data-do="loop" aria-pressed="false">Loop</button>
<div class="seek" role="slider" tabindex="0" aria-label="Place in the sound. Arrows move it, with Shift they
 select, Space plays, Escape clears" aria-valuemin="0" aria-valuemax="0" aria-valuenow="0">
<i class="stretch" hidden></i><i class="gone"></i></div><span class="time">0.0 / 0.0 s</span>
<p class="hint">Click a picture to go there, drag to select a stretch.</p>
<div class="chosen"><output aria-live="polite" aria-label="Selected"></output>
<button type="button" data-do="alone">Hear only this</button>
<button type="button" data-do="name" hidden>Name only this</button>
<button type="button" data-do="clear">Clear</button></div></div>"""


def shown(key: str, picture: Picture, prediction: Prediction, sentence: str = "") -> str:
    """The HTML of one of what `draw` gives: on the clock, but for the bars, which have no time."""
    if key == "bars":
        return figure(picture, sentence)
    if prediction.mel is None or key == "clip":  # all of the sound
        config = prediction.mel_config
        scale = Scale(max(prediction.clip.seconds, 0.1), config.hop_length / config.sample_rate, ())
        return figure(picture, sentence, scale=scale)
    scale = scale_of(prediction)
    if key == "waveform":
        return figure(picture, sentence, scale=scale)
    if key == "spectrogram":
        return figure(picture, sentence, scale=scale, values=prediction.mel, unit="dB")
    return figure(picture, sentence, scale=scale, values=prediction.maps[key], tap=key)


def facts(prediction: Prediction) -> str:
    """What was decoded, what is to be known about it, and where the network's band ends."""
    clip, mel = prediction.clip, prediction.mel_config
    channels = {1: "mono", 2: "stereo"}.get(clip.channels, f"{clip.channels} channels")
    lossy = " (lossy)" if clip.lossy else ""
    what = f"{clip.format}{lossy}, {clip.rate / 1000:g} kHz, {channels}, {seconds_in_words(clip.seconds)}"
    notes = list(clip.notes)
    if prediction.verdict == "named":
        if clip.seconds < mel.seconds:
            window = seconds_in_words(mel.seconds)
            notes.append(f"The network hears {window} at a time: the rest of its window is silence.")
        if len(prediction.starts) > 1:
            notes.append(_windows(prediction))
        if clip.rate / 2 > mel.f_max * 1.001:
            band = hertz_in_words(mel.f_max)
            notes.append(f"This network hears up to {band}; what lies above plays no part in its answer.")
    said = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f'<p class="facts"><b>{escape(clip.name or "Recording")}</b> <span id="format">{escape(what)}</span></p>'
        f'<ul class="notes">{said}</ul>'
    )


def _windows(prediction: Prediction) -> str:
    """In how many windows the sound was heard, and what became of the others."""
    heard = int(np.count_nonzero(prediction.window_probabilities.any(axis=1)))
    silent = len(prediction.starts) - heard
    text = f"Heard in {heard} window{'s' * (heard != 1)} of {seconds_in_words(prediction.mel_config.seconds)}; "
    if not silent:
        return text + "the answer is their mean."
    return text + (f"{silent} silent ones were left out." if silent > 1 else "a silent one was left out.")


def verdict(prediction: Prediction, seconds: float) -> str:
    """The name in large letters, how sure, how long it took and where it ran; or that there was nothing to hear."""
    took = f"Answered in {seconds_in_words(seconds)}"
    if prediction.verdict == "silent":
        head = f'<h2 id="name">nothing to hear</h2><p class="sure">{escape(prediction.message)}</p>'
    else:
        best = prediction.labels[0]
        head = f'<h2 id="name">{escape(spoken(best.name))}</h2><p class="sure">{percent(best.probability)} sure</p>'
        took += f" by {prediction.network},"
    took += f" on {prediction.device}"  # last: it may go on to say why there
    return (
        f'<header class="verdict"><div class="named">{head}</div><p class="took" id="took">{escape(took)}.</p></header>'
    )


def _zero(mel: MelConfig) -> str:
    """What 0 dB is."""
    return "0 dB is the loudest spot" if mel.relative else "0 dB is spectral power 1"


def sentence(key: str, prediction: Prediction) -> str:
    """What one sees in the picture, in the words of a teacher. A tap without words of its own has none."""
    cell = ""
    if key in prediction.maps:
        mel = prediction.mel_config
        stride = 2 ** round(math.log2(mel.frames / prediction.maps[key].shape[1]))
        cell = seconds_in_words(stride * mel.hop_length / mel.sample_rate)
    return SENTENCES.get(key, "").format(classes=len(prediction.labels), cell=cell, zero=_zero(prediction.mel_config))
