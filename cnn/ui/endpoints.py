"""What programs call on the page by name, with gradio_client, plain HTTP or MCP: /classify and /models.

The plainer way for programs is the JSON API beside the page, cnn.serve.api.
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import gradio as gr
import torch
from gradio.data_classes import FileData

from cnn import checkpoint
from cnn.audio import AudioError
from cnn.classifier import Prediction, Sound
from cnn.model import AudioCNN
from cnn.serve.remote import Network, Unavailable
from cnn.serve.service import Busy

NETWORK = "network"  # events that need it share their places
PLACES = 4  # in which several may wait for it: it hears several sounds in one pass, and one elsewhere may be slow
NO_NETWORK = "This page has no network to name sounds with yet; its owner has been told."
SEND_ONE = "Send one sound file: handle_file(path) with gradio_client, or {'path': what /upload answered}."


class NoNetwork(RuntimeError):
    """None can be asked. The sentence is for visitors; the log says what is wrong."""


TOLD = (AudioError, Busy, NoNetwork)  # what people can mend or wait for: the message is for them


class SoundFile(FileData):
    """What /classify takes: a file, and in its own words nothing else."""

    @classmethod
    def model_validate(cls, value: Any, **how: Any) -> "SoundFile":
        marked = isinstance(value, dict) and value.get("meta") == {"_type": "gradio.FileData"}
        if not marked or not isinstance(value.get("path"), str):
            raise gr.Error(SEND_ONE, print_exception=False)
        return super().model_validate(value, **how)


def predict(classifier: Callable[[], Network], sound: Sound, maps: str = "none") -> Prediction:
    """The answer of whatever network there is. Raises TOLD; of a bug, what the bug raises."""
    try:
        network = classifier()
    except ValueError as error:  # CheckpointError is one
        print(f"The page cannot name sounds: {error}", file=sys.stderr)
        raise NoNetwork(NO_NETWORK) from error
    try:
        return network.predict(sound, maps=maps)
    except Unavailable as away:
        raise NoNetwork(f"No network can be asked: {away}.") from away


def offer_endpoints(classifier: Callable[[], Network]) -> None:
    """Add the public endpoints to the Blocks at hand."""

    def classify(sound: str | None) -> dict[str, Any]:
        """Name a sound: which of the 50 everyday sounds of ESC-50 (animals, nature, people, household, street) a
        recording is. Any kind of file will do (wav, flac, ogg, mp3, m4a ...), 200 MB at most; of a long one the first
        minute is heard. Nothing is fetched from elsewhere: post the file to /gradio_api/upload as the form field
        "files", which answers ["PATH"].

        Args:
            sound: the uploaded file; where an address is needed (MCP), SERVER/gradio_api/file=PATH
        Returns:
            the three likeliest classes with confidences from 0 to 1
            the verdict: named, or silent if there is nothing to hear
            message, duration and windows (s), sample_rate (Hz), format, notes, timings (s), device, network
        """
        if sound is None:
            raise gr.Error(SEND_ONE, print_exception=False)
        try:
            return predict(classifier, sound).to_dict(top=3)
        except TOLD as error:
            raise gr.Error(str(error), print_exception=False) from error

    def models() -> list[dict[str, Any]]:
        """List the networks in the box: what each can name, how good it is, what it was trained on, its licence.

        Returns:
            name, parameters, sample_rate (Hz; sound above half of it is not heard) and classes
            accuracy (0 to 1, on the fold of ESC-50 that was held out of training; null if not measured) and fold
            data and licence
        """
        return boxed()

    sound = gr.Audio(type="filepath", visible=False, label="A sound file of any kind, at most 200 MB")
    sound.data_model = SoundFile
    sound.example_payload = lambda: {"path": "rain.m4a", "meta": {"_type": "gradio.FileData"}}  # not one elsewhere
    answer = gr.JSON(visible=False, label="predictions, verdict, message, duration, format, timings, device, network")
    gr.Button(visible=False).click(
        classify, sound, answer, api_name="classify", concurrency_id=NETWORK, concurrency_limit=PLACES
    )
    listed = gr.JSON(visible=False, label="name, parameters, sample_rate, classes, accuracy, fold, data, licence")
    gr.Button(visible=False).click(models, None, listed, api_name="models")


@cache
def boxed() -> list[dict[str, Any]]:
    """What the checkpoints in the box say of themselves; one that cannot be read only the log names."""
    told = []
    for path in sorted(checkpoint.BOX.glob(f"*/{checkpoint.NAMES[0]}")):
        try:
            weights = checkpoint.load(path)
        except checkpoint.CheckpointError as error:
            print(f"Not listed: {error}", file=sys.stderr)
            continue
        with torch.device("meta"):
            parameters = AudioCNN(weights.model).parameter_count
        told.append({
            "name": path.parent.name,
            "parameters": parameters,
            "sample_rate": weights.mel.sample_rate,
            "classes": list(weights.labels),
            "accuracy": weights.metrics.get("accuracy"),
            "fold": weights.metrics.get("fold"),
            "data": str(weights.provenance.get("data", "not stated")),
            "licence": str(weights.provenance.get("licence", "not stated")),
        })  # fmt: skip
    return told
