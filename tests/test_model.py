"""The networks: any size in, every parameter learns, taps are what they say and change nothing."""

import dataclasses

import pytest
import torch

from cnn.model import RESNET18, RESNET34, SE_FPN, AudioCNN, ModelConfig, SqueezeExcite

NARROW = [
    dataclasses.replace(RESNET34, width=8),
    dataclasses.replace(RESNET18, width=8, stem_stride=4),
    dataclasses.replace(RESNET18, name="ensemble", width=8, stem_stride=4, groups=2),
    dataclasses.replace(SE_FPN, width=8, fpn_channels=8),
]
networks = pytest.mark.parametrize("config", NARROW, ids=[config.name for config in NARROW])


def build(config: ModelConfig) -> AudioCNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AudioCNN(config).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_the_networks_have_the_size_of_the_design():
    with torch.device("meta"):
        resnet, se_fpn = AudioCNN(RESNET34), AudioCNN(SE_FPN)
    assert round(resnet.parameter_count / 1e6, 1) == 21.3
    assert len(resnet.taps) == 37 and all(tap.is_map for tap in resnet.taps.values())
    assert [t for t in se_fpn.taps if t.startswith("fpn.")] == ["fpn.p1", "fpn.p2", "fpn.p3", "fpn.p4"]
    assert sum(t.endswith(".se") for t in se_fpn.taps) == 16
    ensemble = dataclasses.replace(RESNET18, groups=2)
    assert (RESNET18.title, ensemble.title) == ("resnet18", "2 × resnet18")
    with torch.device("meta"):
        assert AudioCNN(ensemble).parameter_count < 0.6 * AudioCNN(RESNET18).parameter_count


@networks
@pytest.mark.parametrize("size", [(128, 251), (128, 431), (127, 33), (1, 1), (3, 500)])
def test_any_size_gives_finite_logits_and_taps_of_the_declared_size(config: ModelConfig, size: tuple[int, int]):
    model = build(config)
    with torch.inference_mode():
        logits, maps = model(noise(2, 1, *size), return_feature_maps=True)
    assert logits.shape == (2, 50) and torch.isfinite(logits).all()
    assert list(maps) == list(model.taps)
    for name, tap in model.taps.items():
        cells = tuple(-(-n // tap.stride) for n in size) if tap.is_map else ()
        assert maps[name].shape == (2, tap.channels, *cells), name


@networks
def test_every_parameter_gets_a_gradient(config: ModelConfig):
    model = build(config).train()
    torch.nn.functional.cross_entropy(model(noise(4, 1, 64, 65)), torch.arange(4)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@networks
def test_reading_taps_leaves_the_answer_and_no_hook_behind(config: ModelConfig):
    model = build(config)
    x = noise(2, 1, 64, 99)
    with torch.inference_mode():
        plain = model(x)
        read, _ = model(x, return_feature_maps=True)
    assert torch.equal(plain, read)
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match="on purpose"), model.reading(["layer1"]):
        raise RuntimeError("on purpose")
    assert not any(m._forward_hooks for m in model.modules())


@networks
def test_taps_hold_what_a_plain_pass_through_the_parts_gives(config: ModelConfig):
    model = build(config)
    x = noise(1, 1, 64, 99)
    with torch.inference_mode():
        _, maps = model(x, return_feature_maps=True)
        stem = model.pool(torch.relu(model.bn1(model.conv1(x))))
        layer1 = model.layer1(stem)
    assert torch.equal(maps["conv1"], stem)
    assert torch.equal(maps["layer1"], layer1)
    assert torch.equal(maps[f"layer1.block{config.depths[0] - 1}.relu"], layer1)
    assert torch.equal(maps["layer2.block0.relu"], maps["layer2.block0.conv"].relu())
    assert (maps["layer2.block0.conv"] < 0).any()  # before the ReLU, and not overwritten by it


def test_an_unknown_tap_is_refused_with_those_there_are():
    with pytest.raises(KeyError, match=r"layer9.*layer1\.block0\.conv"), build(NARROW[0]).reading(["layer9"]):
        pass


def test_squeeze_and_excitation_gates_lie_between_0_and_1():
    gates = SqueezeExcite(8, 4)(10 * noise(3, 8, 5, 6))
    assert gates.shape == (3, 8) and (gates > 0).all() and (gates < 1).all()


@pytest.mark.parametrize(
    "wrong",
    [{"depths": ()}, {"width": 0}, {"head_dropouts": (0.5, 0.5)}, {"head_dropouts": (1.0,)}, {"depths": (999,)},
     {"stem_stride": 0}, {"stem_stride": 17}, {"groups": 0}, {"groups": 3}, {"groups": 2, "se": True},
     {"groups": 2, "fpn_channels": 8}, {"groups": 2, "head_hidden": (8,), "head_dropouts": (0.5, 0.5)}],  # fmt: skip
)
def test_a_network_that_cannot_be_is_refused(wrong: dict):
    with pytest.raises(ValueError):
        dataclasses.replace(RESNET34, **wrong)
