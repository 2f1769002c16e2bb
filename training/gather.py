"""What the folds of a cross-validation leave behind, and what they say together (training.crossval).

A fold's folder holds its weights, what was measured of them, and fold.json, which says of which settings, data and
files that is. `gather` makes results.json, predictions.csv, robustness.json, curves.json, pictures and report.html.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from cnn import checkpoint
from cnn.checkpoint import Checkpoint
from training import figures, robustness
from training.config import differences, each_of
from training.evaluate import recompute, write_whole
from training.report import page
from training.state import FREE, TrainingError, sha256

BEST, RESUME, RECORD = "best_model.pth", "resume.pt", "fold.json"
PREDICTIONS, ROBUSTNESS, RESULT, CURVES = "predictions.csv", "robustness.json", "results.json", "curves.json"
DRAWN = ("train/loss", "train/accuracy", "inner/loss", "inner/accuracy", "lr")  # as training curves
POINTS = 250  # of each, as many as the picture can show
BEGUN = ("dataset", "config", "data_sha256")  # what makes folds comparable, of fold.json
OF_A_FOLD = ("seconds", "sha256", "commit")  # of results.json's rows, beside the figures


# --- one fold's folder -----------------------------------------------------------------------------------------------


def same_settings(runs: Path, ours: dict[str, Any]) -> None:
    """Raises TrainingError where a fold in `runs` has other settings or data: they would not make one result.

    `ours`: `config`, `dataset` and `data_sha256` as in fold.json, whose older ones lack the last.
    """
    for folder in folders_in(runs):
        record = read_record(folder)
        told = differences(record["config"], ours["config"], (*FREE, "fold"))
        if record["dataset"] != ours["dataset"]:
            told = f"{told}, " * bool(told) + f"data {record['dataset']!r} -> {ours['dataset']!r}"
        elif len({record.get("data_sha256"), ours.get("data_sha256")} - {None}) > 1:
            told = f"{told}, " * bool(told) + f"clips, folds or classes of {ours['dataset']!r}"
        if told:
            raise TrainingError(f"{folder} has other settings ({told}): use those, or other --runs or --name")


def folders_in(runs: Path) -> list[Path]:
    """The folds begun in `runs`, by number; what people keep beside them, a copied fold1-old say, is none."""
    found = [p.parent for p in runs.glob(f"fold*/{RECORD}") if re.fullmatch("fold[0-9]+", p.parent.name)]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("fold")))


def read_record(folder: Path) -> dict[str, Any]:
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


def is_whole(folder: Path, record: dict[str, Any], name: str) -> bool:
    return (folder / name).is_file() and record["files"].get(name) == sha256(folder / name)


# --- all folds -------------------------------------------------------------------------------------------------------


def gather(runs: Path, out: Path) -> dict[str, Any]:
    """What the measured folds in `runs`, and those that `out` tells of besides, say together: written to `out`, and
    returned as in results.json.

    Some of the folds are legal: `missing` names the others. Beside `recompute`'s figures (`std`: sample standard
    deviation over folds) `seconds` of training and measuring, as far as known; `robustness`: the folds' tables pooled,
    without the clips' outcomes, or None; `commit`, `config`, `versions` ... of the runs. Raises TrainingError,
    DataError, CheckpointError or OSError.
    """
    records = {folder: read_record(folder) for folder in folders_in(runs)}
    records = {folder: record for folder, record in records.items() if PREDICTIONS in record["files"]}
    weights: dict[Path, Checkpoint] = {}
    for folder, record in records.items():
        if changed := [name for name in record["files"] if not is_whole(folder, record, name)]:
            raise TrainingError(f"{folder / changed[0]} is not what was measured: run training.crossval again")
        weights[folder] = checkpoint.load(folder / BEST)
    measured = {record["fold"]: _measured(folder, record, weights[folder]) for folder, record in records.items()}
    told = next(({k: m[k] for k in BEGUN} for m in measured.values() if m["data_sha256"]), None)
    if measured:
        same_settings(runs, told or next(iter(measured.values())))
    elsewhere = elsewhere_measured(out, runs)
    if elsewhere and told:
        same_result(out, told)
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


def elsewhere_measured(out: Path, runs: Path) -> dict[int, dict[str, Any]]:
    """All that `out` tells of folds that are not measured in `runs`, as `_measured` does; nothing where it is empty.

    Raises TrainingError where its files are damaged or do not belong together.
    """
    records = [read_record(folder) for folder in folders_in(runs)]
    here = {record["fold"] for record in records if PREDICTIONS in record["files"]}
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


def same_result(out: Path, ours: dict[str, Any]) -> None:
    """Raises TrainingError where the folds that `out` tells of have other settings or data than `ours`.

    Where the networks lay that they have grown from may differ, on another machine that is another folder; how they
    were put together may not.
    """
    told = _read_result(out)
    if not told:
        return
    anywhere = [c | {"widen": each_of(c.get("widen", ""), lambda _: "PATH")} for c in (told["config"], ours["config"])]
    changed = differences(*anywhere, (*FREE, "fold"))
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
