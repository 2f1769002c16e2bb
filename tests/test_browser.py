"""The page in a real browser: what a visitor sees. One Chromium, its microphone fed with a 1 kHz tone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cnn.audio import Clip, load
from cnn.classifier import Classifier
from cnn.labels import spoken
from cnn.pictures import percent
from cnn.ui.page import build_page
from cnn.ui.theme import ASSETS, serving

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
).split()
EXAMPLES = ASSETS / "examples"
SHOWN = "[...document.querySelectorAll('.picture img')].filter(i => i.offsetWidth)"


class Ear:
    """The classifier that the page calls; can be made to fail as a bug does."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.broken = False

    def __call__(self) -> Classifier:
        if self.broken:
            raise RuntimeError("a bug")
        return self.classifier


@pytest.fixture(scope="module")
def ear(tiny_classifier: Classifier) -> Ear:
    return Ear(tiny_classifier)


@pytest.fixture(scope="module")
def url(ear: Ear) -> Iterator[str]:
    page = build_page(ear)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **serving())
    yield url
    page.close()


@pytest.fixture(scope="module")
def browser(chromium: str, tone: Clip, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    heard = tmp_path_factory.mktemp("microphone") / "tone.wav"
    soundfile.write(heard, tone.samples, tone.rate, subtype="PCM_16")
    with sync_playwright() as playwright:
        arguments = [*ARGUMENTS, f"--use-file-for-fake-audio-capture={heard}"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Callable[..., Page]]:
    """Opens the page. Afterwards: nothing was asked of any other server, and no script failed."""
    contexts, outside, errors = [], [], []

    def open_page(width: int = 1366, height: int = 768, theme: str = "light", asked: str = "") -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, permissions=["microphone"], locale="en-US"
        )
        contexts.append(context)
        page = context.new_page()
        own = (url, url.replace("http", "ws"), "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(own) or outside.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url + asked)
        expect(page.locator("#sound")).to_be_visible(timeout=20_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert outside == []
    assert errors == []


def upload(page: Page, path: Path) -> None:
    if page.locator("#sound button[aria-label='Clear']").is_visible():
        page.click("#sound button[aria-label='Clear']")
    page.click("#sound button[aria-label='Upload file']")
    page.set_input_files("#sound input[type=file]", path)


def expect_answer(page: Page, source: Path, classifier: Classifier, name: str | None = None) -> None:
    """The page shows what Classifier.predict says of the same file."""
    expect(page.locator(".facts b")).to_have_text(name or source.name, timeout=20_000)
    best = classifier.predict(source).labels[0]
    expect(page.locator("#name")).to_have_text(spoken(best.name))
    expect(page.locator(".sure")).to_have_text(f"{percent(best.probability)} sure")
    expect(page.locator("#took")).to_contain_text("on cpu")


def test_one_click_on_an_example_gives_name_and_pictures(visit: Callable[..., Page], tiny_classifier: Classifier):
    page = visit()
    expect(page.locator("#verdict")).to_contain_text("First, a sound")
    assert page.locator("#example-buttons button").count() >= 8
    page.click("#example-buttons button:has-text('crying baby')")
    expect_answer(page, EXAMPLES / "crying_baby.ogg", tiny_classifier)
    expect(page.locator("#format")).to_have_text("Ogg Vorbis (lossy), 44.1 kHz, mono, 5 s")
    expect(page.locator(".notes")).to_contain_text("hears up to 8 kHz")
    alts = page.evaluate(f"{SHOWN}.map(i => i.alt)")
    starts = ["Bars from 0 to 100 %", "Waveform", "Mel spectrogram"]
    starts += [f"Feature map {stage}, " for stage in ("conv1", "layer1", "layer2", "layer3", "layer4")]
    assert [alt.startswith(start) for alt, start in zip(alts, starts, strict=True)] == [True] * 8
    assert page.evaluate(f"{SHOWN}.every(i => i.complete && i.naturalWidth > 0)")
    spectrogram = page.locator(".picture:has(img[alt^='Mel'])").bounding_box()
    assert spectrogram is not None and spectrogram["y"] + spectrogram["height"] <= 768  # no scrolling on a laptop


def test_upload_then_a_broken_file_then_another_sound_then_silence(
    visit: Callable[..., Page], tiny_classifier: Classifier, tmp_path: Path
):
    page = visit()
    samples, rate = soundfile.read(EXAMPLES / "dog.ogg", dtype="float32")
    first = tmp_path / "first.FLAC"
    soundfile.write(first, samples[:rate], rate, format="FLAC")
    upload(page, first)
    expect_answer(page, first, tiny_classifier)
    expect(page.locator("#format")).to_have_text("FLAC, 16-bit PCM, 44.1 kHz, mono, 1 s")

    broken = tmp_path / "<b>letter.mp3"
    broken.write_text("this is no sound")
    upload(page, broken)
    expect(page.locator("#problem [role=alert]")).to_contain_text("letter.mp3 is text, not a sound", timeout=20_000)
    expect(page.locator("#name")).to_have_count(0)
    expect(page.locator("#layers")).to_be_hidden()

    nameless = tmp_path / "no-extension"  # the content decides, not the name
    soundfile.write(nameless, np.tile(samples, 2), rate, format="OGG")
    upload(page, nameless)
    expect_answer(page, nameless, tiny_classifier)
    expect(page.locator("#problem [role=alert]")).to_have_count(0)
    assert page.evaluate(f"{SHOWN}[1].alt").startswith("Whole clip")

    still = tmp_path / "still.wav"
    soundfile.write(still, np.full(16_000, 1e-4), 16_000)
    upload(page, still)
    expect(page.locator("#name")).to_have_text("nothing to hear", timeout=20_000)
    expect(page.locator(".sure")).to_contain_text("dBFS")
    expect(page.locator("#layers")).to_be_hidden()


def test_a_file_too_large_is_refused_before_its_upload_and_forgotten_with_the_next_sound(
    visit: Callable[..., Page], tmp_path: Path
):
    large = tmp_path / "large.wav"
    with large.open("wb") as file:
        file.truncate(201_000_000)  # sparse
    page = visit()
    uploads: list[str] = []
    page.on("request", lambda request: "/upload" in request.url and uploads.append(request.url))
    page.click("#sound button[aria-label='Upload file']")
    page.set_input_files("#sound input[type=file]", large)
    expect(page.locator("#refused")).to_contain_text("large.wav is larger than 200 MB")
    page.wait_for_timeout(300)
    assert uploads == []
    page.click("#example-buttons button:has-text('dog')")
    expect(page.locator("#refused")).to_be_empty()
    expect(page.locator(".facts b")).to_have_text("dog.ogg", timeout=20_000)


def test_a_file_that_no_browser_plays_can_be_dropped_and_is_heard(visit: Callable[..., Page], tmp_path: Path):
    samples, rate = soundfile.read(EXAMPLES / "dog.ogg", dtype="float32")
    soundfile.write(tmp_path / "dropped", samples, rate, format="AIFF")  # no type that the system calls audio
    page = visit()
    page.click("#sound button[aria-label='Upload file']")
    place = page.locator("#sound input[type=file]").locator("xpath=..").bounding_box()
    assert place is not None
    where = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
    dragged = {"items": [], "files": [str(tmp_path / "dropped")], "dragOperationsMask": 1}
    devtools = page.context.new_cdp_session(page)
    for step in ("dragEnter", "dragOver", "drop"):  # as the browser itself does, so that the events are trusted
        devtools.send("Input.dispatchDragEvent", {"type": step, **where, "data": dragged})
    expect(page.locator("#format")).to_contain_text("AIFF", timeout=20_000)
    expect(page.locator("#unplayable")).to_contain_text("cannot play this format; the network heard it")
    page.click("#example-buttons button:has-text('rain')")
    expect(page.locator(".facts b")).to_have_text("rain.ogg", timeout=20_000)
    expect(page.locator("#unplayable")).to_be_empty()


def test_a_recording_is_heard_as_it_sounded(visit: Callable[..., Page], tiny_classifier: Classifier):
    page = visit()
    played: list[str] = []
    page.on("request", lambda request: "file=" in request.url and played.append(request.url))
    page.click("#sound .record-button")
    expect(page.locator("#granted")).to_contain_text(
        "echo cancellation off, noise suppression off, automatic gain off", timeout=10_000
    )
    page.wait_for_timeout(2500)
    page.click("#sound .stop-button")
    expect(page.locator("#format")).to_contain_text("WAV, 16-bit PCM", timeout=20_000)
    recording = Path(unquote(next(address for address in played if ".wav" in address).split("file=")[1]))
    expect_answer(page, recording, tiny_classifier, name="Recording")
    clip = load(recording)
    tail = clip.samples[-clip.rate :]
    loudest = np.abs(np.fft.rfft(tail * np.hanning(len(tail)))).argmax() * clip.rate / len(tail)
    assert loudest == pytest.approx(1000, abs=2)
    assert np.sqrt(np.mean(tail**2)) > 0.2  # noise suppression would have eaten the tone


def test_the_blocks_unfold_by_keyboard_on_the_same_clock_and_dark(visit: Callable[..., Page]):
    page = visit(theme="dark")
    page.focus("#example-buttons button:has-text('rain')")
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_be_visible(timeout=20_000)
    for stage, maps in (("layer2", 8), ("layer4", 6)):
        page.focus(f"#fold-{stage} button")
        page.keyboard.press("Enter")
        expect(page.locator(f"#blocks-{stage} img.on-dark")).to_have_count(maps, timeout=20_000)
        expect(page.locator(f"#blocks-{stage} img.on-light").first).to_be_hidden()
    expect(page.locator("#blocks-layer4 img.on-dark").last).to_be_visible()
    places = page.evaluate(f"{SHOWN}.map(i => i.getBoundingClientRect()).map(r => [r.x, r.width].join())")
    assert len(set(places)) == 1
    page.click("#example-buttons button:has-text('dog')")  # another clip takes the old one's maps away
    expect(page.locator(".facts b")).to_have_text("dog.ogg", timeout=20_000)
    expect(page.locator("#blocks-layer2 img")).to_have_count(0)


def test_a_phone_shows_one_column_and_a_reload_keeps_an_example(visit: Callable[..., Page]):
    page = visit(width=390, height=844)
    record = page.locator("#sound .record-button").bounding_box()
    assert record is not None and record["y"] + record["height"] < 844 and record["height"] >= 44
    page.click("#example-buttons button:has-text('rooster')")
    expect(page.locator("#name")).to_be_in_viewport(timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate(f"{SHOWN}[0].getAttribute('width')") == "360"
    page.reload()
    expect(page.locator(".facts b")).to_have_text("rooster.ogg", timeout=20_000)
    page.click("#example-buttons button:has-text('dog')")
    expect(page.locator(".facts b")).to_have_text("dog.ogg", timeout=20_000)


def test_a_link_gives_the_same_numbers_and_the_report_has_it(
    visit: Callable[..., Page], url: str, tiny_classifier: Classifier, tmp_path: Path
):
    page = visit(asked="?example=dog&from=0.50&to=1.75")
    dog = EXAMPLES / "dog.ogg"
    expect_answer(page, dog, tiny_classifier)
    clip = load(dog)
    part = Clip(clip.samples[round(0.5 * clip.rate) : round(1.75 * clip.rate)], clip.rate)
    best = tiny_classifier.predict(part).labels[0]
    said = f"Only 0.50 to 1.75 s: {spoken(best.name)}, {percent(best.probability)} sure"
    expect(page.locator(".alone")).to_contain_text(said)
    expect(page.locator(".chosen output")).to_have_text("0.50 to 1.75 s")
    assert page.evaluate("clock.audio.duration") == pytest.approx(clip.seconds, abs=1e-3)
    whole = tiny_classifier.predict(dog).labels[0]
    made = f"{url}?example=dog&answer={whole.name}-{whole.logit:.2f}"
    address = f"{made}&from=0.50&to=1.75"
    expect(page.locator(".link input")).to_have_value(address)
    assert page.url == address
    with page.expect_download() as saving:
        page.click("#save")
    saving.value.save_as(tmp_path / "report.html")
    assert saving.value.suggested_filename == "dog report.html"
    assert f'href="{address.replace("&", "&amp;")}"' in (tmp_path / "report.html").read_text(encoding="utf-8")
    page.click("[data-do=clear]")
    expect(page.locator(".link input")).to_have_value(made)
    page.reload()
    expect_answer(page, dog, tiny_classifier)
    expect(page.locator("#only [role=alert]")).to_have_count(0)  # the same network answers
    upload(page, dog)  # what a visitor brings has no address
    expect(page.locator(".link")).to_be_hidden(timeout=20_000)
    expect(page).to_have_url(url, timeout=20_000)


def test_only_a_stretch_is_named_on_demand(visit: Callable[..., Page], tiny_classifier: Classifier, tmp_path: Path):
    samples, rate = soundfile.read(EXAMPLES / "rooster.ogg", dtype="float32")
    long = tmp_path / "long.aiff"  # which the browser cannot play, but the clock can
    soundfile.write(long, np.tile(samples, 2), rate)
    page = visit()
    upload(page, long)
    expect_answer(page, long, tiny_classifier)
    page.wait_for_function("clock.audio.duration > 9.9")
    plane = page.locator(".timed:has(img[alt^='Whole clip']) .plane").bounding_box()
    assert plane is not None
    page.mouse.move(plane["x"] + 0.6 * plane["width"], plane["y"] + 9)
    page.mouse.down()
    page.mouse.move(plane["x"] + 0.8 * plane["width"], plane["y"] + 9, steps=3)
    page.mouse.up()
    begin, end = page.evaluate("[clock.stretch.from, clock.stretch.to]")
    assert (begin, end) == pytest.approx((6, 8), abs=0.05)
    page.click("[data-do=name]")
    clip = load(long)
    best = tiny_classifier.predict(Clip(clip.samples[round(begin * rate) : round(end * rate)], rate)).labels[0]
    said = f"Only {begin:.2f} to {end:.2f} s: {spoken(best.name)}, {percent(best.probability)} sure"
    expect(page.locator(".alone")).to_contain_text(said, timeout=20_000)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("?example=<b>cat", "There is no example '<b>cat'; there are dog, rooster, "),
        ("?example=dog&from=3&to=nine", "From '3' to 'nine' is no stretch of it: it lasts 5.00 s."),
        ("?example=dog&answer=dog-99.99&from=1&to=2", "This link was made with another network."),
    ],
)
def test_a_link_to_what_is_not_there_or_to_other_numbers_is_told(visit: Callable[..., Page], asked: str, told: str):
    page = visit(asked=asked)
    expect(page.locator("[role=alert]:not(:empty)")).to_contain_text(told, timeout=20_000)


def test_a_bug_is_seen_as_one_and_the_app_goes_on(visit: Callable[..., Page], ear: Ear, capfd: pytest.CaptureFixture):
    page = visit()
    ear.broken = True
    try:
        page.click("#example-buttons button:has-text('dog')")
        expect(page.locator("#problem [role=alert]")).to_contain_text("The app made a mistake", timeout=20_000)
    finally:
        ear.broken = False
    page.click("#example-buttons button:has-text('dog')")
    expect(page.locator("#name")).to_be_visible(timeout=20_000)
    assert "RuntimeError: a bug" in capfd.readouterr().err
    assert "RuntimeError" not in page.inner_text("body")
