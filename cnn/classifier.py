"""The seam: Classifier.predict(sound) -> Prediction. Page, command line, API and tests call this, nothing deeper.

A network hears windows of exactly its front end's seconds. A shorter sound lies in digital silence; of a longer one
the probabilities are the mean over windows. B windows, N classes, F mel bins, T frames.
"""

import copy
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cnn import checkpoint
from cnn.audio import SILENCE_DBFS, Clip, load, resample, windows
from cnn.labels import spoken
from cnn.mel import LogMel, MelConfig
from cnn.model import AudioCNN, ModelConfig, ResidualBlock

Sound = Clip | str | os.PathLike | bytes | tuple[int, np.ndarray]
MAPS = ("none", "stages", "all")


@dataclass(frozen=True)
class Label:
    name: str  # as in cnn.labels
    probability: float
    logit: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network says of one sound, and what it looked like inside."""

    clip: Clip
    labels: tuple[Label, ...]  # every class, most probable first; empty when there is nothing to hear
    verdict: str  # 'named' or 'silent'
    message: str  # one sentence for people
    starts: np.ndarray  # (B,) seconds
    window_probabilities: np.ndarray  # (B, N); rows of silent windows are 0 and count for nothing
    window: int  # the one that pictures and maps show: the one most sure of the top class
    mel: np.ndarray | None  # (F, T) dB of that window
    mel_config: MelConfig
    maps: dict[str, np.ndarray]  # tap -> channel mean (f, t), stages first
    shapes: dict[str, tuple[int, int, int]]  # tap -> the tap's true size (C, f, t)
    logits: np.ndarray  # (N,) in the order of the checkpoint's labels, mean over windows
    timings: dict[str, float] = field(default_factory=dict)  # seconds by step
    device: str = "cpu"
    network: str = ""

    def probability(self, label: str) -> float:
        """Of one class; 0 where there was nothing to hear."""
        return next((x.probability for x in self.labels if x.name == label), 0.0)

    def to_dict(self, top: int = 3, maps: str = "none") -> dict[str, Any]:
        """Plain types for JSON, four significant digits."""
        answer: dict[str, Any] = {
            "predictions": [{"class": x.name, "confidence": _short(x.probability)} for x in self.labels[:top]],
            "verdict": self.verdict,
            "message": self.message,
            "duration": _short(self.clip.seconds),
            "sample_rate": self.clip.rate,
            "format": self.clip.format,
            "notes": list(self.clip.notes),
            "windows": [_short(s) for s, p in zip(self.starts, self.window_probabilities, strict=True) if p.any()],
            "timings": {k: _short(v) for k, v in self.timings.items()},
            "device": self.device,
            "network": self.network,
        }
        if maps != "none":
            answer["window"] = self.window
            answer["visualization"] = {
                tap: {"shape": list(self.shapes[tap]), "values": [[_short(v) for v in row] for row in values.tolist()]}
                for tap, values in self.maps.items()
            }
        return answer


class Classifier:
    """A network ready to hear. Safe to call from several threads; one forward pass runs at a time."""

    def __init__(self, weights: checkpoint.Checkpoint, device: str = "auto") -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError(f"device {device!r} is unknown; known are auto, cpu, cuda, cuda:N")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA GPU here; use cpu or auto")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        if (self._device.index or 0) >= max(torch.cuda.device_count(), 1):
            raise ValueError(f"there is no {device} here, the GPUs are {torch.cuda.device_count()}")
        self.config: ModelConfig = weights.model
        self.mel: MelConfig = weights.mel
        self.labels: tuple[str, ...] = weights.labels
        self.checkpoint = weights
        self.path: Path | None = None  # of the file, where it came from one
        self.model: AudioCNN = fuse(weights.build()).to(self._device).requires_grad_(False)
        self._front_end = LogMel(weights.mel).to(self._device)
        self._lock = threading.Lock()
        self._memory_format, self._threads = self._fastest_mode()

    @classmethod
    def open(cls, model: str | os.PathLike | None = None, device: str = "auto") -> "Classifier":
        """From the weights that cnn.checkpoint.find names. Raises CheckpointError or ValueError."""
        path = checkpoint.find(model)
        opened = cls(checkpoint.load(path), device)
        opened.path = path
        return opened

    @property
    def device(self) -> str:
        """Where it runs, for people."""
        return "cpu" if self._device.type == "cpu" else f"cuda ({torch.cuda.get_device_name(self._device)})"

    @property
    def network(self) -> str:
        """What it is, for people: 'resnet34, 21.3 M parameters, 16 kHz'."""
        return self.checkpoint.network

    @property
    def stage_taps(self) -> list[str]:
        return ["conv1", *self.model.stages]

    @property
    def map_taps(self) -> list[str]:
        """Every tap that is a map, stages first."""
        stages = self.stage_taps
        return stages + [t for t, tap in self.model.taps.items() if tap.is_map and t not in stages]

    def predict(self, sound: Sound, *, maps: str = "none") -> Prediction:
        """One sound, with the maps of no, the stages' or all taps. Raises AudioError for what is not sound."""
        return self.predict_batch([sound], maps=maps)[0]

    def predict_batch(self, sounds: Sequence[Sound], *, maps: str = "none") -> list[Prediction]:
        """Several sounds in one forward pass; each is answered as if it were alone."""
        if maps not in MAPS:
            raise ValueError(f"maps {maps!r} is unknown; known are {', '.join(MAPS)}")
        begin = time.perf_counter()
        clips = [s if isinstance(s, Clip) else load(s) for s in sounds]
        decoded = time.perf_counter()
        cut = [self.cut(clip) for clip in clips]
        resampled = time.perf_counter()
        heard = [parts[mask] for parts, _, mask in cut]
        timings = {"decode": decoded - begin, "resample": resampled - decoded}
        logits = np.zeros((0, len(self.labels)), np.float32)
        db = np.zeros((0, self.mel.n_mels, self.mel.frames), np.float32)
        kept: dict[str, np.ndarray] = {}
        if sum(map(len, heard)):
            taps = {"none": [], "stages": self.stage_taps, "all": self.map_taps}[maps]
            db, logits, kept, steps = self._forward(np.concatenate(heard), taps, _channel_mean)
            timings |= steps
        answers = []
        at = 0
        for clip, (_, starts, mask) in zip(clips, cut, strict=True):
            rows = slice(at, at + int(mask.sum()))
            at = rows.stop
            answers.append(self._answer(clip, starts, mask, logits[rows], db[rows], kept, rows.start, timings))
        timings["total"] = time.perf_counter() - begin
        return answers

    def cut(self, clip: Clip) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What there is to hear of a clip: its windows (B, samples) at the front end's rate, where they start (B,) in
        seconds, and which of them are not silent (B,); the others are never heard."""
        rate, seconds = self.mel.sample_rate, self.mel.seconds
        parts, starts = windows(resample(clip.samples, clip.rate, rate), rate, seconds, seconds / 2)
        return parts, starts, _loud(parts) if not clip.is_silent else np.zeros(len(parts), bool)

    def read(
        self, waveforms: np.ndarray, taps: Sequence[str], keep: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Windows (B, samples) -> logits (B, N), and what `keep` makes of each tap's output (B, C, f, t), of a gate's
        (B, C), while they are heard. Raises KeyError for a tap that the network does not have."""
        _, logits, kept, _ = self._forward(waveforms, taps, keep)
        return logits, kept

    def gradient(self, waveform: np.ndarray, tap: str, label: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One window (samples,) -> logits (N,), the tap's output (C, f, t), and by how much the label's logit changes
        with each cell of it (C, f, t). Raises KeyError for an unknown tap, ValueError for an unknown label."""
        module, row = self.model.get_submodule(self.model.taps[tap].module), self.labels.index(label)
        leaves: list[torch.Tensor] = []

        def begin_here(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            leaves.append(output.detach().requires_grad_())
            return leaves[0]

        with self._lock, self._exact():
            x = self._front_end(torch.from_numpy(waveform)[None].to(self._device))
            handle = module.register_forward_hook(begin_here)
            try:
                logits = self.model(x.to(memory_format=self._memory_format))[0]
            finally:
                handle.remove()
            (slope,) = torch.autograd.grad(logits[row], leaves)
            return tuple(v.detach().cpu().contiguous().numpy() for v in (logits, leaves[0][0], slope[0]))

    @contextmanager
    def alone(self) -> Iterator[tuple[Callable[[np.ndarray], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]]:
        """For gradients down to the picture; while it is open, nobody else's forward pass runs. Two functions: one
        window (samples,) -> mel power (1, F, T), and mel power (B, F, T) -> logits (B, N) with their graph."""

        def power(waveform: np.ndarray) -> torch.Tensor:
            return self._front_end.power(torch.from_numpy(waveform)[None].to(self._device))

        def listen(power: torch.Tensor) -> torch.Tensor:
            x = self._front_end.standardise(self._front_end.to_db(power))
            return self.model(x.to(memory_format=self._memory_format))

        with self._lock, self._exact():
            yield power, listen

    def _forward(
        self, waveforms: np.ndarray, taps: Sequence[str], keep: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], dict[str, float]]:
        """(B, samples) -> dB (B, F, T), logits (B, N), {tap: `keep` of its output}, seconds by step."""
        begin = time.perf_counter()
        with self._lock, self._exact(), torch.inference_mode():
            db = self._front_end.db(torch.from_numpy(waveforms).to(self._device))  # (B, F, T)
            x = self._front_end.standardise(db).to(memory_format=self._memory_format)
            shown = db.cpu().numpy()
            middle = time.perf_counter()
            parts, maps = [], {tap: [] for tap in taps}
            for piece in x.split(16):  # bounded memory for long sounds
                with self.model.reading(taps, keep) as read:
                    parts.append(self.model(piece))
                for tap in taps:
                    maps[tap].append(read[tap])
            logits = torch.cat(parts).cpu().numpy()
            kept = {tap: torch.cat(values).cpu().numpy() for tap, values in maps.items()}
        return shown, logits, kept, {"front end": middle - begin, "network": time.perf_counter() - middle}

    def _answer(
        self,
        clip: Clip,
        starts: np.ndarray,
        heard: np.ndarray,
        logits: np.ndarray,
        db: np.ndarray,
        kept: dict[str, np.ndarray],
        offset: int,
        timings: dict[str, float],
    ) -> Prediction:
        common = {"clip": clip, "starts": starts, "mel_config": self.mel, "timings": timings}
        common |= {"device": self.device, "network": self.network}
        every = np.zeros((len(starts), len(self.labels)), np.float32)
        if not heard.any():
            level = "digital silence" if math.isinf(clip.peak_dbfs) else f"{clip.peak_dbfs:.0f} dBFS at its loudest"
            heard_from = f"more than {SILENCE_DBFS:.0f} dBFS is needed"
            message = f"Nothing to hear: {level}; {heard_from}. Record closer or turn the level up."
            empty = np.zeros(len(self.labels), np.float32)
            return Prediction(labels=(), verdict="silent", message=message, window_probabilities=every, window=0,
                              mel=None, maps={}, shapes={}, logits=empty, **common)  # fmt: skip
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
        each = shifted / shifted.sum(axis=1, keepdims=True)  # (heard, N)
        every[heard] = each
        probabilities, mean_logits = each.mean(axis=0), logits.mean(axis=0)
        order = np.argsort(-probabilities, kind="stable")
        labels = tuple(Label(self.labels[i], float(probabilities[i]), float(mean_logits[i])) for i in order)
        row = int(each[:, order[0]].argmax())
        shown = {tap: values[offset + row].copy() for tap, values in kept.items()}  # (f, t) of one window
        return Prediction(
            labels=labels,
            verdict="named",
            message=f"{spoken(labels[0].name)} ({min(100 * labels[0].probability, 99.9):.3g} %)",
            window_probabilities=every,
            window=int(np.flatnonzero(heard)[row]),
            mel=db[row].copy(),
            maps=shown,
            shapes={tap: (self.model.taps[tap].channels, *values.shape) for tap, values in shown.items()},
            logits=mean_logits,
            **common,
        )

    @contextmanager
    def _exact(self) -> Iterator[None]:
        """float32 as it is written, on a GPU too (TF32 rounds to ten bits), on as many threads as were fastest."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                yield
        finally:
            torch.set_num_threads(before)

    def _fastest_mode(self) -> tuple[torch.memory_format, int]:
        """Memory format and number of threads with which one window, the usual case, is answered fastest here.

        Measured in turns, the best of each counts: the machine may be busy with something else. Raises
        CheckpointError if the network's answer is not a number.
        """
        x = torch.zeros(1, 1, self.mel.n_mels, self.mel.frames, device=self._device)
        most = torch.get_num_threads()
        threads = [most] if self._device.type == "cuda" else sorted({most, max(most // 2, 1), max(most // 4, 1)})
        layouts = {torch.channels_last: self.model, torch.contiguous_format: copy.deepcopy(self.model)}
        seconds = {(layout, count): math.inf for layout in layouts for count in threads}
        for layout, model in layouts.items():
            model.to(memory_format=layout)
        for _ in range(3):
            for layout, self._threads in seconds:
                shaped = x.to(memory_format=layout)
                begin = time.perf_counter()
                with self._exact(), torch.inference_mode():
                    if not torch.isfinite(layouts[layout](shaped)).all():  # waits for the GPU too
                        raise checkpoint.CheckpointError(f"{self.config.name} answers NaN: train it again")
                spent = time.perf_counter() - begin
                seconds[layout, self._threads] = min(seconds[layout, self._threads], spent)
        layout, count = min(seconds, key=seconds.__getitem__)
        self.model = layouts[layout]
        return layout, count


def fuse(model: AudioCNN) -> AudioCNN:
    """Fold every BatchNorm into its convolution, in place, for inference. What the taps read stays what it was."""
    model.conv1, model.bn1 = fuse_conv_bn_eval(model.conv1, model.bn1), nn.Identity()
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
            block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
            if isinstance(block.shortcut, nn.Sequential):
                block.shortcut = fuse_conv_bn_eval(*block.shortcut)
    return model


def _channel_mean(values: torch.Tensor) -> torch.Tensor:
    """(B, C, f, t) -> (B, f, t)."""
    return values.mean(dim=1)


def _loud(parts: np.ndarray) -> np.ndarray:
    """(B, samples) -> (B,): does a window hold a sample above the level of silence?

    Digital silence around a sound would otherwise be asked for its name too. A clip whose loudest sample is lost in
    resampling is still heard: its loudest window counts.
    """
    peaks = np.abs(parts).max(axis=1)
    return peaks >= min(10.0 ** (SILENCE_DBFS / 20.0), peaks.max())


def _short(value: float) -> float:
    """Four significant digits, NaN-safe for JSON."""
    return float(f"{value:.4g}") if math.isfinite(value) else 0.0
