"""Accuracy on sounds from elsewhere, and whether the percentages are true there.

    python -m training.elsewhere --packages DIR --fetch [--model best_model.pth]     # 1.5 GB by apt-get, once
    python -m training.elsewhere --packages DIR [--model best_model.pth] [--json PATH]

Debian's packages of games and desktops bring barks, bells and rain of every length, rate and quality, recorded and cut
by many people: the nearest to what visitors bring that anybody can fetch again. Which file is of which class stands in
`elsewhere.csv` (label, package, path, sha256 of the file) and was decided by the file's name, not by what a network
said. No network is trained on them, but recipes are chosen with them in sight; that some are among the recordings of
ESC-50 (both take from Freesound) is not excluded. A file lies in DIR/PACKAGE/PATH, where `dpkg-deb -x` leaves it, too.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnn.audio import AudioError
from cnn.checkpoint import CheckpointError, find
from cnn.classifier import Classifier
from training.data import DataError
from training.evaluate import check_place, reliability, wilson, write_whole

TABLE = Path(__file__).with_name("elsewhere.csv")
# up to how many seconds; a network hears windows of five
LENGTHS = {"under 1 s": 1.0, "1 to 2.5 s": 2.5, "2.5 to 5 s": 5.0, "5 s and more": float("inf")}
BATCH = 16


@dataclass(frozen=True)
class Sound:
    label: str
    package: str
    path: str  # in the package
    sha256: str  # of the file

    def file(self, packages: Path) -> Path:
        return packages / self.package / self.path

    def there(self, packages: Path) -> bool:
        file = self.file(packages)
        return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == self.sha256


@dataclass(frozen=True)
class Heard:
    sound: Sound
    seconds: float
    names: tuple[str, ...]  # the three likeliest; none where nothing was heard
    probability: float  # of the first; 0 where nothing was heard


def read_table() -> list[Sound]:
    with TABLE.open(newline="", encoding="utf-8") as file:
        return [Sound(**row) for row in csv.DictReader(file)]


def fetch(sounds: Sequence[Sound], packages: Path, tell: Callable[[str], None] = lambda line: None) -> None:
    """Sees to it that every sound lies in `packages`; of a package only these are kept, other files stay as they are.

    A sound appears whole or not at all. Raises DataError or OSError.
    """
    wanted: dict[str, list[Sound]] = {}
    for sound in sorted(sounds, key=lambda s: (s.package, s.path)):
        if not sound.there(packages):
            wanted.setdefault(sound.package, []).append(sound)
    for tool in ("apt-get", "dpkg-deb"):
        if wanted and not shutil.which(tool):
            raise DataError(f"there is no {tool} here: fetch the packages on a Debian 12 machine")
    work = packages / ".fetching"
    try:
        for at, (package, lacking) in enumerate(wanted.items(), 1):
            tell(f"{at} of {len(wanted)}: {package}")
            shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
            work.mkdir(parents=True)
            _unpack(package, work)
            for sound in lacking:
                if not sound.there(work):
                    raise DataError(f"package {package} holds no {sound.path}, or another: it is not Debian 12's")
                sound.file(packages).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(sound.file(work), work / "whole")  # in a package it may be a link
                os.replace(work / "whole", sound.file(packages))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack(package: str, work: Path) -> None:
    """All of it in `work`/PACKAGE."""
    _run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package], work, "apt-get update may help")
    archive = next(work.glob("*.deb"), None)
    if archive is None:
        raise DataError(f"apt-get brought no package {package}")
    _run(["dpkg-deb", "-x", archive.name, package], work, "is there room enough?")


def _run(command: list[str], where: Path, advice: str) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        reason = next((line for line in said if line.startswith("E:")), said[-1])
        raise DataError(f"{command[0]} failed: {reason} ({advice})")


def measure(classifier: Classifier, sounds: Sequence[Sound], packages: Path) -> list[Heard]:
    """What the network names each sound of a class that it knows. Raises DataError, AudioError or OSError."""
    sounds = [s for s in sounds if s.label in classifier.labels]
    if not sounds:
        raise DataError("none of the sounds is of a class that the network knows")
    lacking = [s for s in sounds if not s.there(packages)]
    if lacking:
        raise DataError(f"{packages} lacks {len(lacking)} of {len(sounds)} sounds, or holds others in their place, the "
                        f"first {lacking[0].file(packages)}: --fetch brings them where there is apt-get; elsewhere "
                        f"unpack Debian 12's {lacking[0].package} there, by dpkg-deb -x")  # fmt: skip
    heard: list[Heard] = []
    for at in range(0, len(sounds), BATCH):
        part = sounds[at : at + BATCH]
        for sound, said in zip(part, classifier.predict_batch([s.file(packages) for s in part]), strict=True):
            first = said.labels[0].probability if said.labels else 0.0
            heard.append(Heard(sound, said.clip.seconds, tuple(x.name for x in said.labels[:3]), first))
    return heard


def figures(heard: Sequence[Heard]) -> dict[str, Any]:
    """As plain types: `accuracy` with its 95 % `interval`, `top3`, `per_class`, `mean_of_classes`, `by_length`: right
    ones and all; and of those in which something was heard `confidence`, the mean probability of the first name, and
    `named_right`, with `reliability` and `ece` as training.evaluate has them: None, and bins of nothing, where nothing
    was heard in any."""
    hits = [h.names[:1] == (h.sound.label,) for h in heard]
    by_class: dict[str, list[bool]] = {}
    by_length: dict[str, list[bool]] = {name: [] for name in LENGTHS}
    for h, hit in zip(heard, hits, strict=True):
        by_class.setdefault(h.sound.label, []).append(hit)
        by_length[next(name for name, end in LENGTHS.items() if h.seconds < end)].append(hit)
    per_class = {name: sum(x) / len(x) for name, x in sorted(by_class.items())}
    sure = np.array([h.probability for h in heard if h.names])
    right = np.array([hit for h, hit in zip(heard, hits, strict=True) if h.names], bool)
    bins, ece = reliability(sure, right)
    return {
        "sounds": len(heard),
        "accuracy": sum(hits) / len(heard),
        "interval": list(wilson(sum(hits), len(heard))),
        "top3": sum(h.sound.label in h.names for h in heard) / len(heard),
        "per_class": per_class,
        "mean_of_classes": sum(per_class.values()) / len(per_class),
        "by_length": {name: [sum(x), len(x)] for name, x in by_length.items()},
        "confidence": float(sure.mean()) if len(sure) else None,
        "named_right": float(right.mean()) if len(right) else None,
        "reliability": bins,
        "ece": ece,
    }


def text(found: dict[str, Any]) -> str:
    """The figures as lines for people."""
    low, high = (100 * x for x in found["interval"])
    lengths = [f"{name} {100 * right / of:.0f} % of {of}" for name, (right, of) in found["by_length"].items() if of]
    sure = "nothing was heard in any of them"
    if found["confidence"] is not None:
        given, right, ece = (100 * found[key] for key in ("confidence", "named_right", "ece"))
        sure = (f"the first name is given {given:.1f} % in the mean and is right in {right:.1f} %, expected "
                f"calibration error {ece:.1f} points")  # fmt: skip
    return (f"{100 * found['accuracy']:.2f} % of {found['sounds']} sounds from elsewhere (95 % interval {low:.1f}-"
            f"{high:.1f} %), among the first three {100 * found['top3']:.2f} %, mean of the {len(found['per_class'])} "
            f"classes {100 * found['mean_of_classes']:.2f} %\n{', '.join(lengths)}\n{sure}")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.elsewhere", description=__doc__.split("\n")[0])
    parser.add_argument("--packages", type=Path, required=True, help="where the packages' sounds lie or are to lie")
    parser.add_argument("--fetch", action="store_true", help="first fetch those that are not there, with apt-get")
    parser.add_argument("--model", help="best_model.pth; default: the network in the box")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="also write the figures there, and what every sound was named")
    args = parser.parse_args(argv)
    try:
        if args.json:
            check_place(args.json)
        path = find(args.model)
        classifier, sounds = Classifier.open(path, args.device), read_table()
        if args.fetch:
            fetch(sounds, args.packages, lambda line: print(line, file=sys.stderr, flush=True))
        heard = measure(classifier, sounds, args.packages)
        found = figures(heard)
        print(f"{path}: {text(found)}")
        if args.json:
            rows = [vars(h.sound) | {"seconds": h.seconds, "names": list(h.names), "probability": h.probability}
                    for h in heard]  # fmt: skip
            write_whole(args.json, (json.dumps({"model": str(path)} | found | {"heard": rows}) + "\n").encode())
    except KeyboardInterrupt:
        print("\nstopped: what has been fetched stays; nothing is measured before all are named", file=sys.stderr)
        return 130
    except (AudioError, CheckpointError, DataError, OSError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
