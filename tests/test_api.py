"""The JSON API: what is asked of it and answered, and how it says what is wrong. Bodies: test_body.py; maps of taps:
test_maps.py."""

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fastapi import FastAPI
from fastapi.testclient import TestClient

from cnn.classifier import Classifier, Prediction
from cnn.serve.api import build_api
from cnn.serve.payload import INCLUDES, family, numbers
from cnn.serve.schema import Answer, Inside, Maps, Why
from cnn.serve.service import Busy, Opener, Service
from tests.standins.asking import DOG, Slow, coded, sent

EVERYTHING = {"include": ",".join(INCLUDES)}


@pytest.fixture(scope="module")
def service(tiny_classifier: Classifier) -> Iterator[Service]:
    service = Service(tiny_classifier)
    yield service
    service.close()


@pytest.fixture(scope="module")
def api(service: Service) -> FastAPI:
    return build_api({"tiny": lambda: service}, "tiny")


@pytest.fixture(scope="module")
def client(api: FastAPI) -> TestClient:
    return TestClient(api)


@pytest.fixture(scope="module")
def ancestral(service: Service) -> FastAPI:
    """As the class on Modal serves it: the family's call beside /v1."""
    return build_api({"tiny": lambda: service}, "tiny", ancestral=True)


@pytest.fixture(scope="module")
def seen(tiny_classifier: Classifier) -> Prediction:
    return tiny_classifier.predict(DOG, maps="all")


# --- answers ---------------------------------------------------------------------------------------------------------


def test_form_and_json_are_answered_as_the_classifier_does_in_less_than_2_kb(client: TestClient, seen: Prediction):
    text = base64.encodebytes(DOG.read_bytes()).decode()  # with line breaks, as some encoders make them
    by_form, by_json = client.post("/v1/classify", **sent()), client.post("/v1/classify", json={"audio_data": text})
    for answer in (by_form, by_json):
        assert answer.status_code == 200 and len(answer.content) < 2000
        assert answer.headers["content-type"] == "application/json"
        answer = answer.json()
        assert answer["predictions"] == seen.to_dict(top=3)["predictions"]
        assert (answer["format"], answer["sample_rate"], answer["model"]) == ("Ogg Vorbis", seen.clip.rate, "tiny")
        Answer.model_validate(answer)


def test_with_everything_a_prediction_can_be_rebuilt_from_half_of_the_familys_bytes(
    client: TestClient, ancestral: FastAPI, seen: Prediction
):
    reply = client.post("/v1/classify", params={"top": 50, "include": INCLUDES}, **sent())
    answer = reply.json()
    Answer.model_validate(answer)
    assert len(reply.content) <= len(TestClient(ancestral).post("/", **sent()).content) / 2
    assert len(answer["predictions"]) == 50
    assert list(answer["logits"].values()) == pytest.approx(seen.logits.tolist(), abs=1e-4)
    assert list(answer["logits"]) == list(client.get("/v1/models").json()["models"][0]["classes"])
    windows = answer["windows"]
    assert windows["starts"] == pytest.approx(seen.starts.tolist()) and windows["shown"] == seen.window
    np.testing.assert_allclose(windows["probabilities"], seen.window_probabilities, atol=1e-4)
    mel = numbers(answer["spectrogram"])
    np.testing.assert_allclose(mel, seen.mel, atol=2 * np.ptp(seen.mel) / 65535)
    assert answer["spectrogram"]["front_end"]["sample_rate"] == 16_000
    assert list(answer["maps"]) == list(seen.maps)
    for tap, values in seen.maps.items():
        assert tuple(answer["maps"][tap]["size"]) == seen.shapes[tap]
        np.testing.assert_allclose(numbers(answer["maps"][tap]), values, atol=1e-4 + 2 * np.ptp(values) / 65535)
    assert np.abs(numbers(answer["waveform"])).max() == pytest.approx(np.abs(seen.clip.samples).max(), rel=1e-3)


def test_stages_are_fewer_maps_and_only_what_is_wanted_comes(client: TestClient, seen: Prediction):
    stages = client.post("/v1/classify", params={"include": "stages", "top": 1}, **sent()).json()
    assert list(stages["maps"]) == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert len(stages["predictions"]) == 1
    assert not stages.keys() & {"spectrogram", "waveform", "logits", "windows"}


def test_silence_is_an_answer_in_every_payload(client: TestClient, tiny_classifier: Classifier, tmp_path: Path):
    soundfile.write(tmp_path / "still.wav", np.zeros(8000), 8000)
    answer = client.post("/v1/classify", params=EVERYTHING, **sent(tmp_path / "still.wav")).json()
    Answer.model_validate(answer)
    assert (answer["verdict"], answer["predictions"], answer["maps"]) == ("silent", [], {})
    assert "Nothing to hear" in answer["message"] and answer["spectrogram"]["shape"] == [0, 0]
    assert family(tiny_classifier.predict(tmp_path / "still.wav", maps="all"))["visualization"] == {}


def test_the_familys_payload_is_what_its_clients_draw(ancestral: FastAPI, seen: Prediction):
    reply = TestClient(ancestral).post("/", **coded(DOG.read_bytes()))
    answer = reply.json()
    assert reply.status_code == 200 and reply.headers["content-type"] == "application/json"
    assert list(answer) == ["predictions", "visualization", "input_spectrogram", "waveform"]
    assert answer["predictions"] == seen.to_dict(top=3)["predictions"]
    assert list(answer["visualization"]) == list(seen.maps)
    for drawn in [*answer["visualization"].values(), answer["input_spectrogram"]]:
        assert np.shape(drawn["values"]) == tuple(drawn["shape"])
    assert answer["input_spectrogram"]["shape"] == [128, 251]
    assert 7000 < len(answer["waveform"]["values"]) <= 8100
    assert answer["waveform"]["sample_rate"] == seen.clip.rate
    assert answer["waveform"]["duration"] == pytest.approx(seen.clip.seconds, abs=1e-3)


