"""What a training run is made of: one frozen dataclass, presets that list only what differs, flags from its fields."""

import argparse
import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cnn.checkpoint import SINCE
from cnn.mel import MELS
from cnn.model import MODELS, ModelConfig

CHOICES: dict[str, tuple[str, ...]] = {
    "model": tuple(MODELS),
    "mel": tuple(MELS),
    "classes": ("esc50", "esc10"),
    "schedule": ("onecycle", "cosine"),
    "mixup_domain": ("level", "power", "input"),
    "precision": ("auto", "bf16", "fp32"),
    "layout": ("auto", "channels_last", "contiguous"),
}
POSITIVE = ("width", "stem_stride", "groups", "batch_size", "accumulate", "max_lr", "lr", "crop_frames", "eq_knots",
            "mixup_alpha", "mixup_sharpness", "kept_min", "checkpoint_every")  # fmt: skip
NOT_NEGATIVE = ("epochs", "patience", "weight_decay", "clip_norm", "shift_bins", "eq_db", "gain_db", "freq_masks",
                "freq_mask_bins", "time_masks", "time_mask_frames", "seed")  # fmt: skip
SHARES = ("inner_share", "warmup", "label_smoothing", "average", "mixup", "mixup_end", "mixup_end_share", "lowpass",
          "highpass", "silence", "kept_min", "repeated", "noise", "background", "reverb", "spared",
          "gentle")  # fmt: skip
BELOW_ONE = {  # and why
    "warmup": "the learning rate has to come down again",
    "average": "the weights of the first step would be kept",
}


def groups_of(widen: str) -> list[list[str]]:
    """'A,B+C' -> [[A], [B, C]]: what each group grows from. A path with a comma or a plus in it cannot be named."""
    return [group.split("+") for group in widen.split(",")] if widen else []


def each_of(widen: str, change: Callable[[str], str]) -> str:
    """The same with every path in it changed."""
    return ",".join("+".join(map(change, group)) for group in groups_of(widen))


