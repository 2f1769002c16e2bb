"""Maps on demand: POST /v1/maps and GET /v1/inside say what a look into the network says, here and from elsewhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient

from cnn import inside
from cnn.anatomy import Anatomy, anatomy
from cnn.atlas import NAME, make, write
from cnn.audio import Clip, load
from cnn.classifier import Classifier
from cnn.inside import Look
from cnn.serve.api import build_api
from cnn.serve.glass import LocalGlass
from cnn.serve.payload import numbers
from cnn.serve.schema import Inside, Maps
from cnn.serve.service import Busy, Service
from tests.standins.asking import Slow, sent
from tests.standins.networks import close


@pytest.fixture(scope="module")
def client(services: dict[str, Service]) -> TestClient:
    return TestClient(build_api({name: lambda s=service: s for name, service in services.items()}, "tiny"))


def same(told: dict, look: Look) -> None:
    Maps.model_validate(told)
    plain = [told[key] for key in ("tap", "window", "start", "label", "exact", "silent")]
    assert plain == [look.tap, look.window, look.start, look.label, look.exact, look.silent]
    assert tuple(told["shape"]) == look.shape
    assert (told["logit"], told["rest"]) == pytest.approx((look.logit, look.rest), abs=1e-4)
    close(told["shares"], look.shares)
    close(numbers(told["mean"]), look.mean)
    close([told["low"], told["high"]], np.array([look.low, look.high]))
    assert [c["index"] for c in told["channels"]] == [c.index for c in look.channels]
    for there, here in zip(told["channels"], look.channels, strict=True):
        close(numbers(there["values"]), here.values)
        statistics = [here.share, here.low, here.mean, here.high, here.active]
        assert [there[k] for k in ("share", "low", "mean", "high", "active")] == pytest.approx(statistics, rel=1e-3)


@pytest.mark.parametrize("name", ["tiny", "gated"])
def test_every_map_is_answered_as_a_look_into_the_classifier_and_changes_no_answer(
    name: str, client: TestClient, clip: Clip, tiny_classifier: Classifier, gated: Classifier
):
    classifier = {"tiny": tiny_classifier, "gated": gated}[name]
    before = client.post("/v1/classify", params={"model": name, "include": "logits"}, **sent()).json()
    taps = ["conv1", "layer2", "layer2.block0.conv", "layer4", *[t for t in classifier.map_taps if t == "fpn.p1"]]
    for tap in taps:
        told = client.post("/v1/maps", params={"tap": tap, "model": name}, **sent()).json()
        same(told, inside.look(classifier, clip, tap))
        assert (told["model"], told["network"], told["weights"]) == (name, classifier.network, before["weights"])
    assert told["exact"] == (name == "tiny")
    after = client.post("/v1/classify", params={"model": name, "include": "logits"}, **sent()).json()
    assert after["logits"] == before["logits"]


def test_what_is_asked_for_comes_and_nothing_else(client: TestClient, clip: Clip, tiny_classifier: Classifier):
    reply = client.post("/v1/maps", params={"tap": "layer4", "channels": "17, 3,17", "label": "rain"}, **sent())
    same(reply.json(), inside.look(tiny_classifier, clip, "layer4", label="rain", channels=(17, 3)))
    assert [c["index"] for c in reply.json()["channels"]] == [17, 3] and len(reply.content) < 3000
    few = client.post("/v1/maps", params={"tap": "layer1", "most": 2}, **sent()).json()
    assert len(few["channels"]) == 2 and "gates" not in few and "range" not in few


def test_a_window_of_a_long_sound_is_chosen(client: TestClient, tiny_classifier: Classifier, tmp_path: Path):
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, 0.2, 80_000), np.zeros(160_000), 0.3 * np.sin(np.arange(80_000) / 5)]
    soundfile.write(tmp_path / "long.wav", np.concatenate(parts), 16_000)
    long = load(tmp_path / "long.wav")
    for window in (0, 6):
        told = client.post("/v1/maps", params={"tap": "layer3", "window": window}, **sent(tmp_path / "long.wav")).json()
        same(told, inside.look(tiny_classifier, long, "layer3", window=window))
        assert told["start"] == 2.5 * window
    silent = client.post("/v1/maps", params={"tap": "layer3", "window": 3}, **sent(tmp_path / "long.wav"))
    assert silent.status_code == 400 and "is silent" in silent.json()["error"]


def test_gates_are_answered_for_a_gate_and_beside_a_map(client: TestClient, clip: Clip, gated: Classifier):
    here = inside.gates(gated, clip)
    told = client.post("/v1/maps", params={"tap": "layer2.block0.se", "model": "gated"}, **sent()).json()
    Maps.model_validate(told)
    assert list(told["gates"]) == ["layer2.block0.se"] and "shape" not in told
    close(told["gates"]["layer2.block0.se"], here["layer2.block0.se"])
    asked = {"tap": "layer1", "model": "gated", "include": "gates,range", "window": 0}
    both = client.post("/v1/maps", params=asked, **sent()).json()
    assert both["gates"].keys() == here.keys() and both["tap"] == "layer1" and "mean" in both
    close(both["range"], np.array(LocalGlass(gated).widest(clip, 0)))


WRONG = {
    "no tap": ({}, "tap is missing"),
    "another tap": ({"tap": "layer9"}, "tap 'layer9' is unknown; resnet34 has conv1,"),
    "the head": ({"tap": "head"}, "tap 'head' is unknown"),
    "a long tap": ({"tap": "x" * 9000}, "is unknown"),
    "another channel": ({"tap": "layer1", "channels": "1,4"}, "layer1 has no channel 4; its channels are 0 to 3."),
    "no channel": ({"tap": "layer1", "channels": "a"}, "channels has 'a'; give whole numbers with commas between"),
    "a channel below": ({"tap": "layer1", "channels": "-1"}, "channels has '-1'"),
    "another label": ({"tap": "layer1", "label": "<b>"}, "label '<b>' is unknown; known are dog,"),
    "another window": ({"tap": "layer1", "window": "1"}, "there is no window 1; this sound has window 0 only."),
    "a window below": ({"tap": "layer1", "window": "-1"}, "window is '-1'; give a whole number from 0 on."),
    "none": ({"tap": "layer1", "most": "0"}, "most is '0'; give a whole number from 1 to 1024."),
    "another include": ({"tap": "layer1", "include": "mel"}, "include 'mel' is unknown; known are gates, range."),
    "another model": ({"tap": "layer1", "model": "x"}, "model 'x' is unknown; known are tiny, gated."),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_there_is_not_is_said_in_one_sentence(kind: str, client: TestClient):
    params, words = WRONG[kind]
    reply = client.post("/v1/maps", params=params, **sent())
    assert reply.status_code == 400 and list(reply.json()) == ["error"]
    error = reply.json()["error"]
    assert words in error and error.endswith(".") and not error.endswith("..") and len(error) < 1500


def test_in_silence_there_is_nothing_to_see(client: TestClient, tmp_path: Path):
    soundfile.write(tmp_path / "still.wav", np.zeros(8000), 8000)
    for params in ({"tap": "layer1"}, {"tap": "layer1.block0.se", "model": "gated"}):
        reply = client.post("/v1/maps", params=params, **sent(tmp_path / "still.wav"))
        assert reply.status_code == 400 and reply.json()["error"].startswith("Nothing to hear")


def test_who_looks_inside_waits_in_the_same_queue(monkeypatch: pytest.MonkeyPatch):
    slow = Slow()
    monkeypatch.setattr(slow, "work", lambda *_: (_ for _ in ()).throw(Busy("64 wait; try again in 7 s.", 7)))
    reply = TestClient(build_api({"slow": lambda: slow}, "slow")).post("/v1/maps?tap=layer1", **sent())
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")


def test_what_a_network_is_made_of_is_told_without_a_sound(client: TestClient, gated: Classifier):
    told = client.get("/v1/inside", params={"model": "gated"}).json()
    Inside.model_validate(told)
    assert Anatomy.from_dict(told["anatomy"]) == anatomy(gated) and not told.keys() & {"kernels", "atlas"}
    told = client.get("/v1/inside", params={"model": "gated", "include": "kernels,atlas"}).json()
    Inside.model_validate(told)
    close(numbers(told["kernels"]), inside.kernels(gated))
    assert told["atlas"]["examples"] is True and "root" not in told["atlas"] and "anatomy" not in told
    assert client.get("/v1/inside", params={"include": "atlas"}).json()["atlas"] is None
    refused = client.get("/v1/inside", params={"include": "weights"})
    assert refused.status_code == 400 and "known are anatomy, kernels, atlas" in refused.json()["error"]


def test_where_a_server_has_its_clips_is_nobodys_business(client: TestClient, gated: Classifier, tmp_path: Path):
    own = Classifier.open(gated.path, "cpu")
    own.path = tmp_path / "best_model.pth"
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    write(make(own, [{"file": "a.wav", "label": "dog"}], tmp_path), tmp_path / NAME)
    service = Service(own)
    reply = TestClient(build_api({"own": lambda: service}, "own")).get("/v1/inside", params={"include": "atlas"})
    service.close()
    assert reply.json()["atlas"]["examples"] is False and str(tmp_path) not in json.dumps(reply.json())
