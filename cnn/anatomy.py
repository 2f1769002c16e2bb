"""The network as a student may walk through it: its parts in the order of the forward pass, what each one costs, and
which stretch of the picture a cell of each map sees.

    anatomy(Classifier.open()).parts

Everything is read off the network that the configuration describes, built without memory for its weights: nothing here
knows depths or widths. C channels, f mel bins and t frames of a map, F and T of the picture, N classes.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cnn.mel import MelConfig
from cnn.model import AudioCNN, ModelConfig


class Described(Protocol):
    """What is needed of a classifier or a service."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def mel(self) -> MelConfig: ...
    @property
    def network(self) -> str: ...


@dataclass(frozen=True)
class Field:
    """Receptive field of a map's cells, in places (mel bins or frames) of the picture, the same both ways: cell i sees
    places start + i * stride to start + i * stride + size - 1, as far as the picture reaches; what lies beyond, as at a
    negative place, is padding with zeros.

    Of a pyramid level it is the smallest such rule that holds for every cell: a level reads the coarser ones, and
    neighbours share a cell of those. Squeeze-and-excitation is left out: its gates depend on the whole picture, and so
    does, through them, each channel's volume.
    """

    stride: int
    size: int
    start: int

    def span(self, cell: int, places: int) -> tuple[int, int]:
        """First place that the cell sees of a picture of so many, and the one after the last."""
        first = self.start + cell * self.stride
        return max(first, 0), min(first + self.size, places)


@dataclass(frozen=True)
class Part:
    """A stop on the walk. What it costs excludes the parts within it: a block's gate is a part of its own."""

    name: str  # 'conv1', 'layer1.block0', 'layer1.block0.se', 'fpn.p1', 'head'
    kind: str  # 'stem', 'block', 'gate', 'pyramid' or 'head'
    stage: str  # 'conv1', 'layer1', ..., 'fpn', 'head': what a click opens
    taps: tuple[str, ...]  # where its output can be read, innermost first; none of the head
    shape: tuple[int, ...]  # of its output: (C, f, t), (C,) of a gate, (N,) of the head
    parameters: int
    multiply_adds: int  # of its convolutions and linear layers for one window; a multiply-add is two FLOP


@dataclass(frozen=True)
class Anatomy:
    network: str  # for people
    picture: tuple[int, int]  # (F, T)
    parts: tuple[Part, ...]  # in the order of the forward pass, a gate after its block
    fields: dict[str, Field]  # by tap, of every tap that is a map
    parameters: int  # sums over the parts
    multiply_adds: int
    groups: int = 1  # networks side by side, each with an equal share of every map's channels; 1 where it was not told

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Anatomy":
        """From to_dict, also by way of JSON. Raises KeyError or TypeError for what is no such dictionary."""
        parts = tuple(Part(**{k: tuple(v) if isinstance(v, list) else v for k, v in part.items()})
                      for part in plain["parts"])  # fmt: skip
        fields = {tap: Field(**field) for tap, field in plain["fields"].items()}
        return cls(**{**plain, "picture": tuple(plain["picture"]), "parts": parts, "fields": fields})


def anatomy(classifier: Described) -> Anatomy:
    """Of the network that a classifier or a service hears with."""
    picture = (classifier.mel.n_mels, classifier.mel.frames)
    with torch.device("meta"):  # shapes without memory or work
        model = AudioCNN(classifier.config).eval()
        logits, maps, work = _passed(model, torch.zeros(1, 1, *picture))
    weights = {name: weight.numel() for name, weight in model.named_parameters()}
    parts = []
    for name, kind, modules, taps in _stops(model):
        shape = maps[taps[0]].shape if taps else logits.shape
        cost = [sum(n for key, n in costs.items() if key.startswith(modules)) for costs in (weights, work)]
        parts.append(Part(name, kind, name.split(".")[0], taps, tuple(shape[1:]), *cost))
    return Anatomy(
        network=classifier.network,
        picture=picture,
        parts=tuple(parts),
        fields=_fields(model),
        parameters=sum(part.parameters for part in parts),
        multiply_adds=sum(part.multiply_adds for part in parts),
        groups=classifier.config.groups,
    )


def _stops(model: AudioCNN) -> Iterator[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """(name, kind, how the paths of its modules begin, taps) of every part."""
    yield "conv1", "stem", ("conv1.", "bn1."), ("conv1",)
    for layer in model.stages:
        blocks = getattr(model, layer)
        for j, block in enumerate(blocks):
            name, path = f"{layer}.block{j}", f"{layer}.{j}"
            stage = (layer,) if j == len(blocks) - 1 else ()
            modules = tuple(f"{path}.{module}." for module in ("conv1", "bn1", "conv2", "bn2", "shortcut"))
            yield name, "block", modules, (f"{name}.conv", f"{name}.relu", *stage)
            if block.se is not None:
                yield f"{name}.se", "gate", (f"{path}.se.",), (f"{name}.se",)
    if model.fpn is not None:
        for lateral, level in zip(model.fpn.lateral, model.fpn.smooth, strict=True):
            yield f"fpn.{level}", "pyramid", (f"fpn.lateral.{lateral}.", f"fpn.smooth.{level}."), (f"fpn.{level}",)
    yield "head", "head", ("head.",), ()


def _passed(model: AudioCNN, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, int]]:
    """Logits (1, N), every tap's output, and multiply-adds by module ('layer1.0.conv1.') for the picture x."""
    work: dict[str, int] = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):

            def count(module: nn.Module, _inputs: tuple, output: Tensor, path: str = f"{path}.") -> None:
                work[path] = output.numel() * module.weight[0].numel()  # inputs to each output value

            module.register_forward_hook(count)
    logits, maps = model(x, return_feature_maps=True)
    return logits, maps, work


def _fields(model: AudioCNN) -> dict[str, Field]:
    """By tap. In a block the path through the convolutions sees all that the shortcut sees, and more."""
    field = _behind(_behind(Field(1, 1, 0), model.conv1), model.pool)
    fields = {"conv1": field}
    for layer in model.stages:
        for j, block in enumerate(getattr(model, layer)):
            field = _behind(_behind(field, block.conv1), block.conv2)
            fields[f"{layer}.block{j}.conv"] = fields[f"{layer}.block{j}.relu"] = field
        fields[layer] = field
    if model.fpn is None:
        return fields
    levels = list(zip(model.fpn.lateral.items(), model.fpn.smooth.items(), strict=True))
    total: Field | None = None
    for (layer, lateral), (level, smooth) in reversed(levels):  # the coarsest first, as they are added up
        own = _behind(fields[layer], lateral)
        total = own if total is None else _with_coarser(own, total)
        fields[f"fpn.{level}"] = _behind(total, smooth)
    return {tap: fields[tap] for tap in model.taps if tap in fields}


def _behind(field: Field, layer: nn.Conv2d | nn.MaxPool2d) -> Field:
    """Of the output of a layer whose input's cells have `field`."""
    kernel, stride, padding = (
        size if isinstance(size, int) else size[0] for size in (layer.kernel_size, layer.stride, layer.padding)
    )
    return Field(field.stride * stride, field.size + (kernel - 1) * field.stride, field.start - padding * field.stride)


def _with_coarser(own: Field, coarser: Field) -> Field:
    """Of the sum with a coarser level brought to the same size: cell i gets that level's cell i * own.stride //
    coarser.stride, which lies up to coarser.stride - own.stride places before it."""
    start = min(own.start, coarser.start - (coarser.stride - own.stride))
    end = max(own.start + own.size, coarser.start + coarser.size)
    return Field(own.stride, end - start, start)
