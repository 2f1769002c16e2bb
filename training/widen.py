"""Growing trained networks: but for a mean of weights, the new one starts out computing exactly what the old ones do.

From one: Net2Net (Chen, Goodfellow and Shlens 2015, arXiv 1511.05641) for whole trunks. Wider: every channel becomes k
channels, and what the next layer weighs it with is shared out among them, unevenly, so that they part ways in training.
Deeper: a further block adds nothing to its shortcut yet (the scale of its last BatchNorm is 0, as in Goyal et al. 2017,
arXiv 1706.02677). A new gate lets everything pass; a pyramid or further layers of the head start from random weights.
From several of equal width: side by side, each in a group of its own. The logits are the mean of theirs.
From relatives, one trained on from the other or both from a third: the mean of their weights, which often knows more
than either (Wortsman et al. 2022, arXiv 2203.05482), for the work of one.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnn.checkpoint import Checkpoint, CheckpointError, load
from cnn.mel import MelConfig
from cnn.model import AudioCNN, ModelConfig
from training.config import PARENTS, TrainConfig, differences, groups_of, make
from training.state import sha256

# besides width and seed, what a network to grow from must have in common with the one that grows from it
ALIKE = ("model", "stem_stride", "mel", "relative", "floor_db", "classes", "inner_share")
MAKE = ("model", "width")  # recipe fields that two networks have in common whose weights lie in one space
UNEVEN = 0.25  # standard deviation of the shares around 1 / k, times k
OPEN = 2.0  # what a new gate's sigmoid is given: 0.88, open enough and still able to learn


def grown(small: Mapping[str, Tensor], large: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The small network's state in the shapes of the large one's; what only that one has starts from `large`, and so
    that the trunk says what the small one's says. Raises ValueError where widths are no multiples or layers are lost.
    """
    new = large.keys() - small.keys()
    if any(key.startswith(("fpn.", "head.")) for key in new):  # the head reads something else than it did
        small = {key: value for key, value in small.items() if not key.startswith("head.")}
    if lost := small.keys() - large.keys():
        raise ValueError(f"they differ in more than width and depth, first in {min(lost)}")
    out = {key: value.clone() for key, value in large.items()}
    for key in small:
        out[key] = _wider(key, small[key].to(large[key].dtype), large[key].shape, generator)
    for key in new:
        block, _, what = key.rpartition(".bn2.")
        if block and what == "weight":
            out[key].zero_()
        block, _, what = key.rpartition(".se.fc2.")
        if block and what == "weight":
            out[key].zero_()
            out[f"{block}.se.fc2.bias"].fill_(OPEN)
            for scaled in ("weight", "bias"):
                out[f"{block}.bn2.{scaled}"] /= torch.sigmoid(torch.tensor(OPEN))
    return out


