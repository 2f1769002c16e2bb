"""How faithful the evidence is: the network hears what each method writes, over the clips of one fold and mixtures.

    python -m training.faithfulness --model best_model.pth --data DIR --fold 5 [--second OTHER.pth] [--limit 100]

What is heard is the sound that a person would hear: the mask laid over the original wave (cnn.spectrum.split), and the
whole front end again. With c the class named first in a sound X, E the evidence, R the remainder and f(.) the
probability of c (0 where nothing is left to hear), as L-MAC defines them (Paissan et al. 2024, arXiv 2403.13086):

    AI      100 * mean [f(E) > f(X)]                        average increase, higher is better
    AD      100 * mean max(0, f(X) - f(E)) / f(X)           average drop, lower is better
    AG      100 * mean max(0, f(E) - f(X)) / (1 - f(X))     average gain, higher is better
    FF      mean f(X) - f(R)                                faithfulness, higher is better
    Fid-In  mean [E is named c]                             input fidelity, higher is better

A mask can be sought that fools one network. So a second one, of other weights, may be asked about the same written
sound: its f(E) of the first one's c, and how often it names E as it names X.

With --json the sounds already heard are kept beside FILE, and the same command goes on from there.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn import cam, explain
from cnn.audio import SILENCE_DBFS, AudioError, Clip
from cnn.checkpoint import CheckpointError, find
from cnn.classifier import Classifier, Prediction
from cnn.perturbation import sought_mask
from cnn.spectrum import split
from training.data import DataError
from training.evaluate import check_place, clips_of, write_whole
from training.mixtures import Sound, clips, mixtures, si_sdr, window_of
from training.state import sha256

BASELINES = ("random", "energy")  # masks of the same area as those that were sought
TARGETS = {"AI": 62.0, "AD": 3.8, "FF": 0.40, "Fid-In": 0.82}  # AD at most, the others at least
PUBLISHED = {
    "L-MAC": {"AI": 61.62, "AD": 3.83, "AG": 33.48, "FF": 0.40, "Fid-In": 0.82},
    "L2I": {"AI": 6.75, "AD": 25.93, "AG": 1.25, "FF": 0.26, "Fid-In": 0.01},
}


# --- figures ---------------------------------------------------------------------------------------------------------


def figures(whole: np.ndarray, evidence: np.ndarray, remainder: np.ndarray, same: np.ndarray) -> dict[str, float]:
    """Probabilities of c in X, E and R, (n,) each, and whether E is named c -> AI, AD, AG, FF, Fid-In."""
    gain = evidence - whole
    return {
        "AI": 100 * float(np.mean(gain > 0)),
        "AD": 100 * float(np.mean(np.maximum(0, -gain) / whole)),
        "AG": 100 * float(np.mean(np.maximum(0, gain) / np.maximum(1 - whole, 1e-9))),
        "FF": float(np.mean(whole - remainder)),
        "Fid-In": float(np.mean(same)),
    }


# --- masks -----------------------------------------------------------------------------------------------------------


def methods(classifier: Classifier) -> list[str]:
    """The rows of the table: 'hirescam layer2', ..., 'perturbation', 'random', 'energy'."""
    maps = [f"{method} {tap}" for tap in cam.taps(classifier) for method in cam.METHODS]
    return [*maps, "perturbation", *BASELINES]


def masks(classifier: Classifier, said: Prediction, label: str, seed: int) -> dict[str, np.ndarray]:
    """By method the mask (F, T) that stands for the evidence for `label` in a clip of one window."""
    waveform, config = classifier.cut(said.clip)[0][0], classifier.mel
    frames = config.frames_within(said.clip.seconds)
    found = {}
    for name in methods(classifier)[: -len(BASELINES)]:
        method, _, tap = name.partition(" ")
        if method == "perturbation":
            mask = sought_mask(classifier, waveform, label, seed=seed)
            found[name] = np.where(np.arange(config.frames) < frames, mask, np.float32(0))
        else:
            values = cam.cam(classifier, waveform, tap, label, method=method)
            found[name] = explain.mask_of(values, classifier.model.taps[tap].stride, config, frames)
    sought = found["perturbation"]
    found["random"] = explain.random_masks(sought, frames, 1, np.random.default_rng([seed, 2]))[0]
    found["energy"] = loudest(said.mel, float(sought[:, :frames].mean()), frames)
    return found


def loudest(mel: np.ndarray, area: float, frames: int) -> np.ndarray:
    """dB (F, T) -> mask (F, T) of 0 and 1: the loudest cells, which make up `area` of the first `frames`."""
    inside = mel[:, :frames]
    chosen = np.zeros(inside.size, np.float32)
    chosen[np.argsort(-inside, axis=None, kind="stable")[: round(area * inside.size)]] = 1
    return np.pad(chosen.reshape(inside.shape), ((0, 0), (0, mel.shape[1] - frames)))


# --- measuring -------------------------------------------------------------------------------------------------------


def listen(classifier: Classifier, second: Classifier | None, sound: Sound, seed: int) -> dict[str, Any] | None:
    """All methods on one sound, as plain types; None where there is nothing to hear."""
    held = window_of(classifier, sound)
    if held is None:
        return None
    clip, frames = held.clip, classifier.mel.frames_within(held.clip.seconds)
    whole = classifier.predict(clip)
    label = whole.labels[0].name
    chosen = masks(classifier, whole, label, seed)
    parts = []
    for mask in chosen.values():
        parts += [Clip(p, clip.rate) for p in split(clip.samples, clip.rate, mask, classifier.mel)]
    said = classifier.predict_batch(parts)
    again = second.predict_batch([clip, *parts[::2]]) if second else []
    rows = {}
    for k, (name, mask) in enumerate(chosen.items()):
        evidence, remainder = said[2 * k : 2 * k + 2]
        rows[name] = {
            "area": float(mask[:, :frames].mean()),
            "evidence": evidence.probability(label),
            "remainder": remainder.probability(label),
            "same": named(evidence) == label,
            "unheard": int(not evidence.labels) + int(not remainder.labels),
        }
        if second:
            rows[name]["second"] = again[1 + k].probability(label)
            rows[name]["second_same"] = named(again[1 + k]) == named(again[0])
    answer = {"sound": sound.name, "label": label, "whole": whole.probability(label), "rows": rows}
    if second:
        answer["second"] = again[0].probability(label)
    if held.sources:
        answer |= _separation(classifier, held, whole, label, parts[::2], rows, seed)
    return answer


def _separation(
    classifier: Classifier,
    held: Sound,
    said: Prediction,
    label: str,
    evidence: Sequence[Clip],
    rows: dict[str, dict[str, Any]],
    seed: int,
) -> dict[str, Any]:
    """Adds to each row the SI-SDR of the evidence for source A against A and against B; A is the source whose class the
    network finds the more probable in the mixture. Where it names the mixture after neither, A's evidence is sought."""
    (name, a), (_, b) = sorted(held.sources, key=lambda source: -said.probability(source[0]))
    sounds = [clip.samples for clip in evidence]
    if name != label:
        others = masks(classifier, said, name, seed).values()
        sounds = [split(held.clip.samples, held.clip.rate, mask, classifier.mel)[0] for mask in others]
    for row, samples in zip(rows.values(), sounds, strict=True):
        row["sdr"] = [si_sdr(samples, a), si_sdr(samples, b)]
    return {"a": name, "sdr": [si_sdr(held.clip.samples, a), si_sdr(held.clip.samples, b)]}


