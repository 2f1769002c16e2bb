"""What programs ask of a network's inside, as plain types for JSON: one tap while a sound is heard (POST /v1/maps, the
page's endpoint /maps), what is the same for every sound (GET /v1/inside), and why a sound is named so (POST
/v1/explain). Numbers of a tap are given in full: a page that rounds them again must come to the same."""

import base64
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnn.atlas import HEARD, Atlas
from cnn.audio import Clip
from cnn.explain import Explanation
from cnn.inside import Channel, Look
from cnn.serve.glass import MOST, Glass
from cnn.serve.payload import matrix, v1

INCLUDES = ("gates", "range")
PARTS = ("anatomy", "kernels", "atlas")
WHY_INCLUDES = ("map", "audio", "random", "heard")


@dataclass(frozen=True)
class Question:
    """What is to be seen of one sound."""

    tap: str  # a map, or a block's gates
    channels: tuple[int, ...] = ()  # none: the `most` that matter most for the label
    most: int = MOST
    label: str | None = None  # whose logit the channels share; None: the first name
    window: int | None = None  # None: the one that a Prediction shows
    include: frozenset[str] = frozenset()  # of INCLUDES


def channels(text: str | None) -> tuple[int, ...]:
    """'3, 17' -> (3, 17): each once, in the order in which they are named. Raises ValueError."""
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if wrong := [word for word in words if not (word.isascii() and word.isdecimal() and len(word) < 10)]:
        raise ValueError(f"channels has {wrong[0][:60]!r}; give whole numbers with commas between, such as 3,17")
    return tuple(dict.fromkeys(map(int, words)))


def maps(glass: Glass, clip: Clip, asked: Question, write: Callable[[np.ndarray], Any] = matrix) -> dict[str, Any]:
    """The answer of POST /v1/maps but for who gave it; every picture as `write` puts it. Raises AudioError for silence,
    ValueError for what there is not, naming what there is."""
    if any(part.name == asked.tap for part in glass.anatomy().parts if part.kind == "gate"):
        window = glass.predict(clip).window if asked.window is None else asked.window
        answer: dict[str, Any] = {"tap": asked.tap, "window": window}
        gates = glass.gates(clip, window)
        shown = gates if "gates" in asked.include else {asked.tap: gates[asked.tap]}
    else:
        look = glass.look(
            clip, asked.tap, label=asked.label, window=asked.window, channels=asked.channels, most=asked.most
        )
        window, answer = look.window, _looked(look, write)
        shown = glass.gates(clip, window) if "gates" in asked.include else None
    if shown is not None:
        answer["gates"] = {tap: [round(x, 6) for x in values.tolist()] for tap, values in shown.items()}
    if "range" in asked.include:
        answer["range"] = [_finite(x) for x in glass.widest(clip, window)]
    return answer


def static(glass: Glass, include: Collection[str]) -> dict[str, Any]:
    """The answer of GET /v1/inside but for who gave it: what of PARTS is wanted."""
    answer: dict[str, Any] = {}
    if "anatomy" in include:
        answer["anatomy"] = glass.anatomy().to_dict()
    if "kernels" in include:
        answer["kernels"] = matrix(glass.kernels())
    if "atlas" in include:
        atlas, why = glass.atlas()
        answer |= {"atlas": atlas and _excites(atlas), "why": why}
    return answer


def explained(explanation: Explanation, include: Collection[str], labels: Sequence[str]) -> dict[str, Any]:
    """The answer of POST /v1/explain but for who gave it: with what of WHY_INCLUDES is wanted. `labels` are the
    network's, in the order of its logits."""
    told = explanation.to_dict()
    answer = {"label": told.pop("class")} | told | {"start": explanation.start, "mask": matrix(explanation.mask)}
    if "map" in include:
        answer["map"] = matrix(explanation.map)
    sounds = explanation.parts if "audio" in include else (explanation.random,) if "random" in include else ()
    if sounds:
        files = {part.name: base64.b64encode(explanation.wav(part)).decode("ascii") for part in sounds}
        answer |= {"audio": files, "gain": explanation.gain}
    if "heard" in include:
        heard = {part.name: part.prediction for part in explanation.parts}
        wanted = ("logits", "windows", "spectrogram")
        answer["heard"] = {k: said and v1(said, len(labels), wanted, labels) for k, said in heard.items()}
    return answer


def _looked(look: Look, write: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    return {
        "tap": look.tap,
        "shape": list(look.shape),
        "window": look.window,
        "start": round(look.start, 4),
        "label": look.label,
        "logit": _finite(look.logit),
        "exact": look.exact,
        "rest": _finite(look.rest),
        "shares": [_finite(x) for x in look.shares.tolist()],
        "low": _finite(look.low),
        "high": _finite(look.high),
        "silent": look.silent,
        "mean": write(look.mean),
        "channels": [_channel(channel, write) for channel in look.channels],
    }


def _channel(channel: Channel, write: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    numbers = {name: _finite(getattr(channel, name)) for name in ("share", "low", "mean", "high", "active")}
    return {"index": channel.index} | numbers | {"values": write(channel.values)}


def _excites(atlas: Atlas) -> dict[str, Any]:
    """Without the taps that peak where another does, and without the folder in which this server has the clips."""
    return {
        "clips": list(atlas.clips),
        "examples": not atlas.root,
        "excites": {tap: rows for tap, rows in atlas.excites.items() if HEARD.fullmatch(tap)},
        "gates": atlas.gates,
        "weights": atlas.weights,
    }


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
