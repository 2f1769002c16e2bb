"""The Inside tab without a browser: what it says of any network, that its numbers are the network's, whose network is
seen by whom."""

import base64
import html
import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from cnn.anatomy import Anatomy, anatomy
from cnn.atlas import NAME, examples, make, write
from cnn.audio import Clip
from cnn.checkpoint import Checkpoint, CheckpointError, load, save
from cnn.classifier import Classifier
from cnn.labels import ESC50
from cnn.mel import MEL_16K
from cnn.model import SE_FPN, AudioCNN
from cnn.ui import panels
from cnn.ui.figures import scale_of
from cnn.ui.glass import LocalGlass, NotAtHand, glass
from cnn.ui.guests import Guests
from cnn.ui.inside import Room, View, _moved, _shown, _words, tap_of
from cnn.ui.keep import InHand
from cnn.ui.said import NoSuch
from cnn.ui.stops import part_of, stop_words, walk
from cnn.ui.strip import strip


@pytest.fixture(scope="module")
def pyramid_classifier() -> Classifier:
    """Gates, pyramid and a deep head, small and untrained."""
    config = replace(SE_FPN, width=4, depths=(1, 1, 1, 1), fpn_channels=8, head_hidden=(16, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Classifier(Checkpoint(config, MEL_16K, ESC50, AudioCNN(config).state_dict()), "cpu")


def room_of(classifier: Classifier, clip: Clip) -> Room:
    seen = LocalGlass(classifier)
    prediction = seen.predict(clip)
    return Room(InHand(prediction, "tone"), None, lambda: seen, prediction, seen.anatomy())


@pytest.fixture(params=["tiny_classifier", "pyramid_classifier"])
def room(request: pytest.FixtureRequest, tone: Clip) -> Room:
    return room_of(request.getfixturevalue(request.param), tone)


def maps_of(drawn: str) -> dict[tuple[str, str | None], np.ndarray]:
    """What a hover reads in every map of a piece of the page, by tap and channel."""
    found = {}
    for attributes in re.findall(r"<figure class=\"picture timed\" ([^>]*)>", drawn):
        told = {k: html.unescape(v) for k, v in re.findall(r'data-(\w+)="([^"]*)"', attributes)}
        matrix = json.loads(told["map"])
        steps = np.frombuffer(base64.b64decode(matrix["data"]), "<u2").reshape(matrix["shape"]) / 65535
        values = matrix["low"] + (matrix["high"] - matrix["low"]) * steps
        found[told["tap"], told.get("channel")] = values
    return found


def test_a_kernel_is_drawn_with_pitch_upwards_and_grey_for_zero():
    kernel = np.zeros((3, 3), np.float32)
    kernel[0, 2], kernel[2, 0] = 2.0, -1.0  # lowest pitch, last frame; highest pitch, first frame
    (drawn,) = re.findall('src="data:image/png;base64,([^"]*)"', panels.kernels(kernel[None], None))
    grey = imread(io.BytesIO(base64.b64decode(drawn)))[:, :, 0]
    wanted = np.full((3, 3), 0.5)
    wanted[2, 2], wanted[0, 0] = 1.0, 0.25
    np.testing.assert_allclose(grey, wanted, atol=0.01)


def test_networks_side_by_side_are_told_of_where_their_channels_are_shown(tiny_classifier: Classifier):
    one = anatomy(tiny_classifier)
    two = replace(one, groups=2)
    told = {stop: stop_words(stop, two, tiny_classifier.mel, 50) for stop in ("conv1", "layer1.block0")}
    half = part_of(two, "conv1").shape[0] // 2
    assert "2 networks stand side by side" in told["conv1"] and f"The first {half} channels belong to" in told["conv1"]
    assert "all channels of their own network" in told["layer1.block0"]
    assert not any("network" in stop_words(stop, one, tiny_classifier.mel, 50) for stop in told)


def test_every_stop_of_the_strip_and_of_the_walk_opens_with_words_of_its_own(room: Room):
    drawn = strip(room.anatomy, room.prediction)
    asked = [json.loads(html.unescape(x))["open"] for x in re.findall(r'data-ask="([^"]*)"', drawn)]
    assert asked[0] == "picture" and asked[-1] == "head" and {p.name for p in room.anatomy.parts} <= {*asked}
    best = room.prediction.labels[0].name
    steps = walk(room.anatomy, best)
    assert steps[0].stop == "picture" and steps[-1].stop == "head" and len(steps) >= 7
    ruler = panels.Ruler(scale_of(room.prediction), False, panels.OWN)
    said = set()
    for stop in dict.fromkeys([*asked, *(step.stop for step in steps)]):
        room.view = View(stop=stop)
        large, words, _ = _shown(room, best, ruler)
        assert ("<img" in large) == (tap_of(room.view, room.anatomy) is not None)
        title = re.search("<h2>(.*?)</h2>", words)
        assert title is not None and f'data-open="{stop}"' in words
        said.add(title[1])
    assert len(said) == len(set(asked) | {"picture"})


def test_the_parameters_and_multiply_adds_on_the_strip_are_the_networks(room: Room):
    drawn = strip(room.anatomy, room.prediction)
    shown = re.findall(r"([\d.]+(?: [kMG])?) parameters<br>", drawn)
    sizes = {"k": 1e3, "M": 1e6, "G": 1e9}
    total = sum(float(n.split()[0]) * sizes.get(n.split()[-1], 1) for n in shown)
    assert total == pytest.approx(room.anatomy.parameters, rel=0.01)


def test_every_map_shown_is_the_tensor_of_a_plain_forward_pass(room: Room, tone: Clip):
    classifier = room.glass._classifier
    parts, _, _ = classifier.cut(tone)
    taps = [tap for tap in ("layer2", "fpn.p1") if tap in classifier.map_taps]
    with torch.inference_mode():
        x = classifier._front_end(torch.from_numpy(parts[room.prediction.window])[None])
        logits, maps = classifier.model(x, return_feature_maps=True)
    best = classifier.labels[int(logits[0].argmax())]
    for colours in (panels.OWN, panels.LAYER, panels.NETWORK):
        for tap in taps:
            room.view = View(stop=tap, channel=2)
            large, _, below = _shown(room, best, room.ruler(False, colours))
            shown = maps_of(large + below)
            assert len(shown) >= 5 and (tap, "2") in shown
            for (name, channel), values in shown.items():
                plain = maps[name][0].mean(0) if channel is None else maps[name][0, int(channel)]
                np.testing.assert_allclose(values, plain.numpy(), atol=1e-3)
            room.view = View(stop=tap)
            large, _, _ = _shown(room, best, room.ruler(False, colours))
            np.testing.assert_allclose(maps_of(large)[tap, None], maps[tap][0].mean(0).numpy(), atol=1e-3)
    np.testing.assert_allclose(room.glass.predict(tone).logits, logits[0].numpy(), atol=1e-4)  # looking changed nothing


def test_one_colour_scale_spans_all_that_it_says(room: Room, tone: Clip):
    classifier = room.glass._classifier
    look = room.look("layer1", room.prediction.labels[0].name)
    assert room.ruler(False, panels.OWN).limits(look) is None
    layer, network = (room.ruler(False, colours).limits(look) for colours in (panels.LAYER, panels.NETWORK))
    parts, _, _ = classifier.cut(tone)
    with torch.inference_mode():
        x = classifier._front_end(torch.from_numpy(parts[room.prediction.window])[None])
        _, maps = classifier.model(x, return_feature_maps=True)
    of_maps = [values for values in maps.values() if values.ndim == 4]
    assert layer == pytest.approx((float(maps["layer1"].min()), float(maps["layer1"].max())), abs=1e-4)
    assert network == pytest.approx((min(float(v.min()) for v in of_maps), max(float(v.max()) for v in of_maps)), 1e-4)


@pytest.mark.parametrize(
    "asked",
    [{"open": "layer9"}, {"open": 3}, {"open": "layer1.block9"}, {"channel": -1}, {"channel": 4}, {"channel": "1"}],
)
def test_what_no_button_asks_is_refused_in_words(asked: dict, tiny_classifier: Classifier):
    with pytest.raises(NoSuch):
        _moved(View(stop="layer1"), asked, anatomy(tiny_classifier), "dog")


def test_a_block_can_be_seen_before_and_after_its_relu(tiny_classifier: Classifier):
    known = anatomy(tiny_classifier)
    view = _moved(View(), {"open": "layer2.block1"}, known, "dog")
    assert tap_of(view, known) == "layer2.block1.relu"
    assert tap_of(_moved(view, {"before": True}, known, "dog"), known) == "layer2.block1.conv"


def test_a_visitors_own_network_is_kept_for_an_hour_and_few_at_a_time(tiny: Path):
    guests = Guests(most=2, kept=60)
    first, second = (guests.admit(tiny, "mine.pth") for _ in range(2))
    assert first != second and guests.seen(first) is not guests.seen(second)
    third = guests.admit(tiny, "mine.pth")
    assert len(guests) == 2 and guests.get(third) is not None
    with pytest.raises(NotAtHand, match="Load it again"):
        guests.seen(first)  # the oldest gave its place
    guests.dismiss(third)
    with pytest.raises(NotAtHand):
        guests.seen(third)
    brief = Guests(kept=0.05)
    token = brief.admit(tiny, "mine.pth")
    time.sleep(0.06)
    assert len(brief) == 0 and brief.get(token) is None


def test_what_is_no_network_or_too_much_of_one_is_refused_with_its_visitors_name_for_it(tiny: Path, tmp_path: Path):
    guests = Guests()
    text = tmp_path / "upload-1234"
    text.write_text("no network")
    with pytest.raises(CheckpointError, match=r"^mine\.pth cannot be read|^mine\.pth was not loaded") as refused:
        guests.admit(text, "mine.pth")
    assert str(tmp_path) not in str(refused.value)
    weights = load(tiny)
    deep = replace(weights.model, width=8, depths=(64, 1))
    with torch.random.fork_rng(devices=[]):
        state = AudioCNN(deep).state_dict()
    wide = replace(weights.mel, hop_length=2)  # 40,001 frames
    save(replace(weights, model=deep, mel=wide, state_dict=state), tmp_path / "slow.pth")
    with pytest.raises(CheckpointError, match="too large for this page"):
        guests.admit(tmp_path / "slow.pth", "slow.pth")
    assert len(guests) == 0


def test_a_network_elsewhere_says_why_it_cannot_be_looked_into():
    class Elsewhere:
        def predict(self, sound: Clip, *, maps: str = "none") -> None: ...

    with pytest.raises(NotAtHand, match="another server"):
        glass(Elsewhere())


def test_the_gates_are_set_against_their_average():
    drawn = panels.gates(np.array([0.9, 0.1, 0.5, 0.3]), [0.85, 0.1, 0.2, 0.6], "layer1.block0.se", most=1)
    opened, shut = re.findall(r'<th scope="row">(\d+)</th>', drawn)
    assert (opened, shut) == ("2", "3")
    assert "50 %" in drawn and "left:20.0%" in drawn


def test_words_say_how_far_a_cell_sees(tiny_classifier: Classifier, tone: Clip):
    room = room_of(tiny_classifier, tone)
    field = room.anatomy.fields["layer2"]
    room.view = View(stop="layer2")
    assert f'data-field="{field.stride} {field.size} {field.start}"' in _words(room, "dog")


def test_the_strip_needs_nothing_but_the_anatomy(room: Room):
    again = Anatomy.from_dict(json.loads(json.dumps(room.anatomy.to_dict())))
    assert strip(again, room.prediction) == strip(room.anatomy, room.prediction)


def test_an_atlas_beside_a_given_file_is_found(tiny: Path, tmp_path: Path):
    """Where `python -m cnn.atlas --model FILE` writes it."""
    weights = tmp_path / "mine.pth"
    weights.write_bytes(tiny.read_bytes())
    found, why = LocalGlass(Classifier.open(weights, "cpu")).atlas()
    assert found is None and "python -m cnn.atlas --model FILE" in why
    made = make(Classifier.open(weights, "cpu"), examples()[:3])
    write(made, tmp_path / NAME)
    found, _ = LocalGlass(Classifier.open(weights, "cpu")).atlas()
    assert found is not None and found.excites == made.excites
