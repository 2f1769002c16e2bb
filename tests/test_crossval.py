"""Cross-validation: every fold held out once, measured once, and nothing believed that is not what was measured."""

import csv
import dataclasses
import errno
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from cnn import checkpoint
from training import config as configs
from training import crossval, figures, gather
from training.crossval import run_fold
from training.evaluate import read_predictions, recompute, write_predictions
from training.report import page
from training.robustness import CONDITIONS
from training.state import TrainingError, sha256
from training.widen import ancestors

SMALL = {"width": 4, "epochs": 2, "batch_size": 4, "crop_frames": 64, "precision": "fp32", "checkpoint_every": 1,
         "device": "cpu"}  # fmt: skip
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
SETTINGS = configs.make("resnet34-16k", **SMALL)


@pytest.fixture(scope="module")
def crossed(tone_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs` and `out` of folds 1 and 2 of three, robustness of the first only."""
    root = tmp_path_factory.mktemp("crossed")
    run_fold(dataclasses.replace(SETTINGS, fold=2), tone_data, root / "runs", robust=False)
    assert command(tone_data, root, folds="1") == 0
    return root


@pytest.fixture
def copy(crossed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to be broken; without pictures, which take most of the time."""
    monkeypatch.setattr(gather, "_pictures", lambda *_: {})
    shutil.copytree(crossed, tmp_path / "copy")
    return tmp_path / "copy"


def command(data: Path, root: Path, *flags: str, folds: str = "1,2") -> int:
    return crossval.main(["--data", str(data), "--runs", str(root / "runs"), "--out", str(root / "out"),
                          "--folds", folds, *FLAGS, *flags])  # fmt: skip


def results_of(root: Path) -> dict:
    return json.loads((root / "out" / "results.json").read_text())


def no_training(*_, **__):
    pytest.fail("trained")


def test_the_results_follow_from_the_table_of_predictions(crossed: Path):
    results = results_of(crossed)
    again = recompute(crossed / "out" / "predictions.csv")
    folds = [{k: row[k] for k in again["folds"][0]} for row in results["folds"]]
    assert {key: results[key] for key in again} | {"folds": folds} == again
    rows = list(csv.DictReader((crossed / "out" / "predictions.csv").open()))
    assert [r["fold"] for r in rows] == ["1"] * 6 + ["2"] * 6
    for fold in results["folds"]:
        right = [max(results["labels"], key=lambda c: float(r[c])) == r["label"]
                 for r in rows if int(r["fold"]) == fold["fold"]]  # fmt: skip
        assert fold["accuracy"] == sum(right) / 6 and fold["n"] == 6


def test_the_results_say_of_what_they_are(crossed: Path, tone_data: Path):
    results = results_of(crossed)
    wanted = {"dataset", "recipe", "folds", "mean", "std", "per_class", "confusion", "robustness", "esc10", "commit",
              "config", "seconds"}  # fmt: skip
    assert wanted <= set(results) and results["dataset"] == tone_data.name and results["missing"] == [5]
    assert results["config"] == {k: v for k, v in dataclasses.asdict(SETTINGS).items() if k != "fold"}
    assert results["seconds"] == pytest.approx(sum(f["seconds"] for f in results["folds"])) and results["seconds"] > 0
    assert np.shape(results["confusion"]) == (50, 50) and np.sum(results["confusion"]) == 12
    assert list(results["robustness"]["rows"]) == list(CONDITIONS) and results["robustness"]["folds"] == [1]
    assert results["robustness"]["rows"]["clean"]["correct"] == results["folds"][0]["correct"]
    every_clip = json.loads((crossed / "out" / "robustness.json").read_text())
    assert len(every_clip["rows"]["8 kHz"]["hits"]) == 6


def test_the_figures_are_those_of_the_weights_that_lie_there(crossed: Path):
    for row in results_of(crossed)["folds"]:
        best = crossed / "runs" / f"fold{row['fold']}" / "best_model.pth"
        weights = checkpoint.load(best)
        assert row["sha256"] == sha256(best) and weights.metrics["accuracy"] == row["accuracy"]
        assert weights.provenance["fold_held_out"] == row["fold"] == weights.recipe["fold"]


def test_the_same_command_again_does_nothing(copy: Path, tone_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crossval, "train", no_training)
    monkeypatch.setattr(crossval, "answers", no_training)
    monkeypatch.setattr(crossval.robustness, "measure", no_training)
    before = results_of(copy)
    (copy / "out" / "report.html").unlink()
    assert command(tone_data, copy, "--no-robustness") == 0
    assert results_of(copy) == before and (copy / "out" / "report.html").exists()


def assert_same_answers(one: Path, other: Path):
    """How a network is run is measured whenever it is opened, so that rounding may differ."""
    (_, ours), (_, theirs) = read_predictions(one), read_predictions(other)
    for a, b in zip(ours, theirs, strict=True):
        assert a.row.path == b.row.path
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)


def test_stopped_and_started_again_it_ends_as_if_it_had_not_been(
    crossed: Path, copy: Path, tone_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    original, told = crossval.train, []

    def one_epoch(*args, **kwargs):
        assert original(*args, **kwargs, stop_after=1) is None
        raise KeyboardInterrupt

    monkeypatch.setattr(crossval, "train", one_epoch)
    assert command(tone_data, tmp_path, "--no-robustness", folds="2") == 130
    assert "the same command goes on" in capsys.readouterr().err
    record = tmp_path / "runs" / "fold2" / "fold.json"
    begun = json.loads(record.read_text())
    assert begun["seconds"] > 0
    record.write_text(json.dumps(begun | {"seconds": 5000.0}))
    monkeypatch.setattr(crossval, "train", original)
    held = dataclasses.replace(SETTINGS, fold=2)
    folder = run_fold(held, tone_data, tmp_path / "runs", robust=False, on_checkpoint=lambda: told.append(1))
    whole = crossed / "runs" / "fold2"
    ours, theirs = (checkpoint.load(run / "best_model.pth").state_dict for run in (folder, whole))
    assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    assert_same_answers(folder / "predictions.csv", whole / "predictions.csv")
    assert json.loads(record.read_text())["seconds"] > 5000
    assert len(told) >= 3  # after the epoch, the weights and the measurement
    logs = [gather._scalars(run / "tensorboard_logs") for run in (whole, folder)]
    for tag in ("train/loss", "train/accuracy", "lr"):
        assert [epoch for epoch, _ in logs[1][tag]] == [1, 2] and logs[1][tag] == logs[0][tag]
    results = gather.gather(tmp_path / "runs", tmp_path / "out")
    assert results["robustness"] is None and results["std"] is None and results["missing"] == [1, 5]


def test_folds_of_other_settings_or_data_are_not_mixed(
    copy: Path, tone_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(crossval, "train", no_training)
    assert command(tone_data, copy, "--checkpoint-every=3", "--no-robustness") == 0  # this changes no result
    record = copy / "runs" / "fold1" / "fold.json"
    told = json.loads(record.read_text())
    del told["config"]["groups"]  # begun before there was this field
    record.write_text(json.dumps(told))
    assert command(tone_data, copy, "--no-robustness") == 0
    assert command(tone_data, copy, "--max-lr=0.5", folds="5") == 1
    assert re.search(r"max_lr 0\.002 -> 0\.5\): use those", capsys.readouterr().err)
    other = tmp_path / "other"
    shutil.copytree(tone_data, other)
    assert command(other, copy, folds="5") == 1
    assert "-> 'other'" in capsys.readouterr().err
    (copy / "runs" / "fold1" / "fold.json").unlink()  # the weights themselves tell
    with pytest.raises(TrainingError, match=r"seed 0 -> 7"):
        held = dataclasses.replace(SETTINGS, fold=1, seed=7)
        shutil.rmtree(copy / "runs" / "fold2")
        run_fold(held, tone_data, copy / "runs")


def test_other_clips_under_the_same_name_are_other_data(
    copy: Path, tone_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(crossval, "train", no_training)
    record = copy / "runs" / "fold1" / "fold.json"
    told = json.loads(record.read_text())
    other = tmp_path / "elsewhere" / tone_data.name
    shutil.copytree(tone_data, other)
    assert command(other, copy, "--no-robustness") == 0  # the same data in another place
    clips = sorted((other / "audio").iterdir())
    clips[0].write_bytes(clips[1].read_bytes())
    assert command(other, copy, "--no-robustness") == 1
    assert f"clips, folds or classes of '{tone_data.name}'" in capsys.readouterr().err
    clips[0].unlink()
    assert command(other, copy, "--no-robustness") == 1
    assert f"{clips[0]} is named in meta/esc50.csv but" in capsys.readouterr().err
    for fold in (record, copy / "runs" / "fold2" / "fold.json"):  # from before the data was looked at
        fold.write_text(json.dumps({k: v for k, v in json.loads(fold.read_text()).items() if k != "data_sha256"}))
    assert command(tone_data, copy, "--no-robustness") == 0
    assert json.loads(record.read_text()).items() <= told.items()


def test_what_was_measured_on_another_machine_stays_and_is_not_trained_again(
    crossed: Path, copy: Path, tone_data: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    wanted, folder = results_of(copy), copy / "out"
    tables = {name: (folder / name).read_bytes() for name in ("predictions.csv", "robustness.json", "curves.json")}
    shutil.rmtree(copy / "runs" / "fold1")
    assert command(tone_data, copy, "--no-robustness", folds="2,1") == 0
    assert "fold 1 was measured on another machine and stays" in capsys.readouterr().out
    assert results_of(copy) == wanted and {name: (folder / name).read_bytes() for name in tables} == tables
    (copy / "runs" / "fold1").mkdir()  # begun here too, before it was known
    begun = json.loads((copy / "runs" / "fold2" / "fold.json").read_text()) | {"fold": 1, "files": {}}
    (copy / "runs" / "fold1" / "fold.json").write_text(json.dumps(begun))
    assert command(tone_data, copy, "--no-robustness", folds="2,1") == 0 and results_of(copy) == wanted
    shutil.rmtree(copy / "runs")
    monkeypatch.setattr(crossval, "train", no_training)
    assert command(tone_data, copy) == 0
    said = capsys.readouterr().out
    assert "fold 2 was measured on another machine and stays" in said and "another --out measures it here" in said
    assert results_of(copy) == wanted

    assert command(tone_data, copy, "--max-lr=0.5", folds="5") == 1
    assert re.search(r"out holds folds of other settings \(max_lr 0\.002 -> 0\.5\)", capsys.readouterr().err)
    (folder / "predictions.csv").write_bytes(b"".join(tables["predictions.csv"].splitlines(keepends=True)[:-1]))
    assert command(tone_data, copy, folds="5") == 1
    assert "results.json cannot be gone on from (it has other clips of fold 2" in capsys.readouterr().err
    (folder / "results.json").write_text("{")
    assert command(tone_data, copy, folds="5") == 1
    assert "results.json is damaged" in capsys.readouterr().err


def test_a_folder_beside_the_folds_is_none_of_them(copy: Path, tone_data: Path):
    shutil.copytree(copy / "runs" / "fold1", copy / "runs" / "fold1-old")
    before = results_of(copy)
    assert gather.gather(copy / "runs", copy / "out") == before


def test_a_full_disk_is_told_with_the_folder_and_the_flag(
    copy: Path, tone_data: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(crossval, "write_predictions", full)
    (copy / "runs" / "fold1" / "predictions.csv").unlink()
    for folder, flag in (("runs", "--runs"), ("out", "--out")):
        assert command(tone_data, copy, "--no-robustness", folds="1") == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: {copy / folder}: No space left on device: ") and f"another {flag}" in said
        monkeypatch.setattr(crossval, "write_predictions", write_predictions)
        monkeypatch.setattr(gather, "recompute", full)


def test_other_weights_in_their_place_are_measured_and_not_believed(
    copy: Path, tone_data: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    best = copy / "runs" / "fold1" / "best_model.pth"
    weights = checkpoint.load(best)
    state = {k: v.flip(0) if k.startswith("head.") else v for k, v in weights.state_dict.items()}
    checkpoint.save(dataclasses.replace(weights, state_dict=state), best)
    with pytest.raises(TrainingError, match=r"best_model\.pth is not what was measured"):
        gather.gather(copy / "runs", copy / "out")
    monkeypatch.setattr(crossval, "train", no_training)
    before, said = results_of(copy), (copy / "out" / "predictions.csv").read_text().splitlines()
    assert command(tone_data, copy, "--no-robustness") == 0
    after, says = results_of(copy), (copy / "out" / "predictions.csv").read_text().splitlines()
    assert "it is measured again" in capsys.readouterr().out
    assert after["folds"][0]["sha256"] == sha256(best) != before["folds"][0]["sha256"]
    assert [a == b for a, b in zip(said, says, strict=True)] == [True] + [False] * 6 + [True] * 6
    assert after["robustness"] is None and not (copy / "out" / "robustness.json").exists()  # was of the other weights


def test_damaged_weights_are_made_again_from_the_resume_state(copy: Path, tone_data: Path):
    fold = copy / "runs" / "fold1"
    wanted = shutil.copy(fold / "predictions.csv", copy / "wanted.csv")
    (fold / "best_model.pth").write_bytes((fold / "best_model.pth").read_bytes()[:5000])
    (fold / "predictions.csv").write_text("")
    assert command(tone_data, copy, "--no-robustness", folds="1") == 0
    assert_same_answers(fold / "predictions.csv", wanted)


def test_weights_that_cannot_be_read_now_are_not_made_again(copy: Path, tone_data: Path, monkeypatch, capsys):
    monkeypatch.setattr(crossval, "train", no_training)
    monkeypatch.setattr(checkpoint, "unpacked", mock.Mock(side_effect=PermissionError(errno.EACCES, "denied")))
    assert command(tone_data, copy, "--no-robustness", folds="1") == 1
    assert "fold1/best_model.pth cannot be read now (denied)" in capsys.readouterr().err


def test_what_cannot_work_is_told_before_the_training(tone_data: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(crossval, "train", no_training)
    (tmp_path / "file").write_text("")

    def told(*flags: str, folds: str = "1") -> str:
        assert command(tone_data, tmp_path, *flags, folds=folds) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        return said

    assert "choose another --out" in told(f"--out={tmp_path / 'file' / 'results'}")
    assert "choose another --runs" in told(f"--runs={tmp_path / 'file'}")
    assert "no clip in fold 3" in told(folds="1,2,3")
    (tmp_path / "fold1").write_text("")  # fold 1 has what it grows from
    grown = f"--widen={tmp_path}/fold{{fold}}"
    assert "fold2, the network to grow from, does not exist" in told(grown, folds="1,2")
    for fold in (1, 2):  # both have begun: what they grew from may be gone
        (tmp_path / "runs" / f"fold{fold}").mkdir()
        (tmp_path / "runs" / f"fold{fold}" / "resume.pt").write_text("")
    with pytest.raises(pytest.fail.Exception):  # it would train
        command(tone_data, tmp_path, grown, folds="1,2")
    shutil.rmtree(tmp_path / "runs")
    assert "--folds 2 holds out that one" in told("--fold=2")
    assert "esc50.csv" in told(f"--data={tmp_path}")
    with pytest.raises(TrainingError, match="no measured fold"):
        gather.gather(tmp_path / "runs", tmp_path / "out")


@pytest.mark.parametrize("out", sorted(crossval.RESULTS.iterdir()), ids=lambda out: out.name)
def test_committed_results_follow_from_their_table_and_are_of_a_file_in_the_box_or_of_a_part_of_one(out: Path):
    told, again = json.loads((out / "results.json").read_text()), recompute(out / "predictions.csv")
    assert {key: told[key] for key in again if key != "folds"} == {k: v for k, v in again.items() if k != "folds"}
    (fold,) = (row for row in told["folds"] if row["fold"] == 5)
    parts = [part for path in checkpoint.in_box() for part in ancestors(checkpoint.load(path).provenance)]
    assert fold["sha256"] in {sha256(path) for path in checkpoint.in_box()} | {part["sha256"] for part in parts}
    assert told["robustness"]["rows"]["clean"]["accuracy"] == pytest.approx(told["mean"])
    ours = {key: told[key] for key in ("dataset", "data_sha256")}
    today = dataclasses.asdict(configs.make(told["recipe"], precision="bf16"))
    gather.same_result(out, ours | {"config": today})  # the README's command goes on from them
    if today["widen"]:
        gather.same_result(out, ours | {"config": today | {"widen": today["widen"].replace("runs/", "elsewhere/")}})
    for field, other in (("lr", 1.0), ("widen", f"{today['widen'] or 'A'}+B")):
        with pytest.raises(TrainingError, match=f"{field} "):
            gather.same_result(out, ours | {"config": today | {field: other}})


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict] = []
        self.linked: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attributes = dict(attrs)
        self.linked += [attributes[k] for k in ("src", "href") if k in attributes]
        if tag == "img":
            self.images.append(attributes)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_that_tells_the_figures_and_what_is_missing(crossed: Path):
    text = (crossed / "out" / "report.html").read_text(encoding="utf-8")
    shown, results = Page(text), results_of(crossed)
    assert len(shown.images) == 3 and all(len(image["alt"]) > 40 for image in shown.images)
    assert all(link.startswith("data:image/png;base64,") for link in shown.linked)
    assert not re.search(r"url\((?!\"data:)|@import|<script", text)
    assert f"{100 * results['mean']:.2f} ± {100 * results['std']:.2f}" in shown.text
    assert "fold 5 is missing" in shown.text and "pink noise 5 dB" in shown.text
    for name in ("confusion", "reliability", "curves"):
        assert (crossed / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_not_taken_for_html(crossed: Path):
    results = results_of(crossed) | {"name": "<b>&\"'", "dataset": "<script>alert(1)</script>", "robustness": None}
    text = page(results, {})
    assert "<script" not in text and "<b>" not in text and "<b>&\"' on <script>" in Page(text).text
    assert "Not measured" in text


def test_the_page_of_grown_networks_does_not_call_them_trained_from_scratch(crossed: Path):
    results = results_of(crossed)
    grown = results | {"config": results["config"] | {"widen": "runs/mine/fold{fold}/best_model.pth"}}
    assert "trained from scratch" in page(results, {}) and "trained from scratch" not in page(grown, {})
    assert "grown from earlier ones" in page(grown, {})


def test_every_fold_has_its_curve_and_what_was_kept_aside_a_thin_one():
    tags = {"train/loss": [(1, 3.0), (2, 2.0)], "inner/loss": [(1, 3.5), (2, 3.0)], "lr": [(1, 0.1), (2, 0.0)],
            "fold 1/accuracy": [(2, 0.9)], "inner, by class/dog": [(1, 0.1), (2, 0.2)]}  # fmt: skip
    loss, accuracy, lr = figures.training_curves({1: tags, 5: tags}).axes
    lines = {line.get_label(): line for line in loss.lines if line.get_label().startswith("fold")}
    assert list(lines) == ["fold 1 held out", "fold 5 held out"]
    assert lines["fold 1 held out"].get_xydata().tolist() == [[1, 3], [2, 2]]
    assert len(loss.lines) == 4 and len(lr.lines) == 2 and not accuracy.lines  # a single point is no curve
    assert len({line.get_linewidth() for line in loss.lines}) == 2


def test_the_confusion_matrix_shows_rows_as_truth(crossed: Path):
    counts = np.zeros((50, 50), int)
    counts[3, 30] = 8
    axes = figures.confusion_matrix(counts, results_of(crossed)["labels"]).axes[0]
    assert [(t.get_position(), t.get_text()) for t in axes.texts if t.get_text().isdigit()] == [((30, 3), "8")]
    assert axes.get_yticklabels()[3].get_text() == "cow" and axes.get_xticklabels()[30].get_text() == "door wood knock"
