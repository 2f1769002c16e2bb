"""The Inside tab with a network elsewhere: the same pictures and words, of one network only, or a sentence."""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from fastapi.testclient import TestClient

from cnn import checkpoint
from cnn.audio import AudioError, Clip
from cnn.classifier import Classifier
from cnn.serve import connection
from cnn.serve.answers import Heard
from cnn.serve.api import build_api
from cnn.serve.connection import Unavailable
from cnn.serve.glass import LocalGlass, NotAtHand
from cnn.serve.models import listed
from cnn.serve.remote import RemoteClassifier, WithFallback
from cnn.serve.remote_glass import RemoteGlass
from cnn.serve.service import Service
from cnn.ui import panels
from cnn.ui.figures import scale_of
from cnn.ui.glass import glass, into, view
from cnn.ui.inside import Room, View, _shown, _words
from cnn.ui.keep import InHand
from cnn.ui.strip import strip
from tests.standins.asking import sent
from tests.standins.networks import close
from tests.standins.rude import Behaviour, Rude, dies, says, served


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PAUSE", 0.01)


@pytest.fixture(params=["tiny", "gated"])
def elsewhere(request: pytest.FixtureRequest, services: dict[str, Service]) -> Iterator[tuple[str, Classifier]]:
    """The address of a server of this project, and the network that answers there."""
    name = request.param
    with served({n: lambda s=s: s for n, s in services.items()}, name) as url:
        yield url, services[name].classifier


def test_a_network_elsewhere_shows_what_it_would_show_here(elsewhere: tuple[str, Classifier], clip: Clip):
    url, classifier = elsewhere
    here, network = LocalGlass(classifier), RemoteClassifier(url)
    heard = network.predict(clip, maps="all")
    there, prediction = view(network, heard)
    assert prediction is heard and there.anatomy() == here.anatomy()
    known = classifier.labels[3]
    for tap in classifier.map_taps:
        for asked in ({"label": known, "window": 0}, {"label": None, "window": None, "channels": (2, 0)}):
            ours, theirs = here.look(clip, tap, **asked), there.look(clip, tap, **asked)
            for name in ("tap", "shape", "window", "start", "label", "exact", "silent"):
                assert getattr(theirs, name) == getattr(ours, name)
            assert (theirs.logit, theirs.rest) == pytest.approx((ours.logit, ours.rest), abs=1e-4)
            close(theirs.shares, ours.shares)
            close(theirs.mean, ours.mean)
            assert [c.index for c in theirs.channels] == [c.index for c in ours.channels]
            for a, b in zip(theirs.channels, ours.channels, strict=True):
                close(a.values, b.values)
    gates = here.gates(clip, 0)
    assert there.gates(clip, 0).keys() == gates.keys()
    for tap, values in there.gates(clip, 0).items():
        np.testing.assert_allclose(values, gates[tap], atol=1e-4)
    close(there.widest(clip, 0), np.array(here.widest(clip, 0)))
    close(there.kernels(), here.kernels())
    (ours, why), (theirs, told) = here.atlas(), there.atlas()
    assert why == told and (ours is None) == (theirs is None)
    if ours:
        assert (theirs.clips, theirs.excites, theirs.root) == (ours.clips, ours.excites, "")
        assert theirs.gates.keys() == ours.gates.keys()
        for tap, means in ours.gates.items():
            assert theirs.gates[tap] == pytest.approx(means)


def said(html: str) -> str:
    """The words of a piece of the page, alternative texts too."""
    alts = re.findall(r'(?:alt|aria-label)="([^"]*)"', html)
    return unescape(" ".join([*alts, re.sub(r"<[^>]*>", " ", html)]))


def test_every_stop_of_the_tab_says_the_same(elsewhere: tuple[str, Classifier], clip: Clip):
    url, classifier = elsewhere
    faded = replace(clip, samples=clip.samples * np.linspace(1, 0.3, len(clip.samples), dtype=np.float32))
    rooms = []
    for network in (classifier, RemoteClassifier(url)):
        seen, prediction = view(network, network.predict(faded, maps="all"))
        rooms.append(Room(InHand(prediction, "dog"), None, lambda seen=seen: seen, prediction, seen.anatomy()))
    assert said(strip(rooms[0].anatomy, rooms[0].prediction)) == said(strip(rooms[1].anatomy, rooms[1].prediction))
    best = rooms[0].prediction.labels[0].name
    for stop in ["picture", *dict.fromkeys(part.stage for part in rooms[0].anatomy.parts), "layer1.block0.se"]:
        if stop == "layer1.block0.se" and not classifier.config.se:
            continue
        shown = []
        for room in rooms:
            room.view = View(stop=stop, channel=None if stop in ("picture", "head") else 0)
            ruler = panels.Ruler(scale_of(room.prediction), False, panels.OWN)
            shown.append(said(" ".join(_shown(room, best, ruler)) + _words(room, best)))
        assert shown[0] == shown[1]


