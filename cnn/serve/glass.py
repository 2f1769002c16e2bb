"""What is asked of a network that one looks into: one small seam, for the page's tabs and for programs. Here it
is filled by a network in this process; cnn.serve.remote_glass asks one elsewhere, which gives the same answers."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from cnn import inside
from cnn.anatomy import Anatomy, anatomy
from cnn.atlas import NAME, Atlas, AtlasError, fingerprint, read
from cnn.audio import Clip
from cnn.checkpoint import BOX
from cnn.classifier import Classifier, Prediction, Sound
from cnn.explain import DEFAULT_METHOD, Explanation, explain
from cnn.inside import Look

MOST = 8  # channels that are chosen where none are asked for


class Network(Protocol):
    """Whatever names sounds: a classifier, a service or what asks one elsewhere."""

    def predict(self, sound: Sound, *, maps: str = "none") -> Prediction: ...


class NotAtHand(RuntimeError):
    """This network cannot be looked into from here. The sentence is for visitors; `reason` stands within one."""

    def __init__(self, sentence: str, reason: str = "") -> None:
        super().__init__(sentence)
        self.reason = reason


class Glass(Protocol):
    """A network that can be looked into. Raises what its computations raise: AudioError, ValueError, NotAtHand."""

    def predict(self, clip: Clip) -> Prediction: ...
    def anatomy(self) -> Anatomy: ...
    def look(
        self,
        clip: Clip,
        tap: str,
        *,
        label: str | None,
        window: int | None,
        channels: Sequence[int] = (),
        most: int = MOST,
    ) -> Look: ...  # fmt: skip
    def gates(self, clip: Clip, window: int) -> dict[str, np.ndarray]: ...
    def widest(self, clip: Clip, window: int) -> tuple[float, float]: ...
    def kernels(self) -> np.ndarray: ...
    def atlas(self) -> tuple[Atlas | None, str]: ...
    def explain(
        self,
        clip: Clip,
        *,
        label: str | None = None,
        against: str | None = None,
        method: str = DEFAULT_METHOD,
        tap: str | None = None,
        window: int | None = None,
        seed: int = 0,
    ) -> Explanation: ...  # fmt: skip


class LocalGlass:
    """A network in this process. Its anatomy, kernels and atlas are read once."""

    def __init__(self, classifier: Classifier, queue: Network | None = None) -> None:
        """`queue`: who answers predict for it."""
        self._classifier, self._queue = classifier, queue or classifier

    def predict(self, clip: Clip) -> Prediction:
        return self._queue.predict(clip, maps="all")

    def anatomy(self) -> Anatomy:
        return self._anatomy

    def look(
        self, clip: Clip, tap: str, *, label: str | None, window: int | None, channels: Sequence[int] = (),
        most: int = MOST,
    ) -> Look:  # fmt: skip
        return inside.look(self._classifier, clip, tap, label=label, window=window, channels=channels, most=most)

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

    def explain(self, clip: Clip, **question: Any) -> Explanation:
        return explain(self._classifier, clip, **question)

    @cached_property
    def weights(self) -> str:
        """The same while the weights and the front end are the same."""
        return fingerprint(self._classifier.checkpoint)[:16]

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


def _ends(values: torch.Tensor) -> torch.Tensor:
    """Lowest and highest cell of one window's map, (1, C, f, t) -> (2,)."""
    return torch.stack([values.amin(), values.amax()])
