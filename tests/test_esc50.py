"""Fetching ESC-50: from a server on this machine that behaves well and badly, and from archives that mean harm."""

import csv
import errno
import io
import re
import shutil
import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from training import esc50
from training.data import DataError, read_rows

FAKE = esc50.Release(clips=10, classes=2, folds=5, archive_bytes=45_000, max_file=20_000, max_total=100_000)
CLIPS = {f"{fold}-{100 + fold}-A-{label}.wav": label for fold in range(1, 6) for label in ("dog", "rain")}
TOP = "ESC-50-master/"


def archive(names: dict[str, str] = CLIPS, harm: Callable[[zipfile.ZipFile], None] | None = None) -> bytes:
    """A zip file of GitHub's layout; `names` (file name -> class) go into its table, `harm` adds or spoils members."""
    table = io.StringIO()
    writer = csv.DictWriter(table, ["filename", "fold", "target", "category", "esc10"])
    writer.writeheader()
    for i, (name, label) in enumerate(names.items()):
        writer.writerow({"filename": name, "fold": i // 2 + 1, "target": 0, "category": label, "esc10": label == "dog"})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zip:
        zip.writestr(TOP + "audio/", "")
        for i, name in enumerate(names):  # noise: does not shrink
            zip.writestr(f"{TOP}audio/{name}", np.random.default_rng(i).bytes(4000))
        zip.writestr(TOP + "meta/esc50.csv", table.getvalue())
        zip.writestr(TOP + "LICENSE", "CC BY-NC")
        zip.writestr(TOP + "tests/test_dataset.py", "not wanted")
        if harm:
            harm(zip)
    return packed.getvalue()


@dataclass
class Site:
    """What the server has and how it behaves."""

    content: bytes
    ranges: bool = True
    length: bool = True  # GitHub names none
    cuts: list[int] = field(default_factory=list)  # bytes after which the coming connections break
    asked: list[str | None] = field(default_factory=list)  # Range of every request
    url: str = ""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(archive())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            site.asked.append(asked)
            first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and site.ranges else 0
            size = len(site.content)
            if first >= size:
                self.send_error(416)
                return
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
            if site.length:
                self.send_header("Content-Length", str(size - first))
            self.end_headers()
            self.wfile.write(site.content[first:][: site.cuts.pop(0) if site.cuts else None])

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}/master.zip"
    monkeypatch.setenv("no_proxy", "*")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


CLIP = bytes(4000)


def wav_header(size: int) -> bytes:
    """Of a wav file of 16-bit samples, so many bytes of them."""
    form = struct.pack("<IHHIIHH", 16, 1, 1, 44_100, 88_200, 2, 16)
    return b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size)


WHOLE = {"LICENSE", "meta/esc50.csv", *(f"audio/{name}" for name in CLIPS)}
PART = "ESC-50-master.zip.part"


@pytest.mark.parametrize("length", [True, False])
def test_it_is_fetched_once(site: Site, tmp_path: Path, length: bool):
    site.length = length
    assert "now holds" in esc50.prepare(tmp_path / "esc", url=site.url, release=FAKE)
    assert files(tmp_path) == {f"esc/{name}" for name in WHOLE}
    assert len(read_rows(tmp_path / "esc", esc10=True)) == 5
    assert "nothing to do" in esc50.prepare(tmp_path / "esc", url=site.url, release=FAKE)
    assert site.asked == [None]


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(site: Site, tmp_path: Path, ranges: bool, length: bool):
    site.ranges, site.length, site.cuts = ranges, length, [10_000]
    esc50.prepare(tmp_path, url=site.url, release=FAKE)
    assert site.asked == [None, "bytes=10000-"] and files(tmp_path) == WHOLE


def test_what_has_come_is_kept_for_the_next_run(site: Site, tmp_path: Path):
    site.cuts = [10_000, 5_000, 0]
    with pytest.raises(DataError, match=r"broke off at 0\.0 MB .*run the command again"):
        esc50.prepare(tmp_path, url=site.url, release=FAKE)
    assert files(tmp_path) == {PART} and (tmp_path / PART).read_bytes() == site.content[:15_000]
    esc50.prepare(tmp_path, url=site.url, release=FAKE)
    assert site.asked[-1] == "bytes=15000-" and files(tmp_path) == WHOLE


