"""Masks on the sound: the parts add up, and what a mask holds is where it says, in time and in frequency."""

import numpy as np
import pytest

from cnn import spectrum
from cnn.mel import MEL_16K, MEL_44K
from cnn.spectrum import erase, split

SHAPE = (MEL_16K.n_mels, MEL_16K.frames)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, count).astype(np.float32)


def burst(rate: int, seconds: float, middle: float, hertz: float) -> np.ndarray:
    """A tone of some 0.3 s that comes and goes softly, within `seconds`."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * t) * np.exp(-(((t - middle) / 0.1) ** 2))).astype(np.float32)


def box(seconds: tuple[float, float], hertz: tuple[float, float]) -> np.ndarray:
    times = np.arange(MEL_16K.frames) * MEL_16K.hop_length / MEL_16K.sample_rate
    rows = (MEL_16K.centres >= hertz[0]) & (MEL_16K.centres <= hertz[1])
    return np.outer(rows, (times >= seconds[0]) & (times <= seconds[1])).astype(np.float32)


def decibels(part: np.ndarray, whole: np.ndarray) -> float:
    return float(10 * np.log10(max(np.square(part, dtype=np.float64).sum(), 1e-30) / np.square(whole).sum()))


@pytest.mark.parametrize(
    ("rate", "count"),
    [(8_000, 480_000), (8_000, 1), (22_050, 110_250), (44_100, 4_410), (96_000, 9_600), (96_000, 50_001)],
)
def test_evidence_and_remainder_add_up_at_every_rate_and_length(rate: int, count: int):
    samples = noise(count) + 0.2
    evidence, remainder = split(samples, rate, np.random.default_rng(1).random(SHAPE, np.float32), MEL_16K)
    assert evidence.dtype == remainder.dtype == np.float32 and evidence.shape == remainder.shape == (count,)
    assert decibels(evidence + remainder - samples, samples) < -60


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 96_000])
def test_a_mask_holds_what_lies_in_it_and_nothing_else(rate: int):
    mask = box((1.0, 2.0), (700, 1500))
    inside = burst(rate, 5, 1.5, 1000)
    assert abs(decibels(split(inside, rate, mask, MEL_16K)[0], inside)) < 1
    for middle, hertz in ((3.0, 1000), (1.5, 3000), (1.5, 300), (0.5, 1000)):
        outside = burst(rate, 5, middle, hertz)
        evidence, remainder = split(outside, rate, mask, MEL_16K)
        assert decibels(evidence, outside) < -40 and abs(decibels(remainder, outside)) < 0.1


def test_a_mask_ends_with_its_window():
    mask = np.ones(SHAPE, np.float32)
    for middle, within in ((0.5, True), (4.5, True), (6.0, False), (9.0, False)):
        sound = burst(16_000, 10, middle, 1000)
        evidence, _ = split(sound, 16_000, mask, MEL_16K)
        assert abs(decibels(evidence, sound)) < 0.1 if within else decibels(evidence, sound) < -60


def test_what_the_network_cannot_hear_is_never_evidence():
    mask = np.ones(SHAPE, np.float32)
    for hertz, within in ((3000, True), (7900, True), (8100, False), (12_000, False)):
        tone = burst(44_100, 5, 2.5, hertz)
        evidence, remainder = split(tone, 44_100, mask, MEL_16K)
        loud, faint = (evidence, remainder) if within else (remainder, evidence)
        assert abs(decibels(loud, tone)) < 0.1 and decibels(faint, tone) < -40
    offset = burst(44_100, 5, 2.5, 12_000) + np.float32(0.14)
    assert decibels(split(offset, 44_100, mask, MEL_16K)[0], offset) < -40
    high = burst(44_100, 5, 2.5, 12_000)
    wide = np.ones((MEL_44K.n_mels, MEL_44K.frames), np.float32)
    assert abs(decibels(split(high, 44_100, wide, MEL_44K)[0], high)) < 0.1


def test_half_a_mask_is_half_the_sound_with_its_phase():
    samples = burst(22_050, 5, 2.5, 1000)
    evidence, remainder = split(samples, 22_050, np.full(SHAPE, 0.5, np.float32), MEL_16K)
    np.testing.assert_allclose(evidence, samples / 2, atol=1e-3)
    np.testing.assert_allclose(remainder, samples / 2, atol=1e-3)


def test_what_is_erased_is_gone_and_what_is_far_from_it_is_untouched():
    rate = 44_100
    gone, earlier, higher = burst(rate, 5, 2.5, 1000), burst(rate, 5, 1.0, 1000), burst(rate, 5, 2.5, 4000)
    left = erase(gone + earlier + higher, rate, (2.0, 3.0), (700, 1500))
    assert decibels(left - earlier - higher, gone) < -40
    samples = noise(5 * rate)
    changed = np.flatnonzero(erase(samples, rate, (2.0, 3.0), (700, 1500)) != samples) / rate
    assert 1.9 < changed.min() < 2.0 and 3.0 < changed.max() < 3.1


def test_a_long_sound_is_erased_piece_by_piece_as_if_it_were_done_at_once(monkeypatch: pytest.MonkeyPatch):
    samples, box = noise(20 * 8_000 + 77), ((3.0, 14.0), (700, 1500))
    piece_by_piece = erase(samples, 8_000, *box)
    monkeypatch.setattr(spectrum, "PIECE", 10**6)
    np.testing.assert_allclose(piece_by_piece, erase(samples, 8_000, *box), atol=1e-7)


def test_erasing_does_not_click():
    steady = 0.5 * np.cos(2 * np.pi * 200 * np.arange(44_100) / 44_100).astype(np.float32)
    left = erase(steady, 44_100, (0.4, 0.6), (0, np.inf))
    assert np.abs(left[20_000:24_000]).max() < 1e-3  # it is gone ...
    assert np.abs(np.diff(left)).max() <= 1.02 * np.abs(np.diff(steady)).max()  # ... and nothing jumps


def test_an_edge_lies_where_it_is_drawn_and_not_at_the_next_hop_or_bin():
    samples = noise(16_000)
    for later, higher in ((0.004, 0), (0, 4)):  # a quarter of a hop, of a bin
        boxes = [((0.3 + k * later, 0.6), (1000 + k * higher, 3000)) for k in range(6)]
        left = [np.square(erase(samples, 16_000, *box), dtype=np.float64).sum() for box in boxes]
        assert (np.diff(left) > 0).all()  # the smaller the rectangle, the more is left


def test_a_rectangle_over_everything_leaves_silence():
    for rate, count in ((8_000, 1), (8_000, 800), (96_000, 96_000)):
        assert np.abs(erase(noise(count) + 0.3, rate, (0, count / rate), (0, rate / 2))).max() < 1e-6
