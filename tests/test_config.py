"""The configuration refuses what cannot work; its flags explain themselves; epochs are what their shares say."""

import argparse
import dataclasses
import math
from pathlib import Path

import pytest
import torch

from cnn import checkpoint
from cnn.checkpoint import CheckpointError
from cnn.mel import LogMel, MelConfig
from cnn.model import AudioCNN, ModelConfig
from tests.bench_train import batches
from training import config
from training.config import TrainConfig
from training.feed import Feed
from training.widen import Missing, read_narrow


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("warmup", 1.0, "warmup must be below 1"),
        ("average", 1.0, "average must be below 1"),
        ("eq_knots", 0, "eq_knots must be positive"),
        ("mixup_sharpness", 0.0, "mixup_sharpness must be positive"),
        ("kept_min", 0.0, "kept_min must be positive"),
        ("kept_min", 1.5, "kept_min must lie in 0..1"),
        ("device", "gpu", "device 'gpu' is unknown; known are auto, cpu, cuda, cuda:N"),
        ("device", "cuda:one", "known are auto"),
        ("widen", "runs/{name}/best_model.pth", "nothing but {fold} may stand in braces"),
        ("widen", "runs/fold{fold", "nothing but {fold}"),
        ("epochs", 0, "epochs must be positive where nothing is grown from"),
        ("patience", 5, "patience needs an inner_share"),
        ("epochs", -1, "epochs must be 0 or more, not -1"),
        ("widen", "A,,B", "a name is missing beside a comma or a plus"),
        ("widen", "A+", "a name is missing"),
        ("widen", "A+B,C", r"widen names 2 to grow from \(a mean counts as one\), and groups is 1"),
        ("widen", "A,B", "widen names 2 to grow from, and groups is 1: .* groups to 2 and width to theirs together"),
        ("groups", 3, "width 64 cannot be shared out among 3 groups"),
        ("stem_stride", 17, "must lie in 1..16"),
        ("stretch_max", math.inf, "stretch_max must be a number that can be computed with, not inf"),
        ("seed", 2**63, r"seed must lie below 2\^63"),
        ("crop_frames", 252, "crop_frames must be at most the 251 of a clip with mel 16k, not 252"),
        ("accumulate", 65, "a batch of 64 cannot be computed in 65 parts: raise batch_size or lower accumulate"),
        ("schedule", "linear", "schedule 'linear' is unknown; known are onecycle, cosine"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_done(field: str, value: object, told: str):
    with pytest.raises(ValueError, match=told):
        config.make("resnet34-16k", **{field: value})


def test_what_cannot_work_together_is_refused_too():
    still = {"widen": "a/best_model.pth", "epochs": 0, "inner_share": 0.1}
    with pytest.raises(ValueError, match="patience needs epochs to choose from: set it to 0"):
        config.make("resnet34-16k", **still, patience=5)
    assert config.make("resnet34-16k", **still).patience == 0
    with pytest.raises(ValueError, match="layout channels_last needs a width that 64 divides, not 32"):
        config.make("resnet34-16k", width=32, groups=4, layout="channels_last")


def test_what_is_close_to_that_is_legal():
    near = {"warmup": 0.99, "average": 0.9999, "eq_knots": 1, "widen": "a/fold{fold}/b"}
    for device in ("auto", "cpu", "cuda", "cuda:0", "cuda:11"):
        assert config.make("resnet34-16k", **near, device=device).device == device


def test_help_tells_of_every_flag_what_it_means_what_it_is_and_what_it_can_be():
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    told = " ".join(parser.format_help().split())
    for field in dataclasses.fields(TrainConfig)[1:]:
        assert f" --{field.name.replace('_', '-')} " in told
    assert told.count("(default: ") == len(dataclasses.fields(TrainConfig)) - 1
    assert "--schedule {onecycle,cosine} from max_lr / 25" in told and "--roll {true,false} start anywhere" in told
    epochs = config.make("best-16k").epochs
    assert f"(default: 90; best-16k: {epochs}; robust-16k: {epochs}; clean-16k: 640; late-16k: 320;" in told
    assert "(default: true; resnet34-44k: false;" in told
    with pytest.raises(ValueError, match="known are onecycle, cosine"):  # one sentence, not the usage of fifty flags
        config.from_flags(parser.parse_args(["--schedule", "linear"]))


def feed(recipe: str = "best-16k", frames: int = 251, clips: int = 32, **fields) -> Feed:
    db = -50 + 10 * torch.randn(clips, 128, frames, generator=torch.Generator().manual_seed(2))
    made = config.make(recipe, **{"batch_size": 4, **fields})
    return Feed(db, list(range(clips)), torch.arange(clips), clips, LogMel(MelConfig()), made)


def test_a_gentle_start_holds_mixing_back_even_where_the_last_part_has_begun():
    late = feed(clips=64, batch_size=8, epochs=8, gentle=0.5, mixup_end=1.0, mixup_end_share=1.0)
    mixed = [sum((b.soft.amax(1) < 1).any().item() for b in late.epoch(epoch)) for epoch in range(5)]
    assert mixed[0] == 0 and 0 < sum(mixed[1:4]) < 3 * late.steps and mixed[4] == late.steps


def test_the_benchmark_measures_pictures_with_all_that_is_done_to_them():
    fields = {"epochs": 8, "mixup": 1.0, "mixup_end_share": 0.0}
    (batch,) = batches(feed(**fields, gentle=0.5), 0, 1)
    assert torch.equal(batch.x, feed(**fields, gentle=0.5).batch(4, 0).x)
    (last,) = batches(feed(**fields, gentle=1.0), 0, 1)
    assert torch.equal(last.x, feed(**fields, gentle=1.0).batch(7, 0).x)


def test_what_was_recorded_before_a_field_existed_was_computed_with_what_it_stands_for():
    old = {"lr": 1.0}
    assert config.differences(old, old | {"mixup_sharpness": 1.0, "kept_min": 0.3, "repeated": 0.0, "groups": 1}) == ""
    assert config.differences(old, old | {"mixup_sharpness": 2.0}) == "mixup_sharpness 1.0 -> 2.0"


def test_growing_wants_the_same_classes_and_front_end_and_says_how_to_get_a_network(tmp_path: Path):
    path, labels, mel = tmp_path / "fold2" / "best_model.pth", ("dog", "rain", "rooster"), MelConfig()
    small = ModelConfig(width=2, num_classes=3, depths=(1, 1, 1, 1))
    state = AudioCNN(small).state_dict()

    def made(**fields) -> TrainConfig:
        return config.make(**{"recipe": "resnet34-16k", "fold": 2} | fields)

    def read(mel: MelConfig = mel, labels: tuple[str, ...] = labels, **fields):
        return read_narrow(path, made(**fields), labels, mel)

    for place, fields, of in (
        (0, {"width": 8}, "resnet34-16k --width 4 --seed 0"),
        (0, {"width": 8, "model": "se_fpn"}, "resnet34-16k --width 4 --seed 0 --model se_fpn"),
        (0, {"recipe": "late-16k", "width": 64}, "clean-16k --width 32 --seed 1"),
        (0, {"recipe": "late-16k", "width": 24}, "clean-16k --width 12 --seed 1"),
        (0, {"recipe": "late-16k", "inner_share": 0.3, "relative": False, "stem_stride": 2, "floor_db": -60.0},
         "clean-16k --width 32 --seed 1 --stem-stride 2 --relative false --floor-db -60.0 --inner-share 0.3"),
        (0, {"recipe": "ensemble-16k", "classes": "esc10"}, "best-16k --width 32 --seed 0 --classes esc10"),
        (1, {"recipe": "ensemble-16k"}, "clean-16k --width 32 --seed 1"),
        (2, {"recipe": "ensemble-16k"}, "late-16k --width 32 --seed 1"),
        (3, {"recipe": "ensemble-16k"}, "best-16k --width 32 --seed 3"),
    ):  # fmt: skip
        told = str(Missing(path, made(**fields), place))
        assert f"training.train --recipe {of} --data DIR --fold 2 --out {path.parent}" in told
    for fields in ({}, {"recipe": "short-16k"}, {"recipe": "ensemble-16k", "groups": 2, "width": 64}):  # b: a relative
        told = Missing(path, made(widen="a+b,c" if "groups" in fields else "a+b", **fields), 1)
        assert str(told).endswith("--widen PATH names another best_model.pth") and not told.settings
    checkpoint.save(checkpoint.Checkpoint(small, mel, labels, state, provenance={"folds_trained_on": [1]}), path)
    assert read(dataclasses.replace(mel, mean=-1.0, std=2.0)).labels == labels
    with pytest.raises(CheckpointError, match=r"--inner-share 0.1 keeps aside \(its own was 0\).* set --inner-share 0"):
        read(inner_share=0.1)
    with pytest.raises(CheckpointError, match="knows 3 classes that are not the 4 of this run: set --classes"):
        read(labels=(*labels, "cow"))
    with pytest.raises(CheckpointError, match="not the 3 of this run"):
        read(labels=("dog", "rain", "cow"))
    with pytest.raises(CheckpointError, match=r"front end \(relative False -> True\).* --relative"):
        read(dataclasses.replace(mel, relative=True))
