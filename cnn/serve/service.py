"""One network for many callers.

    service = Service(Classifier.open())
    service.predict("rain.m4a")               # blocking, from any thread
    service.submit(clip).result()             # a future: asyncio.wrap_future(...), .cancel()
    service.work(clip, lambda: ...).result()  # what else there is to do with the network, in its turn

The queue is bounded; several sounds are heard in one forward pass.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from cnn.audio import Clip, load
from cnn.checkpoint import Checkpoint
from cnn.classifier import MAPS, Classifier, Prediction, Sound
from cnn.mel import MelConfig
from cnn.model import ModelConfig

MAX_SAMPLES = 100_000_000  # of all clips that wait, 400 MB: sixty-four minutes at 192 kHz would take 3 GB

FORGIVEN = 10.0  # seconds for which an Opener that failed does not try again: whoever asks would read it all anew

T = TypeVar("T")
log = logging.getLogger(__name__)


class Busy(RuntimeError):
    """The queue is full. The message is for people; `seconds` is when to try again."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass(eq=False)
class _Job:
    clip: Clip
    maps: str
    decoded: float  # seconds it took; 0 if it was decoded before
    work: Callable[[], Any] | None = None  # instead of naming the clip
    answer: "Future[Any]" = field(default_factory=Future)  # a Prediction, or what `work` gives
    since: float = field(default_factory=time.perf_counter)

    def joins(self, first: "_Job") -> bool:
        """May it be done in one pass with `first`?"""
        return self is first or (self.maps == first.maps and self.work is first.work is None)


