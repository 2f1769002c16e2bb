"""The network of another server of this project, asked through its POST /v1/classify.

    AUDIO_CNN_REMOTE=https://sounds.example.org python app.py      # https://USER:PASSWORD@... where that is asked for

The sound is decoded here and travels as plain samples; the answer is made into the same Prediction as a network at hand
would give (spectrogram and maps to 1/65535 of their range), so that whatever is drawn of it is drawn the same.
"""

import asyncio
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any, Protocol

import httpx
import numpy as np
import soundfile

from cnn.audio import AudioError, Clip, load
from cnn.classifier import MAPS, Label, Prediction, Sound
from cnn.labels import ESC50
from cnn.mel import MelConfig
from cnn.serve.payload import numbers

VARIABLE = "AUDIO_CNN_REMOTE"
PATIENCE = 20.0  # seconds that a visitor waits for it, retries included
RETRIES = 2
PAUSE = 0.3  # seconds before the first retry, doubled before each further one
DOWN = 60.0  # seconds for which a server that did not answer is not asked again
MAX_ANSWER = 32_000_000  # bytes; the largest true answer, a minute with every map, has less than a tenth
AGAIN = (429, 502, 503, 504)  # what may succeed when asked again


class Unavailable(RuntimeError):
    """The network elsewhere gave no answer. The message is the reason, to stand within a sentence: 'https://... did
    not answer within 20 s'."""


class Network(Protocol):
    """What a page needs of a classifier, a service or one of the classes here."""

    def predict(self, sound: Sound, *, maps: str = "none") -> Prediction: ...


