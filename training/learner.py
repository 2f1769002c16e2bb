"""A network that learns: one optimisation step on one batch, and everything such steps change."""

import copy
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.config import TrainConfig
from training.feed import Batch
from training.parallel import ALONE, Ranks

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Mode:
    """How this machine computes a step fastest."""

    device: str
    precision: str  # bf16 (autocast) or fp32
    layout: str  # a key of LAYOUTS

    @property
    def kind(self) -> str:
        return torch.device(self.device).type  # cpu or cuda

    @property
    def ahead(self) -> int:
        """Batches to make ahead: a GPU must not wait, on a CPU it would only take the cores from the network."""
        return 0 if self.kind == "cpu" else min(4, os.cpu_count() or 1)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.kind, torch.bfloat16, enabled=self.precision == "bf16")


class Learner:
    """The network, its weight average, the optimizer and the schedule. `steps`: of the whole run."""

    def __init__(self, config: TrainConfig, model: nn.Module, mode: Mode, steps: int, ranks: Ranks = ALONE) -> None:
        self.config, self.mode, self.ranks = config, mode, ranks
        self.model = model.to(mode.device, memory_format=LAYOUTS[mode.layout])
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.average), use_buffers=True)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.model, config), lr=config.lr, fused=True)
        self.schedule: LRScheduler
        if config.schedule == "onecycle":
            # a warm-up of one step exactly is a division by zero in torch; a trace longer, it is the same schedule
            warmup = config.warmup * (1.001 if config.warmup * steps == 1 else 1)
            self.schedule = OneCycleLR(
                self.optimizer, max_lr=config.max_lr, total_steps=steps, pct_start=warmup, cycle_momentum=False
            )
        else:
            self.schedule = CosineAnnealingLR(self.optimizer, T_max=steps)
        self.statistics = [b for b in self.model.buffers() if b.is_floating_point()]  # BatchNorm's running ones
        self.wrapped = ranks.wrap(self.model, mode.device)

    @property
    def lr(self) -> float:
        return self.schedule.get_last_lr()[0]

    def step(self, batch: Batch) -> tuple[float, float]:
        """(loss, share of clips whose strongest class is the strongest of the mix).

        Where the loss or its gradient is not finite, the loss told is not either, and nothing was changed.
        The batch is computed in `accumulate` parts per process, all from the same BatchNorm statistics, which become
        the mean of what the parts make of them.
        """
        parts = self.ranks.size * self.config.accumulate
        x, soft = batch.x.chunk(parts), batch.soft.chunk(parts)
        if len(x) != parts:
            raise ValueError(f"a batch of {len(batch.x)} cannot be computed in {parts} parts: raise --batch-size")
        ours = range(self.ranks.index, parts, self.ranks.size)
        before = [b.clone() for b in self.statistics]
        after = [torch.zeros_like(b) for b in self.statistics]
        told = torch.zeros(2, dtype=torch.float64)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for i in ours:
            torch._foreach_copy_(self.statistics, before)
            with self.ranks.exchanging(self.wrapped, now=i == ours[-1]):
                logits = self._forward(x[i], batch.seed + i)
                target = soft[i].to(self.mode.device)
                loss = nnf.cross_entropy(logits, target, label_smoothing=self.config.label_smoothing)
                (loss * (len(x[i]) / len(batch.x) * self.ranks.size)).backward()  # DDP takes the mean over processes
            torch._foreach_add_(after, self.statistics, alpha=self.ranks.size / parts)
            hits = (logits.argmax(1) == target.argmax(1)).double().sum().item()
            told += torch.tensor([loss.item() * len(x[i]), hits], dtype=torch.float64) / len(batch.x) * self.ranks.size
        self.ranks.mean([told, *after])
        value, accuracy = told.tolist()
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if not (math.isfinite(value) and norm.isfinite()):
            torch._foreach_copy_(self.statistics, before)
            return math.nan if math.isfinite(value) else value, accuracy
        torch._foreach_copy_(self.statistics, after)
        if self.config.clip_norm:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.clip_norm, norm)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.model)
        return value, accuracy

    def _forward(self, x: Tensor, seed: int) -> Tensor:
        """(B, 1, F, T) -> logits (B, N), float32."""
        x = x.to(self.mode.device, memory_format=LAYOUTS[self.mode.layout])
        with torch.random.fork_rng(devices=[self.mode.device] if self.mode.kind == "cuda" else []):
            torch.manual_seed(seed)  # dropout has no generator of its own
            with self.mode.autocast():
                return self.wrapped(x).float()

    @torch.inference_mode()
    def outputs(self, x: Tensor) -> Tensor:
        """What the weight average says to pictures (n, 1, F, T): logits (n, N) on the CPU, float32."""
        self.average.eval()
        told = []
        for part in x.split(self.config.batch_size):
            part = part.to(self.mode.device, memory_format=LAYOUTS[self.mode.layout])
            with self.mode.autocast():
                told.append(self.average(part).float().cpu())
        return torch.cat(told)

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer", "schedule")}

    def load(self, state: dict[str, Any]) -> None:
        for name in ("model", "average", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])


def _parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Weight decay on the weights of convolutions and linear layers; on biases and BatchNorm only if asked for."""
    parameters = list(model.parameters())
    if config.decay_all:
        return [{"params": parameters, "weight_decay": config.weight_decay}]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def choose_mode(config: TrainConfig, model: nn.Module, shape: tuple[int, ...], device: str) -> Mode:
    """What `config` asks for; `auto` is decided for training `model` on pictures of this shape."""
    layout = config.layout
    if layout == "auto":
        layout = "channels_last" if config.may_be_channels_last else "contiguous"
    if config.precision != "auto":
        return Mode(device, config.precision, layout)
    return fastest_mode(model, shape, device, layout)


def fastest_mode(model: nn.Module, shape: tuple[int, ...], device: str, layout: str) -> Mode:
    """bf16 where it makes a training step here on pictures of this shape clearly faster, else fp32.

    Measured, not looked up: processors without bf16 instructions exist. The margin is wide, so that a busy moment does
    not give the same run other numbers the next time.
    """
    trial = copy.deepcopy(model).to(device, memory_format=LAYOUTS[layout]).train()
    x = torch.zeros(shape, device=device).to(memory_format=LAYOUTS[layout])
    seconds = {Mode(device, precision, layout): math.inf for precision in ("bf16", "fp32")}
    with torch.random.fork_rng():
        for _ in range(3):  # in turns, the best of each counts
            for mode in seconds:
                start = time.perf_counter()
                with mode.autocast():
                    loss = trial(x).float().square().mean()
                loss.backward()
                if mode.kind == "cuda":
                    torch.cuda.synchronize()
                seconds[mode] = min(seconds[mode], time.perf_counter() - start)
    bf16, fp32 = seconds
    return bf16 if seconds[bf16] < 0.8 * seconds[fp32] else fp32
