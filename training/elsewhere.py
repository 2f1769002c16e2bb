"""Accuracy on sounds from elsewhere: those of Debian packages, whose file names say what they are.

    python -m training.elsewhere --packages DIR --fetch            # with apt, once; 1.5 GB go over the line
    python -m training.elsewhere --packages DIR [--model best_model.pth] [--json PATH]

Games and desktops bring barks, bells and rain of every length, rate and quality, recorded and cut by many people: the
nearest to what visitors bring that anybody can fetch again. Which file is of which class stands in `elsewhere.csv`
(label, package, path, sha256 of the file), decided by its name before any network had heard it. Nothing is trained on
them. A file lies in DIR/PACKAGE/PATH, where `dpkg-deb -x PACKAGE*.deb DIR/PACKAGE` leaves it, too.
"""

import argparse
import csv
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn.audio import AudioError
from cnn.checkpoint import CheckpointError, find
from cnn.classifier import Classifier
from training.data import DataError, Row
from training.evaluate import Answer, Report, check_place, logits_of, report, write_whole

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


def read_table(path: Path = TABLE) -> list[Sound]:
    with path.open(newline="", encoding="utf-8") as file:
        return [Sound(**row) for row in csv.DictReader(file)]


def check(sounds: Sequence[Sound], packages: Path) -> None:
    """Raises DataError where a file is missing or is another than the one that the table was made of."""
    missing = [s for s in sounds if not s.file(packages).is_file()]
    if missing:
        first, *more = sorted({s.package for s in missing})
        among = f"{first} and {len(more)} more packages" if more else first
        raise DataError(f"{packages} lacks {len(missing)} of {len(sounds)} sounds, of {among}: fetch them with --fetch "
                        "where there is apt, or unpack Debian 12's packages there, each by dpkg-deb -x PACKAGE.deb "
                        "DIR/PACKAGE")  # fmt: skip
    for sound in sounds:
        if hashlib.sha256(sound.file(packages).read_bytes()).hexdigest() != sound.sha256:
            raise DataError(f"{sound.file(packages)} is another sound than Debian 12's: its package is of another "
                            "version; remove the folder and fetch that of Debian 12 again")  # fmt: skip


def fetch(sounds: Sequence[Sound], packages: Path, tell: Callable[[str], None] = lambda line: None) -> None:
    """The packages that are not whole in `packages`, one after the other; of each only the table's files are kept.

    Each appears whole or not at all. Raises DataError.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise DataError(f"there is no {tool} here: fetch the packages on a Debian 12 machine")
    by_package: dict[str, list[Sound]] = {}
    for sound in sounds:
        by_package.setdefault(sound.package, []).append(sound)
    wanted = {p: them for p, them in sorted(by_package.items()) if not all(s.file(packages).is_file() for s in them)}
    for at, (package, them) in enumerate(wanted.items(), 1):
        tell(f"{at} of {len(wanted)}: {package}")
        packages.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=packages) as work:
            _run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package], Path(work))
            archive = next(Path(work).glob("*.deb"), None)
            if archive is None:
                raise DataError(f"apt-get brought no package {package}")
            _run(["dpkg-deb", "-x", archive.name, "all"], Path(work))
            for sound in them:
                inside = Path(work) / "all" / sound.path
                if not inside.is_file():
                    raise DataError(f"{archive.name} holds no {sound.path}: it is of another version than Debian 12's")
                kept = Path(work) / "kept" / sound.path
                kept.parent.mkdir(parents=True, exist_ok=True)
                inside.replace(kept)
            shutil.rmtree(packages / package, ignore_errors=True)
            (Path(work) / "kept").replace(packages / package)


def _run(command: list[str], where: Path) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"{command[0]} failed: {said} (apt-get update may be needed first)")


def measure(classifier: Classifier, sounds: Sequence[Sound], packages: Path) -> tuple[Report, dict[str, list[bool]]]:
    """All together, and right or wrong by length ('under 1 s' ...). Classes that the network has not are left out.

    Raises DataError or AudioError.
    """
    sounds = [s for s in sounds if s.label in classifier.labels]
    check(sounds, packages)
    found: list[Answer] = []
    by_length: dict[str, list[bool]] = {name: [] for name in LENGTHS}
    for at in range(0, len(sounds), BATCH):
        part = sounds[at : at + BATCH]
        for sound, said in zip(part, classifier.predict_batch([s.file(packages) for s in part]), strict=True):
            found.append(Answer(Row(sound.file(packages), 0, sound.label), logits_of(classifier, said)))
            length = next(name for name, end in LENGTHS.items() if said.clip.seconds < end)
            by_length[length].append([x.name for x in said.labels[:1]] == [sound.label])
    return report(found, classifier.labels, 0), by_length


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.elsewhere", description=__doc__.split("\n")[0])
    parser.add_argument("--packages", type=Path, required=True, help="where the packages' sounds lie or are to lie")
    parser.add_argument("--fetch", action="store_true", help="fetch those that are not there, with apt-get")
    parser.add_argument("--model", help="best_model.pth; default: the network in the box")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args(argv)
    try:
        if args.json:
            check_place(args.json)
        sounds = read_table()
        if args.fetch:
            fetch(sounds, args.packages, lambda line: print(line, file=sys.stderr, flush=True))
        path = find(args.model)
        result, by_length = measure(Classifier.open(path, args.device), sounds, args.packages)
        print(f"{path}: {text(result, by_length)}")
        if args.json:
            write_whole(args.json, (json.dumps(_plain(result, by_length)) + "\n").encode())
    except KeyboardInterrupt:
        print("\nstopped: nothing is measured before all sounds are named", file=sys.stderr)
        return 130
    except (AudioError, CheckpointError, DataError, OSError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def text(result: Report, by_length: dict[str, list[bool]]) -> str:
    """The figures as lines for people."""
    low, high = result.interval()
    parts = [f"{name} {100 * sum(hits) / len(hits):.0f} % of {len(hits)}" for name, hits in by_length.items() if hits]
    by_class = 100 * sum(result.per_class.values()) / len(result.per_class)
    return (f"{100 * result.accuracy:.2f} % of {result.clips} sounds from elsewhere (95 % interval {100 * low:.1f}-"
            f"{100 * high:.1f} %), among the first three {100 * result.correct_top3 / result.clips:.2f} %, mean of the "
            f"{len(result.per_class)} classes {by_class:.2f} %\n{', '.join(parts)}")  # fmt: skip


def _plain(result: Report, by_length: dict[str, list[bool]]) -> dict[str, Any]:
    return {**result.to_dict(), "by_length": {name: [sum(hits), len(hits)] for name, hits in by_length.items()}}


if __name__ == "__main__":
    sys.exit(main())
