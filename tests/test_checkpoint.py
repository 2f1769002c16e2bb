"""best_model.pth: what goes in comes out; what does not fit, is broken or hostile is refused in words."""

import dataclasses
import errno
import pickle
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from unittest import mock

import pytest
import torch

from cnn import checkpoint
from cnn.checkpoint import CheckpointError
from tests.conftest import flipped


@pytest.fixture
def payload(tiny: Path) -> dict:
    return torch.load(tiny, weights_only=True)


def write(tmp_path: Path, payload: object) -> Path:
    path = tmp_path / "changed.pth"
    torch.save(payload, path)
    return path


def test_what_is_saved_is_what_is_loaded(tiny: Path, tmp_path: Path):
    first = checkpoint.load(tiny)
    first = dataclasses.replace(first, metrics={"accuracy": 0.5}, provenance={"fold_held_out": 5})
    checkpoint.save(first, tmp_path / "deep" / "best_model.pth")
    second = checkpoint.load(tmp_path / "deep" / "best_model.pth")
    for field in ("model", "mel", "labels", "metrics", "provenance", "recipe", "calibration"):
        assert getattr(second, field) == getattr(first, field)
    assert all(torch.equal(second.state_dict[k], v) for k, v in first.state_dict.items())
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "best_model.pth"]


def test_half_precision_keeps_batchnorm_in_float32_and_the_network_runs(tiny: Path, tmp_path: Path):
    full = checkpoint.load(tiny)
    state = checkpoint.half(full.state_dict)
    assert state["layer1.0.conv1.weight"].dtype == torch.float16
    assert {state[f"bn1.{k}"].dtype for k in ("weight", "bias", "running_mean", "running_var")} == {torch.float32}
    checkpoint.save(dataclasses.replace(full, state_dict=state), tmp_path / "half.pth")
    model = checkpoint.load(tmp_path / "half.pth").build()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_file_older_than_a_setting_is_read_as_it_was_trained(payload: dict, tmp_path: Path):
    del payload["model"]["stem_stride"], payload["model"]["groups"]
    network = checkpoint.load(write(tmp_path, payload)).build()
    assert network.conv1.stride == (2, 2) and network.conv1.kernel_size == (7, 7)
    assert network.layer1[0].conv1.groups == 1


def edit(key: str, value: object):
    def change(payload: dict) -> dict:
        target = payload
        *parents, last = key.split("/")
        for parent in parents:
            target = target[parent]
        if value is None:
            del target[last]
        else:
            target[last] = value
        return payload

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: [1, 2], "holds a list"),
        (lambda p: p["state_dict"], "lacks format, model"),  # the family's older files
        (edit("labels", None), "lacks labels"),
        (edit("format", "other/9"), "other/9"),
        (edit("mel", [1]), "mel should be dict"),
        (edit("model/width", 8), "conv1.weight is"),
        (edit("model/width", 10**9), "beyond this family"),
        (edit("model/width", "wide"), "setting width is 'wide', not int"),
        (edit("model/width", 4.0), "setting width is '4.0', not int"),
        (edit("model/depths", [3, "x"]), "model settings are wrong"),
        (edit("mel/hop_length", 320.5), "setting hop_length is '320.5', not int"),
        (edit("mel/mean", float("nan")), "finite"),
        (edit("mel/n_mels", 10**6), "beyond what a front end"),
        (edit("state_dict/bn1.weight", torch.ones(4).to_sparse()), "bn1.weight holds"),
        (edit("state_dict/bn1.weight", torch.ones(4, dtype=torch.complex64)), "bn1.weight holds torch.complex64"),
        (edit("model/colour", "blue"), "colour"),
        (edit("mel/std", 0.0), "std"),
        (edit("labels", ["dog"] * 50), "50 labels"),
        (edit("labels", ["<b>"] + [str(i) for i in range(49)]), "not a class of ESC-50"),
        (edit("state_dict/conv1.weight", None), "missing, first conv1.weight"),
        (edit("state_dict/extra", torch.zeros(1)), "no place in resnet34, first extra"),
        (edit("state_dict/bn1.weight", torch.full((4,), float("nan"))), "NaN"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_wrong(payload: dict, tmp_path: Path, change, says: str):
    path = write(tmp_path, change(payload))
    with pytest.raises(CheckpointError, match=says) as caught:
        checkpoint.load(path)
    assert "changed.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path):
    trap = tmp_path / "trap"

    class Evil:
        def __reduce__(self):
            return Path.touch, (trap,)

    for dump in (torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))):
        path = tmp_path / "evil.pth"
        dump({"format": checkpoint.FORMAT, "model": Evil()}, path)
        with pytest.raises(CheckpointError, match="could run code"):
            checkpoint.load(path)
        assert not trap.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_cut_off_file_is_refused(tiny: Path, tmp_path: Path, keep: float):
    whole = tiny.read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        checkpoint.load(path)


