"""The front end: true frequencies, an independent witness, no coupling between clips."""

import dataclasses

import librosa
import numpy as np
import pytest
import torch

from cnn.audio import resample
from cnn.mel import MELS, LogMel, MelConfig

PRESETS = list(MELS.values())
by_rate = pytest.mark.parametrize("config", PRESETS, ids=list(MELS))


def tone(rate: int, hz: float = 1000.0, seconds: float = 5.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


@by_rate
@pytest.mark.parametrize("source_rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_a_1_khz_tone_peaks_at_the_bin_nearest_1_khz_whatever_the_source_rate(config: MelConfig, source_rate: int):
    sound = resample(tone(source_rate), source_rate, config.sample_rate)
    db = LogMel(config).db(torch.from_numpy(sound)[None])[0]  # (F, T)
    assert int(db.mean(dim=1).argmax()) == int(np.abs(config.centres - 1000).argmin())


@by_rate
def test_it_agrees_with_librosa(config: MelConfig):
    sound = np.random.default_rng(0).normal(0, 0.1, config.samples).astype(np.float32) + 0.3  # with a DC offset
    power = librosa.feature.melspectrogram(
        y=sound - sound.mean(), sr=config.sample_rate, n_fft=config.n_fft, win_length=config.win_length,
        hop_length=config.hop_length, n_mels=config.n_mels, fmin=config.f_min, fmax=config.f_max,
        htk=True, norm=None, pad_mode="reflect", power=2.0,
    )  # fmt: skip
    theirs = 10 * np.log10(np.maximum(power, 10 ** (config.floor_db / 10)))
    ours = LogMel(config)(torch.from_numpy(sound)[None])[0, 0].numpy() * config.std + config.mean
    assert ours.shape == theirs.shape == (config.n_mels, config.frames)
    assert np.abs(ours - theirs).max() < 0.02  # dB


@pytest.mark.parametrize("relative", [False, True])
def test_a_clip_looks_the_same_whatever_else_is_in_the_batch(relative: bool):
    front_end = LogMel(dataclasses.replace(MELS["16k"], relative=relative))
    quiet, loud = torch.from_numpy(tone(16_000, level=0.001)), torch.from_numpy(tone(16_000, 300, level=1.0))
    torch.testing.assert_close(front_end(torch.stack([quiet, loud]))[:1], front_end(quiet[None]))


def test_a_relative_front_end_does_not_hear_the_level_and_an_absolute_one_does():
    sound = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 80_000).astype(np.float32))[None]
    relative = LogMel(dataclasses.replace(MELS["16k"], relative=True, floor_db=-80.0))
    torch.testing.assert_close(relative(sound), relative(sound * 0.03), atol=1e-3, rtol=0)
    absolute = LogMel(MELS["16k"])
    assert (absolute(sound) - absolute(sound * 0.03)).mean() > 1


@by_rate
def test_digital_silence_is_finite(config: MelConfig):
    assert torch.isfinite(LogMel(config)(torch.zeros(1, config.samples))).all()


@pytest.mark.parametrize("wrong", [{"f_max": 9000.0}, {"win_length": 2048}, {"std": 0.0}, {"f_min": 8000.0}])
def test_settings_that_cannot_be_are_refused(wrong: dict):
    with pytest.raises(ValueError):
        dataclasses.replace(MELS["16k"], **wrong)
