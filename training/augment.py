"""Augmentation on batches of dB mel pictures. Stays outside the front end and outside the network.

Every function takes a numpy Generator: the run derives one from (seed, epoch, step), so a resumed run draws the same
numbers as an uninterrupted one. B batch, F mel bins, T frames, N classes.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from cnn.mel import LogMel, MelConfig
from training.config import TrainConfig

TABLE = 8192  # frames of noise that textures are cut from, some minutes


def augment(
    db: Sequence[Tensor],
    targets: Tensor,
    front_end: LogMel,
    config: TrainConfig,
    mix: bool,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Absolute dB, B times (F, T), soft targets (B, N) -> what the network sees (B, 1, F, crop), and soft targets."""
    power = warp(db, config.crop_frames, config.stretch_min, config.stretch_max, config.shift_bins, config.roll, rng)
    power += equaliser(len(power), power.shape[1], config.eq_knots, config.eq_db, config.gain_db, rng)
    power.mul_(math.log2(10.0) / 10.0).exp2_()  # a quarter of the time of exp_
    power = outside(power, config, front_end.config, rng)
    share = torch.from_numpy(rng.beta(config.mixup_alpha, config.mixup_alpha, len(power)).astype(np.float32))
    partner = torch.from_numpy(rng.permutation(len(power)))
    if mix and config.mixup_domain != "input":
        # sounds add up in the air, amplitudes in the ratio share : 1 - share; where both are as loud before, the label
        # of a mix says who is louder (between-class learning, Tokozume et al. 2018, arXiv 1711.10282)
        a = share[:, None, None]
        scale = match(power, partner) if config.mixup_domain == "level" else 1.0
        other = power.index_select(0, partner).mul_(scale * (1 - a) ** 2)
        power = together(power.mul_(a**2), other, stretches(texture(front_end.config)[1], power.shape, rng))
    x = front_end.standardise(front_end.to_db(power))  # (B, 1, F, crop)
    if mix and config.mixup_domain == "input":
        a = share[:, None, None, None]
        x = a * x + (1 - a) * x[partner]  # Zhang et al. 2017, arXiv 1710.09412
    if mix:
        told = torch.sigmoid(config.mixup_sharpness * torch.logit(share))[:, None]  # s^p / (s^p + (1 - s)^p)
        targets = told * targets + (1 - told) * targets[partner]
    x = mask(x, 2, config.freq_masks, config.freq_mask_bins, rng)
    return mask(x, 3, config.time_masks, config.time_mask_frames, rng), targets


def warp(
    pictures: Sequence[Tensor],
    frames: int,
    stretch_min: float,
    stretch_max: float,
    shift_bins: int,
    roll: bool,
    rng: np.random.Generator,
) -> Tensor:
    """B times (F, T) -> (B, F, frames), new: start, time stretch and frequency shift, each drawn per clip.

    Time goes by whole frames, the nearest ones, and wraps round: between two frames noise would be smoother than any
    sound that is heard in use. The start is anywhere (`roll`) or where the frames still fit. Bins shifted in from
    beyond the edge repeat the edge.
    """
    batch, (bins, length) = len(pictures), pictures[0].shape
    start = rng.uniform(0, length if roll else max(length - frames, 0), (batch, 1))
    rate = np.exp(rng.uniform(np.log(stretch_min), np.log(stretch_max), (batch, 1)))
    columns = np.floor(start + rate * np.arange(frames) + 0.5).astype(np.int64) % length  # (B, frames)
    shift = rng.integers(-shift_bins, shift_bins + 1, (batch, 1))
    rows = np.clip(np.arange(bins) + shift, 0, bins - 1)  # (B, F)
    out = pictures[0].new_empty(batch, bins, frames)
    for one, row, column, place in zip(pictures, torch.from_numpy(rows), torch.from_numpy(columns), out, strict=True):
        # one clip stays in the processor's cache: a third of the time of gather on all
        torch.index_select(one.index_select(0, row), 1, column, out=place)
    return out


