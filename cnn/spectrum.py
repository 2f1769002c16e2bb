"""Masks on the sound itself: a soft mask of the network's picture laid over the short-time Fourier transform of the
sound at its own rate, phase kept, and turned back into sound.

N samples, F mel bins and T frames of the network's picture, K Fourier bins and M frames of the transform here.
"""

import math

import numpy as np
import torch

from cnn.mel import MelConfig

WINDOW = 0.064  # seconds of the Hann window: Fourier bins 16 Hz apart, edges blurred by some 20 ms
OVERLAP = 4  # windows over every sample
PIECE = 256  # hops of a long sound that are transformed at once, some 4 s: a minute at 192 kHz would take 2 GB


def split(samples: np.ndarray, rate: int, mask: np.ndarray, config: MelConfig) -> tuple[np.ndarray, np.ndarray]:
    """(N,) at `rate` Hz and a mask (F, T) in 0..1 -> the evidence (N,) and the remainder (N,), float32.

    The mask's first frame lies at the first sample. Between the centres of its bins (Hz) and frames (s) it is bilinear,
    beyond the outer centres the nearest counts. Nothing is evidence that the network's picture does not hold: what lies
    outside the mel band or after the mask's end, and the constant offset. The remainder is what the evidence leaves:
    the two add up to the samples but for the rounding of one subtraction.
    """
    frequencies, times, spectrum = _transform(samples - samples.mean(dtype=np.float64), rate)
    rows, columns = mask.shape
    at = times * config.sample_rate / config.hop_length  # frames of the mask
    laid = between(mask, np.interp(frequencies, config.centres, np.arange(rows)), np.minimum(at, columns - 1))
    laid[(frequencies < config.f_min) | (frequencies > config.f_max)] = 0
    laid[:, at > columns - 0.5] = 0
    evidence = _inverse(spectrum * torch.from_numpy(laid), rate, len(samples))
    return evidence, samples - evidence


def erase(samples: np.ndarray, rate: int, seconds: tuple[float, float], hertz: tuple[float, float]) -> np.ndarray:
    """(N,) at `rate` Hz -> (N,) float32 without the rectangle `seconds` x `hertz` of its spectrogram.

    The edges are softened over one hop and one Fourier bin, so that nothing clicks; a side at or beyond the sound's own
    end, 0 Hz or half the rate has no edge. Samples further than the transform's window from it stay as they are.
    """
    length, hop, left = _length(rate), _hop(rate), samples.copy()
    for begin in range(0, len(samples), PIECE * hop):
        end, first = min(begin + PIECE * hop, len(samples)), max(begin - length, 0)
        around = samples[first : end + length]  # whatever windows the piece lies in are those of the whole sound
        frequencies, times, spectrum = _transform(around, rate)
        inside = np.outer(
            _soft_box(frequencies, *hertz, rate / length, rate / 2),
            _soft_box(times + first / rate, *seconds, hop / rate, len(samples) / rate),
        )
        gone = _inverse(spectrum * torch.from_numpy(inside), rate, len(around))
        left[begin:end] -= gone[begin - first : end - first]
    return left


def _hop(rate: int) -> int:
    """Samples between windows, of five binary digits: a transform of a prime length would take many times as long."""
    exact = max(1.0, WINDOW / OVERLAP * rate)
    step = 2 ** max(0, int(math.log2(exact)) - 4)
    return step * round(exact / step)


def _length(rate: int) -> int:
    return OVERLAP * _hop(rate)


def _transform(samples: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """(N,) -> the bins' frequencies (K,) in Hz, the frames' centres (M,) in seconds, the spectrum (K, M).

    In float64: what a mask leaves out must stay far below what it keeps.
    """
    length, hop = _length(rate), _hop(rate)
    spectrum = torch.stft(
        torch.from_numpy(samples.astype(np.float64)),
        length,
        hop,
        window=torch.hann_window(length, dtype=torch.float64),
        pad_mode="constant",
        return_complex=True,
    )
    bins, frames = spectrum.shape
    return np.arange(bins) * rate / length, np.arange(frames) * hop / rate, spectrum


def _inverse(spectrum: torch.Tensor, rate: int, count: int) -> np.ndarray:
    """(K, M) -> (count,) float32: weighted overlap-add, the sound whose transform is nearest to this spectrum."""
    length = _length(rate)
    window = torch.hann_window(length, dtype=torch.float64)
    return torch.istft(spectrum, length, _hop(rate), window=window, length=count).float().numpy()


def between(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(F, T) read at fractional rows (K,) and columns (M,): bilinear, (K, M) float64."""
    for axis, places in enumerate((rows, columns)):
        low = np.minimum(places.astype(np.intp), max(values.shape[axis] - 2, 0))
        high = np.minimum(low + 1, values.shape[axis] - 1)
        share = np.expand_dims(places - low, 1 - axis)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


def _soft_box(places: np.ndarray, low: float, high: float, step: float, end: float) -> np.ndarray:
    """1 between `low` and `high`, 0 outside, straight over one `step` centred on either; no edge at 0 or at `end`."""
    rise = np.ones(len(places)) if low <= 0 else np.clip((places - low) / step + 0.5, 0, 1)
    fall = np.ones(len(places)) if high >= end else np.clip((high - places) / step + 0.5, 0, 1)
    return np.minimum(rise, fall)
