"""Why, on demand: POST /v1/explain and the page's endpoint say what an explanation here says, also from elsewhere."""

import base64
import io

import gradio as gr
import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient

from cnn.audio import AudioError, Clip
from cnn.explain import Explanation, explain
from cnn.serve.api import build_api
from cnn.serve.glass import NotAtHand
from cnn.serve.payload import numbers
from cnn.serve.remote import RemoteClassifier
from cnn.serve.schema import Why
from cnn.serve.service import Service
from cnn.ui.glass import view
from cnn.ui.page import build_page
from tests.standins.asking import DOG, sent
from tests.standins.networks import close
from tests.standins.rude import Rude, says, served

ASKED = {"label": "rain", "against": "cat", "method": "hirescam", "tap": "layer2", "window": 0}


@pytest.fixture(scope="module")
def client(services: dict[str, Service]) -> TestClient:
    return TestClient(build_api({name: lambda s=s: s for name, s in services.items()}, "tiny"))


def same(told: dict, here: Explanation) -> None:
    Why.model_validate(told)
    plain = here.to_dict()
    assert {name: told[name] for name in plain if name not in ("class", "start", "parts", "random_remainder")} == {
        name: value for name, value in plain.items() if name not in ("class", "start", "parts", "random_remainder")
    }
    assert (told["label"], told["start"]) == (here.label, here.start)
    assert told["random_remainder"] == pytest.approx(here.random_remainder, abs=1e-3)
    assert told["parts"].keys() == plain["parts"].keys()
    for name, part in plain["parts"].items():
        assert told["parts"][name]["confidence"] == pytest.approx(part["confidence"], abs=1e-3)
        assert told["parts"][name]["predictions"][0]["class"] == part["predictions"][0]["class"]
    close(numbers(told["mask"]), here.mask)


@pytest.mark.parametrize("name", ["tiny", "gated"])
def test_an_explanation_is_answered_as_it_is_here(name: str, client: TestClient, services, clip: Clip):
    classifier = services[name].classifier
    told = client.post("/v1/explain", params=ASKED | {"model": name}, **sent()).json()
    same(told, explain(classifier, clip, **ASKED))
    assert not told.keys() & {"map", "audio", "heard"} and told["network"] == classifier.network
    usual = client.post("/v1/explain", params={"model": name, "seed": 3}, **sent()).json()
    same(usual, explain(classifier, clip, seed=3))


def test_the_parts_come_as_sounds_that_add_up(client: TestClient, services: dict[str, Service], clip: Clip):
    told = client.post("/v1/explain", params=ASKED | {"include": "audio,map"}, **sent()).json()
    Why.model_validate(told)
    sounds = {}
    for name, wav in told["audio"].items():
        sounds[name], rate = soundfile.read(io.BytesIO(base64.b64decode(wav)))
        assert rate == clip.rate and len(sounds[name]) == 5 * rate
    added = sounds["evidence"] + sounds["remainder"]
    assert np.abs(added - sounds["original"]).max() < 1e-3 * np.abs(sounds["original"]).max()  # -60 dB
    np.testing.assert_allclose(sounds["original"], clip.samples[: 5 * clip.rate] * told["gain"], atol=1e-6)
    close(numbers(told["map"]), explain(services["tiny"].classifier, clip, **ASKED).map)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"label": "woof"}, "class 'woof' is unknown; known are dog,"),
        ({"label": "dog", "against": "dog"}, "why dog rather than dog was asked"),
        ({"method": "guess"}, "method 'guess' is unknown; known are hirescam,"),
        ({"method": "hirescam", "tap": "layer1"}, "no evidence is sought in 'layer1'"),
        ({"method": "hirescam", "window": 9}, "there is no window 9"),
        ({"seed": -1}, "seed is '-1'; give a whole number from 0"),
        ({"include": "mel"}, "include 'mel' is unknown; known are map, audio, random, heard."),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_sentence(asked: dict, words: str, client: TestClient):
    reply = client.post("/v1/explain", params=asked, **sent())
    assert reply.status_code == 400 and words in reply.json()["error"] and reply.json()["error"].endswith(".")