# --- of one network only ---------------------------------------------------------------------------------------------


def test_when_the_network_elsewhere_goes_away_the_one_here_hears_the_sound_itself(
    elsewhere: tuple[str, Classifier], services: dict[str, Service], clip: Clip
):
    url, there = elsewhere
    local = services["gated" if there is services["tiny"].classifier else "tiny"]
    network = WithFallback(RemoteClassifier(url), lambda: local)
    heard = network.predict(clip, maps="all")
    seen, prediction = view(network, heard)
    assert prediction is heard and seen.anatomy().network == there.network
    network.first.line._failed("https://x did not answer within 20 s")
    fallen = network.predict(clip, maps="all")
    for hand in (heard, fallen):  # asked while it was there, or when it had gone: what is shown is all of one network
        seen, prediction = view(WithFallback(RemoteClassifier("http://127.0.0.1:9"), lambda: local), replace(
            hand, by=network.first if hand is heard else hand.by, weights=""))  # fmt: skip
        assert prediction.network == local.network == seen.anatomy().network
        assert "as https://x did not answer within 20 s" in prediction.device
        assert seen.look(clip, "layer4", label=None, window=0).shape == prediction.shapes["layer4"]
    network.first.line._lives()
    seen, prediction = view(network, fallen)  # back again: but this sound the network here has named
    assert prediction is fallen and seen.anatomy().network == local.network


def test_without_a_network_here_the_reason_is_a_sentence(clip: Clip, tiny_classifier: Classifier, capfd):
    def none() -> Classifier:
        raise ValueError("/srv/secret.pth does not exist")

    with Rude(dies) as server:
        network = WithFallback(RemoteClassifier(server.url), none)
        with pytest.raises(
            NotAtHand, match=r"^No network can be looked into: http.* no network here to take its place"
        ):
            view(network, Heard(**vars(tiny_classifier.predict(clip, maps="all")), by=network.first))
        with pytest.raises(NotAtHand, match="cannot be looked inside now: http.* Hear the sound again"):
            glass(network)
    assert "secret.pth" in capfd.readouterr().err


def forwards(services: dict[str, Service], names: list[str], hidden: tuple[str, ...] = ()) -> Behaviour:
    """A server with the first of these networks, at each further request with the next one; `hidden` are paths that it
    does not know."""
    clients = {name: TestClient(build_api({name: lambda s=s: s}, name)) for name, s in services.items()}

    def behave(to: BaseHTTPRequestHandler) -> None:
        asked = urlsplit(to.path)
        name = names.pop(0) if len(names) > 1 else names[0]
        if asked.path in hidden:
            return says({"error": "POST /v1/maps is not answered here; POST /v1/classify is."}, 404)(to)
        if asked.path == "/v1/inside":
            return says(clients[name].get(to.path).json())(to)
        reply = clients[name].post(asked.path, params=parse_qs(asked.query), **sent())
        says(reply.json(), reply.status_code)(to)

    return behave


def test_a_server_that_got_other_weights_meanwhile_shows_nothing_of_them(services: dict[str, Service], clip: Clip):
    with Rude(forwards(services, ["tiny", "gated"])) as server:
        network = RemoteClassifier(server.url)
        heard = network.predict(clip, maps="all")
        with pytest.raises(NotAtHand, match="has another network since it heard this sound. Hear the sound again"):
            view(network, heard)
        again = network.predict(clip, maps="all")
        seen, _ = view(network, again)
        assert seen.look(clip, "layer4", label=None, window=0).shape == again.shapes["layer4"]
    with Rude(forwards(services, ["tiny", "tiny", "gated"])) as server:
        network = RemoteClassifier(server.url)
        seen, _ = view(network, network.predict(clip, maps="all"))
        with pytest.raises(NotAtHand, match="another network"):
            seen.look(clip, "layer4", label=None, window=0)


def test_an_older_server_still_names_sounds_and_a_sentence_says_what_it_cannot(
    services: dict[str, Service], clip: Clip
):
    with Rude(forwards(services, ["tiny"], hidden=("/v1/maps", "/v1/inside", "/v1/models"))) as server:
        network = WithFallback(RemoteClassifier(server.url), lambda: services["gated"])
        heard = network.predict(clip, maps="all")
        with pytest.raises(NotAtHand, match=f"{server.url} runs an older version, which names sounds only"):
            view(network.first, heard)
        seen, prediction = view(network, heard)
        assert prediction.network == services["gated"].network == seen.anatomy().network
        assert prediction.device.endswith("runs an older version, which names sounds only")
        assert network.predict(clip, maps="all").by is network.first  # it is not left alone for that
        assert listed(network)[0]["classes"] == list(services["gated"].labels)


