"""The network as ONNX: opened by ONNX Runtime, it says what the classifier says."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from cnn import checkpoint
from cnn.audio import load, resample, windows
from cnn.classifier import Classifier
from cnn.labels import ESC50
from cnn.mel import MEL_16K, MEL_44K
from cnn.serve.onnx import Graph, export, main
from cnn.ui.theme import ASSETS


@pytest.fixture(scope="module")
def opened(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    out = tmp_path_factory.mktemp("onnx") / "new" / "tiny.onnx"
    assert main(["--model", str(tiny), "--out", str(out)]) == 0
    assert [file.name for file in out.parent.iterdir()] == ["tiny.onnx"]  # one file, and nothing left beside it
    return onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])


def sounds(rate: int, seconds: float) -> np.ndarray:
    """(4, N): a bark, noise with an offset, something faint, and a tenth of a second with nothing after it.

    The bark gets a microphone's hiss: in the band that its coding has emptied, only rounding would be compared.
    """
    rng = np.random.default_rng(0)
    n = round(rate * seconds)
    bark = load(ASSETS / "examples" / "dog.ogg")
    short = np.where(np.arange(n) < rate // 10, rng.normal(0, 0.2, n), 0)
    heard = windows(resample(bark.samples, bark.rate, rate), rate, seconds)[0][0] + rng.normal(0, 1e-4, n)
    return np.stack([heard, 0.2 + rng.normal(0, 0.1, n), rng.normal(0, 2e-3, n), short]).astype(np.float32)


def test_it_answers_with_the_classifiers_logits_whatever_the_batch(opened, tiny_classifier: Classifier):
    waves = sounds(16_000, 5.0)
    together = opened.run(["logits"], {"waveform": waves})[0]
    for wave, logits in zip(waves, together, strict=True):
        expected = tiny_classifier.predict((16_000, wave)).logits
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(opened.run(None, {"waveform": wave[None]})[0][0], expected, rtol=0, atol=1e-4)


def test_it_says_what_a_program_without_this_project_must_know(opened):
    told = opened.get_modelmeta().custom_metadata_map
    assert json.loads(told["labels"]) == list(ESC50)
    assert (told["sample_rate"], told["window_seconds"], told["window_samples"]) == ("16000", "5", "80000")
    assert "non-commercial" in told["licence"]
    assert json.loads(told["front_end"]) == dataclasses.asdict(MEL_16K)


@pytest.mark.parametrize("mel", [MEL_44K, dataclasses.replace(MEL_16K, relative=True, floor_db=-80.0)])
def test_every_front_end_is_written_out_as_it_is(tiny: Path, mel):
    weights = dataclasses.replace(checkpoint.load(tiny), mel=mel)
    waves = sounds(mel.sample_rate, mel.seconds)
    with torch.inference_mode():
        written = Graph(weights).eval()(torch.from_numpy(waves)).numpy()
    here = Classifier(weights, "cpu")
    for wave, logits in zip(waves, written, strict=True):
        np.testing.assert_allclose(logits, here.predict((mel.sample_rate, wave)).logits, rtol=0, atol=1e-4)


def test_without_the_exporter_or_a_network_it_is_a_sentence_and_no_file(tiny: Path, tmp_path, monkeypatch, capsys):
    def lacking(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript'")

    monkeypatch.setattr(torch.onnx, "export", lacking)
    assert main(["--model", str(tiny), "--out", str(tmp_path / "a.onnx")]) == 1
    assert "pip install onnx onnxscript" in capsys.readouterr().err
    assert main(["--model", str(tmp_path / "none.pth")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_leaves_the_old_one(tiny: Path, tmp_path: Path, monkeypatch):
    class Program:
        model = type("Model", (), {"metadata_props": {}})

        def save(self, path: Path, **_: object) -> None:
            path.write_bytes(b"half a ")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program())
    (tmp_path / "a.onnx").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="a.onnx could not be written"):
        export(checkpoint.load(tiny), tmp_path / "a.onnx")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.onnx", b"old")]