@pytest.mark.parametrize("name", ["tiny", "gated"])
def test_a_network_elsewhere_explains_as_it_would_here(name: str, services: dict[str, Service], clip: Clip):
    classifier = services[name].classifier
    with served({name: lambda: services[name]}, name) as url:
        network = RemoteClassifier(url)
        seen, _ = view(network, network.predict(clip, maps="all"))
        here, there = explain(classifier, clip, **ASKED), seen.explain(clip, **ASKED)
        with pytest.raises(AudioError, match="class 'woof' is unknown"):
            seen.explain(clip, label="woof")
    for key in ("label", "against", "method", "tap", "window", "start", "mel_config", "reliable", "verdict", "where"):
        assert getattr(there, key) == getattr(here, key)
    close(there.mask, here.mask)
    close(there.map, here.map)
    assert there.gain == pytest.approx(here.gain, rel=1e-4) and there.numbers == here.numbers
    for ours, theirs in zip(here.parts, there.parts, strict=True):
        close(theirs.clip.samples, ours.clip.samples)
        assert (theirs.name, theirs.clip.rate) == (ours.name, ours.clip.rate)
        assert theirs.probability == pytest.approx(ours.probability, abs=1e-4)
        assert [x.name for x in theirs.prediction.labels] == [x.name for x in ours.prediction.labels]
    close(there.original.prediction.mel, here.original.prediction.mel)
    assert there.picture().alt == here.picture().alt
    added = there.evidence.clip.samples + there.remainder.clip.samples
    np.testing.assert_allclose(added, there.original.clip.samples, atol=1e-6)


def put(path: str, value: object):
    def change(answer: dict) -> None:
        *parents, last = path.split("/")
        for parent in parents:
            answer = answer[parent]
        answer[last] = value

    return change


def silence(answer: dict) -> None:
    heard = answer["heard"]["random"]
    heard |= {"verdict": "silent", "windows": heard["windows"] | {"probabilities": [[0.0] * 50]}}


@pytest.mark.parametrize(
    "change",
    [put("gain", 0.0), put("gain", 2), put("mask/high", 2.0), put("mask/shape", [251, 128]), put("reliable", "yes"),
     put("audio/random", "AAAA"), put("heard/original", None), put("heard/random/logits/dog", float("nan")),
     put("verdict", None), put("window", -1), lambda a: a["audio"].pop("random"),
     put("start", 99.0), put("start", -5.0), silence],
)  # fmt: skip
def test_an_explanation_that_is_not_as_it_should_be_is_not_believed(change, client: TestClient, clip: Clip):
    told = client.post("/v1/explain", params=ASKED | {"include": "map,random,heard"}, **sent()).json()
    assert list(told["audio"]) == ["random"]  # the other parts are made of the mask
    with Rude(says(told)) as server:
        assert RemoteClassifier(server.url).glass("").explain(clip, **ASKED).label == "rain"
    change(told)
    with Rude(says(told)) as server, pytest.raises(NotAtHand, match="gave an answer that makes no sense"):
        RemoteClassifier(server.url).glass("").explain(clip, **ASKED)


def test_the_endpoint_says_it_in_words_and_numbers(services: dict[str, Service], clip: Clip):
    (asked,) = (f.fn for f in build_page(lambda: services["tiny"]).fns.values() if f.api_name == "explain")
    here = explain(services["tiny"].classifier, clip, label="rain", method="layercam")
    told = asked(str(DOG), "rain", "", "layercam", "", None)
    assert (told["label"], told["where"], told["verdict"]) == ("rain", here.where, here.verdict)
    assert told["parts"]["evidence"]["confidence"] == pytest.approx(here.evidence.probability, abs=1e-3)
    assert told["network"] == services["tiny"].network and told["notes"] == []
    assert asked(str(DOG), "rain", None, "layercam", None, None) == told, "null is nothing, as some clients say it"
    with pytest.raises(gr.Error, match="class 'woof' is unknown; known are"):
        asked(str(DOG), "woof", "", "layercam", "", None)
