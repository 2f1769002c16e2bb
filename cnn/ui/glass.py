"""What the Inside tab asks of a network: one small seam. Filled by a network in this process; one elsewhere only needs
to give the same answers."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch

from cnn import inside
from cnn.anatomy import Anatomy, anatomy
from cnn.atlas import NAME, Atlas, AtlasError, read
from cnn.audio import Clip
from cnn.checkpoint import BOX
from cnn.classifier import Classifier, Prediction
from cnn.inside import Look
from cnn.serve.remote import Network
from cnn.serve.service import Service


class NotAtHand(RuntimeError):
    """This network cannot be looked into from here. The sentence is for visitors."""


class Glass(Protocol):
    """A network that can be looked into. Raises what its computations raise: AudioError, ValueError, NotAtHand."""

    def predict(self, clip: Clip) -> Prediction: ...
    def anatomy(self) -> Anatomy: ...
    def look(self, clip: Clip, tap: str, *, label: str | None, window: int, channels: Sequence[int] = ()) -> Look: ...
    def gates(self, clip: Clip, window: int) -> dict[str, np.ndarray]: ...
    def widest(self, clip: Clip, window: int) -> tuple[float, float]: ...
    def kernels(self) -> np.ndarray: ...
    def atlas(self) -> tuple[Atlas | None, str]: ...


class LocalGlass:
    """A network in this process. Its anatomy, kernels and atlas are read once."""

    def __init__(self, classifier: Classifier, queue: Network | None = None) -> None:
        """`queue`: who answers predict for it."""
        self._classifier, self._queue = classifier, queue or classifier

    def predict(self, clip: Clip) -> Prediction:
        return self._queue.predict(clip, maps="all")

    def anatomy(self) -> Anatomy:
        return self._anatomy

    def look(self, clip: Clip, tap: str, *, label: str | None, window: int, channels: Sequence[int] = ()) -> Look:
        return inside.look(self._classifier, clip, tap, label=label, window=window, channels=channels)

    def gates(self, clip: Clip, window: int) -> dict[str, np.ndarray]:
        return inside.gates(self._classifier, clip, window=window)

    def widest(self, clip: Clip, window: int) -> tuple[float, float]:
        """The lowest and the highest of all cells of all channels of all maps."""
        parts, _, _ = self._classifier.cut(clip)
        _, ends = self._classifier.read(parts[window][None], self._classifier.map_taps, _ends)
        return min(float(low) for low, _ in ends.values()), max(float(high) for _, high in ends.values())

    def kernels(self) -> np.ndarray:
        return self._kernels

    def atlas(self) -> tuple[Atlas | None, str]:
        """What excites its channels; or None and, in words, why there is none."""
        return self._atlas

    @cached_property
    def _anatomy(self) -> Anatomy:
        return anatomy(self._classifier)

    @cached_property
    def _kernels(self) -> np.ndarray:
        return inside.kernels(self._classifier)

    @cached_property
    def _atlas(self) -> tuple[Atlas | None, str]:
        beside = self._classifier.path and self._classifier.path.with_name(NAME)
        for path in ([beside] if beside and beside.is_file() else []) + sorted(BOX.glob(f"*/{NAME}")):
            try:
                return read(path, self._classifier), ""
            except AtlasError:  # of other weights
                continue
        return None, (
            "Which sounds excite this channel is not known for this network; python -m cnn.atlas --model FILE finds it "
            "out and writes it beside the file."
        )


@lru_cache(maxsize=8)
def glass(network: Network) -> Glass:
    """To look into `network`. Raises NotAtHand for one that runs elsewhere."""
    if isinstance(network, Service):
        return LocalGlass(network.classifier, network)
    if isinstance(network, Classifier):
        return LocalGlass(network)
    raise NotAtHand(
        "This page's network runs on another server, which names sounds but does not let visitors look inside it. "
        "Load a best_model.pth below, or run the app on your own computer."
    )


def _ends(values: torch.Tensor) -> torch.Tensor:
    """Lowest and highest cell of one window's map, (1, C, f, t) -> (2,)."""
    return torch.stack([values.amin(), values.amax()])