@dataclass(frozen=True)
class TrainConfig:
    recipe: str = "resnet34-16k"
    # network and front end
    model: str = "resnet34"  # the network: a key of cnn.model.MODELS
    width: int = 64  # channels of layer1
    stem_stride: int = 2  # of the first convolution; 4: a quarter of the work for everything after it
    groups: int = 1  # networks side by side that share the width, blind to each other; their mean is the answer
    mel: str = "16k"  # the front end, by its sample rate: a key of cnn.mel.MELS
    relative: bool = True  # level-invariant front end: dB below the window's own maximum
    floor_db: float = -80.0  # floor of the front end
    # data
    fold: int = 5  # held out: not trained on, not looked at until the run is over
    classes: str = "esc50"  # all fifty; or esc10: the ten that the csv flags
    inner_share: float = 0.0  # share of the training recordings kept aside to validate on; 0: none, train on all
    # optimisation
    epochs: int = 90  # 0: none, what it grows from (widen) stays as it is
    patience: int = 0  # stop after so many epochs without a better inner accuracy and keep the best; 0: never
    batch_size: int = 64
    accumulate: int = 1  # parts that a batch is computed in, each with its own BatchNorm statistics
    schedule: str = "onecycle"  # from max_lr / 25 to max_lr and to nothing; or cosine: from lr to nothing
    lr: float = 5e-4  # AdamW's; a OneCycle schedule puts its own in place of it
    max_lr: float = 2e-3  # peak of the OneCycle schedule
    warmup: float = 0.1  # share of the steps before the peak
    weight_decay: float = 0.1
    decay_all: bool = False  # decay biases and BatchNorm too; else weights of convolutions and linear layers only
    clip_norm: float = 0.0  # the gradient's norm is held below this; 0: not
    label_smoothing: float = 0.1
    average: float = 0.997  # decay per step of the exponential weight average, which is kept; 0: the last weights
    widen: str = ""  # best_model.pth to grow from; A,B: one for each group; A+B: their weights' mean; {fold}: held out
    # augmentation: per clip, on the dB mel picture
    roll: bool = True  # start anywhere in the clip and wrap round
    crop_frames: int = 192  # T of a training picture
    stretch_min: float = 0.85  # time stretch, log-uniform
    stretch_max: float = 1.18
    shift_bins: int = 4  # frequency shift of up to so many mel bins either way
    eq_knots: int = 5  # random equaliser, interpolated over the bins
    eq_db: float = 4.0  # standard deviation of the equaliser
    gain_db: float = 4.0  # standard deviation of the level (it decides who is louder in a mix)
    # the same, for sounds from outside
    lowpass: float = 0.0  # share of clips cut above a random bin, like a telephone, an old archive, a low bit rate
    highpass: float = 0.0  # share of clips cut below a random bin, like a small microphone
    silence: float = 0.0  # share of clips kept in a random stretch only, digital silence around it
    kept_min: float = 0.3  # the shortest such stretch, as a share of the picture
    repeated: float = 0.0  # share of such clips where the stretch comes again and again, with pauses
    noise: float = 0.0  # share of clips laid over with noise of a random level and colour
    background: float = 0.0  # share of clips laid over with another clip, whose name stays out of it
    reverb: float = 0.0  # share of clips smeared like a room does, T60 0.2 to 0.8 s
    spared: float = 0.0  # share of clips to which nothing of that happens
    gentle: float = 0.0  # share of the epochs, the first, in which defects and mixing become as frequent as they stay
    mixup: float = 0.75  # share of batches that are mixed
    mixup_end: float = 0.3  # the same in the last part of the run
    mixup_end_share: float = 0.2  # how long that is, as a share of the epochs
    mixup_alpha: float = 1.0  # shares are drawn from Beta(alpha, alpha); 1: uniform
    mixup_domain: str = "level"  # sounds add up, both made as loud; power: as loud as they are; input: pictures add up
    mixup_sharpness: float = 1.0  # a mix's label tells the shares of amplitudes raised to this: 1 amplitude, 2 power
    freq_masks: int = 2  # how many, as SpecAugment does (Park et al. 2019, arXiv 1904.08779)
    freq_mask_bins: int = 21  # width of each, uniform from 0 to this
    time_masks: int = 2
    time_mask_frames: int = 35  # likewise
    # the run
    seed: int = 0
    precision: str = "auto"  # auto: bf16 autocast where that is clearly faster on this machine; bf16; fp32
    layout: str = "auto"  # of pictures in memory: channels_last (faster) where the width allows it, or contiguous
    device: str = "auto"  # auto: cuda where there is one, else cpu; or cpu, cuda, cuda:N
    checkpoint_every: int = 5  # epochs between resume states

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; known are {', '.join(known)}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a number that can be computed with, not {value}")
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, not {getattr(self, name)}")
        for name, why in BELOW_ONE.items():
            if getattr(self, name) == 1:
                raise ValueError(f"{name} must be below 1: {why}")
        if self.seed >= 2**63:
            raise ValueError(f"seed must lie below 2^63, not {self.seed}")
        if self.crop_frames > (whole := MELS[self.mel].frames):
            raise ValueError(f"crop_frames must be at most the {whole} of a clip with mel {self.mel}, not "
                             f"{self.crop_frames}")  # fmt: skip
        if self.accumulate > self.batch_size:
            raise ValueError(f"a batch of {self.batch_size} cannot be computed in {self.accumulate} parts: raise "
                             "batch_size or lower accumulate")  # fmt: skip
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device {self.device!r} is unknown; known are auto, cpu, cuda, cuda:N")
        if not self.epochs and not self.widen:
            raise ValueError("epochs must be positive where nothing is grown from: it would be noise")
        if set("{}") & set(self.widen.replace("{fold}", "")):
            raise ValueError(f"widen {self.widen!r}: nothing but {{fold}} may stand in braces")
        if self.widen and not all(map(all, groups_of(self.widen))):
            raise ValueError(f"widen {self.widen!r}: a name is missing beside a comma or a plus")
        if self.widen and (named := len(groups_of(self.widen))) != self.groups:
            width = "theirs together" if named > 1 else "a multiple of its own"
            mean = " (a mean counts as one)" if "+" in self.widen else ""
            raise ValueError(f"widen names {named} to grow from{mean}, and groups is {self.groups}: one for each is "
                             f"needed, so set groups to {named} and width to {width}")  # fmt: skip
        if self.layout == "channels_last" and not self.may_be_channels_last:
            raise ValueError(f"layout channels_last needs a width that {16 * self.groups} divides, not {self.width}: "
                             "torch 2.14.1 writes beyond its memory in the backward pass otherwise")  # fmt: skip
        if self.patience and not self.epochs:
            raise ValueError("patience needs epochs to choose from: set it to 0 where nothing is learned any more")
        if self.patience and not self.inner_share:
            raise ValueError("patience needs an inner_share of the recordings to validate on, say 0.1")
        if not 0 < self.stretch_min <= self.stretch_max:
            raise ValueError(f"0 < stretch_min <= stretch_max is needed, not {self.stretch_min}, {self.stretch_max}")
        self.network(classes=1)  # what it refuses is told now

    @property
    def may_be_channels_last(self) -> bool:
        return self.width % (16 * self.groups) == 0

    def network(self, classes: int) -> ModelConfig:
        """What to build for so many classes."""
        chosen = {name: getattr(self, name) for name in ("width", "stem_stride", "groups")}
        return dataclasses.replace(MODELS[self.model], num_classes=classes, **chosen)


