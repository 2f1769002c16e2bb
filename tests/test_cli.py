"""python -m cnn: the same answer in the terminal, for people and as JSON; a bad file never costs the good ones."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cnn import audio
from cnn.__main__ import bar, main, say
from cnn.audio import Clip
from cnn.classifier import Classifier
from cnn.labels import spoken

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def wav(tmp_path: Path, tone: Clip) -> Path:
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone.samples, tone.rate)
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.wav"
    path.write_text("this is a letter, not a sound\n")
    return path


Run = Callable[..., int]


@pytest.fixture
def run(tiny_classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> Run:
    """main(arguments) with one network for all tests."""
    monkeypatch.setattr(Classifier, "open", lambda model, device: tiny_classifier)
    return lambda *arguments: main([str(argument) for argument in arguments])


def test_json_is_the_classifiers_answer(run: Run, tiny_classifier: Classifier, wav: Path, capsys):
    assert run(wav, "--json", "--top", 5) == 0
    (line,) = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    expected = tiny_classifier.predict(wav).to_dict(top=5)
    assert answer["file"] == str(wav)
    assert answer["predictions"] == expected["predictions"] and len(answer["predictions"]) == 5
    assert set(answer) == {"file", *expected}


def test_text_names_the_classes_with_percentages_and_where_it_ran(run: Run, tiny_classifier, wav: Path, capsys):
    assert run(wav, "--top", 2) == 0
    out = capsys.readouterr().out
    first, second, third = tiny_classifier.predict(wav).labels[:3]
    assert spoken(first.name) in out and f"{second.probability:.1%}" in out
    assert spoken(third.name) not in out
    assert str(wav) in out and "5 s" in out and "44.1 kHz" in out and "on cpu" in out and "resnet34" in out


@pytest.mark.parametrize(("maps", "count"), [("none", 0), ("stages", 5), ("all", 37)])
def test_maps_are_added_on_demand(run: Run, wav: Path, capsys, maps: str, count: int):
    assert run(wav, "--json", "--maps", maps) == 0
    assert len(json.loads(capsys.readouterr().out).get("visualization", {})) == count
    assert run(wav, "--maps", maps) == 0
    assert capsys.readouterr().out.count("channel mean") == count


def test_a_bad_file_is_named_and_the_others_are_answered(run: Run, wav: Path, broken: Path, tmp_path: Path, capsys):
    missing = tmp_path / "missing.wav"
    assert run(broken, wav, missing, wav, "--json") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == [str(p) for p in (broken, wav, missing, wav)]
    assert ["error" in line for line in lines] == [True, False, True, False]
    assert run(broken, wav) == 1
    out, err = capsys.readouterr()
    assert str(wav) in out and str(broken) not in out
    assert err.startswith(str(broken)) and err.count("\n") == 1


def test_silence_gets_its_level_and_no_name(run: Run, tmp_path: Path, capsys):
    for name, level in (("digital.wav", 0.0), ("faint.wav", 1e-4)):
        soundfile.write(tmp_path / name, np.full(16_000, level), 16_000, subtype="FLOAT")
    files = [tmp_path / "digital.wav", tmp_path / "faint.wav"]
    assert run(*files) == 0
    out = capsys.readouterr().out
    assert out.lower().count("nothing to hear") == 2 and "-80 dBFS" in out and "%" not in out
    assert run(*files, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["verdict"], line["predictions"]) for line in lines] == [("silent", [])] * 2


@pytest.mark.parametrize("scale", [2.0**31, 1e20, 1e38])
def test_an_answer_about_huge_samples_is_a_number(run: Run, tone: Clip, tmp_path: Path, capsys, scale: float):
    soundfile.write(path := tmp_path / "huge.wav", tone.samples * np.float32(scale), tone.rate, subtype="FLOAT")
    assert run(path, "--json", "--top", 50) == 0
    answer = json.loads(capsys.readouterr().out)
    silent = answer["verdict"] == "silent"  # nothing is left
    assert silent or sum(x["confidence"] for x in answer["predictions"]) == pytest.approx(1, abs=0.01)
    assert run(path) == 0
    out = capsys.readouterr().out
    assert ("%" not in out) == silent and "nan%" not in out
    assert ("beyond any scale" in out) == (scale > 2**32)


def test_too_much_standard_input_is_refused_without_a_wrong_size(run: Run, wav: Path, capsys, monkeypatch):
    monkeypatch.setattr(audio, "MAX_BYTES", 1000)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(wav.read_bytes())))
    assert run("-") == 1
    assert capsys.readouterr().err.startswith("standard input is larger than the ")


def test_a_dash_reads_standard_input(run: Run, wav: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(wav.read_bytes())))
    assert run("-", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert run(wav, "--json") == 0
    assert answer["file"] == "-"
    assert answer["predictions"] == json.loads(capsys.readouterr().out)["predictions"]


def test_a_wrong_command_or_network_is_2(wav: Path, broken: Path, capsys):
    assert main([str(wav), "--model", str(broken)]) == 2
    assert str(broken) in capsys.readouterr().err
    for arguments in ([], [str(wav), "--top", "0"], [str(wav), "--maps", "some"]):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2


def test_nothing_in_a_name_can_steer_the_terminal(capsys):
    say(sys.stdout, "a\x1b[2Jb\rc\u202ed\udcffe\nf")
    out = capsys.readouterr().out
    assert out[0] == "a" and out.removesuffix("\n").isprintable()


def test_no_name_can_forge_a_line(run: Run, wav: Path, tmp_path: Path, capsys):
    forged = wav.rename(tmp_path / "a\n  dog  99.9%.wav")
    assert run(wav.with_name("none\n  dog  99.9%.wav"), forged) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and not any(line.startswith("  dog  99.9%") for line in (out + err).splitlines())


def test_bars_start_at_zero_and_fall_back_to_ascii():
    assert bar(0.0, "utf-8") == "" and len(bar(1.0, "utf-8")) == 2 * len(bar(0.5, "utf-8")) > 0
    assert bar(1.0, "ascii") == "#" * len(bar(1.0, "utf-8"))


def test_the_real_command_ends_quietly_when_its_reader_goes(tiny: Path, wav: Path, broken: Path):
    command = [sys.executable, "-m", "cnn", "--model", tiny, "--device", "cpu", "--json", broken, *[wav] * 5]
    env = os.environ | {"PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
    assert "error" in json.loads(first)
    assert error == b"" and process.returncode == 1


def test_help_does_not_wait_for_torch():
    code = "import sys, cnn.__main__ as c\ntry: c.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