# --- answers that make no sense --------------------------------------------------------------------------------------


def test_what_there_is_not_is_said_by_the_server_that_would_have_it(elsewhere: tuple[str, Classifier], clip: Clip):
    seen = glass(RemoteClassifier(elsewhere[0]))
    no = {
        "tap 'layer9' is unknown": {"tap": "layer9"},
        "there is no window 4": {"window": 4},
        "has no channel 4": {"channels": (4,)},
        "label 'x' is unknown": {"label": "x"},
    }
    for words, wrong in no.items():
        with pytest.raises(AudioError, match=words):
            seen.look(clip, **({"tap": "layer1", "label": None, "window": 0} | wrong))


def put(path: str, value: object) -> Callable[[dict], None]:
    def change(answer: dict) -> None:
        *parents, last = path.replace("/v1/", "v1 ").split("/")
        for parent in parents:
            answer = answer[int(parent) if parent.isdigit() else parent.replace("v1 ", "/v1/")]
        answer[int(last) if last.isdigit() else last] = value

    return change


NONSENSE = {
    "another tap": put("tap", "layer1"),
    "another shape": put("shape", [32, 4, 9]),
    "a channel that was not asked for": put("channels/0/index", 5),
    "a channel less": lambda a: a["channels"].pop(),
    "a map of another size": put("channels/0/values", {"shape": [1, 1], "low": 0.0, "high": 0.0, "data": "AAA="}),
    "shares of fewer channels": lambda a: a["shares"].pop(),
    "an infinite share": put("shares/0", float("inf")),
    "a mean of infinity": put("mean/high", float("inf")),
    "another label": put("label", "rain"),
    "another window": put("window", 1),
    "exact perhaps": put("exact", "yes"),
    "more silent channels than there are": put("silent", 33),
    "weights that are a number": put("weights", 7),
}


@pytest.fixture(scope="module")
def client(services: dict[str, Service]) -> TestClient:
    return TestClient(build_api({name: lambda s=s: s for name, s in services.items()}, "gated"))


@pytest.mark.parametrize("change", NONSENSE.values(), ids=NONSENSE)
def test_maps_that_are_not_as_they_should_be_are_not_believed(change: Callable, client: TestClient, clip: Clip):
    told = client.get("/v1/inside").json()
    asked = {"label": "dog", "window": 0, "channels": (3, 0)}
    answer = client.post("/v1/maps", params=asked | {"tap": "layer4", "channels": "3,0"}, **sent()).json()
    with Rude(says(told), says(answer)) as server:
        RemoteClassifier(server.url).glass("").look(clip, "layer4", **asked)
    wrong = copy.deepcopy(answer)
    change(wrong)
    with Rude(says(told), says(wrong)) as server, pytest.raises(NotAtHand, match="gave an answer that makes no sense"):
        RemoteClassifier(server.url).glass("").look(clip, "layer4", **asked)


