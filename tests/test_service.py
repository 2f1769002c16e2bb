"""Many callers, one network: whose answer is whose, what waits, and what is refused."""

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cnn.audio import Clip
from cnn.checkpoint import CheckpointError
from cnn.classifier import Classifier, Prediction
from cnn.serve import service as module
from cnn.serve.service import Busy, Opener, Service
from cnn.ui.theme import ASSETS


class Gate:
    """A classifier that hears nothing until it is opened, and notes how many sounds it was given at once."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier, self.batches, self.broken, self.bug = classifier, [], None, RuntimeError("a bug")
        self.inside, self.open = threading.Semaphore(0), threading.Event()

    def predict_batch(self, clips: Sequence[Clip], *, maps: str) -> list[Prediction]:
        self.batches.append((len(clips), maps))
        self.inside.release()
        assert self.open.wait(30)
        if self.broken in clips:
            if isinstance(self.bug, list):
                return self.bug
            raise self.bug
        return self.classifier.predict_batch(clips, maps=maps)


@pytest.fixture
def gate(tiny_classifier: Classifier) -> Gate:
    return Gate(tiny_classifier)


@pytest.fixture
def held(gate: Gate) -> Iterator[Service]:
    """Two at once, three may wait; one sound is being heard already."""
    service = Service(gate, batch=2, waiting=3)
    service.submit(clip(0))
    assert gate.inside.acquire(timeout=30)
    yield service
    gate.open.set()
    service.close()


def clip(number: int, seconds: float = 0.2) -> Clip:
    rng = np.random.default_rng(number)
    return Clip(rng.normal(0, 0.1, round(8000 * seconds)).astype(np.float32), 8000, name=f"{number}.wav")


def test_every_caller_gets_the_answer_to_his_own_sound(tiny_classifier: Classifier):
    clips = [clip(number, 0.2 if number % 3 else 6.0) for number in range(24)]  # one or two windows
    kinds = ["all" if number % 4 == 0 else "none" for number in range(24)]
    service = Service(tiny_classifier, batch=5)
    with ThreadPoolExecutor(24) as callers:
        answers = list(callers.map(lambda c, maps: service.predict(c, maps=maps), clips, kinds))
    service.close()
    for heard, maps, answer in zip(clips, kinds, answers, strict=True):
        alone = tiny_classifier.predict(heard, maps=maps)
        assert answer.clip is heard
        np.testing.assert_allclose(answer.logits, alone.logits, atol=1e-4)
        assert answer.maps.keys() == alone.maps.keys()
        for tap, values in alone.maps.items():
            np.testing.assert_allclose(answer.maps[tap], values, atol=1e-4)


def test_what_waits_is_heard_together_in_the_order_in_which_it_came(held: Service, gate: Gate):
    answers = [held.submit(clip(1)), held.submit(clip(2), maps="all"), held.submit(clip(3))]
    assert held.queued == 3
    gate.open.set()
    assert [answer.result(30).clip.name for answer in answers] == ["1.wav", "2.wav", "3.wav"]
    assert gate.batches == [(1, "none"), (2, "none"), (1, "all")]
    assert held.queued == 0


def test_a_full_queue_says_when_to_come_again_and_who_leaves_makes_room(held: Service, gate: Gate):
    waiting = [held.submit(clip(number)) for number in (1, 2, 3)]
    with pytest.raises(Busy, match=r"^3 sounds are waiting already; try again in \d+ s\.$") as caught:
        held.submit(clip(4))
    assert caught.value.seconds >= 1
    with pytest.raises(Busy):
        held.check()
    assert waiting[1].cancel()
    assert held.queued == 2
    held.check()  # before a file is even read
    last = held.submit(clip(5))
    gate.open.set()
    assert last.result(30).clip.name == "5.wav"
    assert gate.batches == [(1, "none"), (2, "none"), (1, "none")]


def test_a_slow_network_asks_for_more_patience(gate: Gate, monkeypatch: pytest.MonkeyPatch):
    ticks = itertools.count(step=10.0)  # seconds, each time somebody looks at the clock
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    service = Service(gate, batch=1, waiting=1)
    gate.open.set()
    service.submit(clip(0)).result(30)
    gate.open.clear()
    service.submit(clip(1))
    while gate.inside.acquire(timeout=30) and len(gate.batches) < 2:
        pass
    service.submit(clip(2))
    with pytest.raises(Busy) as caught:
        service.submit(clip(3))
    assert 5 < caught.value.seconds <= 60
    gate.open.set()
    service.close()


def test_nobody_listens_for_who_has_gone(held: Service, gate: Gate):
    gone = [held.submit(clip(number)) for number in (1, 2)]
    stays = held.submit(clip(3))
    assert all(answer.cancel() for answer in gone)
    gate.open.set()
    assert stays.result(30).clip.name == "3.wav"
    assert gate.batches == [(1, "none"), (1, "none")]


def test_a_file_is_not_decoded_for_a_full_queue(held: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "load", lambda _: pytest.fail("was decoded"))
    for number in (1, 2, 3):
        held.submit(clip(number))
    with pytest.raises(Busy):
        held.predict(b"a file")


def test_long_sounds_fill_the_queue_sooner(held: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_SAMPLES", 10_000)
    held.submit(clip(1, seconds=60))  # one is always taken
    with pytest.raises(Busy):
        held.submit(clip(2))


@pytest.mark.parametrize("bug", [RuntimeError("a bug"), MemoryError("a bug"), SystemExit("a bug"), [], [None] * 3])
def test_a_sound_that_fails_takes_neither_another_nor_the_network_with_it(held: Service, gate: Gate, bug: object):
    gate.broken, gate.bug = clip(1), bug
    bad, good = held.submit(gate.broken), held.submit(clip(2))
    gate.open.set()
    with pytest.raises(BaseException, match="a bug|[03] answers to 1 sounds"):
        bad.result(30)
    assert good.result(30).clip.name == "2.wav"
    assert held.submit(clip(3)).result(30).clip.name == "3.wav"


def test_nobodys_sound_is_kept_when_it_has_been_answered(tiny_classifier: Classifier):
    service = Service(tiny_classifier)
    sound = clip(1)
    answer = service.submit(sound, maps="all").result(30)
    kept = [weakref.ref(sound), weakref.ref(answer)]
    del sound, answer
    end = time.monotonic() + 10
    while any(ref() for ref in kept) and time.monotonic() < end:  # the worker has to come round first
        gc.collect()
        time.sleep(0.01)
    assert [ref() for ref in kept] == [None, None]
    service.close()


def test_a_stopped_service_answers_what_waits_and_nothing_more(held: Service, gate: Gate):
    waiting: Future[Prediction] = held.submit(clip(1))
    gate.open.set()
    held.close()
    assert waiting.result(0).clip.name == "1.wav"
    with pytest.raises(Busy, match="is being stopped"):
        held.submit(clip(2))


def test_an_answer_tells_its_own_times(tiny_classifier: Classifier, tmp_path: Path):
    service = Service(tiny_classifier)
    timings = service.submit(clip(1), decoded=0.5).result(30).timings
    assert service.predict(ASSETS / "examples" / "dog.ogg").timings["decode"] > 0
    service.close()
    assert list(timings) == ["decode", "wait", "resample", "front end", "network", "total"]
    assert timings["decode"] == 0.5
    assert 0.5 + timings["wait"] + timings["network"] < timings["total"] < 30


def test_a_network_is_opened_once_and_a_missing_one_looked_for_again(tiny: Path, tmp_path: Path):
    opener = Opener(str(tmp_path / "none.pth"), "cpu")
    with pytest.raises(CheckpointError, match="none.pth"):
        opener()
    assert opener.opened is None
    opener.model = str(tiny)
    with ThreadPoolExecutor(4) as callers:
        services = set(callers.map(lambda _: opener(), range(4)))
    assert services == {opener.opened}
    opener().close()


def test_other_work_waits_its_turn_alone_and_who_leaves_makes_room(held: Service, gate: Gate):
    done = []
    first, work = held.submit(clip(1)), held.work(clip(2), lambda: done.append(len(gate.batches)) or "seen")
    second = held.submit(clip(3))
    with pytest.raises(Busy):
        held.work(clip(4), lambda: "no room")
    assert second.cancel()
    bug = held.work(clip(5), lambda: {}["a bug"])
    gate.open.set()
    assert first.result(30).clip.name == "1.wav" and work.result(30) == "seen"
    assert done == [2]  # after the first of those that waited, before whoever came later
    assert isinstance(bug.exception(30), KeyError)
    assert held.submit(clip(7)).result(30).clip.name == "7.wav"  # it stops nobody else


def test_weights_that_cannot_be_read_are_not_read_again_for_a_while(tmp_path: Path, tiny: Path, monkeypatch):
    path, read = tmp_path / "best_model.pth", []
    path.write_bytes(b"no network")
    opened = Classifier.open
    monkeypatch.setattr(Classifier, "open", lambda *asked: read.append(asked) or opened(*asked))
    opener = Opener(str(path), "cpu")
    for _ in range(3):
        with pytest.raises(CheckpointError, match="best_model.pth"):
            opener()
    assert len(read) == 1
    path.write_bytes(tiny.read_bytes())
    monkeypatch.setattr(module, "FORGIVEN", 0.0)  # as if it were over
    assert opener().network.startswith("resnet34") and len(read) == 2
    opener().close()
