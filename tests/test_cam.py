"""Class-activation maps: the formulas of the papers on a plain forward pass; a map of the network, not of the sound."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cnn.audio import Clip, load
from cnn.cam import cam, taps
from cnn.checkpoint import Checkpoint
from cnn.classifier import Classifier
from cnn.explain import explain, mask_of
from cnn.labels import ESC50
from cnn.mel import MEL_16K, LogMel, MelConfig
from cnn.model import RESNET34, SE_FPN, AudioCNN, ModelConfig
from cnn.perturbation import sought_mask

EXAMPLES = Path(__file__).resolve().parent.parent / "assets" / "examples"
SMALL = {
    "resnet34": dataclasses.replace(RESNET34, width=4),
    "se_fpn": dataclasses.replace(SE_FPN, width=4, fpn_channels=8, head_hidden=(16, 8)),
    "linear pyramid": dataclasses.replace(SE_FPN, width=4, fpn_channels=8, head_hidden=(), head_dropouts=(0.5,)),
}
NOISE = np.random.default_rng(0).normal(0, 0.1, MEL_16K.samples).astype(np.float32)


def untrained(config: ModelConfig, mel: MelConfig = MEL_16K) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AudioCNN(config)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.2)
                module.bias.data.normal_(0, 0.3)
    return Classifier(Checkpoint(config, mel, ESC50, model.state_dict()), device="cpu")


@pytest.fixture(scope="module", params=SMALL)
def classifier(request: pytest.FixtureRequest) -> Classifier:
    return untrained(SMALL[request.param])


def bias(classifier: Classifier, label: str) -> float:
    return classifier.checkpoint.state_dict["head.1.bias"][ESC50.index(label)].item()


def logit(classifier: Classifier, label: str) -> float:
    return float(classifier.read(NOISE[None], [], torch.clone)[0][0, ESC50.index(label)])


def close(shown: np.ndarray, true: np.ndarray) -> None:
    np.testing.assert_allclose(shown, true, rtol=0, atol=1e-3 * np.abs(true).max())


def test_maps_are_the_papers_formulas_on_a_plain_forward_pass(classifier: Classifier):
    plain = classifier.checkpoint.build()
    for tap in (*taps(classifier), "layer4"):
        with plain.reading([tap], keep=lambda output: output) as maps:
            logits = plain(LogMel(MEL_16K)(torch.from_numpy(NOISE)[None]))[0]
        (slope,) = torch.autograd.grad(logits[ESC50.index("rain")] - logits[ESC50.index("dog")], maps[tap])
        a, g = maps[tap][0].detach(), slope[0]
        close(cam(classifier, NOISE, tap, "rain", "dog", method="hirescam"), (g * a).sum(0).numpy())
        close(cam(classifier, NOISE, tap, "rain", "dog", method="layercam"), (g.clamp_min(0) * a).sum(0).numpy())
        weights = g.mean(dim=(1, 2), keepdim=True)
        close(cam(classifier, NOISE, tap, "rain", "dog", method="gradcam"), (weights * a).sum(0).numpy())


def test_hirescam_of_the_last_stage_adds_up_to_the_logit():
    classifier = untrained(SMALL["resnet34"])
    for label in ("dog", "rain"):
        total = cam(classifier, NOISE, "layer4", label, method="hirescam").sum(dtype=np.float64)
        assert total + bias(classifier, label) == pytest.approx(logit(classifier, label), abs=1e-5)


def test_hirescam_of_all_pyramid_levels_adds_up_to_the_logit():
    classifier = untrained(SMALL["linear pyramid"])
    levels = [cam(classifier, NOISE, f"fpn.p{k}", "dog", method="hirescam") for k in (1, 2, 3, 4)]
    total = sum(level.sum(dtype=np.float64) for level in levels)
    assert total + bias(classifier, "dog") == pytest.approx(logit(classifier, "dog"), abs=1e-5)


def test_why_a_and_not_b_is_minus_why_b_and_not_a(classifier: Classifier):
    for tap in taps(classifier):
        for method in ("hirescam", "gradcam"):
            one = cam(classifier, NOISE, tap, "dog", "rain", method=method)
            assert one.any()
            np.testing.assert_array_equal(one, -cam(classifier, NOISE, tap, "rain", "dog", method=method))
            alone = [cam(classifier, NOISE, tap, label, method=method) for label in ("dog", "rain")]
            close(one, alone[0] - alone[1])


def test_every_network_has_taps_to_explain():
    assert taps(untrained(SMALL["resnet34"])) == ["layer2", "layer3"]
    assert taps(untrained(SMALL["se_fpn"])) == ["layer2", "layer3", "fpn.p1"]
    coarse = untrained(dataclasses.replace(SMALL["resnet34"], stem_stride=4))  # its layer1 is as fine as layer2 there
    assert taps(coarse) == ["layer1", "layer2"]
    assert explain(coarse, Clip(NOISE, 16_000), method="hirescam").tap == "layer1"
    shallow = untrained(dataclasses.replace(RESNET34, width=4, depths=(1,)))
    assert taps(shallow) == ["layer1"]
    assert explain(shallow, Clip(NOISE, 16_000), method="hirescam").tap == "layer1"


def test_what_there_is_not_is_refused(classifier: Classifier):
    with pytest.raises(ValueError, match="method 'magic' is unknown; known are hirescam, layercam, gradcam"):
        cam(classifier, NOISE, "layer3", "dog", method="magic")


def test_a_cell_becomes_mask_at_its_own_time_and_pitch():
    values = np.full((8, 16), -1.0, np.float32)  # layer3: stride 16
    values[2, 5] = 3.0
    mask = mask_of(values, 16, MEL_16K)
    assert mask.shape == (128, 251) and mask.dtype == np.float32
    assert mask[32, 80] == 1 and mask.min() == 0
    assert not mask[:17].any() and not mask[48:].any() and not mask[:, :65].any() and not mask[:, 96:].any()
    np.testing.assert_allclose(mask, mask_of(7 * values, 16, MEL_16K), atol=1e-6)  # the scale of a map means nothing
    assert not mask_of(-np.abs(values), 16, MEL_16K).any()
    assert not mask_of(np.ones((8, 16)), 16, MEL_16K, 100)[:, 100:].any()


@pytest.fixture(scope="module")
def shipped() -> Classifier:
    return Classifier.open(device="cpu")


@pytest.fixture(scope="module")
def other(shipped: Classifier) -> Classifier:
    return untrained(shipped.config, mel=shipped.mel)


@pytest.mark.parametrize(
    ("method", "most"), [("hirescam", 0.4), ("layercam", 0.85), ("gradcam", 0.4), ("perturbation", 0.4)]
)
def test_a_network_with_new_weights_gives_another_map(shipped: Classifier, other: Classifier, method: str, most: float):
    """Adebayo et al. 2018: a map that stays shows the sound and not what the network makes of it."""
    waveform = shipped.cut(load(EXAMPLES / "dog.ogg"))[0][0]

    def found(classifier: Classifier, tap: str) -> np.ndarray:
        if method == "perturbation":
            return sought_mask(classifier, waveform, "dog")
        return cam(classifier, waveform, tap, "dog", method=method)

    for tap in ("",) if method == "perturbation" else taps(shipped):
        ranks = [found(classifier, tap).argsort(axis=None).argsort() for classifier in (shipped, other)]
        assert np.corrcoef(*ranks)[0, 1] < most  # Spearman's, of the signed maps
