"""Figures of faithfulness on numbers known by hand, mixtures, and the whole table on a tiny network."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cnn.classifier import Classifier
from training import faithfulness
from training.data import DataError, Row, in_folds, read_rows
from training.faithfulness import figures, loudest, main, measure, pool, text
from training.mixtures import MOST_SDR, clips, mixtures, si_sdr


def test_the_figures_are_those_of_l_mac():
    whole, evidence = np.array([0.5, 0.8, 0.4]), np.array([0.75, 0.6, 0.4])
    remainder, same = np.array([0.1, 0.9, 0.0]), np.array([True, False, True])
    assert figures(whole, evidence, remainder, same) == pytest.approx(
        {
            "AI": 100 / 3,  # 0.4 is no more than 0.4
            "AD": 100 * (0.2 / 0.8) / 3,
            "AG": 100 * (0.25 / 0.5) / 3,
            "FF": (0.4 - 0.1 + 0.4) / 3,
            "Fid-In": 2 / 3,
        }
    )


def test_a_gain_beyond_certainty_is_a_number():
    one = np.ones(1)
    assert figures(one, one, one, one)["AG"] == 0


def test_si_sdr_knows_the_target_at_any_level_and_offset():
    time = np.arange(8_000) / 8_000
    target, other = np.sin(2 * np.pi * 100 * time), np.sin(2 * np.pi * 300 * time)
    estimate = target + 10 ** (-10 / 20) * other
    assert si_sdr(estimate, target) == pytest.approx(10, abs=1e-6)
    assert si_sdr(0.001 * estimate + 3, 7 * target - 1) == pytest.approx(10, abs=1e-6)
    assert si_sdr(estimate, other) == pytest.approx(-10, abs=1e-6)
    assert si_sdr(-target, target) == MOST_SDR
    assert si_sdr(np.zeros(8_000), target) == -MOST_SDR


@pytest.fixture
def rows(tone_data: Path) -> list[Row]:
    return in_folds(read_rows(tone_data), [5])


def test_a_mixture_holds_two_classes_at_the_same_power_and_the_seed_draws_it(rows: list[Row]):
    few, more, other = (list(mixtures(rows, n, seed)) for n, seed in ((2, 0), (4, 0), (4, 1)))
    assert [m.name for m in few] == [m.name for m in more[:2]]
    assert [m.name for m in more] != [m.name for m in other]
    for mixture in more:
        (first, a), (second, b) = mixture.sources
        assert first != second
        assert np.mean(a**2) == pytest.approx(np.mean(b**2), rel=1e-4)
        assert si_sdr(mixture.clip.samples, a) == pytest.approx(0, abs=0.2)  # the tones hardly overlap
        np.testing.assert_allclose(mixture.clip.samples, a + b, atol=1e-6)
        assert np.abs(mixture.clip.samples).max() == pytest.approx(0.5, rel=1e-5)


def test_a_silent_clip_is_in_no_mixture_and_one_class_makes_none(rows: list[Row], tmp_path: Path):
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(80_000), 16_000)
    drawn = list(mixtures([*rows, Row(silent, 5, "cat"), Row(silent, 5, "cow")], 8, 0))
    assert not any("silent" in mixture.name for mixture in drawn)
    with pytest.raises(DataError, match="two classes"):
        next(mixtures([r for r in rows if r.label == "dog"], 1, 0))


def test_a_smaller_limit_takes_clips_of_a_larger_one(rows: list[Row]):
    names = [[sound.name for sound in clips(rows, limit, 0)] for limit in (2, 4, None)]
    assert names[0] == names[1][:2]
    assert names[2] == [r.path.name for r in rows]


def test_the_energy_mask_takes_the_loudest_cells_of_the_sound_only():
    mel = np.array([[-50.0, -10.0, -60.0, 0.0], [-20.0, -70.0, -30.0, 0.0]])
    np.testing.assert_array_equal(loudest(mel, 0.5, 3), [[0, 1, 0, 0], [1, 0, 1, 0]])


@pytest.fixture(scope="module")
def table(tiny: Path, tone_data: Path) -> dict:
    """Two clips and one mixture; the second network is the first once more."""
    classifier = Classifier.open(tiny, device="cpu")
    return measure(classifier, tone_data, 5, second=classifier, limit=2, mixed=1)


def test_the_table_has_every_method_and_agrees_with_its_answers(table: dict):
    maps = [f"{method} {tap}" for tap in ("layer2", "layer3") for method in ("hirescam", "layercam", "gradcam")]
    for kind, sounds in (("clean", 2), ("mixture", 1)):
        pooled, told = table["tables"][kind], [a for a in table["answers"] if a["kind"] == kind]
        assert list(pooled["rows"]) == [*maps, "perturbation", "random", "energy"]
        assert pooled["sounds"] == len(told) == sounds
        for name, row in pooled["rows"].items():
            parts = [a["rows"][name] for a in told]
            assert row["FF"] == pytest.approx(
                np.mean([a["whole"] - p["remainder"] for a, p in zip(told, parts, strict=True)])
            )
            assert row["area"] == pytest.approx(np.mean([p["area"] for p in parts]))
            # asked for a second opinion, the same network has the same
            assert row["second"] == pytest.approx(np.mean([p["evidence"] for p in parts]), abs=1e-5)
            assert row["second Fid-In"] == row["Fid-In"]
        same = [pooled["rows"][name]["area"] for name in ("perturbation", "random", "energy")]
        assert same == pytest.approx([same[0]] * 3, abs=1e-4)
    mixture = table["tables"]["mixture"]
    assert mixture["sdr"] == pytest.approx([0, 0], abs=0.2)
    assert all(-60 <= row["SDR A"] <= 60 for row in mixture["rows"].values())
    printed = text(table["tables"])
    assert "2 clips as they are" in printed
    assert "1 mixtures of two clips at 0 dB" in printed
    assert "L-MAC (CNN14, other mixtures): AI 61.62, AD 3.83, AG 33.48, FF 0.4, Fid-In 0.82" in printed


def test_the_targets_are_met_by_rows_that_reach_all_four(table: dict):
    good = {"AI": 62.0, "AD": 3.8, "FF": 0.40, "Fid-In": 0.82}
    assert faithfulness.missed(good) == []
    worse = {"AI": 61.9, "AD": 3.9, "FF": 0.39, "Fid-In": 0.81}
    assert faithfulness.missed(worse) == ["AI", "AD", "FF", "Fid-In"]


def test_a_sound_without_anything_to_hear_is_counted_and_left_out(table: dict):
    silent = {"kind": "clean", "sound": "silent.wav", "rows": {}}
    pooled = pool([*table["answers"], silent])["clean"]
    assert pooled == table["tables"]["clean"] | {"silent": 1}


def test_an_interrupted_run_goes_on_where_it_stopped(
    tiny: Path, tone_data: Path, table: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    asked = []

    def listen(classifier: Classifier, second: Classifier, sound, seed: int) -> dict:
        asked.append(sound.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return next(a for a in table["answers"] if a["sound"] == sound.name)

    monkeypatch.setattr(faithfulness, "listen", listen)
    file = tmp_path / "new" / "table.json"
    command = ["--model", str(tiny), "--second", str(tiny), "--data", str(tone_data), "--limit", "2", "--mixtures", "1"]
    with pytest.raises(KeyboardInterrupt):
        main([*command, "--json", str(file)])
    assert not file.exists()
    with (part := file.with_name("table.json.part")).open("a") as lines:
        lines.write('{"kind": "mix')  # cut off in the middle of a line
    assert main([*command, "--seed", "1", "--json", str(file)]) == 1
    assert "delete it or name another FILE" in capsys.readouterr().err
    assert main([*command, "--json", str(file)]) == 0
    assert len(asked) == 4  # the third sound again, the first two not
    assert json.loads(file.read_text()) == table
    assert not part.exists()
    assert "perturbation" in capsys.readouterr().out
