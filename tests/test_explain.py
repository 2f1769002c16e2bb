"""Why: what is played is what was heard, the numbers are the network's own, and the verdict follows from them."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
import soundfile
import torch

from cnn import explain as module
from cnn.audio import AudioError, Clip, resample
from cnn.checkpoint import Checkpoint
from cnn.classifier import Classifier
from cnn.explain import METHODS, Explanation, Part, explain, random_masks
from cnn.labels import ESC50
from cnn.mel import MEL_16K
from cnn.model import SE_FPN, AudioCNN


def noise(seconds: float, rate: int = 16_000, level: float = 0.1) -> Clip:
    samples = np.random.default_rng(0).normal(0, level, round(seconds * rate)).astype(np.float32)
    return Clip(samples, rate, "noise.wav")


def box(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((MEL_16K.n_mels, MEL_16K.frames), np.float32)
    mask[rows, columns] = 1
    return mask


def with_mask(monkeypatch: pytest.MonkeyPatch, mask: np.ndarray) -> None:
    monkeypatch.setattr(module, "mask_of", lambda *_: mask)


def decoded(data: bytes) -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(data), dtype="float64")


# ---- the parts


@pytest.mark.parametrize(
    ("seconds", "rate", "level", "window"), [(5, 44_100, 0.001, None), (0.1, 8_000, 0.1, None), (12.3, 22_050, 2.0, 2)]
)
def test_what_is_played_adds_up_with_one_gain_and_never_clips(
    tiny_classifier: Classifier, seconds: float, rate: int, level: float, window: int | None
):
    clip = noise(seconds, rate, level)
    why = explain(tiny_classifier, clip, window=window)
    (original, had), (evidence, _), (remainder, _) = (
        decoded(why.wav(part)) for part in (why.original, why.evidence, why.remainder)
    )
    assert had == rate and len(original) == min(len(clip.samples), 5 * rate)
    off = np.square(evidence + remainder - original).sum() / np.square(original).sum()
    assert 10 * np.log10(off) < -60
    start = round(why.start * rate)
    assert why.window == (window or 0) and (why.start > 0) == (window is not None)
    np.testing.assert_allclose(original, why.gain * clip.samples[start:][: len(original)], atol=2**-22)
    assert max(np.abs(part.clip.samples * why.gain).max() for part in why.parts) <= 1
    assert why.gain < 1 if level > 1 else why.gain == 1
    assert np.square(evidence).sum() > 0 and why.mask.shape == (128, 251) and 0 <= why.mask.min() <= why.mask.max() <= 1


def test_of_a_long_sound_the_window_is_explained_that_is_most_like_the_class(tiny_classifier: Classifier):
    clip = noise(14)
    shares = tiny_classifier.predict(clip).window_probabilities  # (B, N)
    wanted = shares.argmax(axis=0)  # (N,)
    assert len(set(wanted)) > 1
    for window in set(wanted):
        label = ESC50[int(np.flatnonzero(wanted == window)[0])]
        assert explain(tiny_classifier, clip, label=label, method="hirescam").window == window


@pytest.mark.parametrize("seconds", [5, 0.4, 9])
def test_the_numbers_are_what_the_network_says_of_each_part(tiny_classifier: Classifier, seconds: float):
    clip = noise(seconds)
    why = explain(tiny_classifier, clip, label="rain", method="layercam", tap="layer2")
    row = ESC50.index("rain")
    for part in why.parts:
        said = tiny_classifier.predict(part.clip)
        assert part.probability == pytest.approx(said.window_probabilities[0, row], abs=1e-5)
        assert part.prediction.labels[0].name == said.labels[0].name
    whole = tiny_classifier.predict(clip)
    assert why.original.probability == pytest.approx(whole.window_probabilities[why.window, row], abs=1e-3)
    assert (why.label, why.method, why.tap, why.start) == ("rain", "layercam", "layer2", whole.starts[why.window])
    parts = why.evidence.clip.samples + why.remainder.clip.samples
    np.testing.assert_allclose(parts, why.original.clip.samples, atol=1e-6)


def test_a_part_with_nothing_to_hear_gives_no_class_a_share(tiny_classifier: Classifier, monkeypatch, tone: Clip):
    with_mask(monkeypatch, box(slice(None), slice(None)))
    fades = np.hanning(80_000) * resample(tone.samples, 44_100, 16_000)
    everything = explain(tiny_classifier, Clip(fades.astype(np.float32), 16_000), method="hirescam")
    assert everything.remainder.prediction is None and everything.remainder.probability == 0
    assert everything.evidence.prediction is not None and everything.area == 1
    with_mask(monkeypatch, box(slice(0), slice(0)))
    nothing = explain(tiny_classifier, tone, method="hirescam")
    assert nothing.evidence.prediction is None and nothing.evidence.probability == 0 and not nothing.reliable
    assert nothing.where.startswith("no evidence anywhere; without it ") and "stays at" in nothing.where
    assert nothing.to_dict()["parts"]["evidence"] == {"confidence": 0, "predictions": []}
    assert nothing.picture().alt


@pytest.mark.parametrize("clip", [Clip(np.zeros(16_000, np.float32), 16_000), noise(2, level=1e-5)])
def test_silence_has_no_why(tiny_classifier: Classifier, clip: Clip):
    with pytest.raises(AudioError, match="Nothing to hear"):
        explain(tiny_classifier, clip, label="dog", window=0)


# ---- the random masks


def test_random_masks_have_the_same_area_within_the_sound_and_other_places():
    mask = np.random.default_rng(0).random((128, 251), np.float32) ** 4
    mask[:, 100:] = 0
    others = random_masks(mask, 100, 8, np.random.default_rng(1))
    for other in others:
        assert not other[:, 100:].any()
        np.testing.assert_array_equal(np.sort(other, axis=None), np.sort(mask, axis=None))
        assert np.abs(np.corrcoef(other.ravel(), mask.ravel())[0, 1]) < 0.5
    assert len({other.tobytes() for other in others}) == 8


def test_the_same_question_has_the_same_answer_and_asking_changes_nothing(tiny_classifier: Classifier):
    clip = noise(6)
    before = tiny_classifier.predict(clip, maps="all")
    for method in METHODS:
        one, two, other = (explain(tiny_classifier, clip, method=method, seed=seed) for seed in (3, 3, 4))
        np.testing.assert_array_equal(one.mask, two.mask)
        np.testing.assert_array_equal(one.random.clip.samples, two.random.clip.samples)
        assert one.to_dict() == two.to_dict()
        assert (one.random.clip.samples != other.random.clip.samples).any()
        np.testing.assert_allclose(one.random.clip.samples.std(), other.random.clip.samples.std(), rtol=0.5)
    after = tiny_classifier.predict(clip, maps="all")
    np.testing.assert_array_equal(after.logits, before.logits)
    for tap, values in before.maps.items():
        np.testing.assert_array_equal(after.maps[tap], values)


# ---- the verdict


@pytest.mark.parametrize(
    ("kept", "left", "chance", "rest", "reliable"),
    [
        (0.88, 0.09, 0.61, 0.50, True),
        (0.98, 0.03, 0.89, 0.92, True),  # a part is enough, but only this one is missed
        (0.96, 0.92, 0.91, 0.91, False),  # any part is enough, and none is missed
        (0.90, 0.10, 0.85, 0.15, False),  # as good as chance
        (0.05, 0.31, 0.03, 0.90, False),  # better than chance, but the evidence is in the rest
        (0.00, 0.00, 0.00, 0.00, False),
    ],
)
def test_evidence_that_chance_finds_as_well_is_not_reliable(
    tiny_classifier, monkeypatch, kept, left, chance, rest, reliable
):
    said, real = {"original": 0.9, "evidence": kept, "remainder": left}, module._hear

    def hear(classifier: Classifier, clip: Clip, sounds: dict, label: str) -> dict[str, Part]:
        shares = {name: said.get(name, chance if name.startswith("random") else rest) for name in sounds}
        parts = real(classifier, clip, sounds, label)
        return {name: dataclasses.replace(part, probability=shares[name]) for name, part in parts.items()}

    monkeypatch.setattr(module, "_hear", hear)
    why = explain(tiny_classifier, noise(1), label="crying_baby", method="layercam")
    assert why.reliable is reliable
    assert ("this explanation is not reliable for this clip" in why.verdict) is not reliable
    assert "heard as crying baby with" in why.verdict and module.percent(left) in why.verdict


def test_where_says_where_most_of_the_mask_lies(tiny_classifier: Classifier, monkeypatch):
    clip = noise(10)
    low, high = (int(np.abs(MEL_16K.centres - hertz).argmin()) for hertz in (1000, 3000))
    mask = box(slice(low, high), slice(60, 80)) + 0.01  # 1.2 to 1.6 s, and a little everywhere
    with_mask(monkeypatch, mask)
    why = explain(tiny_classifier, clip, label="dog", method="hirescam", window=1)
    when, course = why.where.split("; ")
    begin, end, low, high = map(float, re.fullmatch(r"most evidence (.*)-(.*) s, (.*)-(.*) kHz", when).groups())
    assert 3.6 < begin < end < 4.2 and end - begin > 0.25 and 0.9 < low < high < 3.1  # 2.5 s later: the second window
    before, after = (module.percent(part.probability) for part in (why.original, why.remainder))
    falls = "falls" if why.remainder.probability < why.original.probability else "rises"
    assert course in (f"without it dog {falls} from {before} to {after}", f"without it dog stays at {before}")
    assert why.where in why.picture().alt and module._band(310, 940) == "310-940 Hz"
    assert module._band(310, 1234) == "310 Hz-1.2 kHz" and module._band(1000, 3000) == "1-3 kHz"


def test_the_shortest_stretch_is_found():
    mass = np.array([0, 1, 0, 0, 5, 4, 0, 1.0])
    assert module._shortest(mass, 9 / 11) == (4, 5) and module._shortest(mass, 1) == (1, 7)
    assert module._shortest(np.ones(9), 1 / 3) == (3, 5)  # of equals the middle one


# ---- what is asked


def test_without_a_class_it_is_the_first_name_or_the_first_that_is_not_the_other(tiny_classifier: Classifier):
    first, second = (label.name for label in tiny_classifier.predict(noise(5)).labels[:2])
    assert explain(tiny_classifier, noise(5)).label == first
    assert explain(tiny_classifier, noise(5), against=second).label == first
    assert explain(tiny_classifier, noise(5), against=first).label == second


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"label": "doorbell"}, "class 'doorbell' is unknown; known are dog, rooster"),
        ({"against": "doorbell"}, "class 'doorbell' is unknown"),
        ({"label": "dog", "against": "dog"}, "name two classes"),
        ({"method": "magic"}, "method 'magic' is unknown; known are hirescam, layercam, gradcam, perturbation"),
        (
            {"method": "hirescam", "tap": "layer1"},
            "no evidence is sought in 'layer1'; resnet34 has it in layer2, layer3",
        ),
        ({"method": "perturbation", "tap": "layer3"}, "leave out 'layer3'"),
        ({"window": 7}, "there is no window 7"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(tiny_classifier: Classifier, how: dict, says: str):
    with pytest.raises(ValueError, match=says):
        explain(tiny_classifier, noise(1), **how)


def test_gates_and_pyramids_are_explained_by_every_method():
    config = dataclasses.replace(SE_FPN, width=4, fpn_channels=8, head_hidden=(16, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(Checkpoint(config, MEL_16K, ESC50, AudioCNN(config).state_dict()), device="cpu")
    cells = {"layer2": (16, 32), "layer3": (8, 16), "fpn.p1": (32, 63)}
    for tap, shape in cells.items():
        for method in module.cam.METHODS:
            why = explain(classifier, noise(1), label="dog", against="rain", method=method, tap=tap)
            assert why.map.shape == shape and why.map.min() >= 0 and not why.mask[:, 52:].any()
    assert explain(classifier, noise(1), method="perturbation").tap == ""


def test_as_json_it_is_plain_and_short(tiny_classifier: Classifier):
    why = explain(tiny_classifier, noise(3), against="rain")
    assert isinstance(why, Explanation)
    answer = json.loads(json.dumps(why.to_dict(top=2), allow_nan=False))
    assert answer["class"] == why.label and answer["against"] == "rain" and answer["where"] == why.where
    assert list(answer["parts"]) == ["original", "evidence", "remainder", "random"]
    assert answer["parts"]["evidence"]["confidence"] == float(f"{why.evidence.probability:.4g}")
    assert all(len(part["predictions"]) == 2 for part in answer["parts"].values())
    assert sorted(why.files()) == ["evidence.wav", "map.png", "original.wav", "remainder.wav"]
    assert why.files()["map.png"].startswith(b"\x89PNG")
