"""Train one network on all folds but one.

    python -m training.train --data DIR --fold 5 --out runs/fold5 [--recipe resnet34-16k] [--any-field value] [--resume]

Nothing is chosen on the held-out fold: the number of epochs is fixed beforehand and the weight average of the last
step is kept. `OUT/best_model.pth` is that average in half precision; the accuracy in it is measured once, on that file.
`OUT/resume.pt` continues an interrupted run to the same result.
"""

import argparse
import copy
import dataclasses
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cnn import checkpoint
from cnn.audio import AudioError
from cnn.labels import ESC10, ESC50
from cnn.mel import MELS, LogMel, MelConfig
from cnn.model import MODELS, AudioCNN
from training import config as configs
from training.augment import augment
from training.config import TrainConfig
from training.data import DataError, in_folds, load_db, read_rows
from training.evaluate import evaluate
from training.logs import Logger, NullLogger, Progress, TensorBoard

RESUME_FORMAT = "audio-cnn-resume/3"
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class TrainingError(RuntimeError):
    """The run cannot go on; the message says where it stands and the way out."""


@dataclass(frozen=True)
class Result:
    checkpoint: Path
    accuracy: float  # on the held-out fold, of that file
    losses: tuple[float, ...]  # one per step of this process


def train(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    logger: Logger | None = None,
    stop_after: int | None = None,
) -> Result | None:
    """Run the recipe and leave `out/best_model.pth`. With `stop_after`, stop after that epoch and return None.

    Raises DataError, TrainingError or CheckpointError with the way out in the message.
    """
    logger = logger or NullLogger()
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "resume.pt"
    if state_file.exists() and not resume:
        raise TrainingError(f"{state_file} is from an earlier run: add --resume to continue, or choose another --out")
    if resume and not state_file.exists():
        raise TrainingError(f"{state_file} does not exist, there is nothing to resume: check --out")
    state = _read_state(state_file, config) if resume else None
    first = state["epoch"] if state else 0
    logger.start(first)

    rows = read_rows(data, esc10=config.classes == "esc10")
    labels = tuple(c for c in ESC50 if config.classes == "esc50" or c in ESC10)
    in_folds(rows, [config.fold])  # a fold that does not exist is reported now, not after the run
    train_rows = in_folds(rows, {r.fold for r in rows} - {config.fold})
    mel = dataclasses.replace(MELS[config.mel], relative=config.relative, floor_db=config.floor_db)
    db, lowest_rate = load_db(train_rows, mel)
    if lowest_rate < mel.sample_rate:
        logger.text(f"data at {lowest_rate} Hz is below the front end's {mel.sample_rate} Hz: the upper bins are empty")
    mel = _standardised(db, mel)
    targets = torch.tensor([labels.index(r.label) for r in train_rows])

    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    model_config = dataclasses.replace(MODELS[config.model], width=config.width, num_classes=len(labels))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = AudioCNN(model_config).to(device)
    batch_size = min(config.batch_size, len(train_rows))
    if state:
        precision, layout = state["mode"]  # a resumed run stays as it began, whatever is faster now
    else:
        shape = (batch_size, 1, mel.n_mels, config.crop_frames)
        precision, layout = _fastest_mode(model, shape, device, config.precision)
        logger.text(f"computing in {precision}, {layout}: the fastest here")
    model = model.to(memory_format=LAYOUTS[layout])
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average), use_buffers=True)
    optimizer = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), lr=config.lr)
    steps = len(train_rows) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.lr, total_steps=steps * config.epochs, pct_start=config.warmup, cycle_momentum=False
    )
    if state:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    # taken now: the repository may move on while the run goes
    provenance = state["provenance"] if state else _provenance(data, rows, config, lowest_rate)

    front_end = LogMel(mel)
    progress = Progress(config.epochs, steps, batch_size, first)
    losses: list[float] = []
    for epoch in range(first, config.epochs):
        model.train()
        order = np.random.default_rng([config.seed, epoch]).permutation(len(train_rows))
        late = epoch >= config.epochs * (1 - config.mixup_end_share)
        sums = torch.zeros(2)  # loss, share of clips whose strongest class is the strongest of the mix
        for step in range(steps):
            # every step draws from its own seed, so that a resumed run draws what an uninterrupted one would
            rng = np.random.default_rng([config.seed, epoch, step])
            chosen = torch.from_numpy(order[step * batch_size : (step + 1) * batch_size])
            soft = nnf.one_hot(targets[chosen], len(labels)).float()
            mix = rng.random() < (config.mixup_end if late else config.mixup)
            x, soft = augment(db[chosen], soft, front_end, config, mix, rng)
            x = x.to(device, memory_format=LAYOUTS[layout])
            soft = soft.to(device)
            with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device == "cuda" else []):
                torch.manual_seed(int(rng.integers(2**62)))  # dropout has no generator of its own
                with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                    logits = model(x)  # (B, N)
            loss = nnf.cross_entropy(logits.float(), soft, label_smoothing=config.label_smoothing)
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} at epoch {epoch + 1}, step {step + 1}: start again in another --out with a "
                    "lower --lr or with --precision fp32"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            losses.append(value)
            sums += torch.tensor([value, (logits.argmax(1) == soft.argmax(1)).float().mean().item()])
            progress.step(epoch, step, value, schedule.get_last_lr()[0])
        loss_mean, accuracy = (sums / steps).tolist()
        lr = schedule.get_last_lr()[0]
        logger.scalars(epoch + 1, {"train/loss": loss_mean, "train/accuracy": accuracy, "lr": lr})
        progress.epoch(epoch, loss_mean, accuracy, lr)
        if epoch == first:
            logger.pictures(epoch + 1, "train/after augmentation", x[:8].cpu())
        stopping = stop_after is not None and epoch + 1 >= stop_after
        if (epoch + 1) % config.checkpoint_every == 0 or epoch + 1 == config.epochs or stopping:
            state = {
                "format": RESUME_FORMAT,
                "config": dataclasses.asdict(config),
                "mode": [precision, layout],
                "provenance": provenance,
                "epoch": epoch + 1,
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            _write_state(state, state_file)
        if stopping and epoch + 1 < config.epochs:
            return None

    kept = checkpoint.Checkpoint(
        model=model_config,
        mel=mel,
        labels=labels,
        state_dict=checkpoint.half(average.module.state_dict()),
        recipe=dataclasses.asdict(config),
        provenance=provenance,
    )
    best = out / "best_model.pth"
    checkpoint.save(kept, best)
    report = evaluate(best, data, config.fold, device=device)
    checkpoint.save(dataclasses.replace(kept, metrics=report.to_dict()), best)
    logger.scalars(config.epochs, {f"fold {config.fold}/accuracy": report.accuracy})
    return Result(best, report.accuracy, tuple(losses))


def _standardised(db: Tensor, mel: MelConfig) -> MelConfig:
    """The front end with the mean and standard deviation of what it makes of these pictures (n, F, T)."""
    front_end = LogMel(mel)
    means, squares = [], []
    for part in db.split(100):
        shown = front_end.to_db(10.0 ** (part / 10.0)).double()
        means.append(shown.mean(dim=(1, 2)))
        squares.append(shown.square().mean(dim=(1, 2)))
    mean = torch.cat(means).mean().item()
    std = math.sqrt(torch.cat(squares).mean().item() - mean**2)
    return dataclasses.replace(mel, mean=round(mean, 2), std=round(std, 2))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on the weights of convolutions and linear layers; none on biases and BatchNorm."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _fastest_mode(model: nn.Module, shape: tuple[int, ...], device: str, precision: str) -> tuple[str, str]:
    """(precision, layout) of the fastest training step here: processors without bf16 instructions exist.

    Only the layout is tried where the precision is asked for.
    """
    precisions = ("bf16", "fp32") if precision == "auto" else (precision,)
    seconds = {(p, layout): math.inf for p in precisions for layout in LAYOUTS}
    trials = {layout: copy.deepcopy(model).train().to(memory_format=form) for layout, form in LAYOUTS.items()}
    with torch.random.fork_rng():
        for _ in range(4):  # in turns, the best of each counts: the machine may be busy with something else
            for p, layout in seconds:
                x = torch.zeros(shape, device=device).to(memory_format=LAYOUTS[layout])
                start = time.perf_counter()
                with torch.autocast(device, torch.bfloat16, enabled=p == "bf16"):
                    loss = trials[layout](x).float().square().mean()
                loss.backward()
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds[p, layout] = min(seconds[p, layout], time.perf_counter() - start)
    return min(seconds, key=seconds.__getitem__)


def _write_state(state: dict, path: Path) -> None:
    part = path.with_suffix(".part")
    try:
        torch.save(state, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as e:
        raise TrainingError(f"{path} could not be written ({e}); an older one there is still good") from e
    finally:
        part.unlink(missing_ok=True)


def _read_state(path: Path, config: TrainConfig) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # damaged in whatever way: the advice is the same
        raise TrainingError(f"{path} cannot be read: delete it to start again") from e
    if not isinstance(state, dict) or state.get("format") != RESUME_FORMAT:
        raise TrainingError(f"{path} is not a resume state of this version: delete it to start again")
    ours, theirs = dataclasses.asdict(config), state["config"]
    free = ("checkpoint_every", "device")  # what may change without changing the result
    if changed := [k for k in ours if ours[k] != theirs.get(k) and k not in free]:
        told = ", ".join(f"{k} {theirs.get(k)!r} -> {ours[k]!r}" for k in changed)
        raise TrainingError(f"{path} belongs to other settings ({told}): use those, or another --out")
    return state


def _provenance(data: Path, rows: list, config: TrainConfig, lowest_rate: int) -> dict:
    def git(*args: str) -> str:
        command = ["git", *args]
        try:
            found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
        except OSError:  # no git here: a downloaded archive, a slim container
            return ""
        return found.stdout.strip()

    commit = git("rev-parse", "HEAD") or "unknown"
    return {
        "data": f"ESC-50 ({data.resolve().name}, {lowest_rate} Hz), K. J. Piczak 2015, doi 10.1145/2733373.2806390",
        "licence": "the data is CC BY-NC 3.0: these weights are for non-commercial use",
        "folds_trained_on": sorted({r.fold for r in rows} - {config.fold}),
        "fold_held_out": config.fold,
        "commit": commit + (" with local changes" if git("status", "--porcelain", "--untracked-files=no") else ""),
        # plain strings: torch's own version type would keep the file from loading with weights_only
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of ESC-50's layout")
    parser.add_argument("--out", type=Path, required=True, help="for best_model.pth, resume.pt, tensorboard_logs/")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    configs.add_flags(parser)
    args = parser.parse_args(argv)
    try:
        config = configs.from_flags(args)
        logger = TensorBoard(args.out / "tensorboard_logs")
        result = train(config, args.data, args.out, resume=args.resume, logger=logger)
    except (ValueError, AudioError, DataError, TrainingError, checkpoint.CheckpointError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(f"{result.checkpoint}: {100 * result.accuracy:.2f} % on fold {config.fold}, which was held out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
