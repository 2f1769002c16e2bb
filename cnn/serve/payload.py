"""A Prediction as JSON: the family's payload and this project's own, /v1. Plain types, no NaN."""

import base64
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cnn.classifier import Prediction
from cnn.labels import ESC50

INCLUDES = ("spectrogram", "waveform", "stages", "maps", "logits", "windows")
POINTS = 8000  # of a waveform, about


def family(prediction: Prediction) -> dict[str, Any]:
    """The payload of this project's ancestors, which their clients draw: three names, the mel picture in dB, the
    waveform, and the channel means of every tap whose maps were computed. Four significant digits."""
    return {
        "predictions": _named(prediction, 3),
        "visualization": {tap: _numbers(values) for tap, values in prediction.maps.items()},
        "input_spectrogram": _numbers(prediction.mel if prediction.mel is not None else np.zeros((0, 0))),
        "waveform": {
            "values": [short(x) for x in outline(prediction.clip.samples).tolist()],
            "sample_rate": prediction.clip.rate,
            "duration": short(prediction.clip.seconds),
        },
    }


def v1(prediction: Prediction, top: int, include: Collection[str], classes: Sequence[str] = ESC50) -> dict[str, Any]:
    """The answer of POST /v1/classify: the `top` names, and what of INCLUDES is wanted. `maps` holds what taps were
    computed, also for `stages`. `classes` are the network's, in the order of its logits."""
    clip = prediction.clip
    answer: dict[str, Any] = {
        "predictions": _named(prediction, top),
        "verdict": prediction.verdict,
        "message": prediction.message,
        "duration": short(clip.seconds),
        "sample_rate": clip.rate,
        "channels": clip.channels,
        "format": clip.format,
        "lossy": clip.lossy,
        "notes": list(clip.notes),
        "timings": {step: short(seconds) for step, seconds in prediction.timings.items()},
        "device": prediction.device,
        "network": prediction.network,
    }
    if "logits" in include:
        answer["logits"] = {
            name: x if math.isfinite(x) else 0.0 for name, x in zip(classes, prediction.logits.tolist(), strict=True)
        }
    if "windows" in include:
        answer["windows"] = {
            "starts": [round(x, 4) for x in prediction.starts.tolist()],
            "probabilities": [[short(x) for x in row] for row in prediction.window_probabilities.tolist()],
            "shown": prediction.window,
        }
    if "waveform" in include:
        points = outline(clip.samples)
        answer["waveform"] = matrix(points) | {"sample_rate": clip.rate, "duration": short(clip.seconds)}
    if "spectrogram" in include:
        mel = prediction.mel if prediction.mel is not None else np.zeros((0, 0))
        answer["spectrogram"] = matrix(mel) | {"front_end": asdict(prediction.mel_config)}
    if "stages" in include or "maps" in include:
        answer["maps"] = {
            tap: matrix(values) | {"size": list(prediction.shapes[tap])} for tap, values in prediction.maps.items()
        }
    return answer


def matrix(values: np.ndarray) -> dict[str, Any]:
    """Any shape -> {shape, low, high, data}: base64 of little-endian uint16 n, value = low + (high - low) n / 65535.

    NaN counts as the lowest value, infinity as the end of the range that it lies beyond.
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    sensible = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    steps = np.rint((sensible - low) * (65535.0 / (high - low))) if high > low else np.zeros(values.shape)
    data = base64.b64encode(steps.astype("<u2").tobytes()).decode("ascii")
    return {"shape": list(values.shape), "low": low, "high": high, "data": data}


def numbers(matrix: dict[str, Any]) -> np.ndarray:
    """The values of `matrix` again, float32, to 1/65535 of their range. Raises ValueError, KeyError or TypeError for
    what is no such dictionary."""
    steps = np.frombuffer(base64.b64decode(matrix["data"], validate=True), "<u2").reshape(matrix["shape"])
    low, high = float(matrix["low"]), float(matrix["high"])
    return (low + (high - low) * (steps / 65535.0)).astype(np.float32)


def outline(samples: np.ndarray) -> np.ndarray:
    """(N,) -> about POINTS of its samples, as they are if there are no more: of each stretch the lowest and the highest
    in the order in which they come. Every n-th sample would alias, and miss clicks."""
    if len(samples) <= POINTS:
        return samples
    step = -(-2 * len(samples) // POINTS)
    stretches = np.pad(samples, (0, -len(samples) % step), mode="edge").reshape(-1, step)
    ends = np.sort(np.stack([stretches.argmin(axis=1), stretches.argmax(axis=1)], axis=1), axis=1)
    return np.take_along_axis(stretches, ends, axis=1).reshape(-1)


def _named(prediction: Prediction, top: int) -> list[dict[str, Any]]:
    return [{"class": label.name, "confidence": short(label.probability)} for label in prediction.labels[:top]]


def _numbers(values: np.ndarray) -> dict[str, Any]:
    return {"shape": list(values.shape), "values": [[short(x) for x in row] for row in values.tolist()]}


def short(value: float) -> float:
    """Four significant digits; 0 for what JSON cannot say."""
    return float(f"{value:.4g}") if math.isfinite(value) else 0.0
