"""What programs call on the page by name, with gradio_client, plain HTTP or MCP: /classify, /maps, /explain and
/models.

The plainer way for programs is the JSON API beside the page, cnn.serve.api.
"""

import sys
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np
from gradio.data_classes import FileData

from cnn.audio import AudioError, Clip, load
from cnn.classifier import Prediction, Sound
from cnn.explain import DEFAULT_METHOD
from cnn.serve import maps as tap_maps
from cnn.serve.connection import Unavailable
from cnn.serve.glass import Glass, Network, NotAtHand
from cnn.serve.models import boxed, listed
from cnn.serve.payload import short
from cnn.serve.service import Busy
from cnn.ui.glass import into

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
    network = opened(classifier)
    try:
        return network.predict(sound, maps=maps)
    except Unavailable as away:
        raise NoNetwork(f"No network can be asked: {away}.") from away


def opened(classifier: Callable[[], Network]) -> Network:
    """Raises NoNetwork."""
    try:
        return classifier()
    except ValueError as error:  # CheckpointError is one
        print(f"The page cannot name sounds: {error}", file=sys.stderr)
        raise NoNetwork(NO_NETWORK) from error


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

    def maps(sound: str | None, tap: str, channels: str, label: str, window: float | None = None) -> dict[str, Any]:
        """Look inside the network while it hears a sound: what one of its taps holds, and what each of that tap's
        channels adds to the score (the logit) of a class. Send the sound as for classify.

        Args:
            sound: the uploaded file; where an address is needed (MCP), SERVER/gradio_api/file=PATH
            tap: layer1 to layer4 (the stages), conv1, layer2.block0.relu (a block), fpn.p1 (a level of a pyramid), or
                layer2.block0.se (a block's gates)
            channels: numbers with commas between, 3,17, whose maps to send; empty: the eight that matter most, by their
                numbers alone
            label: the class in ESC-50's spelling, such as crying_baby; empty: the sound's first name
            window: of a sound longer than five seconds, from 0; empty: the one that is surest of the first name
        Returns:
            tap, shape (channels, f, t), window and its start (s), label and its logit
            shares of all channels, exact (they and rest make up the logit) or estimated; silent (how many are)
            mean over the channels and, where asked for, the channels' values: rows from low to high frequency
            channels, from most for to most against: index, share, low, mean, high, active (share of cells above 0)
            of gates instead: gates, 0 to 1 by channel
            network, and notes where another one than usual answers
        """
        if sound is None:
            raise gr.Error(SEND_ONE, print_exception=False)
        try:
            return _looked(opened(classifier), load(sound), tap, channels, label, window)
        except (*TOLD, NotAtHand, ValueError) as error:  # the last: there is no such thing to look at
            raise gr.Error(f"{str(error).removesuffix('.')}.", print_exception=False) from error

    def explain(
        sound: str | None, label: str, against: str, method: str, tap: str, window: float | None = None
    ) -> dict[str, Any]:
        """Say why the network names a sound as it does: when and at which pitch the evidence for a class lies, and
        whether to believe it. The network hears the evidence alone, the rest without it, and a random part of the same
        size again. Send the sound as for classify; the parts as sounds and the mask: POST /v1/explain.

        Args:
            sound: the uploaded file; where an address is needed (MCP), SERVER/gradio_api/file=PATH
            label: the class in ESC-50's spelling, such as crying_baby; empty: the sound's first name
            against: why the label and not this class; empty: any other
            method: perturbation (tries what can be left out), hirescam, layercam or gradcam (class-activation maps)
            tap: the layer that such a map asks: a stage such as layer2, or fpn.p1; empty: the usual one
            window: of a sound longer than five seconds, from 0; empty: the one that is surest of the first name
        Returns:
            where the evidence is, in words, and what becomes of the label without it
            reliable, and verdict: a sentence on whether to believe it
            parts (original, evidence, remainder, random): confidence of the label, predictions
            random_remainder (the label in what the random mask leaves) and area (of the evidence, 0 to 1)
            label, against, method, tap, window and its start and seconds
            network, and notes where another one than usual answers
        """
        if sound is None:
            raise gr.Error(SEND_ONE, print_exception=False)
        asked = {"label": label, "against": against, "method": method, "tap": tap}
        question: dict[str, Any] = {name: said for name, text in asked.items() if (said := _text(text))}
        question |= {k: v.replace(" ", "_") for k, v in question.items() if k in ("label", "against")}  # crying baby
        if window is not None:
            question["window"] = int(window)
        try:
            seen, why = into(opened(classifier))
            told = seen.explain(load(sound), **question).to_dict()
        except (*TOLD, NotAtHand, ValueError) as error:  # the last: there is no such class, method, layer or window
            raise gr.Error(f"{str(error).removesuffix('.')}.", print_exception=False) from error
        return {"label": told.pop("class")} | told | _given_by(seen, why)

    def models() -> list[dict[str, Any]]:
        """List the networks: what each can name, how good it is, what it was trained on, its licence.

        Returns:
            name, default (whether it is the one that answers here), network (in words), parameters (null if not told)
            sample_rate (Hz; sound above half of it is not heard) and classes
            accuracy (0 to 1, on the fold of ESC-50 that was held out of training; null if not measured) and fold
            data and licence
        """
        try:
            return listed(opened(classifier))
        except (NoNetwork, Unavailable, ValueError):  # what is wrong is in the log; there is the box at least
            return boxed()

    sound = gr.Audio(type="filepath", visible=False, label="A sound file of any kind, at most 200 MB")
    sound.data_model = SoundFile
    sound.example_payload = lambda: {"path": "rain.m4a", "meta": {"_type": "gradio.FileData"}}  # not one elsewhere
    answer = gr.JSON(visible=False, label="predictions, verdict, message, duration, format, timings, device, network")
    gr.Button(visible=False).click(
        classify, sound, answer, api_name="classify", concurrency_id=NETWORK, concurrency_limit=PLACES
    )
    choices = [
        gr.Textbox("layer4", visible=False, label="Where to look"),
        gr.Textbox("", visible=False, label="Channels, with commas between"),
        gr.Textbox("", visible=False, label="The class that the shares are of"),
        gr.Number(None, visible=False, precision=0, label="Window, from 0"),
    ]
    for choice, example in zip(choices, ("layer4", "3,17", "dog", 0), strict=True):
        choice.example_payload = lambda example=example: example
    seen = gr.JSON(visible=False, label="tap, shape, label, logit, shares, mean, channels or gates, network")
    gr.Button(visible=False).click(
        maps, [sound, *choices], seen, api_name="maps", concurrency_id=NETWORK, concurrency_limit=PLACES
    )
    questions = [
        gr.Textbox("", visible=False, label="The class"),
        gr.Textbox("", visible=False, label="And not this one"),
        gr.Textbox(DEFAULT_METHOD, visible=False, label="Method"),
        gr.Textbox("", visible=False, label="Layer"),
        gr.Number(None, visible=False, precision=0, label="Window, from 0"),
    ]
    for question, example in zip(questions, ("dog", "cat", "hirescam", "layer3", 0), strict=True):
        question.example_payload = lambda example=example: example
    told = gr.JSON(visible=False, label="where, reliable, verdict, parts, label, method, network")
    gr.Button(visible=False).click(
        explain, [sound, *questions], told, api_name="explain", concurrency_id=NETWORK, concurrency_limit=PLACES
    )
    known = gr.JSON(visible=False, label="name, default, parameters, sample_rate, classes, accuracy, data, licence")
    gr.Button(visible=False).click(models, None, known, api_name="models")


def _looked(network: Network, clip: Clip, tap: str, channels: str, label: str, window: float | None) -> dict[str, Any]:
    """Raises AudioError, Busy, NotAtHand; ValueError for what there is not."""
    asked = tap_maps.Question(
        _text(tap),
        tap_maps.channels(channels),
        label=_text(label) or None,
        window=None if window is None else int(window),
    )
    seen, why = into(network)
    answer = tap_maps.maps(seen, clip, asked, _rows)
    if not asked.channels:
        for channel in answer.get("channels", ()):
            del channel["values"]
    return answer | _given_by(seen, why)


def _text(given: str | None) -> str:
    """Some clients send null for what they leave out."""
    return (given or "").strip()[:100]


def _given_by(seen: Glass, why: str) -> dict[str, Any]:
    notes = [f"The network here answers, as {why}."] if why else []
    return {"network": seen.anatomy().network, "notes": notes}


def _rows(values: np.ndarray) -> list[list[float]]:
    return [[short(x) for x in row] for row in values.tolist()]