def outside(power: Tensor, config: TrainConfig, mel: MelConfig, rng: np.random.Generator) -> Tensor:
    """Power (B, F, T) as phones, messengers and old archives leave it, in place; each defect on its share of clips.

    Low- and high-pass are of order 1 to 64, from a coil's 6 dB per octave to the edge that resampling leaves, of a kept
    stretch see `cut`, noise lies 0 to 30 dB below the clip where it sounds and has any colour
    between white and brown (1 / f^0 to 1 / f^2), another clip without its pauses lies 3 to 25 dB below as a background,
    reverberation is an exponential tail of T60 0.2 to 0.8 s with 0.3 to 1 of the energy.
    """
    defects = (config.lowpass, config.highpass, config.silence, config.noise, config.background, config.reverb)
    if not any(defects):
        return power  # and draw nothing
    batch, bins, frames = power.shape
    f = np.arange(bins)
    grain, meeting = texture(mel)
    spared = rng.random((batch, 1)) < config.spared if config.spared else np.zeros((batch, 1), bool)

    def some(probability: float) -> np.ndarray:
        return (rng.random((batch, 1)) < probability) & ~spared

    if config.reverb:
        wet = np.where(some(config.reverb), rng.uniform(0.3, 1.0, (batch, 1)), 0.0)
        t60 = rng.uniform(0.2, 0.8, (batch, 1)) * mel.sample_rate / mel.hop_length
        chosen = np.flatnonzero(wet)
        flicker = stretches(grain, (len(chosen), bins, frames), rng)
        power[chosen] = reverberate(power[chosen], t60[chosen], wet[chosen], flicker)

    db = np.zeros((batch, bins))
    for share, lowest, highest, sign in ((config.lowpass, 0.35, 1.0, 1), (config.highpass, 0.0, 0.3, -1)):
        cutoff = np.interp(rng.uniform(lowest, highest, (batch, 1)) * (bins - 1), f, mel.centres)
        order = 2 ** rng.uniform(0, 6, (batch, 1))
        db += np.where(some(share), butterworth(mel.centres / cutoff, sign * order), 0.0)
    gain = torch.from_numpy((10 ** (db / 10)).astype(np.float32))[:, :, None]

    cut_out = np.flatnonzero(some(config.silence))
    by_frame = power.mean(dim=1)  # (B, T) of the sound itself: what lies over it later is not what is cut out
    mean = _where_it_sounds(by_frame)
    if config.background:
        chosen = torch.from_numpy(np.flatnonzero(some(config.background)))
        other = torch.from_numpy(rng.permutation(batch))[chosen]
        below = torch.from_numpy(rng.uniform(3, 25, batch).astype(np.float32))[chosen, None, None]
        scale = mean[chosen] / mean[other].clamp_min(1e-20) * 10.0 ** (-below / 10.0)
        behind = endless(power[other], rng.random(len(chosen))).mul_(scale)
        power[chosen] = together(power[chosen], behind, stretches(meeting, behind.shape, rng))

    level = 10 ** (rng.uniform(-30, 0, (batch, 1)) / 10)
    colour = mel.widths * mel.centres ** -rng.uniform(0, 2, (batch, 1))
    chosen = np.flatnonzero(some(config.noise))
    shape = (level * colour / colour.mean(axis=1, keepdims=True))[chosen].astype(np.float32)
    noise = stretches(grain, (len(chosen), bins, frames), rng) * (mean[chosen] * torch.from_numpy(shape)[:, :, None])
    power[chosen] = together(power[chosen], noise, stretches(meeting, noise.shape, rng))

    power.mul_(gain)
    if len(cut_out):
        power[cut_out] = cut(power[cut_out], by_frame[cut_out], config.kept_min, config.repeated, mel, rng)
    return power


