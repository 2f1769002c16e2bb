"""The network on Modal's GPUs, in a class of its own, and the ways to it. app.py declares the app.

    modal volume put esc-model best_model.pth       # or best_models.pth: heard by containers that start later
    AUDIO_CNN_GPU=L4,T4 modal deploy app.py         # other GPUs, the first that is free; AUDIO_CNN_GPU= : none

The class has an address of its own: a POST of {"audio_data": "<base64 of a file>"} is answered with the family's
payload, and /v1 is there as on every server of this project.

A container with memory snapshots starts with everything imported; the weights are read after that, at every start:
a snapshot would keep those of the day it was made, whatever the volume holds by now, and sees no GPU.
"""

import os
import sys
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path

import modal
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from cnn import checkpoint
from cnn.__main__ import say, text
from cnn.audio import AudioError, Clip, load
from cnn.checkpoint import DEFAULT, NAMES, CheckpointError
from cnn.classifier import Classifier, Prediction, Sound
from cnn.serve.api import build_api
from cnn.serve.payload import family
from cnn.serve.remote import Unavailable
from cnn.serve.service import Service

ROOT = Path(__file__).resolve().parents[2]
MODELS = Path("/mnt/esc-model")  # where the volume is mounted
GPUS = list(filter(None, os.environ.get("AUDIO_CNN_GPU", "A10G,L4,T4").split(",")))
WARM = 300  # s for which a container waits for the next sound: a cold start is for the first visitor in a while only
MOST = 2  # containers: anybody may call the address, and each costs
AT_ONCE = 32  # requests in one container; others wait at Modal, so that the queue in here is never full
PATIENCE = 3.0  # s for the answer of a GPU that is awake
TOP = 5  # names that `modal run` prints

app = modal.App()
volume = modal.Volume.from_name("esc-model", create_if_missing=True)
image = (
    modal.Image.debian_slim(python_version="3.11")
    .pip_install_from_requirements(str(ROOT / "requirements.txt"))
    .add_local_dir(str(ROOT / "assets"), "/root/assets")
    .add_local_python_source("cnn")
)
SETTINGS = dict(
    image=image, volumes={str(MODELS): volume.read_only()}, scaledown_window=WARM, enable_memory_snapshot=True
)  # fmt: skip


def weights() -> Path | None:
    """The file at the volume's root. None if there is none that can be used, of which the log says why: the shipped
    network is better than no door, and every answer names its network."""
    for path in (MODELS / name for name in NAMES):
        if path.is_file():
            try:
                checkpoint.load(path)
            except CheckpointError as error:
                print(f"Weights in the volume are not used: {error}", file=sys.stderr, flush=True)
            else:
                return path
    return None


@app.cls(gpu=GPUS or None, cpu=2, memory=4096, max_containers=MOST, **SETTINGS)
@modal.concurrent(max_inputs=AT_ONCE, target_inputs=AT_ONCE // 2)
class AudioClassifier:
    """One network on a GPU; what is asked at the same time is heard in batches."""

    @modal.enter()
    def start(self) -> None:
        self.service = Service(Classifier.open(weights() or DEFAULT))
        print(f"{self.service.network} on {self.service.device}", flush=True)

    @modal.exit()
    def stop(self) -> None:
        self.service.close()

    @modal.method()
    def predict(self, clip: Clip, maps: str = "none") -> Prediction:
        """As Classifier.predict; objects travel whole, so that the answer is exact."""
        return self.service.predict(clip, maps=maps)

    @modal.asgi_app()
    def inference(self) -> ASGIApp:
        """The class's own address. Pages of any server may call it; what goes wrong is {"error": one sentence}."""
        name = self.service.config.name
        api = build_api({name: lambda: self.service}, name, ancestral=True)
        return CORSMiddleware(api, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])


class ModalClassifier:
    """AudioClassifier as the page calls it.

    A GPU that sleeps takes its time to wake. Whoever asks is not kept waiting longer than PATIENCE, and until it has
    woken not at all: Unavailable says for how many seconds it has been waking. Asking is what wakes it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waking: Future[Prediction] | None = None
        self._since = 0.0

    def predict(self, sound: Sound, *, maps: str = "none") -> Prediction:
        """Raises AudioError, before anything is sent, and Unavailable."""
        clip = sound if isinstance(sound, Clip) else load(sound)
        with self._lock:
            if self._waking and not self._waking.done():
                raise Unavailable(self._so_far())
        begin, answer = time.monotonic(), Future()
        threading.Thread(target=_ask, args=(answer, clip, maps), daemon=True).start()
        wait([answer], PATIENCE)
        if not answer.done():
            with self._lock:
                self._waking, self._since = answer, begin
                raise Unavailable(self._so_far())
        try:
            return replace(answer.result(), clip=clip)
        except modal.Error as error:
            print(f"The GPU did not answer: {error!r}", file=sys.stderr, flush=True)
            raise Unavailable("the GPU did not answer") from error

    def _so_far(self) -> str:
        return f"the GPU is still waking up after {time.monotonic() - self._since:.0f} s"


def _ask(answer: "Future[Prediction]", clip: Clip, maps: str) -> None:
    try:
        answer.set_result(AudioClassifier().predict.remote(clip, maps))
    except Exception as error:  # for the one who asked
        answer.set_exception(error)


def print_answer(file: str) -> None:
    """What the network says of a file, and the waveform's first values. A bad file ends it with a sentence, code 1."""
    try:
        clip = load(file)
    except AudioError as error:
        raise SystemExit(str(error)) from error
    prediction = AudioClassifier().predict.remote(clip)
    waveform = family(prediction)["waveform"]
    first = " ".join(f"{value:g}" for value in waveform["values"][:10])
    lines = text(clip.name, prediction, TOP, sys.stdout.encoding or "utf-8")
    say(sys.stdout, *lines, f"  waveform {first} ...", f"  duration {waveform['duration']:g} s")
