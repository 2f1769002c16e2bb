"""What several tests share: a tiny untrained network, a tone, the browser."""

import csv
import os
import shutil
import signal
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import torch

from cnn.audio import Clip, load
from cnn.labels import ESC50

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnn.classifier import Classifier
    from cnn.serve.service import Service

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: nothing is looked up outside
os.environ.pop("AUDIO_CNN_MODEL", None)  # the tests choose their networks themselves
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background ignores Ctrl-C, and so would all that
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it starts, which tests end that way


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded clips are kept among the tests' own files, also by the processes that tests start."""
    os.environ["AUDIO_CNN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


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
def gated(tmp_path_factory: pytest.TempPathFactory) -> "Classifier":
    """With squeeze-and-excitation, a pyramid and an atlas, tiny and untrained."""
    from tests.standins.networks import gated_network

    return gated_network(tmp_path_factory.mktemp("gated"))


@pytest.fixture(scope="module")
def services(tiny_classifier: "Classifier", gated: "Classifier") -> "Iterator[dict[str, Service]]":
    from cnn.serve.service import Service

    services = {"tiny": Service(tiny_classifier), "gated": Service(gated)}
    yield services
    for service in services.values():
        service.close()


@pytest.fixture(scope="session")
def clip() -> Clip:
    """The bark of the examples."""
    from tests.standins.asking import DOG

    return load(DOG)


@pytest.fixture(scope="session")
def tone() -> Clip:
    """Five seconds of 1 kHz at 44.1 kHz, half of full scale, with hiss 60 dB below that.

    A pure tone leaves most bins to the rounding errors of resampling and FFT, which a decibel scale shows as large
    numbers that are not the same twice.
    """
    samples = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(5 * 44_100) / 44_100)
    samples += np.random.default_rng(0).normal(0, 5e-4, len(samples))
    return Clip(samples=samples.astype(np.float32), rate=44_100, name="tone.wav")


@pytest.fixture(scope="session")
def tone_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy tones in three folds, in ESC-50's layout: 18 clips of 5 s at 16 kHz."""
    root = tmp_path_factory.mktemp("data")
    (root / "audio").mkdir()
    (root / "meta").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for fold in (1, 2, 5):
        for take in range(2):
            for label, hz in {"dog": 300.0, "rain": 900.0, "rooster": 2700.0}.items():
                name = f"{fold}-{label}-{take}.flac"
                sound = 0.3 * np.sin(2 * np.pi * hz * np.arange(80_000) / 16_000) + rng.normal(0, 0.01, 80_000)
                soundfile.write(root / "audio" / name, sound, 16_000)
                rows.append({"filename": name, "fold": fold, "target": ESC50.index(label), "category": label,
                             "esc10": True, "src_file": f"{fold}-{label}-{take}", "take": "A"})  # fmt: skip
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser; its absence is a failure, not a skip."""
    path = shutil.which(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
    if path is None:
        pytest.fail("no Chromium: apt-get install chromium, or set CHROMIUM=/path/to/chrome")
    return path


def flipped(whole: Path, to: Path) -> Path:
    """`whole`, which torch.save wrote, with one bit of its largest tensor another."""
    content = bytearray(whole.read_bytes())
    with zipfile.ZipFile(whole) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        values = archive.read(largest)
    place = content.index(values) + len(values) // 2
    content[place] ^= 1
    to.write_bytes(content)
    return to
