"""Training: the same seed gives the same run, cut off or not; nothing of the held-out fold is looked at."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch

import training.train as train_module
from cnn import checkpoint
from cnn.classifier import Classifier
from cnn.mel import MELS
from cnn.model import MODELS
from tests.conftest import flipped
from training import config, evaluate, robustness
from training.data import DataError, Row, read_rows
from training.feed import Feed
from training.learner import Learner
from training.logs import NullLogger, Progress
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


class Told(NullLogger):
    """Which figures and pictures came after which epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, str]] = []

    def scalars(self, epoch: int, values: dict[str, float]) -> None:
        self.seen += [(epoch, name) for name in values]

    def pictures(self, epoch: int, name: str, pictures: torch.Tensor) -> None:
        self.seen.append((epoch, name))


def test_a_run_cut_off_and_resumed_ends_as_one_that_was_not(data: Path, tmp_path: Path):
    run = config.make("resnet34-16k", **SMALL, inner_share=0.4, gentle=0.4)  # the first two of three epochs are gentle
    log = Told()
    whole = train(run, data, tmp_path / "whole", logger=log)
    assert train(run, data, tmp_path / "cut", stop_after=1) is None
    cut = train(run, data, tmp_path / "cut", resume=True)
    assert whole.losses[-len(cut.losses) :] == cut.losses and len(whole.losses) == len(cut.losses) * 3 / 2
    assert [epoch for epoch, name in log.seen if name == "inner/loss"] == [1, 2, 3]
    assert [epoch for epoch, name in log.seen if name == "train/after augmentation"] == [1, 3]  # one of each kind
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


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


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


def test_measured_aside_is_what_the_run_kept_from_its_training(data: Path, tmp_path: Path, monkeypatch, capsys):
    trained: list[int] = []
    monkeypatch.setattr(train_module, "Feed", lambda db, rows, *rest: trained.extend(rows) or Feed(db, rows, *rest))
    one = SMALL | {"epochs": 1}
    model = train(config.make("resnet34-16k", **one, inner_share=0.4, seed=7), data, tmp_path / "1").checkpoint
    aside = evaluate.answers(Classifier.open(model, "cpu"), data, None)
    names, rows = [a.row.path.name for a in aside], read_rows(data)
    assert sorted(names + [rows[i].path.name for i in trained]) == sorted(r.path.name for r in rows if r.fold != 5)
    assert names and trained
    command = ["--model", str(model), "--data", str(data), "--device", "cpu", "--aside"]
    assert evaluate.main(command) == 0
    assert f"of {len(names)} clips kept aside of the folds trained on (" in capsys.readouterr().out
    table = tmp_path / "table.json"
    assert robustness.main([*command, "--json", str(table)]) == 0
    assert f" {len(names)} clips kept aside" in capsys.readouterr().out
    assert json.loads(table.read_text())["files"] == sorted(names)
    with pytest.raises(SystemExit):
        evaluate.main([*command, "--fold", "5"])  # both is neither
    command[1] = str(train(config.make("resnet34-16k", **one), data, tmp_path / "2").checkpoint)
    assert evaluate.main(command) == robustness.main(command) == 1
    assert capsys.readouterr().err.count("kept no recordings aside to measure on: train with --inner-share") == 2


def test_data_of_a_lower_rate_is_warned_about_and_recorded(data: Path, tmp_path: Path, capsys):
    run = config.make("resnet34-44k", **SMALL | {"epochs": 1})
    result = train(run, data, tmp_path)
    assert "16000 Hz, below the 44100 Hz of resnet34-44k" in capsys.readouterr().out
    told = checkpoint.load(result.checkpoint).provenance
    assert "nothing above 8 kHz is learned" in told["warnings"][0] and "freq_mask_bins" in told["chosen_here"]