class RemoteClassifier:
    """The network behind `url`. Safe to call from several threads.

    Connections that fail and servers that are busy or restarting are asked again, all within `timeout` seconds. A
    server that fails all the same is left alone for DOWN seconds: only the first visitor waits for it.
    """

    def __init__(self, url: str, *, timeout: float = PATIENCE, retries: int = RETRIES) -> None:
        try:
            address = httpx.URL(url.strip())
        except httpx.InvalidURL as e:
            raise ValueError(f"{VARIABLE} is no address ({e}); https://HOST is needed") from e
        if address.scheme not in ("http", "https") or not address.host or address.query or address.fragment:
            raise ValueError(f"{VARIABLE} is {_public(address)!r}; the address of a server is needed, https://HOST")
        self.timeout, self.retries = timeout, retries
        self.place = _public(address).rstrip("/")  # for people, without a password
        self._url = address.copy_with(path=address.path.rstrip("/") + "/v1/classify")
        self._tls = httpx.create_ssl_context()  # once: it reads every certificate that is trusted
        self._lock = threading.Lock()
        self._down_until, self._why = 0.0, ""

    def predict(self, sound: Sound, *, maps: str = "none") -> Prediction:
        """As Classifier.predict. Raises AudioError for what is not sound here or there, and Unavailable."""
        if maps not in MAPS:
            raise ValueError(f"maps {maps!r} is unknown; known are {', '.join(MAPS)}")
        begin = time.perf_counter()
        clip = sound if isinstance(sound, Clip) else load(sound)
        decoded = time.perf_counter()
        self._check()
        wanted = ["spectrogram", "logits", "windows", *{"none": [], "stages": ["stages"], "all": ["maps"]}[maps]]
        answer = self._ask(clip, {"top": len(ESC50), "include": ",".join(wanted)})
        try:
            prediction = _prediction(clip, answer, maps != "none")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
            print(f"{self.place} answered what no server of this project does: {e!r}"[:300], file=sys.stderr)
            raise self._failed(f"{self.place} gave an answer that makes no sense") from e
        self._lives()
        end = time.perf_counter()
        timings = {"decode": decoded - begin, "remote": end - decoded, "total": end - begin}
        return replace(prediction, timings=timings, device=f"{prediction.device} at {self.place}")

    def _check(self) -> None:
        """Raises Unavailable while the server counts as down. When that is over, one caller tries it for all."""
        with self._lock:
            now = time.monotonic()
            if now < self._down_until:
                raise Unavailable(f"{self._why} and is left alone for {max(1, round(self._down_until - now))} s")
            if self._down_until:
                self._down_until = now + self.timeout

    def _failed(self, why: str) -> Unavailable:
        with self._lock:
            self._down_until, self._why = time.monotonic() + DOWN, why
        return Unavailable(why)

    def _lives(self) -> None:
        with self._lock:
            self._down_until = 0.0

    def _ask(self, clip: Clip, query: dict[str, Any]) -> Any:
        """The JSON that comes back. Raises AudioError and Unavailable."""
        end = time.monotonic() + self.timeout
        body = _wav(clip)
        for k in range(self.retries + 1):
            pause, cause = PAUSE * 2**k, None
            try:
                status, headers, content = asyncio.run(self._send(clip.name or "sound.wav", body, query, end))
            except TimeoutError as e:
                raise self._failed(f"{self.place} did not answer within {self.timeout:g} s") from e
            except httpx.DecodingError as e:
                raise self._failed(f"{self.place} gave an answer that makes no sense") from e
            except httpx.TransportError as e:
                status, why, cause = 0, f"{self.place} cannot be reached ({type(e).__name__})", e
            else:
                if status == 200:
                    return self._json(content)
                if status not in AGAIN:
                    raise self._refused(status, content)
                why = f"{self.place} is not well (it answers {status})"
                if status == 429:
                    pause = max(pause, _seconds(headers.get("retry-after", "")))
            if k == self.retries or time.monotonic() + pause >= end:
                break
            time.sleep(pause)
        if status == 429:  # others may have more luck
            self._lives()
            raise Unavailable(f"{self.place} is busy")
        raise self._failed(why) from cause

    async def _send(
        self, name: str, body: bytes, query: dict[str, Any], end: float
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and content. Raises httpx's errors, and TimeoutError whatever it is that takes too long:
        httpx's own limit is for each piece."""
        files = {"file": (name, body, "audio/wav")}
        content = bytearray()
        async with (
            asyncio.timeout(end - time.monotonic()),
            httpx.AsyncClient(headers={"Accept": "application/json"}, verify=self._tls, timeout=None) as client,
            client.stream("POST", self._url, params=query, files=files) as response,
        ):
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER:
                    raise httpx.DecodingError("more than any true answer")
            return response.status_code, response.headers, bytes(content)

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as e:
            raise self._failed(f"{self.place} gave an answer that makes no sense") from e

    def _refused(self, status: int, content: bytes) -> Exception:
        if status == 401:
            return self._failed(f"{self.place} asks for a user and a password ({VARIABLE}=https://USER:PASSWORD@HOST)")
        if status in (400, 413):
            try:
                said = json.loads(content)["error"]
            except (ValueError, KeyError, TypeError, RecursionError):
                said = None
            if isinstance(said, str) and said:
                self._lives()
                return AudioError(said[:500])
        if 300 <= status < 400:
            return self._failed(f"{self.place} sends visitors elsewhere; give the address it sends to")
        if status >= 500:
            return self._failed(f"{self.place} is not well (it answers {status})")
        return self._failed(f"{self.place} does not answer as a server of this project (status {status})")


class WithFallback:
    """`first`, and where that is Unavailable the network of `local`, which is opened only then. The answer's `device`
    says so: 'cpu, as https://... did not answer within 20 s'."""

    def __init__(self, first: Network, local: Callable[[], Network]) -> None:
        self.first, self.local = first, local

    def predict(self, sound: Sound, *, maps: str = "none") -> Prediction:
        """Raises AudioError, Unavailable if there is no network here either, and what the local one raises."""
        begin = time.perf_counter()
        clip = sound if isinstance(sound, Clip) else load(sound)
        decoded = time.perf_counter() - begin
        try:
            prediction = self.first.predict(clip, maps=maps)
        except Unavailable as away:
            try:
                local = self.local()
            except ValueError as error:  # CheckpointError is one
                print(f"There is no network to fall back on: {error}", file=sys.stderr)
                raise Unavailable(f"{away}, and there is no network here to take its place") from error
            prediction = local.predict(clip, maps=maps)
            prediction = replace(prediction, device=f"{prediction.device}, as {away}")
        timings = prediction.timings | {"decode": decoded, "total": time.perf_counter() - begin}
        return replace(prediction, timings=timings)


def remote_first(local: Callable[[], Network]) -> Callable[[], Network]:
    """`local` itself; with $AUDIO_CNN_REMOTE what gives the network there, with `local` to fall back on.

    Calling the result raises ValueError where the variable holds no address.
    """
    url = os.environ.get(VARIABLE, "").strip()

    @cache
    def opened() -> WithFallback:
        return WithFallback(RemoteClassifier(url), local)

    return opened if url else local


def _public(address: httpx.URL) -> str:
    return str(address.copy_with(username=None, password=None, query=None, fragment=None))


def _wav(clip: Clip) -> bytes:
    """Its samples to the last bit."""
    file = io.BytesIO()
    soundfile.write(file, clip.samples, clip.rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def _seconds(retry_after: str) -> float:
    """The header may also hold a date: then the own pause is used."""
    return float(retry_after) if re.fullmatch(r"\d{1,6}", retry_after) else 0.0


# --- the answer ------------------------------------------------------------------------------------------------------


def _prediction(clip: Clip, answer: dict[str, Any], with_maps: bool) -> Prediction:
    """The Prediction that the server made its answer of. Something else raises any of what predict catches."""
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
        "clip": clip, "message": _text(answer["message"]), "starts": starts.astype(np.float64), "mel_config": config,
        "device": _text(answer["device"]), "network": _text(answer["network"]), "logits": logits,
    }  # fmt: skip
    if answer["verdict"] == "silent":
        _require(not heard.any(), "silence")
        return Prediction(labels=(), verdict="silent", window_probabilities=every, window=0, mel=None, maps={},
                          shapes={}, **common)  # fmt: skip
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
    return Prediction(
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


def _matrix(told: dict[str, Any]) -> np.ndarray:
    _finite([told["low"], told["high"]], (2,))
    return numbers(told)


def _finite(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.array(values, np.float32)
    _require(array.shape == shape and bool(np.isfinite(array).all()), "numbers")
    return array


def _text(value: Any) -> str:
    _require(isinstance(value, str), "text")
    return "".join(c for c in value[:300] if c.isprintable())


def _require(fine: bool, what: str) -> None:
    if not fine:
        raise ValueError(f"{what} are not as they should be")
