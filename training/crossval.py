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
import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnn import checkpoint
from cnn.audio import AudioError
from cnn.checkpoint import Checkpoint, CheckpointError
from cnn.classifier import Classifier
from training import config as configs
from training import figures, robustness
from training.config import TrainConfig, differences
from training.data import DataError, in_folds, read_rows
from training.evaluate import answers, recompute, write_predictions, write_whole
from training.logs import Logger, TensorBoard
from training.report import page
from training.state import FREE, NotWritten, TrainingError, alone_in, fingerprint
from training.train import train

FOLDS = (1, 2, 3, 4, 5)
RESULTS = Path(__file__).resolve().parent / "results"
BEST, RESUME, RECORD = "best_model.pth", "resume.pt", "fold.json"
PREDICTIONS, ROBUSTNESS, RESULT, CURVES = "predictions.csv", "robustness.json", "results.json", "curves.json"
DRAWN = ("train/loss", "train/accuracy", "inner/loss", "inner/accuracy", "lr")  # as training curves
POINTS = 250  # of each, as many as the picture can show
BEGUN = ("dataset", "config", "data_sha256")  # what makes folds comparable, of fold.json
OF_A_FOLD = ("seconds", "sha256", "commit")  # of results.json's rows, beside the figures


# --- one fold --------------------------------------------------------------------------------------------------------


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
    _same_settings(runs, begun)
    folder.mkdir(parents=True, exist_ok=True)
    record = begun | {"fold": config.fold, "seconds": 0.0, "files": {}} | _read_record(folder)
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
    if not _whole(folder, record, BEST):
        if BEST in record["files"]:
            print(f"{best} is not the file that was measured: it is measured again", flush=True)
        record["files"] = {BEST: sha256(best)}
    missing = [n for n in (PREDICTIONS, *[ROBUSTNESS] * robust) if not _whole(folder, record, n)]
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


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _trained(best: Path, config: TrainConfig) -> bool:
    """Whether these are the finished weights of this run. Raises TrainingError where they are another run's."""
    if not best.exists():
        return False
    try:
        weights = checkpoint.load(best)
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
        raise DataError(f"{e.filename} is named in meta/esc50.csv but cannot be read ({e.strerror})") from e


def _same_settings(runs: Path, ours: dict[str, Any]) -> None:
    """Raises TrainingError where a fold in `runs` has other settings or data: they would not make one result.

    `ours`: `config`, `dataset` and `data_sha256` as in fold.json, whose older ones lack the last.
    """
    for folder in _folders(runs):
        record = _read_record(folder)
        told = differences(record["config"], ours["config"], (*FREE, "fold"))
        if record["dataset"] != ours["dataset"]:
            told = f"{told}, " * bool(told) + f"data {record['dataset']!r} -> {ours['dataset']!r}"
        elif len({record.get("data_sha256"), ours.get("data_sha256")} - {None}) > 1:
            told = f"{told}, " * bool(told) + f"clips, folds or classes of {ours['dataset']!r}"
        if told:
            raise TrainingError(f"{folder} has other settings ({told}): use those, or other --runs or --name")


def _folders(runs: Path) -> list[Path]:
    """The folds begun in `runs`, by number; what people keep beside them, a copied fold1-old say, is none."""
    found = [p.parent for p in runs.glob(f"fold*/{RECORD}") if re.fullmatch("fold[0-9]+", p.parent.name)]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("fold")))


def _read_record(folder: Path) -> dict[str, Any]:
    """What fold.json says; nothing where there is none."""
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
        needed = {key: record[key] for key in ("fold", "dataset", "config", "seconds", "files")}
        return needed | {key: record[key] for key in ("data_sha256",) if key in record}
    except (KeyError, TypeError, ValueError) as e:
        raise TrainingError(f"{path} is damaged: delete it, and the fold is measured again") from e


def _whole(folder: Path, record: dict[str, Any], name: str) -> bool:
    return (folder / name).is_file() and record["files"].get(name) == sha256(folder / name)


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


# --- all folds -------------------------------------------------------------------------------------------------------