def test_a_clip_that_breaks_off_is_warned_about_and_recorded(data: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("AUDIO_CNN_CACHE", str(tmp_path / "cache"))
    broken = copied(data, tmp_path / "broken")
    clip = next((broken / "audio").glob("1-*"))
    content = clip.read_bytes()
    clip.unlink()
    clip.write_bytes(content[: len(content) // 2])
    for name in ("decoded", "from the cache"):
        result = train(config.make("resnet34-16k", **SMALL | {"epochs": 1}), broken, tmp_path / name)
        said = f"1 clip is not as a clip should be: {clip.name}: The file breaks off early"
        assert f"warning: {said}" in capsys.readouterr().out
        assert said in checkpoint.load(result.checkpoint).provenance["warnings"][0]
    evaluate.main(["--model", str(result.checkpoint), "--data", str(broken), "--fold", "1"])
    assert f"warning: {said}" in capsys.readouterr().out


def test_the_live_line_tells_everything_on_80_columns_and_ends_before_what_follows(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    with pytest.raises(TrainingError), Progress(1000, 25, 64, first=990) as progress:
        progress.live = True
        progress.start -= 1000.0  # seconds
        progress.step(999, 24, 12.345, 0.6667, 2.9e-7)
        raise TrainingError("nan")
    said = capsys.readouterr().out
    line = said.removeprefix("\r").removesuffix("\033[K\n")
    assert len(line) < 80 and line.startswith("epoch 1000/1000 25/25 loss 12.345 acc 66.7 % lr 2.9e-07 ")
    assert re.search(r" \d+ clips/s \d+ min left$", line)


def test_a_second_run_in_a_folder_is_refused_and_a_killed_one_holds_nothing(data: Path, tmp_path: Path, capsys):
    command = ["--data", str(data), "--out", str(tmp_path / "run"), "--width=2", "--epochs=1", "--precision=fp32"]
    hold = "import sys, time; from pathlib import Path; from training.state import alone_in\n"
    hold += "with alone_in(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path / "run"], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout and other.stdout.readline() == "held\n"
            assert train_module.main(command) == 1
            assert "another run is at work in" in capsys.readouterr().err and not (tmp_path / "run/resume.pt").exists()
        finally:
            other.kill()
    assert train_module.main(command) == 0


def test_training_clips_that_are_all_silent_are_told(data: Path, tmp_path: Path):
    silent = copied(data, tmp_path / "silent")
    for path in (silent / "audio").glob("[1-4]-*"):
        samples, rate = soundfile.read(path)
        path.unlink()
        soundfile.write(path, 0 * samples, rate)
    with pytest.raises(DataError, match="all sound alike, like silence"):
        train(config.make("resnet34-16k", **SMALL), silent, tmp_path / "run")


def test_no_room_no_right_to_write_no_gpu_or_nothing_to_grow_from_is_told_before_the_work(
    data: Path, tmp_path: Path, monkeypatch
):
    run = config.make("resnet34-16k", **SMALL)
    stopped = tmp_path / "stopped"
    train(run, data, stopped, stop_after=1)
    monkeypatch.setattr(train_module, "load_db", lambda *_: pytest.fail("decoded"))
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file/out cannot be written to.*choose another folder"):
        train(run, data, tmp_path / "file" / "out")
    with pytest.raises(TrainingError, match=r"self cannot be written to"):
        train(run, data, Path("/proc/self"))  # there, and read-only even to root
    monkeypatch.setattr(train_module.Learner, "step", lambda *_: pytest.fail("worked"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr("training.state.shutil.disk_usage", lambda _: usage)
        with pytest.raises(TrainingError, match=r"0 MB left, this run needs \d+ MB"):
            train(run, data, tmp_path / "full")
        assert not list((tmp_path / "full").iterdir())  # the same command will do once there is room
        shutil.copyfile(stopped / "resume.pt", tmp_path / "full" / "resume.pt")
        with pytest.raises(TrainingError, match=r"0 MB left, this run needs \d+ MB"):
            train(run, data, tmp_path / "full", resume=True)
    with pytest.raises(checkpoint.CheckpointError, match=r"nowhere/5/best_model.pth.*--widen"):
        train(dataclasses.replace(run, widen="nowhere/{fold}/best_model.pth"), data, tmp_path / "wide")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="torch sees no GPU here"):
        train(dataclasses.replace(run, device="cuda"), data, tmp_path / "gpu")


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
    classifier = Classifier.open(result.checkpoint, "cpu")
    report = evaluate.report(evaluate.answers(classifier, data, 1), classifier.labels, 1)
    assert report.correct == report.clips == 6 and set(report.per_class) == {"dog", "rain", "rooster"}


def test_other_settings_or_a_damaged_state_do_not_continue_a_run(data: Path, tmp_path: Path, monkeypatch):
    run = config.make("resnet34-16k", **SMALL)
    train(run, data, tmp_path, stop_after=1)
    with pytest.raises(TrainingError, match=r"max_lr 0\.002 -> 0\.1"):
        train(dataclasses.replace(run, max_lr=0.1), data, tmp_path, resume=True)
    with pytest.raises(TrainingError, match="--resume"):
        train(run, data, tmp_path)
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(run, data, tmp_path / "elsewhere", resume=True)
    state = tmp_path / "resume.pt"
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=r"now \(.*denied\): check its permissions"):
        patch.setattr(train_module.state, "unpacked", mock.Mock(side_effect=PermissionError(errno.EACCES, "denied")))
        train(run, data, tmp_path, resume=True)  # as good as ever, perhaps: nobody is told to delete it
    flipped(state, state)
    with pytest.raises(TrainingError, match="is damaged: delete it to start again"):
        train(run, data, tmp_path, resume=True)
    state.write_bytes(b"cut off")
    with pytest.raises(TrainingError, match="delete it to start again"):
        train(run, data, tmp_path, resume=True)


def test_other_data_does_not_continue_a_run(data: Path, tmp_path: Path):
    run = config.make("resnet34-16k", **SMALL | {"epochs": 2})
    train(run, data, tmp_path / "run", stop_after=1)
    other = copied(data, tmp_path / "other")
    changed = next((other / "audio").glob("5-*"))
    changed.unlink()
    soundfile.write(changed, np.zeros(80_000), 16_000)
    with pytest.raises(TrainingError, match=r"resume\.pt belongs to other data than .*other: give the --data"):
        train(run, other, tmp_path / "run", resume=True)
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    assert train(run, copied(data, tmp_path / "same"), tmp_path / "moved", resume=True)  # the same clips elsewhere
    old = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)
    del old["config"]["groups"]  # from before there was this field
    assert old["provenance"]["computed"]["precision"] == "fp32"
    del old["provenance"]["data_sha256"]  # as states were before
    torch.save(old, tmp_path / "run" / "resume.pt")
    assert train(run, other, tmp_path / "run", resume=True)


def test_a_network_trained_on_a_gpu_can_be_measured(data: Path, tmp_path: Path, monkeypatch):
    """No GPU here: the network learns on the CPU, and what Classifier is asked for comes from the Mode of a GPU."""

    def learner(made, model, mode, *rest):
        assert mode.device == "cuda:0"
        return Learner(made, model, dataclasses.replace(mode, device="cpu"), *rest)

    monkeypatch.setattr(train_module, "_device", lambda *_: "cuda:0")
    monkeypatch.setattr(train_module, "Learner", learner)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda:0' was asked for, but torch sees no CUDA GPU"):  # known, only not here
        train(config.make("resnet34-16k", **SMALL | {"epochs": 1}), data, tmp_path)


def test_a_log_that_cannot_be_written_is_told_in_a_sentence(data: Path, tmp_path: Path, monkeypatch, capfd):
    from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

    command = ["--data", str(data), "--out", str(tmp_path), "--width=2", "--epochs=2", "--precision=fp32"]
    (tmp_path / "tensorboard_logs").write_text("")
    assert train_module.main(command) == 1
    assert "tensorboard_logs could not be written" in capfd.readouterr().err
    (tmp_path / "tensorboard_logs").unlink()
    written = []

    def full(self, *_):
        written.append(1)
        if len(written) > 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # not pytest's, which is silent
    monkeypatch.setattr(LocalFileSystem, "_write", full)
    assert train_module.main(command) == 1
    said = capfd.readouterr().err
    assert "No space left on device" in said and "choose another folder" in said and "Traceback" not in said


def test_a_loss_that_is_not_a_number_stops_with_where_and_what_to_do(data: Path, tmp_path: Path):
    told = r"epoch 1, step [23] \(clips [12]-.*\): start again in another folder with a lower --max-lr"
    with pytest.raises(TrainingError, match=told):
        train(config.make("resnet34-16k", **SMALL, max_lr=1e30, warmup=0.0), data, tmp_path)


def test_wrong_names_and_missing_data_are_answered_with_the_right_ones(data: Path, tmp_path: Path, capsys):
    with pytest.raises(ValueError, match=r"'nope'.*resnet34-16k"):
        config.make("nope")
    with pytest.raises(ValueError, match=r"'learning_rate'.*lr"):
        config.make("resnet34-16k", learning_rate=1)
    with pytest.raises(ValueError, match=r"resnet34, resnet18, resnet10, se_fpn"):
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
    small = {"batch_size": 4, "precision": "fp32", "epochs": 2, "checkpoint_every": 1, "widen": "", "inner_share": 0.4}
    width = 2 * config.RECIPES[recipe].get("groups", 1)
    result = train(config.make(recipe, width=width, **small), data, tmp_path)
    found = checkpoint.load(result.checkpoint)
    assert found.recipe["recipe"] == recipe and found.model.name == config.make(recipe).model
    assert len(set(result.losses)) == len(result.losses) > 1 and all(map(np.isfinite, result.losses))


def test_a_run_may_grow_from_a_smaller_one(data: Path, tmp_path: Path):
    narrow = train(config.make("resnet34-16k", **SMALL), data, tmp_path / "fold5")
    grown = config.make("resnet34-16k", **SMALL | {"width": 8, "widen": str(tmp_path / "fold{fold}/best_model.pth")})
    result = train(grown, data, tmp_path / "wide")
    wide = checkpoint.load(result.checkpoint)
    assert wide.model.width == 8 and [g["recipe"]["width"] for g in wide.provenance["grown_from"]] == [SMALL["width"]]
    first = train(dataclasses.replace(grown, widen=""), data, tmp_path / "fresh")
    assert result.losses[0] != first.losses[0]
    with pytest.raises(checkpoint.CheckpointError, match=r"pth \(width 4\) cannot become a resnet34 of width 6"):
        train(dataclasses.replace(grown, width=6), data, tmp_path / "odd")
    deep = train(dataclasses.replace(grown, model="se_fpn"), data, tmp_path / "deep").checkpoint
    assert checkpoint.load(deep).model.name == "se_fpn"
    twice = dataclasses.replace(grown, widen=f"{narrow.checkpoint},{narrow.checkpoint}", groups=2, epochs=0)
    result = train(twice, data, tmp_path / "two")  # nothing is learned, so it says what the narrow one says
    sound = data / "audio" / sorted(p.name for p in (data / "audio").iterdir())[0]
    one, two = (Classifier.open(r.checkpoint, "cpu").predict(sound) for r in (narrow, result))
    assert one.to_dict()["predictions"] == pytest.approx(two.to_dict()["predictions"], abs=1e-3)
    assert result.losses == () and len(checkpoint.load(result.checkpoint).provenance["grown_from"]) == 2
    with pytest.raises(checkpoint.CheckpointError, match=r"4\) cannot become a resnet34 of width 12: .* side by side"):
        train(dataclasses.replace(twice, width=12), data, tmp_path / "odd")
    fewer = train(config.make("resnet34-16k", **SMALL, inner_share=0.4), data, tmp_path / "fewer").checkpoint
    alike, mixed = (dataclasses.replace(twice, widen=f"{one},{fewer}") for one in (fewer, narrow.checkpoint))
    made = checkpoint.load(train(alike, data, tmp_path / "alike").checkpoint)
    assert made.mel == checkpoint.load(fewer).mel != wide.mel  # as they were fed, not as the clips at hand would be
    again = checkpoint.load(train(alike, data, tmp_path / "alike", resume=True).checkpoint)  # cut off in its last line
    assert again.mel == made.mel and again.provenance["grown_from"] == made.provenance["grown_from"]
    with pytest.raises(checkpoint.CheckpointError, match="learned from other clips than each other"):
        train(mixed, data, tmp_path / "odd")
    one_more = dataclasses.replace(grown, width=16, widen=str(result.checkpoint))
    with pytest.raises(checkpoint.CheckpointError, match="is 2 networks side by side already: name each of them"):
        train(one_more, data, tmp_path / "odd")


def test_relatives_become_the_mean_of_their_weights_and_strangers_are_refused(data: Path, tmp_path: Path):
    def made(name: str, **fields) -> Path:
        return train(config.make("resnet34-16k", **SMALL | fields), data, tmp_path / name).checkpoint

    one, stranger = made("one"), made("stranger", seed=1)
    more, wide = (made(f"of width {width}", width=width, widen=str(one)) for width in (SMALL["width"], 8))
    both = checkpoint.load(made("both", widen=f"{one}+{more}", epochs=0))
    theirs = [checkpoint.load(path).state_dict for path in (one, more)]
    for key, value in both.state_dict.items():
        if value.is_floating_point():
            mean = (theirs[0][key].float() + theirs[1][key].float()) / 2
            torch.testing.assert_close(value.float(), mean, rtol=1e-3, atol=1e-4)
    assert not torch.equal(theirs[0]["conv1.weight"], theirs[1]["conv1.weight"])
    first, second = both.provenance["grown_from"]
    assert first["group"] == second["group"] == 0 and second["grown_from"][0]["sha256"] == first["sha256"]
    beside = checkpoint.load(made("beside", widen=f"{stranger},{one}+{more}", epochs=0, groups=2, width=8))
    assert [origin["group"] for origin in beside.provenance["grown_from"]] == [0, 1, 1]
    torch.testing.assert_close(beside.state_dict["conv1.weight"][4:], both.state_dict["conv1.weight"])
    twice = checkpoint.load(made("twice", widen=f"{one}+{one}+{more}", epochs=0)).state_dict["bn1.weight"]
    torch.testing.assert_close(twice, (2 * theirs[0]["bn1.weight"] + theirs[1]["bn1.weight"]) / 3)
    gated, other = (made(f"gated {seed}", model="se_fpn", widen=str(one), seed=seed) for seed in (0, 1))
    for pair, why in (
        ((one, stranger), "are strangers, .* a comma in place of the +"),
        ((one, wide), r"width 4\) and .*width 8\) are not of the same make"),
        ((gated, other), "are strangers"),  # the gates of each began at random
    ):
        with pytest.raises(checkpoint.CheckpointError, match=why):
            made("odd", widen="+".join(map(str, pair)), epochs=0, model="se_fpn" if gated in pair else "resnet34")


def test_every_field_is_a_flag():
    import argparse

    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    args = parser.parse_args(["--lr", "0.5", "--relative", "false", "--mixup-domain", "input", "--epochs", "7"])
    made = config.from_flags(args)
    assert made == config.TrainConfig(lr=0.5, relative=False, mixup_domain="input", epochs=7)
