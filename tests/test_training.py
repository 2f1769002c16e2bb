"""Training: the same seed gives the same run, cut off or not; nothing of the held-out fold is looked at."""

import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import training.train as train_module
from cnn import checkpoint
from cnn.mel import MELS, LogMel, MelConfig
from cnn.model import MODELS
from training import augment, config, evaluate
from training.data import DataError, Row
from training.splits import inner_split
from training.train import TrainingError, train

SMALL = {"width": 4, "epochs": 3, "batch_size": 4, "crop_frames": 64, "precision": "fp32", "checkpoint_every": 1}

CALM = {"mixup": 0.0, "mixup_end": 0.0, "stretch_min": 1.0, "stretch_max": 1.0, "shift_bins": 0, "eq_db": 0.0,
        "freq_masks": 0, "time_masks": 0, "label_smoothing": 0.0, "max_lr": 0.01}  # fmt: skip


@pytest.fixture(scope="module")
def data(tone_data: Path) -> Path:
    return tone_data


def copied(data: Path, to: Path) -> Path:
    """The data set again, its clips as links, so that some can be replaced."""
    (to / "audio").mkdir(parents=True)
    (to / "meta").symlink_to(data / "meta")
    for path in (data / "audio").iterdir():
        (to / "audio" / path.name).symlink_to(path)
    return to


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


def test_a_run_killed_at_any_moment_and_resumed_ends_as_one_that_was_not(data: Path, tmp_path: Path):
    settings = SMALL | {"epochs": 40, "width": 2, "inner_share": 0.4}
    whole = train(config.make("resnet34-16k", **settings), data, tmp_path / "whole")
    out, delays = tmp_path / "killed", np.random.default_rng(0)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "training.train", "--data", str(data), "--out", str(out), *flags]
    epochs = []
    for attempt in range(2):
        run = subprocess.Popen([*command, *(["--resume"] if attempt else [])], stdout=subprocess.PIPE, text=True)
        seen = 0
        for line in run.stdout:
            seen += line.startswith("epoch")
            if seen == 2:  # it is under way: kill it within its next steps, or while it writes its state
                time.sleep(delays.uniform(0, 0.3))
                break
        run.kill()
        run.communicate()
        epochs.append(torch.load(out / "resume.pt", weights_only=True)["epoch"])
    assert not (out / "best_model.pth").exists() and 0 < epochs[0] < epochs[1] < 40
    last = train(config.make("resnet34-16k", **settings), data, out, resume=True)
    assert last.losses == whole.losses[-len(last.losses) :] and len(last.losses) < len(whole.losses)
    a, b = (checkpoint.load(r.checkpoint) for r in (whole, last))
    assert all(torch.equal(a.state_dict[k], b.state_dict[k]) for k in a.state_dict)


def test_early_stopping_keeps_the_epoch_that_was_best_on_recordings_kept_aside(data: Path, tmp_path: Path):
    settings = SMALL | CALM | {"epochs": 60, "inner_share": 0.4, "patience": 8, "batch_size": 3, "average": 0.5}
    settings |= {"checkpoint_every": 5}
    run = config.make("resnet34-16k", **settings)
    result = train(run, data, tmp_path / "whole")
    told = checkpoint.load(result.checkpoint).provenance
    assert told["epochs"] == told["epoch_kept"] + 8 < 60 and told["epoch_kept"] > 1
    steps = len(result.losses) // told["epochs"]
    assert len(result.losses) == steps * told["epochs"]
    # the weights are those that a run of so many epochs would have had then
    train(run, data, tmp_path / "short", stop_after=told["epoch_kept"])
    state = torch.load(tmp_path / "short" / "resume.pt", weights_only=True)
    assert state["best"]["epoch"] == told["epoch_kept"]
    kept = checkpoint.load(result.checkpoint).state_dict
    assert all(torch.equal(v, kept[k]) for k, v in checkpoint.half(state["best"]["average"]).items())


def test_takes_of_one_recording_stay_on_one_side_of_the_inner_split(data: Path):
    rows = [Row(Path(f"{i}.wav"), 1, "dog" if i < 60 else "rain", f"s{i // 3}") for i in range(120)]
    kept, aside = inner_split(rows, 0.2, rng())
    assert sorted(kept + aside) == list(range(120)) and len(aside) == 24
    assert not {rows[i].source for i in kept} & {rows[i].source for i in aside}
    assert sum(rows[i].label == "dog" for i in aside) == 12
    assert inner_split(rows, 0.2, rng()) == (kept, aside) != inner_split(rows, 0.2, np.random.default_rng(4))
    with pytest.raises(DataError, match="one source recording only"):
        inner_split(rows[:3], 0.2, rng())
    with pytest.raises(DataError, match="src_file"):
        inner_split([dataclasses.replace(r, source="") for r in rows], 0.2, rng())


