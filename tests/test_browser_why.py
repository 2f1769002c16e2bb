"""The Why tab in a real browser: parts of the sound one after the other on the one clock, and a rectangle erased."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from cnn.classifier import Classifier
from cnn.ui.keep import EXAMPLES, InHand, written
from cnn.ui.page import build_page
from cnn.ui.theme import serving

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --mute-audio --autoplay-policy=no-user-gesture-required"
).split()


@pytest.fixture(scope="module")
def page(tiny_classifier: Classifier, chromium: str) -> Iterator[Page]:
    """The dog, heard and explained. Afterwards: no script failed, nothing was asked elsewhere."""
    blocks = build_page(lambda: tiny_classifier)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **serving(mcp=False))
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1366, "height": 900}, locale="en-US")
        own = (url, url.replace("http", "ws"), "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(own) or wrong.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        page.click("#example-buttons button:has-text('dog')", timeout=60_000)
        expect(page.locator("#name")).to_be_visible(timeout=60_000)
        page.click("button[role=tab]:has-text('Why')")
        expect(page.locator("#why .judgement")).to_be_visible(timeout=60_000)
        yield page
        browser.close()
    blocks.close()
    assert wrong == []


def pressed(page: Page, part: str) -> None:
    expect(page.locator(".hear[aria-pressed=true]")).to_have_attribute("data-sound", part)


def test_the_parts_play_one_at_a_time_from_the_same_place_by_keyboard_too(page: Page):
    home = page.evaluate("clock.audio.src")
    page.evaluate("clock.seek(1.5)")
    page.click(".hear[data-sound=evidence]")
    playing = "clock.playing && clock.audio.readyState > 0 && clock.time()"
    assert 1.5 <= page.wait_for_function(playing).json_value() < 4.5, "it begins where the clock stood"
    pressed(page, "evidence")
    page.focus(".hear[data-sound=remainder]")
    page.keyboard.press("Enter")
    pressed(page, "remainder")
    assert 1.5 <= page.wait_for_function(playing).json_value() < 4.5, "it goes on where the other was"
    page.keyboard.press("Space")  # the same button once more
    page.wait_for_function("!clock.playing")
    page.evaluate("clock.seek(3)")
    assert page.evaluate("clock.audio.duration") == pytest.approx(5, abs=0.01)
    page.wait_for_function("""() => [...document.querySelectorAll('#why-map .plane')].every((plane) => {
      const [whole, line] = [plane, plane.querySelector(".cursor")].map((x) => x.getBoundingClientRect());
      return Math.abs((line.left - whole.left) / whole.width - 0.6) < 0.01;
    })""")  # both cursors are where the clock is
    page.click("button[role=tab]:has-text('Listen')")
    page.wait_for_function(f"clock.audio.src === '{home}'")  # there it is the sound in hand again
    page.click("button[role=tab]:has-text('Why')")
    expect(page.locator(".hear[aria-pressed=true]")).to_have_count(0)


def test_a_rectangle_is_erased_with_the_mouse_where_it_was_drawn_and_undone(page: Page):
    before = page.locator("#why-verdict table").inner_text()

    def drag() -> None:
        plane = page.locator("#why-map .plane").first
        plane.scroll_into_view_if_needed()
        box = plane.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.1 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.9 * box["height"], steps=3)
        page.mouse.up()

    drag()
    expect(page.locator("#why-clock .chosen output")).to_have_text("1.00 to 3.00 s")  # a drag selects, as everywhere
    assert page.input_value("form[data-edit=erase] input[name=end]") == "3.00", "and the form knows it"
    page.click("#why-clock [data-do=clear]")
    page.click("#why [data-mode=erase]")
    drag()
    expect(page.locator("#why-steps li")).to_have_count(1, timeout=60_000)
    low, high = (int(page.input_value(f"form[data-edit=erase] input[name={name}]")) for name in ("low", "high"))
    assert 200 < low < 400 and 5500 < high < 7000, "a tenth of the mel axis from either end"
    expect(page.locator("#why-steps li")).to_have_text(f"erased 1.00 to 3.00 s, {low} Hz to {high:,} Hz")
    expect(page.locator("#why-verdict tr.before")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#why [data-mode=erase]")).to_have_attribute("aria-pressed", "false")
    page.click("#why button:has-text('Undo')")
    expect(page.locator("#why-steps li")).to_have_count(0, timeout=60_000)
    assert page.locator("#why-verdict table").inner_text() == before
    assert page.evaluate("clock.stretch") is None, "what erases does not select"


def test_a_change_by_keyboard_is_heard_at_once_and_refused_in_words(page: Page):
    page.click(".hear[data-sound=original]")
    page.wait_for_function("clock.playing")
    heard = page.evaluate("clock.audio.src")
    page.fill("form[data-edit=gain] input", "-6")
    page.keyboard.press("Enter")
    expect(page.locator("#why-steps li")).to_have_text("6 dB softer", timeout=60_000)
    page.wait_for_function(f"clock.audio.src !== '{heard}'")  # what sounds is the changed sound
    pressed(page, "original")
    page.evaluate("clock.pause()")
    page.fill("form[data-edit=shift] input", "99")
    page.keyboard.press("Enter")
    expect(page.locator("#why-status [role=alert]")).to_contain_text("can be moved by less", timeout=60_000)
    expect(page.locator("#why-steps li")).to_have_count(1)


def test_a_saved_report_plays_the_parts_offline(page: Page, tiny_classifier: Classifier):
    heard = tiny_classifier.predict(EXAMPLES / "dog.ogg", maps="all")
    text = written(tiny_classifier, InHand(heard, "dog.ogg"), "")
    assert page.context.browser is not None
    report = page.context.browser.new_page()
    wrong: list[str] = []
    report.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    report.on("pageerror", lambda error: wrong.append(str(error)))
    report.route("**", lambda route: route.fulfill(body=text, content_type="text/html; charset=utf-8"))
    report.goto("http://report.test/")
    expect(report.locator(".time")).to_have_text("0.0 / 5.0 s")
    evidence, rest = (report.locator(f".hear[data-sound={name}]") for name in ("evidence", "remainder"))
    evidence.click()
    expect(evidence).to_have_class("hear playing")
    report.evaluate("clock.pause(); clock.seek(2)")
    rest.click()
    expect(rest).to_have_class("hear playing")
    expect(evidence).to_have_attribute("aria-pressed", "false")
    assert 2 <= report.evaluate("clock.time()") < 4.5
    report.close()
    assert wrong == []
