"""Inside the network: what is shown equals a plain forward pass, and looking changes nothing."""

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnn.anatomy import Anatomy, Field, anatomy
from cnn.audio import AudioError, Clip
from cnn.checkpoint import Checkpoint, save
from cnn.classifier import Classifier
from cnn.inside import gates, kernels, look
from cnn.labels import ESC50
from cnn.mel import MEL_16K, LogMel
from cnn.model import RESNET18, RESNET34, SE_FPN, AudioCNN, ModelConfig

RATE = 16_000
SMALL = {
    "resnet34": dataclasses.replace(RESNET34, width=4),
    "resnet18": dataclasses.replace(RESNET18, width=4, stem_stride=4, groups=2),
    "se_fpn": dataclasses.replace(SE_FPN, width=4, fpn_channels=8, head_hidden=(16, 8)),
}


def noise(seconds: float, seed: int = 0) -> Clip:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).clip(-1, 1).astype(np.float32)
    return Clip(samples, RATE, "noise")


def opened(config: ModelConfig, folder: Path) -> Classifier:
    """A network whose BatchNorms have something to fold, some of it with the sign turned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AudioCNN(config)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.2).mul_(torch.randn_like(module.weight).sign())
                module.bias.data.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    path = folder / "best_model.pth"
    save(Checkpoint(config, MEL_16K, ESC50, model.state_dict()), path)
    return Classifier.open(path, device="cpu")


@pytest.fixture(scope="module", params=SMALL)
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return opened(SMALL[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def plain(classifier: Classifier) -> AudioCNN:
    """The network of the checkpoint as it was trained, nothing folded."""
    return classifier.checkpoint.build()


def picture(clip: Clip) -> torch.Tensor:
    return LogMel(MEL_16K)(torch.from_numpy(clip.samples)[None])


def close(shown: np.ndarray | float, true: np.ndarray | float) -> None:
    """Equal but for the rounding of BatchNorm's folding, measured by the largest number there is."""
    np.testing.assert_allclose(shown, true, rtol=0, atol=2e-5 * max(1e-3, float(np.abs(true).max())))


# ---- what is shown


def test_every_number_shown_is_that_of_a_plain_forward_pass(classifier: Classifier, plain: AudioCNN):
    clip, label = noise(5), "rain"
    row = ESC50.index(label)
    with plain.reading(classifier.map_taps, keep=lambda output: output) as maps:  # part of the graph, no copies
        logits = plain(picture(clip))
    slopes = torch.autograd.grad(logits[0, row], list(maps.values()))
    for (tap, values), slope in zip(maps.items(), slopes, strict=True):
        true = values[0].detach().numpy()
        shares = (slope * values).sum(dim=(2, 3))[0].detach().numpy()
        seen = look(classifier, clip, tap, label=label, window=0, channels=[2, 0])
        assert seen.shape == true.shape and (seen.tap, seen.label) == (tap, label)
        close(seen.logit, logits[0, row].item())
        close(seen.mean, true.mean(axis=0))
        close((seen.low, seen.high), np.array([true.min(), true.max()]))
        np.testing.assert_allclose(seen.shares, shares, rtol=0, atol=1e-3 * np.abs(shares).max())
        assert seen.silent == (true <= 0).all(axis=(1, 2)).sum()
        assert [channel.index for channel in seen.channels] == [2, 0]
        for channel in seen.channels:
            cells = true[channel.index]
            close(channel.values, cells)
            close((channel.low, channel.mean, channel.high), np.array([cells.min(), cells.mean(), cells.max()]))
            assert abs(channel.active - (cells > 0).mean()) < 2e-3  # a cell within rounding of 0
            assert channel.share == seen.shares[channel.index]