def test_data_of_a_lower_rate_is_warned_about_and_recorded(data: Path, tmp_path: Path, capsys):
    run = config.make("resnet34-44k", **SMALL | {"epochs": 1})
    result = train(run, data, tmp_path)
    assert "16000 Hz, below the 44100 Hz of resnet34-44k" in capsys.readouterr().out
    told = checkpoint.load(result.checkpoint).provenance
    assert "nothing above 8 kHz is learned" in told["warnings"][0] and "freq_mask_bins" in told["chosen_here"]


def test_no_room_or_no_right_to_write_is_told_before_the_work(data: Path, tmp_path: Path, monkeypatch):
    run = config.make("resnet34-16k", **SMALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file/out cannot be written to.*choose another --out"):
        train(run, data, tmp_path / "file" / "out")
    with pytest.raises(TrainingError, match=r"self cannot be written to"):
        train(run, data, Path("/proc/self"))  # there, and read-only even to root
    monkeypatch.setattr(train_module.Learner, "step", lambda *_: pytest.fail("worked"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr("training.state.shutil.disk_usage", lambda _: usage)
        with pytest.raises(TrainingError, match=r"0 MB left, this run needs \d+ MB"):
            train(run, data, tmp_path / "full")


def test_a_disk_that_fills_up_leaves_the_last_good_state(data: Path, tmp_path: Path, monkeypatch):
    run = config.make("resnet34-16k", **SMALL)
    original = torch.save

    def full(payload, path):
        if payload["epoch"] == 2:
            Path(path).write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file")
        original(payload, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(TrainingError, match=r"the last good one is still there.*go on with --resume"):
            train(run, data, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["resume.pt"]
    told = []
    cut = train(run, data, tmp_path, resume=True, on_checkpoint=lambda: told.append(1))
    assert len(cut.losses) == 2 * 3 and len(told) == 2 + 1  # two states and the weights


def test_another_seed_is_another_run(data: Path, tmp_path: Path):
    short = SMALL | {"epochs": 1}
    runs = [train(config.make("resnet34-16k", **short, seed=s), data, tmp_path / str(s)) for s in (0, 1)]
    assert runs[0].losses != runs[1].losses


def test_the_held_out_fold_decides_nothing_and_is_looked_at_once(data: Path, tmp_path: Path, monkeypatch):
    """Other sounds in the held-out fold: the same losses, the same weights, the same front end."""
    other = copied(data, tmp_path / "other")
    for path in (other / "audio").glob("5-*"):
        path.unlink()
        soundfile.write(path, np.zeros(80_000), 16_000)
    run = config.make("resnet34-16k", **SMALL, inner_share=0.4, patience=2)
    one, two = train(run, data, tmp_path / "1"), train(run, other, tmp_path / "2")
    a, b = checkpoint.load(one.checkpoint), checkpoint.load(two.checkpoint)
    assert one.losses == two.losses and a.mel == b.mel
    assert all(torch.equal(a.state_dict[k], b.state_dict[k]) for k in a.state_dict)
    monkeypatch.setattr(train_module, "answers", lambda *_, **__: pytest.fail("looked before the end"))
    assert train(run, data, tmp_path / "3", stop_after=1) is None


def test_it_can_learn_what_is_there(data: Path, tmp_path: Path):
    """Without augmentation, a small network learns twelve tones by heart and knows new ones by their pitch."""
    settings = SMALL | CALM | {"average": 0.9, "epochs": 25, "checkpoint_every": 100}
    result = train(config.make("resnet34-16k", **settings, fold=1), data, tmp_path)
    assert result.losses[-1] < 0.1 * result.losses[0]
    report = evaluate.evaluate(result.checkpoint, data, 1, device="cpu")
    assert report.correct == report.clips == 6 and set(report.per_class) == {"dog", "rain", "rooster"}


def test_other_settings_do_not_continue_a_run(data: Path, tmp_path: Path):
    run = config.make("resnet34-16k", **SMALL)
    train(run, data, tmp_path, stop_after=1)
    with pytest.raises(TrainingError, match=r"max_lr 0\.002 -> 0\.1"):
        train(dataclasses.replace(run, max_lr=0.1), data, tmp_path, resume=True)
    with pytest.raises(TrainingError, match="--resume"):
        train(run, data, tmp_path)
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(run, data, tmp_path / "elsewhere", resume=True)
    (tmp_path / "resume.pt").write_bytes(b"cut off")
    with pytest.raises(TrainingError, match="delete it to start again"):
        train(run, data, tmp_path, resume=True)


def test_a_loss_that_is_not_a_number_stops_with_where_and_what_to_do(data: Path, tmp_path: Path):
    told = r"epoch 1, step [23] \(clips [12]-.*\): start again in another --out with a lower --max-lr"
    with pytest.raises(TrainingError, match=told):
        train(config.make("resnet34-16k", **SMALL, max_lr=1e30, warmup=0.0), data, tmp_path)


def test_wrong_names_and_missing_data_are_answered_with_the_right_ones(data: Path, tmp_path: Path, capsys):
    with pytest.raises(ValueError, match=r"'nope'.*resnet34-16k"):
        config.make("nope")
    with pytest.raises(ValueError, match=r"'learning_rate'.*lr"):
        config.make("resnet34-16k", learning_rate=1)
    with pytest.raises(ValueError, match=r"resnet34, se_fpn"):
        config.make("resnet34-16k", model="vgg")
    with pytest.raises(ValueError, match="a width that 16 divides, not 24"):  # the others corrupt torch's memory
        config.make("resnet34-16k", width=24, layout="channels_last")
    assert train_module.main(["--data", str(tmp_path), "--out", str(tmp_path / "o")]) == 1
    assert "meta/esc50.csv" in capsys.readouterr().err


def test_the_command_leaves_weights_a_log_for_tensorboard_and_a_line_per_epoch(data: Path, tmp_path: Path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = SMALL | {"epochs": 2, "inner_share": 0.4}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    assert train_module.main(["--data", str(data), "--out", str(tmp_path / "run"), "--fold", "5", *flags]) == 0
    said = capsys.readouterr().out
    assert "epoch 2/2" in said and "min left" in said and "on fold 5, which was held out" in said
    checkpoint.load(tmp_path / "run" / "best_model.pth")
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard_logs")).Reload()
    wanted = {"train/loss", "train/accuracy", "lr", "inner/loss", "inner/accuracy", "inner, by class/dog"}
    assert wanted | {"fold 5/accuracy", "fold 5, by class/rooster"} <= set(log.Tags()["scalars"])
    assert [event.step for event in log.Scalars("train/loss")] == [1, 2]
    assert {"train/after augmentation", "inner/confusion", "fold 5/confusion"} <= set(log.Tags()["images"])
    assert log.SummaryMetadata("_hparams_/experiment")  # every field is in TensorBoard's table
    assert evaluate.main(["--model", str(tmp_path / "run" / "best_model.pth"), "--data", str(data), "--fold", "1"]) == 0
    said = capsys.readouterr().out
    assert "was trained on fold 1" in said and "of 6 clips of fold 1" in said


def test_the_inherited_recipes_are_to_the_letter():
    plain, pyramid = (config.make(name) for name in ("resnet34-44k", "se-fpn-22k"))
    wanted = {"model": "resnet34", "mel": "44k", "width": 64, "mixup": 0.3, "mixup_end_share": 0.0, "mixup_alpha": 0.2,
              "label_smoothing": 0.1, "lr": 5e-4, "weight_decay": 0.01, "decay_all": True, "schedule": "onecycle",
              "max_lr": 2e-3, "epochs": 100, "average": 0.0, "patience": 0, "clip_norm": 0.0}  # fmt: skip
    assert {k: getattr(plain, k) for k in wanted} == wanted and plain.freq_masks and plain.time_masks
    wanted = {"model": "se_fpn", "mel": "22k", "width": 64, "mixup_alpha": 0.4, "label_smoothing": 0.15,
              "schedule": "cosine", "epochs": 150}  # fmt: skip
    assert {k: getattr(pyramid, k) for k in wanted} == wanted
    assert pyramid.clip_norm and pyramid.patience and pyramid.inner_share  # gradient clipping, early stopping
    assert pyramid.weight_decay > plain.weight_decay and pyramid.mixup > plain.mixup  # stronger
    assert min(pyramid.freq_masks, pyramid.time_masks) > 1 and len(set(MODELS["se_fpn"].head_dropouts)) > 1
    for made in (plain, pyramid):  # the whole picture, unwarped
        assert made.crop_frames == MELS[made.mel].frames and not made.roll and not made.shift_bins
        assert set(config.CHOSEN[made.recipe]) <= {f.name for f in dataclasses.fields(config.TrainConfig)}
    with pytest.raises(ValueError, match="inner_share"):
        config.make("se-fpn-22k", inner_share=0.0)


@pytest.mark.parametrize("recipe", list(config.RECIPES))
def test_every_recipe_runs(recipe: str, data: Path, tmp_path: Path):
    small = {"width": 2, "batch_size": 4, "precision": "fp32", "epochs": 2, "checkpoint_every": 1, "widen": ""}
    result = train(config.make(recipe, **small | {"inner_share": 0.4}), data, tmp_path)
    found = checkpoint.load(result.checkpoint)
    assert found.recipe["recipe"] == recipe and found.model.name == config.make(recipe).model
    assert len(set(result.losses)) == len(result.losses) > 1 and all(map(np.isfinite, result.losses))


def test_a_run_may_grow_from_a_narrower_one(data: Path, tmp_path: Path):
    narrow = train(config.make("resnet34-16k", **SMALL), data, tmp_path / "fold5")
    grown = config.make("resnet34-16k", **SMALL | {"width": 8, "widen": str(tmp_path / "fold{fold}/best_model.pth")})
    result = train(grown, data, tmp_path / "wide")
    wide = checkpoint.load(result.checkpoint)
    assert wide.model.width == 8 and wide.provenance["grown_from"]["recipe"]["width"] == SMALL["width"]
    first = train(dataclasses.replace(grown, widen=""), data, tmp_path / "fresh")
    assert result.losses[0] != first.losses[0]
    with pytest.raises(TrainingError, match="cannot be widened to 6 channels"):
        train(dataclasses.replace(grown, width=6), data, tmp_path / "odd")
    assert narrow.checkpoint.exists()


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
    rolled = augment.warp(picture, 20, 1.0, 1.0, 0, True, rng())[0]
    start = rng().uniform(0, 20, (1, 1)).item()
    whole, part = int(start), start - int(start)
    expected = torch.lerp(picture[0].roll(-whole, 1), picture[0].roll(-whole - 1, 1), part)
    torch.testing.assert_close(rolled, expected)
    assert torch.equal(augment.warp(picture, 20, 1.0, 1.0, 0, False, rng()), picture)


def test_a_background_lies_3_to_25_db_below_the_sound_where_that_sounds():
    """Clip i sounds in bin i only, half of the time, at a level of its own."""
    power = torch.zeros(40, 40, 50)
    level = 10.0 ** torch.linspace(-3, 3, 40)
    power[torch.arange(40), torch.arange(40), :25] = level[:, None]
    changed = augment.outside(power, config.make("resnet34-16k", background=1.0), MELS["16k"], rng())
    own = torch.eye(40, dtype=torch.bool)
    others = changed.mean(dim=2)[~own].view(40, 39).sum(dim=1) / (level / 2)  # one clip at most, or itself
    below = -10 * others[others > 0].log10()
    assert len(below) > 30 and below.min() >= 3 - 1e-3 and below.max() <= 25 + 1e-3 and below.max() - below.min() > 15


@pytest.mark.parametrize("defect", ["lowpass", "highpass", "silence", "noise"])
def test_each_defect_from_outside_does_what_it_is_called(defect: str):
    power = torch.ones(64, 128, 50)
    power[:, :, 25] = 1e-6
    changed = augment.outside(power, config.make("resnet34-16k", **{defect: 1.0}), MELS["16k"], rng())
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
    assert torch.equal(augment.outside(power, config.make("resnet34-16k"), MELS["16k"], rng()), power)


def test_the_share_of_spared_clips_meets_no_defect_at_all():
    power = torch.rand(400, 16, 20, generator=torch.Generator().manual_seed(0)) + 0.1
    every = {"lowpass": 1.0, "highpass": 1.0, "silence": 1.0, "noise": 1.0, "background": 1.0, "reverb": 1.0}
    changed = augment.outside(power.clone(), config.make("resnet34-16k", spared=0.4, **every), MELS["16k"], rng())
    untouched = torch.isclose(changed, power).all(dim=2).all(dim=1)
    assert 0.33 < untouched.float().mean() < 0.47
    assert not torch.isclose(changed, power).all(dim=2)[~untouched].all(dim=1).any()


def test_reverberation_falls_by_60_db_over_t60_and_keeps_the_energy():
    power = torch.zeros(2, 3, 60)
    power[:, :, 10] = 1.0
    smeared = augment.reverberate(power, np.array([[20.0], [20.0]]), np.array([[1.0], [0.0]]))
    torch.testing.assert_close(smeared[0, 0, 30] / smeared[0, 0, 10], torch.tensor(1e-6))
    torch.testing.assert_close(smeared[0].sum(dim=1), torch.ones(3))
    assert torch.equal(smeared[0, 0, :10], torch.zeros(10)) and torch.equal(smeared[1], power[1])  # no wet: untouched
    changed = augment.outside(power, config.make("resnet34-16k", reverb=1.0), MELS["16k"], rng())
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
