"""make bench-train: what a training step costs: python -m tests.bench_train [--data DIR] [--recipe R --any-field value]

(a) the training loop with clips from the cache and all augmentation, after the recipe's gentle epochs,
against the same on one batch made beforehand, (b) the floating point operations of such a step against this machine's
own matrix product in the same precision. What is compared is measured in turns, warmed up, and taken as medians. Run it
on an idle machine.
"""

import argparse
import csv
import itertools
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode

from cnn.audio import AudioError
from cnn.labels import ESC10, ESC50
from cnn.mel import MELS, LogMel
from cnn.model import AudioCNN
from tests.bench import PRODUCTS, Row, medians, show
from training import config as configs
from training.config import TrainConfig
from training.data import DataError, load_db, read_rows
from training.feed import Batch, Feed
from training.learner import Learner, Mode, choose_mode

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
GPU_PRODUCTS = (4096, 8192)  # further sides among which the peak is sought on a GPU
CLIPS = 200  # of the made-up data set, each heard several times an epoch
EPOCH = 1600  # clips: four folds of ESC-50
WIDTH = 64  # of layer1, where TARGET counts
TARGET = 0.70  # of the matrix product's speed


def made_up(root: Path, rate: int) -> Path:
    """A data set of ESC-50's layout: noise of random level and length in digital silence."""
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    rng = np.random.default_rng(0)
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        for i in range(CLIPS):
            samples = np.zeros(5 * rate, np.float32)
            length = rng.integers(rate // 2, len(samples))
            samples[:length] = rng.normal(0, 10 ** rng.uniform(-3, -1), length)
            soundfile.write(root / "audio" / f"{i}.wav", samples.clip(-1, 1), rate)
            label = sorted(ESC10)[i % len(ESC10)]
            table.writerow([f"{i}.wav", i % 5 + 1, ESC50.index(label), label, True, i, "A"])
    return root


def made_feed(config: TrainConfig, data: Path, cache: Path | None) -> Feed:
    """As much as training hears in an epoch, of every fold: this is about speed."""
    rows = read_rows(data, esc10=config.classes == "esc10")
    db, _ = load_db(rows, MELS[config.mel], cache)
    labels = [c for c in ESC50 if config.classes == "esc50" or c in ESC10]
    targets = torch.tensor([labels.index(row.label) for row in rows])
    heard = list(itertools.islice(itertools.cycle(range(len(rows))), EPOCH))
    return Feed(db, heard, targets, len(labels), LogMel(MELS[config.mel]), config)


def made_learner(config: TrainConfig, feed: Feed) -> Learner:
    model = AudioCNN(config.network(feed.classes))
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    shape = (feed.batch_size, 1, MELS[config.mel].n_mels, config.crop_frames)
    mode = choose_mode(config, model, shape, device)
    return Learner(config, model, mode, 1_000_000)  # the schedule stays at its start


def full(feed: Feed) -> int:
    """The first epoch with everything that is done to the pictures; the last one where none has all that."""
    return min(feed.gentle_epochs, feed.config.epochs - 1)


def batches(feed: Feed, ahead: int, steps: int) -> Iterator[Batch]:
    """So many batches from the epoch `full` on, through as many epochs as it takes."""
    epochs = (feed.epoch(epoch, ahead=ahead) for epoch in itertools.count(full(feed)))
    return itertools.islice(itertools.chain.from_iterable(epochs), steps)


def train_on(learner: Learner, given: Callable[[], Iterator[Batch]]) -> None:
    for batch in given():
        learner.step(batch)
    settle(learner.mode)


def product(mode: Mode, a: torch.Tensor, out: torch.Tensor) -> None:
    torch.mm(a, a, out=out)
    settle(mode)


def settle(mode: Mode) -> None:
    if mode.kind == "cuda":
        torch.cuda.synchronize()


def measured(config: TrainConfig, feed: Feed, learner: Learner, steps: int, rounds: int) -> list[Row]:
    mode, ahead = learner.mode, learner.mode.ahead
    batch = feed.batch(full(feed), 0)
    with FlopCounterMode(display=False) as counter:
        learner.step(batch)
    work = {"constant": float(counter.get_total_flops() * steps)}
    jobs: dict[str, Callable[[], object]] = {
        "real": partial(train_on, learner, partial(batches, feed, ahead, steps)),
        "constant": partial(train_on, learner, partial(itertools.repeat, batch, steps)),
        "batches": lambda: [None for _ in batches(feed, False, steps)],
    }
    for side in PRODUCTS + (GPU_PRODUCTS if ahead else ()):
        a = torch.randn(side, side, generator=torch.Generator().manual_seed(side))
        a = a.to(mode.device, DTYPES[mode.precision])
        jobs[f"product {side}"] = partial(product, mode, a, torch.empty_like(a))
        work[f"product {side}"] = 2.0 * side**3
    seconds = medians(jobs, rounds)
    speed = {name: done / seconds[name] / 1e9 for name, done in work.items()}
    peak = max((name for name in work if name.startswith("product")), key=speed.__getitem__)
    kept, share = seconds["constant"] / seconds["real"], speed["constant"] / speed[peak]
    real = f"{steps / seconds['real']:.2f} a second = {kept:.0%}"
    wide = config.width == WIDTH
    what = f"{config.model}, width {config.width}, batch {feed.batch_size}, {mode.precision}, {mode.layout}"
    return [
        Row("(a) making a batch", f"{1000 * seconds['batches'] / steps:.0f} ms"),
        Row("(a) steps on one constant batch", f"{steps / seconds['constant']:.2f} a second"),
        Row("(a) steps of the real loop", real, ">= 90 %", kept >= 0.9),
        Row(f"(b) {mode.precision} peak, {peak}", f"{speed[peak]:.0f} GFLOP/s"),
        Row(
            f"(b) step, {what}",
            f"{speed['constant']:.0f} GFLOP/s = {share:.0%} of peak",
            f">= {TARGET:.0%}" if wide else "",
            share >= TARGET if wide else None,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_train", description="What a training step costs.")
    parser.add_argument("--data", type=Path, help="a folder of ESC-50's layout (default: a made-up one)")
    parser.add_argument("--steps", type=int, default=5, help="steps measured together (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each thing (default: %(default)s)")
    configs.add_flags(parser)
    parser.set_defaults(recipe="best-16k", width=WIDTH)
    args = parser.parse_args()
    try:
        config = configs.from_flags(args)
        with tempfile.TemporaryDirectory() as folder:
            rate = MELS[config.mel].sample_rate
            own = args.data is None
            data = made_up(Path(folder) / "data", rate) if own else args.data
            feed = made_feed(config, data, Path(folder) / "cache" if own else None)
            learner = made_learner(config, feed)
            threads = f"{torch.get_num_threads()} threads, {os.cpu_count()} cores"
            where = torch.cuda.get_device_name() if learner.mode.kind == "cuda" else f"{platform.machine()}, {threads}"
            print(f"{config.recipe}; {where}; torch {torch.__version__}", flush=True)
            found = measured(config, feed, learner, args.steps, args.rounds)
    except (ValueError, AudioError, DataError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    show(found)
    missed = [row.what for row in found if row.met is False]
    print(f"Targets missed: {', '.join(missed)}" if missed else "All targets met.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
