"""Train one network on all folds but one.

    python -m training.train --data DIR --fold 5 --out runs/fold5 [--recipe resnet34-16k] [--any-field value] [--resume]

Nothing is chosen on the held-out fold: the number of epochs is fixed beforehand, or decided on a part of the training
recordings (`inner_share`, `patience`). `OUT/best_model.pth` is the weight average in half precision; the accuracy in it
is measured once, on that file. `OUT/resume.pt` continues an interrupted run to the same result.
"""

import argparse
import dataclasses
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from cnn import checkpoint
from cnn.audio import AudioError
from cnn.classifier import Classifier
from cnn.labels import ESC10, ESC50
from cnn.mel import MELS, LogMel, MelConfig
from cnn.model import AudioCNN
from training import config as configs
from training import parallel, state
from training.config import TrainConfig
from training.data import DataError, in_folds, load_db, odd_clips, read_rows
from training.evaluate import answers, confusion, ranking, report
from training.feed import Batch, Feed
from training.learner import Learner, Mode, choose_mode
from training.logs import Logger, NullLogger, Progress, TensorBoard
from training.parallel import ALONE, Ranks
from training.splits import split
from training.state import TrainingError
from training.widen import grow


@dataclass(frozen=True)
class Result:
    checkpoint: Path
    accuracy: float  # on the held-out fold, of that file
    losses: tuple[float, ...]  # one per step of this process


@dataclass(frozen=True)
class Validation:
    """What the weight average makes of the recordings kept aside."""

    loss: float
    accuracy: float
    confusion: Tensor  # (N, N) counts, rows true


