"""What another server answered, checked, and made again into what it was made of. Whatever is not as this project
writes it raises ValueError, KeyError, TypeError, AttributeError or OverflowError."""

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import soundfile

from cnn.anatomy import Anatomy, Part
from cnn.atlas import Atlas
from cnn.audio import Clip
from cnn.classifier import Label, Prediction
from cnn.explain import Explanation
from cnn.explain import Part as ExplainedPart
from cnn.inside import Channel, Look
from cnn.labels import ESC50
from cnn.mel import MelConfig
from cnn.serve.payload import numbers
from cnn.spectrum import split

NAMES = {  # of a part, by its kind
    "stem": r"conv1", "block": r"layer[1-9]\.block\d{1,2}", "gate": r"layer[1-9]\.block\d{1,2}\.se",
    "pyramid": r"fpn\.p[1-9]", "head": "head",
}  # fmt: skip
MOST = 1000  # networks that a server may list, or clips of an atlas: more is no true answer
NOWHERE = os.devnull  # below it there is no file: the folder of clips that only the other server has


@dataclass(frozen=True, eq=False)
class Heard(Prediction):
    """A Prediction that knows of which network it is."""

    by: Any = None  # the Network that gave it
    weights: str = ""  # what that network said its weights are


def prediction(clip: Clip, answer: dict[str, Any], with_maps: bool) -> Heard:
    """The Prediction that POST /v1/classify made its answer of."""
    names = tuple(answer["logits"])
    logits = _finite(list(answer["logits"].values()), (len(names),))  # (N,)
    _require(0 < len(names) <= len(ESC50) and set(names) <= set(ESC50), "classes")
    told = answer["windows"]
    starts = _finite(told["starts"], (len(told["starts"]),))  # (B,)
    every = _finite(told["probabilities"], (len(starts), len(names)))  # (B, N)
    shown = told["shown"]
    _require(isinstance(shown, int) and 0 <= shown < len(starts), "window shown")
    _require(0 <= every.min() and every.max() <= 1, "probabilities")
    heard = every.any(axis=1)
    config = MelConfig(**answer["spectrogram"]["front_end"])
    for f in fields(config):
        _require(type(getattr(config, f.name)) in ((int, float) if f.type is float else (f.type,)), f.name)
    common = {
        "clip": clip, "message": text(answer["message"]), "starts": starts.astype(np.float64), "mel_config": config,
        "device": text(answer["device"]), "network": text(answer["network"]), "logits": logits,
        "weights": text(answer.get("weights", "")),
    }  # fmt: skip
    if answer["verdict"] == "silent":
        _require(not heard.any(), "silence")
        return Heard(labels=(), verdict="silent", window_probabilities=every, window=0, mel=None, maps={}, shapes={},
                     **common)  # fmt: skip
    _require(answer["verdict"] == "named" and heard[shown], "verdict")
    if heard.sum() == 1:  # written to four digits; from the logits they can be had in full
        shifted = np.exp(logits - logits.max(), dtype=np.float64)
        every[shown] = shifted / shifted.sum()
    probabilities = every[heard].mean(axis=0, dtype=np.float64)
    order = [names.index(x["class"]) for x in answer["predictions"]]  # its own: rounded, two may look alike
    _require(sorted(order) == list(range(len(names))), "predictions")
    mel = _matrix(answer["spectrogram"])
    _require(mel.shape == (config.n_mels, config.frames), "spectrogram")
    maps, shapes = _maps(answer["maps"]) if with_maps else ({}, {})
    return Heard(
        labels=tuple(Label(names[i], float(probabilities[i]), float(logits[i])) for i in order),
        verdict="named",
        window_probabilities=every,
        window=shown,
        mel=mel,
        maps=maps,
        shapes=shapes,
        **common,
    )


def _maps(told: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, int, int]]]:
    """Channel means and true sizes by tap."""
    maps, shapes = {}, {}
    for tap, values in told.items():
        maps[tap] = _matrix(values)  # (f, t)
        channels, *size = shapes[tap] = tuple(values["size"])
        _require(re.fullmatch(r"[\w.]{1,40}", tap) is not None, "taps")
        _require(all(type(n) is int for n in (channels, *size)), "sizes")
        _require(maps[tap].ndim == 2 and maps[tap].shape == tuple(size) and maps[tap].size > 0, tap)
    _require(bool(maps), "maps")
    return maps, shapes


# --- the network at work ---------------------------------------------------------------------------------------------