def gather(runs: Path, out: Path) -> dict[str, Any]:
    """What the measured folds in `runs`, and those that `out` tells of besides, say together: written to `out`, and
    returned as in results.json.

    Some of the folds are legal: `missing` names the others. Beside `recompute`'s figures (`std`: sample standard
    deviation over folds) `seconds` of training and measuring, as far as known; `robustness`: the folds' tables pooled,
    without the clips' outcomes, or None; `commit`, `config`, `versions` ... of the runs. Raises TrainingError,
    DataError, CheckpointError or OSError.
    """
    records = {folder: _read_record(folder) for folder in _folders(runs)}
    records = {folder: record for folder, record in records.items() if PREDICTIONS in record["files"]}
    weights: dict[Path, Checkpoint] = {}
    for folder, record in records.items():
        if changed := [name for name in record["files"] if not _whole(folder, record, name)]:
            raise TrainingError(f"{folder / changed[0]} is not what was measured: run training.crossval again")
        weights[folder] = checkpoint.load(folder / BEST)
    measured = {record["fold"]: _measured(folder, record, weights[folder]) for folder, record in records.items()}
    told = next(({k: m[k] for k in BEGUN} for m in measured.values() if m["data_sha256"]), None)
    if measured:
        _same_settings(runs, told or next(iter(measured.values())))
    elsewhere = _elsewhere(out, runs)
    if elsewhere and told:
        _same_result(out, told)
    measured = dict(sorted((elsewhere | measured).items()))
    if not measured:
        raise TrainingError(f"{runs} holds no measured fold: run training.crossval first")
    first = next(iter(measured.values()))
    out.mkdir(parents=True, exist_ok=True)

    tables = [m["predictions"] for m in measured.values()]
    write_whole(out / PREDICTIONS, "".join([tables[0][0], *(line for t in tables for line in t[1:])]).encode())
    figured = recompute(out / PREDICTIONS)
    for row in figured["folds"]:
        row |= {name: measured[row["fold"]][name] for name in OF_A_FOLD}
    if robust := [m["robustness"] for m in measured.values() if m["robustness"]]:
        pooled = robustness.pool(robust)
        write_whole(out / ROBUSTNESS, (json.dumps(pooled) + "\n").encode())
    else:
        pooled = None
        (out / ROBUSTNESS).unlink(missing_ok=True)  # an earlier result's
    curves = {fold: m["curves"] for fold, m in measured.items()}
    write_whole(out / CURVES, f"{_json({str(fold): tags for fold, tags in curves.items()})}\n".encode())

    config = {k: v for k, v in first["config"].items() if k != "fold"}
    results = {
        "name": out.resolve().name,
        "dataset": first["dataset"],
        "recipe": config["recipe"],
        **figured,
        "std_is": "sample standard deviation of the folds' accuracies",
        "missing": sorted(set().union(*(m["every"] for m in measured.values())) - {*measured}),
        "robustness": _without_clips(pooled),
        "network": first["network"],
        "commit": ", ".join(sorted({row["commit"] for row in figured["folds"]})),
        "config": config,
        "seconds": round(sum(row["seconds"] for row in figured["folds"]), 1),
        "data": first["data"],
        "data_sha256": told["data_sha256"] if told else first["data_sha256"],
        "licence": first["licence"],
        "versions": first["versions"],
        "warnings": sorted({w for m in measured.values() for w in m["warnings"]}),
    }
    write_whole(out / RESULT, f"{_json(results)}\n".encode())
    pictures = _pictures(results, curves)
    for name, png in pictures.items():
        write_whole(out / f"{name}.png", png)
    write_whole(out / "report.html", page(results, pictures).encode())
    return results


def _measured(folder: Path, record: dict[str, Any], weights: Checkpoint) -> dict[str, Any]:
    """All that is told of a fold, from its folder."""
    origin = weights.provenance
    return {
        **{name: record.get(name) for name in BEGUN},
        "seconds": round(record["seconds"], 1),
        "sha256": record["files"][BEST],
        "commit": origin["commit"],
        "every": {origin["fold_held_out"], *origin["folds_trained_on"]},  # the folds there are
        "network": _network(weights),
        "data": origin["data"],
        "licence": origin["licence"],
        "versions": origin["versions"],
        "warnings": origin.get("warnings", []),
        "predictions": (folder / PREDICTIONS).read_text(encoding="utf-8").splitlines(keepends=True),
        "robustness": _conditions_of_today(folder / ROBUSTNESS) if ROBUSTNESS in record["files"] else None,
        "curves": _curves(folder / "tensorboard_logs"),
    }


def _elsewhere(out: Path, runs: Path) -> dict[int, dict[str, Any]]:
    """All that `out` tells of folds that were not begun in `runs`, as `_measured` tells it; nothing where it is empty.

    Raises TrainingError where its files are damaged or do not belong together.
    """
    here = {int(folder.name.removeprefix("fold")) for folder in _folders(runs)}
    told = _read_result(out)
    rows = {row["fold"]: row for row in told.get("folds", []) if row["fold"] not in here}
    if not rows:
        return {}
    try:
        head, *lines = (out / PREDICTIONS).read_text(encoding="utf-8").splitlines(keepends=True)
        fold_of = {line.split(",")[0]: int(line.split(",")[1]) for line in lines}
        curves = json.loads((out / CURVES).read_text()) if (out / CURVES).exists() else {}
        table = _conditions_of_today(out / ROBUSTNESS) if told["robustness"] else None
        shared = {name: told[name] for name in ("dataset", "config", "data_sha256", "network", "data", "licence",
                                                "versions", "warnings")}  # fmt: skip
        found = {}
        for fold, row in rows.items():
            found[fold] = shared | {name: row[name] for name in OF_A_FOLD} | {
                "every": {*told["missing"], *(r["fold"] for r in told["folds"])},
                "predictions": [head, *(line for line in lines if fold_of[line.split(",")[0]] == fold)],
                "robustness": robustness.part(table, fold, fold_of) if table else None,
                "curves": curves.get(str(fold), {}),
            }  # fmt: skip
            if len(found[fold]["predictions"]) != row["n"] + 1:
                raise ValueError(f"it has other clips of fold {fold} than {PREDICTIONS}")
    except (OSError, KeyError, TypeError, ValueError, IndexError) as e:
        raise TrainingError(f"{out / RESULT} cannot be gone on from ({e}): restore the folder, or choose another --out "
                            "or --name") from e  # fmt: skip
    return found


