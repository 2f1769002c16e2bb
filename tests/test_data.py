"""The data folder as it is read, and the clips decoded once: never another clip's numbers, never half a file."""

import dataclasses
import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cnn import audio
from cnn.audio import AudioError
from cnn.mel import LogMel, MelConfig
from training import cache, data
from training.data import DataError, Row, in_folds, load_db, read_rows
from training.splits import inner_split

MEL = MelConfig(sample_rate=8_000, n_fft=256, win_length=256, hop_length=128, n_mels=8, f_max=4_000, seconds=0.2)
CLIPS = (("dog", 16_000, 0.2), ("rain", 8_000, 0.1), ("rooster", 11_025, 0.3), ("dog", 44_100, 0.2))


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Four clips of different rates, shorter and longer than the window, with their csv."""
    (tmp_path / "esc" / "audio").mkdir(parents=True)
    (tmp_path / "esc" / "meta").mkdir()
    rng = np.random.default_rng(0)
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for i, (label, rate, seconds) in enumerate(CLIPS):
        soundfile.write(tmp_path / "esc" / "audio" / f"{i}.wav", rng.normal(0, 0.1, round(rate * seconds)), rate)
        lines.append(f"{i}.wav,{i % 2 + 1},0,{label},{label != 'rooster'},{i // 2},A")
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text("\n".join(lines))
    return read_rows(tmp_path / "esc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@contextmanager
def nothing_decoded() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "load", lambda *_, **__: pytest.fail("a clip was decoded"))
        yield


def kept(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_clips_are_decoded_once_and_then_mapped_to_the_bit(rows: list[Row], folder: Path, capsys):
    front_end, expected = LogMel(MEL), []
    for row in rows:
        clip = audio.load(row.path)
        window = audio.windows(audio.resample(clip.samples, clip.rate, MEL.sample_rate)[: MEL.samples], 8_000, 0.2)[0]
        expected.append(10 * front_end.power(torch.from_numpy(window))[0].clamp_min(1e-10).log10())
    first, heard = load_db(rows, MEL, folder)
    assert heard.lowest_rate == 8_000 and heard.odd == 0 and torch.equal(first, torch.stack(expected))
    assert str(kept(folder)) in Path("/proc/self/maps").read_text()
    del first
    with nothing_decoded():
        second, heard = load_db(rows, MEL, folder)
    assert heard.lowest_rate == 8_000 and heard.odd == 0 and torch.equal(second, torch.stack(expected))
    assert str(kept(folder)) in Path("/proc/self/maps").read_text()
    second[:] = 0.0  # the caller's own; the file stays
    assert torch.equal(load_db(rows, MEL, folder)[0], torch.stack(expected))
    assert capsys.readouterr().err == ""


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit in the values": lambda b: b[:-100] + bytes([b[-100] ^ 1]) + b[-99:],
    "a flipped bit in the header": lambda b: b.replace(b'"lowest_rate": 8000', b'"lowest_rate": 9000'),
    "a missing end": lambda b: b[:-4],
    "too much": lambda b: b + bytes(4),
    "nothing in it": lambda b: b"",
    "text": lambda b: b"not ours\n" * 1000,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_noticed_and_made_anew(damage, rows: list[Row], folder: Path, capsys):
    db, rate = load_db(rows, MEL, folder)
    path = kept(folder)
    whole = path.read_bytes()
    assert damage(whole) != whole
    path.unlink()  # mapped
    path.write_bytes(damage(whole))
    again, rate_again = load_db(rows, MEL, folder)
    assert torch.equal(again, db) and rate_again == rate
    assert capsys.readouterr().err == f"{path} is damaged: it is made anew\n"
    assert kept(folder) == path and path.read_bytes() == whole


def test_a_sound_file_of_other_clips_under_this_name_is_not_used(rows: list[Row], folder: Path, tmp_path: Path, capsys):
    db, _ = load_db(rows, MEL, folder)
    load_db(rows[::-1], MEL, tmp_path / "other")
    os.replace(kept(tmp_path / "other"), kept(folder))
    assert torch.equal(load_db(rows, MEL, folder)[0], db)
    assert capsys.readouterr().err == f"{kept(folder)} holds something else: it is made anew\n"


def test_what_is_kept_goes_by_the_clips_bytes_and_their_order(rows: list[Row], folder: Path, tmp_path: Path):
    db, _ = load_db(rows, MEL, folder)
    shutil.move(tmp_path / "esc", tmp_path / "moved")
    rows = [dataclasses.replace(r, path=tmp_path / "moved" / "audio" / r.path.name) for r in rows]
    for row in rows:
        os.utime(row.path, (0, 0))
    with nothing_decoded():
        assert torch.equal(load_db(rows, MEL, folder)[0], db)
    assert torch.equal(load_db(rows[::-1], MEL, folder)[0], db.flip(0))
    samples = bytearray(rows[1].path.read_bytes())
    samples[-1] ^= 64  # as long and as old as before
    rows[1].path.write_bytes(samples)
    os.utime(rows[1].path, (0, 0))
    changed = load_db(rows, MEL, folder)[0]
    assert torch.equal(changed[[0, 2, 3]], db[[0, 2, 3]]) and not torch.equal(changed[1], db[1])


def test_recipes_share_a_file_unless_their_pictures_differ(rows: list[Row], folder: Path, monkeypatch):
    db, _ = load_db(rows, MEL, folder)
    with nothing_decoded():
        later = dataclasses.replace(MEL, floor_db=-60.0, relative=True, mean=1.0, std=2.0)
        assert torch.equal(load_db(rows, later, folder)[0], db)
    lower = load_db(rows, dataclasses.replace(MEL, f_min=100.0), folder)[0]
    assert lower.shape == db.shape and not torch.equal(lower, db)
    monkeypatch.setattr(data, "FRONT_END", data.FRONT_END + 1)
    assert torch.equal(load_db(rows, MEL, folder)[0], db)
    assert len(list(folder.iterdir())) == 3


@contextmanager
def full_disk() -> Iterator[None]:
    """Files cannot grow beyond 4 kB: the header fits, the values do not."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_table_that_may_not_be_read_is_told_as_such(tmp_path: Path, monkeypatch):
    def denied(_: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "is_file", denied)  # nobody denies root anything
    with pytest.raises(DataError, match=r"esc50\.csv cannot be read \(Permission denied\): check its permissions"):
        read_rows(tmp_path)


