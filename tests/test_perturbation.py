"""The sought mask: it lies on what the network listens to, and nowhere else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cnn.classifier import Classifier
from cnn.perturbation import sought_mask

A, B, BOTH = (slice(96, 116), slice(40, 80)), (slice(64, 84), slice(150, 190)), (slice(16, 36), slice(40, 80))


class Listener(nn.Module):
    """Hears three patches of the picture (B, 1, F, T) only: dog needs sound at A and BOTH, rain at B and BOTH."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.dog, self.rain, self.count = labels.index("dog"), labels.index("rain"), len(labels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, both = (x[:, 0][:, rows, columns].mean(dim=(1, 2)) for rows, columns in (A, B, BOTH))
        logits = x.new_zeros(len(x), self.count)
        logits[:, self.dog], logits[:, self.rain] = 4 * (a + both) - 12, 4 * (b + both) - 12
        return logits


@pytest.fixture
def listener(tiny: Path) -> Classifier:
    classifier = Classifier.open(tiny, device="cpu")
    classifier.model = Listener(classifier.labels)
    return classifier


@pytest.fixture(scope="module")
def hiss() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, 80_000).astype(np.float32)


def shares(mask: np.ndarray) -> list[float]:
    """Mean of the mask in the patches A, B and BOTH, and where nobody listens (a grid cell or more from them)."""
    away = np.ones(mask.shape, bool)
    for rows, columns in (A, B, BOTH):
        away[rows.start - 10 : rows.stop + 10, columns.start - 10 : columns.stop + 10] = False
    return [float(mask[patch].mean()) for patch in (A, B, BOTH)] + [float(mask[away].mean())]


def test_the_mask_lies_on_what_the_class_is_heard_by_and_nowhere_else(listener: Classifier, hiss: np.ndarray):
    a, b, both, away = shares(sought_mask(listener, hiss, "dog"))
    assert min(a, both) > 0.8
    assert max(b, away) < 0.2


def test_why_this_and_not_that_leaves_out_what_speaks_for_both(listener: Classifier, hiss: np.ndarray):
    a, b, both, away = shares(sought_mask(listener, hiss, "dog", against="rain"))
    assert a > 0.8
    assert max(b, both, away) < 0.2


def test_the_same_seed_seeks_the_same_mask_and_the_network_stays_as_it_was(tiny_classifier: Classifier, tone):
    before = tiny_classifier.predict(tone).logits
    waveform = tiny_classifier.cut(tone)[0][0]
    first, again, other = (sought_mask(tiny_classifier, waveform, "dog", seed=seed, steps=3) for seed in (0, 0, 1))
    assert first.shape == (tiny_classifier.mel.n_mels, tiny_classifier.mel.frames)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    np.testing.assert_array_equal(tiny_classifier.predict(tone).logits, before)
    assert all(p.grad is None and not p.requires_grad for p in tiny_classifier.model.parameters())


def test_an_unknown_class_is_refused(tiny_classifier: Classifier, hiss: np.ndarray):
    with pytest.raises(ValueError, match="unicorn"):
        sought_mask(tiny_classifier, hiss, "unicorn")
    with pytest.raises(ValueError, match="unicorn"):
        sought_mask(tiny_classifier, hiss, "dog", against="unicorn")
