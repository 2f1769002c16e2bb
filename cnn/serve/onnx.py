"""The network as one ONNX file, its front end inside: waveform (B, samples) -> logits (B, N).

    python -m cnn.serve.onnx --out sounds.onnx [--model PATH|NAME|HUB-ID]

Needs onnx and onnxscript beside the pins of the app (pip install onnx onnxscript). What the file does not do is cut: it
hears mono windows at its own sample rate, a shorter sound at the start of a window of zeros. Of a longer one this
project's answer is the mean of the windows' probabilities. The file's metadata say every number that this takes.

Its logits are those of cnn.classifier within 1e-4. Where a loud sound leaves a band quite empty (a pure tone, 44.1 kHz
after a lossy coding) and the front end looks down to -100 dB, those cells hold nothing but the rounding of the one
transform or the other: untrained networks were seen to differ by 1e-2 there, the level-relative one in the box by 1e-5.
"""

import argparse
import json
import logging
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cnn import checkpoint
from cnn.audio import SILENCE_DBFS
from cnn.checkpoint import Checkpoint, CheckpointError
from cnn.classifier import fuse
from cnn.mel import LogMel

EXTRA = ("onnx", "onnxscript")  # what torch's exporter imports and the app does not need
NOT_SAID = "not said; weights trained on ESC-50 are for non-commercial use"


class ExportError(RuntimeError):
    """The file was not written; the message says why and the way out."""


class Graph(nn.Module):
    """LogMel and network of a checkpoint in operations that every ONNX runtime has: waveform (B, N) -> logits.

    The spectrum is written out as a strided convolution with cosines and sines: runtimes differ in their STFT, many
    have none, and none takes a window shorter than the transform.
    """

    def __init__(self, weights: Checkpoint) -> None:
        super().__init__()
        c = weights.mel
        self.front_end = LogMel(c)
        self.network = fuse(weights.build())
        left = (c.n_fft - c.win_length) // 2  # torch.stft centres a short window in the transform
        n = torch.arange(left, left + c.win_length, dtype=torch.float64)
        k = torch.arange(c.n_fft // 2 + 1, dtype=torch.float64)
        angle = (2 * math.pi / c.n_fft) * torch.outer(k, n)
        window = self.front_end.mel.spectrogram.window.double()
        waves = torch.cat([angle.cos(), -angle.sin()]) * window  # (2 K, win_length)
        self.register_buffer("waves", waves.float().unsqueeze(1))
        self.register_buffer("filters", self.front_end.mel.mel_scale.fb.T.unsqueeze(-1))  # (F, K, 1)
        self.pad, self.left, self.frames = c.n_fft // 2, left, c.frames

    def forward(self, waveform: Tensor) -> Tensor:
        x = (waveform - waveform.mean(dim=-1, keepdim=True)).unsqueeze(1)  # (B, 1, N)
        x = nnf.pad(x, (self.pad, self.pad), mode="reflect")[..., self.left :]
        spectrum = nnf.conv1d(x, self.waves, stride=self.front_end.config.hop_length)[..., : self.frames]
        real, imaginary = spectrum.chunk(2, dim=1)  # (B, K, T) each
        power = nnf.conv1d(real * real + imaginary * imaginary, self.filters)  # (B, F, T)
        return self.network(self.front_end.standardise(self.front_end.to_db(power)))  # (B, N)


def metadata(weights: Checkpoint) -> dict[str, str]:
    """What a program without this project must know to use the file, as ONNX metadata (all text)."""
    c = weights.mel
    return {
        "labels": json.dumps(weights.labels),
        "sample_rate": str(c.sample_rate),
        "window_seconds": f"{c.seconds:g}",
        "window_samples": str(c.samples),
        "hop_seconds": f"{c.seconds / 2:g}",
        "input": "mono, full scale 1, resampled to sample_rate; shorter sounds are followed by zeros",
        "answer": "softmax of the logits of each window; for several windows the mean of their probabilities, leaving "
        f"out those without a sample above {SILENCE_DBFS:g} dB of full scale",
        "network": weights.model.name,
        "front_end": json.dumps(vars(c)),
        "licence": str(weights.provenance.get("licence", NOT_SAID)),
    }


def export(weights: Checkpoint, out: str | os.PathLike) -> Path:
    """Write `out` whole or not at all. Raises ExportError; CheckpointError from elsewhere."""
    graph = Graph(weights).eval()
    example = torch.zeros(2, weights.mel.samples)  # of two, so that the exporter does not take the batch for a constant
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own making, about its own future
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                input_names=["waveform"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                external_data=False,
                verbose=False,
            )
    except ImportError as e:
        raise ExportError(f"torch's ONNX exporter needs more than the app: pip install {' '.join(EXTRA)} ({e})") from e
    program.model.metadata_props.update(metadata(weights))
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            program.save(Path(folder) / "part.onnx", external_data=False)
            os.replace(Path(folder) / "part.onnx", out)
    except OSError as e:
        raise ExportError(f"{out} could not be written ({e}): free some space or choose another folder") from e
    return out


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m cnn.serve.onnx", description=__doc__.split("\n")[0])
    p.add_argument("--model", metavar="PATH", help="a best_model.pth, a network in the box or on the Hub")
    p.add_argument("--out", type=Path, default=Path("best_model.onnx"), metavar="FILE", help="default: %(default)s")
    args = p.parse_args(argv)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    try:
        weights = checkpoint.load(checkpoint.find(args.model))
        out = export(weights, args.out)
    except (CheckpointError, ExportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    c = weights.mel
    print(f"{out}: {out.stat().st_size / 1e6:.0f} MB; waveform (batch, {c.samples}) at {c.sample_rate} Hz -> logits "
          f"(batch, {len(weights.labels)})")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
