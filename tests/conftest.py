"""What several tests share: a tiny untrained network, a tone, the browser."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from cnn.audio import Clip

if TYPE_CHECKING:
    from cnn.classifier import Classifier

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: nothing is looked up outside
os.environ.pop("AUDIO_CNN_MODEL", None)  # the tests choose their networks themselves


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with resnet34's depths and taps, 4 channels wide, untrained."""
    from cnn.checkpoint import Checkpoint, save
    from cnn.labels import ESC50
    from cnn.mel import MEL_16K
    from cnn.model import AudioCNN, ModelConfig

    config = ModelConfig(width=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = AudioCNN(config).state_dict()
    path = tmp_path_factory.mktemp("tiny") / "best_model.pth"
    save(Checkpoint(config, MEL_16K, ESC50, state), path)
    return path


@pytest.fixture(scope="session")
def tiny_classifier(tiny: Path) -> "Classifier":
    from cnn.classifier import Classifier

    return Classifier.open(tiny, device="cpu")


@pytest.fixture(scope="session")
def tone() -> Clip:
    """Five seconds of 1 kHz at 44.1 kHz, half of full scale."""
    samples = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(5 * 44_100) / 44_100)).astype(np.float32)
    return Clip(samples=samples, rate=44_100, name="tone.wav")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser; its absence is a failure, not a skip."""
    path = shutil.which(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
    if path is None:
        pytest.fail("no Chromium: apt-get install chromium, or set CHROMIUM=/path/to/chrome")
    return path
