"""Cross-validation: every fold held out once, then measured once; results and a page for people.

    python -m training.crossval --recipe best-16k --data DIR [--name NAME] [--folds 1,2,3,4,5] [--any-field value]

One fold after the other is trained in RUNS/foldK; interrupted, the same command goes on where it was. Nothing is chosen
on a fold held out, and the settings of all folds are the same. After every fold OUT (training/results/NAME) holds what
is known so far: `results.json`, `predictions.csv` (from which every figure but robustness follows, see
training.evaluate.recompute), `robustness.json` (every clip's outcome), `curves.json`, pictures and `report.html`.
What OUT holds of folds that are not in RUNS was measured on another machine and stays: commit OUT, and go on anywhere.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cnn import checkpoint
from cnn.audio import AudioError
from cnn.checkpoint import CheckpointError
from cnn.classifier import Classifier
from training import config as configs
from training import robustness
from training.config import TrainConfig, differences
from training.data import DataError, in_folds, read_rows
from training.evaluate import answers, write_predictions, write_whole
from training.gather import (
    BEST,
    PREDICTIONS,
    RECORD,
    RESUME,
    ROBUSTNESS,
    elsewhere_measured,
    gather,
    is_whole,
    read_record,
    same_result,
    same_settings,
)
from training.logs import Logger, TensorBoard
from training.state import FREE, NotWritten, TrainingError, alone_in, fingerprint, sha256
from training.train import train
from training.widen import parents

FOLDS = (1, 2, 3, 4, 5)
RESULTS = Path(__file__).resolve().parent / "results"


def run_fold(
    config: TrainConfig,
    data: Path,
    runs: Path,
    *,
    logger: Logger | None = None,
    on_checkpoint: Callable[[], None] = lambda: None,
    robust: bool = True,
) -> Path:
    """Train with `config.fold` held out, in runs/foldK; then predictions.csv and, if `robust`, robustness.json of it.

    Goes on where it was interrupted; where everything is there, whole and of these settings, nothing is done. Logs to
    TensorBoard in that folder unless told otherwise. `fold.json` there: settings, the data's fingerprint, seconds, and
    the sha256 of the weights and of what was measured of them; weights that are others now are measured again. Returns
    the folder. Raises DataError, AudioError, TrainingError, CheckpointError or OSError.
    """
    folder = runs / f"fold{config.fold}"
    best = folder / BEST
    begun = {"dataset": data.resolve().name, "config": dataclasses.asdict(config), "data_sha256": _clips(config, data)}
    same_settings(runs, begun)
    folder.mkdir(parents=True, exist_ok=True)
    record = begun | {"fold": config.fold, "seconds": 0.0, "files": {}} | read_record(folder)
    earlier, start = record["seconds"], time.monotonic()

    def kept() -> None:
        record["seconds"] = earlier + time.monotonic() - start
        write_whole(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
        on_checkpoint()

    if not _trained(best, config):
        logger = logger or TensorBoard(folder / "tensorboard_logs")
        with alone_in(folder):
            resume = (folder / RESUME).exists()
            train(config, data, folder, resume=resume, logger=logger, on_checkpoint=kept)
    if not is_whole(folder, record, BEST):
        if BEST in record["files"]:
            print(f"{best} is not the file that was measured: it is measured again", flush=True)
        record["files"] = {BEST: sha256(best)}
    missing = [n for n in (PREDICTIONS, *[ROBUSTNESS] * robust) if not is_whole(folder, record, n)]
    if missing:
        classifier = Classifier.open(best, config.device)
        if PREDICTIONS in missing:
            found = answers(classifier, data, config.fold)
            write_predictions(folder / PREDICTIONS, found, classifier.labels)
        if ROBUSTNESS in missing:
            table = robustness.measure(classifier, data, config.fold, progress=_Clips("robustness"))
            write_whole(folder / ROBUSTNESS, (json.dumps(table) + "\n").encode())
        record["files"] |= {name: sha256(folder / name) for name in missing}
        kept()
    return folder


def _trained(best: Path, config: TrainConfig) -> bool:
    """Whether these are the finished weights of this run. Raises TrainingError where they are another run's."""
    if not best.exists():
        return False
    try:
        weights = checkpoint.load(best)
    except checkpoint.NotRead:  # good weights, perhaps: they are not to be overwritten
        raise
    except CheckpointError as e:
        print(f"{e}: it is made again", flush=True)
        return False
    if told := differences(weights.recipe, dataclasses.asdict(config), FREE):
        raise TrainingError(f"{best} was trained with other settings ({told}): use those, or other --runs or --name")
    return bool(weights.metrics)  # without, the run was cut off before its last line


def _clips(config: TrainConfig, data: Path) -> str:
    """The data's fingerprint. Raises DataError."""
    try:
        return fingerprint(read_rows(data, esc10=config.classes == "esc10"))
    except OSError as e:
        raise DataError(f"{e.filename} is named in meta/esc50.csv but cannot be read ({e.strerror}): fetch it "
                        "again (python -m training.esc50), or check its permissions") from e  # fmt: skip


