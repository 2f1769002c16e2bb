"""Class-activation maps: which cells of a tap speak for a class, by hand from the tap's output and the gradient.

With A (C, f, t) what the tap holds and G (C, f, t) the gradient of the logit with respect to it:

    hirescam   sum over c of G * A                     Draelos & Carin 2020, arXiv 2011.08891
    gradcam    sum over c of (mean of G over cells) * A    Selvaraju et al. 2017, arXiv 1610.02391
    layercam   sum over c of relu(G) * A               Jiang et al. 2021, doi 10.1109/TIP.2021.3089943

All are given before the ReLU that the papers end with. Where the head is linear in the tap, HiResCAM is exact: its sum
is what the tap adds to the logit. HiResCAM and Grad-CAM are linear in G, so the map of 'why A and not B' is minus the
map of 'why B and not A'; LayerCAM is not. It also follows the tap's own strength most closely: with other weights its
map changes least (tests/test_cam.py measures it, after Adebayo et al. 2018, arXiv 1810.03292).
"""

from collections.abc import Callable, Mapping

import numpy as np

from cnn.classifier import Classifier


def _hirescam(values: np.ndarray, slope: np.ndarray) -> np.ndarray:
    return np.einsum("cft,cft->ft", values, slope)


def _layercam(values: np.ndarray, slope: np.ndarray) -> np.ndarray:
    return np.einsum("cft,cft->ft", values, np.maximum(slope, 0))


def _gradcam(values: np.ndarray, slope: np.ndarray) -> np.ndarray:
    return np.einsum("cft,c->ft", values, slope.mean(axis=(1, 2)))


_MAPS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "hirescam": _hirescam,
    "layercam": _layercam,
    "gradcam": _gradcam,
}
METHODS = tuple(_MAPS)
PYRAMID = "fpn.p1"  # the finest level, if there is one


def taps(classifier: Classifier) -> list[str]:
    """Where a map is worth looking at: stages, the finest first, then the pyramid."""
    model = classifier.model
    return worth({tap: model.taps[tap].stride for tap in (*model.stages, PYRAMID) if tap in model.taps})


def worth(strides: Mapping[str, int]) -> list[str]:
    """Of these taps and their strides those that are fine enough to tell sounds apart and deep enough to know classes:
    stages whose cells stand for 8 to 16 places of the picture, and the finest level of a pyramid; else the last."""
    return [tap for tap, stride in strides.items() if 8 <= stride <= 16 or tap == PYRAMID] or [*strides][-1:]


def cam(
    classifier: Classifier, waveform: np.ndarray, tap: str, label: str, against: str | None = None, *, method: str
) -> np.ndarray:
    """One window (samples,) -> the map (f, t) float32 of any tap that is one, signed: above 0 speaks for the label, or
    for it rather than for `against`. Raises ValueError for an unknown method or label, KeyError for an unknown tap."""
    if method not in _MAPS:
        raise ValueError(f"method {method!r} is unknown; known are {', '.join(METHODS)}")
    _, values, slope = classifier.gradient(waveform, tap, label)
    if against is not None:  # the gradient of a difference is the difference of the gradients
        slope = slope - classifier.gradient(waveform, tap, against)[2]
    return _MAPS[method](values, slope)