def test_gates_and_kernels_are_those_of_the_checkpoint(classifier: Classifier, plain: AudioCNN):
    clip = noise(5)
    with torch.inference_mode():
        _, maps = plain(picture(clip), return_feature_maps=True)
    shown = gates(classifier, clip)
    assert list(shown) == [tap for tap in plain.taps if tap.endswith(".se")]
    assert len(shown) == (16 if classifier.config.se else 0)
    for tap, values in shown.items():
        assert values.min() >= 0 and values.max() <= 1
        close(values, maps[tap][0].numpy())
    weights, scale = plain.conv1.weight[:, 0].detach().numpy(), plain.bn1.weight.detach().numpy()
    assert (scale < 0).any() and (scale > 0).any()
    np.testing.assert_array_equal(kernels(classifier), weights * np.sign(scale)[:, None, None])


def test_looking_changes_no_bit_of_the_answer(classifier: Classifier):
    clip = noise(5)
    before = classifier.predict(clip, maps="all")
    stop = threading.Event()

    def looking() -> None:
        taps = classifier.map_taps
        while not stop.is_set():
            taps = taps[1:] + taps[:1]
            look(classifier, clip, taps[0], label="dog", window=0)
            gates(classifier, clip, window=0)

    with ThreadPoolExecutor(1) as pool:
        looks = pool.submit(looking)
        try:
            during = [classifier.predict(clip, maps="all") for _ in range(5)]
        finally:
            stop.set()
    looks.result()  # raises what went wrong there
    assert not any(module._forward_hooks for module in classifier.model.modules())
    for after in [*during, classifier.predict(clip, maps="all")]:
        np.testing.assert_array_equal(after.logits, before.logits)
        for tap, values in before.maps.items():
            np.testing.assert_array_equal(after.maps[tap], values)


# ---- shares


def test_behind_the_last_stage_shares_and_bias_are_the_logit(tiny_classifier: Classifier):
    bias = tiny_classifier.checkpoint.state_dict["head.1.bias"].float()
    for label in ("dog", "rain"):
        for tap in ("layer4", "layer4.block2.relu"):
            seen = look(tiny_classifier, noise(5), tap, label=label)
            assert seen.exact and seen.rest == bias[ESC50.index(label)].item()
            assert abs(seen.shares.sum() + seen.rest - seen.logit) < 1e-5


def test_what_is_no_exact_share_says_so(classifier: Classifier):
    last = f"layer4.block{classifier.config.depths[3] - 1}"
    taps = ["conv1", "layer3", "layer4.block0.relu", f"{last}.conv", f"{last}.relu", "layer4"]
    taps += [tap for tap in classifier.map_taps if tap.startswith("fpn")]
    exact = {tap for tap in taps if look(classifier, noise(5), tap, label="dog", window=0).exact}
    assert exact == (set() if classifier.config.head_hidden else {"layer4", f"{last}.relu"})


def test_with_a_pyramid_and_a_linear_head_every_level_has_exact_shares(tmp_path: Path):
    config = dataclasses.replace(SMALL["se_fpn"], head_hidden=(), head_dropouts=(0.5,))
    classifier, clip = opened(config, tmp_path), noise(5)
    levels = [look(classifier, clip, f"fpn.p{k}", label="dog", window=0) for k in (1, 2, 3, 4)]
    bias = classifier.checkpoint.state_dict["head.1.bias"][ESC50.index("dog")].item()
    assert all(level.exact for level in levels) and not look(classifier, clip, "layer4").exact
    assert abs(sum(level.shares.sum() for level in levels) + bias - levels[0].logit) < 1e-5
    for level in levels:
        assert abs(level.shares.sum() + level.rest - level.logit) < 1e-5


def test_the_channels_shown_are_those_that_matter_most_in_either_direction(tiny_classifier: Classifier):
    seen = look(tiny_classifier, noise(5), "layer3", label="dog", most=5)
    shares = [channel.share for channel in seen.channels]
    assert shares == sorted(shares, reverse=True) and len(shares) == 5
    rest = np.delete(np.abs(seen.shares), [channel.index for channel in seen.channels])
    assert np.abs(shares).min() >= rest.max() and min(shares) < 0 < max(shares)


# ---- which window, which name


