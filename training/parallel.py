"""One process or several: `torchrun --nproc-per-node 2 -m training.train ...` (DDP; gloo on CPUs, NCCL on GPUs).

Several processes split each batch and compute what one process does with `accumulate` set to their number.
"""

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = 5.0  # seconds with a store that does not answer


@dataclass(frozen=True)
class Ranks:
    """The processes of this run; the default is one alone."""

    index: int = 0
    size: int = 1
    local: int = 0  # index among the processes of this machine: which GPU is ours

    @property
    def first(self) -> bool:
        """Whether this process writes the files, the log and the lines."""
        return self.index == 0

    def wrap(self, model: nn.Module, device: str) -> nn.Module:
        if self.size == 1:
            return model
        # BatchNorm's statistics are averaged by the step itself
        devices = [torch.device(device)] if device.startswith("cuda") else None
        return DistributedDataParallel(model, device_ids=devices, forward_sync_buffers=False)

    def mean(self, tensors: list[Tensor]) -> None:
        """Replace each by the mean over all processes."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor.div_(self.size)

    def agreed(self, value: Callable[[], Any]) -> Any:
        """What the first process finds, for all of them; the others wait. An error there ends them all."""
        if self.size == 1:
            return value()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = value()
            except Exception as e:
                box[1] = e
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def exchanging(self, model: nn.Module, now: bool) -> AbstractContextManager[Any]:
        """Around forward and backward: exchange gradients `now`, or let them only add up until a later pass does."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not now else nullcontext()


ALONE = Ranks()


@contextmanager
def started() -> Iterator[Ranks]:
    """The ranks that torchrun started this process among, or one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    local = int(os.environ["LOCAL_RANK"])
    gpus = torch.cuda.is_available()
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    # a step on a GPU shares its loss out on the CPU, and --device cpu runs beside a GPU too: each kind has its backend
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), local)
    finally:
        dist.destroy_process_group()


def tell(line: str) -> None:
    """To stderr, once a start: of several processes that have the same to say, the first one says it."""
    if _first_to_say(line):
        print(line, file=sys.stderr)


def _first_to_say(line: str) -> bool:
    """Asked of torchrun's own store: it is there before the group is, and when another process waits in it.

    Where it does not answer within seconds, yes: rather twice than not at all.
    """
    env = os.environ
    if int(env.get("WORLD_SIZE", "1")) == 1 or env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    start = [env.get(key) for key in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE")]
    key = hashlib.sha256(repr((start, line)).encode()).hexdigest()
    count: list[int] = []

    def ask() -> None:
        with suppress(dist.DistError):
            store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), timeout=timedelta(seconds=PATIENCE))
            count.append(store.add(key, 1))

    asking = threading.Thread(target=ask, daemon=True)  # the store's own timeout does not hold for its greeting
    asking.start()
    asking.join(PATIENCE)
    return count in ([], [1])


def leave(code: int) -> NoReturn:
    """End the process with this status.

    One of several ends without Python's own end: there torch 2.14.1 with gloo aborts now and then, though the work is
    done and the group is gone ("terminate called without an active exception"), and torchrun calls the run failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(code)
    sys.exit(code)
