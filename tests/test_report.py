"""A saved report: one file that opens offline, tells what the network said, and runs nobody else's script."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect, sync_playwright

from cnn.audio import Clip
from cnn.classifier import Classifier
from cnn.labels import spoken
from cnn.pictures import percent
from cnn.report import wav
from cnn.ui.keep import InHand, written

EVIL = "<img src=x onerror=evil()>\"'</script><script>evil()</script>.wav"


def noise(seconds: float, rate: int, peak: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-peak, peak, round(seconds * rate)).astype(np.float32)


@pytest.mark.parametrize(
    ("rate", "peak", "played", "loudest"),
    [(44_100, 0.25, 44_100, 0.25), (44_100, 3, 44_100, 1.0), (192_000, 0.25, 48_000, None), (1_000, 0.2, 8_000, None)],
)
def test_what_is_played_is_what_was_heard_and_as_loud(rate: int, peak: float, played: int, loudest: float | None):
    clip = Clip(noise(1, rate, peak), rate)
    samples, got = soundfile.read(io.BytesIO(wav(clip)), dtype="float32")
    assert (got, len(samples)) == (played, played)
    if loudest is not None:
        assert samples == pytest.approx(clip.samples / np.abs(clip.samples).max() * loudest, abs=1e-3)


def test_a_report_opens_offline_and_no_name_becomes_a_script(
    tiny_classifier: Classifier, chromium: str, tmp_path: Path
):
    clip = Clip(noise(7, 16_000, 0.5), 16_000, name=EVIL)
    prediction = tiny_classifier.predict(clip, maps="all")
    text = written(tiny_classifier, InHand(prediction, EVIL, "dog"), 'https://sounds.example/?example=dog&x="><b>')
    assert len(text) < 4_000_000
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(offline=True).new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: asked.append(str(error)))
        page.goto(file.as_uri())
        expect(page.locator(".time")).to_have_text("0.0 / 7.0 s")
        expect(page.locator("h1")).to_have_text(EVIL)
        best = prediction.labels[0]
        expect(page.locator("#name")).to_have_text(spoken(best.name))
        expect(page.locator(".sure")).to_have_text(f"{percent(best.probability)} sure")
        page.click("summary")
        rows = page.locator("details tr").all_inner_texts()[1:]
        told = page.locator("main").inner_text()
        alts = page.evaluate("[...document.images].filter((i) => i.offsetWidth).map((i) => i.alt.slice(0, 5))")
        link = page.locator("a[rel=noreferrer]").get_attribute("href")
        browser.close()
    assert [url for url in asked if not url.startswith((file.as_uri(), "data:", "blob:"))] == []
    assert link == 'https://sounds.example/?example=dog&x="><b>'
    assert alts[:4] == ["Bars ", "Whole", "Wavef", "Mel s"] and len(alts) >= 9
    assert [row.split("\t") for row in rows] == [
        [spoken(x.name), percent(x.probability), f"{x.probability:.4g}", f"{x.logit:.4f}"] for x in prediction.labels
    ]
    for known in (prediction.network, "16 kHz", "torch 2.", "Python 3.", "112000 samples at 16000 Hz"):
        assert known in told


def test_a_report_of_silence_plays_and_has_no_link_that_is_none(tiny_classifier: Classifier):
    prediction = tiny_classifier.predict(Clip(np.zeros(8_000, np.float32), 16_000, name="still.wav"), maps="all")
    text = written(tiny_classifier, InHand(prediction, "still.wav"), "https://sounds.example/?example=dog")
    assert "nothing to hear" in text and "sounds.example" not in text
    assert "javascript:" not in written(tiny_classifier, InHand(prediction, "a", "dog"), "javascript:evil()")
    sound = re.search(r'src="data:audio/wav;base64,([^"]+)"', text)
    assert sound and soundfile.info(io.BytesIO(base64.b64decode(sound[1]))).duration == 0.5
