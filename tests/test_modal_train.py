"""The Modal job: its functions' bodies here, and `modal run` against a stand-in for Modal, in processes of its own."""

import csv
import dataclasses
import errno
import inspect
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch

from cnn import checkpoint
from tests.standins.hub_standin import hub_standin
from tests.standins.modal_command import PATIENCE, ended, modal
from tests.standins.modal_local import Standin, modal_standin
from training import config as configs
from training import crossval, esc50, modal_train
from training.config import TrainConfig
from training.state import commit

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"width": 4, "epochs": 3, "batch_size": 4, "crop_frames": 64, "precision": "fp32", "checkpoint_every": 1}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
PATH = "training/modal_train.py"
local = pytest.mark.filterwarnings("ignore:The .* function is executing locally")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `esc50` of ESC-50's layout: a tone and another in each of five folds."""
    root = tmp_path_factory.mktemp("data") / "esc50"
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    rows = []
    for fold in crossval.FOLDS:
        for label, hz in {"dog": 300.0, "rain": 2700.0}.items():
            name = f"{fold}-{label}.wav"
            rows.append({"filename": name, "fold": fold, "target": 0, "category": label, "esc10": True})
            sound = 0.1 * fold * np.sin(2 * np.pi * hz * np.arange(80_000) / 16_000)
            soundfile.write(root / "audio" / name, sound, 16_000)
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


# --- the functions' bodies


