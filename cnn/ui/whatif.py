"""The forms of the Why tab in which a sound is changed, and what they ask."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from cnn.ui.said import NoSuch
from cnn.ui.strip import asking
from cnn.whatif import Band, Edit, Erase, Gain, History, Noise, Shift

_NUMBER = '<label>{before} <input type="number" name="{name}" step="any" value="{value}" {needed}> {after}</label>'


def _form(kind: str, head: str, help: str, button: str, *numbers: str) -> str:
    return (
        f'<form class="edit" data-edit="{kind}"><h4>{head}</h4><p>{help}</p>'
        f'<div class="numbers">{"".join(numbers)}</div><button>{button}</button></form>'
    )


def _number(name: str, before: str, after: str, value: str = "", needed: str = "required") -> str:
    return _NUMBER.format(name=name, before=before, after=after, value=value, needed=needed)


FORMS = '<div class="edits">' + "".join((
    _form(
        "erase", "Erase a rectangle", "A stretch of time and of pitch falls silent. A stretch that is selected on the "
        "clock is filled in.", "Erase",
        _number("start", "from", ""), _number("end", "to", "s"),
        _number("low", "from", "", "0"), _number("high", "to", "Hz", "8000"),
    ),
    _form(
        "band", "Filter", "Keep a band of pitch. Leave one field empty for a low-pass or a high-pass.", "Filter",
        _number("low", "from", "", "300", ""), _number("high", "to", "Hz", "3000", ""),
    ),
    _form(
        "noise", "Add noise", "Hiss behind the sound, weaker than that by so many dB.", "Add noise",
        _number("below", "by", "dB", "20"),
    ),
    _form(
        "gain", "Louder or softer", "6 dB is twice the swing of the air, −6 dB half.", "Change",
        _number("db", "by", "dB", "-20"),
    ),
    _form(
        "shift", "Move in time", "Later, or earlier with a minus. What leaves at the end comes in at the start.",
        "Move", _number("seconds", "by", "s", "0.5"),
    ),
)) + "</div>"  # fmt: skip
TOOLS = (
    '<div class="tools" role="group" aria-label="Change the sound"><button type="button" data-mode="erase" '
    'aria-pressed="false">Draw to erase</button>'
    + "".join(
        f'<button type="button" {asking(step=step)}>{text}</button>'
        for step, text in (("undo", "Undo"), ("redo", "Redo"), ("reset", "Start over"))
    )
    + '<span class="hint">Draw a rectangle on a picture; Escape ends this.</span></div>'
)
_KINDS: dict[str, tuple[type, tuple[str, ...]]] = {
    "erase": (Erase, ("start", "end", "low", "high")),
    "noise": (Noise, ("below",)),
    "band": (Band, ("low", "high")),
    "gain": (Gain, ("db",)),
    "shift": (Shift, ("seconds",)),
}


def moved(history: History, asked: dict[str, Any]) -> History:
    """Where a click in the tab leads. Raises NoSuch for what no button asks, and where nothing is left to undo."""
    if "edit" in asked:
        return history.then(_edit(asked, seed=len(history.done)))
    turn = {"undo": history.undo, "redo": history.redo, "reset": history.reset}.get(str(asked.get("step")))
    if turn is None:
        raise NoSuch("This page has no such change.")
    if turn() == history:
        raise NoSuch("There is nothing to redo." if asked["step"] == "redo" else "There is nothing to undo.")
    return turn()


def _edit(asked: dict[str, Any], seed: int) -> Edit:
    if asked["edit"] not in _KINDS:
        raise NoSuch("This page has no such change.")
    kind, names = _KINDS[asked["edit"]]
    numbers = [asked.get(name) for name in names]
    optional = kind is Band
    if not all((optional and x is None) or (type(x) in (int, float) and math.isfinite(x)) for x in numbers):
        raise NoSuch("Fill in every number first.")
    edit = kind(*numbers)
    return Noise(edit.below, seed) if kind is Noise else edit  # twice the same noise would be one, but louder


def steps(history: History, notes: Sequence[str]) -> str:
    """What was done, in words, in its order, and what is to be known about the sound that it made."""
    if not history.done:
        return '<p class="steps">No change yet: this is the sound as it came.</p>'
    listed = "".join(f"<li>{escape(str(edit))}</li>" for edit in history.done)
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f'<div class="steps"><h4>What was changed</h4><ol>{listed}</ol>{said}</div>'
