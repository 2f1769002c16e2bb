"""Sounds from elsewhere: fetched whole or not at all, checked, measured through the door of every answer."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from cnn.classifier import Classifier
from cnn.labels import ESC50
from training import elsewhere
from training.data import DataError
from training.elsewhere import Sound

APT = """#!/bin/sh
[ "$1" = download ] && [ "$5" = game ] || { printf 'E: Unable to locate package %s\\nW: noise\\n' "$5" >&2; exit 100; }
echo archive > game_1_all.deb
"""
DPKG = """#!/bin/sh
[ "$1" = -x ] && [ "$2" = game_1_all.deb ] && mkdir -p "$3" && cp -r "$STORE/." "$3"
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """What the package holds: a short sound, one of six seconds, which is a link, and a file that no table names."""
    root = tmp_path / "store"
    (root / "usr").mkdir(parents=True)
    rng = np.random.default_rng(0)
    soundfile.write(root / "usr" / "bark.wav", rng.normal(0, 0.1, 8_000), 16_000)
    soundfile.write(root / "usr" / "storm.wav", rng.normal(0, 0.1, 6 * 16_000), 16_000)
    (root / "usr" / "rain.wav").symlink_to("storm.wav")
    (root / "usr" / "music.ogg").write_bytes(b"not wanted")
    return root


@pytest.fixture
def sounds(store: Path) -> list[Sound]:
    named = {"usr/bark.wav": "dog", "usr/rain.wav": "rain"}
    return [Sound(label, "game", path, hashlib.sha256((store / path).read_bytes()).hexdigest())
            for path, label in named.items()]  # fmt: skip


