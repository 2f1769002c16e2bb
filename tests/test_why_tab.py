"""The Why tab without a browser: what it asks the network for, what it says, and that nothing is asked twice."""

import base64
import html
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile

from cnn import cam
from cnn.anatomy import anatomy
from cnn.audio import Clip
from cnn.classifier import Classifier
from cnn.explain import METHODS, Explanation, explain
from cnn.serve import glass
from cnn.ui import evidence, why
from cnn.ui.keep import InHand, written
from cnn.ui.page import build_page
from cnn.ui.why import METHOD_WORDS, Room, layers
from cnn.whatif import History

SERVED: dict[str, Any] = {}  # by the page, under "network"
EVIL = "<img src=x onerror=evil()>.wav"


class Visitor:
    """One who clicks: calls the tab's own handlers, and keeps what they update."""

    def __init__(self, page: gr.Blocks) -> None:
        self._handlers = {f.api_name: f.fn for f in page.fns.values()}
        self.room: Room | None = None
        self.shown: dict[str, Any] = {}
        self.files: dict[str, Path] = {}
        self.offered: dict[str, list[str]] = {}

    def _see(self, updates: Any) -> str:
        """All that one answer shows, as text."""
        said = []
        for update in updates:
            for component, value in update.items():
                if isinstance(component, gr.State):
                    self.room = value
                elif isinstance(component, gr.File):
                    self.files = {Path(p).stem.split()[-1]: Path(p) for p in value or ()}
                else:
                    if isinstance(value, gr.Radio):
                        self.offered[component.elem_id] = [text for text, _ in value.choices]
                    value = value.get("value") if isinstance(value, dict) else getattr(value, "value", value)
                    self.shown[component.elem_id] = value
                    said.append(str(value))
        return html.unescape(" ".join(said))

    def open(self, kept: InHand | None) -> str:
        return self._see(self._handlers["why"](kept, self.room, False))

    def choose(self, what: str, value: str | None) -> str:
        return self._see(self._handlers[f"why_{what}"](value, self.room, False))

    def ask(self, **what: Any) -> str:
        return self._see(self._handlers["why_change"](gr.EventData(None, what), self.room, False))