# as the family this project descends from trains: the picture is whole and unwarped, one level of masks, no average
PLAIN: dict[str, Any] = {
    "relative": False, "floor_db": -100.0, "roll": False, "stretch_min": 1.0, "stretch_max": 1.0, "shift_bins": 0,
    "eq_db": 0.0, "gain_db": 0.0, "mixup_domain": "input", "mixup_end_share": 0.0, "decay_all": True, "average": 0.0,
}  # fmt: skip
# half the width, ten layers and a coarse first step: a clip costs a twentieth of what it costs resnet34, so that in
# half an hour a thousand epochs of strongly changed sounds fit; robust to what phones and rooms do
BEST: dict[str, Any] = {
    "model": "resnet10", "width": 32, "stem_stride": 4, "epochs": 1000, "gentle": 0.3, "max_lr": 3e-3,
    "crop_frames": 208, "stretch_min": 0.7, "stretch_max": 1.4, "shift_bins": 8, "eq_db": 6.0, "mixup": 0.9,
    "mixup_end_share": 0.1, "lowpass": 0.3, "highpass": 0.15, "silence": 0.2, "noise": 0.35, "background": 0.25,
    "reverb": 0.1, "spared": 0.4,
}  # fmt: skip
# sounds as short as people cut them, often again and again; labels of mixes tell who has more power
SHORT: dict[str, Any] = {"kept_min": 0.03, "repeated": 0.5, "mixup_sharpness": 2.0}
LATE: dict[str, Any] = BEST | {"epochs": 320, "gentle": 0.0, "max_lr": 1.5e-3, "seed": 1}  # training on
# what a recipe grows from, by the recipes that make it and as `widen` puts it
PARENTS: dict[str, str] = {
    "late-16k": "clean-16k",
    "short-16k": "clean-16k",
    "ensemble-16k": "best-16k,clean-16k,late-16k",
}


def _grown_from(recipe: str) -> str:
    """Where training.crossval leaves them."""
    return each_of(PARENTS[recipe], lambda parent: f"runs/{parent}/fold{{fold}}/best_model.pth")


