"""The model card of a checkpoint: what it is, how it came about, how good it is and what it cannot do, from its own
words. The card stands between two marks in the repository's README.md; what people write around them stays.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cnn.checkpoint import Checkpoint
from cnn.labels import spoken
from cnn.model import ModelConfig
from training.config import RECIPES, YOUNG, differences, make
from training.state import FREE, sha256

BEGIN = "<!-- audio-cnn: the lines up to the closing mark are generated from best_model.pth and replaced with it -->"
END = "<!-- audio-cnn: end of what is generated -->"
# what the Hub reads; the identifier of the licence is one of its list
FRONT_MATTER = """---
license: cc-by-nc-3.0
pipeline_tag: audio-classification
tags:
  - audio-classification
  - esc-50
  - pytorch
metrics:
  - accuracy
---

"""
SAID = ("recipe", "epochs", "seed", "fold", "width", "widen", *FREE)  # settings told elsewhere, or of no matter
CONFIG_PARTS = ("labels", "calibration", "metrics", "recipe", "provenance")


class CardError(ValueError):
    """README.md or results.json do not fit; the message says which and the way out."""


def readme(existing: str, card: str, repo: str) -> str:
    """The repository's README.md with the card in it; everything outside the marks stays to the letter.

    Without marks the card is appended; front matter comes first where there is none. Raises CardError where the marks
    are damaged.
    """
    generated = f"{BEGIN}\n{card.strip()}\n{END}"
    if not existing.strip():
        return f"{FRONT_MATTER}# {repo.split('/')[-1]}\n\n{generated}\n"
    if BEGIN in existing or END in existing:
        before, _, rest = existing.partition(BEGIN)
        _, _, after = rest.partition(END)
        if (existing.count(BEGIN), existing.count(END), rest.count(END)) != (1, 1, 1):
            raise CardError(f"README.md in {repo} must hold each of the lines {BEGIN} and {END} once, in this order: "
                            "repair it there, or delete both")  # fmt: skip
        text = before + generated + after
    else:
        text = f"{existing.rstrip()}\n\n{generated}\n"
    return text if re.match(r"\ufeff?---\s*\n", text) else FRONT_MATTER + text


def configuration(checkpoint: Checkpoint) -> dict[str, Any]:
    """All of the file but its weights, as plain types for json."""
    parts = {"model": dataclasses.asdict(checkpoint.model), "mel": dataclasses.asdict(checkpoint.mel)}
    return parts | {name: getattr(checkpoint, name) for name in CONFIG_PARTS}


def card(checkpoint: Checkpoint, path: Path, repo: str, results: dict[str, Any] | None = None) -> str:
    """Markdown about `path`, which holds `checkpoint`; `results`: a results.json of training.crossval.

    Raises CardError where the results are of other settings than the file.
    """
    results = results or {}
    if results:
        _check_same_settings(checkpoint.recipe, results)
    robustness = results.get("robustness") or checkpoint.metrics.get("robustness") or {}
    parts = [
        _summary(checkpoint, path),
        _accuracy(checkpoint.metrics, results),
        _robustness(robustness),
        _limits(checkpoint, measured=bool(robustness), folds=len(results.get("folds", ()))),
        _use(repo),
        _licence(),
    ]
    return "\n\n".join(filter(None, parts))


def _check_same_settings(recipe: dict[str, Any], results: dict[str, Any]) -> None:
    theirs = results.get("config")
    if not isinstance(theirs, dict):
        raise CardError("the results name no configuration: give a results.json of python -m training.crossval")
    if told := differences(recipe, theirs, ("fold", *FREE)):
        raise CardError(f"the results are of other settings than the checkpoint ({told}): give those of the same run")


def _summary(checkpoint: Checkpoint, path: Path) -> str:
    mel, source, recipe = checkpoint.mel, checkpoint.provenance, checkpoint.recipe
    level = f"dB below the window's own maximum, floor {mel.floor_db:g}" if mel.relative else "absolute dB"
    rows = [
        ("network", _network(checkpoint)),
        ("input", f"{mel.seconds:g} s at {mel.sample_rate / 1000:g} kHz; {mel.n_mels} mel bins, {mel.f_min:g}-"
                  f"{mel.f_max:g} Hz, FFT {mel.n_fft}, window {mel.win_length}, hop {mel.hop_length}; {level}"),
        ("names", f"{len(checkpoint.labels)} classes of ESC-50, by their English names"),
        ("data", source.get("data", "not recorded")),
    ]  # fmt: skip
    if "folds_trained_on" in source:
        folds = ", ".join(map(str, source["folds_trained_on"]))
        held_out = f"fold {source.get('fold_held_out')} was held out, and nothing in the run was chosen on it"
        rows.append(("trained on", f"folds {folds}; {held_out}"))
    rows += _grown(source.get("grown_from", ()), "grown from")
    if recipe:
        rows.append(("recipe", f"{_run(recipe)}; every setting is in `config.json`"))
    if source.get("warnings"):
        rows.append(("departures", "; ".join(source["warnings"])))
    if "commit" in source:
        rows.append(("made by", f"commit `{source['commit']}` on {source.get('date')}"))
    size, digest = path.stat().st_size / 1e6, sha256(path)
    rows.append(("file", f"`best_model.pth`, {size:.1f} MB, weights and plain values only, sha256 `{digest}`"))
    name = f"{checkpoint.model.title}, {mel.sample_rate / 1000:g} kHz"
    return f"## {_cell(name)}\n\nNames everyday sounds. **For non-commercial use.**\n\n{_table(('', ''), rows)}"


def _grown(origins: Sequence[dict[str, Any]], how: str) -> Iterator[tuple[str, str]]:
    """A row for every network that went before, and after it those that it had grown from itself."""
    groups = _groups(origins)
    for group, origin in zip(groups, origins, strict=True):
        before, parts, shared = origin.get("recipe") or {}, len({*groups}), groups.count(group)
        told = f"part {group + 1} of {parts}: " * (parts > 1)
        told += f"one of {shared} whose weights' mean it is: " * (shared > 1)
        made = f"a {before.get('model')} of width {before.get('width')} that had not learned from that fold either"
        run = f"{_run(before)}, commit `{origin.get('commit')}`"
        yield how, f"{told}{made}: {run}, sha256 `{origin.get('sha256')}`"
        yield from _grown(origin.get("grown_from", ()), "which was grown from")


def _groups(origins: Sequence[dict[str, Any]]) -> list[int]:
    """Which of the networks side by side each became a part of; older files do not say, there each became one."""
    return [origin.get("group", place) for place, origin in enumerate(origins)]


def _run(recipe: dict[str, Any]) -> str:
    """The preset, what was set otherwise, and for how long."""
    name = recipe.get("recipe")
    preset = dataclasses.asdict(make(name)) if name in RECIPES else {}
    recipe = YOUNG | recipe
    other = [k for k in sorted(preset.keys() & recipe.keys() - {*SAID}) if recipe[k] != preset[k]]
    told = f"`{name}`" + (f" with {', '.join(f'{k} {recipe[k]}' for k in other)}" if other else "")
    if not recipe.get("epochs"):
        return f"{told}, no training of its own"
    return f"{told}, at most {recipe['epochs']} epochs, seed {recipe.get('seed')}"


def _network(checkpoint: Checkpoint) -> str:
    model: ModelConfig = checkpoint.model
    widths = f"{model.width}-{model.width * 2 ** (len(model.depths) - 1)} channels"
    extras = [f" in {model.groups} groups that share nothing"] * (model.groups > 1)
    extras += [", squeeze-and-excitation"] * model.se
    extras += [f", feature pyramid of {model.fpn_channels} channels"] * bool(model.fpn_channels)
    count = sum(tensor.numel() for name, tensor in checkpoint.state_dict.items() if "running_" not in name)
    groups = _groups(checkpoint.provenance.get("grown_from", ()))
    earlier, means = len({*groups}), len(groups) > len({*groups})
    origin = "grown from " + ("an earlier one" if earlier == 1 else f"{earlier} earlier ones side by side")
    origin += " (where it says so, the mean of the weights of several)" if means else ""
    origin += " and trained on" if checkpoint.recipe.get("epochs") else ""
    return (
        f"{model.name}: a residual network, {'-'.join(map(str, model.depths))} blocks, "
        f"{widths}{''.join(extras)}; {count / 1e6:.3g} M parameters, {origin if earlier else 'trained from scratch'}"
    )


def _accuracy(metrics: dict[str, Any], results: dict[str, Any]) -> str:
    lines = ["## How good it is"]
    if {"fold", "clips", "accuracy", "interval", "correct_top3"} <= metrics.keys():
        low, high = (100 * x for x in metrics["interval"])
        lines.append(
            f"**{100 * metrics['accuracy']:.2f} %** of the {metrics['clips']} clips of fold {metrics['fold']} (95 % "
            f"interval {low:.1f}-{high:.1f} %), {100 * metrics['correct_top3'] / metrics['clips']:.2f} % among the "
            "first three: measured on this very file. Chance is 2 % for 50 classes; human listeners reach 81.3 % on "
            "ESC-50 (Piczak 2015)."
        )
    else:
        lines.append("No accuracy is recorded in this file.")
    if hardest := sorted(metrics.get("per_class", {}).items(), key=lambda item: item[1])[:6]:
        lines.append(f"Hardest: {', '.join(f'{spoken(name)} {100 * share:.0f} %' for name, share in hardest)}.")
    if results:
        spread = "" if results["std"] is None else f", standard deviation {100 * results['std']:.2f} points"
        lines.append(
            f"The same settings on {len(results['folds'])} folds of {_cell(results['dataset'])}, each held out once: "
            f"**{100 * results['mean']:.2f} %** on average{spread}."
        )
        rows = [(f["fold"], f["n"], f"{100 * f['accuracy']:.2f} %") for f in results["folds"]]
        lines.append(_table(("fold", "clips", "accuracy"), rows))
    return "\n\n".join(lines)


def _robustness(table: dict[str, Any]) -> str:
    if not table:
        return ""
    rows = []
    for name, row in table["rows"].items():
        low, high = (100 * x for x in row["interval"])
        lost = "" if name == "clean" else f"{-row['loss'] or 0.0:+.2f}"
        rows.append((name, f"{100 * row['accuracy']:.2f} %", f"{low:.1f}-{high:.1f} %", lost))
    clips = next(iter(table["rows"].values()))["clips"]
    return (
        f"## Outside clean clips\n\nThe {clips} clips of fold {', '.join(map(str, table['folds']))}, each named by a "
        "network that was not trained on it, under what phones, messengers and rooms do to sound (`python -m "
        "training.robustness`):\n\n"
        + _table(("condition", "accuracy", "95 % interval", "points to clean"), rows)
    )


def _limits(checkpoint: Checkpoint, *, measured: bool, folds: int) -> str:
    """`folds`: how many the results beside the file's own are of."""
    percentages = "" if checkpoint.calibration else " Its percentages are not calibrated."
    holds_up = "is measured above" if measured else "`python -m training.robustness` measures"
    seeds = {(grown.get("recipe") or {}).get("seed") for grown in checkpoint.provenance.get("grown_from", ())}
    luck = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    luck = luck.capitalize() if folds > 1 else f"One fold and {luck}"
    return f"""## What it cannot do

- It knows {len(checkpoint.labels)} classes and names one of them, whatever it hears (silence apart).{percentages}
- It learned from clean five-second clips that somebody chose. Other microphones, rooms, mixed sounds and telephone
  lines are out of its domain; how far it holds up there {holds_up}.
- It hears nothing above {checkpoint.mel.f_max / 1000:g} kHz.
- {luck}: a point or two of its accuracy is luck.
- Nothing that matters to anybody's safety should hang on it."""


def _use(repo: str) -> str:
    return f"""## How to use it

In a folder of the project that made it, where `REVISION` is the commit of this repository to hold on to (without
`@REVISION`: the newest):

```
python app.py --model {repo}@REVISION                 # the page: record or upload a sound
python -m cnn sound.wav --model {repo}@REVISION       # the terminal
```

```python
from cnn.classifier import Classifier
print(Classifier.open("{repo}@REVISION").predict("sound.wav").message)
```"""


def _licence() -> str:
    return """## Licence

The weights are for **non-commercial use**: they come from ESC-50 (K. J. Piczak, "ESC: Dataset for Environmental Sound
Classification", ACM Multimedia 2015, [doi 10.1145/2733373.2806390](https://doi.org/10.1145/2733373.2806390)), which as
a whole is licensed [CC BY-NC 3.0](https://creativecommons.org/licenses/by-nc/3.0/). The code around them is MIT."""


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    """One line in which nothing is taken for a table's border or for a mark."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
