"""What a run tells: TensorBoard (with a null twin, so that the loop has no `if`) and one progress line."""

import dataclasses
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from torch import Tensor

from training.config import TrainConfig
from training.state import NotWritten, TrainingError


class Logger(Protocol):
    def start(self, epoch: int) -> None: ...
    def settings(self, config: TrainConfig) -> None: ...
    def scalars(self, epoch: int, values: dict[str, float]) -> None: ...
    def pictures(self, epoch: int, name: str, pictures: Tensor) -> None: ...
    def classes(self, epoch: int, name: str, confusion: Tensor, labels: tuple[str, ...]) -> None: ...
    def text(self, line: str) -> None: ...
    def close(self) -> None: ...


class NullLogger:
    """Keeps nothing; lines for people are printed unless `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def start(self, epoch: int) -> None:
        pass

    def settings(self, config: TrainConfig) -> None:
        pass

    def scalars(self, epoch: int, values: dict[str, float]) -> None:
        pass

    def pictures(self, epoch: int, name: str, pictures: Tensor) -> None:
        pass

    def classes(self, epoch: int, name: str, confusion: Tensor, labels: tuple[str, ...]) -> None:
        pass

    def text(self, line: str) -> None:
        if not self.quiet:
            print(line, flush=True)

    def close(self) -> None:
        pass


class TensorBoard:
    """Event files in `folder`; `tensorboard --logdir` shows them. Raises NotWritten where they cannot be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise NotWritten(
                f"{self.folder} could not be written ({e}): free some space, make the folder writable or choose "
                "another folder; what resume.pt holds goes on with --resume"
            ) from e

    def start(self, epoch: int) -> None:
        """Begin, or go on after so many epochs: what an interrupted run logged beyond them is dropped."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise TrainingError(f"TensorBoard is needed ({e}): pip install -r tests/requirements.txt") from e
        self.hook, threading.excepthook = threading.excepthook, self._excepthook
        with self._writing():
            self.writer = SummaryWriter(str(self.folder), purge_step=epoch + 1 if epoch else None)

    def settings(self, config: TrainConfig) -> None:
        """Every field, for TensorBoard's table of hyperparameters."""
        from torch.utils.tensorboard.summary import hparams

        values = {k: v for k, v in dataclasses.asdict(config).items()}
        with self._writing():
            for summary in hparams(values, {"train/loss": None, "train/accuracy": None, "inner/accuracy": None}):
                self.writer.file_writer.add_summary(summary)  # add_hparams would open a folder of its own

    def scalars(self, epoch: int, values: dict[str, float]) -> None:
        with self._writing():
            for name, value in values.items():
                self.writer.add_scalar(name, value, epoch)
            self.writer.flush()

    def pictures(self, epoch: int, name: str, pictures: Tensor) -> None:
        """(B, 1, F, T) of any scale, low frequencies first -> pictures with low frequencies at the bottom."""
        low, high = pictures.amin(dim=(1, 2, 3), keepdim=True), pictures.amax(dim=(1, 2, 3), keepdim=True)
        with self._writing():
            self.writer.add_images(name, ((pictures - low) / (high - low).clamp_min(1e-9)).flip(2), epoch)

    def classes(self, epoch: int, name: str, confusion: Tensor, labels: tuple[str, ...]) -> None:
        """Accuracy by class and the confusion matrix (N, N), rows true, as a picture."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from training.figures import confusion_matrix

        canvas = FigureCanvasAgg(confusion_matrix(confusion.numpy(), labels))
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())[..., :3]
        with self._writing():
            for label, row, right in zip(labels, confusion, confusion.diagonal(), strict=True):
                if row.sum():
                    self.writer.add_scalar(f"{name}, by class/{label}", (right / row.sum()).item(), epoch)
            self.writer.add_image(f"{name}/confusion", picture, epoch, dataformats="HWC")

    def text(self, line: str) -> None:
        print(line, flush=True)
        with self._writing():
            self.writer.add_text("run", line)

    def close(self) -> None:
        with self._writing():
            self.writer.close()
        threading.excepthook = self.hook

    def _excepthook(self, args: threading.ExceptHookArgs) -> None:
        """The thread that writes leaves its OSError to the next call here: no traceback on top of that."""
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            self.hook(args)


class Progress:
    """A live line on a terminal, one plain line per epoch in a log."""

    def __init__(self, epochs: int, steps: int, batch_size: int, first: int, quiet: bool = False) -> None:
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.done = self.first_done = first * steps
        self.start = time.monotonic()
        self.quiet = quiet
        self.live = sys.stdout.isatty() and not quiet
        self.begun = False  # a live line stands there, not ended yet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.begun:
            print(flush=True)  # what is told next has a line of its own
            self.begun = False

    def step(self, epoch: int, step: int, loss: float, accuracy: float, lr: float) -> None:
        self.done += 1
        if self.live:
            room = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
            lines = [self._line(epoch, step + 1, loss, accuracy, lr, short) for short in (False, True)]
            print(f"\r{lines[len(lines[0]) > room][:room]}\033[K", end="", flush=True)
            self.begun = True

    def epoch(self, epoch: int, loss: float, accuracy: float, lr: float, inner: float | None) -> None:
        """The line of a finished epoch; `inner`: accuracy on the recordings kept aside, if there are any."""
        if not self.quiet:
            kept = "" if inner is None else f"  kept aside {100 * inner:.1f} %"
            line = f"{self._line(epoch, self.steps, loss, accuracy, lr)}{kept}"
            print(f"\r{line}\033[K" if self.live else line, flush=True)
            self.begun = False

    def _line(self, epoch: int, step: int, loss: float, accuracy: float, lr: float, short: bool = False) -> str:
        seconds = time.monotonic() - self.start
        rate = (self.done - self.first_done) / max(seconds, 1e-9)  # steps per second
        left = (self.epochs * self.steps - self.done) / max(rate, 1e-9)
        if short:  # for 80 columns
            return (
                f"epoch {epoch + 1}/{self.epochs} {step}/{self.steps} loss {loss:.3f} acc {100 * accuracy:.1f} % "
                f"lr {lr:.1e} {rate * self.batch_size:.0f} clips/s {left / 60:.0f} min left"
            )
        return (
            f"epoch {epoch + 1}/{self.epochs}  step {step}/{self.steps}  {left / 60:.0f} min left  loss {loss:.3f}  "
            f"accuracy {100 * accuracy:.1f} % (augmented)  lr {lr:.2e}  {rate * self.batch_size:.0f} clips/s"
        )
