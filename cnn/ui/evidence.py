"""What is shown of an explanation, in the page and in a saved report: the evidence on the spectrogram, whether to
believe it, what the network says of every part and how that part sounds. HTML; all from outside is escaped."""

import base64
from dataclasses import replace
from functools import partial
from html import escape

from cnn.canvas import WIDE, Layout
from cnn.explain import Explanation, Part
from cnn.labels import spoken
from cnn.pictures import percent, spectrogram
from cnn.report import PLAYABLE, wav
from cnn.ui.figures import figure

METHODS = {"hirescam": "HiResCAM", "layercam": "LayerCAM", "gradcam": "Grad-CAM", "perturbation": "perturbation"}
PARTS = {  # by its name: what a part is called, and what it is
    "before": ("Before the changes", "the sound as it came"),
    "original": ("All of it", "nothing taken away"),
    "evidence": ("Evidence alone", "only what the map shows bright"),
    "remainder": ("Everything else", "the sound without the evidence"),
    "random": ("A random part", "as large as the evidence, anywhere"),
}
CHANGED = ("The changed sound", "nothing else taken away")


def title(explanation: Explanation) -> str:
    against = f" and not {spoken(explanation.against)}" if explanation.against else ""
    return f"Why {spoken(explanation.label)}{against}?"


def pictures(explanation: Explanation, layout: Layout) -> str:
    """The sound that was explained, and straight below the evidence in it; both on the clock."""
    config, heard, scale = explanation.mel_config, explanation.original.prediction.mel, explanation.scale
    sound = spectrogram(heard, scale, floor=config.floor_db, layout=layout, height=140)
    drawn = figure(sound, scale=scale, values=heard, unit="dB") + evidence_map(explanation, layout)
    return f'<div class="erasable" data-top="{config.f_max:g}">{drawn}</div>{where(explanation)}'


def evidence_map(explanation: Explanation, layout: Layout) -> str:
    against = f" rather than {spoken(explanation.against)}" if explanation.against else ""
    sentence = f"Bright and outlined: what speaks for {spoken(explanation.label)}{against}. Dim: what hardly does."
    picture = explanation.picture(layout)
    return figure(picture, sentence, scale=explanation.scale, values=explanation.mask, unit="of 1")


def where(explanation: Explanation) -> str:
    text = explanation.where
    return f'<p class="where">{_words(text[0].upper() + text[1:])}.</p>'


def _words(text: str) -> str:
    """No line ends between a number and its %."""
    return escape(text).replace(" %", "&nbsp;%")


def judgement(explanation: Explanation) -> str:
    """Whether to believe it, told by sign, words and frame, and not by colour alone."""
    sign, head, how = ("✓", "It passes the test", "passes") if explanation.reliable else ("!", "Not reliable", "fails")
    return (
        f'<section class="judgement {how}"><h3><span class="sign" aria-hidden="true">{sign}</span> {head}</h3>'
        f"<p>{_words(explanation.verdict)}</p></section>"
    )


def parts(explanation: Explanation, before: Part | None = None, sounds: dict[str, str] | None = None) -> str:
    """A row for every part: a button to hear it, how sure the network is of the class, and what it names the part.

    `before`: the sound before it was changed, where it was. `sounds`: by name, the addresses of those that can be
    heard; None: assets/parts.js is told them later, of all.
    """
    label = explanation.label
    heard = (*([before] if before else []), *explanation.parts)
    rows = "".join(_row(part, before is not None, sounds) for part in heard)
    return (
        f'<table class="parts" data-start="{explanation.start:g}">'
        "<caption>Each part, heard again by the network</caption>"
        f'<tr><th scope="col">Hear it</th><th scope="col">how sure of {escape(spoken(label))}</th>'
        f'<th scope="col">heard as</th></tr>{rows}</table><p class="unplayed" role="status"></p>'
    )


def _row(part: Part, is_changed: bool, sounds: dict[str, str] | None) -> str:
    called, what = CHANGED if is_changed and part.name == "original" else PARTS[part.name]
    best = part.prediction.labels[0] if part.prediction else None
    named = f"{escape(spoken(best.name))}<small>{percent(best.probability)}</small>" if best else "nothing to hear"
    hear = f'<button type="button" class="hear" data-sound="{part.name}" aria-pressed="false">{called}</button>'
    if sounds is None:
        hear += f'<button type="button" class="keep" data-sound="{part.name}" aria-label="{called}: save">wav</button>'
    elif part.name in sounds:
        hear += f'<audio controls preload="none" aria-label="{called}" src="{escape(sounds[part.name])}"></audio>'
    else:
        hear = called
    return (
        f'<tr class="{part.name}"><th scope="row"><span class="heard">{hear}</span><small>{what}</small></th>'
        f'<td class="share"><span class="bar"><i style="width:{100 * part.probability:.1f}%"></i></span>'
        f"<b>{percent(part.probability)}</b></td><td>{named}</td></tr>"
    )


def section(explanation: Explanation, changes: str = "", before: Part | None = None) -> str:
    """For a saved report: all of it with three of the sounds, 16 bits, within the file. `changes`: as
    cnn.ui.whatif.steps."""
    kept = {}
    for part in (explanation.original, explanation.evidence, explanation.remainder):
        kept[part.name] = f"data:audio/wav;base64,{base64.b64encode(_played(explanation, part)).decode()}"
    how = METHODS.get(explanation.method, explanation.method) + (f" on {explanation.tap}" if explanation.tap else "")
    return (
        f'<section class="why"><h2>{escape(title(explanation))}</h2>{changes}{judgement(explanation)}'
        f"{evidence_map(explanation, WIDE)}{where(explanation)}{parts(explanation, before, kept)}"
        f'<p class="took">Found by {escape(how)}. The evidence is {percent(explanation.area)} of the picture, and so '
        "is the random part.</p></section>"
    )


def sounds(explanation: Explanation, before: Part | None = None) -> dict[str, bytes]:
    """WAV by the part's name, all with the explanation's one gain, at a rate that every browser plays."""
    low, high = PLAYABLE
    made = explanation.wav if low <= explanation.original.clip.rate <= high else partial(_played, explanation)
    heard = {part.name: made(part) for part in explanation.parts}
    if before is None:
        return heard
    loudest = max(1.0, explanation.gain * 10 ** (before.clip.peak_dbfs / 20))  # of a float file, beyond full scale
    quiet = replace(before.clip, samples=before.clip.samples / loudest)
    return {"before": made(replace(before, clip=quiet))} | heard


def _played(explanation: Explanation, part: Part) -> bytes:
    """16 bits, resampled if need be."""
    return wav(replace(part.clip, samples=part.clip.samples * explanation.gain))
