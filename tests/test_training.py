"""Training: the same seed gives the same run, cut off or not; nothing of the held-out fold is looked at."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import training.train as train_module
from cnn import checkpoint
from cnn.audio import AudioError
from cnn.mel import LogMel, MelConfig
from training import augment, config, evaluate
from training.data import DataError, in_folds, read_rows
from training.train import TrainingError, train

CLASSES = {"dog": 300.0, "rain": 900.0, "rooster": 2700.0}
SMALL = {"width": 4, "epochs": 3, "batch_size": 4, "crop_frames": 64, "precision": "fp32", "checkpoint_every": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy tones in three folds, in ESC-50's layout."""
    root = tmp_path_factory.mktemp("data")
    (root / "audio").mkdir()
    (root / "meta").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for fold in (1, 2, 5):
        for take in range(2):
            for label, hz in CLASSES.items():
                name = f"{fold}-{label}-{take}.flac"
                sound = 0.3 * np.sin(2 * np.pi * hz * np.arange(80_000) / 16_000) + rng.normal(0, 0.01, 80_000)
                soundfile.write(root / "audio" / name, sound, 16_000)
                rows.append({"filename": name, "fold": fold, "target": 0, "category": label, "esc10": True})
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


def test_a_run_cut_off_and_resumed_ends_as_one_that_was_not(data: Path, tmp_path: Path):
    run = config.make("resnet34-16k", **SMALL)
    whole = train(run, data, tmp_path / "whole")
    assert train(run, data, tmp_path / "cut", stop_after=1) is None
    cut = train(run, data, tmp_path / "cut", resume=True)
    assert whole.losses[-len(cut.losses) :] == cut.losses and len(whole.losses) == 3 * 3
    a, b = (checkpoint.load(r.checkpoint) for r in (whole, cut))
    assert all(torch.equal(a.state_dict[k], b.state_dict[k]) for k in a.state_dict)
    assert a.provenance["folds_trained_on"] == [1, 2] and a.provenance["fold_held_out"] == 5
    assert a.metrics["clips"] == 6 and a.metrics["accuracy"] == whole.accuracy


def test_the_commit_in_the_weights_is_that_of_the_start_and_none_is_needed(data: Path, tmp_path: Path, monkeypatch):
    run = config.make("resnet34-16k", **SMALL | {"epochs": 2})
    monkeypatch.setenv("PATH", "")
    train(run, data, tmp_path, stop_after=1)
    monkeypatch.undo()
    assert checkpoint.load(train(run, data, tmp_path, resume=True).checkpoint).provenance["commit"] == "unknown"


def test_another_seed_is_another_run(data: Path, tmp_path: Path):
    short = SMALL | {"epochs": 1}
    runs = [train(config.make("resnet34-16k", **short, seed=s), data, tmp_path / str(s)) for s in (0, 1)]
    assert runs[0].losses != runs[1].losses


def test_training_reads_no_clip_of_the_held_out_fold_until_it_is_over(data: Path, tmp_path: Path, monkeypatch):
    read = []
    original = train_module.load_db

    def spy(rows, mel):
        read.extend(r.fold for r in rows)
        return original(rows, mel)

    monkeypatch.setattr(train_module, "load_db", spy)
    monkeypatch.setattr(train_module, "evaluate", lambda *_, **__: pytest.fail("looked at the held-out fold"))
    assert train(config.make("resnet34-16k", **SMALL), data, tmp_path, stop_after=1) is None
    assert set(read) == {1, 2}


def test_it_can_learn_what_is_there(data: Path, tmp_path: Path):
    """Without augmentation, a small network learns twelve tones by heart and knows new ones by their pitch."""
    calm = {"mixup": 0.0, "mixup_end": 0.0, "stretch_min": 1.0, "stretch_max": 1.0, "shift_bins": 0, "eq_db": 0.0}
    calm |= {"freq_masks": 0, "time_masks": 0, "label_smoothing": 0.0, "average": 0.9, "lr": 0.01, "epochs": 25}
    result = train(config.make("resnet34-16k", **SMALL | calm | {"checkpoint_every": 100}), data, tmp_path)
    assert result.losses[-1] < 0.1 * result.losses[0]
    report = evaluate.evaluate(result.checkpoint, data, 5, device="cpu")
    assert report.correct == report.clips == 6 and set(report.per_class) == set(CLASSES)