RECIPES: dict[str, dict[str, Any]] = {
    "resnet34-16k": {},
    "best-16k": BEST,
    # more defects, and short sounds
    "robust-16k": BEST | SHORT | {"silence": 0.4, "background": 0.35, "reverb": 0.2, "spared": 0.2},
    # best-16k in another order: first without any defect of phones and rooms, then trained on with them
    "clean-16k": BEST | {"spared": 1.0, "epochs": 640, "seed": 1},
    "late-16k": LATE | {"widen": _grown_from("late-16k")},
    "short-16k": LATE | SHORT | {"silence": 0.6, "widen": _grown_from("short-16k")},
    # all three side by side in one network: a deep ensemble (Lakshminarayanan et al. 2016, arXiv 1612.01474)
    "ensemble-16k": BEST | {
        "width": 96, "groups": 3, "epochs": 0, "gentle": 0.0, "widen": _grown_from("ensemble-16k"),
    },
    "resnet34-44k": PLAIN | {
        "mel": "44k", "crop_frames": 431, "epochs": 100, "weight_decay": 0.01, "mixup": 0.3, "mixup_alpha": 0.2,
        "freq_masks": 1, "time_masks": 1, "freq_mask_bins": 30, "time_mask_frames": 80, "batch_size": 32,
    },
    "se-fpn-22k": PLAIN | {
        "model": "se_fpn", "mel": "22k", "crop_frames": 216, "epochs": 150, "schedule": "cosine", "weight_decay": 0.05,
        "clip_norm": 1.0, "label_smoothing": 0.15, "mixup": 0.5, "mixup_alpha": 0.4, "freq_mask_bins": 36,
        "time_mask_frames": 50, "batch_size": 32, "inner_share": 0.1, "patience": 25,
    },
}  # fmt: skip
# Fields of the two inherited recipes that their description leaves open and this project chose; the dropouts of
# se_fpn's head (cnn.model.SE_FPN) are chosen as well.
CHOSEN: dict[str, tuple[str, ...]] = {
    "resnet34-44k": ("warmup", "freq_masks", "time_masks", "freq_mask_bins", "time_mask_frames", "batch_size"),
    "se-fpn-22k": ("lr", "weight_decay", "clip_norm", "mixup", "freq_masks", "freq_mask_bins", "time_masks",
                   "time_mask_frames", "batch_size", "inner_share", "patience"),
}  # fmt: skip


def make(recipe: str, **fields: Any) -> TrainConfig:
    """The preset with some fields changed. Raises ValueError naming the known recipes or fields."""
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is unknown; known are {', '.join(RECIPES)}")
    known = [f.name for f in dataclasses.fields(TrainConfig)]
    for name in fields:
        if name not in known:
            raise ValueError(f"field {name!r} is unknown; known are {', '.join(known)}")
    return TrainConfig(**{"recipe": recipe, **RECIPES[recipe], **fields})


# fields that are missing in older results and checkpoints, and what those were computed with (stretches of kept_min on
# were uniform in length then and lay anywhere)
YOUNG: dict[str, Any] = SINCE["model"] | {"mixup_sharpness": 1.0, "kept_min": 0.3, "repeated": 0.0}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], free: Iterable[str] = ()) -> str:
    """'lr 0.1 -> 0.2, ...' for every field of either configuration but the free ones; '' where there is none.

    What was recorded before a field existed was computed with the value that YOUNG gives it.
    """
    theirs, ours = YOUNG | {**theirs}, YOUNG | {**ours}
    changed = [k for k in sorted({*theirs, *ours} - {*free}) if theirs.get(k) != ours.get(k)]
    return ", ".join(f"{k} {theirs.get(k)!r} -> {ours.get(k)!r}" for k in changed)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """`--recipe` and one flag per field of TrainConfig; those not given stay out of the namespace.

    Their help is the comment beside the field, above. A choice is checked by TrainConfig, not by argparse: its error is
    one sentence then, without the fifty flags before it.
    """
    parser.add_argument("--recipe", default="resnet34-16k", choices=RECIPES, help="the preset to start from")
    comments = dict(re.findall(r"^    (\w+): \w+ = .*?  # (.+)$", inspect.getsource(TrainConfig), re.MULTILINE))
    for field in dataclasses.fields(TrainConfig):
        if field.name == "recipe":
            continue
        kind = _boolean if field.type is bool else field.type
        values = ("true", "false") if field.type is bool else CHOICES.get(field.name)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            default=argparse.SUPPRESS,
            metavar=f"{{{','.join(values)}}}" if values else kind.__name__.upper(),
            help=f"{comments.get(field.name, '')} ({_defaults(field)})".strip().replace("%", "%%"),
        )


def _defaults(field: dataclasses.Field) -> str:
    """'default: 90; best-16k: 800; ...', every recipe named that has another."""
    others = {recipe: preset[field.name] for recipe, preset in RECIPES.items() if field.name in preset}
    told = {"default": field.default} | {k: v for k, v in others.items() if v != field.default}
    return "; ".join(f"{k}: {str(v).lower() if field.type is bool else repr(v)}" for k, v in told.items())


def from_flags(args: argparse.Namespace) -> TrainConfig:
    known = {f.name for f in dataclasses.fields(TrainConfig)} - {"recipe"}
    return make(args.recipe, **{k: v for k, v in vars(args).items() if k in known})


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() == "true"