def train(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    logger: Logger | None = None,
    stop_after: int | None = None,
    on_checkpoint: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> Result | None:
    """Run the recipe and leave `out/best_model.pth`.

    With `stop_after`, stop after that epoch and return None; so do all processes but the first. `on_checkpoint` is
    called when resume.pt or best_model.pth has been written. Raises DataError, AudioError, TrainingError or
    CheckpointError with the way out in the message.
    """
    logger = logger if logger and ranks.first else NullLogger(quiet=not ranks.first)
    state_file, best_file = out / "resume.pt", out / "best_model.pth"
    device = _device(config.device, ranks)
    found = ranks.agreed(lambda: _open(out, state_file, config, resume))
    first = found["epoch"] if found else 0
    logger.start(first)

    rows = read_rows(data, esc10=config.classes == "esc10")
    labels = tuple(c for c in ESC50 if config.classes == "esc50" or c in ESC10)
    in_folds(rows, [config.fold])  # a fold that does not exist is reported now, not after the run
    trained, aside = split(rows, config.fold, config.inner_share)
    mel = dataclasses.replace(MELS[config.mel], relative=config.relative, floor_db=config.floor_db)
    model_config = config.network(len(labels))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = AudioCNN(model_config)
    ranks.agreed(lambda: state.check_room(state_file, _bytes(model), config.patience > 0))
    grown_from = []
    if config.widen and not (found and config.epochs):
        grown_from, grown_mel = grow(config, model, labels, mel)
    db, heard = load_db(rows, mel)  # all folds, so that five runs share one cache
    fingerprint = ranks.agreed(lambda: state.fingerprint(rows))
    if found:
        state.check_data(state_file, found, data, fingerprint)
    warnings = []
    if (rate := heard.lowest_rate) < mel.sample_rate:
        warnings.append(
            f"the data is at {rate} Hz, below the {mel.sample_rate} Hz of {config.recipe}'s front end: "
            f"nothing above {rate / 2000:g} kHz is learned, and sounds that have it are out of domain"
        )
    if heard.odd:
        warnings.append(odd_clips(heard.odd, heard.notes))
    for warning in warnings:
        logger.text(f"warning: {warning}")
    mel = _standardised(db, trained, mel) if config.epochs else grown_mel
    targets = torch.tensor([labels.index(r.label) for r in rows])
    front_end = LogMel(mel)
    feed = Feed(db, trained, targets, len(labels), front_end, config)

    if found:
        mode = Mode(device, *found["mode"])  # a resumed run stays as it began, whatever is faster now
    else:
        shape = (feed.batch_size, 1, mel.n_mels, config.crop_frames)
        mode = ranks.agreed(lambda: choose_mode(config, model, shape, device))
        mode = dataclasses.replace(mode, device=device)
        logger.text(f"computing in {mode.precision}, {mode.layout}")
    learner = Learner(config, model, mode, max(feed.steps * config.epochs, 1), ranks)
    provenance = state.provenance(data, {r.fold for r in rows}, config, rate, warnings)
    provenance |= {"data_sha256": fingerprint, "computed": _computed(mode)}
    provenance |= {"grown_from": grown_from} if grown_from else {}
    best = {"accuracy": -1.0, "epoch": 0, "average": {}}  # by the recordings kept aside
    if found:
        learner.load(found["learner"])
        provenance, best = found["provenance"], found["best"]

    def keep(epoch: int) -> None:
        """The state after so many epochs."""
        if ranks.first:
            told = {"config": dataclasses.asdict(config), "mode": [mode.precision, mode.layout], "epoch": epoch,
                    "provenance": provenance, "best": best, "learner": learner.state()}  # fmt: skip
            state.write(told, state_file)
            on_checkpoint()

    if not found:
        logger.settings(config)
        ranks.agreed(lambda: keep(0))  # what cannot be written is told before the work, not after
    progress = Progress(config.epochs, feed.steps, feed.batch_size, first, quiet=not ranks.first)
    losses: list[float] = []
    epoch = first
    with progress:
        while epoch < config.epochs and not _patience_is_over(config, epoch, best):
            sums = np.zeros(2)  # loss, share of clips whose strongest class is the strongest of the mix
            for step, batch in enumerate(feed.epoch(epoch, ahead=mode.ahead)):
                loss, accuracy = learner.step(batch)
                if not math.isfinite(loss):
                    raise TrainingError(_not_finite(loss, epoch, step, batch, rows))
                losses.append(loss)
                sums += loss, accuracy
                progress.step(epoch, step, loss, sums[1] / (step + 1), learner.lr)
            loss, accuracy = (sums / feed.steps).tolist()
            epoch += 1
            logger.scalars(epoch, {"train/loss": loss, "train/accuracy": accuracy, "lr": learner.lr})
            if epoch - 1 in (first, feed.gentle_epochs):  # the first of each kind
                logger.pictures(epoch, "train/after augmentation", batch.x[:8])
            inner = None
            if aside:
                inner = ranks.agreed(lambda: _validate(learner, feed, aside, len(labels)))
                logger.scalars(epoch, {"inner/loss": inner.loss, "inner/accuracy": inner.accuracy})
                if config.patience and inner.accuracy > best["accuracy"]:
                    kept = {k: v.detach().clone() for k, v in learner.average.module.state_dict().items()}
                    best = {"accuracy": inner.accuracy, "epoch": epoch, "average": kept}
            progress.epoch(epoch - 1, loss, accuracy, learner.lr, inner.accuracy if inner else None)
            stopping = stop_after is not None and epoch >= stop_after
            if epoch % config.checkpoint_every == 0 or epoch == config.epochs or stopping:
                ranks.agreed(lambda: keep(epoch))  # noqa: B023
                if inner:
                    logger.classes(epoch, "inner", inner.confusion, labels)
            if stopping and epoch < config.epochs:
                return None

    if not ranks.first:
        return None
    if config.patience:
        logger.text(f"stopped after epoch {epoch}; the weights of epoch {best['epoch']} are kept")
    provenance |= {"epochs": epoch, "epoch_kept": best["epoch"] if config.patience else epoch}
    average = best["average"] if config.patience else learner.average.module.state_dict()
    kept = checkpoint.Checkpoint(
        model=model_config,
        mel=mel,
        labels=labels,
        state_dict=checkpoint.half(average),
        recipe=dataclasses.asdict(config),
        provenance=provenance,
    )
    checkpoint.save(kept, best_file)
    said = answers(Classifier.open(best_file, mode.device), data, config.fold)
    told = report(said, labels, config.fold)
    checkpoint.save(dataclasses.replace(kept, metrics=told.to_dict()), best_file)
    on_checkpoint()
    logger.scalars(epoch, {f"fold {config.fold}/accuracy": told.accuracy})
    heard = [a for a in said if ranking(a.logits)]
    true, named = [labels.index(a.row.label) for a in heard], [ranking(a.logits)[0] for a in heard]
    counts = torch.from_numpy(confusion(true, named, len(labels)))
    logger.classes(epoch, f"fold {config.fold}", counts, labels)
    logger.close()
    return Result(best_file, told.accuracy, tuple(losses))


def _open(out: Path, state_file: Path, config: TrainConfig, resume: bool) -> dict | None:
    """The state to resume from, or None for a new run."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as e:
        raise TrainingError(f"{out} cannot be written to ({e}): make it writable or choose another folder") from e
    if state_file.exists() and not resume:
        raise TrainingError(f"{state_file} is from an earlier run: add --resume to continue, or choose another folder")
    if resume and not state_file.exists():
        raise TrainingError(f"{state_file} does not exist, there is nothing to resume: check the folder")
    for part in out.glob(".best_model.pth.*.part"):  # of a run killed while it wrote its weights
        part.unlink(missing_ok=True)
    return state.read(state_file, config) if resume else None


def _device(asked: str, ranks: Ranks) -> str:
    """cpu or cuda:N. Raises TrainingError where there is no such GPU."""
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise TrainingError(f"device {asked!r} was asked for, but torch sees no GPU here: use --device cpu or auto")
    device = torch.device("cuda", ranks.local) if asked in ("auto", "cuda") else torch.device(asked)
    if device.index >= torch.cuda.device_count():
        raise TrainingError(f"there is no {device} here, the GPUs are {torch.cuda.device_count()}: start as many "
                            "processes as there are GPUs, or use --device cpu")  # fmt: skip
    return str(device)


def _bytes(model: AudioCNN) -> int:
    return sum(value.nbytes for value in model.state_dict().values())


def _computed(mode: Mode) -> dict[str, str | int]:
    """What the rounding of the figures depends on."""
    return {"device": mode.kind, "precision": mode.precision, "layout": mode.layout, "threads": torch.get_num_threads()}


def _standardised(db: Tensor, rows: list[int], mel: MelConfig) -> MelConfig:
    """The front end with the mean and standard deviation of what it makes of these of the pictures (n, F, T)."""
    front_end = LogMel(mel)
    means, squares = [], []
    for part in torch.tensor(rows).split(100):
        shown = front_end.to_db(10.0 ** (db[part] / 10.0)).double()
        means.append(shown.mean(dim=(1, 2)))
        squares.append(shown.square().mean(dim=(1, 2)))
    mean = torch.cat(means).mean().item()
    variance = torch.cat(squares).mean().item() - mean**2
    if variance < 0.005**2:  # would be rounded to a standard deviation of 0
        raise DataError("the clips to train on all sound alike, like silence: no network can tell their classes")
    std = math.sqrt(variance)
    return dataclasses.replace(mel, mean=round(mean, 2), std=round(std, 2))


def _patience_is_over(config: TrainConfig, epoch: int, best: dict) -> bool:
    return config.patience > 0 and epoch - best["epoch"] >= config.patience


def _validate(learner: Learner, feed: Feed, aside: list[int], classes: int) -> Validation:
    """Unaugmented, whole pictures; the loss has the label smoothing of the training loss."""
    chosen = torch.tensor(aside)
    targets = feed.targets[chosen]
    front_end, logits = feed.front_end, torch.empty(0, classes)
    for part in chosen.split(64):
        x = front_end.standardise(front_end.to_db(10.0 ** (feed.db[part] / 10.0)))
        logits = torch.cat([logits, learner.outputs(x)])
    loss = nnf.cross_entropy(logits, targets, label_smoothing=learner.config.label_smoothing).item()
    counts = torch.from_numpy(confusion(targets, logits.argmax(1), classes))
    return Validation(loss, counts.diagonal().sum().item() / len(aside), counts)


def _not_finite(loss: float, epoch: int, step: int, batch: Batch, rows: list) -> str:
    names = [rows[i].path.name for i in batch.chosen.tolist()]
    told = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return (
        f"the loss or its gradient is {loss} at epoch {epoch + 1}, step {step + 1} (clips {told}): start again in "
        "another folder with a lower --max-lr (--lr where the schedule is cosine), with --clip-norm 1 or with "
        "--precision fp32"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder of ESC-50's layout")
    parser.add_argument("--out", type=Path, required=True, help="for best_model.pth, resume.pt, tensorboard_logs/")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    configs.add_flags(parser)
    args = parser.parse_args(argv)
    try:
        config = configs.from_flags(args)
        with parallel.started() as ranks, state.alone_in(args.out, ranks):
            logger = TensorBoard(args.out / "tensorboard_logs") if ranks.first else None
            result = train(config, args.data, args.out, resume=args.resume, logger=logger, ranks=ranks)
    except KeyboardInterrupt:
        more = ": the same command with --resume goes on from the last checkpoint"
        print(f"\nstopped{more if (args.out / 'resume.pt').exists() else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at its end
        print("stopped: nobody reads what is printed; the same command with --resume goes on", file=sys.stderr)
        return 1
    except OSError as e:
        told = f"{e.filename or args.out}: {e.strerror or e}"
        parallel.tell(f"error: {told}: check its permissions and the room there, or choose another --out")
        return 1
    except (ValueError, AudioError, DataError, TrainingError, checkpoint.CheckpointError) as e:
        parallel.tell(f"error: {e}")
        return 1
    if result:
        print(f"{result.checkpoint}: {100 * result.accuracy:.2f} % on fold {config.fold}, which was held out")
    return 0


if __name__ == "__main__":
    parallel.leave(main())
