"""Accuracy of a checkpoint on one fold, through the same door as every answer.

    python -m training.evaluate --model best_model.pth --data DIR --fold 5 [--predictions PATH] [--device cpu]

`--aside` in place of the fold: on the recordings that its run kept aside of the training folds (`inner_share`), which
is where recipes are compared, so that the fold held out stays unseen.

`predictions.csv` has a row per clip: file name, fold, target, label and one logit per class under the class's name,
with the nine digits that give the same float32 again; empty logits: nothing was heard. `target` is ESC-50's own number
of the class (0..49), also where the network knows the ten classes of ESC-10 only. Every figure follows from that file:
`recompute`. A clip belongs to ESC-10 by its class: the csv's flag marks all clips of ten classes and no others.
N classes of the network.
"""

import argparse
import csv
import dataclasses
import errno
import io
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cnn.audio import AudioError
from cnn.checkpoint import CheckpointError, find
from cnn.classifier import Classifier
from cnn.labels import ESC10, ESC50
from training.data import DataError, Row, in_folds, noted, odd_clips, read_rows
from training.splits import split

BATCH = 16
BINS = 15  # of the reliability diagram and the expected calibration error
COLUMNS = ("clip", "fold", "target", "label")


@dataclass(frozen=True, eq=False)
class Answer:
    row: Row
    logits: np.ndarray  # (N,) float32 in the order of the network's labels; NaN where nothing was heard
    note: str = ""  # where the clip is not as it should be


@dataclass(frozen=True)
class Report:
    fold: int
    clips: int
    correct: int
    correct_top3: int
    per_class: dict[str, float]  # accuracy by class

    @property
    def accuracy(self) -> float:
        return self.correct / self.clips

    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return wilson(self.correct, self.clips)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "accuracy": self.accuracy, "interval": list(self.interval())}


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    p, z = correct / n, 1.959964
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max((centre - spread) / (1 + z * z / n), 0.0), min((centre + spread) / (1 + z * z / n), 1.0)


# --- asking the network ----------------------------------------------------------------------------------------------


def clips_of(classifier: Classifier, data: Path, fold: int | None) -> list[Row]:
    """The fold's clips of classes that the network knows, in the csv's order.

    `fold` None: those that the network's own run kept aside. Raises DataError where there are none.
    """
    if fold is None:
        recipe = classifier.checkpoint.recipe
        held_out, share = recipe.get("fold"), recipe.get("inner_share")
        if not held_out or not share:
            raise DataError("the run of this network kept no recordings aside to measure on: train with --inner-share "
                            "0.3, say, or name a fold with --fold")  # fmt: skip
        rows = read_rows(data, esc10=recipe.get("classes") == "esc10")
        return [rows[i] for i in split(rows, held_out, share)[1]]
    rows = [r for r in in_folds(read_rows(data), [fold]) if r.label in classifier.labels]
    if not rows:
        raise DataError(f"no clip of the network's classes in fold {fold}")
    return rows


def answers(classifier: Classifier, data: Path, fold: int | None) -> list[Answer]:
    """The network's logits for every clip that `clips_of` names, in its order.

    Of a clip that was heard in several windows: the logarithm of its mean probabilities, which ranks and weighs the
    classes as the app does. Raises DataError or AudioError.
    """
    rows = clips_of(classifier, data, fold)
    found = []
    for at in range(0, len(rows), BATCH):
        part = rows[at : at + BATCH]
        for row, said in zip(part, classifier.predict_batch([r.path for r in part]), strict=True):
            logits = said.logits.astype(np.float32)
            heard = said.window_probabilities[said.window_probabilities.any(axis=1)]
            if not said.labels:
                logits = np.full(len(classifier.labels), np.nan, np.float32)
            elif len(heard) > 1:
                probability = {x.name: x.probability for x in said.labels}
                mean = [max(probability[name], sys.float_info.min) for name in classifier.labels]
                logits = np.log(mean).astype(np.float32)
            found.append(Answer(row, logits, noted(row, said.clip.notes)))
    return found


def warn_of_trained(classifier: Classifier, fold: int | None) -> None:
    """A line on stdout where the network has learned from this very fold."""
    if fold in classifier.checkpoint.provenance.get("folds_trained_on", []):
        print(f"warning: the network was trained on fold {fold}; this says nothing about new sounds")