@pytest.fixture
def commits(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The volumes as folders; the files in esc-model at every commit."""
    models, made = tmp_path / "esc-model", []
    monkeypatch.setattr(modal_train, "DATA", data)
    monkeypatch.setattr(modal_train, "MODELS", models)

    def commit() -> None:
        made.append({path.relative_to(models).as_posix() for path in models.rglob("*") if path.is_file()})

    monkeypatch.setattr(modal_train.models, "commit", commit, raising=False)
    monkeypatch.setattr(modal_train.models, "reload", lambda: None, raising=False)
    return made


@local
def test_a_run_is_committed_after_every_checkpoint_and_ends_at_the_volumes_root(commits: list[set[str]], tmp_path):
    config = configs.make("resnet34-16k", **SMALL)
    answer = modal_train.run.local(config, "mine", "")
    assert answer["pinned"] == "" and 0 <= answer["accuracy"] <= 1 and "error" not in answer
    assert len(commits) == 1 + SMALL["epochs"] + 1 + 1  # the start, the epochs, the weights, their copy
    assert all("runs/mine/resume.pt" in files for files in commits)
    assert "best_model.pth" in commits[-1] and not any("part" in name for name in commits[-1])
    assert any(name.startswith("tensorboard_logs/mine/events") for name in commits[-1])
    volume = tmp_path / "esc-model"
    assert (volume / "best_model.pth").read_bytes() == (volume / "runs" / "mine" / "best_model.pth").read_bytes()
    assert checkpoint.load(volume / "best_model.pth").metrics["clips"] == 2


@local
@pytest.mark.usefixtures("commits")
def test_a_run_goes_on_from_what_another_container_has_committed(monkeypatch, tmp_path, capsys):
    config = configs.make("resnet34-16k", **SMALL)
    modal_train.loop.train(config, modal_train.DATA, tmp_path / "away", stop_after=1)
    monkeypatch.setattr(modal_train.models, "reload", lambda: shutil.copytree(tmp_path / "away", mine))
    capsys.readouterr()
    mine = tmp_path / "esc-model" / "runs" / "mine"
    modal_train.run.local(config, "mine", "")
    mine = tmp_path / "esc-model" / "crossval" / "mine" / "fold5"
    modal_train.fold.local(config, "mine", False)
    told = capsys.readouterr().out
    assert told.count("epoch 2/3") == 2 and "epoch 1/3" not in told
    busy = mock.Mock(side_effect=RuntimeError("there are open files preventing the operation"))
    monkeypatch.setattr(modal_train.models, "reload", busy)
    assert modal_train.collect.local("mine", "")["mean"] >= 0 and busy.called


@local
def test_other_settings_are_told_and_not_tried_again(commits: list[set[str]]):
    config = configs.make("resnet34-16k", **SMALL | {"epochs": 1})
    modal_train.run.local(config, "mine", "")
    told = modal_train.run.local(dataclasses.replace(config, width=8), "mine", "")["error"]
    assert "width 4 -> 8" in told and "another --name" in told and "modal volume rm -r esc-model runs/mine" in told
    assert modal_train.fold.local(config, "mine", False) == ""
    told = modal_train.fold.local(dataclasses.replace(config, width=8), "mine", False)
    assert "width 4 -> 8" in told and "modal volume rm -r esc-model crossval/mine" in told
    told = modal_train.run.local(config, "mine", "no repository")["error"]  # the run itself is done
    assert "OWNER/NAME is needed; what was trained is kept in runs/mine of volume esc-model" in told
    assert "fold 9" in modal_train.run.local(dataclasses.replace(config, fold=9), "another", "")["error"]


@local
@pytest.mark.usefixtures("commits")
def test_a_full_volume_is_told_and_what_may_pass_is_tried_again(monkeypatch):
    config = configs.make("resnet34-16k", **SMALL)
    wrong = {}

    def broken(*_, **__) -> None:
        raise OSError(wrong["number"], "told by the disk")

    monkeypatch.setattr(modal_train.loop, "train", broken)
    monkeypatch.setattr(modal_train, "run_fold", broken)
    monkeypatch.setattr(modal_train, "gather", broken)
    wrong["number"] = errno.ENOSPC
    assert "volume esc-model is full" in modal_train.collect.local("mine", "")["error"]
    assert "volume esc-model is full" in modal_train.run.local(config, "mine", "")["error"]
    assert "volume esc-model is full" in modal_train.fold.local(config, "mine", False)
    wrong["number"] = errno.EIO
    for function in (lambda: modal_train.run.local(config, "mine", ""),
                     lambda: modal_train.fold.local(config, "mine", False)):  # fmt: skip
        with pytest.raises(OSError, match="told by the disk"):
            function()


@local
def test_a_volume_that_fills_up_is_told_without_advice_to_forget_the_run(commits: list[set[str]], monkeypatch):
    config, save = configs.make("resnet34-16k", **SMALL), torch.save

    def full(*args, **_) -> None:
        if len(commits) < 2:
            return save(*args)
        raise RuntimeError("file write failed")  # what torch's zip writer makes of ENOSPC

    monkeypatch.setattr(torch, "save", full)
    told = modal_train.run.local(config, "mine", "")["error"]
    assert "volume esc-model is full" in told and "runs/mine is kept, and goes on" in told
    assert "-r esc-model runs" not in told and "--resume" not in told


@local
def test_a_member_that_is_not_there_is_told_with_the_command_that_makes_it(commits: list[set[str]]):
    def told(folder: str) -> str:
        there = f"{modal_train.MODELS / folder}/best_model.pth"
        config = configs.make("ensemble-16k", fold=3, widen=f"{there},{there},{there}")
        return modal_train.fold.local(config, "ensemble-16k", False)

    missing = "crossval/best-16k/fold3/best_model.pth, the network to grow from, is not in volume esc-model"
    assert missing in told("crossval/best-16k/fold3")
    member = "--recipe best-16k --width 32 --seed 0"
    assert told("crossval/mine/fold3").endswith(f", or make it: modal run {PATH}::crossval {member} --name mine")
    assert told("runs/mine").endswith(f", or make it: modal run {PATH}::train {member} --fold 3 --name mine")
    assert told("").endswith("name another with --widen") and told("/elsewhere").endswith("with --widen")


@local
def test_what_was_downloaded_of_esc50_is_kept_when_the_line_breaks(monkeypatch, tmp_path: Path):
    order = []

    def broken(root: Path) -> str:
        order.append(root)
        raise esc50.DataError("the download broke off")

    monkeypatch.setattr(modal_train.esc50, "prepare", broken)
    monkeypatch.setattr(modal_train.data, "commit", lambda: order.append("commit"), raising=False)
    with pytest.raises(esc50.DataError):
        modal_train.fetch.local()
    assert order == [modal_train.DATA, "commit"]


def test_every_field_is_a_flag_and_a_wrong_value_is_one_sentence():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    for entry, lacking in ((modal_train.train, set()), (modal_train.crossval, {"fold"})):
        parameters = inspect.signature(entry.info.raw_f).parameters
        assert fields - lacking == fields & set(parameters)
        assert {"name", "push_to_hub"} <= set(parameters)
    given: dict[str, Any] = dict.fromkeys(fields) | {"recipe": "best-16k", "relative": "false", "epochs": 2}
    assert modal_train.settings(given) == configs.make("best-16k", relative=False, epochs=2)
    wide: dict[str, Any] = {"recipe": "ensemble-16k"}  # grows from what lies in the volume
    assert modal_train.settings(wide).widen == ",".join(
        f"/mnt/esc-model/crossval/{member}/fold{{fold}}/best_model.pth"
        for member in ("best-16k", "clean-16k", "late-16k")
    )
    mine = "runs/best-16k-fold5/best_model.pth"
    assert modal_train.settings(wide | {"widen": mine, "groups": 1}).widen == f"/mnt/esc-model/{mine}"
    two = {"widen": f"{mine},{mine}+{mine}", "groups": 2}
    there = f"/mnt/esc-model/{mine}"
    assert modal_train.settings(wide | two).widen == f"{there},{there}+{there}"
    assert modal_train.settings(wide | {"widen": "", "epochs": 1}).widen == ""
    for wrong, told in (({"epochs": 0}, "epochs must be positive"), ({"groups": 3}, "width 64 cannot be shared out")):
        with pytest.raises(SystemExit, match=f"error: .*{told}"), modal_train.in_words():
            modal_train.settings(wrong)
    with pytest.raises(SystemExit, match="error: --name '../../etc'"), modal_train.in_words():
        modal_train.plain("../../etc")


# --- modal run


@pytest.fixture
def standin(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """A Modal that has the data in its volume, and no Hub that could be reached by mistake."""
    for name, value in {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"),
                        "HF_HUB_DISABLE_TELEMETRY": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    (tmp_path / "modal").mkdir()
    with modal_standin(tmp_path / "modal") as standin:
        for path in (path for path in data.rglob("*") if path.is_file()):
            target = standin.volume("esc50-data") / path.relative_to(data)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
        yield standin


def test_a_cancelled_run_goes_on_from_its_last_commit_and_is_published(standin: Standin, tmp_path: Path):
    command = ("run", "training/modal_train.py::train", *FLAGS, "--fold=3", "--push-to-hub=tester/net")
    code, said = ended(modal(standin, *command))
    assert code == 1 and not standin.calls  # nothing was computed for it
    advice = re.search(r"error: --push-to-hub needs .*'huggingface'.*: (modal secret create .*)HF_TOKEN=hf_", said)
    with hub_standin(tmp_path, "hf_test") as hub:
        make_secret = [*advice[1].split()[1:], "HF_TOKEN=hf_test", f"HF_ENDPOINT={hub.url}"]
        assert ended(modal(standin, *make_secret))[0] == 0

        standin.hold_at = 3  # the start, the first epoch, and the second: here it stands when it is cancelled
        process = modal(standin, *command)
        end = time.monotonic() + PATIENCE
        while len(standin.commits) < standin.hold_at and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        code, said = ended(process)
        assert code != 0 or "aborted" in said
        assert "epoch 2/3" in said and "epoch 3/3" not in said and not standin.containers
        assert not (standin.volume("esc-model") / "best_model.pth").exists()

        standin.hold_at = 0
        code, said = ended(modal(standin, *command))
        assert code == 0 and "epoch 3/3" in said and "epoch 2/3" not in said
        pinned = re.search(r"published: tester/net@([0-9a-f]{40})", said)[1]
        weights = hub.repos["tester/net"][-1].files["best_model.pth"]
    assert hub.repos["tester/net"][-1].sha == pinned
    best = standin.volume("esc-model") / "best_model.pth"
    assert best.read_bytes() == weights
    assert checkpoint.load(best).provenance["commit"] == commit() != "unknown"  # though a container has no repository
    states = {files.get("runs/resnet34-16k-fold3/resume.pt") for _, files in standin.commits}
    assert len(states) == 1 + SMALL["epochs"]  # every state was committed when it had been written
    assert {name for name, _ in standin.commits} == {"esc-model"}
    choices = standin.functions["run"]
    assert [choice.resources.gpu_config.gpu_type for choice in choices] == ["H200", "A100", "A10G"]
    assert choices[0].timeout_secs == 24 * 3600 and choices[0].retry_policy.retries > 0
    installed = " ".join(line for image in standin.images.values() for line in image.dockerfile_commands)
    assert re.search(r"tensorboard==\S+ scipy==\S+", installed) or re.search(r"scipy==\S+ tensorboard==\S+", installed)


def test_five_folds_run_at_once_and_end_in_one_results_json_here(standin: Standin, tmp_path: Path):
    out = tmp_path / "out"
    command = ("run", "training/modal_train.py::crossval", *FLAGS, "--epochs=1", "--no-robustness", f"--out={out}")
    code, said = ended(modal(standin, *command, AUDIO_CNN_GPU="L4"))
    assert code == 0, said
    assert standin.waiting["fold"] == 5
    assert [choice.resources.gpu_config.gpu_type for choice in standin.functions["fold"]] == ["L4"]
    results = json.loads((out / "results.json").read_text())
    assert [fold["fold"] for fold in results["folds"]] == [1, 2, 3, 4, 5] and results["missing"] == []
    assert results["dataset"] == "esc50" and f"{100 * results['mean']:.2f} % on average over 5 folds" in said
    kept = standin.volume("esc-model") / "results" / "resnet34-16k"
    assert {path.name for path in kept.iterdir()} == {path.name for path in out.iterdir()} >= {"predictions.csv"}
    assert all((out / path.name).read_bytes() == path.read_bytes() for path in kept.iterdir())