def test_a_flipped_bit_is_noticed(tiny: Path, tmp_path: Path):
    path = flipped(tiny, tmp_path / "flipped.pth")
    assert len(torch.load(path, weights_only=True)) == len(torch.load(tiny, weights_only=True))  # torch does not mind
    with pytest.raises(CheckpointError, match=r"flipped\.pth cannot be read as a checkpoint: damaged"):
        checkpoint.load(path)


def test_a_file_that_would_swell_is_not_unpacked(tmp_path: Path, monkeypatch):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", bytes(10_000_000))
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: pytest.fail("unpacked"))
    with pytest.raises(CheckpointError, match=r"bomb\.pth cannot be read as a checkpoint"):
        checkpoint.load(path)


def test_a_file_that_cannot_be_read_now_is_not_called_damaged(tiny: Path, monkeypatch):
    for fault, told in ((PermissionError(errno.EACCES, "Permission denied"), "Permission denied"), (MemoryError(), "")):
        monkeypatch.setattr(Path, "read_bytes", mock.Mock(side_effect=fault))
        with pytest.raises(checkpoint.NotRead, match=rf"cannot be read now \(.*{told}.*\): check its permissions"):
            checkpoint.load(tiny)


@pytest.mark.parametrize("content", [b"not a checkpoint\n", b"PK\3\4 not a zip", bytes(range(256))])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        checkpoint.load(path)


def test_a_failed_write_leaves_the_older_file_and_no_rubbish(tiny: Path, tmp_path: Path, monkeypatch):
    path = tmp_path / "best_model.pth"
    path.write_bytes(tiny.read_bytes())

    def full_disk(_payload, part: Path):
        part.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save(checkpoint.load(tiny), path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == tiny.read_bytes()


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch) -> Iterator[None]:
    """A Hub on this machine that has one repository, owner/name, with one revision besides main."""
    weights = tiny.read_bytes()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            found = self.path in [f"/owner/name/resolve/{r}/best_model.pth" for r in ("main", "v1")]
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(weights) if found else 0))
            if not found:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(weights)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield
    server.shutdown()
    server.server_close()


def test_weights_come_from_the_hub_by_name_and_revision(hub, tiny: Path, capsys):
    for name in ("owner/name", "owner/name@v1"):
        assert checkpoint.find(name).read_bytes() == tiny.read_bytes()
    with pytest.raises(CheckpointError, match=r"no best_model\.pth in owner/other at v2"):
        checkpoint.find("owner/other@v2")


def test_a_hub_that_cannot_be_reached_is_said_to_be(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its retries
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match="cannot be reached"):
        checkpoint.find("owner/name")


def test_weights_are_looked_for_in_the_order_of_the_design(tiny: Path, tmp_path: Path, monkeypatch):
    work, box = tmp_path / "work", tmp_path / "box"
    for folder in (work, box / "resnet34"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setattr(checkpoint, "BOX", box)
    monkeypatch.setattr(checkpoint, "DEFAULT", box / "resnet34" / "best_model.pth")
    monkeypatch.delenv("AUDIO_CNN_MODEL", raising=False)
    with pytest.raises(CheckpointError, match="no weights"):
        checkpoint.find()
    for path in (box / "resnet34" / "best_model.pth", work / "best_models.pth", work / "best_model.pth"):
        path.write_bytes(tiny.read_bytes())
        assert checkpoint.find().resolve() == path
    monkeypatch.setenv("AUDIO_CNN_MODEL", str(tiny))
    assert checkpoint.find() == tiny
    assert checkpoint.find("resnet34") == box / "resnet34" / "best_model.pth"
    assert checkpoint.find(work) == work / "best_model.pth"
    (box / "another").mkdir()
    (box / "another" / "best_model.pth").touch()
    assert [path.parent.name for path in checkpoint.in_box()] == ["resnet34", "another"]  # the best one first
    with pytest.raises(CheckpointError, match="in the box: resnet34, another"):
        checkpoint.find("nowhere.pth")
    with pytest.raises(CheckpointError, match="no name on the Hub"):  # though it has the form of one
        checkpoint.find("../nowhere")
