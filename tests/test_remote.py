"""The network of another server: the same answer as here, and what becomes of a visitor when that server misbehaves."""

import base64
import copy
import random
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from cnn.audio import AudioError, Clip
from cnn.checkpoint import CheckpointError
from cnn.classifier import Classifier, Prediction
from cnn.serve import connection
from cnn.serve.connection import Unavailable, wav
from cnn.serve.payload import INCLUDES, v1
from cnn.serve.remote import RemoteClassifier, WithFallback, remote_first
from cnn.serve.service import Service
from cnn.ui.figures import draw, facts, verdict
from cnn.ui.page import build_page
from tests.standins.rude import SHORT, SLOW, Rude, deaf, dies, late, says, served, trickles, trickles_headers


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PAUSE", 0.01)


@pytest.fixture(scope="module")
def true(tiny_classifier: Classifier) -> Iterator[str]:
    """The address of a server of this project with the tiny network."""
    service = Service(tiny_classifier)
    with served({"tiny": lambda: service}, "tiny") as url:
        yield url
    service.close()


@pytest.fixture(scope="module")
def answer(tiny_classifier: Classifier, tone: Clip) -> dict:
    """What a true server says of the tone."""
    return v1(tiny_classifier.predict(tone, maps="all"), 50, INCLUDES)


@pytest.fixture(scope="module")
def fading(tone: Clip) -> Clip:
    """Loudest in one place, which the words of its pictures tell; a steady tone is so everywhere, but for rounding."""
    return replace(tone, samples=tone.samples * np.linspace(1, 0.3, len(tone.samples), dtype=np.float32))


@pytest.fixture(scope="module")
def long(fading: Clip) -> Clip:
    """A sound, then ten seconds of nothing, then another: several windows, some of them silent."""
    rng = np.random.default_rng(0)
    parts = [fading.samples, np.zeros(10 * fading.rate), rng.normal(0, 0.2, 3 * fading.rate)]
    return Clip(np.concatenate(parts).astype(np.float32), fading.rate, "long.wav", "MP3", True, 2, ("A note.",))


def words(prediction: Prediction) -> list[str]:
    """All that the page says of an answer, but for where it ran."""
    pictures = draw(prediction)
    return [*pictures, *(p.alt for p in pictures.values()), facts(prediction),
            re.sub(" on .*", "", verdict(prediction, 1.0))]  # fmt: skip


def test_a_remote_network_answers_as_the_same_one_at_hand(true: str, tiny_classifier: Classifier, tone, fading, long):
    elsewhere = RemoteClassifier(true)
    silence = Clip(np.zeros(8000, np.float32), 8000, "still.wav")
    for clip in (fading, long, silence):
        here, there = tiny_classifier.predict(clip, maps="all"), elsewhere.predict(clip, maps="all")
        assert [x.name for x in there.labels] == [x.name for x in here.labels]
        np.testing.assert_array_equal(there.logits, here.logits)
        np.testing.assert_allclose([x.probability for x in there.labels], [x.probability for x in here.labels], 1e-3)
        np.testing.assert_allclose(there.window_probabilities, here.window_probabilities, atol=1e-4)
        np.testing.assert_allclose(there.starts, here.starts, atol=1e-4)
        assert (there.clip, there.verdict, there.message, there.window, there.mel_config, there.shapes) == (
            clip, here.verdict, here.message, here.window, here.mel_config, here.shapes)  # fmt: skip
        assert list(there.maps) == list(here.maps) and (there.mel is None) == (here.mel is None)
        for ours, theirs in [(here.mel, there.mel), *((here.maps[tap], there.maps[tap]) for tap in here.maps)]:
            if ours is not None:
                np.testing.assert_allclose(theirs, ours, atol=1.01 * np.ptp(ours) / 65535)
        assert words(there) == words(here)
        assert there.device == f"cpu at {true}" and there.timings["total"] > 0
    assert elsewhere.predict(tone).maps == {}
    assert list(elsewhere.predict(tone, maps="stages").maps) == tiny_classifier.stage_taps