def test_other_settings_do_not_continue_a_run(data: Path, tmp_path: Path):
    run = config.make("resnet34-16k", **SMALL)
    train(run, data, tmp_path, stop_after=1)
    with pytest.raises(TrainingError, match=r"lr 0\.002 -> 0\.1"):
        train(dataclasses.replace(run, lr=0.1), data, tmp_path, resume=True)
    with pytest.raises(TrainingError, match="--resume"):
        train(run, data, tmp_path)
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(run, data, tmp_path / "elsewhere", resume=True)
    (tmp_path / "resume.pt").write_bytes(b"cut off")
    with pytest.raises(TrainingError, match="delete it to start again"):
        train(run, data, tmp_path, resume=True)


def test_a_loss_that_is_not_a_number_stops_with_where_and_what_to_do(data: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match=r"epoch 1, step [23].*another --out with a lower --lr"):
        train(config.make("resnet34-16k", **SMALL, lr=1e30, warmup=0.0), data, tmp_path)


def test_wrong_names_and_missing_data_are_answered_with_the_right_ones(data: Path, tmp_path: Path, capsys):
    with pytest.raises(ValueError, match=r"'nope'.*resnet34-16k"):
        config.make("nope")
    with pytest.raises(ValueError, match=r"'learning_rate'.*lr"):
        config.make("resnet34-16k", learning_rate=1)
    with pytest.raises(ValueError, match=r"resnet34, se_fpn"):
        config.make("resnet34-16k", model="vgg")
    with pytest.raises(DataError, match=r"esc50\.csv"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match="no clip in fold 7"):
        in_folds(read_rows(data), [7])
    assert train_module.main(["--data", str(tmp_path), "--out", str(tmp_path / "o")]) == 1
    assert "meta/esc50.csv" in capsys.readouterr().err


def test_a_broken_clip_is_named(data: Path, tmp_path: Path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "meta").symlink_to(data / "meta")
    for path in (data / "audio").iterdir():
        (tmp_path / "audio" / path.name).symlink_to(path)
    (tmp_path / "audio" / "1-rain-0.flac").unlink()
    with pytest.raises(DataError, match=r"1-rain-0\.flac"):
        train(config.make("resnet34-16k", **SMALL), tmp_path, tmp_path / "out")
    (tmp_path / "audio" / "1-rain-0.flac").write_text("not sound")
    with pytest.raises(AudioError, match=r"1-rain-0\.flac"):
        train(config.make("resnet34-16k", **SMALL), tmp_path, tmp_path / "out")


def test_the_command_leaves_weights_a_log_for_tensorboard_and_a_line_per_epoch(data: Path, tmp_path: Path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (SMALL | {"epochs": 2}).items()]
    assert train_module.main(["--data", str(data), "--out", str(tmp_path / "run"), "--fold", "5", *flags]) == 0
    said = capsys.readouterr().out
    assert "epoch 2/2" in said and "min left" in said and "on fold 5, which was held out" in said
    checkpoint.load(tmp_path / "run" / "best_model.pth")
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard_logs")).Reload()
    assert {"train/loss", "train/accuracy", "lr", "fold 5/accuracy"} <= set(log.Tags()["scalars"])
    assert [event.step for event in log.Scalars("train/loss")] == [1, 2] and log.Tags()["images"]
    assert evaluate.main(["--model", str(tmp_path / "run" / "best_model.pth"), "--data", str(data), "--fold", "1"]) == 0
    said = capsys.readouterr().out
    assert "was trained on fold 1" in said and "of 6 clips of fold 1" in said