def cut(
    power: Tensor, loud: Tensor, shortest: float, repeated: float, mel: MelConfig, rng: np.random.Generator
) -> Tensor:
    """Power (B, F, T) -> a stretch of each clip in digital silence, as people cut sounds out.

    It lasts `shortest` to 1 of the picture, log-uniform, and lies around a frame drawn by its amplitude; `loud` (B, T)
    is its power. In a share `repeated` of the clips it comes again and again, with pauses of 0.1 to 2 s.
    """
    batch, bins, frames = power.shape
    length = np.ceil(np.exp(rng.uniform(np.log(shortest), 0.0, (batch, 1))) * frames).astype(np.int64)
    so_far = loud.sqrt().double().cumsum(dim=1).numpy()  # (B, T)
    somewhere = (so_far < rng.random((batch, 1)) * so_far[:, -1:]).sum(axis=1, keepdims=True)  # a frame
    start = np.clip(somewhere - (rng.random((batch, 1)) * length).astype(np.int64), 0, frames - length)
    pause = (10 ** rng.uniform(-1.0, 0.3, (batch, 1)) * mel.sample_rate / mel.hop_length).astype(np.int64)
    again = rng.random((batch, 1)) < repeated
    since = np.arange(frames) - start  # (B, T): frames of the stretch that have gone by
    since = np.where(again, since % (length + pause), since)
    kept = (since >= 0) & (since < length)
    columns = torch.from_numpy(np.where(kept, start + since, 0))
    out = power.gather(2, columns[:, None, :].expand(-1, bins, -1))
    return out.mul_(torch.from_numpy(kept.astype(np.float32))[:, None, :])


@functools.lru_cache(maxsize=8)
def texture(mel: MelConfig) -> tuple[Tensor, Tensor]:
    """How rough sound is in this front end's cells, (F, TABLE) each, taken from two white noises.

    The first is a noise's power as a multiple of its mean: exponentially distributed where a bin is as narrow as the
    transform's, nearly constant where it is wide. The second, -1..1, is how two sounds meet: by chance they add up or
    cancel out, |a + b|^2 = |a|^2 + |b|^2 + 2 r |a| |b|.
    """
    front_end = LogMel(mel)
    noise = torch.randn(2, (TABLE - 1) * mel.hop_length, generator=torch.Generator().manual_seed(0))
    of, window = front_end.mel.spectrogram, front_end.mel.spectrogram.window
    one, two = torch.stft(noise, of.n_fft, of.hop_length, of.win_length, window, return_complex=True)  # (K, TABLE)
    scale = front_end.mel.mel_scale
    power, other, both = scale(one.abs().square()), scale(two.abs().square()), scale((one * two.conj()).real)
    empty = power.amax(dim=1, keepdim=True) == 0  # a bin between two of the transform's
    grain = torch.where(empty, 1.0, power / power.mean(dim=1, keepdim=True))
    meeting = torch.where(empty, 0.0, both / (power * other).sqrt()).clamp(-1.0, 1.0)
    return grain.contiguous(), meeting.contiguous()  # frame after frame, as they are read


