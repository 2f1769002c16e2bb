"""What if: every change does what it says to a known sound, and nothing else, and can be taken back."""

import numpy as np
import pytest

from cnn.audio import Clip
from cnn.whatif import MOST, TOO_LOUD, Band, Erase, Gain, History, Noise, Shift, apply

RATE = 22_050
TIME = np.arange(3 * RATE) / RATE


def clip_of(samples: np.ndarray) -> Clip:
    samples = samples.astype(np.float32)
    samples.flags.writeable = False
    return Clip(samples, RATE, "known.wav")


def decibels(part: np.ndarray, whole: np.ndarray) -> float:
    power = [np.square(x, dtype=np.float64).mean() for x in (part, whole)]
    return 10 * np.log10(max(power[0], 1e-30) / power[1])


LOW, MIDDLE, HIGH = (0.2 * np.sin(2 * np.pi * hertz * TIME) for hertz in (200, 1000, 5000))
SOUND = clip_of(LOW + MIDDLE + HIGH)


@pytest.mark.parametrize(
    ("edit", "kept"),
    [(Band(None, 2000), LOW + MIDDLE), (Band(500, None), MIDDLE + HIGH), (Band(500, 2000), MIDDLE)],
    ids=["low-pass", "high-pass", "band-pass"],
)
def test_a_filter_removes_what_it_says_by_40_db_and_leaves_the_rest(edit: Band, kept: np.ndarray):
    changed = apply(SOUND, [edit])
    inside = slice(RATE // 10, -RATE // 10)  # a tone that begins at once has more than its frequency
    assert decibels((changed.samples - kept)[inside], SOUND.samples[inside]) < -40
    assert (changed.rate, len(changed.samples)) == (RATE, len(SOUND.samples))


def test_erasing_a_burst_leaves_the_rest():
    burst = 0.4 * np.sin(2 * np.pi * 3000 * TIME) * ((TIME > 1.2) & (TIME < 1.5))
    sound = clip_of(LOW + burst)
    changed = apply(sound, [Erase(1.1, 1.6, 1500, 6000)])
    assert decibels(changed.samples - LOW, burst) < -25  # the click of its ends reaches beyond any rectangle
    near = (TIME > 1.0) & (TIME < 1.7)
    assert np.abs((changed.samples - sound.samples)[~near]).max() < 1e-6


def test_noise_has_its_level_and_its_seed():
    changed = apply(SOUND, [Noise(20.0, seed=3)])
    assert decibels(changed.samples - SOUND.samples, SOUND.samples) == pytest.approx(-20, abs=0.1)
    assert np.array_equal(changed.samples, apply(SOUND, [Noise(20.0, seed=3)]).samples)
    assert not np.array_equal(changed.samples, apply(SOUND, [Noise(20.0, seed=4)]).samples)


def test_a_shift_moves_and_loses_nothing_and_a_gain_that_would_clip_is_told():
    assert np.array_equal(apply(SOUND, [Shift(0.5)]).samples, np.roll(SOUND.samples, RATE // 2))
    assert apply(SOUND, [Gain(-6)]).notes == ()
    louder = apply(SOUND, [Gain(20)])
    assert louder.samples == pytest.approx(10 * SOUND.samples) and louder.notes == (TOO_LOUD,)


def test_undo_and_redo_give_the_bit_identical_sound_and_the_clip_in_hand_is_never_touched():
    before = SOUND.samples.copy()
    first = History().then(Erase(0.5, 1, 0, 800)).then(Noise(10))
    heard = [apply(SOUND, first.done[:k]).samples for k in range(3)]
    back = first.undo()
    assert np.array_equal(apply(SOUND, back.done).samples, heard[1])
    assert np.array_equal(apply(SOUND, back.redo().done).samples, heard[2])
    assert apply(SOUND, first.reset().done) is SOUND
    assert first.reset().redo().redo() == first and first.undo().then(Gain(3)).undone == ()
    assert History().undo() == History().redo() == History()
    assert np.array_equal(SOUND.samples, before)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Band(3000, 200), "3,000 Hz, does not lie below the high edge, 200 Hz"),
        (Band(None, 12_000), "below 11,025 Hz"),
        (Band(0, None), "above 0"),
        (Band(None, None), "at least one edge"),
        (Erase(1, 1, 0, 100), "no stretch"),
        (Erase(3, 4, 0, 100), "after the end of the sound, which lasts 3.00 s"),
        (Erase(0, 1, 12_000, 13_000), "nothing above 11,025 Hz"),
        (Erase(0, 1, 500, 400), "does not lie below"),
        (Noise(200), "-20 to 80 dB"),
        (Gain(0), "not 0"),
        (Shift(3), "by less than that"),
        (Gain(float("nan")), "plain numbers"),
    ],
    ids=repr,
)
def test_senseless_numbers_are_refused_in_a_sentence(edit: object, words: str):
    with pytest.raises(ValueError, match=words) as refused:
        apply(SOUND, [edit])
    assert str(refused.value).endswith(".")


def test_nothing_becomes_so_loud_that_the_network_would_hear_no_number():
    for edit in (Gain(40.0), Noise(-20.0)):
        with pytest.raises(ValueError, match="choose something softer"):
            apply(SOUND, [edit] * MOST)
    assert np.isfinite(apply(SOUND, [Gain(40.0)] * 4).samples).all()


def test_there_are_no_more_changes_than_can_be_heard_at_once():
    with pytest.raises(ValueError, match="undo some"):
        apply(SOUND, [Gain(1)] * (MOST + 1))
