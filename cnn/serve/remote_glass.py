"""A network on another server of this project, looked into through its POST /v1/maps, POST /v1/explain and GET
/v1/inside: the weights stay where they are, and only what is looked at is computed and sent."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from cnn.anatomy import Anatomy
from cnn.atlas import Atlas
from cnn.audio import Clip
from cnn.classifier import Prediction
from cnn.explain import Explanation
from cnn.inside import Look
from cnn.serve import answers
from cnn.serve.connection import Connection, Unavailable
from cnn.serve.glass import MOST, Network, NotAtHand

T = TypeVar("T")
AGAIN = "Hear the sound again on the Listen tab; if it is still away, the network here takes its place."


class RemoteGlass:
    """As cnn.serve.glass.Glass. Its anatomy, kernels and atlas are asked for once. It shows one network only: if the
    server has got other weights meanwhile, that is said and nothing of them shown."""

    def __init__(self, network: Network, line: Connection, weights: str = "") -> None:
        """`network` answers predict. Without `weights`, those of the first answer are the ones."""
        self._network, self._line, self._weights = network, line, weights

    def predict(self, clip: Clip) -> Prediction:
        return self._told(lambda: self._network.predict(clip, maps="all"))

    def anatomy(self) -> Anatomy:
        return self._anatomy

    def look(
        self, clip: Clip, tap: str, *, label: str | None, window: int | None, channels: Sequence[int] = (),
        most: int = MOST,
    ) -> Look:  # fmt: skip
        shape = next((part.shape for part in self._anatomy.parts if tap in part.taps and part.kind != "gate"), None)
        asked = {"label": label, "window": window}
        query = {"tap": tap, "most": most, "channels": ",".join(map(str, channels))} | asked

        def read(told: dict[str, Any]) -> Look:
            return answers.look(told, tap, shape or (), channels=channels, **asked)

        return self._asked("/v1/maps", query, read, clip)  # the server names what there is not

    def gates(self, clip: Clip, window: int) -> dict[str, np.ndarray]:
        sizes = {part.name: part.shape[0] for part in self._anatomy.parts if part.kind == "gate"}
        if not sizes:
            return {}
        query = {"tap": next(iter(sizes)), "window": window, "include": "gates"}
        return self._asked("/v1/maps", query, lambda told: answers.gates(told, sizes), clip)

    def widest(self, clip: Clip, window: int) -> tuple[float, float]:
        """As LocalGlass; asked beside the last map, which is the smallest."""
        last = [part.taps[-1] for part in self._anatomy.parts if part.kind == "block"][-1]
        query = {"tap": last, "window": window, "channels": "0", "include": "range"}
        return self._asked("/v1/maps", query, answers.span, clip)

    def kernels(self) -> np.ndarray:
        return self._kernels

    def atlas(self) -> tuple[Atlas | None, str]:
        return self._atlas

    def explain(self, clip: Clip, **question: Any) -> Explanation:
        query = question | {"include": "map,random,heard"}
        return self._asked("/v1/explain", query, lambda told: answers.explanation(told, clip), clip)

    @cached_property
    def _anatomy(self) -> Anatomy:
        return self._asked("/v1/inside", {"include": "anatomy"}, lambda told: answers.anatomy(told["anatomy"]))

    @cached_property
    def _kernels(self) -> np.ndarray:
        count = self._anatomy.parts[0].shape[0]
        return self._asked("/v1/inside", {"include": "kernels"}, lambda told: answers.kernels(told["kernels"], count))

    @cached_property
    def _atlas(self) -> tuple[Atlas | None, str]:
        of = self._anatomy
        query = {"include": "atlas"}
        return self._asked("/v1/inside", query, lambda told: answers.atlas(told["atlas"], told["why"], of))

    def _asked(self, path: str, query: dict[str, Any], read: Callable[[dict], T], clip: Clip | None = None) -> T:
        """Raises AudioError and NotAtHand."""

        def of_these_weights(told: dict[str, Any]) -> tuple[str, T | None]:
            weights = answers.text(told["weights"])
            return weights, read(told) if self._weights in ("", weights) else None

        query = {name: value for name, value in query.items() if value not in (None, "")}
        weights, made = self._told(lambda: self._line.ask(path, query, of_these_weights, clip))
        if self._weights not in ("", weights):
            why = f"{self._line.place} has another network since it heard this sound"
            raise NotAtHand(f"{why}. Hear the sound again on the Listen tab.", why)
        self._weights = weights
        return made

    def _told(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Unavailable as away:
            raise NotAtHand(f"It cannot be looked inside now: {away}. {AGAIN}", str(away)) from away
