"""Sounds from elsewhere: fetched whole or not at all, checked, measured through the door of every answer."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cnn.classifier import Classifier
from cnn.labels import ESC50
from training import elsewhere
from training.data import DataError
from training.elsewhere import Sound

APT = """#!/bin/sh
[ "$1" = download ] && [ "$5" = game ] || { echo "E: Unable to locate package $5" >&2; exit 100; }
echo archive > game_1_all.deb
"""
DPKG = """#!/bin/sh
[ "$1" = -x ] && [ "$2" = game_1_all.deb ] && mkdir -p "$3" && cp -r "$STORE/." "$3"
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """What the package holds: a short sound, one of six seconds, and a file that no table names."""
    root = tmp_path / "store"
    (root / "usr").mkdir(parents=True)
    rng = np.random.default_rng(0)
    soundfile.write(root / "usr" / "bark.wav", rng.normal(0, 0.1, 8_000), 16_000)
    soundfile.write(root / "usr" / "rain.wav", rng.normal(0, 0.1, 6 * 16_000), 16_000)
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
    assert all(len(s.sha256) == 64 and not s.path.startswith(("/", "..")) for s in sounds)


def test_packages_are_fetched_once_and_only_what_is_named_is_kept(tmp_path: Path, sounds: list[Sound], apt: None):
    packages, told = tmp_path / "packages", []
    elsewhere.fetch(sounds, packages, told.append)
    elsewhere.fetch(sounds, packages, told.append)
    assert told == ["1 of 1: game"]
    elsewhere.check(sounds, packages)
    assert sorted(p.name for p in packages.rglob("*") if p.is_file()) == ["bark.wav", "rain.wav"]


def test_a_package_that_lacks_a_sound_or_is_unknown_leaves_nothing(tmp_path: Path, sounds: list[Sound], apt: None):
    packages = tmp_path / "packages"
    with pytest.raises(DataError, match=r"game_1_all.deb holds no usr/cow.wav: it is of another version"):
        elsewhere.fetch([*sounds, Sound("cow", "game", "usr/cow.wav", "0")], packages)
    with pytest.raises(DataError, match=r"Unable to locate package other .apt-get update"):
        elsewhere.fetch([Sound("cow", "other", "usr/cow.wav", "0")], packages)
    assert not list(packages.iterdir())


def test_missing_and_changed_sounds_are_named_with_the_way_out(tmp_path: Path, sounds: list[Sound], apt: None):
    packages = tmp_path / "packages"
    with pytest.raises(DataError, match=r"lacks 2 of 2 sounds, of game: fetch them with --fetch"):
        elsewhere.check(sounds, packages)
    elsewhere.fetch(sounds, packages)
    sounds[0].file(packages).write_bytes(sounds[1].file(packages).read_bytes())
    with pytest.raises(DataError, match=r"bark.wav is another sound than Debian 12's"):
        elsewhere.check(sounds, packages)


def test_without_apt_the_way_out_is_told(tmp_path: Path, sounds: list[Sound], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no apt-get here: fetch the packages on a Debian 12 machine"):
        elsewhere.fetch(sounds, tmp_path / "packages")


def test_what_is_counted_is_what_the_app_would_say(
    tmp_path: Path, sounds: list[Sound], apt: None, tiny_classifier: Classifier
):
    packages = tmp_path / "packages"
    elsewhere.fetch(sounds, packages)
    said = [tiny_classifier.predict(s.file(packages)).labels[0].name for s in sounds]
    true = [Sound(name, s.package, s.path, s.sha256) for name, s in zip(said, sounds, strict=True)]
    result, by_length = elsewhere.measure(tiny_classifier, true, packages)
    assert (result.clips, result.correct) == (2, 2)
    assert by_length == {"under 1 s": [True], "1 to 2.5 s": [], "2.5 to 5 s": [], "5 s and more": [True]}
    false = [Sound(next(x for x in ESC50 if x not in said), s.package, s.path, s.sha256) for s in sounds]
    result, by_length = elsewhere.measure(tiny_classifier, false, packages)
    assert result.correct == 0 and by_length["under 1 s"] == [False]
    assert "0.00 % of 2 sounds from elsewhere" in elsewhere.text(result, by_length)


def test_the_command_prints_the_figures_and_one_line_for_what_is_wrong(
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
    assert capsys.readouterr().err.startswith("error: ")
    assert elsewhere.main([*ask, "--fetch", "--json", str(tmp_path / "out.json")]) == 0
    assert "of 2 sounds from elsewhere (95 % interval" in capsys.readouterr().out
    assert (tmp_path / "out.json").read_text().count("by_length") == 1
