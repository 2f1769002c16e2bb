"""The networks: a residual CNN over a log-mel picture, optionally with squeeze-and-excitation and a feature pyramid.

`resnet34`, `resnet18`, `resnet10` (He et al. 2015, arXiv 1512.03385) and `se_fpn` (Hu et al. 2017, arXiv 1709.01507;
Lin et al. 2016, arXiv 1612.03144) are one class with different fields.
B batch, C channels, F mel bins, T frames, N classes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelConfig:
    name: str = "resnet34"
    num_classes: int = 50
    depths: tuple[int, ...] = (3, 4, 6, 3)  # blocks of layer1, layer2, ...
    width: int = 64  # channels of layer1; each further layer doubles them
    stem_stride: int = 2  # s of the first convolution, (4 s - 1)^2; 4 leaves a quarter of the work to what follows
    groups: int = 1  # networks side by side, blind to each other up to the head, which adds up what they say
    se: bool = False  # squeeze-and-excitation in every block
    se_reduction: int = 16
    fpn_channels: int = 0  # of the feature pyramid; 0: no pyramid
    head_dropouts: tuple[float, ...] = (0.5,)  # one per linear layer of the head
    head_hidden: tuple[int, ...] = ()  # widths of the head's hidden linear layers

    def __post_init__(self) -> None:
        # json and torch.save hand tuples back as lists
        for field in ("depths", "head_dropouts", "head_hidden"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.depths or min(self.depths) < 1 or self.width < 1 or self.num_classes < 1:
            raise ValueError(f"{self.name}: depths {self.depths}, width and num_classes must be positive")
        if len(self.depths) > 8 or max(self.depths) > 64 or max(self.width, self.fpn_channels, self.num_classes) > 4096:
            raise ValueError(f"{self.name}: depths {self.depths} or width {self.width} are beyond this family")
        if not 1 <= self.stem_stride <= 16:
            raise ValueError(f"{self.name}: stem_stride {self.stem_stride} must lie in 1..16")
        if self.groups < 1 or self.width % self.groups:
            raise ValueError(f"{self.name}: width {self.width} cannot be shared out among {self.groups} groups")
        if self.groups > 1 and (self.se or self.fpn_channels or self.head_hidden):
            raise ValueError(f"{self.name}: gates, a pyramid or hidden layers of the head see all channels: no groups")
        if self.fpn_channels < 0 or self.se_reduction < 1:
            raise ValueError("fpn_channels must be 0 or more, se_reduction 1 or more")
        if len(self.head_dropouts) != len(self.head_hidden) + 1:
            raise ValueError("head_dropouts needs one rate per linear layer: one more than head_hidden has widths")
        if not all(0 <= rate < 1 for rate in self.head_dropouts):
            raise ValueError(f"head_dropouts {self.head_dropouts} must lie in 0..1")

    @property
    def title(self) -> str:
        """For people: 'resnet34', or '4 × resnet18' of groups."""
        return f"{self.groups} × {self.name}" if self.groups > 1 else self.name


RESNET34 = ModelConfig()
RESNET18 = ModelConfig(name="resnet18", depths=(2, 2, 2, 2))
RESNET10 = ModelConfig(name="resnet10", depths=(1, 1, 1, 1))
SE_FPN = ModelConfig(
    name="se_fpn", se=True, fpn_channels=128, head_hidden=(256, 128), head_dropouts=(0.5, 0.3, 0.2)
)
MODELS: dict[str, ModelConfig] = {"resnet34": RESNET34, "resnet18": RESNET18, "resnet10": RESNET10, "se_fpn": SE_FPN}


@dataclass(frozen=True)
class Tap:
    """A place in the network whose output can be read."""

    module: str  # dotted path of the module whose output it is
    channels: int
    stride: int  # cells of the picture per cell of the map, in both directions; 0: a gate (B, C), no map

    @property
    def is_map(self) -> bool:
        return self.stride > 0


class SqueezeExcite(nn.Module):
    """(B, C, f, t) -> gates (B, C) in 0..1, one per channel, from the channel means."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, channels)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.fc2(self.act(self.fc1(x.mean(dim=(2, 3))))))  # (B, C)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (B, C_in, f, t) -> (B, C_out, f/stride, t/stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int, se_reduction: int | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = SqueezeExcite(channels, se_reduction) if se_reduction else None
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, groups=groups, bias=False), nn.BatchNorm2d(channels)
            )
        self.sum = nn.Identity()  # a name for the sum before the last ReLU, so that it can be tapped
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.se is not None:
            y = y * self.se(y)[:, :, None, None]
        return self.act2(self.sum(y + self.shortcut(x)))