@pytest.mark.parametrize(
    ("behaviour", "reason", "requests"),
    [
        (dies, "cannot be reached", 3),
        (late, "did not answer within 1 s", 1),
        (trickles, "did not answer within 1 s", 1),
        (trickles_headers, "did not answer within 1 s", 1),
        (deaf, "did not answer within 1 s", 1),
        (says("<html><h1>It works!</h1></html>"), "makes no sense", 1),
        (says("[" * 100_000), "makes no sense", 1),
        (says("hello", Content_Encoding="gzip"), "makes no sense", 1),
        (says({"predictions": [{"class": "dog", "confidence": 1.0}]}), "makes no sense", 1),
        (says([]), "makes no sense", 1),
        (says("<html>502 Bad Gateway</html>", 502), "is not well", 3),
        (says({"error": "No network."}, 503), "is not well", 3),
        (says({"error": "The server made a mistake."}, 500), "is not well", 1),
        (says({"error": "64 sounds are waiting already."}, 429, Retry_After="30"), "is busy", 1),
        (says({"detail": "Not Found"}, 404), "not answer as a server of this project", 1),
        (says("<html>too large</html>", 413), "not answer as a server of this project", 1),
        (says({"error": "This server asks for a user."}, 401), "asks for a user and a password", 1),
        (says("", 302, Location="https://example.org"), "sends visitors elsewhere", 1),
    ],
)
def test_what_a_server_does_wrong_is_a_reason_and_only_what_may_pass_is_asked_again(tone, behaviour, reason, requests):
    if behaviour is deaf:  # more than the line holds
        tone = Clip(np.tile(tone.samples, 12), tone.rate)
    with Rude(behaviour) as server:
        with pytest.raises(Unavailable, match=reason) as caught:
            RemoteClassifier(server.url, timeout=SHORT if behaviour in SLOW else 20).predict(tone)
        assert str(caught.value).startswith(server.url)
        assert server.requests == requests


def put(key: str, value: object) -> Callable[[dict], None]:
    def change(answer: dict) -> None:
        *parents, last = key.split("/")
        for parent in parents:
            answer = answer[parent]
        answer[last] = value

    return change


def named_by_a_stranger(answer: dict) -> None:
    answer["logits"]["<b>dog</b>"] = answer["logits"].pop("dog")
    next(x for x in answer["predictions"] if x["class"] == "dog")["class"] = "<b>dog</b>"