STRANGE = {
    "a part of no network": put("/v1/inside/anatomy/parts/1/name", "layer1.block0<b>"),
    "names that are markup throughout": lambda a: a.update(json.loads(json.dumps(a).replace("r1.block0", "r1.<b>"))),
    "a part without its map": put("/v1/inside/anatomy/parts/1/taps", ["layer1"]),
    "no head": lambda a: a["/v1/inside"]["anatomy"]["parts"].pop(),
    "a field of a map that is not there": put("/v1/inside/anatomy/fields/layer9", {"stride": 1, "size": 1, "start": 0}),
    "kernels of other size": put("/v1/inside/kernels/shape", [4, 225, 1]),
    "more networks than channels": put("/v1/inside/anatomy/groups", 8),
    "an atlas of fewer channels": lambda a: a["/v1/inside"]["atlas"]["excites"]["conv1"].pop(),
    "a clip that the atlas has not": put("/v1/inside/atlas/excites/conv1/0", [[2, 1.0, 0.5]]),
    "gates of a block less": lambda a: a["/v1/maps"]["gates"].popitem(),
    "a gate wider than open": put("/v1/maps/gates/layer1.block0.se/0", 1.5),
    "a range upside down": put("/v1/maps/range", [1.0, 0.0]),
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_a_network_that_is_not_as_it_should_be_is_not_believed(change: Callable, client: TestClient, clip: Clip):
    answers = {
        "/v1/inside": client.get("/v1/inside", params={"include": "anatomy,kernels,atlas"}).json(),
        "/v1/maps": client.post("/v1/maps?tap=layer4&include=gates,range&window=0", **sent()).json(),
    }

    def look_at_all(seen: RemoteGlass) -> None:
        seen.anatomy(), seen.kernels(), seen.atlas(), seen.gates(clip, 0), seen.widest(clip, 0)

    with Rude(lambda to: says(answers[urlsplit(to.path).path])(to)) as server:
        look_at_all(RemoteClassifier(server.url).glass(""))
        change(answers)
        with pytest.raises(NotAtHand, match="gave an answer that makes no sense"):
            look_at_all(RemoteClassifier(server.url).glass(""))


def test_maps_of_other_layers_than_the_network_has_are_not_shown(elsewhere: tuple[str, Classifier], clip: Clip):
    network = RemoteClassifier(elsewhere[0])
    with pytest.raises(NotAtHand) as refused:
        view(network, network.predict(clip, maps="stages"))
    assert refused.value.reason == "the network elsewhere sent maps of other layers than it has"


def test_whatever_such_an_answer_holds_it_is_believed_or_a_reason_and_never_a_bug(
    client: TestClient, services: dict[str, Service], clip: Clip, monkeypatch: pytest.MonkeyPatch
):
    rng = random.Random(0)
    odd = [None, True, -1, 2.5, 10**400, 1e308, float("nan"), "", "<b>", "AAAA", [], {}, [[]], [None] * 32, {"a": 1}]
    told = client.get("/v1/inside", params={"include": "anatomy,kernels,atlas"}).json()
    seen = client.post("/v1/maps?tap=layer4&include=gates,range&window=0&label=dog", **sent()).json()
    monkeypatch.setattr(connection, "DOWN", -1.0)
    network, believed = RemoteClassifier("http://127.0.0.1:9"), 0
    heard = services["gated"].classifier.predict(clip, maps="all")
    true = {"/v1/inside": told, "/v1/maps": seen, "/v1/models": client.get("/v1/models").json()}
    for _ in range(400):
        place = answers = copy.deepcopy(true)
        while place:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if place is not answers and (rng.random() < 0.2 or not isinstance(place[key], dict | list)):
                place[key] = rng.choice(odd)
                break
            place = place[key]
        monkeypatch.setattr(network.line, "_ask", lambda path, *_, answers=answers: answers[path])
        there = RemoteGlass(network, network.line)
        try:
            network.models()
            there.look(clip, "layer4", label="dog", window=0), there.gates(clip, 0), there.widest(clip, 0)
            there.kernels(), there.atlas()
            strip(there.anatomy(), heard)
            believed += 1
        except (NotAtHand, Unavailable) as why:
            assert "makes no sense" in str(why) or "has another network" in str(why)
    assert 0 < believed < 300


def test_an_atlas_from_elsewhere_names_no_file_of_this_computer(client: TestClient, clip: Clip):
    whole = client.get("/v1/inside", params={"include": "anatomy,atlas"}).json()
    for file in ("/etc/hostname", "../../etc/hostname"):
        told = copy.deepcopy(whole)
        told["atlas"]["clips"][0]["file"] = file
        with Rude(says(told)) as server, pytest.raises(NotAtHand, match="makes no sense"):
            RemoteClassifier(server.url).glass("").atlas()
    told = copy.deepcopy(whole)
    told["atlas"]["examples"] = False
    told["atlas"]["clips"][0]["file"] = "etc/hostname"
    with Rude(says(told)) as server:
        atlas, _ = RemoteClassifier(server.url).glass("").atlas()
    assert not atlas.path(0).exists() and not atlas.path(1).exists()


# --- which networks there are ----------------------------------------------------------------------------------------


def test_a_page_lists_the_networks_that_answer_it(services: dict[str, Service], elsewhere: tuple[str, Classifier]):
    url, classifier = elsewhere
    far = WithFallback(RemoteClassifier(url), lambda: services["gated"])
    told = listed(far)
    assert [x["name"] for x in told] == ["tiny", "gated"] and told == far.first.models()
    (default,) = (x for x in told if x["default"])
    assert default["network"] == classifier.network and default["parameters"] == classifier.checkpoint.parameter_count
    gone = WithFallback(RemoteClassifier("http://127.0.0.1:9"), lambda: services["tiny"])
    here = listed(gone)
    assert [(x["name"], x["default"]) for x in here][:2] == [("given", True), (checkpoint.DEFAULT.parent.name, False)]
    assert here == listed(services["tiny"]) == listed(services["tiny"].classifier)


def test_what_programs_are_shown_says_whose_it_is(services: dict[str, Service]):
    gone = WithFallback(RemoteClassifier("http://127.0.0.1:9"), lambda: services["tiny"])
    seen, why = into(gone)
    assert seen.anatomy().network == services["tiny"].network and "http://127.0.0.1:9 cannot be reached" in why
    assert into(services["tiny"])[1] == ""
