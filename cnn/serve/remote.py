"""The network of another server of this project, asked through its JSON API.

    AUDIO_CNN_REMOTE=https://sounds.example.org python app.py      # https://USER:PASSWORD@... where that is asked for

The sound is decoded here and travels as plain samples; the answer is made into the same Prediction as a network at hand
would give (spectrogram and maps to 1/65535 of their range), so that whatever is drawn of it is drawn the same.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any

from cnn.audio import Clip, load
from cnn.classifier import MAPS, Prediction, Sound
from cnn.labels import ESC50
from cnn.serve import answers
from cnn.serve.answers import Heard
from cnn.serve.connection import CLASSIFY, PATIENCE, RETRIES, VARIABLE, Connection, Unavailable
from cnn.serve.glass import Network
from cnn.serve.remote_glass import RemoteGlass


class RemoteClassifier:
    """The network behind `url`. Safe to call from several threads."""

    def __init__(self, url: str, *, timeout: float = PATIENCE, retries: int = RETRIES) -> None:
        self.line = Connection(url, timeout=timeout, retries=retries)

    def predict(self, sound: Sound, *, maps: str = "none") -> Heard:
        """As Classifier.predict. Raises AudioError for what is not sound here or there, and Unavailable."""
        if maps not in MAPS:
            raise ValueError(f"maps {maps!r} is unknown; known are {', '.join(MAPS)}")
        begin = time.perf_counter()
        clip = sound if isinstance(sound, Clip) else load(sound)
        decoded = time.perf_counter()
        wanted = ["spectrogram", "logits", "windows", *{"none": [], "stages": ["stages"], "all": ["maps"]}[maps]]
        query = {"top": len(ESC50), "include": ",".join(wanted)}
        heard = self.line.ask(CLASSIFY, query, lambda told: answers.prediction(clip, told, maps != "none"), clip)
        end = time.perf_counter()
        timings = {"decode": decoded - begin, "remote": end - decoded, "total": end - begin}
        return replace(heard, timings=timings, device=f"{heard.device} at {self.line.place}", by=self)

    def models(self) -> list[dict[str, Any]]:
        """The networks that the server answers with, as its GET /v1/models lists them. Raises Unavailable."""
        return self.line.ask("/v1/models", {}, answers.models)

    def glass(self, weights: str) -> RemoteGlass:
        """To look into it, as long as those are its weights; '': whatever they are."""
        return RemoteGlass(self, self.line, weights)


class WithFallback:
    """`first`, and where that is Unavailable the network of `local`, which is opened only then. The answer says which
    it is `by`, and for people its `device`: 'cpu, as https://... did not answer within 20 s'."""

    def __init__(self, first: Network, local: Callable[[], Network]) -> None:
        self.first, self.local = first, local

    def predict(self, sound: Sound, *, maps: str = "none") -> Heard:
        """Raises AudioError, Unavailable if there is no network here either, and what the local one raises."""
        begin = time.perf_counter()
        clip = sound if isinstance(sound, Clip) else load(sound)
        decoded = time.perf_counter() - begin
        try:
            heard = _by(self.first, self.first.predict(clip, maps=maps))
        except Unavailable as away:
            heard = self.instead(clip, str(away), maps)
        timings = heard.timings | {"decode": decoded, "total": time.perf_counter() - begin}
        return replace(heard, timings=timings)

    def instead(self, clip: Clip, why: str, maps: str) -> Heard:
        """What the network of `local` says of a clip, and that it does so, `as` why. Raises Unavailable if there is
        none, and what it raises."""
        try:
            local = self.local()
        except ValueError as error:  # CheckpointError is one
            print(f"There is no network to fall back on: {error}", file=sys.stderr)
            raise Unavailable(f"{why}, and there is no network here to take its place") from error
        prediction = local.predict(clip, maps=maps)
        return _by(local, replace(prediction, device=f"{prediction.device}, as {why}"))


def _by(network: Network, prediction: Prediction) -> Heard:
    if isinstance(prediction, Heard):
        return prediction
    return Heard(**{f.name: getattr(prediction, f.name) for f in fields(Prediction)}, by=network)


def remote_first(local: Callable[[], Network]) -> Callable[[], Network]:
    """`local` itself; with $AUDIO_CNN_REMOTE what gives the network there, with `local` to fall back on.

    Calling the result raises ValueError where the variable holds no address.
    """
    url = os.environ.get(VARIABLE, "").strip()

    @cache
    def opened() -> WithFallback:
        return WithFallback(RemoteClassifier(url), local)

    return opened if url else local
