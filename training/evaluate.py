"""Accuracy of a checkpoint on one fold, through the same door as every answer.

    python -m training.evaluate --model best_model.pth --data DIR --fold 5 [--device cpu]
"""

import argparse
import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn.audio import AudioError
from cnn.checkpoint import CheckpointError, find, load
from cnn.classifier import Classifier
from training.data import DataError, in_folds, read_rows


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
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def evaluate(model: Path, data: Path, fold: int, *, device: str = "auto") -> Report:
    """Every clip of the fold, named by the network. Raises CheckpointError, DataError or AudioError."""
    classifier = Classifier.open(model, device)
    rows = [r for r in in_folds(read_rows(data), [fold]) if r.label in classifier.labels]
    hits: dict[str, list[bool]] = {}
    top3 = 0
    for at in range(0, len(rows), 16):
        part = rows[at : at + 16]
        for row, answer in zip(part, classifier.predict_batch([r.path for r in part]), strict=True):
            ranked = [label.name for label in answer.labels[:3]]
            hits.setdefault(row.label, []).append(ranked[:1] == [row.label])
            top3 += row.label in ranked
    return Report(
        fold=fold,
        clips=len(rows),
        correct=sum(map(sum, hits.values())),
        correct_top3=top3,
        per_class={label: sum(h) / len(h) for label, h in sorted(hits.items())},
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="best_model.pth; default: the network in the box")
    parser.add_argument("--data", type=Path, required=True, help="a folder of ESC-50's layout")
    parser.add_argument("--fold", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args(argv)
    try:
        path = find(args.model)
        trained_on = load(path).provenance.get("folds_trained_on", [])
        report = evaluate(path, args.data, args.fold, device=args.device)
    except (AudioError, CheckpointError, DataError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    if args.fold in trained_on:
        print(f"warning: the network was trained on fold {args.fold}; this says nothing about new sounds")
    low, high = report.interval()
    print(f"{path}: {100 * report.accuracy:.2f} % of {report.clips} clips of fold {args.fold} "
          f"(95 % interval {100 * low:.1f}-{100 * high:.1f} %), among the first three {100 * report.correct_top3 / report.clips:.2f} %")  # noqa: E501
    worst = sorted(report.per_class.items(), key=lambda item: item[1])[:5]
    print("hardest: " + ", ".join(f"{name} {100 * value:.0f} %" for name, value in worst))
    return 0


if __name__ == "__main__":
    sys.exit(main())