def _wider(key: str, value: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    if value.ndim != len(shape) or any(w % n for n, w in zip(value.shape, shape, strict=True)):
        raise ValueError(f"{key}: {tuple(shape)} is no multiple of {tuple(value.shape)}")
    narrow = value
    if narrow.ndim:
        value = value.repeat_interleave(shape[0] // narrow.shape[0], dim=0)
    if narrow.ndim > 1 and (k := shape[1] // narrow.shape[1]) > 1:
        noise = torch.randn(*value.shape[:2], k, generator=generator)
        shares = (1.0 + UNEVEN * (noise - noise.mean(dim=2, keepdim=True))) / k  # adds up to 1 over the k
        shares = shares.flatten(1, 2)[(...,) + (None,) * (value.ndim - 2)]
        value = value.repeat_interleave(k, dim=1) * shares
    return value


def side_by_side(members: Sequence[Mapping[str, Tensor]], wide: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The states of n plain networks as that of one with n groups and n times their width. Raises ValueError."""
    for state in members:
        if missing := set(state) ^ set(wide):
            raise ValueError(f"they differ in more than width, first in {min(missing)}")
    n, out = len(members), {}
    for key, target in wide.items():
        parts = [state[key].to(target.dtype) for state in members]
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


def parents(config: TrainConfig) -> list[list[Path]]:
    """What each of its groups grows from: one network, or several whose weights' mean it is.

    Raises Missing where one is not there.
    """
    groups = [list(map(Path, group)) for group in groups_of(config.widen.replace("{fold}", str(config.fold)))]
    for place, path in enumerate(itertools.chain(*groups)):
        if not path.exists():
            raise Missing(path, config, place)
    return groups


def grow(
    config: TrainConfig, model: AudioCNN, labels: Sequence[str], mel: MelConfig
) -> tuple[list[dict[str, Any]], MelConfig]:
    """Give `model` what the networks that `config.widen` names know.

    Returns of each its sha256, commit, recipe, group and what it has grown from itself, and `mel` with the mean and
    standard deviation of the first: where nothing is learned any more (epochs 0), these go on holding, and all must
    have the same. Raises CheckpointError where one is of another kind (read_narrow) or a stranger to the one it is to
    be averaged with, or they do not fit the model's width.
    """
    groups = parents(config)
    found = {path: read_narrow(path, config, labels, mel) for path in itertools.chain(*groups)}
    if not config.epochs and len({(one.mel.mean, one.mel.std) for one in found.values()}) > 1:
        told = " and ".join(map(str, found))
        raise CheckpointError(f"{told} learned from other clips than each other: in one network, with --epochs 0, they "
                              "could not be fed alike; train them with the same --data and --inner-share")  # fmt: skip
    states = [averaged([(path, found[path]) for path in group]) for group in groups]
    try:
        if config.groups == 1:
            state = grown(states[0], model.state_dict(), torch.Generator().manual_seed(config.seed))
        else:
            state = side_by_side(states, model.state_dict())
    except ValueError as e:
        told = " and ".join(f"{path} (width {one.model.width})" for path, one in found.items())
        raise CheckpointError(f"{told} cannot become a {model.config.name} of width {model.config.width}: {e}") from e
    model.load_state_dict(state)
    first = found[groups[0][0]].mel
    origins = [_origin(path, found[path], place) for place, group in enumerate(groups) for path in group]
    return origins, dataclasses.replace(mel, mean=first.mean, std=first.std)


def averaged(members: Sequence[tuple[Path, Checkpoint]]) -> dict[str, Tensor]:
    """The mean of their weights; one that is named twice counts twice.

    Raises CheckpointError where they are not alike, or as far as their files tell no relatives by a network of their
    own make: between two that began apart lies nothing that either knows.
    """
    first = members[0][1]
    if any(other.model != first.model for _, other in members):
        told = " and ".join(f"{path} ({one.model.name}, width {one.model.width})" for path, one in members)
        raise CheckpointError(f"{told} are not of the same make: name such as are, or a comma puts them side by side")
    families = []
    for path, one in members:
        ours = [one.recipe.get(key) for key in MAKE]
        alike = [o for o in ancestors(one.provenance) if [o["recipe"].get(key) for key in MAKE] == ours]
        families.append({sha256(path), *(origin["sha256"] for origin in alike)})
    if not set.intersection(*families):
        told = " and ".join(str(path) for path, _ in members)
        raise CheckpointError(
            f"{told} are strangers, neither grown from the other nor both from a third: the mean of their weights "
            "would know nothing. Train one of them on from the other, --widen in a new folder; a comma in place of "
            "the + puts them side by side"
        )
    return {
        key: torch.stack([one.state_dict[key].float() for _, one in members]).mean(dim=0)
        if value.is_floating_point()
        else value
        for key, value in first.state_dict.items()
    }


def _origin(path: Path, found: Checkpoint, group: int) -> dict[str, Any]:
    told = {"sha256": sha256(path), "recipe": found.recipe, "group": group}
    return told | {key: found.provenance[key] for key in ("commit", "grown_from") if key in found.provenance}


def ancestors(provenance: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Of a network's provenance: what it has grown from, what that has grown from, and so on."""
    for origin in provenance.get("grown_from", ()):
        yield origin
        yield from ancestors(origin)


class Missing(CheckpointError):
    """A network to grow from does not exist."""

    settings = ""  # what makes it; none where nobody but its maker knows

    def __init__(self, path: Path, config: TrainConfig, place: int) -> None:
        self.path, self.fold = path, config.fold
        told = f"{path}, the network to grow from, does not exist: --widen PATH names another best_model.pth"
        if "+" not in config.widen:  # a mean wants a relative of the other: no recipe makes that
            self.settings = _settings(config, place)
            how = f"python -m training.train {self.settings} --data DIR --fold {config.fold} --out {path.parent}"
            told += f", or make it: {how}"
        super().__init__(told)


def _settings(config: TrainConfig, place: int) -> str:
    """Flags that make what stands at that place of what `config` grows from."""
    recipes = [*itertools.chain(*groups_of(PARENTS.get(config.recipe, "")))]
    preset = make(recipes[place % len(recipes)] if recipes else config.recipe)
    width = max(config.width // 2, 1)
    if config.groups > 1:
        width = config.width // config.groups
    elif recipes and config.width % preset.width == 0:
        width = preset.width
    seed = preset.seed if place < max(len(recipes), 1) else place
    told = f"--recipe {preset.recipe} --width {width} --seed {seed}"
    for name in ALIKE:
        if (value := getattr(config, name)) != getattr(preset, name):
            told += f" --{name.replace('_', '-')} {str(value).lower()}"
    return told


def _may_grow(path: Path, small: ModelConfig, large: ModelConfig) -> None:
    """Raises CheckpointError unless the one can grow into the other, whatever their widths."""
    made = [(m.depths, m.se, bool(m.fpn_channels), len(m.head_hidden)) for m in (small, large)]
    if made[0] == made[1]:
        return
    if large.groups > 1:
        raise CheckpointError(f"{path} is a {small.name}, not a {large.name}: side by side they must be alike")
    stages = len(small.depths) == len(large.depths)
    deeper = stages and all(few <= many for few, many in zip(small.depths, large.depths, strict=True))
    if not deeper or small.se or small.fpn_channels or small.head_hidden:
        raise CheckpointError(
            f"{path} is a {small.name}, from which no {large.name} can grow: that takes one of the same make, or a "
            f"plain one with no more blocks in any of its layers ({', '.join(map(str, large.depths))})"
        )


def read_narrow(path: Path, config: TrainConfig, labels: Sequence[str], mel: MelConfig) -> Checkpoint:
    """The network to grow from. Raises CheckpointError where it is of another kind or has been trained on clips that
    `config` keeps from its training: those of its fold, or those of its inner share.

    Its `labels` and its front end must be those of the wide one, apart from `mel`'s mean and standard deviation, which
    follow from the clips trained on.
    """
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
    if found.model.groups > 1:
        raise CheckpointError(f"{path} is {found.model.groups} networks side by side already: name each of them")
    _may_grow(path, found.model, model)
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
