"""Robustness: every condition does to a signal what its name says, and the table of a fold is always the same."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from cnn.audio import Clip, load, resample
from cnn.classifier import Classifier
from training import robustness
from training.data import DataError
from training.robustness import CONDITIONS, Case, generator, measure, pool

RATE = 16_000
CLASSES = {"dog": 300.0, "rain": 900.0, "rooster": 2700.0}


def sine(hz: float, seconds: float = 5.0, peak: float = 0.3) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def burst() -> np.ndarray:
    """Two seconds of noise in five of digital silence."""
    noise = np.random.default_rng(1).uniform(-0.3, 0.3, 2 * RATE)
    return np.pad(noise, (RATE, 2 * RATE)).astype(np.float32)


def under(condition: str, samples: np.ndarray, others: tuple[Path, ...] = ()) -> Clip:
    """The clip that the network is given."""
    return load(CONDITIONS[condition](Case(samples, RATE, generator(0, condition, "a.wav"), others)))


def db(ratio: float) -> float:
    return 20 * float(np.log10(ratio))


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def loudest_hz(clip: Clip) -> float:
    return float(np.abs(np.fft.rfft(clip.samples)).argmax()) * clip.rate / len(clip.samples)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short clips of three classes in fold 5, with silence after them, in ESC-50's layout."""
    root = tmp_path_factory.mktemp("data")
    (root / "audio").mkdir()
    (root / "meta").mkdir()
    rows = []
    for take in range(2):
        for label, hz in CLASSES.items():
            name = f"5-{label}-{take}.flac"
            soundfile.write(root / "audio" / name, np.pad(sine(hz + 50 * take, 0.5), (0, RATE // 2)), RATE)
            rows.append({"filename": name, "fold": 5, "target": 0, "category": label, "esc10": True})
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture
def by_content(tiny_classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> Classifier:
    """Names a sound by its very samples: a table cannot stay the same where a sound does not."""

    def predict_batch(sounds: list) -> list[SimpleNamespace]:
        numbers = [int(1e6 * np.sum(np.abs(load(s).samples), dtype=np.float64)) for s in sounds]
        return [SimpleNamespace(labels=(SimpleNamespace(name=[*CLASSES][n % 3]),)) for n in numbers]

    monkeypatch.setattr(tiny_classifier, "predict_batch", predict_batch)
    return tiny_classifier


# --- the conditions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("condition", "rate"), [("8 kHz", 8_000), ("11.025 kHz", 11_025)])
def test_lower_rates_keep_what_is_below_their_band_edge(condition: str, rate: int):
    low, high = under(condition, sine(1_000)), under(condition, sine(6_500))
    assert low.rate == rate and low.seconds == pytest.approx(5.0, abs=1e-3)
    assert loudest_hz(low) == pytest.approx(1_000, abs=1) and db(rms(low.samples) / rms(sine(1_000))) > -0.1
    assert rms(high.samples) < 1e-3


def test_eight_bits_are_256_steps_and_mu_law_has_finer_ones_for_faint_sound():
    faint = sine(440, peak=0.02)
    coarse, companded = under("8-bit", faint), under("mu-law", faint)
    assert np.array_equal(coarse.samples * 128, np.round(coarse.samples * 128))
    assert np.abs(coarse.samples - faint).max() <= 1 / 128
    assert companded.format == "WAV, mu-law" and companded.rate == RATE
    assert rms(companded.samples - faint) < 0.2 * rms(coarse.samples - faint)


@pytest.mark.parametrize("condition", ["mp3 64 kbit/s", "mp3 32 kbit/s", "opus 24 kbit/s"])
def test_codecs_keep_length_place_and_level(condition: str):
    sound = burst() + sine(700)
    clip = under(condition, sound)
    assert clip.lossy and clip.seconds == pytest.approx(5.0, abs=0.01)
    back = resample(clip.samples, clip.rate, RATE)
    assert db(rms(under(condition, sine(700)).samples) / rms(sine(700))) == pytest.approx(0, abs=0.5)  # LAME: -0.45 dB
    likeness = np.correlate(back[RATE : 3 * RATE], sound[RATE + 400 : 3 * RATE - 400])  # [400]: nothing is late
    assert abs(int(likeness.argmax()) - 400) <= 0.01 * RATE  # libsndfile's Opus is 6.5 ms late


def test_the_bit_rates_are_what_the_names_say():
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 5 * RATE).astype(np.float32)
    named = [name for name in CONDITIONS if "kbit/s" in name]
    for name in named:
        kbit = 8 * len(CONDITIONS[name](Case(noise, RATE, generator(0, name, "")))) / 5_000
        assert kbit == pytest.approx(float(name.split()[1]), rel=0.1)
    assert len(named) == 3


def test_the_telephone_band_ends_at_300_and_3400_hz():
    gain = {hz: db(rms(under("telephone 300-3,400 Hz", sine(hz)).samples) / rms(sine(hz))) for hz in
            (75, 150, 300, 1_000, 3_400, 6_800)}  # fmt: skip
    assert gain[1_000] == pytest.approx(0, abs=0.2)
    assert gain[300] == pytest.approx(-3, abs=0.3) and gain[3_400] == pytest.approx(-3, abs=0.3)
    assert gain[150] < -20 and gain[75] < -44 and gain[6_800] < -20


def test_levels_offset_and_clipping():
    tone = sine(440, peak=0.9)
    assert db(rms(under("level -30 dB", tone).samples) / rms(tone)) == pytest.approx(-30, abs=0.01)
    assert under("DC offset +0.1", tone).samples == pytest.approx(tone + 0.1, abs=1e-6)
    loud, soft = under("level +12 dB, clipped", tone), under("level +12 dB, clipped", sine(440, peak=0.2))
    assert np.abs(loud.samples).max() == 1.0 and np.mean(np.abs(loud.samples) == 1.0) > 0.5
    assert db(rms(soft.samples) / rms(sine(440, peak=0.2))) == pytest.approx(12, abs=0.01)


@pytest.mark.parametrize("snr", [20, 10, 5])
@pytest.mark.parametrize("kind", ["pink noise", "another clip"])
def test_noise_has_its_ratio_to_the_clip_where_that_sounds(kind: str, snr: int, data: Path):
    sound = burst()
    added = under(f"{kind} {snr} dB", sound, (data / "audio" / "5-rain-0.flac",)).samples - sound
    assert db(rms(sound[RATE : 3 * RATE]) / rms(added)) == pytest.approx(snr, abs=0.3)
    assert rms(added[-RATE:]) == pytest.approx(rms(added), rel=0.3)  # it fills the silence


def test_pink_noise_has_equal_power_in_every_octave():
    spectrum = np.abs(np.fft.rfft(robustness.pink(Case(np.zeros(20 * RATE), RATE, generator(0, "", "")))))
    octaves = [np.sum(spectrum[20 * 2**k * 20 : 20 * 2 ** (k + 1) * 20] ** 2) for k in range(8)]
    assert max(octaves) < 1.5 * min(octaves) and spectrum[: 19 * 20].max() < 1e-6


def test_the_background_of_a_clip_with_silence_is_repeated_without_it(data: Path):
    found = robustness.background(Case(np.zeros(5 * RATE), RATE, generator(0, "", ""), [data / "audio/5-dog-0.flac"]))
    assert len(found) == 5 * RATE and robustness.sounding(found, RATE).all()
    with pytest.raises(DataError, match="wants a second"):
        under("another clip 5 dB", burst())


def test_reverberation_decays_by_60_db_in_its_time_and_is_as_strong_as_the_direct_sound():
    click = np.zeros(2 * RATE, np.float32)
    click[100] = 1.0
    answer = under("reverberation 0.6 s", click).samples[100:].astype(np.float64)
    assert answer[0] == pytest.approx(1, abs=1e-3) and not np.abs(answer[RATE:]).max() > 1e-4
    left = np.cumsum(answer[:0:-1] ** 2)[::-1]  # Schroeder's integral: the energy still to come
    assert left[0] == pytest.approx(1, abs=0.01)
    t = np.arange(len(left)) / RATE
    fit = (t > 0.05) & (t < 0.4)
    assert -60 / np.polyfit(t[fit], 10 * np.log10(left[fit]), 1)[0] == pytest.approx(0.6, rel=0.05)


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_speed_changes_pitch_and_length(factor: float):
    clip = under(f"speed {factor}", sine(1_000))
    assert loudest_hz(clip) == pytest.approx(1_000 * factor, abs=1)
    assert clip.seconds == pytest.approx(5 / factor, abs=1e-3)


def test_trimming_leaves_no_digital_silence_at_the_ends():
    ends = burst()
    ends[0] = ends[-1] = 1 / 32_768  # the ripple of a resampled pad
    clip = under("silence trimmed", ends)
    assert np.array_equal(clip.samples, burst()[RATE : 3 * RATE])
    assert len(under("silence trimmed", np.zeros(RATE, np.float32)).samples) == RATE


def test_a_moved_sound_is_the_same_sound_elsewhere():
    padded, full = burst(), sine(440) * np.linspace(0.1, 1, 5 * RATE, dtype=np.float32)
    for sound in (padded, full):
        clip = under("moved", sound)
        assert len(clip.samples) == len(sound) and not np.array_equal(clip.samples, sound)
        assert rms(clip.samples) == pytest.approx(rms(sound))
    assert np.array_equal(robustness.trimmed(Case(under("moved", padded).samples, RATE, generator(0, "", ""))),
                          padded[RATE : 3 * RATE])  # fmt: skip


# --- the table -------------------------------------------------------------------------------------------------------


def test_a_table_depends_neither_on_order_nor_on_company(
    data: Path, by_content: Classifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    table = measure(by_content, data, 5)
    assert 0 < sum(row["correct"] for row in table["rows"].values()) < 6 * len(CONDITIONS)
    turned = tmp_path / "turned"
    (turned / "meta").mkdir(parents=True)
    (turned / "audio").symlink_to(data / "audio")
    head, *lines = (data / "meta" / "esc50.csv").read_text().splitlines()
    (turned / "meta" / "esc50.csv").write_text("\n".join([head, *reversed(lines)]))
    monkeypatch.setattr(robustness, "BATCH", 4)
    assert measure(by_content, turned, 5) == table
    assert measure(by_content, data, 5, seed=1) != table
    some = measure(by_content, data, 5, clips=2)
    for name, row in some["rows"].items():
        whole = dict(zip(table["files"], table["rows"][name]["hits"], strict=True))
        assert row["hits"] == [whole[file] for file in some["files"]]


def test_folds_are_pooled_clip_by_clip(data: Path, by_content: Classifier):
    one = measure(by_content, data, 5)
    both = pool([one, one])
    assert both["folds"] == [5, 5] and len(both["files"]) == 12
    for name, row in both["rows"].items():
        assert (row["clips"], row["correct"]) == (12, 2 * one["rows"][name]["correct"])
        assert row["accuracy"] == one["rows"][name]["accuracy"] and len(row["hits"]) == 12
        assert np.diff(row["interval"]) < np.diff(one["rows"][name]["interval"])


def loses(rows: dict[str, int]) -> dict:
    """A table of 100 clips in which these rows lose so many points, the others none."""
    hits = {name: [i >= rows.get(name, 0) for i in range(100)] for name in CONDITIONS}
    return pool([{"folds": [1], "seed": 0, "files": [str(i) for i in range(100)],
                  "rows": {name: {"hits": row} for name, row in hits.items()}}])  # fmt: skip


def test_the_targets_are_the_issues():
    assert loses({"8 kHz": 8, "pink noise 5 dB": 12, "silence trimmed": 3})["missed"] == []
    most = {"8 kHz": 9, "pink noise 5 dB": 13, "silence trimmed": 4}
    assert loses(most)["missed"] == list(most)
    table = loses(dict.fromkeys(set(CONDITIONS) - {"clean", "silence trimmed"}, 4))
    assert table["missed"] == ["mean"] and table["mean_loss"] == pytest.approx(4 * 21 / 22)


def test_the_command_prints_every_row_and_writes_the_same_table(data: Path, tiny: Path, tmp_path: Path, capsys):
    out = tmp_path / "new" / "table.json"
    command = ["--model", str(tiny), "--data", str(data), "--device", "cpu", "--clips", "3", "--json", str(out)]
    assert robustness.main(command) == 0
    printed = capsys.readouterr().out
    table = json.loads(out.read_text())
    for name, row in table["rows"].items():
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert f"{100 * row['accuracy']:.2f} %" in line and len(row["hits"]) == 3
    assert list(table["rows"]) == list(CONDITIONS) and "targets:" in printed and "3 clips of fold 5" in printed
    assert robustness.main([*command, "--fold", "4"]) == 1
    assert "no clip in fold 4" in capsys.readouterr().err