def test_without_room_or_leave_to_write_the_clips_stay_in_memory(rows: list[Row], folder: Path, tmp_path: Path, capsys):
    db, rate = load_db(rows, MEL, tmp_path / "good")
    assert capsys.readouterr().err == ""
    folder.mkdir()
    with full_disk():
        told = load_db(rows, MEL, folder)
    assert torch.equal(told[0], db) and told[1] == rate and list(folder.iterdir()) == []
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "no folder").write_text("")
    told = load_db(rows, MEL, tmp_path / "no folder" / "cache")
    assert torch.equal(told[0], db) and told[1] == rate
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no folder/cache cannot keep the 4 decoded clips" in said
    assert "AUDIO_CNN_CACHE" in said


def test_two_that_decode_at_once_do_not_harm_each_other(rows: list[Row], folder: Path, monkeypatch, capsys):
    """The second begins and ends while the first is writing."""
    meanwhile: list[torch.Tensor] = []
    replace = os.replace

    def slow(source: Path, target: Path) -> None:
        if not meanwhile:
            meanwhile.append(torch.empty(0))
            meanwhile.append(load_db(rows, MEL, folder)[0])
            assert len(list(folder.iterdir())) == 2  # its whole file, and ours not yet
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow)
    first, _ = load_db(rows, MEL, folder)
    assert torch.equal(meanwhile[1], first) and kept(folder).suffix == ".mel"
    with nothing_decoded():
        assert torch.equal(load_db(rows, MEL, folder)[0], first)
    assert capsys.readouterr().err == ""


def test_what_was_not_used_for_longest_makes_room_and_nothing_of_others_is_touched(
    rows: list[Row], folder: Path, monkeypatch
):
    pictures = {n: load_db(rows[:n], MEL, folder)[0] for n in (1, 2, 3)}
    files = sorted(folder.iterdir(), key=lambda p: p.stat().st_size)  # of one, two and three clips
    for age, path in zip((3, 2, 1), files, strict=True):
        os.utime(path, (1e9 - age, 1e9 - age))
    load_db(rows[:1], MEL, folder)  # the oldest is used once more
    others = [folder / "notes.mel", folder / f"{files[0].name}.{32 * '0'}.part"]
    abandoned = folder / f"{files[0].name}.{32 * '1'}.part"
    for path in (*others, abandoned):
        path.write_bytes(bytes(100_000))
    os.utime(abandoned, (1e9, 1e9))
    os.utime(others[0], (1e9, 1e9))
    sizes = [path.stat().st_size for path in files]
    monkeypatch.setattr(cache, "LIMIT", sizes[0] + sizes[2] + sizes[2] + 500)
    db, _ = load_db(rows, MEL, folder)
    left = set(folder.iterdir())
    assert files[1] not in left and abandoned not in left and left >= {files[0], files[2], *others}
    assert torch.equal(pictures[2], db[:2])  # a run that maps the deleted file goes on
    monkeypatch.setattr(cache, "LIMIT", 1)
    os.utime(files[2], (2e9, 2e9))
    load_db(rows[::-1], MEL, folder)
    (last,) = set(folder.glob("?*.mel")) - {others[0]}  # the newest stays even where it alone is too much
    assert last not in files


