"""Augmentation does what its names say, and the labels follow."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import signal

from cnn.mel import MELS, LogMel, MelConfig
from training import augment, config


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def front_end_of(bins: int) -> MelConfig:
    return dataclasses.replace(MELS["16k"], n_mels=bins)


def test_warping_without_stretch_or_shift_is_a_circular_roll():
    picture = torch.rand(1, 4, 20, generator=torch.Generator().manual_seed(0))
    rolled = augment.warp(picture, 20, 1.0, 1.0, 0, True, rng())[0]
    start = rng().uniform(0, 20, (1, 1)).item()
    assert torch.equal(rolled, picture[0].roll(-math.floor(start + 0.5), 1))
    assert torch.equal(augment.warp(picture, 20, 1.0, 1.0, 0, False, rng()), picture)


def test_warping_shifts_each_clip_by_whole_bins_either_way_and_repeats_the_edge():
    bins = torch.arange(20.0)[:, None].expand(60, 20, 5)
    columns = augment.warp(bins, 5, 1.0, 1.0, 3, True, rng())[:, :, 0]
    shifts = columns[:, 10] - 10
    assert set(shifts.tolist()) == {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0}
    assert torch.equal(columns, (torch.arange(20.0) + shifts[:, None]).clamp(0, 19))


def test_warped_noise_is_as_rough_as_noise_in_use():
    """Networks that had learned from smoother noise named fewer of the sounds kept aside."""
    noise = torch.randn(40, 16, 251, generator=torch.Generator().manual_seed(0))
    warped = augment.warp(noise, 208, 0.85, 1.18, 4, True, rng())
    assert warped.std() == pytest.approx(noise.std(), rel=0.01)
    moved = (warped[:, :, 1:] - warped[:, :, :-1]).abs().mean() / (noise[:, :, 1:] - noise[:, :, :-1]).abs().mean()
    assert 0.9 < moved < 1.0  # some frames come twice
    slow = augment.warp(torch.arange(251.0).expand(1, 1, -1), 100, 0.5, 0.5, 0, False, rng())[0, 0]
    assert set(slow.diff().tolist()) == {0.0, 1.0} and slow[-1] - slow[0] == pytest.approx(49.5, abs=1)


def test_a_background_lies_3_to_25_db_below_the_sound_where_that_sounds_and_does_not_pause():
    """Clip i sounds in bin i only, half of the time, at a level of its own."""
    power = torch.zeros(40, 40, 50)
    level = 10.0 ** torch.linspace(-3, 3, 40)
    power[torch.arange(40), torch.arange(40), :25] = level[:, None]
    changed = augment.outside(power, config.make("resnet34-16k", background=1.0), front_end_of(40), rng())
    own = torch.eye(40, dtype=torch.bool)
    others = changed[~own].view(40, 39, 50).sum(dim=1)  # one clip at most, or itself
    assert torch.equal(others, others[:, :1].expand_as(others))  # a level that never changes, also in our silence
    below = -10 * (others[:, 0] / level)[others[:, 0] > 0].log10()
    assert len(below) > 30 and below.min() >= 3 - 1e-3 and below.max() <= 25 + 1e-3 and below.max() - below.min() > 15


def test_what_sounds_of_a_background_is_repeated_from_anywhere_on():
    clip = torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 0.0]).expand(3, 2, 6).clone()
    clip[2] = 0
    endless = augment.endless(clip, np.array([0.0, 0.4, 0.9]))[:, 0].tolist()
    assert endless == [[1, 2, 3, 1, 2, 3], [2, 3, 1, 2, 3, 1], [0] * 6]


@pytest.mark.parametrize("defect", ["lowpass", "highpass", "silence", "noise"])
def test_each_defect_from_outside_does_what_it_is_called(defect: str):
    power = torch.ones(64, 128, 50)
    power[:, :, 25] = 1e-6
    changed = augment.outside(power.clone(), config.make("resnet34-16k", **{defect: 1.0}), MELS["16k"], rng())
    ratio = changed / power
    if defect in ("lowpass", "highpass"):
        left = ratio[:, -1 if defect == "lowpass" else 0, 0]
        assert left.max() < 0.51 and (left > 1e-2).any() and (left < 1e-12).any()  # gentle ones and steep ones
        assert ratio[:, 40:44].min() > 0.49 and ratio[:, 40:44].mean() > 0.95  # the middle passes
    elif defect == "silence":
        kept = (changed[:, 0] > 0).sum(dim=1)
        assert set(ratio.unique().tolist()) == {0.0, 1.0} and 14 <= kept.min() < 20 and kept.max() > 40
    else:
        assert (ratio[:, :, 25] > 1).float().mean() > 0.9  # what was quiet is covered
        assert 1e-4 < changed.mean() / power.mean() - 1 < 0.5
    assert torch.equal(augment.outside(power, config.make("resnet34-16k"), MELS["16k"], rng()), power)


def test_a_stretch_that_is_kept_is_as_short_as_it_may_be_and_lies_where_something_sounds():
    power = torch.full((300, 16, 200), 1e-8)
    power[:, :, 150:160] = 1.0
    kept = augment.cut(power, power.mean(dim=1), 0.05, 0.0, MELS["16k"], rng())
    frames = (kept[:, 0] > 0).sum(dim=1)
    assert 10 <= frames.min() < 13 and frames.max() > 190 and 35 < frames.median() < 55  # log-uniform
    assert (kept == 1.0).any(dim=2).all(dim=1).float().mean() > 0.95
    assert torch.equal(kept[kept > 0], power[kept > 0])


def test_a_stretch_that_is_kept_holds_the_sound_and_not_only_what_lies_behind_it():
    """Clip i sounds in bin i, for a tenth of the time; without the care a stretch held nothing of it in most cases."""
    power = torch.zeros(40, 40, 200)
    power[torch.arange(40), torch.arange(40), 100:120] = 1.0
    fields = {"background": 1.0, "silence": 1.0, "noise": 1.0, "kept_min": 0.05}
    changed = augment.outside(power, config.make("resnet34-16k", **fields), front_end_of(40), rng())
    own = changed[torch.arange(40), torch.arange(40)]  # (40, 200)
    assert (own.amax(dim=1) > 0.5).float().mean() > 0.9


def test_a_repeated_stretch_comes_again_with_even_pauses():
    power = torch.arange(1.0, 251.0).expand(100, 4, 250)
    kept = augment.cut(power, power.mean(dim=1), 0.04, 1.0, MELS["16k"], rng())[:, 0]
    pauses = set()
    for clip in kept:
        heard = clip > 0
        edges = heard.int().diff().nonzero().flatten() + 1
        parts = clip.tensor_split(edges)
        whole = [part for part in parts[1:-1] if part[0] > 0]
        assert all(torch.equal(part, whole[0]) for part in whole)  # the same again
        between = {len(part) for part in parts[1:-1] if part[0] == 0}
        assert len(between) <= 1
        pauses |= between
    assert min(pauses) < 10 and 80 < max(pauses) < 100  # frames: 0.1 to 2 s


def test_a_filter_takes_from_the_picture_what_it_takes_from_the_sound():
    front_end, noise = LogMel(MELS["16k"]), rng().standard_normal((1, 80_000))
    halves = ((300, "high"), (800, "low"))
    band = np.vstack([signal.butter(4, hz, kind, fs=16_000, output="sos") for hz, kind in halves])
    before, after = (front_end.power(torch.from_numpy(x.astype(np.float32)))[0].mean(dim=1)
                     for x in (noise, signal.sosfilt(band, noise)))  # fmt: skip
    hz = MELS["16k"].centres
    ours = augment.butterworth(hz / 300, -4) + augment.butterworth(hz / 800, 4)
    heard = ours > -25  # further down other bins leak in, further up a digital filter falls faster
    assert 40 < heard.sum() < 70
    np.testing.assert_allclose(ours[heard], (10 * (after / before).log10()).numpy()[heard], atol=2.0)


def test_the_share_of_spared_clips_meets_no_defect_at_all():
    power = torch.rand(400, 16, 20, generator=torch.Generator().manual_seed(0)) + 0.1
    every = {"lowpass": 1.0, "highpass": 1.0, "silence": 1.0, "noise": 1.0, "background": 1.0, "reverb": 1.0}
    changed = augment.outside(power.clone(), config.make("resnet34-16k", spared=0.4, **every), front_end_of(16), rng())
    untouched = torch.isclose(changed, power).all(dim=2).all(dim=1)
    assert 0.33 < untouched.float().mean() < 0.47
    assert not torch.isclose(changed, power).all(dim=2)[~untouched].all(dim=1).any()


def test_reverberation_falls_by_60_db_over_t60_and_keeps_the_energy():
    power = torch.zeros(2, 3, 60)
    power[:, :, 10] = 1.0
    t60, wet, even = np.array([[20.0], [20.0]]), np.array([[1.0], [0.0]]), torch.ones_like(power)
    smeared = augment.reverberate(power, t60, wet, even)
    torch.testing.assert_close(smeared[0, 0, 30] / smeared[0, 0, 10], torch.tensor(1e-6))
    torch.testing.assert_close(smeared[0].sum(dim=1), torch.ones(3))
    assert torch.equal(smeared[0, 0, :10], torch.zeros(10)) and torch.equal(smeared[1], power[1])  # no wet: untouched
    changed = augment.outside(power, config.make("resnet34-16k", reverb=1.0), front_end_of(3), rng())
    assert (changed[:, :, 11] > 0).all()


def test_sounds_meet_in_the_picture_as_they_do_in_the_air():
    """Noise and mixtures made of power alone are as rough, bin by bin, as those made of waveforms."""
    mel = MELS["16k"]
    waves = torch.randn(2, 60 * mel.sample_rate, generator=torch.Generator().manual_seed(7))
    one, other = LogMel(mel).power(waves)
    heard = LogMel(mel).power(waves.sum(dim=0, keepdim=True))[0]
    grain, meeting = (augment.stretches(table, (1, 128, 3000), rng())[0] for table in augment.texture(mel))
    made = augment.together(one[:, :3000].clone(), other[:, :3000], meeting)

    def roughness(power: torch.Tensor) -> torch.Tensor:
        return power.std(dim=1) / power.mean(dim=1)  # (F,)

    torch.testing.assert_close(roughness(grain), roughness(one), rtol=0.15, atol=0)
    torch.testing.assert_close(roughness(made), roughness(heard), rtol=0.15, atol=0)
    torch.testing.assert_close(made.mean(dim=1), heard.mean(dim=1), rtol=0.1, atol=0)
    assert roughness(one + other).mean() < 0.8 * roughness(heard).mean()  # what power alone would have made


@pytest.mark.parametrize("count", [0, 1, 3, 64, 300])
def test_textures_are_stretches_of_their_table_evenly_spaced(count: int):
    table = torch.arange(1000.0).repeat(5, 1)[:, 100:300]  # a view itself
    found = augment.stretches(table, (count, 5, 30), rng())
    assert found.shape == (count, 5, 30) and (count == 0 or (found.min() >= 100 and found.max() < 300))
    starts = found[:, 0, 0]
    assert torch.equal(found, (starts[:, None, None] + torch.arange(30.0)).expand(count, 5, 30))
    assert count < 2 or (starts.diff() == 170 // count).all()
    draws = rng()
    assert len({float(augment.stretches(table, (3, 5, 30), draws)[0, 0, 0]) for _ in range(9)}) > 1


def test_what_textures_are_cut_from_stays_as_it_is():
    mel = MELS["16k"]
    before = [table.clone() for table in augment.texture(mel)]
    power = torch.rand(8, 128, 100, generator=torch.Generator().manual_seed(0))
    settings = {"noise": 1.0, "background": 1.0, "reverb": 1.0, "silence": 1.0, "spared": 0.0, "mixup": 1.0}
    made = config.make("best-16k", crop_frames=100, **settings)
    augment.outside(power, made, mel, rng())
    augment.augment(list(10 * power.log10()), torch.eye(8), LogMel(mel), made, True, rng())
    assert all(torch.equal(*pair) for pair in zip(before, augment.texture(mel), strict=True))


def test_sounds_that_cancel_out_leave_nothing_that_cannot_be_mixed_again():
    one = torch.rand(1, 128, 300, generator=torch.Generator().manual_seed(7))
    against = torch.full_like(one, -1.0)
    left = augment.together(one * 1.0001, one, against)
    assert left.max() < 1e-6 and augment.together(left, one, against).isfinite().all()


def test_masks_hide_no_more_than_they_may_and_something():
    x = torch.ones(200, 1, 30, 40)
    hidden = (augment.mask(x, 3, 2, 10, rng()) == 0)[:, 0].all(dim=1).sum(dim=1)  # hidden frames by clip
    assert hidden.max() <= 20 and hidden.float().mean() > 5
    assert torch.equal(augment.mask(x, 2, 2, 0, rng()), x)


@pytest.mark.parametrize(("domain", "sharpness"), [("level", 1.0), ("power", 1.0), ("level", 2.0)])
def test_a_mix_holds_both_sounds_in_the_shares_of_its_label(domain: str, sharpness: float):
    """Two tones in different bins, one 30 dB louder: `level` makes both as loud before, and the label says who is."""
    front_end = LogMel(MelConfig(mean=0.0, std=1.0, relative=False, floor_db=-200.0))
    calm = config.make("resnet34-16k", stretch_min=1.0, stretch_max=1.0, shift_bins=0, eq_db=0.0, gain_db=0.0,
                       freq_masks=0, time_masks=0, crop_frames=8, mixup_domain=domain,
                       mixup_sharpness=sharpness)  # fmt: skip
    db = torch.full((2, 128, 8), -150.0)
    db[0, 10], db[1, 90] = -30.0, 0.0
    for seed in range(20):
        x, soft = augment.augment(db, torch.eye(2), front_end, calm, True, np.random.default_rng(seed))
        if soft[0].min() > 0:
            break
    assert torch.allclose(soft.sum(dim=1), torch.ones(2))
    for clip in range(2):
        own = torch.tensor([-30.0, 0.0]) if domain == "power" else torch.tensor([-30.0, 0.0][clip])
        share = soft[clip] ** (1 / sharpness)
        share /= share.sum()
        torch.testing.assert_close(x[clip, 0, [10, 90], 0], own + 20 * share.log10(), atol=1e-2, rtol=0)


def test_a_silent_clip_is_mixed_with_what_sounds():
    power = torch.tensor([0.0, 0.0, 4.0, 1.0])[:, None, None].expand(4, 128, 8)
    scale = augment.match(power, torch.tensor([1, 2, 3, 0]))
    assert scale.flatten().tolist() == [1.0, 1.0, 4.0, 1.0]