def _read_result(out: Path) -> dict[str, Any]:
    """What results.json in `out` says; nothing where there is none. Raises TrainingError."""
    path = out / RESULT
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return told | {"folds": [{**row} for row in told["folds"]]}
    except (OSError, KeyError, TypeError, ValueError) as e:
        raise TrainingError(f"{path} is damaged: restore it, delete it, or choose another --out or --name") from e


def _same_result(out: Path, ours: dict[str, Any]) -> None:
    """Raises TrainingError where the folds that `out` tells of have other settings or data than `ours`."""
    told = _read_result(out)
    if not told:
        return
    changed = differences(told["config"], ours["config"], (*FREE, "fold"))
    if told["dataset"] != ours["dataset"] or len({told.get("data_sha256"), ours["data_sha256"]} - {None}) > 1:
        changed = f"{changed}, " * bool(changed) + f"data {told['dataset']!r} -> {ours['dataset']!r}"
    if changed:
        raise TrainingError(f"{out} holds folds of other settings ({changed}): use those, or choose another --out or "
                            "--name")  # fmt: skip


def _pictures(results: dict[str, Any], curves: dict[int, dict[str, Any]]) -> dict[str, bytes]:
    """PNG by name; of the training curves only where a run left its log."""
    drawn = {"confusion": figures.confusion_matrix(results["confusion"], results["labels"])}
    if results["ece"] is not None:
        drawn["reliability"] = figures.reliability_diagram(results["reliability"], results["ece"])
    if logs := {fold: tags for fold, tags in curves.items() if "train/loss" in tags}:
        drawn["curves"] = figures.training_curves(logs)
    return {name: figures.png(figure) for name, figure in drawn.items()}


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(epoch, value)]} of TensorBoard's event files; what an interrupted run logged too much is left out."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not folder.is_dir():
        return {}
    log = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()[SCALARS]}


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What figures.training_curves draws of a log, at most POINTS of each tag, the last one among them."""
    tags = {tag: points for tag, points in _scalars(folder).items() if tag in DRAWN}
    thin = {tag: points[:: -math.ceil(len(points) / POINTS)][::-1] for tag, points in tags.items() if points}
    return {tag: [(epoch, float(f"{value:.5g}")) for epoch, value in points] for tag, points in thin.items()}


def _network(weights: Checkpoint) -> str:
    """'resnet34, width 32, 5.3 M parameters, 16 kHz'."""
    kilohertz = weights.mel.sample_rate / 1000
    groups = f" in {weights.model.groups} groups" if weights.model.groups > 1 else ""
    name = f"{weights.model.name}, width {weights.model.width}{groups}"
    return f"{name}, {weights.parameter_count / 1e6:.1f} M parameters, {kilohertz:g} kHz"


def _conditions_of_today(path: Path) -> dict[str, Any]:
    """A robustness table. Raises TrainingError where it was measured under other conditions than today's."""
    table = json.loads(path.read_text())
    if list(table["rows"]) != list(robustness.CONDITIONS):
        raise TrainingError(f"{path} was measured under other conditions: delete it, run training.crossval again")
    return table


def _without_clips(table: dict[str, Any] | None) -> dict[str, Any] | None:
    """The table without what is in robustness.json only: the clips' names and each one's outcome."""
    if table is None:
        return None
    rows = {name: {k: v for k, v in row.items() if k != "hits"} for name, row in table["rows"].items()}
    return {k: v for k, v in table.items() if k != "files"} | {"rows": rows}


def _json(value: Any, indent: str = "") -> str:
    """JSON with a line per entry, and per row of a table: for people and for version control."""
    deeper = f"{indent} "
    if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
        (first, last), parts = "{}", [f"{json.dumps(k)}: {_json(v, deeper)}" for k, v in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], list | dict):
        (first, last), parts = "[]", [json.dumps(row) for row in value]
    else:
        return json.dumps(value)
    return f"{first}\n" + ",\n".join(f"{deeper}{part}" for part in parts) + f"\n{indent}{last}"


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
        _same_settings(runs, ours)
        _same_result(out, ours)
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
    elsewhere = _elsewhere(out, runs)
    for place, fold in enumerate(folds, start=1):
        print(f"fold {fold} held out, {place} of {len(folds)}", flush=True)
        before = _read_record(runs / f"fold{fold}")
        if fold in elsewhere:
            lacks = robust and not elsewhere[fold]["robustness"]
            lacks = ", without robustness: another --out measures it here" if lacks else ""
            print(f"fold {fold} was measured on another machine and stays as {out} tells it{lacks}", flush=True)
        else:
            with _room_in(runs, "--runs"):
                run_fold(dataclasses.replace(config, fold=fold), data, runs, robust=robust)
        if place < len(folds) and before == _read_record(runs / f"fold{fold}"):
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