def look(
    told: dict[str, Any], tap: str, shape: Sequence[int], *, label: str | None, window: int | None,
    channels: Sequence[int],
) -> Look:  # fmt: skip
    """What POST /v1/maps answered of `tap`, whose shape is (C, f, t), to these questions. None, no channels: any."""
    _require(told["tap"] == tap and tuple(told["shape"]) == tuple(shape), "tap and shape")
    _require(label in (None, told["label"]) and window in (None, told["window"]), "label and window")
    count, *size = shape
    shown = tuple(_channel(channel, count, size) for channel in told["channels"])
    indices = [channel.index for channel in shown]
    _require(indices == list(channels) if channels else 0 < len(indices) == len(set(indices)), "channels")
    mean = _matrix(told["mean"])
    _require(mean.shape == tuple(size), "mean")
    _require(type(told["exact"]) is bool, "exactness")
    return Look(
        tap=tap,
        shape=tuple(shape),
        window=_count(told["window"]),
        start=_number(told["start"]),
        label=text(told["label"]),
        logit=_number(told["logit"]),
        exact=told["exact"],
        rest=_number(told["rest"]),
        mean=mean,
        shares=_finite(told["shares"], (count,), np.float64),
        low=_number(told["low"]),
        high=_number(told["high"]),
        silent=_count(told["silent"], count),
        channels=shown,
    )


def _channel(told: dict[str, Any], count: int, size: Sequence[int]) -> Channel:
    values = _matrix(told["values"])
    _require(values.shape == tuple(size), "values")
    kept = {name: _number(told[name]) for name in ("share", "low", "mean", "high", "active")}
    return Channel(index=_count(told["index"], count - 1), values=values, **kept)


