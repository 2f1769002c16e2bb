"""Batches: the clips' dB mel pictures, shuffled and augmented, drawn from (seed, epoch, step) alone."""

import dataclasses
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from cnn.mel import LogMel
from training.augment import augment
from training.config import TrainConfig


@dataclass(frozen=True, eq=False)
class Batch:
    x: Tensor  # (B, 1, F, T), what the network sees
    soft: Tensor  # (B, N), what it should say; rows add up to 1
    chosen: Tensor  # (B,), which clips
    seed: int  # for what the network itself draws: dropout


class Feed:
    """Batches over pictures `db` (n, F, T) with `targets` (n,), of which `rows` (m,) are trained on."""

    def __init__(
        self, db: Tensor, rows: list[int], targets: Tensor, classes: int, front_end: LogMel, config: TrainConfig
    ) -> None:
        self.db, self.rows, self.targets, self.classes = db, torch.tensor(rows), targets, classes
        self.front_end, self.config = front_end, config
        # nine places: 0.29 * 100 is 28.999999999999996
        self.gentle_epochs = math.ceil(round(config.gentle * config.epochs, 9))  # in so many, defects are rarer yet
        self.batch_size = min(config.batch_size, len(rows))
        self.steps = len(rows) // self.batch_size

    def batch(self, epoch: int, step: int) -> Batch:
        """The same for the same arguments, whatever was drawn before: that is what makes resuming exact."""
        config = self.config
        order = np.random.default_rng([config.seed, epoch]).permutation(len(self.rows))
        chosen = self.rows[torch.from_numpy(order[step * self.batch_size : (step + 1) * self.batch_size])]
        rng = np.random.default_rng([config.seed, epoch, step])
        rise = min(1.0, epoch / (config.gentle * config.epochs)) if config.gentle else 1.0  # a curriculum
        late = epoch >= config.epochs * (1 - config.mixup_end_share)
        mix = rng.random() < rise * (config.mixup_end if late else config.mixup)
        soft = nnf.one_hot(self.targets[chosen], self.classes).float()
        config = dataclasses.replace(config, spared=1 - rise * (1 - config.spared))
        x, soft = augment([self.db[i] for i in chosen], soft, self.front_end, config, mix, rng)
        return Batch(x, soft, chosen, int(rng.integers(2**62)))

    def epoch(self, epoch: int, *, ahead: int = 0) -> Iterator[Batch]:
        """Every batch of an epoch; so many are made `ahead`, each in a thread of its own: a GPU need not wait."""
        if not ahead:
            yield from (self.batch(epoch, step) for step in range(self.steps))
            return
        with ThreadPoolExecutor(ahead) as pool:
            coming = deque(pool.submit(self.batch, epoch, step) for step in range(min(ahead, self.steps)))
            for step in range(self.steps):
                batch = coming.popleft().result()
                if step + ahead < self.steps:
                    coming.append(pool.submit(self.batch, epoch, step + ahead))
                yield batch
