"""One set of clips through every door: each names the same three, and where it gives logits, the same within 1e-4."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from html import escape
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file
from onnxruntime import InferenceSession

from cnn import __main__ as cli
from cnn import checkpoint
from cnn.audio import load, resample, windows
from cnn.classifier import Classifier, Prediction
from cnn.labels import spoken
from cnn.mel import MEL_16K
from cnn.serve import modal_network
from cnn.serve.api import build_api
from cnn.serve.onnx import export
from cnn.serve.service import Service
from cnn.ui import figures
from cnn.ui.page import build_page
from cnn.ui.theme import serving
from tests import test_audio

SECONDS = dict(zip(test_audio.FORMATS, cycle([0.1, 1.0, 5.0, 12.0]))) | {"16.wav": 30.0, "x.m4a": 30.0}  # noqa: B905


def sound(rate: int, seconds: float, channels: int) -> np.ndarray:
    """(N, channels) float32: a tone in noise that differs between the channels."""
    rng = np.random.default_rng(rate + channels)
    tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(round(rate * seconds)) / rate)
    return (tone[:, None] + rng.normal(0, 0.05, (len(tone), channels))).astype(np.float32)


@pytest.fixture(scope="module")
def weights(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network with the front end of the box, which looks down to 80 dB below the loudest. Further down,
    where a coding has left a band empty, there is only the rounding of whoever computed it."""
    mel = dataclasses.replace(MEL_16K, relative=True, floor_db=-80.0, mean=-47.38, std=20.64)
    path = tmp_path_factory.mktemp("weights") / "best_model.pth"
    checkpoint.save(dataclasses.replace(checkpoint.load(tiny), mel=mel), path)
    return path


@pytest.fixture(scope="module")
def classifier(weights: Path) -> Classifier:
    return Classifier.open(weights, "cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_audio, "tone", lambda rate, seconds=1.0, channels=1: sound(rate, seconds, channels))
        for name, (make, *_) in test_audio.FORMATS.items():
            (folder / name).write_bytes(make(seconds=SECONDS[name]))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def expected(clips: list[Path], classifier: Classifier) -> list[Prediction]:
    answers = [classifier.predict(clip) for clip in clips]
    assert {answer.clip.channels for answer in answers} == {1, 2, 8}
    assert min(a.clip.seconds for a in answers) < 0.2 and max(a.clip.seconds for a in answers) > 29.9
    assert len({answer.labels[0].name for answer in answers}) > 1  # a door that always says the same would be seen
    return answers


@pytest.fixture(scope="module")
def service(classifier: Classifier) -> Iterator[Service]:
    service = Service(classifier)
    yield service
    service.close()


def three(answer: dict) -> list[str]:
    return [x["class"] for x in answer["predictions"]]


def first(prediction: Prediction) -> list[str]:
    return [label.name for label in prediction.labels[:3]]


def close(logits: object, prediction: Prediction) -> None:
    np.testing.assert_allclose(logits, prediction.logits, rtol=0, atol=1e-4)


def test_the_command_line(clips, expected, weights: Path, capsys: pytest.CaptureFixture):
    assert cli.main([*map(str, clips), "--json", "--model", str(weights), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [three(json.loads(line)) for line in lines] == [first(prediction) for prediction in expected]


def test_the_json_api(clips, expected, service: Service):
    api = TestClient(build_api({"tiny": lambda: service}, "tiny"))
    for clip, prediction in zip(clips, expected, strict=True):
        with clip.open("rb") as file:
            answer = api.post("/v1/classify?include=logits", files={"file": file}).json()
        assert three(answer) == first(prediction)
        close(list(answer["logits"].values()), prediction)


def test_the_page_and_its_endpoint(clips, expected, service: Service, monkeypatch: pytest.MonkeyPatch):
    page = build_page(lambda: service)
    (hear,) = (f.fn for f in page.fns.values() if f.api_name == "hear")
    # what it draws, in words
    monkeypatch.setattr(figures, "figure", lambda picture, *_, **__: f"<p>{escape(picture.alt)}</p>")
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **serving())
    try:
        client = Client(url, verbose=False)
        for clip, prediction in zip(clips, expected, strict=True):
            assert three(client.predict(handle_file(clip), api_name="/classify")) == first(prediction)
            shown = " ".join(map(str, list(hear(str(clip), False))[-1].values()))
            names = "[^<]*".join(re.escape(spoken(name)) for name in first(prediction))
            assert re.search(rf'id="name">{spoken(first(prediction)[0])}<', shown)
            assert re.search(rf"<p>[^<]*{names}", shown)
    finally:
        page.close()


@pytest.mark.filterwarnings("ignore:The .* function is executing locally")
def test_the_class_on_modal(clips, expected, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(modal_network, "MODELS", tmp_path)
    shutil.copy(weights, tmp_path)
    network = modal_network.AudioClassifier()
    try:
        for clip, prediction in zip(clips, expected, strict=True):
            answer = network.predict.local(load(clip))
            assert first(answer) == first(prediction)
            close(answer.logits, prediction)
    finally:
        network.service.close()


def test_onnx(clips, expected, weights: Path, tmp_path: Path):
    """With nothing but what its metadata say."""
    opened = InferenceSession(export(checkpoint.load(weights), tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    told = opened.get_modelmeta().custom_metadata_map
    rate, names = int(told["sample_rate"]), json.loads(told["labels"])
    for path, prediction in zip(clips, expected, strict=True):
        clip = load(path)
        cut, _ = windows(resample(clip.samples, clip.rate, rate), rate, float(told["window_seconds"]),
                         float(told["hop_seconds"]))  # fmt: skip
        logits = opened.run(None, {"waveform": cut})[0]
        close(logits.mean(axis=0), prediction)
        each = np.exp(logits - logits.max(axis=1, keepdims=True))
        likely = (each / each.sum(axis=1, keepdims=True)).mean(axis=0)
        assert [names[i] for i in np.argsort(-likely)[:3]] == first(prediction)
