"""One clock: what sounds lies under the cursor, in every picture, and a hover reads the very cell that is shown.

In a saved report, which has the page's own clock and pictures; the page itself is in test_browser.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cnn.audio import Clip
from cnn.classifier import Classifier, Prediction
from cnn.ui.keep import InHand, written

ONSET = 1.2  # seconds; silence before, a tone after
ADDRESS = "http://report.test/"
ARGUMENTS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --mute-audio "
    "--autoplay-policy=no-user-gesture-required"
).split()
CLOCKED = "clock.audio.readyState > 0 && document.querySelectorAll('.plane').length > 6"
CURSORS = """() => {
  const shown = (alt) => document.querySelector(`.timed:has(img[alt^='${alt}'])`);
  return ["Waveform", "Mel", "Feature map layer2,"].map((alt) => {
    const figure = shown(alt);
    const [plane, cursor] = [".plane", ".cursor"].map((name) => figure.querySelector(name).getBoundingClientRect());
    return Number(figure.dataset.start) + ((cursor.left - plane.left) / plane.width) * figure.dataset.seconds;
  });
}"""


@pytest.fixture(scope="module")
def prediction(tiny_classifier: Classifier) -> Prediction:
    """Of five seconds: digital silence, then from ONSET on a tone that falls."""
    seconds = np.arange(5 * 22_050) / 22_050
    tone = 0.4 * np.sin(2 * np.pi * (3000 - 400 * seconds) * seconds) * (seconds >= ONSET)
    return tiny_classifier.predict(Clip(tone.astype(np.float32), 22_050, name="late.wav"), maps="all")


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, prediction: Prediction, tiny_classifier: Classifier) -> Iterator[Page]:
    html = written(tiny_classifier, InHand(prediction, "late.wav"), "")
    context = browser.new_context(viewport={"width": 900, "height": 800}, bypass_csp=True)  # for wait_for_function
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route("**", lambda route: route.fulfill(body=html, content_type="text/html; charset=utf-8"))
    page.goto(ADDRESS)
    page.wait_for_function(CLOCKED)
    yield page
    context.close()
    assert errors == []


def x_of(page: Page, alt: str, fraction: float, up: float = 0.5) -> tuple[float, float]:
    """Where on the screen a place of a picture lies: from left and from the foot, 0 to 1."""
    plane = page.locator(f".timed:has(img[alt^='{alt}']) .plane")
    plane.evaluate("(plane) => plane.scrollIntoView({ block: 'center' })")
    box = plane.bounding_box()
    assert box is not None
    return box["x"] + fraction * box["width"], box["y"] + (1 - up) * box["height"]


def test_the_cursor_is_where_the_sound_is_in_every_picture(page: Page):
    # after each frame, when what was drawn is what is seen
    seen = page.evaluate(f"""() => new Promise((done) => {{
      const seen = [];
      const cursors = {CURSORS};
      const look = () => {{
        if (clock.playing && clock.time() > 0) seen.push([clock.time(), ...cursors()]);
        if (clock.time() < 2.5) requestAnimationFrame(() => setTimeout(look));
        else {{ clock.pause(); done(seen); }}
      }};
      document.querySelector("[data-do=play]").click();
      look();
    }})""")
    times, drawn = np.array(seen)[:, 0], np.array(seen)[:, 1:]
    assert len(times) > 10 and times[-1] > 2.4
    errors = np.abs(drawn - times[:, None])
    worst = f"median {np.median(errors):.3f}, at most {errors.max():.3f} s in {len(times)} frames"
    assert np.percentile(errors, 90, axis=0).max() < 0.05, worst
    for at in (0.0, 1.0, 4.99):  # and exactly there when it stands
        page.evaluate(f"clock.seek({at})")
        page.wait_for_function(f"({CURSORS})().every((time) => Math.abs(time - {at}) < 0.004)")


def test_what_is_heard_lies_under_the_cursor(page: Page):
    # the onset as it comes out of the player, against the picture at that moment; the best of three, for a busy
    # machine may hear it late, while a sound that is shifted against its pictures is so every time
    drawn = page.evaluate(f"""async () => {{
      const context = new AudioContext();
      const ear = context.createScriptProcessor(512, 1, 1);
      context.createMediaElementSource(clock.audio).connect(ear);
      ear.connect(context.destination);
      await context.resume();
      const drawn = [];
      for (let k = 0; k < 3; k++) {{
        clock.seek({ONSET} - 0.5);
        clock.play();
        drawn.push(await new Promise((done) => (ear.onaudioprocess = (event) => {{
          const heard = event.inputBuffer.getChannelData(0).some((sample) => Math.abs(sample) > 0.1);
          if (heard) done(({CURSORS})());
        }})));
        ear.onaudioprocess = null;
        clock.pause();
        await new Promise((done) => setTimeout(done, 200));
      }}
      return drawn;
    }}""")
    assert np.abs(np.array(drawn) - ONSET).max(axis=1).min() < 0.05, drawn


def test_all_pictures_share_one_time_axis_to_the_pixel(page: Page):
    for width in (900, 390):
        page.set_viewport_size({"width": width, "height": 800})
        edges = page.evaluate("""[...document.querySelectorAll('.timed')].map((figure) => {
          const plane = figure.querySelector('.plane').getBoundingClientRect();
          const image = [...figure.querySelectorAll('img')].find((i) => i.offsetWidth).getBoundingClientRect();
          const [left, top, right, bottom] = figure.dataset.box.split(' ').map(Number);
          return [plane.left, plane.right, image.left + left * image.width - plane.left,
                  image.left + right * image.width - plane.right, image.top + top * image.height - plane.top,
                  image.top + bottom * image.height - plane.bottom];
        })""")
        assert len(edges) >= 7
        assert np.ptp(np.array(edges)[:, :2], axis=0).max() < 0.05
        assert np.abs(np.array(edges)[:, 2:]).max() < 0.5, "a plane covers the raster of its picture"


def test_a_click_seeks_and_tells_the_very_cell_that_is_shown(page: Page, prediction: Prediction):
    page.evaluate("document.addEventListener('clock:cell', ({detail: {figure, ...cell}}) => window.cell = cell)")
    # layer2 keeps every 8th frame and bin: column 9 is centred on frame 72, row 5 on bin 40
    values, mel = prediction.maps["layer2"], prediction.mel_config
    hop = mel.hop_length / mel.sample_rate
    page.mouse.click(*x_of(page, "Feature map layer2,", 72 * hop / 5, (40 + 0.5) / 128))
    cell: dict[str, Any] = page.evaluate("window.cell")
    assert (cell["tap"], cell["channel"], cell["row"], cell["column"]) == ("layer2", None, 5, 9)
    assert cell["value"] == pytest.approx(float(values[5, 9]), abs=2 * float(np.ptp(values)) / 65535)
    assert cell["seconds"] == pytest.approx(72 * hop)
    assert cell["hertz"] == pytest.approx(mel.centres[40], rel=1e-4)
    assert page.evaluate("clock.time()") == pytest.approx(72 * hop, abs=0.01)
    page.mouse.move(*x_of(page, "Mel", 0.5, 0.25))
    expect(page.locator(".reading")).to_contain_text(" dB · 2.50 s · ")
    page.mouse.move(*x_of(page, "Waveform", 0.5))
    expect(page.locator(".reading")).to_have_text("2.50 s")


def test_a_stretch_is_dragged_heard_alone_looped_and_cleared(page: Page):
    page.mouse.move(*x_of(page, "Mel", 0.5))
    page.mouse.down()
    page.mouse.move(*x_of(page, "Mel", 0.45), steps=2)
    page.mouse.move(*x_of(page, "Mel", 0.4), steps=2)
    page.mouse.up()
    expect(page.locator(".chosen output")).to_have_text("2.00 to 2.50 s")
    shades = page.evaluate("""[...document.querySelectorAll('.timed')].map((figure) => {
      const plane = figure.querySelector('.plane').getBoundingClientRect();
      const shade = figure.querySelector('.stretch').getBoundingClientRect();
      return [(shade.left - plane.left) / plane.width, (shade.right - plane.left) / plane.width];
    })""")
    assert np.array(shades) == pytest.approx(np.tile([0.4, 0.5], (len(shades), 1)), abs=0.003)
    page.evaluate("""() => new Promise((done) => {
      clock.audio.addEventListener("pause", done, { once: true });
      document.querySelector("[data-do=alone]").click();
    })""")
    assert page.evaluate("clock.time()") == pytest.approx(2.5, abs=0.001)
    assert page.locator("[data-do=name]").is_hidden(), "there is no network in a report"
    page.click("[data-do=loop]")
    page.click("[data-do=play]")
    times = page.evaluate("""() => new Promise((done) => {
      const times = [];
      const look = () => times.push(clock.time()) < 40 ? setTimeout(look, 40) : done(times);
      setTimeout(look, 40);
    })""")
    assert min(times) >= 1.99 and max(times) < 2.65
    assert (np.diff(times) < -0.2).sum() >= 2, "it comes round again"
    page.click("[data-do=clear]")
    expect(page.locator(".chosen")).to_be_hidden()


def test_the_clock_goes_by_keyboard(page: Page):
    page.keyboard.press("Space")  # nothing has the focus
    page.wait_for_function("clock.playing")
    page.focus(".seek")
    page.keyboard.press("Space")
    page.wait_for_function("!clock.playing")
    page.keyboard.press("End")
    assert page.evaluate("clock.time()") == pytest.approx(5, abs=0.01)
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("PageUp")
    expect(page.locator(".seek")).to_have_attribute("aria-valuetext", "1.30 of 5.00 seconds")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowLeft")
    expect(page.locator(".chosen output")).to_have_text("1.30 to 1.60 s")
    page.keyboard.press("ArrowRight")  # a move without shift: the next stretch begins elsewhere
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator(".chosen output")).to_have_text("1.70 to 1.80 s")
    page.keyboard.press("Escape")
    assert page.evaluate("clock.stretch") is None
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator(".chosen output")).to_have_text("1.80 to 1.90 s")
    page.mouse.move(*x_of(page, "Mel", 0.47))
    page.mouse.down()
    page.mouse.move(*x_of(page, "Mel", 0.613), steps=3)
    page.mouse.up()
    begin, end = page.evaluate("[clock.stretch.from, clock.stretch.to]")
    assert (begin, end) == pytest.approx((2.35, 3.065), abs=0.02)
    page.keyboard.press("Shift+ArrowLeft")  # from where the cursor stands, the other end stays
    assert page.evaluate("[clock.stretch.from, clock.stretch.to]") == pytest.approx([begin - 0.1, end], abs=0.001)
    assert not math.isnan(page.evaluate("Number(document.querySelector('.seek').ariaValueMax)"))
