"""python -m cnn: the same answer in the terminal, for people and as JSON; a bad file never costs the good ones."""

import errno
import io
import json
import os
import re
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
from cnn.explain import explain
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


# ---- why


def test_why_is_said_in_numbers_a_verdict_and_words(run: Run, tiny_classifier: Classifier, wav: Path, capsys):
    asked = ["--class", "crying baby", "--against", "dog", "--method", "gradcam", "--tap", "layer2"]
    assert run(wav, "--explain", *asked) == 0
    out = capsys.readouterr().out
    why = explain(tiny_classifier, audio.load(wav), label="crying_baby", against="dog", method="gradcam", tap="layer2")
    number = r"(?:< 0\.1|> 99\.9|[\d.]+) %"
    named = ("evidence alone", "without it", "random mask of the same area")
    assert re.search(" · ".join(f"{name}: crying baby {number}" for name in named), out)
    assert all(line in out for line in (str(wav), why.numbers, why.verdict, why.where, "gradcam on layer2"))
    assert "rather than dog" in out and "0 to 5 s" in out


def test_evidence_is_written_whole_or_not_at_all(run: Run, wav: Path, tmp_path: Path, capsys, monkeypatch):
    folder = tmp_path / "new" / "why"
    assert run(wav, "--explain", "--method", "hirescam", "--out", folder) == 0
    names = ["evidence.wav", "map.png", "original.wav", "remainder.wav"]
    assert sorted(path.name for path in folder.iterdir()) == names
    sound = {name: soundfile.read(folder / f"{name}.wav")[0] for name in ("original", "evidence", "remainder")}
    np.testing.assert_allclose(sound["evidence"] + sound["remainder"], sound["original"], atol=1e-6)
    capsys.readouterr()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (blocked := tmp_path / "blocked").mkdir()
    (blocked / "original.wav").mkdir()  # a folder where a file should be
    for place in (wav, wav / "below", blocked):
        assert run(wav, "--explain", "--method", "hirescam", "--out", place) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith(f"{place} cannot be written (")
    assert [path.name for path in blocked.iterdir()] == ["original.wav"] and wav.is_file()

    def full(path: str, mode: str):
        if path.endswith("remainder.wav"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, mode)

    monkeypatch.setattr("cnn.__main__.open", full, raising=False)
    assert run(wav, "--explain", "--class", "rain", "--method", "layercam", "--out", folder) == 2
    assert "no space left on device" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_why_as_json_is_one_line_a_file(run: Run, wav: Path, broken: Path, tmp_path: Path, capsys):
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    assert run(wav, broken, tmp_path / "silent.wav", wav, "--explain", "--json", "--class", "dog", "--top", 2) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in line for line in lines] == [False, True, True, False] and lines[0] == lines[3]
    assert lines[0]["class"] == "dog" and len(lines[0]["parts"]["evidence"]["predictions"]) == 2
    assert "Nothing to hear" in lines[2]["error"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--class", "doorbell"], "class 'doorbell' is unknown; known are dog,"),
        (["--class", "dog", "--against", "dog"], "name two classes"),
        (["--method", "magic"], "known are hirescam"),
        (["--method", "hirescam", "--tap", "layer9"], "layer2, layer3"),
    ],
)
def test_a_why_that_cannot_be_asked_is_one_sentence_and_2(run: Run, wav: Path, tmp_path: Path, capsys, asked, says):
    assert run(wav, "--explain", *asked, "--out", tmp_path / "why") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err and not (tmp_path / "why").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--class", "dog"], ["--out", "x"], ["--explain", "--maps", "all"], ["b.wav", "--explain", "--out", "x"]],
)
def test_flags_that_belong_to_another_question_are_refused(wav: Path, arguments: list[str], capsys):
    with pytest.raises(SystemExit) as error:
        main([str(wav), *arguments])
    assert error.value.code == 2 and "--explain" in capsys.readouterr().err


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
