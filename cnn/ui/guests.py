"""Networks that visitors bring along: each for its visitor alone, few at a time, for an hour."""

import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from cnn.checkpoint import Checkpoint, CheckpointError, load
from cnn.classifier import Classifier
from cnn.model import AudioCNN
from cnn.ui.glass import Glass, LocalGlass, NotAtHand

MOST = 3  # over all visitors
KEPT = 3600.0  # seconds
MAX_FILE = 200_000_000  # bytes
MAX_PARAMETERS = 50_000_000  # of which several must fit into memory beside the page's own
MAX_WORK = 20e9  # multiply-adds for one window: some five times a resnet34 at 44.1 kHz
MAX_WINDOW = 1_000_000  # samples
GONE = "Your network is no longer here: its hour was over, or another visitor needed the place. Load it again."


@dataclass(eq=False)
class _Guest:
    glass: Glass
    until: float  # monotonic seconds


class Guests:
    """Loaded checkpoints by tokens that only their visitor's session holds. Safe to call from several threads.

    Who comes when all places are taken gets that of the guest who has been there longest.
    """

    def __init__(self, most: int = MOST, kept: float = KEPT) -> None:
        self.most, self.kept = most, kept
        self._guests: dict[str, _Guest] = {}
        self._lock = threading.Lock()

    def admit(self, path: Path, name: str) -> str:
        """The token of the network in the file. Raises CheckpointError saying what is wrong with it."""
        weights = _checked(path, name)
        classifier = Classifier(weights, "cpu")
        with self._lock:
            self._forget()
            while len(self._guests) >= self.most:
                del self._guests[next(iter(self._guests))]
            token = secrets.token_urlsafe(16)
            self._guests[token] = _Guest(LocalGlass(classifier), time.monotonic() + self.kept)
        return token

    def get(self, token: str) -> Glass | None:
        """None: its hour is over, or another guest needed the place."""
        with self._lock:
            self._forget()
            guest = self._guests.get(token)
            return guest.glass if guest else None

    def seen(self, token: str | None) -> Glass:
        """As `get`. Raises NotAtHand, in words for its visitor."""
        found = self.get(token) if token else None
        if found is None:
            raise NotAtHand(GONE)
        return found

    def dismiss(self, token: str | None) -> None:
        with self._lock:
            self._guests.pop(token or "", None)

    def __len__(self) -> int:
        with self._lock:
            self._forget()
            return len(self._guests)

    def _forget(self) -> None:
        now = time.monotonic()
        for token in [token for token, guest in self._guests.items() if guest.until <= now]:
            del self._guests[token]


def _checked(path: Path, name: str) -> Checkpoint:
    """What the file holds, if it may be run here. Raises CheckpointError."""
    if path.stat().st_size > MAX_FILE:
        raise CheckpointError(f"{name} is larger than {MAX_FILE / 1e6:.0f} MB; save it in half precision")
    try:
        weights = load(path)
    except CheckpointError as error:  # names the file as it lies on the server
        raise CheckpointError(str(error).replace(str(path), name)) from error
    if weights.mel.samples > MAX_WINDOW or weights.mel.frames < 2:
        raise CheckpointError(f"{name} hears {weights.mel.samples} samples at a time, which is not possible here")
    work, parameters = _work(weights)
    if parameters > MAX_PARAMETERS or work > MAX_WORK:
        raise CheckpointError(
            f"{name} is too large for this page: {parameters / 1e6:.0f} M parameters and {work / 1e9:.0f} G "
            f"multiply-adds for one window; {MAX_PARAMETERS / 1e6:.0f} M and {MAX_WORK / 1e9:.0f} G are possible. "
            "Run the app on your own computer with --model"
        )
    return weights


def _work(weights: Checkpoint) -> tuple[int, int]:
    """Multiply-adds for one window, and parameters; nothing is computed for it."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = AudioCNN(weights.model).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 1, weights.mel.n_mels, weights.mel.frames))
    return counter.get_total_flops() // 2, model.parameter_count