class Service:
    """A classifier that several callers share. One thread of its own runs it on whatever waits, up to `batch` sounds
    at once, in the order in which they came; nobody waits for a batch to fill. At most `waiting` sounds wait.

    An answer's timings are its own, but for those of the batch that it was heard in: resample, front end, network.
    """

    def __init__(self, classifier: Classifier, *, batch: int = 8, waiting: int = 64) -> None:
        if batch < 1 or waiting < 1:
            raise ValueError(f"batch {batch} and waiting {waiting} must be 1 or more")
        self._classifier = classifier
        self.batch, self.waiting = batch, waiting
        self._jobs: deque[_Job] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._pace = 0.1  # seconds per sound of late
        self._worker = threading.Thread(target=self._work, name="network", daemon=True)
        self._worker.start()

    @property
    def classifier(self) -> Classifier:
        """To look inside; it may be asked from any thread, beside what waits here."""
        return self._classifier

    @property
    def device(self) -> str:
        return self._classifier.device

    @property
    def network(self) -> str:
        return self._classifier.network

    @property
    def labels(self) -> tuple[str, ...]:
        return self._classifier.labels

    @property
    def mel(self) -> MelConfig:
        return self._classifier.mel

    @property
    def config(self) -> ModelConfig:
        return self._classifier.config

    @property
    def checkpoint(self) -> Checkpoint:
        return self._classifier.checkpoint

    @property
    def queued(self) -> int:
        """Sounds that wait, those being heard not counted."""
        with self._change:
            self._forget()
            return len(self._jobs)

    def check(self, samples: int = 0) -> None:
        """Raises Busy if there is no place for another sound of that many samples."""
        with self._change:
            if self._closed:
                raise Busy("The server is being stopped; try again in a minute.", 60)
            self._forget()
            kept = sum(len(job.clip.samples) for job in self._jobs)
            if len(self._jobs) >= self.waiting or (kept and kept + samples > MAX_SAMPLES):
                seconds = min(max(1, math.ceil(len(self._jobs) * self._pace)), 60)
                raise Busy(f"{len(self._jobs)} sounds are waiting already; try again in {seconds} s.", seconds)

    def predict(self, sound: Sound, *, maps: str = "none") -> Prediction:
        """As Classifier.predict; decodes in the caller's thread. Raises AudioError and Busy."""
        if isinstance(sound, Clip):
            return self.submit(sound, maps=maps).result()
        self.check()  # before the work of decoding
        begin = time.perf_counter()
        clip = load(sound)
        return self.submit(clip, maps=maps, decoded=time.perf_counter() - begin).result()

    def submit(self, clip: Clip, *, maps: str = "none", decoded: float = 0.0) -> "Future[Prediction]":
        """Take a place in the queue; cancelling the future gives it back. `decoded`: seconds that decoding took.
        Raises Busy; ValueError for unknown maps."""
        if maps not in MAPS:
            raise ValueError(f"maps {maps!r} is unknown; known are {', '.join(MAPS)}")
        return self._place(_Job(clip, maps, decoded))

    def work(self, clip: Clip, work: Callable[[], T]) -> "Future[T]":
        """As `submit`, for other work on the network than naming the clip, which counts as one that waits. Raises
        Busy."""
        return self._place(_Job(clip, "none", 0.0, work))

    def _place(self, job: _Job) -> "Future[Any]":
        with self._change:
            self.check(len(job.clip.samples))
            self._jobs.append(job)
            self._change.notify()
        return job.answer

    def close(self) -> None:
        """Answer what waits, then stop; who comes later is told so."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._worker.join()

    def _forget(self) -> None:
        """Drop those whose caller has gone."""
        if any(job.answer.cancelled() for job in self._jobs):
            self._jobs = deque(job for job in self._jobs if not job.answer.cancelled())

    def _work(self) -> None:
        while jobs := self._take():
            begin = time.perf_counter()
            self._answer(jobs)
            self._pace += 0.2 * ((time.perf_counter() - begin) / len(jobs) - self._pace)
            del jobs  # nobody's sound is kept until the next one comes

    def _take(self) -> list[_Job]:
        """The next that can be done in one pass; those whose caller has gone are dropped. Empty: closed and done."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return []
                first, taken, left = self._jobs[0], [], deque()
                while self._jobs:
                    job = self._jobs.popleft()
                    if len(taken) == self.batch or not job.joins(first):
                        left.append(job)
                    elif job.answer.set_running_or_notify_cancel():
                        taken.append(job)
                    del job
                self._jobs = left
                del first
            if taken:
                return taken

    def _answer(self, jobs: list[_Job]) -> None:
        begin = time.perf_counter()
        try:
            if (work := jobs[0].work) is not None:
                jobs[0].answer.set_result(work())
                return
            answers = self._classifier.predict_batch([job.clip for job in jobs], maps=jobs[0].maps)
            if len(answers) != len(jobs):
                raise RuntimeError(f"{len(answers)} answers to {len(jobs)} sounds")
        except BaseException as error:  # whatever it is, it is for who caused it: this thread must live for the others
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
                return
            log.warning("a batch of %d failed (%r); each is heard alone", len(jobs), error)
            for job in jobs:
                self._answer([job])
            return
        end = time.perf_counter()
        for job, answer in zip(jobs, answers, strict=True):
            timings = {"decode": job.decoded, "wait": begin - job.since} | answer.timings
            timings |= {"decode": job.decoded, "total": job.decoded + end - job.since}
            job.answer.set_result(replace(answer, timings=timings))


class Opener:
    """Calling it gives the service, opened once, at the first call: whatever imports one loads no weights.

    Raises CheckpointError or ValueError as Classifier.open does, at every call until it succeeds; for FORGIVEN seconds
    without trying again.
    """

    def __init__(self, model: str | None = None, device: str = "auto", *, batch: int = 8) -> None:
        self.model, self.device, self.batch = model, device, batch  # may be changed until the first call
        self.opened: Service | None = None
        self._lock = threading.Lock()
        self._failed: tuple[float, tuple, ValueError] | None = None  # when (monotonic seconds), what, why

    def __call__(self) -> Service:
        with self._lock:
            if self.opened is None:
                wanted = self.model, self.device
                if self._failed and self._failed[1] == wanted and time.monotonic() - self._failed[0] < FORGIVEN:
                    raise type(self._failed[2])(*self._failed[2].args)
                try:
                    self.opened = Service(Classifier.open(*wanted), batch=self.batch)
                except ValueError as error:  # CheckpointError is one
                    self._failed = time.monotonic(), wanted, type(error)(*error.args)  # without what it was raised in
                    raise
            return self.opened
