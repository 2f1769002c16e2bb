"""The front end: a window of sound as the network sees it, a standardised log-mel picture.

One object for training and for serving. Its settings travel inside the checkpoint, so a network can never be fed at
the wrong sample rate or with another filter bank than it was trained with.

B batch, N samples, F mel bins, T frames.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torchaudio
from torch import Tensor, nn


@dataclass(frozen=True)
class MelConfig:
    sample_rate: int = 16_000  # Hz
    n_fft: int = 1024
    win_length: int = 640  # samples
    hop_length: int = 320  # samples
    n_mels: int = 128
    f_min: float = 20.0  # Hz
    f_max: float = 8_000.0  # Hz; what lies above is not shown to the network
    seconds: float = 5.0  # length of the window that the network hears
    floor_db: float = -100.0  # absolute: one clip's level never depends on its neighbours in the batch
    relative: bool = False  # level-invariant: dB below the window's own maximum, floor_db below it at the least
    mean: float = -45.0  # dB; the standardisation (x - mean) / std
    std: float = 22.0  # dB

    def __post_init__(self) -> None:
        numbers = (self.f_min, self.f_max, self.seconds, self.floor_db, self.mean, self.std)
        if not all(map(math.isfinite, numbers)):
            raise ValueError("f_min, f_max, seconds, floor_db, mean and std must be finite")
        if max(self.sample_rate / 768_000, self.n_fft / 2**15, self.n_mels / 1024, self.seconds / 60) > 1:
            raise ValueError("sample_rate, n_fft, n_mels or seconds are beyond what a front end here can need")
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(
                f"mel range {self.f_min:g}-{self.f_max:g} Hz does not fit below half of {self.sample_rate} Hz"
            )
        if not 0 < self.win_length <= self.n_fft:
            raise ValueError(f"win_length {self.win_length} must lie in 1..n_fft ({self.n_fft})")
        if self.std <= 0 or self.hop_length <= 0 or self.n_mels <= 0 or self.seconds <= 0:
            raise ValueError("std, hop_length, n_mels and seconds must be positive")

    @property
    def samples(self) -> int:
        """Samples in one window."""
        return round(self.seconds * self.sample_rate)

    @property
    def frames(self) -> int:
        """T of one window."""
        return self.samples // self.hop_length + 1

    def frames_within(self, seconds: float) -> int:
        """Frames of a window that lie within a sound of this length from its start."""
        return min(math.ceil(seconds * self.sample_rate / self.hop_length) + 1, self.frames)

    @property
    def centres(self) -> np.ndarray:
        """Centre of each mel bin in Hz, (F,), on the HTK scale: mel = 2595 log10(1 + f / 700)."""
        return self._edges[1:-1]

    @property
    def widths(self) -> np.ndarray:
        """Width of each mel bin in Hz at half its height, (F,)."""
        return (self._edges[2:] - self._edges[:-2]) / 2

    @property
    def _edges(self) -> np.ndarray:
        mels = np.linspace(_mel(self.f_min), _mel(self.f_max), self.n_mels + 2)
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)


def _mel(hz: float) -> float:
    return 2595.0 * np.log10(1.0 + hz / 700.0)


MEL_44K = MelConfig(sample_rate=44_100, win_length=1024, hop_length=512, f_min=0.0, f_max=22_050.0)
MEL_22K = MelConfig(sample_rate=22_050, win_length=1024, hop_length=512, f_min=0.0, f_max=11_025.0)
MEL_16K = MelConfig()
MELS: dict[str, MelConfig] = {"44k": MEL_44K, "22k": MEL_22K, "16k": MEL_16K}


class LogMel(nn.Module):
    """Waveform (B, N) at `config.sample_rate` -> standardised log-mel picture (B, 1, F, T), low frequencies first.

    The window's mean is removed (a few ESC-50 clips carry a large DC offset), then torchaudio's MelSpectrogram (power,
    HTK scale, no filter normalisation), 10 log10 with a floor, and constants from the configuration.
    """

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        with warnings.catch_warnings():
            # 128 bins over a 1024-point FFT leave some of the lowest filters empty; the recipes ask for just that
            warnings.filterwarnings("ignore", message="At least one mel filterbank")
            self.mel = torchaudio.transforms.MelSpectrogram(
                sample_rate=config.sample_rate,
                n_fft=config.n_fft,
                win_length=config.win_length,
                hop_length=config.hop_length,
                f_min=config.f_min,
                f_max=config.f_max,
                n_mels=config.n_mels,
                power=2.0,
            )

    def power(self, waveform: Tensor) -> Tensor:
        """(B, N) -> mel power (B, F, T)."""
        return self.mel(waveform - waveform.mean(dim=-1, keepdim=True))

    def to_db(self, power: Tensor) -> Tensor:
        """Mel power (B, F, T) -> dB (B, F, T), floored as the configuration says."""
        c = self.config
        least = 1e-20 if c.relative else 10.0 ** (c.floor_db / 10.0)
        db = power.clamp_min(least).log10_().mul_(10.0)  # in place: in training new memory takes longer than the sum
        return (db - db.amax(dim=(-2, -1), keepdim=True)).clamp_min_(c.floor_db) if c.relative else db

    def standardise(self, db: Tensor) -> Tensor:
        """dB (B, F, T) -> what the network sees (B, 1, F, T)."""
        return (db - self.config.mean).div_(self.config.std).unsqueeze(1)

    def db(self, waveform: Tensor) -> Tensor:
        """(B, N) -> dB (B, F, T): what a person is shown."""
        return self.to_db(self.power(waveform))

    def forward(self, waveform: Tensor) -> Tensor:
        return self.standardise(self.db(waveform))  # (B, 1, F, T)
