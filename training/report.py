"""One page about a cross-validation, for people: a single file that opens offline, in light and dark."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn.labels import spoken
from training.robustness import ALLOWED, ALLOWED_MEAN

FONTS = Path(__file__).resolve().parent.parent / "assets" / "fonts"
TYPEFACE = "Atkinson Hyperlegible Next"
SHOWN = 8  # hardest classes and most frequent confusions in words

STYLE = """
:root { color-scheme: light dark; --ink: #1f2330; --soft: #565d70; --paper: #fbfafc; --card: #fff; --line: #d8dae2;
  --accent: #9c2e7f; --missed: #a33a06; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #a9b0c1; --paper: #14161d; --card: #1b1e27;
  --line: #343947; --accent: #f084b4; --missed: #ffb38a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 20px 64px; max-width: 860px; background: var(--paper); color: var(--ink);
  font: 17px/1.5 "Atkinson Hyperlegible Next", system-ui, sans-serif; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 21px; line-height: 1.25; margin: 44px 0 8px; }
p, ul { margin: 0 0 12px; } ul { padding-left: 22px; }
.soft, figcaption { color: var(--soft); }
.score { font-size: 46px; font-weight: 700; line-height: 1.15; color: var(--accent); margin: 20px 0 4px; }
.wide { overflow-x: auto; margin: 0 0 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 0 0 6px; }
th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 400; vertical-align: bottom; }
tfoot td, tfoot th { font-weight: 700; border-bottom: 0; }
tbody th { font-weight: 400; }
.missed { color: var(--missed); font-weight: 700; }
figure { margin: 0 0 12px; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 10px; padding: 10px; }
figure.half { max-width: 560px; }
figure.broad > div { overflow-x: auto; }
figure.broad img { min-width: 960px; }
@media (min-width: 1020px) { figure.broad > div { width: min(1240px, 96vw); margin-left: 50%;
  transform: translateX(-50%); } }
