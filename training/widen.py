"""Growing trained networks: the wide one starts out computing exactly what the narrow ones do.

From one: Net2WiderNet (Chen, Goodfellow and Shlens 2015, arXiv 1511.05641) for whole trunks: every channel becomes k
channels, and what the next layer weighs it with is shared out among them, unevenly, so that they part ways in training.
From several of equal width: side by side, with nothing between them yet. Its logits are the mean of theirs.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnn.checkpoint import Checkpoint, CheckpointError, load
from cnn.mel import MelConfig
from cnn.model import AudioCNN, ModelConfig
from training.config import differences

UNEVEN = 0.25  # standard deviation of the shares around 1 / k, times k


def widened(narrow: Mapping[str, Tensor], wide: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The narrow network's state in the shapes of the wide one's. Raises ValueError where they are not multiples."""
    if missing := set(narrow) ^ set(wide):
        raise ValueError(f"they differ in more than width, first in {min(missing)}")
    out = {}
    for key, target in wide.items():
        value = narrow[key].to(target.dtype)
        if value.ndim != target.ndim or any(w % n for n, w in zip(value.shape, target.shape, strict=True)):
            raise ValueError(f"{key}: {tuple(target.shape)} is no multiple of {tuple(value.shape)}")
        if target.ndim:
            value = value.repeat_interleave(target.shape[0] // value.shape[0], dim=0)
        if target.ndim > 1 and (k := target.shape[1] // value.shape[1]) > 1:
            noise = torch.randn(*value.shape[:2], k, generator=generator)
            shares = (1.0 + UNEVEN * (noise - noise.mean(dim=2, keepdim=True))) / k  # adds up to 1 over the k
            shares = shares.flatten(1, 2)[(...,) + (None,) * (value.ndim - 2)]
            value = value.repeat_interleave(k, dim=1) * shares
        out[key] = value
    return out


def side_by_side(narrow: Sequence[Mapping[str, Tensor]], wide: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The states of n plain networks in the shapes of the wide one's, of n times their width. Raises ValueError."""
    n, out = len(narrow), {}
    for key, target in wide.items():
        parts = [state[key].to(target.dtype) for state in narrow]
        small = parts[0].shape
        if not target.ndim:  # how many batches BatchNorm has seen
            out[key] = parts[0]
            continue
        grows = [w == n * s for s, w in zip(small[:2], target.shape[:2], strict=True)]
        if any(p.shape != small for p in parts) or any(
            w not in (s, n * s) for s, w in zip(small, target.shape, strict=True)
        ):
            shapes = " and ".join(str(tuple(p.shape)) for p in parts)
            raise ValueError(f"{key}: {shapes} side by side are no {tuple(target.shape)}")
        out[key] = torch.zeros_like(target)
        for k, part in enumerate(parts):
            place = tuple(slice(k * s, (k + 1) * s) if g else slice(None) for s, g in zip(small, grows, strict=False))
            out[key][place] += part if grows[0] else part / n  # what does not grow in its outputs is the last layer
    return out


def grow(paths: Sequence[Path], fold: int, model: AudioCNN, labels: Sequence[str], mel: MelConfig, seed: int) -> list:
    """Give `model` what the networks at `paths` know. Returns of each its sha256, commit and recipe.

    Raises CheckpointError where one is of another kind (read_narrow) or they are not of the right width.
    """
    found = [read_narrow(path, fold, model.config, labels, mel) for path in paths]
    states, told = [f.state_dict for f in found], " and ".join(map(str, paths))
    try:
        if len(found) == 1:
            state = widened(states[0], model.state_dict(), torch.Generator().manual_seed(seed))
        elif model.config.se or model.config.fpn_channels or model.config.head_hidden:
            raise ValueError("what they say together would not be the mean: name one, or plain residual networks")
        else:
            state = side_by_side(states, model.state_dict())
    except ValueError as e:
        widths = ", ".join(str(f.model.width) for f in found)
        raise CheckpointError(
            f"{told} (width {widths}) cannot be widened to {model.config.width} channels: {e}"
        ) from e
    model.load_state_dict(state)
    return [_origin(path, checkpoint) for path, checkpoint in zip(paths, found, strict=True)]


def _origin(path: Path, found: Checkpoint) -> dict[str, Any]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"sha256": digest, "commit": found.provenance.get("commit"), "recipe": found.recipe}


def read_narrow(path: Path, fold: int, model: ModelConfig, labels: Sequence[str], mel: MelConfig) -> Checkpoint:
    """The network to grow from. Raises CheckpointError where it is of another kind or has been trained on `fold`.

    Its `labels` and its front end must be those of the wide one, apart from `mel`'s mean and standard deviation, which
    follow from the clips trained on.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path}, the network to grow from, does not exist: --widen PATH names another best_model.pth, or make it: "
            f"python -m training.train --recipe best-16k --data DIR --fold {fold} --out {path.parent}"
        )
    found = load(path)
    seen = found.provenance.get("folds_trained_on")
    if seen is None or fold in seen:
        told = "does not say which folds it was trained on" if seen is None else f"was trained on fold {fold}"
        raise CheckpointError(f"{path} {told}: a network grown from it could not be tested on fold {fold}")
    if found.model.name != model.name:
        raise CheckpointError(f"{path} is a {found.model.name}, not a {model.name}: only the width may differ")
    if found.model.stem_stride != model.stem_stride:
        raise CheckpointError(
            f"{path} has stem_stride {found.model.stem_stride}, not {model.stem_stride}: set --stem-stride as it was, "
            "or name another with --widen"
        )
    if found.model.num_classes != model.num_classes or tuple(labels) != found.labels:
        raise CheckpointError(
            f"{path} knows {len(found.labels)} classes that are not the {model.num_classes} of this run: set --classes "
            "as it was, or name another with --widen"
        )
    if other := differences(dataclasses.asdict(found.mel), dataclasses.asdict(mel), ("mean", "std")):
        raise CheckpointError(
            f"{path} hears through another front end ({other}): set --mel, --relative and --floor-db as they were, or "
            "name another with --widen"
        )
    return found
