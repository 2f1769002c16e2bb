"""The example clips: heard whole, never heard in training, free to pass on, their authors named."""

import json
import re
from pathlib import Path

import pytest

from cnn.audio import load
from cnn.labels import ESC10

ASSETS = Path(__file__).resolve().parent.parent / "assets"
EXAMPLES = json.loads((ASSETS / "examples" / "examples.json").read_text(encoding="utf-8"))
ATTRIBUTION = (ASSETS / "ATTRIBUTION.md").read_text(encoding="utf-8").splitlines()


def test_there_are_enough_and_every_file_is_listed_once():
    files = [example["file"] for example in EXAMPLES]
    assert len(files) >= 8
    assert sorted(files) == sorted(path.name for path in (ASSETS / "examples").iterdir() if path.suffix != ".json")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["file"])
def test_an_example_is_sound_of_the_held_out_fold_and_attributed(example: dict[str, str]):
    clip = load(ASSETS / "examples" / example["file"])
    assert clip.rate == 44_100 and clip.seconds == pytest.approx(5, abs=0.01)
    assert not clip.is_silent and clip.notes == ()
    assert example["source"].startswith("5-") and example["label"] in ESC10
    (row,) = [line for line in ATTRIBUTION if line.startswith(f"| `{example['file']}` |")]
    _, source, recording, author, licence = [cell.strip() for cell in row.strip("|").split("|")]
    assert source == f"`{example['source']}`" and example["url"] in recording
    assert author == example["author"] != ""
    assert re.match(r"\[(CC0|CC BY)\]\(https://creativecommons\.org/", licence) and example["licence"] in licence