WRONG = {
    "NaN among the logits": put("logits/dog", float("nan")),
    "logits without names": put("logits", [0.0] * 50),
    "maps without taps": put("maps", [1]),
    "a class of its own": named_by_a_stranger,
    "a window shown that was not heard": put("windows/probabilities", [[0.0] * 50]),
    "a class too few": lambda a: a["logits"].pop("dog"),
    "predictions of other classes": put("predictions", [{"class": "dog", "confidence": 1.0}] * 50),
    "a spectrogram of another size": put("spectrogram/shape", [251, 128]),
    "a spectrogram of infinity": put("spectrogram/high", float("inf")),
    "a spectrogram cut off": lambda a: put("spectrogram/data", a["spectrogram"]["data"][:400])(a),
    "a front end unheard of": put("spectrogram/front_end/window", "hann"),
    "half a mel bin": put("spectrogram/front_end/n_mels", 128.0),
    "maps that are not there": put("maps", {}),
    "a map of another size": put("maps/layer1/size", [4, 1, 1]),
    "a tap that is no name": lambda a: a["maps"].update({"<script>": a["maps"].pop("layer1")}),
    "a window that is not there": put("windows/shown", 1),
    "a probability of 2": lambda a: a["windows"]["probabilities"][0].__setitem__(0, 2.0),
    "a verdict unheard of": put("verdict", "perhaps"),
    "silence that is heard": put("verdict", "silent"),
    "a device that is a number": put("device", 7),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_an_answer_that_is_not_as_it_should_be_is_not_believed(tone: Clip, answer: dict, change: Callable):
    wrong = copy.deepcopy(answer)
    change(wrong)
    with Rude(says(wrong)) as server:
        with pytest.raises(Unavailable, match="gave an answer that makes no sense"):
            RemoteClassifier(server.url).predict(tone, maps="all")


def test_whatever_an_answer_holds_it_is_believed_or_a_reason_and_never_a_bug(tone: Clip, answer: dict, monkeypatch):
    rng = random.Random(0)
    odd = [None, True, -1, 2.5, 10**400, 1e308, float("nan"), "", "<b>", "AAAA", [], {}, [[]], [None] * 50, {"a": 1}]
    monkeypatch.setattr(connection, "DOWN", -1.0)
    elsewhere, believed = RemoteClassifier("http://127.0.0.1:9"), 0
    for _ in range(400):
        place = wrong = copy.deepcopy(answer)
        while place:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if rng.random() < 0.3 or not isinstance(place[key], dict | list):
                place[key] = rng.choice(odd)
                break
            place = place[key]
        monkeypatch.setattr(elsewhere.line, "_ask", lambda *_, wrong=wrong: wrong)
        try:
            words(elsewhere.predict(tone, maps="all")) if believed < 5 else elsewhere.predict(tone, maps="all")
            believed += 1
        except Unavailable as why:
            assert "makes no sense" in str(why)
    assert 0 < believed < 300  # much of an answer is for other readers


def test_who_is_busy_once_or_breaks_off_once_is_asked_again(tone: Clip, answer: dict, monkeypatch):
    pauses = []
    monkeypatch.setattr(connection.time, "sleep", pauses.append)
    with Rude(says({"error": "Later."}, 429, Retry_After="3"), dies, says(answer)) as server:
        assert RemoteClassifier(server.url).predict(tone).labels[0].name == answer["predictions"][0]["class"]
        assert server.requests == 3 and pauses == [3.0, 0.02]


def test_a_sentence_about_the_sound_reaches_whoever_sent_it(tone: Clip):
    with Rude(says({"error": "tone.wav is larger than the 1 MB that are read."}, 413)) as server:
        with pytest.raises(AudioError, match="^tone.wav is larger than the 1 MB"):
            RemoteClassifier(server.url).predict(tone)


def test_only_the_first_visitor_waits_for_a_dead_server_until_it_is_tried_again(tone: Clip, answer: dict, monkeypatch):
    with Rude(late, says(answer)) as server:
        elsewhere = RemoteClassifier(server.url, timeout=SHORT)
        with pytest.raises(Unavailable):
            elsewhere.predict(tone)
        with pytest.raises(Unavailable, match=r"did not answer within 1 s and is left alone for \d+ s"):
            elsewhere.predict(tone)
        assert server.requests == 1
    monkeypatch.setattr(connection, "DOWN", 0.0)  # as if it were over at once
    with Rude(says("gone", 404), says(answer)) as server:
        elsewhere = RemoteClassifier(server.url)
        with pytest.raises(Unavailable):
            elsewhere.predict(tone)
        for _ in range(2):
            assert elsewhere.predict(tone).verdict == "named"


@pytest.mark.parametrize("sign", [says({"error": "Later."}, 429, Retry_After="90"), says({"error": "Too short."}, 400)])
def test_a_server_that_was_away_and_gives_a_sign_of_life_is_asked_again(tone: Clip, answer: dict, monkeypatch, sign):
    monkeypatch.setattr(connection, "DOWN", 0.0)
    with Rude(says("gone", 404), sign, says(answer)) as server:
        elsewhere = RemoteClassifier(server.url)
        for _ in range(2):
            with pytest.raises((Unavailable, AudioError)):
                elsewhere.predict(tone)
        assert elsewhere.predict(tone).verdict == "named"


def test_one_tries_for_all_whether_a_server_is_back(tone: Clip, monkeypatch):
    monkeypatch.setattr(connection, "DOWN", 0.0)
    begun = threading.Event()

    def wakes(to: BaseHTTPRequestHandler) -> None:
        begun.set()
        late(to)

    with Rude(says("gone", 404), wakes) as server, ThreadPoolExecutor(1) as other:
        elsewhere = RemoteClassifier(server.url, timeout=SHORT)
        with pytest.raises(Unavailable):
            elsewhere.predict(tone)
        first = other.submit(elsewhere.predict, tone)
        assert begun.wait(20)
        with pytest.raises(Unavailable, match="not answer as a server of this project .* is left alone"):
            elsewhere.predict(tone)
        assert "within 1 s" in str(first.exception(20)) and server.requests == 2


def test_more_than_any_true_answer_is_not_taken(tone: Clip, answer: dict, monkeypatch):
    monkeypatch.setattr(connection, "MAX_ANSWER", 10_000)
    with Rude(says(answer)) as server:
        with pytest.raises(Unavailable, match="gave an answer that makes no sense"):
            RemoteClassifier(server.url).predict(tone)


def test_while_one_visitor_tries_again_the_others_do_not_find_the_server_down(tone: Clip, answer: dict, monkeypatch):
    begun = threading.Event()

    def falters(to: BaseHTTPRequestHandler) -> None:
        says("<html>502 Bad Gateway</html>", 502)(to)
        begun.set()

    with Rude(falters, says(answer)) as server, ThreadPoolExecutor(1) as other:
        elsewhere = RemoteClassifier(server.url)
        monkeypatch.setattr(connection, "PAUSE", 0.5)
        first = other.submit(elsewhere.predict, tone)
        assert begun.wait(20)
        assert elsewhere.predict(tone).verdict == first.result(20).verdict == "named"


def test_the_network_here_takes_its_place_and_the_page_says_so(tone_file: Path, tiny_classifier: Classifier):
    with Rude(dies) as server:
        both = WithFallback(RemoteClassifier(server.url), lambda: tiny_classifier)
        prediction = both.predict(tone_file)
        assert prediction.labels == tiny_classifier.predict(tone_file).labels
        assert prediction.device == f"cpu, as {server.url} cannot be reached (RemoteProtocolError)"
        page = build_page(lambda: both)
        (hear,) = (f for f in page.fns.values() if f.api_name == "hear")
        shown = " ".join(map(str, list(hear.fn(str(tone_file), False))[-1].values()))
        assert re.search(rf'id="took">[^<]* on cpu, as {server.url} cannot be reached', shown)


def test_without_a_network_here_the_visitor_gets_a_sentence_and_the_log_the_reason(tone_file: Path, capfd):
    def none() -> Classifier:
        raise CheckpointError("/srv/secret.pth does not exist")

    with Rude(dies) as server:
        page = build_page(lambda: WithFallback(RemoteClassifier(server.url), none))
        (hear,) = (f for f in page.fns.values() if f.api_name == "hear")
        shown = " ".join(map(str, list(hear.fn(str(tone_file), False))[-1].values()))
    assert "cannot be reached" in shown and "no network here to take its place" in shown
    assert "secret" not in shown and "secret.pth" in capfd.readouterr().err


@pytest.fixture
def tone_file(tmp_path: Path, tone: Clip) -> Path:
    (tmp_path / "tone.wav").write_bytes(wav(tone))
    return tmp_path / "tone.wav"


def test_the_variable_decides_and_its_password_is_told_nobody_else(monkeypatch, tone: Clip, answer: dict):
    def local() -> Classifier:
        raise AssertionError("opened before it is needed")

    assert remote_first(local) is local
    for wrong in ("sounds.example.org", "ftp://example.org", "https://", "https://a:b", "https://example.org/?a=b"):
        monkeypatch.setenv("AUDIO_CNN_REMOTE", wrong)
        with pytest.raises(ValueError, match="AUDIO_CNN_REMOTE is .*https://HOST"):
            remote_first(local)()

    def locked(to: BaseHTTPRequestHandler) -> None:
        known = to.headers["Authorization"] == f"Basic {base64.b64encode(b'me:secret').decode()}"
        says(*((answer,) if known and to.path.startswith("/v1/classify?") else ({"error": "Locked."}, 401)))(to)

    with Rude(locked) as server:
        for password in ("secret", "guessed"):
            monkeypatch.setenv("AUDIO_CNN_REMOTE", server.url.replace("//", f"//me:{password}@") + "/")
            opened = remote_first(local)
            assert opened() is opened()
            if password == "secret":
                assert opened().predict(tone).device == f"cpu at {server.url}"
            else:
                with pytest.raises(Unavailable, match=f"^{server.url} asks for a user") as caught:
                    opened().first.predict(tone)
                assert "guessed" not in str(caught.value)