class _Clips:
    """How far a measurement is: a live line on a terminal, one plain line per tenth in a log."""

    def __init__(self, what: str) -> None:
        self.what, self.told, self.start = what, 0, time.monotonic()
        self.live = sys.stdout.isatty()

    def __call__(self, done: int, of: int) -> None:
        tenth = 10 * done // of
        if self.live or tenth > self.told:
            left = (time.monotonic() - self.start) / done * (of - done) / 60
            line = f"{self.what}: {done} of {of} clips, {left:.0f} min left"
            print(f"\r{line}\033[K" if self.live else line, end="\n" if not self.live or done == of else "", flush=True)
        self.told = tenth


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.crossval", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder of ESC-50's layout")
    parser.add_argument("--name", help="of the result; default: the recipe's")
    parser.add_argument("--folds", type=_folds, default=FOLDS, help="which to hold out; default: 1,2,3,4,5")
    parser.add_argument("--runs", type=Path, help="for weights and logs; default: runs/NAME")
    parser.add_argument("--out", type=Path, help="for the results; default: training/results/NAME")
    parser.add_argument("--no-robustness", action="store_true", help="measure clean clips only")
    configs.add_flags(parser)
    args = parser.parse_args(argv)
    try:
        if "fold" in args:
            raise ValueError(f"--fold is training.train's; here --folds {args.fold} holds out that one alone")
        config = configs.from_flags(args)
        name = args.name or config.recipe
        runs, out = args.runs or Path("runs") / name, args.out or RESULTS / name
        _writable(runs, "--runs")
        _writable(out, "--out")
        ours = {"config": dataclasses.asdict(config), "dataset": args.data.resolve().name, "data_sha256": None}
        same_settings(runs, ours)
        same_result(out, ours)
        rows = read_rows(args.data, esc10=config.classes == "esc10")
        for fold in args.folds:  # one that does not exist is reported now, not after the others
            in_folds(rows, [fold])
        _all(config, args.folds, args.data, runs, out, not args.no_robustness)
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, AudioError, DataError, OSError, TrainingError, CheckpointError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def _all(config: TrainConfig, folds: tuple[int, ...], data: Path, runs: Path, out: Path, robust: bool) -> None:
    elsewhere = elsewhere_measured(out, runs)
    for fold in folds:  # what a later one grows from is asked for now, too; what has begun needs it no more
        begun = [BEST, RESUME] if config.epochs else [BEST]
        if fold not in elsewhere and not any((runs / f"fold{fold}" / name).exists() for name in begun):
            parents(dataclasses.replace(config, fold=fold))
    for place, fold in enumerate(folds, start=1):
        print(f"fold {fold} held out, {place} of {len(folds)}", flush=True)
        before = read_record(runs / f"fold{fold}")
        if fold in elsewhere and not (runs / f"fold{fold}" / BEST).exists():
            lacks = robust and not elsewhere[fold]["robustness"]
            lacks = ", without robustness: another --out measures it here" if lacks else ""
            print(f"fold {fold} was measured on another machine and stays as {out} tells it{lacks}", flush=True)
        else:
            with _room_in(runs, "--runs"):
                run_fold(dataclasses.replace(config, fold=fold), data, runs, robust=robust)
        if place < len(folds) and before == read_record(runs / f"fold{fold}"):
            continue  # nothing new to tell
        with _room_in(out, "--out"):
            results = gather(runs, out)
        row = next(r for r in results["folds"] if r["fold"] == fold)
        low, high = (100 * x for x in row["interval"])
        print(f"fold {fold}: {100 * row['accuracy']:.2f} % of {row['n']} clips (95 % interval {low:.1f}-{high:.1f} %), "
              f"{row['seconds'] / 60:.0f} min", flush=True)  # fmt: skip
    if results["robustness"]:
        print(robustness.text(results["robustness"]))
    spread = f" +- {100 * results['std']:.2f}" if results["std"] is not None else ""
    missing = f" (missing: {', '.join(map(str, results['missing']))})" if results["missing"] else ""
    ten = f", ESC-10 {100 * results['esc10']['accuracy']:.2f} %" if results["esc10"]["n"] else ""
    print(f"mean {100 * results['mean']:.2f}{spread} % over {len(results['folds'])} folds{missing}{ten}: "
          f"{out / 'report.html'}")  # fmt: skip


def _folds(text: str) -> tuple[int, ...]:
    try:
        folds = tuple(dict.fromkeys(int(x) for x in text.split(",")))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"fold numbers with commas between them, like 1,2,5, not {text!r}") from e
    return folds


@contextmanager
def _room_in(folder: Path, flag: str) -> Iterator[None]:
    """Names the folder and the way out where writing there fails: a full disk's own error names nothing.

    Raises TrainingError, or OSError where a file elsewhere is at fault.
    """
    try:
        yield
    except OSError as e:
        if e.filename is not None and folder not in Path(e.filename).parents:
            raise
        raise NotWritten(f"{e.filename or folder}: {e.strerror or e}: check the room and the permissions there and "
                         f"give the same command again, or choose another {flag}") from e  # fmt: skip


def _writable(folder: Path, flag: str) -> None:
    """Raises TrainingError now, not after hours of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ".writable", b"?")
        (folder / ".writable").unlink()
    except OSError as e:
        raise TrainingError(f"{folder} cannot be written ({e.strerror}): choose another {flag}") from e


if __name__ == "__main__":
    sys.exit(main())
