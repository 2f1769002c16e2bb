"""ESC-50 as its author publishes it: fetched, checked, unpacked. Does nothing where it is there already.

    python -m training.esc50 --root DIR [--archive ESC-50-master.zip]

What has come of a broken download stays in DIR/ESC-50-master.zip.part for the next try. DIR's `audio/` and `meta/`
appear whole or not at all: `meta/esc50.csv`, by which the folder is recognised, is put in place last.
"""

import argparse
import errno
import http.client
import itertools
import re
import shutil
import stat
import struct
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from training.data import DataError, Row, read_rows

URL = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
ARCHIVE = "ESC-50-master.zip"  # looked for in DIR: whoever is offline puts it there
TRIES = 3  # connections in one run; each must have brought something for there to be another
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20

TABLE = "meta/esc50.csv"
TEXTS = ("LICENSE", "README.md")  # taken along where the archive has them
PLAIN = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]*\.wav")  # of a clip: nothing in it can lead out of a folder
DAMAGE = (  # what zipfile raises over a broken or hostile archive; DataError is a ValueError
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class Release:
    """What makes ESC-50 complete, and what no honest archive of it exceeds."""

    clips: int = 2000
    classes: int = 50
    folds: int = 5
    archive_bytes: int = 600_000_000  # about: GitHub does not tell the length of archives that it packs on demand
    max_file: int = 2_000_000  # unpacked; a clip (5 s, 44.1 kHz, 16 bit) takes 441,044
    max_total: int = 1_200_000_000  # unpacked; the clips take 882 million


OFFICIAL = Release()


class ArchiveError(DataError):
    """The archive is damaged, hostile or of something else."""


class Broken(Exception):
    """The connection failed or brought nothing useful; what has come before is kept."""


def prepare(root: Path, *, archive: Path | None = None, url: str = URL, release: Release = OFFICIAL) -> str:
    """Sees to it that the whole ESC-50 lies in `root`; what was done, in one sentence.

    From `archive`, else from `root`/ESC-50-master.zip, else from `url`. Raises DataError; an archive that was
    downloaded and is no good is removed, one that was given is not touched.
    """
    root, given = Path(root), archive
    if (root / TABLE).is_file():
        try:
            check(root, release)
        except DataError as e:
            raise DataError(f"{root} is not the whole ESC-50 ({e}): move it away or choose another --root") from e
        except OSError as e:
            raise DataError(f"{e.filename} cannot be read ({e.strerror}): check its permissions") from e
        return f"{root} holds the whole ESC-50 already, {release.clips:,} clips: nothing to do."
    taken = [name for name in ("audio", "meta", *TEXTS) if (root / name).exists()]
    if taken:
        raise DataError(f"{root} has no {TABLE} but a {taken[0]} that is not to be overwritten: choose another --root")
    if given is not None and not given.is_file():
        raise DataError(f"{given} is not a file: --archive wants the zip file of {url}")
    if given is None and (root / ARCHIVE).is_file():
        given = root / ARCHIVE
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    if given is not None:
        try:
            unpack(given, root, release)
        except ArchiveError as e:
            raise DataError(f"{e}: fetch it again from {url}") from e
        return f"{root} now holds the whole ESC-50, {release.clips:,} clips, from {given}."
    part = root / f"{ARCHIVE}.part"
    download(url, part, release)
    try:
        unpack(part, root, release)
    except ArchiveError as e:
        part.unlink()
        raise DataError(f"the download is damaged and has been removed ({e}): run the command again") from e
    part.unlink()
    return f"{root} now holds the whole ESC-50, {release.clips:,} clips, from {url}."


def check_table(root: Path, release: Release = OFFICIAL) -> list[Row]:
    """The rows of `meta/esc50.csv`, every fold holding the same number of every class. Raises DataError."""
    rows = read_rows(root)
    labels = {row.label for row in rows}
    each = release.clips // (release.classes * release.folds)
    expected = dict.fromkeys(itertools.product(range(1, release.folds + 1), labels), each)
    if len(labels) != release.classes or Counter((row.fold, row.label) for row in rows) != Counter(expected):
        raise DataError(
            f"{TABLE} lists {len(rows):,} clips of {len(labels)} classes in {len({row.fold for row in rows})} folds, "
            f"not {release.clips:,}: {each} of each of {release.classes} classes in each of {release.folds} folds"
        )
    # file systems that ignore case would keep one of two
    twice = [name for name, n in Counter(row.path.name.casefold() for row in rows).items() if n > 1]
    if twice:
        raise DataError(f"{TABLE} names {twice[0]} twice")
    return rows


def check(root: Path, release: Release = OFFICIAL) -> None:
    """Raises DataError unless the table is complete and every clip that it names is there, not empty and not cut short.

    Of other files than wav the length is not known without decoding; training names those that break off.
    """
    lacking = [r.path for r in check_table(root, release) if not _whole(r.path)]
    if lacking:
        raise DataError(f"{len(lacking):,} clips are missing, empty or cut short, the first is {lacking[0].name}")


def _whole(path: Path) -> bool:
    """Whether the file holds something and, if it is a wav file, as many bytes as its head (RIFF) says."""
    try:
        with path.open("rb") as file:
            head, size = file.read(8), path.stat().st_size
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    return size > 0 and (head[:4] != b"RIFF" or size >= 8 + int.from_bytes(head[4:], "little"))


# ---- the archive


def unpack(archive: Path, root: Path, release: Release = OFFICIAL) -> None:
    """The table and the clips that it names, from the zip file into `root`; every checksum is compared on the way.

    Raises ArchiveError where the archive is at fault, DataError where the disk is; `root` is then as it was.
    """
    print(f"checking and unpacking {archive} ...", flush=True)
    # Inside root, not beside it: root may be where a volume is mounted, and moving must not become copying. The name
    # is fixed, so that the next run clears away what a killed one left.
    new = root / ".esc50-unpacking"
    with writing(root):
        try:
            shutil.rmtree(new, ignore_errors=True)
            for folder in (new, new / "audio", new / "meta"):
                folder.mkdir()
            with zipfile.ZipFile(archive) as source:
                _extract(source, new, release)
            check(new, release)
            for path in sorted(new.iterdir(), key=lambda path: path.name == "meta"):  # meta last
                path.rename(root / path.name)
        except OSError as e:
            if e.errno != errno.EINVAL:  # zipfile was sent to an offset before the file's start
                raise
            raise ArchiveError(f"{archive} is not a sound zip file") from e
        except DAMAGE as e:
            raise ArchiveError(f"{archive}: {e}") from e
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _extract(source: zipfile.ZipFile, new: Path, release: Release) -> None:
    """Asks the archive for files by names made here or allowed by PLAIN; its own paths never reach the disk."""
    tops = [
        name.removesuffix(TABLE) for name in source.namelist() if re.fullmatch(rf"([^/]+/)?{re.escape(TABLE)}", name)
    ]
    if len(tops) != 1:
        raise ArchiveError(f"one {TABLE} is needed, {len(tops)} are in it")
    top = tops[0]

    def member(name: str) -> zipfile.ZipInfo:
        try:
            info = source.getinfo(top + name)
        except KeyError as e:
            raise ArchiveError(f"{name} is missing") from e
        if info.is_dir() or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ArchiveError(f"{name} is not a plain file")
        if not 0 < info.file_size <= release.max_file:
            raise ArchiveError(f"{name} has {info.file_size:,} bytes, which no file of ESC-50 has")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(f"{name} is encrypted or packed by a method that ESC-50 does not use")
        return info

    def write(name: str, info: zipfile.ZipInfo) -> None:
        # zipfile reads no more than the size that member() has accepted, and compares the checksum at its end
        with source.open(info) as packed, (new / name).open("xb") as file:
            shutil.copyfileobj(packed, file)

    write(TABLE, member(TABLE))
    wanted = {}
    for row in check_table(new, release):
        if row.path != new / "audio" / row.path.name or not PLAIN.fullmatch(row.path.name):
            name = str(row.path).removeprefix(f"{new / 'audio'}/")
            raise ArchiveError(f"{TABLE} names {name!r}, which is no plain name of a wav file")
        wanted[f"audio/{row.path.name}"] = member(f"audio/{row.path.name}")
    wanted |= {name: member(name) for name in TEXTS if top + name in source.NameToInfo}
    total = sum(info.file_size for info in wanted.values())
    if total > release.max_total:
        raise ArchiveError(f"it would take {total / 1e6:,.0f} MB, more than ESC-50 has")
    require_room(new, total)
    for name, info in wanted.items():
        write(name, info)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk or a read-only folder as one sentence."""
    try:
        yield
    except OSError as e:
        raise DataError(
            f"{e.filename or path}: {e.strerror or e}; make room or make it writable, or choose another --root"
        ) from e


def require_room(folder: Path, needed: int) -> None:
    """Raises OSError, as a write would later. A volume that does not tell its size is believed."""
    disk = shutil.disk_usage(folder)
    if disk.total and disk.free < needed:
        raise OSError(
            errno.ENOSPC, f"{needed / 1e6:,.0f} MB are needed, {disk.free / 1e6:,.0f} MB are free", str(folder)
        )


# ---- the download


def download(url: str, part: Path, release: Release = OFFICIAL) -> None:
    """`url` into `part`, going on where `part` ends. Raises DataError that says how to do without.

    Whether the file still is what the first half came from shows when it is unpacked: GitHub's archives have neither
    a length nor a tag that a range could be tied to.
    """
    reason = ""
    if not zipfile.is_zipfile(part):  # else it was complete, and the run was ended while unpacking
        with writing(part.parent):
            require_room(part.parent, max(release.archive_bytes - _size(part), 0) + release.max_total)
    for _ in range(TRIES):
        if zipfile.is_zipfile(part):
            return
        before = _size(part)
        try:
            _receive(url, part, release)
            reason = "the archive's end did not come"
        except Broken as e:
            reason = str(e)
        if _size(part) == before:
            break
    if zipfile.is_zipfile(part):
        return
    by_hand = (
        f"fetch {url} (about {release.archive_bytes / 1e6:,.0f} MB) by other means and put it at "
        f"{part.with_suffix('')}, or name it with --archive"
    )
    if _size(part):
        raise DataError(
            f"the download broke off at {_size(part) / 1e6:,.1f} MB ({reason}): "
            f"run the command again to go on from there, or {by_hand}"
        )
    raise DataError(f"the archive cannot be downloaded ({reason}): {by_hand}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(url: str, part: Path, release: Release) -> None:
    """One connection; a server that ignores ranges starts again. Raises Broken where it ends early and this shows."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        e.close()
        if e.code == 416:  # nothing comes after what is here, and yet it is no archive
            part.unlink(missing_ok=True)
        raise Broken(f"the server answers {e.code} {e.reason}") from e
    except (OSError, http.client.HTTPException) as e:
        raise Broken(str(getattr(e, "reason", e)) or type(e).__name__) from e
    with response:
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            raise Broken("the server sends another part than it was asked for")
        chunks = _chunks(response)
        first = next(chunks, b"")
        if response.status != 206:  # the whole file, whatever was asked for
            have = 0
            if not first.startswith(b"PK"):  # a log-in page of the network, say: keep what is here
                raise Broken("the answer is not a zip file")
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        with writing(part), part.open("ab" if have else "wb") as file, Bar(have, total, release.archive_bytes) as bar:
            for chunk in itertools.chain([first], chunks):
                file.write(chunk)
                bar.add(len(chunk))
    if total is not None and _size(part) < total:
        raise Broken("the connection was closed early")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What comes, as it comes. Raises Broken, so that errors of the line are not taken for errors of the disk."""
    try:
        while chunk := response.read1(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as e:
        raise Broken(str(e) or type(e).__name__) from e


class Bar:
    """A live bar on a terminal, a plain line every ten seconds in a log. Sizes in bytes; total None: not told."""

    def __init__(self, have: int, total: int | None, about: int) -> None:
        self.have, self.first, self.total, self.about = have, have, total, about
        self.live = sys.stdout.isatty()
        self.start = self.shown = time.monotonic()

    def __enter__(self) -> "Bar":
        print(f"downloading, {'from ' + format(self.have / 1e6, '.1f') + ' MB on' if self.have else 'from the start'}")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        print(f"{chr(13) if self.live else ''}{self}{chr(27) + '[K' if self.live else ''}", flush=True)

    def add(self, count: int) -> None:
        self.have += count
        now = time.monotonic()
        if now - self.shown >= (0.2 if self.live else 10.0):
            self.shown = now
            print(f"\r{self}\033[K" if self.live else self, end="" if self.live else "\n", flush=True)

    def __str__(self) -> str:
        whole = self.total or max(self.about, self.have)
        filled = 24 * self.have // max(whole, 1)
        rate = (self.have - self.first) / max(time.monotonic() - self.start, 1e-9)
        left = f"  {(whole - self.have) / rate / 60:.0f} min left" if rate and whole > self.have else ""
        return (
            f"[{'#' * filled}{'.' * (24 - filled)}]  {self.have / 1e6:.1f} of {'' if self.total else 'about '}"
            f"{whole / 1e6:.0f} MB  {rate / 1e6:.1f} MB/s{left}"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.esc50", description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="folder for audio/ and meta/esc50.csv")
    parser.add_argument("--archive", type=Path, help=f"zip file fetched by hand (default: ROOT/{ARCHIVE}, if there)")
    args = parser.parse_args(argv)
    try:
        print(prepare(args.root, archive=args.archive, url=URL, release=OFFICIAL))
    except DataError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: what has been downloaded is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