def test_every_field_is_a_flag():
    import argparse

    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    args = parser.parse_args(["--lr", "0.5", "--relative", "false", "--mixup-domain", "input", "--epochs", "7"])
    made = config.from_flags(args)
    assert made == config.TrainConfig(lr=0.5, relative=False, mixup_domain="input", epochs=7)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_warping_without_stretch_or_shift_is_a_circular_roll():
    picture = torch.rand(1, 4, 20, generator=torch.Generator().manual_seed(0))
    rolled = augment.warp(picture, 20, 1.0, 1.0, 0, rng())[0]
    start = rng().uniform(0, 20, (1, 1)).item()
    whole, part = int(start), start - int(start)
    expected = torch.lerp(picture[0].roll(-whole, 1), picture[0].roll(-whole - 1, 1), part)
    torch.testing.assert_close(rolled, expected)


@pytest.mark.parametrize("defect", ["lowpass", "highpass", "silence", "noise"])
def test_each_defect_from_outside_does_what_it_is_called(defect: str):
    power = torch.ones(64, 128, 50)
    power[:, :, 25] = 1e-6
    changed = augment.outside(power, config.make("resnet34-16k", **{defect: 1.0}), rng())
    ratio = changed / power
    if defect in ("lowpass", "highpass"):
        lost = ratio[:, -1 if defect == "lowpass" else 0, 0]
        assert (lost < 0.1).float().mean() > 0.8 and (ratio <= 1).all()
        assert torch.equal(ratio[:, 40:44], torch.ones(64, 4, 50))  # the middle passes
    elif defect == "silence":
        kept = (changed[:, 0] > 0).sum(dim=1)
        assert set(ratio.unique().tolist()) == {0.0, 1.0} and 14 <= kept.min() < 20 and kept.max() > 40
    else:
        assert (changed > power).all() and (ratio[:, :, 25] > 2).all()  # what was quiet is covered
        assert 1e-4 < changed.mean() / power.mean() - 1 < 0.5
    assert torch.equal(augment.outside(power, config.make("resnet34-16k"), rng()), power)


def test_reverberation_falls_by_60_db_over_t60_and_keeps_the_energy():
    power = torch.zeros(2, 3, 60)
    power[:, :, 10] = 1.0
    smeared = augment.reverberate(power, np.array([[20.0], [20.0]]), np.array([[1.0], [0.0]]))
    torch.testing.assert_close(smeared[0, 0, 30] / smeared[0, 0, 10], torch.tensor(1e-6))
    torch.testing.assert_close(smeared[0].sum(dim=1), torch.ones(3))
    assert torch.equal(smeared[0, 0, :10], torch.zeros(10)) and torch.equal(smeared[1], power[1])  # no wet: untouched
    changed = augment.outside(power, config.make("resnet34-16k", reverb=1.0), rng())
    assert (changed[:, :, 11] > 0).all()


def test_masks_hide_no_more_than_they_may_and_something():
    x = torch.ones(200, 1, 30, 40)
    hidden = (augment.mask(x, 3, 2, 10, rng()) == 0)[:, 0].all(dim=1).sum(dim=1)  # hidden frames by clip
    assert hidden.max() <= 20 and hidden.float().mean() > 5
    assert torch.equal(augment.mask(x, 2, 2, 0, rng()), x)


def test_a_mix_holds_both_sounds_in_the_shares_of_its_label():
    """Two tones in different bins, mixed in the power domain: level differences follow the label's shares."""
    front_end = LogMel(MelConfig(mean=0.0, std=1.0, relative=False, floor_db=-200.0))
    calm = config.make("resnet34-16k", stretch_min=1.0, stretch_max=1.0, shift_bins=0, eq_db=0.0, gain_db=0.0,
                       freq_masks=0, time_masks=0, crop_frames=8)  # fmt: skip
    db = torch.full((2, 128, 8), -150.0)
    db[0, 10], db[1, 90] = 0.0, 0.0
    for seed in range(20):
        x, soft = augment.augment(db, torch.eye(2), front_end, calm, True, np.random.default_rng(seed))
        if soft[0].min() > 0:
            break
    assert torch.allclose(soft.sum(dim=1), torch.ones(2))
    levels = x[0, 0, [10, 90], 0]
    torch.testing.assert_close(levels, 20 * soft[0].log10(), atol=1e-3, rtol=0)