@pytest.fixture(scope="module")
def page(tiny_classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> gr.Blocks:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads").resolve()))
        SERVED["network"] = tiny_classifier
        return build_page(lambda: SERVED["network"])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every question that reaches the network."""
    questions: list[dict[str, Any]] = []

    def counted(classifier: Classifier, clip: Clip, **question: Any) -> Explanation:
        questions.append(question)
        return explain(classifier, clip, **question)

    monkeypatch.setattr(glass, "explain", counted)
    return questions


def in_hand(classifier: Classifier, clip: Clip) -> InHand:
    return InHand(classifier.predict(clip, maps="all"), clip.name)


@pytest.fixture
def visitor(page: gr.Blocks, tiny_classifier: Classifier, tone: Clip, asked: list) -> Visitor:
    visitor = Visitor(page)
    visitor.open(in_hand(tiny_classifier, tone))
    return visitor


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float64")[0]


def test_the_first_name_is_explained_in_words_numbers_picture_and_sound(visitor: Visitor, asked: list):
    assert len(asked) == 1
    room = visitor.room
    explanation = room.ask(room.question, room.history)
    assert explanation.label == room.prediction.labels[0].name
    drawn, verdict = visitor.shown["why-map"], visitor.shown["why-verdict"]
    where = html.escape(explanation.where)
    words = [evidence._words(text) for text in (explanation.where, explanation.verdict)]
    assert where in re.findall('alt="([^"]*)"', drawn)[-1], "for who cannot see the picture"
    assert words[0][1:] in re.sub("<figure.*</figure>", "", drawn), "and for who can"
    assert words[1] in verdict
    shown = re.findall(r'<tr class="(\w+)">.*?<b>([^<]*)</b>', verdict)
    assert shown == [(p.name, evidence.percent(p.probability)) for p in explanation.parts]
    heard = {name: samples(path) for name, path in visitor.files.items()}
    assert list(heard) == ["original", "evidence", "remainder", "random"]
    rest = heard["original"] - heard["evidence"] - heard["remainder"]
    assert np.abs(rest).max() < 1e-3 * np.abs(heard["original"]).max()


def test_every_method_and_layer_that_can_be_chosen_has_its_sentence(visitor: Visitor, tiny_classifier: Classifier):
    assert set(METHODS) <= set(METHOD_WORDS)
    taps = layers(anatomy(tiny_classifier))
    assert list(taps) == cam.taps(tiny_classifier) == ["layer2", "layer3"]
    for text in (*(METHOD_WORDS[name] for name in METHODS), *taps.values()):
        assert text in html.unescape(visitor.shown["why-words"])
    for what, value in (("method", "layercam"), ("layer", "layer2")):
        visitor.choose(what, value)
    assert visitor.shown["why-layer"] == "layer2"
    assert visitor.room.question.method == "layercam" and visitor.room.question.tap == "layer2"


def test_another_class_and_why_one_and_not_the_other(visitor: Visitor, asked: list):
    first, second, third = (x.name for x in visitor.room.prediction.labels[:3])
    said = visitor.choose("against", second)
    assert f"and not {why.spoken(second)}?" in said and asked[-1]["against"] == second
    visitor.shown["why-against"] = first  # as the browser has it
    assert "two different classes" in visitor.choose("against", first)
    assert visitor.room.question.against == visitor.shown["why-against"] == second, "what was answered stays"
    visitor.choose("label", second)
    assert (visitor.room.question.label, visitor.room.question.against) == (second, None)
    visitor.choose("top", third)
    assert asked[-1]["label"] == third and visitor.shown["why-label"] == third


def test_a_change_is_heard_and_undo_gives_the_same_answer_without_asking_again(visitor: Visitor, asked: list):
    before = {name: visitor.shown[name] for name in ("why-map", "why-verdict")}
    as_it_came = samples(visitor.files["original"])
    said = visitor.ask(edit="noise", below=10)
    assert "white noise added, 10 dB weaker" in said and len(asked) == 2
    assert visitor.shown["why-map"] != before["why-map"]
    now = visitor.room.ask(visitor.room.question, visitor.room.history).original.prediction.labels
    said_now = [f"{why.spoken(x.name)} ({why.percent(x.probability)})" for x in now[:4]]
    assert visitor.offered["why-top"] == said_now, "the classes follow the change too"
    assert np.array_equal(samples(visitor.files["before"]), as_it_came)
    assert np.abs(samples(visitor.files["original"]) - as_it_came).max() > 0.05
    changed = dict(visitor.shown)
    visitor.ask(step="undo")
    assert {name: visitor.shown[name] for name in before} == before
    visitor.ask(step="redo")
    assert {name: visitor.shown[name] for name in before} == {name: changed[name] for name in before}
    assert len(asked) == 2, "what is known is not asked again"
    assert "nothing to redo" in visitor.ask(step="redo")
    assert "No change yet" in visitor.ask(step="reset")


def test_the_sound_before_its_changes_is_told_of_the_class_that_is_asked_about(visitor: Visitor):
    first, second = visitor.room.prediction.labels[:2]
    visitor.ask(edit="noise", below=10)
    row = '<tr class="before">.*?<b>([^<]*)</b>'
    assert re.findall(row, visitor.shown["why-verdict"]) == [why.percent(first.probability)]
    visitor.choose("label", second.name)
    assert re.findall(row, visitor.shown["why-verdict"]) == [why.percent(second.probability)]
    assert why.percent(first.probability) != why.percent(second.probability)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edit": "band", "low": 3000, "high": 300}, "does not lie below"),
        ({"edit": "band", "low": None, "high": None}, "at least one edge"),
        ({"edit": "gain", "db": None}, "Fill in every number"),
        ({"edit": "gain", "db": True}, "Fill in every number"),
        ({"edit": "gain", "db": float("inf")}, "Fill in every number"),
        ({"edit": "explode"}, "no such change"),
        ({"step": "onwards"}, "no such change"),
        ({"edit": "erase", "start": 0, "end": 5, "low": 0, "high": 22050}, "Nothing would be left to hear"),
    ],
    ids=repr,
)
def test_a_change_that_makes_no_sense_is_told_and_not_made(visitor: Visitor, change: dict[str, Any], words: str):
    assert words in visitor.ask(**change)
    assert visitor.room.history.done == ()


def test_what_does_not_hold_is_said_in_those_words_and_not_by_colour_alone(visitor: Visitor):
    room = visitor.room
    explanation = room.ask(room.question, room.history)
    sentence = "Careful: this explanation is not reliable for this clip, for <reasons>."
    for reliable, verdict in ((True, "It holds."), (False, sentence)):
        told = evidence.judgement(replace(explanation, reliable=reliable, verdict=verdict))
        assert html.escape(verdict) in told
        assert ("Not reliable" in told) is not reliable and ("passes the test" in told) is reliable


def test_of_a_long_sound_the_window_that_is_shown_is_explained_in_its_place(
    page: gr.Blocks, tiny_classifier: Classifier, asked: list
):
    quiet = np.zeros(12 * 16_000, np.float32)
    quiet[6 * 16_000 : 7 * 16_000] = np.random.default_rng(0).normal(0, 0.2, 16_000)
    kept = in_hand(tiny_classifier, Clip(quiet, 16_000, EVIL))
    visitor = Visitor(page)
    said = visitor.open(kept)
    start = float(kept.prediction.starts[kept.prediction.window])
    assert start > 0 and f'data-start="{start:g}"' in visitor.shown["why-verdict"]
    assert f"{start:.1f} to {start + 5:.1f} s" in said
    visitor.ask(edit="erase", start=start, end=start + 2, low=0, high=4000)
    assert [question["window"] for question in asked] == [kept.prediction.window] * 2, "whatever is changed"
    assert len(samples(visitor.files["evidence"])) == 5 * 16_000
    assert "<img src=x" not in "".join(map(str, visitor.shown.values()))


@pytest.mark.parametrize(("rate", "played"), [(4000, 8000), (96_000, 48_000)])
def test_what_no_browser_plays_is_resampled_for_playing(
    page: gr.Blocks, tiny_classifier: Classifier, rate: int, played: int
):
    visitor = Visitor(page)
    sound = np.random.default_rng(0).normal(0, 0.1, rate).astype(np.float32)
    visitor.open(in_hand(tiny_classifier, Clip(sound, rate, "odd.wav")))
    assert {soundfile.info(path).samplerate for path in visitor.files.values()} == {played}


def test_the_report_carries_what_is_shown_and_without_the_tab_the_first_names_evidence(
    page: gr.Blocks, visitor: Visitor, tiny_classifier: Classifier, asked: list
):
    kept, second = visitor.room.hand, visitor.room.prediction.labels[1].name
    plain = written(tiny_classifier, kept, "")
    assert asked[-1]["label"] == asked[0]["label"], "Save report on the Listen tab"
    visitor.choose("label", second)
    visitor.ask(edit="gain", db=12)  # beyond full scale: all is turned down by the same
    path, trouble = next(f.fn for f in page.fns.values() if f.api_name == "why_report")(visitor.room, "")
    assert trouble == ""
    chosen, room = Path(path).read_text(encoding="utf-8"), visitor.room
    assert "12 dB louder" in chosen and "12 dB louder" not in plain
    for text, question, history in (
        (plain, replace(room.question, label=asked[0]["label"]), History()), (chosen, room.question, room.history)
    ):  # fmt: skip
        explanation = room.ask(question, history)
        section = text[text.index('<section class="why">') :]
        assert html.escape(evidence.title(explanation)) in section and evidence._words(explanation.verdict) in section
        heard = re.findall('<audio[^>]* src="data:audio/wav;base64,([^"]*)"', section)
        data = [soundfile.read(io.BytesIO(base64.b64decode(x)), dtype="float32")[0] for x in heard]
        assert [len(x) for x in data] == [5 * 44_100] * 3
        whole = explanation.original.clip.samples * explanation.gain
        assert data[0] == pytest.approx(whole, abs=1e-4) and data[1] + data[2] == pytest.approx(whole, abs=1e-4)
        assert len(text) < 6_000_000


def test_before_a_sound_and_of_silence_there_is_a_sentence_and_nothing_is_computed(
    page: gr.Blocks, tiny_classifier: Classifier, asked: list
):
    visitor = Visitor(page)
    assert "Hear one on the <b>Listen</b> tab" in visitor.open(None)
    silence = in_hand(tiny_classifier, Clip(np.zeros(16_000, np.float32), 16_000, "still.wav"))
    assert "nothing to explain" in visitor.open(silence)
    assert "hear it again" in visitor.ask(step="undo") and asked == []


def test_a_network_elsewhere_that_does_not_explain_says_so(
    page: gr.Blocks, tiny_classifier: Classifier, tone: Clip, monkeypatch: pytest.MonkeyPatch
):
    class Elsewhere:
        def predict(self, sound: Clip, *, maps: str = "none") -> Any:
            return tiny_classifier.predict(sound, maps=maps)

    monkeypatch.setitem(SERVED, "network", Elsewhere())
    visitor = Visitor(page)
    assert "another server" in visitor.open(in_hand(tiny_classifier, tone))
    assert visitor.room is None