def test_left_open_the_name_and_the_window_are_those_of_the_answer(tiny_classifier: Classifier):
    clip = noise(12.3)
    answer = tiny_classifier.predict(clip, maps="stages")
    seen = look(tiny_classifier, clip, "layer2")
    assert (seen.label, seen.window) == (answer.labels[0].name, answer.window)
    assert seen.start == answer.starts[answer.window]
    close(seen.mean, answer.maps["layer2"])
    other = (answer.window + 1) % len(answer.starts)
    there = look(tiny_classifier, clip, "layer2", window=other)
    first = round(answer.starts[other] * RATE)
    alone = tiny_classifier.predict((RATE, clip.samples[first : first + 5 * RATE]), maps="stages")
    assert there.start == answer.starts[other]
    close(there.mean, alone.maps["layer2"])
    assert abs(there.logit - alone.logits[ESC50.index(there.label)]) < 1e-4


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"tap": "layer9"}, "tap 'layer9' is unknown; resnet34 has conv1, layer1"),
        ({"label": "doorbell"}, "label 'doorbell' is unknown; known are dog, rooster"),
        ({"channels": [3, 8]}, "layer2 has no channel 8; its channels are 0 to 7"),
        ({"channels": [-1]}, "layer2 has no channel -1"),
        ({"window": 3}, "there is no window 3; this sound has windows 0 to 2"),
        ({"window": -1, "label": "dog"}, "there is no window -1"),
        ({"window": 2, "label": "dog"}, r"window 2 \(5 to 10 s\) is silent and was not heard; there is sound in 0, 1"),
        ({"window": 2}, "window 2 .* is silent"),
        ({"most": 0}, "ask for 1 or more"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(tiny_classifier: Classifier, how: dict, says: str):
    sound = Clip(np.pad(noise(5).samples, (0, 5 * RATE)), RATE)
    with pytest.raises(ValueError, match=says):
        look(tiny_classifier, sound, **{"tap": "layer2", **how})


def test_silence_and_gates_without_a_map_are_refused_in_words(classifier: Classifier):
    silence = Clip(np.zeros(5 * RATE, np.float32), RATE)
    with pytest.raises(AudioError, match="Nothing to hear"):
        look(classifier, silence, "layer1", label="dog", window=0)
    if classifier.config.se:
        with pytest.raises(AudioError, match="Nothing to hear"):
            gates(classifier, silence)
        with pytest.raises(ValueError, match="layer1.block0.se holds gates.*ask for the gates"):
            look(classifier, noise(5), "layer1.block0.se")


# ---- the anatomy


def test_parts_and_costs_add_up_to_the_network(classifier: Classifier, plain: AudioCNN):
    found = anatomy(classifier)
    assert Anatomy.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.picture == (128, 251) and found.network == classifier.network
    assert sorted(tap for part in found.parts for tap in part.taps) == sorted(plain.taps)
    assert list(found.fields) == [tap for tap, about in plain.taps.items() if about.is_map]
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        logits, maps = plain(torch.zeros(1, 1, *found.picture), return_feature_maps=True)
    for part in found.parts:
        assert part.shape == (tuple(maps[part.taps[0]].shape[1:]) if part.taps else logits.shape[1:])
        assert all(maps[tap].shape[1:] == part.shape for tap in part.taps)
    parameters = classifier.checkpoint.parameter_count
    assert 2 * sum(part.multiply_adds for part in found.parts) == counter.get_total_flops()
    assert sum(part.parameters for part in found.parts) == parameters
    assert (found.parameters, 2 * found.multiply_adds) == (parameters, counter.get_total_flops())
    for stage, entering in (("layer1", maps["conv1"]), ("layer4", maps["layer3"])):
        # alone: the counts by module mix up with what other threads compute meanwhile, the total does not
        with torch.inference_mode(), FlopCounterMode(display=False) as alone:
            getattr(plain, stage)(entering)
        assert 2 * sum(part.multiply_adds for part in found.parts if part.stage == stage) == alone.get_total_flops()


def fields_of(config: ModelConfig) -> dict[str, Field]:
    return anatomy(SimpleNamespace(config=config, mel=MEL_16K, network="")).fields


def seen_by(
    model: AudioCNN, x: torch.Tensor, tap: str, cells: list[tuple[int, int]]
) -> list[tuple[int, int, int, int]]:
    """First and last place in frequency, then in time, that each cell of the tap's map depends on, by gradient."""
    with model.reading([tap]) as maps:
        model(x)
    spans = []
    for row, column in cells:
        slope = torch.autograd.grad(maps[tap][0, :, row, column].sum(), x, retain_graph=True)[0][0, 0]
        rows, columns = slope.any(dim=1).nonzero(), slope.any(dim=0).nonzero()
        spans.append((rows.min().item(), rows.max().item(), columns.min().item(), columns.max().item()))
    return spans


def open_network(config: ModelConfig) -> AudioCNN:
    """Every path is open: no weight is negative, so that no ReLU closes, and the mean stands in for the pool's maximum.
    The gates are held; without that each would let its channel depend on the whole picture."""
    slim = dataclasses.replace(config, width=config.groups, fpn_channels=min(config.fpn_channels, 1))
    model = AudioCNN(slim).double().eval()
    for weight in model.parameters():
        nn.init.constant_(weight, 1 / weight[0].numel() if weight.ndim > 1 else 1.0)
    model.pool = nn.AvgPool2d(3, 2, 1)
    for module in model.modules():
        if getattr(module, "se", None) is not None:
            module.se.register_forward_hook(lambda _module, _inputs, output: output.detach())
    return model


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(1001, 38), (41, 1024)])
def test_receptive_fields_are_those_of_the_gradient(name: str, size: tuple[int, int]):
    model, fields = open_network(SMALL[name]), fields_of(SMALL[name])
    x = torch.rand(1, 1, *size, dtype=torch.float64, requires_grad=True)
    for tap in ("conv1", "layer1.block0.conv", "layer2.block0.relu", *model.stages):
        field, shape = fields[tap], [-(-places // model.taps[tap].stride) for places in size]
        assert field.stride == model.taps[tap].stride
        cells = [(0, 0), (shape[0] // 2, shape[1] // 2), (shape[0] - 1, shape[1] - 1)]
        for (row, column), (low, high, first, last) in zip(cells, seen_by(model, x, tap, cells), strict=True):
            assert field.span(row, size[0]) == (low, high + 1)
            assert field.span(column, size[1]) == (first, last + 1)


@pytest.mark.parametrize("long", [1101, 1104])
def test_the_field_of_a_pyramid_level_is_the_smallest_that_holds_for_all_its_cells(long: int):
    model, fields = open_network(SMALL["se_fpn"]), fields_of(SMALL["se_fpn"])
    x = torch.rand(1, 1, 5, long, dtype=torch.float64, requires_grad=True)
    for tap in ("fpn.p1", "fpn.p2", "fpn.p3", "fpn.p4"):
        field = fields[tap]
        places = range(0, long, field.stride)
        inside = [k for k, place in enumerate(places) if 0 <= place + field.start <= long - field.size]
        assert len(inside) >= 32 // field.stride  # one cell of the coarsest level has so many here, in every place
        spans = seen_by(model, x, tap, [(0, column) for column in inside])
        starts = [span[2] - column * field.stride for column, span in zip(inside, spans, strict=True)]
        ends = [span[3] + 1 - column * field.stride for column, span in zip(inside, spans, strict=True)]
        assert (min(starts), max(ends) - min(starts)) == (field.start, field.size)
        first, last = seen_by(model, x, tap, [(0, 0), (0, len(places) - 1)])
        assert field.span(0, long)[1] > first[3] and field.span(len(places) - 1, long)[0] <= last[2]


def test_through_its_gates_a_cell_hears_the_whole_picture():
    model = open_network(SMALL["se_fpn"])
    model.layer1[0].se._forward_hooks.clear()
    x = torch.rand(1, 1, 40, 200, dtype=torch.float64, requires_grad=True)
    assert seen_by(model, x, "layer1.block0.conv", [(0, 0)]) == [(0, 39, 0, 199)]
    assert fields_of(SMALL["se_fpn"])["layer1.block0.conv"].span(0, 200) == (0, 14)