def report(answers: Sequence[Answer], labels: Sequence[str], fold: int) -> Report:
    """Right and wrong, counted. A clip in which nothing was heard has no name, and that is wrong too."""
    hits: dict[str, list[bool]] = {}
    top3 = 0
    for answer in answers:
        ranked = [labels[i] for i in ranking(answer.logits)[:3]]
        hits.setdefault(answer.row.label, []).append(ranked[:1] == [answer.row.label])
        top3 += answer.row.label in ranked
    return Report(
        fold=fold,
        clips=len(answers),
        correct=sum(map(sum, hits.values())),
        correct_top3=top3,
        per_class={label: sum(h) / len(h) for label, h in sorted(hits.items())},
    )


def ranking(logits: np.ndarray) -> list[int]:
    """Classes, the most probable first; none where nothing was heard."""
    return [] if np.isnan(logits).any() else np.argsort(-logits, kind="stable").tolist()


# --- predictions.csv -------------------------------------------------------------------------------------------------


def write_predictions(path: Path, answers: Sequence[Answer], labels: Sequence[str]) -> None:
    """One row per answer, whole or not at all. Raises OSError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *labels])
    for answer in answers:
        row, heard = answer.row, bool(ranking(answer.logits))
        logits = [f"{x:.9g}" if heard else "" for x in answer.logits.tolist()]
        writer.writerow([row.path.name, row.fold, ESC50.index(row.label), row.label, *logits])
    write_whole(path, text.getvalue().encode())


def read_predictions(path: Path) -> tuple[tuple[str, ...], list[Answer]]:
    """Labels in the order of the logits, and the answers. Raises DataError where the file is not of this kind."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            head = next(lines, [])
            labels = tuple(head[len(COLUMNS) :])
            if tuple(head[: len(COLUMNS)]) != COLUMNS or not labels:
                raise ValueError("its head is not clip, fold, target, label and the names of classes")
            found = []
            for clip, fold, target, label, *logits in lines:
                if len(logits) != len(labels) or label not in labels or ESC50.index(label) != int(target):
                    raise ValueError(f"line {lines.line_num} is cut off or its target is not its label's")
                values = np.array([x or "nan" for x in logits], np.float32)
                found.append(Answer(Row(Path(clip), int(fold), label), values))
    except (OSError, ValueError) as e:
        raise DataError(f"{path} cannot be read as predictions: {e}") from e
    if not found:
        raise DataError(f"{path} holds no prediction")
    return labels, found


def recompute(predictions: Path) -> dict[str, Any]:
    """Every figure of a cross-validation from its predictions.csv alone, as plain types for results.json.

    `mean` and `std` (sample standard deviation, None for one fold) are over the folds, all else over the clips.
    `confusion`: counts, true class by row, named class by column, both in the order of `labels`. `reliability`: clips
    by the probability of their top class; `ece`: expected calibration error over these bins (Guo et al. 2017, arXiv
    1706.04599). `esc10`: the clips of ESC-10's classes, named among all the network's classes and among the ten only.
    Raises DataError.
    """
    labels, found = read_predictions(predictions)
    folds = []
    for fold in sorted({a.row.fold for a in found}):
        part = report([a for a in found if a.row.fold == fold], labels, fold)
        folds.append({"fold": fold, "n": part.clips, "accuracy": part.accuracy, "correct": part.correct,
                      "interval": list(part.interval()), "top3": part.correct_top3 / part.clips})  # fmt: skip
    accuracies = [row["accuracy"] for row in folds]
    pooled = report(found, labels, 0)
    logits = np.stack([a.logits for a in found]).astype(np.float64)  # (n, N)
    truth = np.array([labels.index(a.row.label) for a in found])
    heard = ~np.isnan(logits).any(axis=1)
    logits, truth = logits[heard], truth[heard]
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    confidence = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1, initial=0.0)
    bins, ece = reliability(confidence, logits.argmax(axis=1) == truth)
    return {
        "folds": folds,
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(folds) > 1 else None,
        "per_class": pooled.per_class,
        "confusion": confusion(truth, logits.argmax(axis=1), len(labels)).tolist(),
        "esc10": _esc10(labels, logits, truth, sum(a.row.label in ESC10 for a in found)),
        "clips": len(found),
        "correct": pooled.correct,
        "top3": pooled.correct_top3 / pooled.clips,
        "unheard": int((~heard).sum()),
        "labels": list(labels),
        "ece": ece,
        "reliability": bins,
    }