def gates(told: dict[str, Any], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """By tap (C,) in 0..1, of `sizes` the C."""
    found = {tap: _finite(told["gates"][tap], (count,)) for tap, count in sizes.items()}
    _require(all(0 <= values.min() and values.max() <= 1 for values in found.values()), "gates")
    return found


def span(told: dict[str, Any]) -> tuple[float, float]:
    """The lowest and the highest cell of the network."""
    low, high = (_number(x) for x in told["range"])
    _require(low <= high, "range")
    return low, high


def explanation(told: dict[str, Any], clip: Clip) -> Explanation:
    """What POST /v1/explain answered of `clip`, with the map, the random part and all that was heard of every part. The
    evidence and what is left without it come of the mask, here as there."""
    whole = told["heard"]["original"]
    config = prediction(clip, whole, False).mel_config
    mask, values, start, gain = (
        _matrix(told["mask"]),
        _matrix(told["map"]),
        _number(told["start"]),
        _number(told["gain"]),
    )
    _require(mask.shape == (config.n_mels, config.frames) and 0 <= mask.min() and mask.max() <= 1, "mask")
    _require(values.ndim == 2 and values.size > 0 and type(told["reliable"]) is bool, "map and verdict")
    samples = clip.samples[round(start * clip.rate) :][: round(config.seconds * clip.rate)]
    _require(start >= 0 and 0 < gain <= 1, "start and gain")
    sounds = {
        "original": samples,
        "random": _samples(told["audio"]["random"], clip.rate, len(samples)) / np.float32(gain),
    }
    sounds |= zip(("evidence", "remainder"), split(samples, clip.rate, mask, config), strict=True)
    label = text(told["label"])
    return Explanation(
        label=label,
        against=None if told["against"] is None else text(told["against"]),
        method=text(told["method"]),
        tap=text(told["tap"]),
        window=_count(told["window"]),
        start=start,
        mel_config=config,
        map=values,
        mask=mask,
        area=_number(told["area"]),
        random_remainder=_number(told["random_remainder"]),
        reliable=told["reliable"],
        verdict=text(told["verdict"]),
        where=text(told["where"]),
        **{name: _heard_again(name, told["heard"][name], label, clip, sound) for name, sound in sounds.items()},
    )


def _heard_again(name: str, said: dict[str, Any] | None, label: str, clip: Clip, samples: np.ndarray) -> ExplainedPart:
    sound = Clip(samples, clip.rate, f"{clip.name} ({name})".strip())
    heard = None if said is None else prediction(sound, said, False)
    _require(heard is None or bool(heard.labels), "what was heard")
    return ExplainedPart(name, sound, heard.probability(label) if heard else 0.0, heard)


def _samples(wav: str, rate: int, count: int) -> np.ndarray:
    """(count,) of a file in base64."""
    try:
        samples, its = soundfile.read(io.BytesIO(base64.b64decode(wav, validate=True)), count + 1, dtype="float32")
    except soundfile.SoundFileError as e:
        raise ValueError(f"audio is none: {e}") from e
    _require(samples.shape == (count,) and its == rate, "audio")
    return samples


# --- the network itself ----------------------------------------------------------------------------------------------


def anatomy(told: dict[str, Any]) -> Anatomy:
    """With parts as a network of this project has them, in their order."""
    found = Anatomy.from_dict(told)
    kinds = [part.kind for part in found.parts]
    _require(kinds[0] == "stem" and kinds[-1] == "head" and "block" in kinds, "parts")
    _require(len({part.name for part in found.parts}) == len(found.parts) < MOST, "names of parts")
    text(found.network)
    for part in found.parts:
        _part(part)
        _require(part.kind == "gate" or all(tap in found.fields for tap in part.taps), "fields")
    for tap, field in found.fields.items():
        _require(any(tap in part.taps for part in found.parts), "fields")
        _require(all(type(n) is int for n in (field.stride, field.size, field.start)), "fields")
        _require(field.stride > 0 and field.size > 0, "fields")
    for n in (*found.picture, found.parameters, found.multiply_adds):
        _count(n)
    _require(len(found.picture) == 2, "picture")
    _require(type(found.groups) is int and found.groups > 0, "groups")
    _require(found.parts[0].shape[0] % found.groups == 0, "groups")
    return found


def _part(part: Part) -> None:
    _require(re.fullmatch(NAMES[part.kind], part.name) is not None, "name of a part")
    _require(part.stage == part.name.partition(".")[0], "stage")
    _require(len(part.shape) == (1 if part.kind in ("gate", "head") else 3), "shape")
    for n in (*part.shape, part.parameters, part.multiply_adds):
        _count(n)
    ends = {"block": [f"{part.name}.conv", f"{part.name}.relu"], "head": []}.get(part.kind, [part.name])
    taps = list(part.taps)
    _require(min(part.shape) > 0 and taps in (ends, [*ends, part.stage] if part.kind == "block" else ends), "taps")


def kernels(told: dict[str, Any], count: int) -> np.ndarray:
    """(C, k, k), of which C is `count`; k is 7 where the first convolution takes steps of two cells."""
    found = _matrix(told)
    _require(found.ndim == 3 and found.shape == (count, *found.shape[1:2] * 2) and found.shape[1] <= MOST, "kernels")
    return found


def atlas(told: dict[str, Any] | None, why: str, of: Anatomy) -> tuple[Atlas | None, str]:
    """For the network `of`. Of the clips only the examples are also here."""
    if told is None:
        return None, text(why)
    clips = tuple({text(key): text(value) for key, value in clip.items()} for clip in told["clips"])
    _require(len(clips) <= MOST, "clips")
    for clip in clips:
        file = PurePosixPath(clip["file"])
        _require(not file.is_absolute() and ".." not in file.parts and clip["label"] != "", "clips")
    excites: dict[str, list[list[tuple[int, float, float]]]] = {}
    for part in (part for part in of.parts if part.kind not in ("gate", "head")):
        rows = told["excites"][f"{part.name}.relu" if part.kind == "block" else part.name]
        _require(len(rows) == part.shape[0], "channels")
        found = [[_peak(row, len(clips)) for row in channel] for channel in rows]
        excites |= dict.fromkeys(part.taps, found)  # a map peaks before its ReLU where it does behind it
    opened = gates(told, {part.name: part.shape[0] for part in of.parts if part.kind == "gate"})
    usual = {tap: values.tolist() for tap, values in opened.items()}
    return Atlas(clips, excites, usual, text(told["weights"]), "" if told["examples"] is True else NOWHERE), ""


def _peak(row: Sequence[Any], clips: int) -> tuple[int, float, float]:
    clip, peak, seconds = row
    _require(_number(peak) >= 0 and _number(seconds) >= 0, "peaks")
    return _count(clip, clips - 1), _number(peak), _number(seconds)


def models(told: dict[str, Any]) -> list[dict[str, Any]]:
    """What GET /v1/models lists."""
    listed = told["models"]
    _require(0 < len(listed) <= MOST, "models")
    return [_model(model) for model in listed]


def _model(told: dict[str, Any]) -> dict[str, Any]:
    accuracy, fold, parameters = (told.get(key) for key in ("accuracy", "fold", "parameters"))
    _require(type(told["default"]) is bool and len(told["classes"]) <= MOST, "models")
    return {
        "name": text(told["name"]),
        "default": told["default"],
        "network": text(told["network"]),
        "parameters": None if parameters is None else _count(parameters),
        "sample_rate": _count(told["sample_rate"]),
        "classes": [text(name) for name in told["classes"]],
        "accuracy": None if accuracy is None else _number(accuracy),
        "fold": None if fold is None else _count(fold),
        "data": text(told["data"]),
        "licence": text(told["licence"]),
    }


# --- numbers and words -----------------------------------------------------------------------------------------------


def text(value: Any) -> str:
    """For people: at most 300 characters that can be printed."""
    _require(isinstance(value, str), "text")
    return "".join(c for c in value[:300] if c.isprintable())


def _matrix(told: dict[str, Any]) -> np.ndarray:
    _finite([told["low"], told["high"]], (2,))
    return numbers(told)


def _finite(values: Any, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    array = np.array(values, dtype)
    _require(array.shape == shape and bool(np.isfinite(array).all()), "numbers")
    return array


def _number(value: Any) -> float:
    _require(type(value) in (int, float), "numbers")
    return float(_finite(value, (), np.float64))


def _count(value: Any, most: int = 2**53) -> int:
    _require(type(value) is int and 0 <= value <= most, "numbers")
    return value


def _require(fine: bool, what: str) -> None:
    if not fine:
        raise ValueError(f"{what} are not as they should be")