def test_a_missing_or_broken_clip_is_named_and_nothing_is_kept(rows: list[Row], folder: Path):
    rows[2].path.write_text("not sound")
    with pytest.raises(AudioError, match=r"2\.wav"):
        load_db(rows, MEL, folder)
    rows[2].path.unlink()
    with pytest.raises(DataError, match=r"2\.wav is named in meta/esc50\.csv but missing"):
        load_db(rows, MEL, folder)
    assert not folder.exists()


def test_the_cache_is_where_the_user_or_the_desktop_wants_it(rows: list[Row], tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("AUDIO_CNN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.default_cache() == tmp_path / "home" / ".cache" / "audio-cnn"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_cache() == tmp_path / "xdg" / "audio-cnn"
    monkeypatch.setenv("AUDIO_CNN_CACHE", str(tmp_path / "chosen"))
    load_db(rows, MEL)
    assert kept(tmp_path / "chosen").suffix == ".mel"


def test_the_csv_decides_which_clips_there_are(rows: list[Row], tmp_path: Path):
    assert [(r.path.name, r.fold, r.label, r.source) for r in rows[:2]] == [
        ("0.wav", 1, "dog", "0"),
        ("1.wav", 2, "rain", "0"),
    ]
    assert [r.label for r in read_rows(tmp_path / "esc", esc10=True)] == ["dog", "rain", "dog"]
    assert [r.path.name for r in in_folds(rows, [2])] == ["1.wav", "3.wav"]
    with pytest.raises(DataError, match="no clip in fold 7; there are 1, 2 "):
        in_folds(rows, [7])
    with pytest.raises(DataError, match=r"meta/esc50\.csv is missing"):
        read_rows(tmp_path)
    table = tmp_path / "esc" / "meta" / "esc50.csv"
    table.write_text("filename,fold,category,esc10\n0.wav,1,dog,True\n1.wav,one,dog,True\n")
    with pytest.raises(DataError, match=r"line 3: the columns filename, fold \(a number\), category, esc10"):
        read_rows(tmp_path / "esc")
    table.write_text("filename,fold,category,esc10\n0.wav,1,god,True\n")
    with pytest.raises(DataError, match="line 2: 'god' is not a class of ESC-50"):
        read_rows(tmp_path / "esc")


def test_the_csv_may_come_out_of_a_spreadsheet(rows: list[Row], tmp_path: Path):
    table = tmp_path / "esc" / "meta" / "esc50.csv"
    table.write_text("filename,fold,category,esc10\n0.wav,1,dog,TRUE\n1.wav,1,rain,0\n2.wav,1,dog,1\n", "utf-8-sig")
    assert [r.path.name for r in read_rows(tmp_path / "esc")] == ["0.wav", "1.wav", "2.wav"]
    assert [r.path.name for r in read_rows(tmp_path / "esc", esc10=True)] == ["0.wav", "2.wav"]
    table.write_text("filename,fold,category,esc10\n0.wav,1,dog,yes\n")
    with pytest.raises(DataError, match=r"line 2: .*esc10 \(True or False\)"):
        read_rows(tmp_path / "esc", esc10=True)
    table.write_text("filename,fold,category,esc10\n0.wav,1,dog,False\n")
    with pytest.raises(DataError, match="no clip of ESC-10"):
        read_rows(tmp_path / "esc", esc10=True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("filename,fold,category,esc10\nhüpf.wav,1,dog,True\n".encode("latin-1"), "is not UTF-8"),
        (b"filename,fold,category,esc10\n" + b"x" * 200_000 + b",1,dog,True\n", "cannot be read as a table"),
    ],
)
def test_a_csv_that_cannot_be_read_is_named(content: bytes, told: str, rows: list[Row], tmp_path: Path):
    table = tmp_path / "esc" / "meta" / "esc50.csv"
    table.write_bytes(content)
    with pytest.raises(DataError, match=rf"meta/esc50\.csv {told}"):
        read_rows(tmp_path / "esc")


def test_a_csv_without_leave_to_read_is_named(rows: list[Row], tmp_path: Path, monkeypatch):
    def refuse(self: Path, *_, **__) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, who reads everything
    with pytest.raises(DataError, match=r"meta/esc50\.csv cannot be read \(Permission denied\): check its permissions"):
        read_rows(tmp_path / "esc")


def test_silence_alone_and_nothing_to_train_on_are_told(rows: list[Row], folder: Path):
    with pytest.raises(DataError, match="no clip is left to train on"):
        inner_split([], 0.0, np.random.default_rng(0))
    for row in rows:
        soundfile.write(row.path, np.zeros(1_600), 8_000)
    with pytest.raises(DataError, match="there is no sound in any of the 4 clips"):
        load_db(rows, MEL, folder)
    assert not folder.exists()
