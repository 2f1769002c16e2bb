"""The import directions of DESIGN, read from the source: who may know whom, inside and outside the project."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cnn", "training")
SOURCES = sorted([ROOT / "app.py", *(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))])

GROUND = {"labels", "decoding", "mel", "model", "canvas"}  # these import nothing of the project
BELOW: dict[str, set[str]] = {
    **{name: set() for name in GROUND},
    "audio": {"decoding"},
    "pictures": {"canvas"},
    "calibration": {"labels"},
    "checkpoint": {"labels", "audio", "mel", "model", "calibration"},
    "classifier": GROUND | {"audio", "calibration", "checkpoint"},
    "spectrum": {"mel"},
    "whatif": {"audio", "spectrum"},
    "cam": {"classifier"},
    "perturbation": {"classifier"},
    "explain": GROUND | {"audio", "classifier", "inside", "pictures", "spectrum", "cam", "perturbation"},
    "recording": GROUND | {"audio", "calibration", "checkpoint", "classifier"},
    "anatomy": {"mel", "model"},
    "inside": GROUND | {"audio", "calibration", "checkpoint", "classifier"},
    "atlas": GROUND | {"audio", "calibration", "checkpoint", "classifier"},
    "report": GROUND | {"audio", "calibration", "checkpoint", "classifier", "pictures"},
    "hub": set(),
}
ONLY_IN = {
    "gradio": r"app\.py|cnn/ui/.*",
    "modal": r"app\.py|cnn/serve/modal\w*\.py|training/modal_train\.py",
    "tensorboard": r"training/.*",
    "torch.utils.tensorboard": r"training/.*",
}


def imports(source: str, module: str) -> Iterator[str]:
    """Dotted name of everything that `source` (the module's text) imports, at its head or inside a function.

    `from cnn import audio` gives `cnn.audio`; relative imports are resolved against `module` (`cnn.ui.page`).
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: Path) -> list[str]:
    return list(imports(path.read_text(encoding="utf-8"), name_of(path)))


def refused(module: str, name: str) -> bool:
    """Whether `module` (`cnn.audio`, `cnn.ui.page`, `training.train`, `app`) may not import `name`."""
    here, there = module.split("."), [*name.split("."), ""]
    if there[0] not in ("cnn", "training", "app", "tests"):
        return False
    if here[0] == "app":
        return there[0] != "cnn"
    if here[0] == "training":
        return there[0] not in ("cnn", "training") or there[:2] in (["cnn", "ui"], ["cnn", "serve"])
    if there[0] != "cnn":
        return True  # never cnn -> training, cnn -> app
    if here[1] == "ui":
        return False
    if here[1] in BELOW:
        return there[1] not in BELOW[here[1]]
    return there[1] == "ui"  # serve and the command line


def within(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def test_the_sources_are_found():
    names = [name_of(path) for path in SOURCES]
    assert {"app", "cnn.classifier", "cnn.__main__", "training.train"} <= set(names)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_one_way(path: Path):
    assert [name for name in imported(path) if refused(name_of(path), name)] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_package_is_used_only_where_it_belongs(path: Path):
    place = path.relative_to(ROOT).as_posix()
    for package, allowed in ONLY_IN.items():
        if not re.fullmatch(allowed, place):
            assert [name for name in imported(path) if within(name, package)] == []


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parts[len(ROOT.parts)] != "training"], ids=name_of)
def test_nothing_that_a_server_calls_knows_pyplot(path: Path):
    names = imported(path)
    assert [name for name in names if within(name, "matplotlib.pyplot") or within(name, "pylab")] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_what_is_imported_is_pinned(path: Path):
    files = [ROOT / "requirements.txt"]
    if name_of(path).startswith("training"):
        files.append(ROOT / "tests" / "requirements.txt")
    pinned = re.findall(r"^([\w-]+)==", "\n".join(file.read_text() for file in files), re.MULTILINE)
    known = {name.replace("-", "_") for name in pinned} | sys.stdlib_module_names | {*PACKAGES, "app"}
    assert {name.split(".")[0] for name in imported(path)} <= known


@pytest.mark.parametrize(
    ("module", "name", "no"),
    [
        ("cnn.audio", "cnn.labels.ESC50", True),
        ("cnn.audio", "numpy", False),
        ("cnn.canvas", "cnn.pictures", True),
        ("cnn.pictures", "cnn.classifier", True),
        ("cnn.classifier", "cnn.ui.page", True),
        ("cnn.explain", "cnn.recording", True),
        ("cnn.explain", "cnn.classifier.Classifier", False),
        ("cnn.serve.api", "cnn.ui", True),
        ("cnn.ui.page", "cnn.serve.client", False),
        ("cnn.ui.page", "training.train", True),
        ("training.train", "cnn.model", False),
        ("training.train", "cnn.serve.api", True),
        ("app", "training.train", True),
    ],
)
def test_the_rules_themselves(module: str, name: str, no: bool):
    assert refused(module, name) is no


def test_imports_are_seen_in_every_form():
    source = "import a.b as c\nfrom . import page\nfrom ..x import y\ndef f():\n    from matplotlib import pyplot\n"
    assert list(imports(source, "cnn.ui.inside")) == ["a.b", "cnn.ui.page", "cnn.x.y", "matplotlib.pyplot"]