def named(said: Prediction) -> str | None:
    return said.labels[0].name if said.labels else None


def measure(
    classifier: Classifier,
    data: Path,
    fold: int,
    *,
    second: Classifier | None = None,
    limit: int | None = None,
    mixed: int = 100,
    seed: int = 0,
    heard: Sequence[dict[str, Any]] = (),
    keep: Callable[[dict[str, Any]], None] = lambda answer: None,
) -> dict[str, Any]:
    """The tables of one fold as plain types (see `pool`). `heard`: answers of an earlier run that are not asked for
    again, whatever its `limit` and `mixed`; each new one is given to `keep`. Raises AudioError or DataError."""
    rows = sorted(clips_of(classifier, data, fold), key=lambda r: r.path.name)
    known = {(answer["kind"], answer["sound"]): answer for answer in heard}
    answers = []
    for kind, sounds in (("clean", clips(rows, limit, seed)), ("mixture", mixtures(rows, mixed, seed))):
        for sound in sounds:
            if (kind, sound.name) not in known:
                answer = listen(classifier, second, sound, seed) or {"sound": sound.name, "rows": {}}
                known[kind, sound.name] = {"kind": kind} | answer
                keep(known[kind, sound.name])
            answers.append(known[kind, sound.name])
    return {"fold": fold, "seed": seed, "tables": pool(answers), "answers": answers}