class FeaturePyramid(nn.Module):
    """Named maps in, named maps out: {layer1: (B, C1, f, t), ...} -> {p1: (B, channels, f, t), ...}, finest first.

    Top-down: each level is its own 1x1 projection plus the coarser level, brought to its exact size (so odd sizes are
    legal), smoothed by a 3x3 convolution.
    """

    def __init__(self, in_channels: dict[str, int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleDict({k: nn.Conv2d(c, channels, 1) for k, c in in_channels.items()})
        self.smooth = nn.ModuleDict(
            {f"p{i}": nn.Conv2d(channels, channels, 3, padding=1) for i in range(1, len(in_channels) + 1)}
        )

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        names = list(self.lateral)
        sums: list[Tensor] = []  # coarsest first
        for name in reversed(names):
            level = self.lateral[name](maps[name])
            if sums:
                level = level + nnf.interpolate(sums[-1], size=level.shape[-2:], mode="nearest")
            sums.append(level)
        return {p: conv(level) for (p, conv), level in zip(self.smooth.items(), reversed(sums), strict=True)}


class AudioCNN(nn.Module):
    """Log-mel picture (B, 1, F, T) -> logits (B, N). Any F and T from 1 on are legal; the taps say what can be read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        s = config.stem_stride
        self.conv1 = nn.Conv2d(1, config.width, 4 * s - 1, stride=s, padding=2 * s - 1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.act1 = nn.ReLU()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.taps: dict[str, Tap] = {"conv1": Tap("pool", config.width, 2 * s)}
        self.stages: list[str] = []
        stage_channels: dict[str, int] = {}
        in_channels, stride = config.width, 2 * s
        reduction = config.se_reduction if config.se else None
        for k, depth in enumerate(config.depths, start=1):
            layer, channels = f"layer{k}", config.width * 2 ** (k - 1)
            blocks = []
            for j in range(depth):
                step = 2 if k > 1 and j == 0 else 1
                blocks.append(ResidualBlock(in_channels, channels, step, config.groups, reduction))
                in_channels, stride = channels, stride * step
                if config.se:
                    self.taps[f"{layer}.block{j}.se"] = Tap(f"{layer}.{j}.se", channels, 0)
                self.taps[f"{layer}.block{j}.conv"] = Tap(f"{layer}.{j}.sum", channels, stride)
                self.taps[f"{layer}.block{j}.relu"] = Tap(f"{layer}.{j}.act2", channels, stride)
            self.add_module(layer, nn.Sequential(*blocks))
            self.taps[layer] = Tap(layer, channels, stride)
            self.stages.append(layer)
            stage_channels[layer] = channels
        self.fpn = FeaturePyramid(stage_channels, config.fpn_channels) if config.fpn_channels else None
        if self.fpn is not None:
            for k, layer in enumerate(self.stages, start=1):
                self.taps[f"fpn.p{k}"] = Tap(f"fpn.smooth.p{k}", config.fpn_channels, self.taps[layer].stride)
        features = config.fpn_channels * len(self.stages) if self.fpn else in_channels
        head: list[nn.Module] = []
        for rate, width in zip(config.head_dropouts[:-1], config.head_hidden, strict=True):
            head += [nn.Dropout(rate), nn.Linear(features, width), nn.ReLU()]
            features = width
        head += [nn.Dropout(config.head_dropouts[-1]), nn.Linear(features, config.num_classes)]
        self.head = nn.Sequential(*head)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, return_feature_maps: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, N); with `return_feature_maps` also {tap: (B, C, f, t) or gates (B, C)} for every tap."""
        if return_feature_maps:
            with self.reading(self.taps) as maps:
                return self._logits(x), maps
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.pool(self.act1(self.bn1(self.conv1(x))))  # (B, width, f, t)
        maps: dict[str, Tensor] = {}
        for layer in self.stages:
            x = maps[layer] = getattr(self, layer)(x)
        if self.fpn is None:
            return self.head(x.mean(dim=(2, 3)))  # (B, N)
        levels = self.fpn(maps).values()
        return self.head(torch.cat([level.mean(dim=(2, 3)) for level in levels], dim=1))  # (B, N)

    @contextmanager
    def reading(
        self, taps: Iterable[str], keep: Callable[[Tensor], Tensor] = Tensor.clone
    ) -> Iterator[dict[str, Tensor]]:
        """While open, every forward pass leaves `keep` of the named taps' outputs in the dictionary, as computed.

        `keep` must give a new tensor: an operation in place further on must not change what was read.
        Raises KeyError for a tap that this network does not declare, naming those it does.
        """
        taps = list(taps)
        unknown = [t for t in taps if t not in self.taps]
        if unknown:
            raise KeyError(f"no tap {unknown[0]!r} in {self.config.name}; it has {', '.join(self.taps)}")
        maps: dict[str, Tensor] = {}
        handles = []
        try:
            for tap in taps:

                def hook(_module: nn.Module, _inputs: tuple, output: Tensor, tap: str = tap) -> None:
                    maps[tap] = keep(output)

                handles.append(self.get_submodule(self.taps[tap].module).register_forward_hook(hook))
            yield maps
        finally:
            for handle in handles:
                handle.remove()

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())
