"""What a run tells: TensorBoard (with a null twin, so that the loop has no `if`) and one progress line."""

import sys
import time
from pathlib import Path
from typing import Protocol

from torch import Tensor


class Logger(Protocol):
    def start(self, epoch: int) -> None: ...
    def scalars(self, epoch: int, values: dict[str, float]) -> None: ...
    def pictures(self, epoch: int, name: str, pictures: Tensor) -> None: ...
    def text(self, line: str) -> None: ...


class NullLogger:
    def start(self, epoch: int) -> None:
        pass

    def scalars(self, epoch: int, values: dict[str, float]) -> None:
        pass

    def pictures(self, epoch: int, name: str, pictures: Tensor) -> None:
        pass

    def text(self, line: str) -> None:
        print(line, flush=True)


class TensorBoard:
    """Event files in `folder`; `tensorboard --logdir` shows them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, epoch: int) -> None:
        """Begin, or go on after so many epochs: what an interrupted run logged beyond them is dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=epoch + 1 if epoch else None)

    def scalars(self, epoch: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def pictures(self, epoch: int, name: str, pictures: Tensor) -> None:
        """(B, 1, F, T) of any scale, low frequencies first -> pictures with low frequencies at the bottom."""
        low, high = pictures.amin(dim=(1, 2, 3), keepdim=True), pictures.amax(dim=(1, 2, 3), keepdim=True)
        self.writer.add_images(name, ((pictures - low) / (high - low).clamp_min(1e-9)).flip(2), epoch)

    def text(self, line: str) -> None:
        print(line, flush=True)
        self.writer.add_text("run", line)


class Progress:
    """A live line on a terminal, one plain line per epoch in a log."""

    def __init__(self, epochs: int, steps: int, batch_size: int, first: int) -> None:
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.done = first * steps
        self.first_done = self.done
        self.start = time.monotonic()
        self.live = sys.stdout.isatty()

    def step(self, epoch: int, step: int, loss: float, lr: float) -> None:
        self.done += 1
        if self.live:
            print(f"\r{self._line(epoch, step + 1, loss, lr)}\033[K", end="", flush=True)

    def epoch(self, epoch: int, loss: float, accuracy: float, lr: float) -> None:
        end = "\033[K" if self.live else ""
        print(f"{chr(13) if self.live else ''}{self._line(epoch, self.steps, loss, lr)}  accuracy on augmented "
              f"training clips {100 * accuracy:.1f} %{end}", flush=True)

    def _line(self, epoch: int, step: int, loss: float, lr: float) -> str:
        seconds = time.monotonic() - self.start
        rate = (self.done - self.first_done) / max(seconds, 1e-9)
        left = (self.epochs * self.steps - self.done) / max(rate, 1e-9)
        return (
            f"epoch {epoch + 1}/{self.epochs}  step {step}/{self.steps}  loss {loss:.3f}  lr {lr:.2e}  "
            f"{rate * self.batch_size:.0f} clips/s  {left / 60:.0f} min left"
        )