def pool(answers: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """'clean' and 'mixture' (where there are any) -> {sounds, silent: those in which there was nothing to hear, whole:
    mean f(X), rows}; a row has area, AI, AD, AG, FF, Fid-In, unheard (parts in which nothing was left to hear); with a
    second network second (its mean f(E)) and second Fid-In, and the table second (its mean f(X)); of mixtures SDR A,
    SDR B (means, dB) and A before B (share of the mixtures), and the table sdr of the mixtures themselves."""
    tables = {}
    for kind in ("clean", "mixture"):
        every = [a for a in answers if a["kind"] == kind]
        told = [a for a in every if a["rows"]]
        if not told:
            continue
        whole = np.array([a["whole"] for a in told])
        table = {"sounds": len(told), "silent": len(every) - len(told), "whole": float(whole.mean()), "rows": {}}
        if "second" in told[0]:
            table["second"] = float(np.mean([a["second"] for a in told]))
        if "sdr" in told[0]:
            table["sdr"] = np.mean([a["sdr"] for a in told], axis=0).tolist()
        for name in told[0]["rows"]:
            column = {key: np.array([a["rows"][name][key] for a in told]) for key in told[0]["rows"][name]}
            row = {"area": float(column["area"].mean())}
            row |= figures(whole, column["evidence"], column["remainder"], column["same"])
            row["unheard"] = int(column["unheard"].sum())
            if "second" in column:
                row |= {"second": float(column["second"].mean()), "second Fid-In": float(column["second_same"].mean())}
            if "sdr" in column:
                a, b = column["sdr"].T
                row |= {"SDR A": float(a.mean()), "SDR B": float(b.mean()), "A before B": float(np.mean(a > b))}
            table["rows"][name] = row
        tables[kind] = table
    return tables


def missed(row: dict[str, float]) -> list[str]:
    """The targets that a row of a table does not reach."""
    return [key for key, goal in TARGETS.items() if (row[key] > goal if key == "AD" else row[key] < goal)]


# --- words -----------------------------------------------------------------------------------------------------------

COLUMNS = {"area": ".2f", "AI": ".1f", "AD": ".1f", "AG": ".1f", "FF": ".2f", "Fid-In": ".2f", "second": ".2f",
           "second Fid-In": ".2f", "SDR A": ".1f", "SDR B": ".1f", "A before B": ".2f"}  # fmt: skip


def text(tables: dict[str, dict[str, Any]]) -> str:
    """The tables as lines for people."""
    lines = []
    for kind, table in tables.items():
        what = "clips as they are" if kind == "clean" else "mixtures of two clips at 0 dB"
        mean = f"mean f(X) {table['whole']:.2f}"
        if "second" in table:
            mean += f", second network's {table['second']:.2f}"
        if "sdr" in table:
            mean += ", SDR of the mixture itself {:.1f} and {:.1f} dB".format(*table["sdr"])
        lines.append(f"{table['sounds']} {what}: {mean}")
        keys = [key for key in COLUMNS if key in next(iter(table["rows"].values()))]
        heads = {"second": "2nd f(E)", "second Fid-In": "2nd Fid-In", "A before B": "A > B"}
        lines.append(f"{'method':<18}" + "".join(f"{heads.get(key, key):>12}" for key in keys))
        for name, row in table["rows"].items():
            lines.append(f"{name:<18}" + "".join(f"{row[key]:>12{COLUMNS[key]}}" for key in keys))
        reached = [name for name, row in table["rows"].items() if not missed(row)]
        lines.append(f"all of {_goals()}: {', '.join(reached) or 'none'}")
        unheard = {name: row["unheard"] for name, row in table["rows"].items() if row["unheard"]}
        if unheard:
            told = ", ".join(f"{name} {count}" for name, count in unheard.items())
            lines.append(f"parts below {SILENCE_DBFS:g} dBFS, in which nothing is heard and f is 0: {told}")
        lines.append("")
    for name, values in PUBLISHED.items():
        told = ", ".join(f"{key} {value:g}" for key, value in values.items())
        lines.append(f"published for {name} (CNN14, other mixtures): {told}")
    return "\n".join(lines)


def _goals() -> str:
    return ", ".join(f"{key} {'<=' if key == 'AD' else '>='} {goal:g}" for key, goal in TARGETS.items())


# --- the command -----------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.faithfulness", description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="best_model.pth; default: the network in the box")
    parser.add_argument("--second", help="best_model.pth of another network that hears the same evidence")
    parser.add_argument("--data", type=Path, required=True, help="a folder of ESC-50's layout")
    parser.add_argument("--fold", type=int, default=5)
    parser.add_argument("--limit", type=int, help="only so many clips of the fold; 0: none, the mixtures only")
    parser.add_argument("--mixtures", type=int, default=100, help="of two clips of the fold; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of the clips drawn, the mixtures and the masks")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="also write the tables there, with every sound's answers")
    args = parser.parse_args(argv)
    try:
        if min(args.mixtures, args.limit or 0, args.seed) < 0:
            raise ValueError("--limit, --mixtures and --seed must be 0 or more")
        path = find(args.model)
        classifier = Classifier.open(path, args.device)
        second = Classifier.open(args.second, args.device) if args.second else None
        for network in filter(None, (classifier, second)):
            if args.fold in network.checkpoint.provenance.get("folds_trained_on", []):
                print(f"warning: {network.path} was trained on fold {args.fold}; this says nothing about new sounds")
        if second and (unknown := set(classifier.labels) - set(second.labels)):
            raise ValueError(f"the second network does not know {', '.join(sorted(unknown)[:3])}: choose another")
        heard, keep = _kept(args, classifier, second) if args.json else ([], lambda answer: None)
        begin, before = time.perf_counter(), len(heard)

        def tell(answer: dict[str, Any]) -> None:
            keep(answer)
            heard.append(answer)
            if sys.stderr.isatty():
                each = (time.perf_counter() - begin) / (len(heard) - before)
                print(f"\r{len(heard)} sounds, {each:.1f} s each", end="", file=sys.stderr, flush=True)

        table = measure(classifier, args.data, args.fold, second=second, limit=args.limit, mixed=args.mixtures,
                        seed=args.seed, heard=tuple(heard), keep=tell)  # fmt: skip
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the progress line ends
        print(f"{path}, fold {args.fold}\n{text(table['tables'])}")
        if args.json:
            write_whole(args.json, (json.dumps(table) + "\n").encode())
            _part(args.json).unlink(missing_ok=True)
    except (AudioError, CheckpointError, DataError, OSError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _kept(
    args: argparse.Namespace, classifier: Classifier, second: Classifier | None
) -> tuple[list[dict[str, Any]], Callable[[dict[str, Any]], None]]:
    """What an interrupted run with the same arguments heard, and how to keep more: a line of JSON for each sound after
    one that says what made them. Raises OSError, ValueError where the file beside FILE is another run's."""
    digests = [sha256(c.path) if c else None for c in (classifier, second)]
    data = str(args.data.resolve())
    made_by = json.dumps({"networks": digests, "data": data, "fold": args.fold, "seed": args.seed,
                          "methods": methods(classifier)})  # fmt: skip
    check_place(args.json)
    path = _part(args.json)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and lines[0].rstrip("\n") != made_by:
        raise ValueError(f"{path} is of other networks, data, fold, seed or table: delete it or name another FILE")
    whole = [line for line in lines if line.endswith("\n")]  # the last one may have been cut off
    path.write_text("".join(whole or [made_by + "\n"]))

    def keep(answer: dict[str, Any]) -> None:
        with path.open("a") as file:
            file.write(json.dumps(answer) + "\n")

    return [json.loads(line) for line in whole[1:]], keep


if __name__ == "__main__":
    sys.exit(main())
