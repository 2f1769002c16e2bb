"""What programs call on the page by name beside /classify: /maps, /explain and /models, with gradio_client and MCP."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file

from cnn import checkpoint, inside
from cnn.audio import load
from cnn.classifier import Classifier
from cnn.serve import connection
from cnn.serve.remote import RemoteClassifier, WithFallback
from cnn.serve.service import Service
from cnn.ui.page import build_page
from cnn.ui.theme import serving
from tests.standins.asking import DOG
from tests.standins.rude import served


@pytest.fixture(scope="module")
def service(tiny_classifier: Classifier) -> Iterator[Service]:
    service = Service(tiny_classifier)
    yield service
    service.close()


@pytest.fixture(scope="module")
def page(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gr.Blocks]:
    """Its network is elsewhere."""
    with pytest.MonkeyPatch.context() as patch, served({"far": lambda: service}, "far") as url:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads").resolve()))
        network = WithFallback(RemoteClassifier(url), lambda: service)
        page = build_page(lambda: network)
        page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **serving())
        yield page
        page.close()


@pytest.fixture(scope="module")
def client(page: gr.Blocks) -> Client:
    return Client(page.local_url, verbose=False)


def test_maps_are_the_rows_of_a_look(client: Client, tiny_classifier: Classifier):
    clip = load(DOG)
    answer = client.predict(handle_file(DOG), "layer3", "9, 2", "rain", api_name="/maps")
    look = inside.look(tiny_classifier, clip, "layer3", label="rain", channels=(9, 2))
    assert (answer["tap"], answer["label"], answer["exact"]) == ("layer3", "rain", False)
    assert (answer["network"], answer["notes"]) == (tiny_classifier.network, [])
    np.testing.assert_allclose(answer["mean"], look.mean, rtol=1e-3, atol=1e-4)
    assert [c["index"] for c in answer["channels"]] == [9, 2]
    for there, here in zip(answer["channels"], look.channels, strict=True):
        np.testing.assert_allclose(there["values"], here.values, rtol=1e-3, atol=1e-4)
    assert answer["shares"] == pytest.approx(look.shares.tolist(), abs=1e-4)


def test_without_channels_come_the_numbers_of_those_that_matter_most(client: Client, tiny_classifier: Classifier):
    answer = client.predict(handle_file(DOG), api_name="/maps")
    look = inside.look(tiny_classifier, load(DOG), "layer4")
    assert (answer["tap"], answer["label"], answer["exact"]) == ("layer4", look.label, True)
    assert [c["index"] for c in answer["channels"]] == [c.index for c in look.channels]
    assert not any("values" in c for c in answer["channels"]) and len(json.dumps(answer)) < 4000


@pytest.mark.parametrize(
    ("asked", "words"),
    [(("layer9",), "tap 'layer9' is unknown"), (("layer1", "x"), "channels has 'x'"),
     (("layer1", "", "woof"), "label 'woof' is unknown"), (("layer1", "", "", 2), "there is no window 2")],
)  # fmt: skip
def test_what_there_is_not_is_said(asked: tuple, words: str, client: Client):
    with pytest.raises(Exception, match=re.escape(words)):
        client.predict(handle_file(DOG), *asked, api_name="/maps")


def test_of_the_networks_in_the_box_only_the_pages_own_is_not_offered_to_compare_with(tiny_classifier: Classifier):
    def offered(network: Classifier) -> set[str]:
        (choices,) = (f.fn for f in build_page(lambda: network).fns.values() if f.api_name == "inside_others")
        return {value for _, value in choices(None, None).choices if value.startswith("network:")}

    last = checkpoint.in_box()[-1]
    known, page = {f"network:{path.parent.name}" for path in checkpoint.in_box()}, checkpoint.load(last)
    assert known - offered(Classifier(page, "cpu")) == {f"network:{last.parent.name}"}
    as_good = dataclasses.replace(tiny_classifier.checkpoint, metrics=page.metrics)
    assert offered(Classifier(as_good, "cpu")) == known


def test_the_networks_that_answer_are_listed(client: Client, tiny_classifier: Classifier):
    (told,) = client.predict(api_name="/models")
    assert (told["name"], told["default"], told["network"]) == ("far", True, tiny_classifier.network)
    assert told["parameters"] == tiny_classifier.checkpoint.parameter_count


def test_the_networks_here_are_listed_where_none_elsewhere_answers(service: Service, monkeypatch):
    monkeypatch.setattr(connection, "PAUSE", 0.01)
    best = checkpoint.DEFAULT.parent.name
    for network in (service, WithFallback(RemoteClassifier("http://127.0.0.1:9"), lambda: service)):
        (models,) = (f.fn for f in build_page(lambda n=network: n).fns.values() if f.api_name == "models")
        assert [(x["name"], x["default"]) for x in models()][:2] == [("given", True), (best, False)]

    def none() -> Service:
        raise ValueError("/srv/secret.pth does not exist")

    (models,) = (f.fn for f in build_page(none).fns.values() if f.api_name == "models")
    assert [(x["name"], x["default"]) for x in models()] == [(p.parent.name, False) for p in checkpoint.in_box()]


def test_programs_are_told_who_answered_in_whose_place(service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "PAUSE", 0.01)
    page = build_page(lambda: WithFallback(RemoteClassifier("http://127.0.0.1:9"), lambda: service))
    (maps,) = (f.fn for f in page.fns.values() if f.api_name == "maps")
    answer = maps(str(DOG), "layer4", "", "", None)
    assert answer["network"] == service.network
    assert re.match("The network here answers, as http://127.0.0.1:9 cannot be reached", answer["notes"][0])


def mcp(client: Client, method: str, **parameters: Any) -> dict[str, Any]:
    """One call of the Model Context Protocol over HTTP."""
    call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
    accept = {"Accept": "application/json, text/event-stream"}
    reply = httpx.post(f"{client.src}gradio_api/mcp/", json=call, headers=accept, timeout=120)
    return json.loads(re.search(r"^data: (.*)$", reply.text, re.MULTILINE)[1])["result"]


def test_language_models_find_both_with_examples(client: Client, tiny_classifier: Classifier):
    tools = {tool["name"]: tool for tool in mcp(client, "tools/list")["tools"]}
    properties = tools["maps"]["inputSchema"]["properties"]
    assert list(properties) == ["sound", "tap", "channels", "label", "window"]
    assert all(properties[name]["description"] for name in properties)
    assert "what each of that tap's" in tools["maps"]["description"]
    told = client.view_api(return_format="dict")["named_endpoints"]["/maps"]["parameters"]
    assert [p["example_input"] for p in told[1:]] == ["layer4", "3,17", "dog", 0]
    assert [p["parameter_has_default"] for p in told] == [False, True, True, True, True]
    why = client.view_api(return_format="dict")["named_endpoints"]["/explain"]["parameters"]
    assert [p["example_input"] for p in why[1:]] == ["dog", "cat", "hirescam", "layer3", 0]
    assert [p["parameter_has_default"] for p in why] == [False, True, True, True, True, True]
    kept = httpx.post(f"{client.src}gradio_api/upload", files={"files": ("a.ogg", DOG.read_bytes())}).json()[0]
    sound = f"{client.src}gradio_api/file={kept}"
    answer = mcp(client, "tools/call", name="maps", arguments={"sound": sound, "tap": "layer2"})
    assert re.search("tap.: .layer2", answer["content"][0]["text"]) and not answer.get("isError")
    said = mcp(client, "tools/call", name="explain", arguments={"sound": sound, "method": "hirescam"})
    assert "without it" in said["content"][0]["text"] and not said.get("isError")
    elsewhere = mcp(client, "tools/call", name="maps", arguments={"sound": "https://example.org/a.wav"})
    assert elsewhere["isError"] and "Only uploads are heard" in elsewhere["content"][0]["text"]