figcaption { font-size: 15px; margin-top: 6px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: 12px; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; font-size: 14px; }
summary { cursor: pointer; }
details dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 10px 0; font-size: 15px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { details { display: block; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


def page(results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """HTML of the content of results.json; `pictures`: PNG by name, `confusion`, `reliability`, `curves` or less."""
    r = results
    title = f"{r['name']} on {r['dataset']}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="soft">{_text(r["network"])}, {_origin(r)}</p>',
        _score(r),
        "<h2>How it was measured</h2>", _protocol(r),
        "<h2>Fold by fold</h2>", _folds(r),
        "<h2>What it hears well and what it takes for something else</h2>", _classes(r),
        _figure(pictures, "confusion", _confusion_alt(r),
                "A row is what the clips are, a column what they were named. Numbers count clips; the diagonal is "
                "right.", "broad"),
        "<h2>Does it know when it is unsure?</h2>", _reliability(r),
        _figure(pictures, "reliability", _reliability_alt(r),
                "Points on the dashed line: as often right as it claims. Above: it is too modest; below: too sure. "
                "Vertical lines are 95 % intervals.", "half"),
        "<h2>Through other people's devices</h2>", _robustness(r["robustness"]),
        "<h2>How it learned</h2>",
        _figure(pictures, "curves", "Loss, accuracy and learning rate by epoch, one line for each fold held out.",
                "Loss and accuracy on training clips as augmented, which are harder than real ones; thin lines, where "
                "there are any, on training recordings kept aside. The fold held out is not in here."),
        "<h2>Settings</h2>", _settings(r),
        "<h2>Compute it again</h2>", _again(r),
    ]  # fmt: skip
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_fonts()}{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _score(r: Mapping[str, Any]) -> str:
    n = len(r["folds"])
    spread = f" ± {100 * r['std']:.2f}" if r["std"] is not None else ""
    over = f"mean ± sample standard deviation over {n} folds" if n > 1 else "on one fold"
    lines = [f'<p class="score">{100 * r["mean"]:.2f}{spread} %</p>',
             f"<p>of the clips named rightly at once ({over}); the right name is among the first three of "
             f"{_percent(r['top3'])}."]  # fmt: skip
    if r["missing"]:
        lines.append(f"<strong>Not the whole picture yet: {_folds_named(r['missing'])} "
                     f"{'is' if len(r['missing']) == 1 else 'are'} missing.</strong>")  # fmt: skip
    lines.append("</p>")
    if (ten := r["esc10"])["n"]:
        among = f", and {_percent(ten['among_ten'])} if only these ten may be named" if len(r["labels"]) > 10 else ""
        lines.append(f"<p>ESC-10, ten of the classes ({_count(ten['n'], 'clip')}): {_percent(ten['accuracy'])}{among}. "
                     "People reach 81.3 % on ESC-50 and 95.7 % on ESC-10 (Piczak 2015).</p>")  # fmt: skip
    return "\n".join(lines)


def _origin(r: Mapping[str, Any]) -> str:
    config = r["config"]
    if not config.get("widen"):
        return "trained from scratch"
    return "grown from earlier ones and trained on" if config["epochs"] else "earlier ones put together"


def _protocol(r: Mapping[str, Any]) -> str:
    """Two sentences, of what the run did; what its recipe was developed on stands in the log of trials."""
    inner = (
        "it stopped, and its weights were chosen, by recordings kept aside from the training folds"
        if r["config"].get("patience")
        else "the number of epochs was fixed beforehand"
    )
    grown = bool(r["config"].get("widen"))
    origin = "was grown from earlier ones of the same folds" if grown else "started from random weights"
    warned = "".join(f"<p><strong>Note:</strong> {_text(w)}.</p>" for w in r["warnings"])
    return (
        "<p>ESC-50 comes in fixed folds, with all clips from one source recording in the same one; each fold below was "
        f"held out once, and a network that {origin} learned from the others. During a run nothing was decided on "
        f"the fold held out: {inner}, and then every clip of it was named once.</p>"
        f'<p class="soft">How the recipe itself was found, and which folds those trials looked at, is told in '
        f"training/LOG.md.</p>{warned}"
    )


def _folds(r: Mapping[str, Any]) -> str:
    rows = [
        [f"fold {f['fold']}", _percent(f["accuracy"]), _interval(f["interval"]), f"{f['correct']} of {f['n']}",
         _percent(f["top3"]), _duration(f["seconds"])]
        for f in r["folds"]
    ]  # fmt: skip
    spread = f" ± {100 * r['std']:.2f}" if r["std"] is not None else ""
    foot = ["mean", f"{100 * r['mean']:.2f}{spread} %", "", f"{r['correct']} of {r['clips']}", _percent(r["top3"]),
            _duration(r["seconds"])]  # fmt: skip
    head = ["held out", "accuracy", "95 % interval", "right", "in the first three", "time"]
    note = "Time is that of training and measuring over all sessions; intervals are Wilson's, over the fold's clips."
    if r["config"].get("widen"):
        note += " The earlier networks had been trained before; their time is not in it."
    if r["unheard"]:
        note += f" In {_count(r['unheard'], 'clip')} nothing was heard, which counts as wrong."
    return _table(head, rows, foot) + f'<p class="soft">{note}</p>'


def _classes(r: Mapping[str, Any]) -> str:
    labels, confusion = r["labels"], r["confusion"]
    by_class = sorted(r["per_class"].items(), key=lambda item: item[1])
    hardest = [
        f"<li>{_text(spoken(label))}: {_percent(share)}</li>"
        for label, share in by_class[:SHOWN]
        if share < 1
    ]
    perfect = [spoken(label) for label, share in by_class if share == 1]
    confused = [
        f"<li>{_text(spoken(labels[i]))}, taken for {_text(spoken(labels[j]))}: {_count(confusion[i][j], 'clip')}</li>"
        for i, j in _confusions(confusion)[:SHOWN]
    ]
    always = f"<p>Always named rightly: {_text(', '.join(perfect))}.</p>" if perfect else ""
    if not hardest:
        return always
    return (
        f"<p>The hardest classes, and how much of each is named rightly:</p><ul>{''.join(hardest)}</ul>"
        + (f"<p>The most frequent confusions:</p><ul>{''.join(confused)}</ul>" if confused else "")
        + always
    )


def _confusions(confusion: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(true, named) off the diagonal, the most frequent first."""
    size = range(len(confusion))
    found = [(i, j) for i in size for j in size if i != j and confusion[i][j]]
    return sorted(found, key=lambda place: -confusion[place[0]][place[1]])


def _reliability(r: Mapping[str, Any]) -> str:
    if r["ece"] is None:
        return "<p>No clip was heard.</p>"
    heard = [b for b in r["reliability"] if b["n"]]
    n = sum(b["n"] for b in heard)
    sure, right = (sum(b["n"] * b[key] for b in heard) / n for key in ("confidence", "accuracy"))
    kind = "too modest" if sure < right - 0.01 else "too sure" if sure > right + 0.01 else "about as sure as right"
    return (
        f"<p>On average it gives the name it chooses a probability of {_percent(sure)}, and {_percent(right)} of these "
        f"names are right: over all it is {kind}. Bin by bin the two differ by {100 * r['ece']:.1f} points (expected "
        f"calibration error, {len(r['reliability'])} bins).</p>"
    )


def _robustness(table: Mapping[str, Any] | None) -> str:
    if table is None:
        return "<p>Not measured.</p>"
    rows = []
    for name, row in table["rows"].items():
        missed = name in table["missed"]
        loss = _points(-row["loss"])
        change = "" if name == "clean" else f'<span class="missed">{loss} missed</span>' if missed else loss
        may = "" if name == "clean" else f"−{ALLOWED[name]:g}"
        rows.append([_text(name), _percent(row["accuracy"]), _interval(row["interval"]), change, may])
    mean_missed = "mean" in table["missed"]
    mean = _points(-table["mean_loss"])
    mean = f'<span class="missed">{mean} missed</span>' if mean_missed else mean
    clean = table["rows"]["clean"]
    left = _percent(clean["accuracy"] - table["mean_loss"] / 100)
    foot = ["mean of all but clean", left, "", mean, f"−{ALLOWED_MEAN:g}"]
    verdict = (
        f"<strong>{len(table['missed'])} of {len(table['rows'])} targets missed:</strong> "
        f"{_text(', '.join(table['missed']))}."
        if table["missed"]
        else "<strong>All targets hold.</strong>"
    )
    return (
        f"<p>The same {_count(clean['clips'], 'clip')} of {_folds_named(table['folds'])}, each changed as a phone, a "
        f"messenger or a room would change it, and named again. {verdict}</p>"
        + _table(["heard through", "accuracy", "95 % interval", "points to clean", "may lose"], rows, foot)
    )


def _settings(r: Mapping[str, Any]) -> str:
    about = {"data": r["data"], "data's licence": r["licence"], "commit": r["commit"],
             "versions": ", ".join(f"{k} {v}" for k, v in r["versions"].items())}  # fmt: skip
    weights = {f"weights of fold {f['fold']}, sha256": f["sha256"] for f in r["folds"]}
    listed = "".join(f"<dt>{_text(str(k))}</dt><dd>{_text(str(v))}</dd>" for k, v in (about | weights).items())
    fields = "".join(f"<dt>{_text(k)}</dt><dd>{_text(str(v))}</dd>" for k, v in r["config"].items())
    return (
        f"<p>Recipe {_text(r['recipe'])}, the same for every fold.</p>"
        f"<details><summary>Every field of the recipe</summary><dl>{fields}</dl></details>"
        f"<details><summary>Data, code and weights</summary><dl>{listed}</dl></details>"
    )


def _again(r: Mapping[str, Any]) -> str:
    return (
        "<p>Every figure here but robustness and times follows from <code>predictions.csv</code>, which has one row "
        f"per clip: its file, fold and class, and the network's {len(r['labels'])} logits. The largest logit is the "
        "name; softmax of the logits is the probability.</p>"
        "<pre>python -c \"import json; from pathlib import Path; from training.evaluate import recompute; "
        "print(json.dumps(recompute(Path('predictions.csv'))))\"</pre>"
    )


def _figure(pictures: Mapping[str, bytes], name: str, alt: str, caption: str, kind: str = "") -> str:
    if name not in pictures:
        return '<p class="soft">There is no record of it here.</p>'
    data = base64.b64encode(pictures[name]).decode()
    return (
        f'<figure class="{kind}"><div><img alt="{_text(alt)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _confusion_alt(r: Mapping[str, Any]) -> str:
    labels, confusion = r["labels"], r["confusion"]
    right = sum(row[i] for i, row in enumerate(confusion))
    told = [f"{spoken(labels[i])} named {spoken(labels[j])}, {confusion[i][j]} times"
            for i, j in _confusions(confusion)[:3]]  # fmt: skip
    most = f" Most frequent beside it: {'; '.join(told)}." if told else ""
    return (
        f"Confusion matrix of {len(labels)} classes: {right} of {_count(sum(map(sum, confusion)), 'clip')} lie on the "
        f"diagonal.{most}"
    )


def _reliability_alt(r: Mapping[str, Any]) -> str:
    told = [f"{100 * b['confidence']:.0f} % sure, {100 * b['accuracy']:.0f} % right, {_count(b['n'], 'clip')}"
            for b in r["reliability"] if b["n"]]  # fmt: skip
    return f"Reliability diagram, from the least to the most sure: {'; '.join(told)}."


# --- words and numbers -----------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], foot: Sequence[str]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f'<tr><th scope="row">{cells[0]}</th>{"".join(f"<td>{c}</td>" for c in cells[1:])}</tr>'

    titles = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return (
        f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(map(line, rows))}</tbody>'
        f"<tfoot>{line(foot)}</tfoot></table></div>"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f}\N{NO-BREAK SPACE}%"


def _points(value: float) -> str:
    """'−3.9', '0.0', '+0.4'."""
    return f"{value:+.1f}".replace("-", "−") if round(value, 1) else "0.0"


def _interval(limits: Sequence[float]) -> str:
    return f"{100 * limits[0]:.1f}–{100 * limits[1]:.1f} %"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _folds_named(folds: Sequence[int]) -> str:
    """'fold 1', 'folds 1, 2 and 5'."""
    names = [str(f) for f in folds]
    joined = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return f"fold{'s' if len(names) > 1 else ''} {joined}"


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _fonts() -> str:
    rules = []
    for weight in (400, 700):
        data = base64.b64encode((FONTS / f"AtkinsonHyperlegibleNext-{weight}.ttf").read_bytes()).decode()
        rules.append(f'@font-face {{ font-family: "{TYPEFACE}"; font-weight: {weight}; '
                     f'src: url("data:font/ttf;base64,{data}") format("truetype"); }}')  # fmt: skip
    return "\n".join(rules)