def test_ctrl_c_keeps_what_has_come(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(self: esc50.Bar, count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(esc50, "URL", site.url)
    monkeypatch.setattr(esc50, "OFFICIAL", FAKE)
    site.cuts = [10_000]
    with monkeypatch.context() as patch:
        patch.setattr(esc50.Bar, "add", stop)
        assert esc50.main(["--root", str(tmp_path)]) == 130
    assert files(tmp_path) == {PART} and (tmp_path / PART).stat().st_size > 0
    assert esc50.main(["--root", str(tmp_path)]) == 0
    assert site.asked[1].startswith("bytes=") and files(tmp_path) == WHOLE


def test_a_part_that_cannot_be_continued_is_begun_anew(site: Site, tmp_path: Path):
    (tmp_path / PART).write_bytes(b"PK" + bytes(len(site.content)))  # longer than the archive: 416
    esc50.prepare(tmp_path, url=site.url, release=FAKE)
    assert site.asked == [f"bytes={len(site.content) + 2}-", None] and files(tmp_path) == WHOLE


def test_a_page_in_place_of_the_archive_does_not_cost_what_has_come(site: Site, tmp_path: Path):
    (tmp_path / PART).write_bytes(site.content[:10_000])
    site.content, site.ranges = b"<html>please log in</html>", False
    with pytest.raises(DataError, match="not a zip file"):
        esc50.prepare(tmp_path, url=site.url, release=FAKE)
    assert (tmp_path / PART).stat().st_size == 10_000


def test_a_damaged_download_is_refused_and_removed(site: Site, tmp_path: Path):
    good, spoilt = site.content, bytearray(site.content)
    spoilt[5_000] ^= 1
    site.content = bytes(spoilt)
    with pytest.raises(DataError, match="damaged and has been removed .*CRC.*run the command again"):
        esc50.prepare(tmp_path, url=site.url, release=FAKE)
    assert files(tmp_path) == set()
    site.content = good
    esc50.prepare(tmp_path, url=site.url, release=FAKE)
    assert files(tmp_path) == WHOLE


def test_offline_it_says_what_to_fetch_and_takes_it_from_there(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(esc50, "URL", "http://127.0.0.1:9/master.zip")  # nobody listens at the discard port
    monkeypatch.setattr(esc50, "OFFICIAL", FAKE)
    root = tmp_path / "esc"
    assert esc50.main(["--root", str(root)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and esc50.URL in said and f"put it at {root / 'ESC-50-master.zip'}" in said
    (root / "ESC-50-master.zip").write_bytes(site.content)
    assert esc50.main(["--root", str(root)]) == 0 and files(root) == WHOLE | {"ESC-50-master.zip"}
    elsewhere = tmp_path / "fetched.zip"
    elsewhere.write_bytes(site.content)
    assert esc50.main(["--root", str(tmp_path / "b"), "--archive", str(elsewhere)]) == 0
    assert files(tmp_path / "b") == WHOLE and elsewhere.exists()


def test_a_full_disk_is_one_sentence_and_costs_no_download(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(DataError, match="No space left on device; make room"):
            esc50.prepare(tmp_path, url=site.url, release=FAKE)
    assert files(tmp_path) == {PART}
    esc50.prepare(tmp_path, url=site.url, release=FAKE)
    assert len(site.asked) == 1 and files(tmp_path) == WHOLE


def test_nothing_of_another_is_overwritten_or_taken_for_the_whole(site: Site, tmp_path: Path):
    (tmp_path / "LICENSE").write_text("mine")
    with pytest.raises(DataError, match="not to be overwritten"):
        esc50.prepare(tmp_path, url=site.url, release=FAKE)
    esc50.prepare(tmp_path / "esc", url=site.url, release=FAKE)
    with pytest.raises(DataError, match=r"lists 10 clips .* not 2,000"):
        esc50.prepare(tmp_path / "esc", url=site.url)
    clip = tmp_path / "esc" / "audio" / "1-101-A-dog.wav"
    for spoilt in (b"", wav_header(2 * len(CLIP)) + CLIP):  # as a full disk or a copy that was ended leaves it
        clip.write_bytes(spoilt)
        with pytest.raises(DataError, match=r"1 clips are missing, empty or cut short, the first is 1-101-A-dog\.wav"):
            esc50.prepare(tmp_path / "esc", url=site.url, release=FAKE)
    clip.write_bytes(wav_header(len(CLIP)) + CLIP)
    assert "nothing to do" in esc50.prepare(tmp_path / "esc", url=site.url, release=FAKE)


def test_strange_members_are_left_in_the_archive(tmp_path: Path):
    def harm(zip: zipfile.ZipFile) -> None:
        link = zipfile.ZipInfo(TOP + "audio/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zip.writestr(link, str(tmp_path))
        for name in ("../evil", f"{TOP}../../evil", str(tmp_path / "evil"), f"{TOP}audio/link/evil", "C:\\evil"):
            zip.writestr(name, "evil")
        zip.writestr(TOP + "AUDIO/" + next(iter(CLIPS)), "evil")
        zip.writestr(TOP + "huge.bin", bytes(10 * FAKE.max_total))

    packed = tmp_path / "a.zip"
    packed.write_bytes(archive(harm=harm))
    esc50.prepare(tmp_path / "esc", archive=packed, release=FAKE)
    assert files(tmp_path) == {"a.zip", *(f"esc/{name}" for name in WHOLE)}
    assert all((tmp_path / "esc" / "audio" / name).stat().st_size == 4000 for name in CLIPS)


def renamed(name: str) -> bytes:
    """The first clip is called `name`, in the table and in the archive."""
    return archive({name: "dog", **dict(list(CLIPS.items())[1:])})


def spoilt(change: Callable[[zipfile.ZipInfo], None], size: int = 4000) -> bytes:
    """One clip of `size` zeros, whose entry in the directory says what `change` makes of it."""
    name = next(iter(CLIPS))

    def harm(zip: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(f"{TOP}audio/{name}")
        info.compress_type = zipfile.ZIP_DEFLATED
        with pytest.warns(UserWarning, match="Duplicate name"):
            zip.writestr(info, bytes(size))
        change(info)

    return archive(harm=harm)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "up": (lambda: renamed("../../evil.wav"), "no plain name"),
    "absolute": (lambda: renamed("/tmp/evil.wav"), "no plain name"),
    "backslash": (lambda: renamed("..\\evil.wav"), "no plain name"),
    "not audio": (lambda: renamed("evil.py"), "no plain name"),
    "case": (lambda: renamed("1-101-a-RAIN.wav"), "twice"),
    "symlink": (lambda: spoilt(lambda i: setattr(i, "external_attr", stat.S_IFLNK << 16)), "not a plain file"),
    "bomb": (lambda: spoilt(lambda i: None, FAKE.max_file + 1), "20,001 bytes"),
    "bomb that lies": (lambda: spoilt(lambda i: setattr(i, "file_size", 10), 10_000_000), "CRC"),
    "encrypted": (lambda: spoilt(lambda i: setattr(i, "flag_bits", 1)), "is encrypted"),
    "empty clip": (lambda: spoilt(lambda i: None, 0), "has 0 bytes"),
    "clip missing": (lambda: archive().replace(b"5-105-A-dog.wav", b"5-105-B-dog.wav"), "is missing"),
    "another table": (lambda: archive({**CLIPS, "6-1-A-0.wav": "dog"}), "lists 11 clips"),
    "no table": (lambda: archive().replace(b"meta/esc50.csv", b"meta/esc51.csv"), "0 are in it"),
    "no zip": (lambda: b"PK but no zip", "not a zip file"),
    "cut": (lambda: archive()[10_000:], "not a sound zip file|Bad magic|Bad offset"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_and_writes_nothing(tmp_path: Path, kind: str):
    make, sentence = HOSTILE[kind]
    packed = tmp_path / "a.zip"
    packed.write_bytes(make())
    with pytest.raises(DataError, match=sentence):
        esc50.prepare(tmp_path / "esc", archive=packed, release=FAKE)
    assert files(tmp_path) == {"a.zip"} and list((tmp_path / "esc").iterdir()) == []


def test_many_small_files_that_are_too_much_together_are_refused(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(archive())
    tight = esc50.Release(clips=10, classes=2, folds=5, archive_bytes=45_000, max_total=39_000)
    with pytest.raises(DataError, match="more than ESC-50 has"):
        esc50.prepare(tmp_path / "esc", archive=tmp_path / "a.zip", release=tight)
    assert files(tmp_path) == {"a.zip"}
