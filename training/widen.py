"""Growing trained networks: the wide one starts out computing exactly what the narrow ones do.

From one: Net2WiderNet (Chen, Goodfellow and Shlens 2015, arXiv 1511.05641) for whole trunks: every channel becomes k
channels, and what the next layer weighs it with is shared out among them, unevenly, so that they part ways in training.
From several of equal width: side by side, each in a group of its own. The logits are the mean of theirs.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from cnn.checkpoint import Checkpoint, CheckpointError, load
from cnn.mel import MelConfig
from cnn.model import AudioCNN
from training.config import MEMBERS, TrainConfig, differences

UNEVEN = 0.25  # standard deviation of the shares around 1 / k, times k


def widened(narrow: Mapping[str, Tensor], wide: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The narrow network's state in the shapes of the wide one's. Raises ValueError where they are not multiples."""
    _same_layers(narrow, wide)
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


def side_by_side(members: Sequence[Mapping[str, Tensor]], wide: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The states of n plain networks as that of one with n groups and n times their width. Where that one is centred,
    those that are not go on without the second picture. Raises ValueError."""
    for state in members:
        _same_layers(state, wide)
    n, out = len(members), {}
    for key, target in wide.items():
        parts = [state[key].to(target.dtype) for state in members]
        if key == "conv1.weight":  # (C, pictures, k, k)
            parts = [nnf.pad(part, (0, 0, 0, 0, 0, max(target.shape[1] - part.shape[1], 0))) for part in parts]
        if any(part.shape != parts[0].shape for part in parts):
            raise ValueError(f"{key}: {' and '.join(str(tuple(part.shape)) for part in parts)} are not alike")
        if not target.ndim:  # how many batches BatchNorm has seen
            out[key] = parts[0]
        elif parts[0].shape[0] != target.shape[0]:  # channels: each member has its own
            out[key] = torch.cat(parts)
        else:  # the logits, which they share
            out[key] = torch.cat(parts, dim=1) / n if target.ndim > 1 else torch.stack(parts).mean(dim=0)
        if out[key].shape != target.shape:
            raise ValueError(f"{key}: {n} of {tuple(parts[0].shape)} side by side are no {tuple(target.shape)}")
    return out


def _same_layers(narrow: Mapping[str, Tensor], wide: Mapping[str, Tensor]) -> None:
    if missing := set(narrow) ^ set(wide):
        raise ValueError(f"they differ in more than width, first in {min(missing)}")


def grow(
    config: TrainConfig, model: AudioCNN, labels: Sequence[str], mel: MelConfig
) -> tuple[list[dict[str, Any]], MelConfig]:
    """Give `model` what the networks that `config.widen` names know.

    Returns of each its sha256, commit and recipe, and `mel` with the mean and standard deviation of the first: where
    nothing is learned any more (epochs 0), these go on holding, and all must have the same. Raises CheckpointError
    where one is of another kind (read_narrow) or they do not fit the model's width.
    """
    paths = [Path(name) for name in config.widen.replace("{fold}", str(config.fold)).split(",")]
    found = [read_narrow(path, config, labels, mel, k) for k, path in enumerate(paths)]
    told, widths = " and ".join(map(str, paths)), [checkpoint.model.width for checkpoint in found]
    if not config.epochs and len({(checkpoint.mel.mean, checkpoint.mel.std) for checkpoint in found}) > 1:
        raise CheckpointError(f"{told} learned from other clips than each other: side by side, with --epochs 0, they "
                              "could not be fed alike; train them with the same --data and --inner-share")  # fmt: skip
    states = [checkpoint.state_dict for checkpoint in found]
    try:
        if config.groups == 1:
            state = widened(states[0], model.state_dict(), torch.Generator().manual_seed(config.seed))
        else:
            state = side_by_side(states, model.state_dict())
    except ValueError as e:
        told = f"{told} (width {', '.join(map(str, widths))})"
        raise CheckpointError(f"{told} cannot be widened to {model.config.width} channels: {e}") from e
    model.load_state_dict(state)
    shared = dataclasses.replace(mel, mean=found[0].mel.mean, std=found[0].mel.std)
    return [_origin(path, checkpoint) for path, checkpoint in zip(paths, found, strict=True)], shared


def _origin(path: Path, found: Checkpoint) -> dict[str, Any]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"sha256": digest, "commit": found.provenance.get("commit"), "recipe": found.recipe}


class Missing(CheckpointError):
    """A network to grow from does not exist."""

    def __init__(self, path: Path, config: TrainConfig, seed: int) -> None:
        recipe = MEMBERS[seed % len(MEMBERS)] if config.recipe == "ensemble-16k" else config.recipe  # of what lacks
        width = config.width // config.groups if config.groups > 1 else max(config.width // 2, 1)
        self.path, self.fold = path, config.fold
        self.settings = f"--recipe {recipe} --width {width} --seed {seed}"
        self.settings += f" --classes {config.classes}" * (config.classes != TrainConfig.classes)
        super().__init__(
            f"{path}, the network to grow from, does not exist: --widen PATH names another best_model.pth, or make it: "
            f"python -m training.train {self.settings} --data DIR --fold {config.fold} --out {path.parent}"
        )


def read_narrow(path: Path, config: TrainConfig, labels: Sequence[str], mel: MelConfig, seed: int = 0) -> Checkpoint:
    """The network to grow from. Raises CheckpointError where it is of another kind or has been trained on clips that
    `config` keeps from its training: those of its fold, or those of its inner share.

    Its `labels` and its front end must be those of the wide one, apart from `mel`'s mean and standard deviation, which
    follow from the clips trained on. `seed`, one for each that is grown from, is for the advice how to make it.
    """
    if not path.exists():
        raise Missing(path, config, seed)
    found, model = load(path), config.network(len(labels))
    seen = found.provenance.get("folds_trained_on")
    if seen is None or config.fold in seen:
        told = "does not say which folds it was trained on" if seen is None else f"was trained on fold {config.fold}"
        raise CheckpointError(f"{path} {told}: a network grown from it could not be tested on fold {config.fold}")
    if (aside := found.recipe.get("inner_share", 0.0)) < config.inner_share:
        raise CheckpointError(
            f"{path} learned from recordings that --inner-share {config.inner_share:g} keeps aside (its own was "
            f"{aside:g}): train it with the same, or set --inner-share {aside:g}"
        )
    if found.model.name != model.name:
        raise CheckpointError(f"{path} is a {found.model.name}, not a {model.name}: only the width may differ")
    if found.model.groups > 1:
        raise CheckpointError(f"{path} is {found.model.groups} networks side by side already: name each of them")
    if found.model.stem_stride != model.stem_stride:
        raise CheckpointError(
            f"{path} has stem_stride {found.model.stem_stride}, not {model.stem_stride}: set --stem-stride as it was, "
            "or name another with --widen"
        )
    if found.model.centred != model.centred and (found.model.centred or model.groups == 1):
        raise CheckpointError(
            f"{path} has centred {str(found.model.centred).lower()}: set --centred as it was, or name another with "
            "--widen"
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