@pytest.fixture
def apt(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose apt knows one package."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("apt-get", APT), ("dpkg-deb", DPKG)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("STORE", str(store))


def test_the_table_names_each_sound_once_and_by_a_class_of_esc50():
    sounds = elsewhere.read_table()
    assert len(sounds) > 200 and {s.label for s in sounds} <= set(ESC50)
    assert len({(s.package, s.path) for s in sounds}) == len({s.sha256 for s in sounds}) == len(sounds)
    assert all(len(s.sha256) == 64 and s.path.startswith("usr/") and ".." not in Path(s.path).parts for s in sounds)


def test_packages_are_fetched_once_and_only_what_is_named_is_kept(
    tmp_path: Path, sounds: list[Sound], apt: None, monkeypatch: pytest.MonkeyPatch
):
    packages, told = tmp_path / "packages", []
    elsewhere.fetch(sounds, packages, told.append)
    assert told == ["1 of 1: game"] and all(s.there(packages) for s in sounds)
    assert sorted(p.name for p in packages.rglob("*") if p.is_file()) == ["bark.wav", "rain.wav"]
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get: it is not wanted either
    elsewhere.fetch(sounds, packages, told.append)
    assert told == ["1 of 1: game"]


def test_what_lacks_or_has_changed_is_fetched_again_and_other_files_stay(
    tmp_path: Path, sounds: list[Sound], apt: None
):
    packages = tmp_path / "packages"
    (packages / ".fetching" / "game").mkdir(parents=True)  # of a run that was killed
    (packages / "game" / "usr").mkdir(parents=True)
    (packages / "game" / "usr" / "mine.txt").write_text("keep")
    sounds[0].file(packages).write_bytes(b"another")
    elsewhere.fetch(sounds, packages)
    assert all(s.there(packages) for s in sounds) and (packages / "game" / "usr" / "mine.txt").is_file()
    assert hashlib.sha256(sounds[0].file(packages).read_bytes()).hexdigest() == sounds[0].sha256
    assert not (packages / ".fetching").exists()


def test_a_package_that_lacks_a_sound_or_is_unknown_is_named(tmp_path: Path, sounds: list[Sound], apt: None):
    packages = tmp_path / "packages"
    with pytest.raises(DataError, match=r"game holds no usr/a.wav, or another: it is not Debian 12's"):
        elsewhere.fetch([Sound("cow", "game", "usr/a.wav", "0"), *sounds], packages)
    with pytest.raises(DataError, match=r"Unable to locate package other .apt-get update"):
        elsewhere.fetch([Sound("cow", "other", "usr/cow.wav", "0")], packages)
    assert not list(packages.iterdir())


def test_without_apt_the_way_out_is_told(tmp_path: Path, sounds: list[Sound], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no apt-get here: fetch the packages on a Debian 12 machine"):
        elsewhere.fetch(sounds, tmp_path / "packages")


def test_what_is_counted_is_what_the_app_would_say(
    tmp_path: Path, sounds: list[Sound], apt: None, tiny_classifier: Classifier
):
    packages = tmp_path / "packages"
    elsewhere.fetch(sounds, packages)
    answers = [tiny_classifier.predict(s.file(packages)).labels for s in sounds]
    said, sure = [tuple(x.name for x in labels[:3]) for labels in answers], [x[0].probability for x in answers]
    heard = elsewhere.measure(tiny_classifier, [*sounds, Sound("harp", "game", "usr/harp.wav", "0")], packages)
    assert [h.names for h in heard] == said and [h.seconds for h in heard] == [0.5, 6.0]
    assert [h.probability for h in heard] == pytest.approx(sure, abs=1e-4)  # a batch rounds otherwise
    first = Sound(said[0][0], "game", sounds[0].path, sounds[0].sha256)
    second = Sound(said[1][1], "game", sounds[1].path, sounds[1].sha256)
    found = elsewhere.figures(elsewhere.measure(tiny_classifier, [first, second], packages))
    assert (found["sounds"], found["accuracy"], found["top3"], found["mean_of_classes"]) == (2, 0.5, 1.0, 0.5)
    assert found["by_length"] == {"under 1 s": [1, 1], "1 to 2.5 s": [0, 0], "2.5 to 5 s": [0, 0],
                                  "5 s and more": [0, 1]}  # fmt: skip
    assert found["confidence"] == pytest.approx(sum(sure) / 2, abs=1e-4) and found["named_right"] == 0.5
    assert sum(b["n"] for b in found["reliability"]) == 2
    assert f"given {100 * found['confidence']:.1f} % in the mean and is right in 50.0 %" in elsewhere.text(found)
    assert "50.00 % of 2 sounds" in elsewhere.text(found) and "under 1 s 100 % of 1, 5 s" in elsewhere.text(found)
    with pytest.raises(DataError, match="none of the sounds is of a class that the network knows"):
        elsewhere.measure(tiny_classifier, [Sound("harp", "game", "usr/harp.wav", "0")], packages)


def test_the_command_tells_in_one_line_what_is_wrong_and_writes_what_it_prints(
    tmp_path: Path,
    sounds: list[Sound],
    apt: None,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(elsewhere, "read_table", lambda: sounds)
    ask = ["--packages", str(tmp_path / "packages"), "--model", str(tiny), "--device", "cpu"]
    assert elsewhere.main(ask) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert "lacks 2 of 2 sounds" in told and "--fetch brings them where there is apt-get" in told
    assert elsewhere.main([*ask, "--fetch", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert f"{100 * found['accuracy']:.2f} % of 2 sounds" in capsys.readouterr().out
    assert [row["path"] for row in found["heard"]] == [s.path for s in sounds]

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(elsewhere, "measure", stopped)
    assert elsewhere.main(ask) == 130 and capsys.readouterr().err.startswith("\nstopped: what has been fetched stays")


def test_sounds_in_which_nothing_is_heard_are_wrong_names_but_no_sure_ones(sounds: list[Sound]):
    silent, dog = elsewhere.Heard(sounds[0], 1.0, (), 0.0), elsewhere.Heard(sounds[0], 1.0, ("dog", "cow", "hen"), 0.8)
    found = elsewhere.figures([silent, dog])
    assert (found["accuracy"], found["confidence"], found["named_right"]) == (0.5, 0.8, 1.0)
    assert found["ece"] == pytest.approx(0.2)
    found = elsewhere.figures([silent])
    assert found["confidence"] is found["ece"] is None and "nothing was heard in any" in elsewhere.text(found)
