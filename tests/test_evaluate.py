"""Evaluation: what a network said of every clip, written so that every figure can be computed again."""

import csv
import dataclasses
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from cnn.checkpoint import Checkpoint, load, save
from cnn.classifier import Classifier
from cnn.labels import ESC10, ESC50
from cnn.model import AudioCNN
from training import evaluate, publish, robustness
from training.data import DataError, Row
from training.evaluate import Answer, answers, read_predictions, recompute, report, wilson, write_predictions

LABELS = ("dog", "rain", "siren")  # the third is not of ESC-10


def answer(label: str, *logits: float, fold: int = 1) -> Answer:
    return Answer(Row(Path(f"{fold}-{label}.wav"), fold, label), np.array(logits, np.float32))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Fold 1: a short sound, one of nine seconds, and silence."""
    root = tmp_path / "data"
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    rng = np.random.default_rng(0)
    long = rng.normal(0, 0.1, 9 * 16_000) * np.linspace(0.01, 1, 9 * 16_000)
    sounds = {"short.wav": rng.normal(0, 0.1, 8_000), "long.wav": long, "silent.wav": np.zeros(8_000)}
    lines = ["filename,fold,target,category,esc10"]
    for (name, sound), label in zip(sounds.items(), ("siren", "rain", "dog"), strict=True):
        soundfile.write(root / "audio" / name, sound, 16_000)
        lines.append(f"{name},1,{ESC50.index(label)},{label},{label != 'siren'}")
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    return root


def test_the_logits_of_a_clip_rank_and_weigh_the_classes_as_the_app_does(data: Path, tiny_classifier: Classifier):
    short, long, silent = answers(tiny_classifier, data, 1)
    for said in (short, long):
        heard = tiny_classifier.predict(said.row.path)
        shares = np.exp(said.logits.astype(np.float64))
        shares /= shares.sum()
        ranked = [tiny_classifier.labels[i] for i in evaluate.ranking(said.logits)]
        assert ranked[:5] == [x.name for x in heard.labels[:5]]
        assert max(shares) == pytest.approx(heard.labels[0].probability, abs=1e-5)
    assert len(tiny_classifier.predict(long.row.path).starts) == 3
    np.testing.assert_allclose(short.logits, tiny_classifier.predict(short.row.path).logits, atol=1e-5)
    assert np.isnan(silent.logits).all()


def test_a_clip_in_which_nothing_is_heard_is_wrong(data: Path, tiny_classifier: Classifier, tmp_path: Path):
    found = answers(tiny_classifier, data, 1)
    assert report(found, tiny_classifier.labels, 1).per_class["dog"] == 0  # though the first of the labels
    write_predictions(tmp_path / "p.csv", found, tiny_classifier.labels)
    figures = recompute(tmp_path / "p.csv")
    assert figures["unheard"] == 1 and figures["clips"] == 3 and np.sum(figures["confusion"]) == 2
    assert figures["per_class"]["dog"] == 0


def test_the_command_measures_and_writes_what_it_measured(
    data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    path = tmp_path / "new folder" / "p.csv"
    command = ["--model", str(tiny), "--data", str(data), "--fold", "1", "--device", "cpu"]
    assert evaluate.main([*command, "--predictions", str(path)]) == 0
    assert "of 3 clips of fold 1" in capsys.readouterr().out
    labels = load(tiny).labels
    measured = report(answers(Classifier.open(tiny, "cpu"), data, 1), labels, 1)
    row = recompute(path)["folds"][0]
    assert (row["n"], row["correct"], row["accuracy"]) == (3, measured.correct, measured.accuracy)
    assert recompute(path)["per_class"] == measured.to_dict()["per_class"]
    monkeypatch.setattr(evaluate, "answers", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(robustness, "measure", lambda *_, **__: pytest.fail("measured"))
    for place, why in ((tiny / "p", "File exists"), (tmp_path, "Is a directory")):  # a folder that is a file; a folder
        for main, flag in ((evaluate.main, "--predictions"), (robustness.main, "--json")):
            assert main([*command, flag, str(place)]) == 1
            said = f"error: {place} cannot be written ({why}): name another file\n"
            assert capsys.readouterr().err == said


@pytest.mark.parametrize("command", [evaluate, robustness, publish])
def test_stopped_by_hand_it_ends_in_one_sentence(
    command: ModuleType, data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for module, work in ((evaluate, "answers"), (robustness, "measure"), (publish, "publish")):
        monkeypatch.setattr(module, work, stopped)
    flags = ["--model", str(tiny), "--data", str(data), "--fold", "1", "--device", "cpu"]
    assert command.main(["--checkpoint", str(tiny), "--repo", "a/b"] if command is publish else flags) == 130
    said = capsys.readouterr().err
    assert said.startswith("\nstopped: ") and said.count("\n") == 2


def test_a_fold_that_the_network_learned_from_is_told(data: Path, tiny: Path, tmp_path: Path, capsys):
    trained = dataclasses.replace(load(tiny), provenance={"folds_trained_on": [1, 2]})
    save(trained, tmp_path / "t.pth")
    flags = ["--data", str(data), "--fold", "1", "--device", "cpu"]
    assert evaluate.main(["--model", str(tmp_path / "t.pth"), *flags]) == 0
    assert "warning: the network was trained on fold 1" in capsys.readouterr().out


def test_logits_come_back_from_the_file_bit_by_bit(tmp_path: Path):
    rng = np.random.default_rng(0)
    values = (rng.normal(0, 1, (200, 3)) * 10.0 ** rng.uniform(-30, 30, (200, 1))).astype(np.float32)
    write_predictions(tmp_path / "p.csv", [answer("rain", *v) for v in values], LABELS)
    labels, found = read_predictions(tmp_path / "p.csv")
    assert labels == LABELS and np.array_equal(np.stack([a.logits for a in found]), values)
    head, first, *_ = csv.reader((tmp_path / "p.csv").open())
    assert head == ["clip", "fold", "target", "label", *LABELS]
    assert first[:4] == ["1-rain.wav", "1", str(ESC50.index("rain")), "rain"]


def test_every_figure_of_a_small_table_is_what_one_computes_by_hand(tmp_path: Path):
    sure, half = np.log(8.0), np.log(2.0)  # of three classes: 0.8 and 0.5
    rows = [
        answer("dog", sure, 0, 0), answer("dog", 0, sure, 0), answer("rain", 0, half, 0), answer("siren", 0, 0, half),
        answer("siren", half, 0, 0, fold=2), answer("dog", half, 0, 0.1, fold=2), answer("rain", 0, 1, 9, fold=2),
    ]  # fmt: skip
    write_predictions(tmp_path / "p.csv", rows, LABELS)
    figures = recompute(tmp_path / "p.csv")
    assert [f["accuracy"] for f in figures["folds"]] == [3 / 4, 1 / 3] and figures["folds"][1]["n"] == 3
    assert figures["folds"][0]["interval"] == list(wilson(3, 4)) and figures["folds"][0]["top3"] == 1
    assert figures["mean"] == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert figures["std"] == pytest.approx(statistics.stdev([3 / 4, 1 / 3]))
    assert figures["confusion"] == [[2, 1, 0], [0, 1, 1], [1, 0, 1]]  # the true class by row
    assert figures["per_class"] == {"dog": 2 / 3, "rain": 1 / 2, "siren": 1 / 2}
    assert figures["esc10"] == {"n": 5, "accuracy": 3 / 5, "among_ten": 4 / 5}  # without siren, rain is rain
    place = {round(row["from"], 3): row for row in figures["reliability"] if row["n"]}
    assert place[0.8] == {"from": 12 / 15, "to": 13 / 15, "n": 2, "confidence": pytest.approx(0.8), "accuracy": 0.5}
    p = [np.exp(x - max(x)) / np.exp(x - max(x)).sum() for x in np.array([[half, 0, 0.1], [0, 1, 9]])]
    gap = abs(2 * 0.8 - 1) + abs(3 * 0.5 + max(p[0]) - 3) + max(p[1])
    assert figures["ece"] == pytest.approx(gap / 7)


def test_one_fold_has_no_spread(tmp_path: Path):
    write_predictions(tmp_path / "p.csv", [answer("siren", 0, 0, 1)], LABELS)
    figures = recompute(tmp_path / "p.csv")
    assert figures["std"] is None and figures["mean"] == 1 and figures["esc10"]["n"] == 0


def test_a_network_of_ten_classes_keeps_the_target_numbers_of_fifty(data: Path, tiny: Path, tmp_path: Path):
    weights = load(tiny)
    config = dataclasses.replace(weights.model, num_classes=10)
    ten = tuple(c for c in ESC50 if c in ESC10)
    with torch.random.fork_rng(devices=[]):
        state = AudioCNN(config).state_dict()
    save(Checkpoint(config, weights.mel, ten, state), tmp_path / "ten.pth")
    classifier = Classifier.open(tmp_path / "ten.pth", "cpu")
    found = answers(classifier, data, 1)
    write_predictions(tmp_path / "p.csv", found, classifier.labels)
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [(r["label"], int(r["target"])) for r in rows] == [(c, ESC50.index(c)) for c in ("rain", "dog")]
    figures = recompute(tmp_path / "p.csv")
    assert figures["labels"] == list(ten) and np.shape(figures["confusion"]) == (10, 10)
    assert figures["esc10"]["accuracy"] == figures["esc10"]["among_ten"] == figures["mean"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clip,fold,target,label,dog,rain\na.wav,1,0,dog,0.5\n", "line 2 is cut off"),
        ("clip,fold,target,label,dog,rain\na.wav,1,3,dog,0.5,1\n", "line 2"),
        ("clip,fold,target,label,dog,rain\na.wav,1,0,dog,x,1\n", "could not convert"),
        ("name,value\n", "its head"),
        ("clip,fold,target,label,dog,rain\n", "holds no prediction"),
    ],
)
def test_a_damaged_table_is_refused_with_the_place(tmp_path: Path, text: str, told: str):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        recompute(tmp_path / "p.csv")
