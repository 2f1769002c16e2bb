"""The Inside tab in a real browser: what a visitor clicks, sees and is told."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cnn.anatomy import anatomy
from cnn.audio import load
from cnn.classifier import Classifier
from cnn.inside import look
from cnn.ui.page import build_page
from cnn.ui.panels import plain
from cnn.ui.theme import ASSETS, serving

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
DOG = ASSETS / "examples" / "dog.ogg"


@pytest.fixture(scope="module")
def url(tiny_classifier: Classifier) -> Iterator[str]:
    page = build_page(lambda: tiny_classifier)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **serving())
    yield url
    page.close()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Callable[..., Page]]:
    """Opens the page, hears the dog and goes inside. Afterwards: no script failed, nothing was asked elsewhere."""
    contexts, outside, errors = [], [], []

    def open_page(width: int = 1366, height: int = 900, hear: bool = True) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, locale="en-US")
        contexts.append(context)
        page = context.new_page()
        own = (url, url.replace("http", "ws"), "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(own) or outside.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        expect(page.locator("#sound")).to_be_visible(timeout=20_000)
        if hear:
            page.click("#example-buttons button:has-text('dog')")
            expect(page.locator("#name")).to_be_visible(timeout=20_000)
        page.click("button[role=tab]:has-text('Inside')")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert outside == []
    assert errors == []


def opened(page: Page, stop: str) -> None:
    expect(page.locator(f".stop-words[data-open='{stop}']")).to_be_visible(timeout=20_000)
    expect(page.locator("#inside-status .busy")).to_have_count(0, timeout=20_000)


def test_before_a_sound_the_tab_says_what_to_do_first(visit: Callable[..., Page]):
    page = visit(hear=False)
    expect(page.locator("#inside-empty")).to_contain_text("Hear one on the Listen tab", timeout=20_000)
    expect(page.locator("#inside-desk")).to_be_hidden()


def test_a_stage_a_channel_and_a_cell_by_mouse_and_keyboard(visit: Callable[..., Page], tiny_classifier: Classifier):
    page = visit()
    opened(page, "conv1")
    page.focus(".strip .stop:has-text('layer2')")
    page.keyboard.press("Enter")
    opened(page, "layer2")
    expect(page.locator(".strip [aria-current]")).to_contain_text("layer2")
    assert page.evaluate("document.activeElement.matches('.strip .stop')")  # the keyboard is not lost
    prediction = tiny_classifier.predict(DOG)
    seen = look(tiny_classifier, load(DOG), "layer2", label=prediction.labels[0].name, window=prediction.window)
    shares = page.locator(".channel b").all_inner_texts()
    assert [text.split()[-1] for text in shares] == [plain(abs(c.share)) for c in seen.channels]
    page.locator(".channel button").first.click()
    first = seen.channels[0].index
    expect(page.locator(f"#inside-large .timed[data-channel='{first}']")).to_be_visible(timeout=20_000)
    expect(page.locator(".channel[data-opened='true']")).to_have_count(1)

    expect(page.locator("#inside-large")).to_be_in_viewport()  # though the button stands far below
    plane = page.locator("#inside-large .plane")
    box = plane.bounding_box()
    assert box is not None
    plane.click(position={"x": 0.5 * box["width"], "y": 0.5 * box["height"]})
    frame = page.locator("#inside-sound .field")
    expect(frame).to_be_visible()
    known = anatomy(tiny_classifier)
    rows, columns = known.picture
    hop = tiny_classifier.mel.hop_length / tiny_classifier.mel.sample_rate
    column = round(2.5 / hop / known.fields["layer2"].stride)
    first, last = known.fields["layer2"].span(column, columns)
    drawn, whole = frame.bounding_box(), page.locator("#inside-sound .plane").bounding_box()
    assert drawn is not None and whole is not None
    left = (drawn["x"] - whole["x"]) / whole["width"] * tiny_classifier.mel.seconds
    assert left == pytest.approx((first - 0.5) * hop, abs=0.02)
    width = drawn["width"] / whole["width"] * tiny_classifier.mel.seconds
    assert width == pytest.approx((last - first) * hop, abs=0.03)
    page.click(".strip .stop:has-text('layer3')")
    opened(page, "layer3")
    expect(frame).to_have_count(0)


def test_the_walk_leads_from_the_picture_to_the_name_on_a_phone(visit: Callable[..., Page]):
    page = visit(width=390, height=844)
    page.click("button:has-text('Begin the walk')")
    opened(page, "picture")
    stops = int(page.locator(".walk h3").inner_text().split()[-1])
    for number in range(2, stops + 1):
        page.click(".walk button:has-text('Next')")
        expect(page.locator(".walk h3")).to_have_text(f"Walk, stop {number} of {stops}", timeout=20_000)
    opened(page, "head")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click(".walk button:has-text('End the walk')")
    expect(page.locator("button:has-text('Begin the walk')")).to_be_visible(timeout=20_000)


def test_a_visitors_own_network_is_seen_by_no_other(visit: Callable[..., Page], tiny: Path, tmp_path: Path):
    mine = visit()
    opened(mine, "conv1")
    mine.click("#inside-own button:has-text('Your own network')")
    broken = tmp_path / "notes.pth"
    broken.write_text("no network")
    mine.set_input_files("#inside-file input[type=file]", broken)
    expect(mine.locator("#inside-loaded [role=alert]")).to_contain_text("notes.pth", timeout=20_000)
    mine.set_input_files("#inside-file input[type=file]", tiny)
    expect(mine.locator("#inside-top")).to_contain_text("(your own)", timeout=30_000)
    other = visit()
    opened(other, "conv1")
    assert "your own" not in other.locator("#inside-top").inner_text()


def test_two_sounds_lie_side_by_side_on_the_same_colours(visit: Callable[..., Page]):
    page = visit()
    opened(page, "conv1")
    page.click("#inside-compare button:has-text('Compare')")
    page.click("#inside-other input")
    page.click("[role=option]:has-text('the sound: rain')")
    expect(page.locator("#inside-compared h3").nth(1)).to_have_text("rain.ogg", timeout=20_000)
    pairs = page.locator("#inside-compared .pair:has(.timed[data-tap='layer3']) .timed")
    expect(pairs).to_have_count(2)
    tops = [pairs.nth(k).bounding_box() for k in range(2)]
    assert tops[0] is not None and tops[1] is not None and tops[0]["y"] == tops[1]["y"]
