"""The seam: one answer for a sound, however it comes in and whoever is in the batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cnn import audio, checkpoint
from cnn.classifier import Classifier, fuse
from cnn.mel import LogMel

EXAMPLES = Path(__file__).resolve().parent.parent / "assets" / "examples"
RATE = 16_000


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(seconds * RATE)).clip(-1, 1).astype(np.float32)


def same(a, b) -> None:
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)
    assert [x.name for x in a.labels[:3]] == [x.name for x in b.labels[:3]]


def test_path_bytes_array_and_equal_stereo_agree(tiny_classifier: Classifier, tmp_path: Path):
    sound = noise(5)
    path = tmp_path / "sound.wav"
    soundfile.write(path, sound, RATE, subtype="FLOAT")
    answer = tiny_classifier.predict(path)
    for other in (path.read_bytes(), (RATE, sound), (RATE, np.stack([sound, sound], axis=1)), audio.load(path)):
        same(tiny_classifier.predict(other), answer)


def test_probabilities_are_probabilities_and_ranked(tiny_classifier: Classifier):
    answer = tiny_classifier.predict((RATE, noise(5)))
    probabilities = [x.probability for x in answer.labels]
    assert len(probabilities) == 50 and abs(sum(probabilities) - 1) < 1e-6
    assert probabilities == sorted(probabilities, reverse=True)
    assert {x.name for x in answer.labels} == set(tiny_classifier.labels)
    assert answer.verdict == "named" and answer.labels[0].name.replace("_", " ") in answer.message


def test_a_batch_answers_each_sound_as_if_it_were_alone(tiny_classifier: Classifier):
    sounds = [(RATE, noise(s, seed=i)) for i, s in enumerate((0.1, 5.0, 12.3, 7.0))] + [(RATE, np.zeros(RATE))]
    answers = tiny_classifier.predict_batch(sounds)
    for alone, together in zip(map(tiny_classifier.predict, sounds), answers, strict=True):
        same(alone, together)
        assert alone.window == together.window and alone.verdict == together.verdict


def test_the_folded_network_answers_as_the_trained_one(tiny: Path, tiny_classifier: Classifier):
    sound = noise(5)
    plain = checkpoint.load(tiny).build()
    front_end = LogMel(tiny_classifier.mel)
    with torch.inference_mode():
        logits, maps = plain(front_end(torch.from_numpy(sound)[None]), return_feature_maps=True)
    answer = tiny_classifier.predict((RATE, sound), maps="all")
    np.testing.assert_allclose(answer.logits, logits[0], atol=1e-4)
    assert len(answer.maps) == 37 and list(answer.maps)[:5] == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    for tap, values in answer.maps.items():
        assert answer.shapes[tap] == maps[tap].shape[1:]
        np.testing.assert_allclose(values, maps[tap][0].mean(dim=0), atol=1e-4, err_msg=tap)


def test_folding_really_happens(tiny: Path):
    model = fuse(checkpoint.load(tiny).build())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


def test_maps_do_not_change_the_answer(tiny_classifier: Classifier):
    sound = (RATE, noise(5))
    answers = [tiny_classifier.predict(sound, maps=m) for m in ("none", "stages", "all")]
    assert [len(a.maps) for a in answers] == [0, 5, 37]
    assert all(np.array_equal(a.logits, answers[0].logits) for a in answers)
    with pytest.raises(ValueError, match="none, stages, all"):
        tiny_classifier.predict(sound, maps="some")


def test_a_long_sound_is_the_mean_over_its_windows_and_pictures_show_the_surest(tiny_classifier: Classifier):
    sound = noise(12) * np.repeat([1, 0.1, 0.5], 4 * RATE).astype(np.float32)
    answer = tiny_classifier.predict((RATE, sound), maps="stages")
    assert answer.starts.tolist() == [0, 2.5, 5, 7]
    pieces = [sound[round(s * RATE) :][: 5 * RATE] for s in answer.starts]
    parts = [tiny_classifier.predict((RATE, piece), maps="stages") for piece in pieces]
    every = np.array([[{x.name: x.probability for x in p.labels}[c] for c in tiny_classifier.labels] for p in parts])
    np.testing.assert_allclose(answer.window_probabilities, every, atol=1e-4)
    top = tiny_classifier.labels.index(answer.labels[0].name)
    assert answer.labels[0].probability == pytest.approx(every.mean(axis=0).max(), abs=1e-4)
    assert answer.window == every[:, top].argmax()
    shown = parts[answer.window]
    np.testing.assert_allclose(answer.mel, shown.mel, atol=1e-2)
    np.testing.assert_allclose(answer.maps["layer2"], shown.maps["layer2"], atol=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.0005])
def test_silence_gets_its_level_and_no_name(tiny_classifier: Classifier, level: float):
    answer = tiny_classifier.predict((RATE, level * np.sign(noise(5))), maps="all")
    assert answer.verdict == "silent" and answer.labels == () and answer.maps == {}
    assert "Nothing to hear" in answer.message
    assert ("-66 dBFS" if level else "digital silence") in answer.message
    assert answer.to_dict()["predictions"] == []


def test_silent_stretches_of_a_long_sound_are_not_asked_for_a_name(tiny_classifier: Classifier):
    sound = np.zeros(30 * RATE, np.float32)
    sound[: 5 * RATE] = noise(5)
    whole, part = tiny_classifier.predict((RATE, sound)), tiny_classifier.predict((RATE, sound[: 7 * RATE + RATE // 2]))
    same(whole, part)  # the windows at 0 and 2.5 s
    assert len(whole.starts) == 11


def test_the_json_is_json_and_as_short_as_asked(tiny_classifier: Classifier):
    answer = tiny_classifier.predict((RATE, noise(5)), maps="stages")
    found = json.loads(json.dumps(answer.to_dict(top=3), allow_nan=False))
    assert [set(p) for p in found["predictions"]] == [{"class", "confidence"}] * 3
    assert "visualization" not in found
    maps = json.loads(json.dumps(answer.to_dict(maps="stages"), allow_nan=False))["visualization"]
    assert maps["layer4"]["shape"] == list(answer.shapes["layer4"])
    assert np.shape(maps["layer4"]["values"]) == answer.maps["layer4"].shape


def test_a_device_that_is_not_there_is_refused(tiny: Path):
    with pytest.raises(ValueError, match="auto, cpu, cuda"):
        Classifier.open(tiny, device="tpu")


@pytest.mark.parametrize("path", sorted(checkpoint.BOX.glob("*/best_model.pth")), ids=lambda path: path.parent.name)
def test_a_network_in_the_box_is_what_readme_and_card_say(path: Path):
    found = checkpoint.load(path)
    assert path.stat().st_size <= 50e6
    assert found.state_dict["layer1.0.conv1.weight"].dtype == torch.float16
    assert found.metrics["fold"] == found.provenance["fold_held_out"] == 5 and found.metrics["clips"] == 400
    assert found.provenance["folds_trained_on"] == [1, 2, 3, 4]
    assert found.metrics["accuracy"] >= 0.8 or path != checkpoint.DEFAULT
    quoted = f"{100 * found.metrics['accuracy']:.2f} %"
    card = path.with_name("README.md").read_text(encoding="utf-8")
    assert quoted in card and quoted in (checkpoint.BOX.parents[1] / "README.md").read_text(encoding="utf-8")
    assert "CC BY-NC 3.0" in card and "BY-NC" in found.provenance["licence"]


def test_the_network_in_the_box_names_the_example_clips():
    """They are of the fold that it was not trained on."""
    classifier = Classifier.open(checkpoint.DEFAULT, device="cpu")
    clips = json.loads((EXAMPLES / "examples.json").read_text())
    answers = classifier.predict_batch([EXAMPLES / c["file"] for c in clips])
    right = [a.labels[0].name == c["label"] for a, c in zip(answers, clips, strict=True)]
    assert len(clips) >= 8 and sum(right) >= 0.8 * len(clips)
