"""A network with all that the larger one has, small enough for tests, and how near numbers are at another door."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cnn.atlas import NAME, examples, make, write
from cnn.checkpoint import Checkpoint, save
from cnn.classifier import Classifier
from cnn.labels import ESC50
from cnn.mel import MEL_16K
from cnn.model import SE_FPN, AudioCNN


def gated_network(folder: Path) -> Classifier:
    """Squeeze-and-excitation, a pyramid and a deep head, untrained; its file and its atlas lie in `folder`."""
    config = replace(SE_FPN, width=4, stem_stride=4, depths=(1, 1, 1, 1), fpn_channels=8, head_hidden=(16, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = AudioCNN(config).state_dict()
    save(Checkpoint(config, MEL_16K, ESC50, state), folder / "best_model.pth")
    classifier = Classifier.open(folder / "best_model.pth", "cpu")
    write(make(classifier, examples()[:2]), folder / NAME)
    return classifier


def close(theirs: object, ours: np.ndarray) -> None:
    """Within 1e-4 of their range: a matrix of /v1 holds 65,536 steps of it."""
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * max(float(np.ptp(ours)), 1e-6))