def test_the_models_say_what_they_are(client: TestClient, service: Service):
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["name"], model["default"], model["network"]) == ("tiny", True, service.network)
    assert model["classes"] == list(service.labels) and model["sample_rate"] == 16_000
    assert model["accuracy"] is None  # this file says nothing of it


def test_a_network_is_chosen_by_its_name(service: Service, tiny: Path):
    opener = Opener(str(tiny), "cpu")
    both = TestClient(build_api({"first": opener, "second": lambda: service}, "second"))
    assert both.post("/v1/classify", **sent()).json()["model"] == "second"
    assert opener.opened is None  # nobody asked for it
    assert both.post("/v1/classify", params={"model": "first"}, **sent()).json()["model"] == "first"
    opener().close()


def test_health_needs_no_network_and_loads_none(tiny: Path):
    opener = Opener(str(tiny), "cpu")
    client = TestClient(build_api({"tiny": opener}, "tiny", auth=("ann", "secret")))
    assert client.get("/healthz").json() == {"status": "ok", "loaded": False, "waiting": 0}
    assert opener.opened is None


SHOWN = {("/v1/classify", "post"): Answer, ("/v1/maps", "post"): Maps, ("/v1/explain", "post"): Why,
         ("/v1/inside", "get"): Inside}  # fmt: skip


@pytest.mark.parametrize(("path", "method"), SHOWN)
def test_what_the_description_shows_is_true(path: str, method: str, client: TestClient):
    described = client.get("/v1/openapi.json").json()
    assert set(described["paths"]) == {*(path for path, _ in SHOWN), "/v1/models", "/healthz"}
    call = described["paths"][path][method]
    SHOWN[path, method].model_validate(call["responses"]["200"]["content"]["application/json"]["example"])
    assert {"400", "401", "503"} < set(call["responses"])
    assert "422" not in call["responses"]  # FastAPI's own, in another shape
    assert all(p["description"] for p in call["parameters"])
    if method == "post":
        assert {"413", "429", "500"} < set(call["responses"])
        shown = call["requestBody"]["content"]
        assert set(shown) == {"multipart/form-data", "application/json"}
        example = client.post(path, params={"tap": "layer1"}, json=shown["application/json"]["example"])
        assert example.json()["error"] == "The sound has no samples; record or export it again."


def test_the_description_names_all_that_can_be_included(client: TestClient):
    call = client.get("/v1/openapi.json").json()["paths"]["/v1/classify"]["post"]
    (include,) = (p for p in call["parameters"] if p["name"] == "include")
    assert all(name in include["description"] for name in INCLUDES)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_an_address_that_is_not_there_is_told_the_others(client: TestClient):
    for reply, status in ((client.get("/v1/nothing"), 404), (client.get("/v1/classify"), 405)):
        assert reply.status_code == status and "POST /v1/classify" in reply.json()["error"]


def test_a_full_queue_is_429_with_the_seconds_to_wait(monkeypatch: pytest.MonkeyPatch):
    slow = Slow()
    monkeypatch.setattr(slow, "submit", lambda *_, **__: (_ for _ in ()).throw(Busy("64 wait; try again in 7 s.", 7)))
    reply = TestClient(build_api({"slow": lambda: slow}, "slow")).post("/v1/classify", **sent())
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert reply.json() == {"error": "64 wait; try again in 7 s."}


def test_a_bug_is_logged_and_not_shown(monkeypatch: pytest.MonkeyPatch):
    slow = Slow()
    monkeypatch.setattr(slow, "submit", lambda *_, **__: {}["secret"])
    api = build_api({"slow": lambda: slow}, "slow")
    reply = TestClient(api, raise_server_exceptions=False).post("/v1/classify", **sent())
    assert reply.status_code == 500 and reply.json() == {"error": "The server made a mistake; its log has it."}
    with pytest.raises(KeyError, match="secret"):  # goes on to the server, whose log has the trace
        TestClient(api).post("/v1/classify", **sent())


def test_without_a_network_visitors_learn_nothing_of_the_server(caplog: pytest.LogCaptureFixture):
    client = TestClient(build_api({"own": Opener("/srv/secret.pth")}, "own"))
    for reply in (client.post("/v1/classify", **sent()), client.get("/v1/models")):
        assert reply.status_code == 503 and "no network to name sounds with yet" in reply.json()["error"]
        assert "secret" not in reply.text
    assert "secret.pth" in caplog.text


def test_a_locked_server_lets_in_who_knows_the_password(service: Service):
    client = TestClient(build_api({"tiny": lambda: service}, "tiny", auth=("änn", "pass:wörd")))
    for auth in (None, ("änn", "password"), ("", "")):
        for reply in (client.post("/v1/classify", auth=auth, **sent()), client.get("/v1/models", auth=auth)):
            assert reply.status_code == 401 and "password" in reply.json()["error"]
            assert reply.headers["www-authenticate"].startswith("Basic ")
    assert client.get("/v1/models", headers={"authorization": b"Basic \xff"}).status_code == 401
    assert client.post("/v1/classify", auth=("änn", "pass:wörd"), **sent()).status_code == 200