def confusion(true: ArrayLike, named: ArrayLike, classes: int) -> np.ndarray:
    """Class numbers (n,), (n,) -> counts (N, N) int64, true class by row, named class by column."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.asarray(true, int), np.asarray(named, int)), 1)
    return counts


def reliability(confidence: np.ndarray, right: np.ndarray) -> tuple[list[dict[str, Any]], float | None]:
    """Of n first names their probabilities (n,) and whether they are right (n,) -> bins {from, to, n, confidence,
    accuracy} of equal width, and the expected calibration error over them; None for no name."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows, gap = [], 0.0
    for b in range(BINS):
        inside = place == b
        n = int(inside.sum())
        sure = float(confidence[inside].mean()) if n else None
        accuracy = float(right[inside].mean()) if n else None
        rows.append({"from": b / BINS, "to": (b + 1) / BINS, "n": n, "confidence": sure, "accuracy": accuracy})
        gap += abs(float(confidence[inside].sum()) - int(right[inside].sum()))
    return rows, gap / len(right) if len(right) else None


def _esc10(labels: Sequence[str], logits: np.ndarray, truth: np.ndarray, n: int) -> dict[str, Any]:
    if not n:
        return {"n": 0, "accuracy": None, "among_ten": None}
    ten = np.array([i for i, name in enumerate(labels) if name in ESC10])
    inside = np.isin(truth, ten)
    logits, truth = logits[inside], truth[inside]
    among = {"accuracy": logits.argmax(axis=1), "among_ten": ten[logits[:, ten].argmax(axis=1)]}
    return {"n": n, **{key: int((best == truth).sum()) / n for key, best in among.items()}}


def write_whole(path: Path, content: bytes) -> None:
    """Whole or not at all: a temporary name beside it, then `os.replace`. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Raises ValueError now, not after the work, where no file can be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as e:
        raise ValueError(f"{path} cannot be written ({e.strerror}): name another file") from e


def add_where(parser: argparse.ArgumentParser) -> None:
    """The flags for the clips to measure on: `fold`, None where those kept aside are asked for."""
    parser.set_defaults(fold=5)  # here: a flag that is given its own default does not count as given to argparse
    group, none = parser.add_mutually_exclusive_group(), argparse.SUPPRESS
    group.add_argument("--fold", type=int, default=none, help="all clips of this fold (default: 5)")
    told = "the recordings that the network's run kept aside"
    group.add_argument("--aside", dest="fold", action="store_const", const=None, default=none, help=told)


def where(fold: int | None) -> str:
    return "kept aside of the folds trained on" if fold is None else f"of fold {fold}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="best_model.pth; default: the network in the box")
    parser.add_argument("--data", type=Path, required=True, help="a folder of ESC-50's layout")
    add_where(parser)
    parser.add_argument("--predictions", type=Path, help="also write every clip's logits there, as csv")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args(argv)
    try:
        if args.predictions:
            check_place(args.predictions)
        path = find(args.model)
        classifier = Classifier.open(path, args.device)
        warn_of_trained(classifier, args.fold)
        found = answers(classifier, args.data, args.fold)
        if notes := [a.note for a in found if a.note]:
            print(f"warning: {odd_clips(len(notes), notes)}")
        _tell(path, report(found, classifier.labels, args.fold or 0), args.fold)
        if args.predictions:
            write_predictions(args.predictions, found, classifier.labels)
    except KeyboardInterrupt:
        print("\nstopped: nothing is measured before all clips are named", file=sys.stderr)
        return 130
    except (AudioError, CheckpointError, DataError, OSError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def _tell(path: Path, result: Report, fold: int | None) -> None:
    low, high = result.interval()
    top3 = result.correct_top3 / result.clips
    print(f"{path}: {100 * result.accuracy:.2f} % of {result.clips} clips {where(fold)} "
          f"(95 % interval {100 * low:.1f}-{100 * high:.1f} %), among the first three {100 * top3:.2f} %")
    worst = sorted(result.per_class.items(), key=lambda item: item[1])[:5]
    print("hardest: " + ", ".join(f"{name} {100 * value:.0f} %" for name, value in worst))


if __name__ == "__main__":
    sys.exit(main())