def stretches(table: Tensor, shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """(B, F, T) of a table (F, TABLE), to be read only: evenly spaced over it, the first from a random frame on.

    A view, for copying takes longer than all that is done with them. Where many are asked for, neighbours share a part.
    """
    count, bins, frames = shape
    step, rest = divmod(table.shape[1] - frames, max(count, 1))
    start = int(rng.integers(0, step + rest, endpoint=True))
    by_bin, by_frame = table.stride()
    at = table.storage_offset() + start * by_frame
    return table.as_strided((count, bins, frames), (step * by_frame, by_bin, by_frame), at)


def together(one: Tensor, other: Tensor, meeting: Tensor) -> Tensor:
    """The power of two sounds at once, in place of `one`; `meeting` says how they meet."""
    both = (one * other).sqrt_().mul_(meeting)
    both = one.add_(both, alpha=2.0).add_(other)
    return both.clamp_min_(0.0)  # rounding leaves less than nothing of two that cancel out, and that has no root


def endless(power: Tensor, start: np.ndarray) -> Tensor:
    """Power (B, F, T), in place: digital silence goes, what sounds is repeated end to end from `start` (B,), 0..1, on.

    A street or a stream behind a sound does not pause. A clip that is nothing but silence stays.
    """
    for clip, sounding, at in zip(power, _sounding(power.mean(dim=1)), start, strict=True):
        there = sounding.nonzero().flatten()
        if 0 < len(there) < len(sounding):
            clip.copy_(clip[:, there[(int(at * len(there)) + torch.arange(len(sounding))) % len(there)]])
    return power


def _sounding(by_frame: Tensor) -> Tensor:
    """Power (..., T) -> bool: the frames that are not digital silence."""
    return by_frame > 1e-8 * by_frame.amax(dim=-1, keepdim=True)


def _where_it_sounds(by_frame: Tensor) -> Tensor:
    """Power (B, T) -> (B, 1, 1): the mean over the frames that are not digital silence."""
    sounding = _sounding(by_frame)
    mean = (by_frame * sounding).sum(dim=1) / sounding.sum(dim=1).clamp_min(1)
    return mean[:, None, None]


def match(power: Tensor, partner: Tensor) -> Tensor:
    """(B, F, T), (B,) -> (B, 1, 1): what makes each clip's partner as loud as itself; 1 where either is silent."""
    ours = _where_it_sounds(power.mean(dim=1))
    theirs = ours[partner]
    return torch.where((ours > 0) & (theirs > 0), ours / theirs, 1.0)


def butterworth(ratio: np.ndarray, order: np.ndarray) -> np.ndarray:
    """What a low-pass of this order leaves of frequencies that are `ratio` times its cutoff, in dB: -3 at the cutoff,
    6 times the order per octave beyond. Of a high-pass where the order is negative."""
    return -10 / np.log(10) * np.logaddexp(0.0, 2 * order * np.log(ratio))


def reverberate(power: Tensor, t60: np.ndarray, wet: np.ndarray, grain: Tensor) -> Tensor:
    """Power (B, F, T) -> the same with `wet` (B, 1) of its energy as an exponential tail of `t60` (B, 1) frames, as
    rough as noise, `grain` (B, F, T), is: reflections meet by chance."""
    taps = min(power.shape[2], math.ceil(t60.max(initial=0.0)) + 1)
    tail = 10.0 ** (-6.0 * np.arange(taps)[::-1] / t60)  # (B, taps), the newest last; power falls by 60 dB over T60
    kernel = torch.from_numpy((wet * tail / tail.sum(axis=1, keepdims=True)).astype(np.float32))[:, None]
    dry = power * torch.from_numpy(1.0 - wet.astype(np.float32))[:, :, None]
    if not len(power):
        return dry
    by_bin = nnf.pad(power.transpose(0, 1), (taps - 1, 0))  # (F, B, taps - 1 + T)
    return dry.add_(nnf.conv1d(by_bin, kernel, groups=len(power)).transpose(0, 1).mul(grain))


def equaliser(batch: int, bins: int, knots: int, eq_db: float, gain_db: float, rng: np.random.Generator) -> Tensor:
    """dB to add, (B, F, 1): a curve through random knots, and a random level."""
    places = np.linspace(0, bins - 1, knots)
    tents = np.stack([np.interp(np.arange(bins), places, knot) for knot in np.eye(knots)])  # (knots, F)
    curves = rng.normal(0, eq_db, (batch, knots)) @ tents
    return torch.from_numpy((curves + rng.normal(0, gain_db, (batch, 1))).astype(np.float32))[:, :, None]


def mask(x: Tensor, axis: int, count: int, widest: int, rng: np.random.Generator) -> Tensor:
    """SpecAugment on (B, 1, F, T), in place: along `axis`, `count` stretches of 0..widest cells become 0, the mean."""
    size = x.shape[axis]
    place = np.arange(size)
    seen = np.ones((len(x), size), dtype=np.float32)
    for _ in range(count):
        width = rng.integers(0, min(widest, size) + 1, (len(x), 1))
        start = rng.integers(0, size - width + 1)
        seen[(place >= start) & (place < start + width)] = 0.0
    shape = [len(x), 1, 1, 1]
    shape[axis] = size
    return x.mul_(torch.from_numpy(seen).view(shape))  # masked_fill_ takes ten times as long
