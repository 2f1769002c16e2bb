"""The network at work: what one tap holds while one window of a clip is heard, and what each channel of it adds to a
class's logit.

    look(classifier, load("dog.ogg"), "layer4").channels[0].share

A share is exact where the head is linear in the tap: the logit is the sum of the shares and the bias. Anywhere else it
is gradient times activation, summed over the channel's cells: how the logit would grow at first if the whole channel
were turned up. That is an approximation: between tap and logit lie ReLUs, which the gradient takes for the lines that
they are at this very sound. C channels, f x t cells of a map.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cnn.audio import AudioError, Clip
from cnn.classifier import Classifier


@dataclass(frozen=True, eq=False)
class Channel:
    index: int
    share: float  # what it adds to the class's logit; below 0 it speaks against the class
    low: float  # of its cells; low == high == 0 behind a ReLU: it is silent for this sound
    mean: float
    high: float
    active: float  # share of its cells above 0, in 0..1
    values: np.ndarray  # (f, t) float32, lowest frequency first


@dataclass(frozen=True, eq=False)
class Look:
    """One tap while one window of a clip is heard."""

    tap: str
    shape: tuple[int, int, int]  # (C, f, t)
    window: int
    start: float  # of the window, seconds into the clip
    label: str
    logit: float  # of the label, of this window alone
    exact: bool  # the head is linear in this tap; else the shares are gradient times activation
    rest: float  # logit - sum of the shares: if exact the bias (of pyramid levels: and the other levels), else what the
    # biases between tap and logit add, large early in the network, and (gates) what is not linear
    mean: np.ndarray  # (f, t) over the channels
    shares: np.ndarray  # (C,) of every channel
    low: float  # of all channels' cells
    high: float
    silent: int  # channels without a cell above 0
    channels: tuple[Channel, ...]


def look(
    classifier: Classifier,
    clip: Clip,
    tap: str,
    *,
    label: str | None = None,
    window: int | None = None,
    channels: Sequence[int] = (),
    most: int = 8,
) -> Look:
    """What `tap` holds of the clip, with `channels` or else the `most` that matter most: largest |share|, ordered from
    the one that speaks most for the label to the one that speaks most against it.

    Without a label it is the clip's first name, without a window the one that a Prediction shows; where both are given,
    only that window is heard. Raises AudioError for silence, ValueError for what there is not, naming what there is.
    """
    _check_tap(classifier, tap)
    count = classifier.model.taps[tap].channels
    if wrong := [c for c in channels if not 0 <= c < count]:
        raise ValueError(f"{tap} has no channel {wrong[0]}; its channels are 0 to {count - 1}")
    if most < 1:
        raise ValueError(f"the {most} channels that matter most were asked for; ask for 1 or more")
    waveform, window, start, label = window_of(classifier, clip, window, label)
    logits, values, slope = classifier.gradient(waveform, tap, label)  # (N,), (C, f, t), (C, f, t)
    shares = np.einsum("cft,cft->c", values, slope, dtype=np.float64)
    row = classifier.labels.index(label)
    logit, exact = float(logits[row]), _is_linear_behind(classifier, tap)
    rest = logit - float(shares.sum())
    if exact and not classifier.config.fpn_channels:
        rest = float(classifier.model.head[-1].bias[row])
    shown = list(channels)
    if not shown:
        largest = np.argsort(-np.abs(shares), kind="stable")[:most]
        shown = sorted(largest.tolist(), key=lambda c: -shares[c])
    return Look(
        tap=tap,
        shape=values.shape,
        window=window,
        start=start,
        label=label,
        logit=logit,
        exact=exact,
        rest=rest,
        mean=values.mean(axis=0, dtype=np.float64).astype(np.float32),
        shares=shares,
        low=float(values.min()),
        high=float(values.max()),
        silent=int((values <= 0).all(axis=(1, 2)).sum()),
        channels=tuple(_channel(c, shares[c], values[c]) for c in shown),
    )


def gates(classifier: Classifier, clip: Clip, *, window: int | None = None) -> dict[str, np.ndarray]:
    """By tap the (C,) factors in 0..1 that squeeze-and-excitation sets each channel's volume to while the window is
    heard; {} for a network without. Raises as `look`."""
    taps = [name for name, tap in classifier.model.taps.items() if not tap.is_map]
    if not taps:
        return {}
    waveform, *_ = window_of(classifier, clip, window, classifier.labels[0])  # gates serve no one class
    _, kept = classifier.read(waveform[None], taps, torch.clone)
    return {tap: values[0] for tap, values in kept.items()}


def kernels(classifier: Classifier) -> np.ndarray:
    """(C, k, k) float32 of the checkpoint's own first convolution, lowest frequency and earliest frame first: channel c
    rises where the picture looks like kernel c. Where BatchNorm turns the sign afterwards, that is done here."""
    state = classifier.checkpoint.state_dict
    weights, scale = state["conv1.weight"][:, 0].float(), state["bn1.weight"]
    return torch.where(scale[:, None, None] < 0, -weights, weights).numpy()


def _channel(index: int, share: float, values: np.ndarray) -> Channel:
    return Channel(
        index=int(index),
        share=float(share),
        low=float(values.min()),
        mean=float(values.mean(dtype=np.float64)),
        high=float(values.max()),
        active=float((values > 0).mean()),
        values=values.copy(),
    )


def _check_tap(classifier: Classifier, tap: str) -> None:
    known = classifier.map_taps
    if tap in classifier.model.taps and tap not in known:
        raise ValueError(f"{tap} holds gates, one number a channel, and no map: ask for the gates")
    if tap not in known:
        raise ValueError(f"tap {tap!r} is unknown; {classifier.config.name} has {', '.join(known)}")


def window_of(
    classifier: Classifier, clip: Clip, window: int | None, label: str | None
) -> tuple[np.ndarray, int, float, str]:
    """(samples,), which window it is, its start in seconds, the label. Raises AudioError and ValueError."""
    if label is not None and label not in classifier.labels:
        raise ValueError(f"label {label!r} is unknown; known are {', '.join(classifier.labels)}")
    parts, starts, heard = classifier.cut(clip)
    if window is not None and not 0 <= window < len(parts):
        has = f"windows 0 to {len(parts) - 1}" if len(parts) > 1 else "window 0 only"
        raise ValueError(f"there is no window {window}; this sound has {has}")
    if not heard.any() or label is None or window is None:
        prediction = classifier.predict(clip)
        if not prediction.labels:
            raise AudioError(prediction.message)
        label = prediction.labels[0].name if label is None else label
        window = prediction.window if window is None else window
    if not heard[window]:
        there = ", ".join(map(str, np.flatnonzero(heard)))
        span = f"{starts[window]:.3g} to {starts[window] + classifier.mel.seconds:.3g} s"
        raise ValueError(f"window {window} ({span}) is silent and was not heard; there is sound in {there}")
    return parts[window], int(window), float(starts[window]), label


def _is_linear_behind(classifier: Classifier, tap: str) -> bool:
    """Is the logit a weighted sum of this tap's cells? Means and one linear layer only, no ReLU, must follow."""
    config, last = classifier.config, classifier.model.stages[-1]
    if config.head_hidden:
        return False
    return tap.startswith("fpn.") if config.fpn_channels else tap in (last, f"{last}.block{config.depths[-1] - 1}.relu")
