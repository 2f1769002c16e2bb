"""best_model.pth: one file that explains itself. Save, load, verify, find.

The file holds plain types and tensors only and is read with `weights_only=True`: no code in it is ever run. What does
not fit is refused in words, never patched; a file written before a setting existed gets the value it was trained with.
"""

import dataclasses
import io
import os
import pickle
import re
import types
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from cnn.labels import ESC50
from cnn.mel import MelConfig
from cnn.model import AudioCNN, ModelConfig

FORMAT = "audio-cnn/1"
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")
NAMES = ("best_model.pth", "best_models.pth")  # both spellings exist in the family
BOX = Path(__file__).resolve().parent.parent / "assets" / "models"
DEFAULT = BOX / "ensemble" / "best_model.pth"
MAX_BYTES = 500_000_000
MAX_PARAMETERS = 200_000_000
SINCE = {"model": {"stem_stride": 2, "groups": 1}}  # younger than the format: what files without them were trained with

Config = TypeVar("Config", ModelConfig, MelConfig)


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file, what is wrong and the way out."""


class NotWritten(CheckpointError):
    """There is no room for it, or no right to write it."""


class NotRead(CheckpointError):
    """It may be as good as ever: there is no right to read it, or the disk or the memory fails."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    model: ModelConfig
    mel: MelConfig
    labels: tuple[str, ...]  # in the order of the logits
    state_dict: dict[str, Tensor]
    calibration: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # of this very file
    recipe: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)  # data, licence, folds trained on and held out, versions

    @cached_property
    def parameter_count(self) -> int:
        with torch.device("meta"):  # shapes without memory
            return AudioCNN(self.model).parameter_count

    @property
    def network(self) -> str:
        """What it is, for people: 'resnet34, 21.3 M parameters, 16 kHz'."""
        millions = f"{self.parameter_count / 1e6:.1f} M parameters"
        return f"{self.model.title}, {millions}, {self.mel.sample_rate / 1000:g} kHz"

    def build(self) -> AudioCNN:
        """The network with these weights, float32, in evaluation mode."""
        model = AudioCNN(self.model)
        model.load_state_dict(self.state_dict)
        return model.float().eval()


def half(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float16 for shipping; BatchNorm's tensors stay float32: variances leave float16's range."""
    norms = {k.rsplit(".", 1)[0] for k in state_dict if k.endswith(".running_var")}
    return {
        k: v.half() if v.is_floating_point() and k.rsplit(".", 1)[0] not in norms else v.clone()
        for k, v in state_dict.items()
    }


def save(checkpoint: Checkpoint, path: str | os.PathLike) -> None:
    """Write `path` whole or not at all: a temporary name beside it, then `os.replace`.

    Raises NotWritten when the folder cannot be written or is full; an older file there stays as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    payload = {
        "format": FORMAT,
        "model": dataclasses.asdict(checkpoint.model),
        "mel": dataclasses.asdict(checkpoint.mel),
        "labels": list(checkpoint.labels),
        "state_dict": {k: v.detach().cpu().contiguous() for k, v in checkpoint.state_dict.items()},
        "calibration": checkpoint.calibration,
        "metrics": checkpoint.metrics,
        "recipe": checkpoint.recipe,
        "provenance": checkpoint.provenance,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(payload, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as e:  # torch's zip writer reports a full disk as RuntimeError
        raise NotWritten(f"{path} could not be written ({e}): free some space or choose another folder") from e
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> Checkpoint:
    """Read and verify. Raises CheckpointError saying what is wrong with the file."""
    path = Path(path)
    if path.is_dir() or not path.exists():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {kind}: name a best_model.pth")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"{path} has {size / 1e6:.0f} MB, more than a network of this family can need")
        payload = unpacked(path)
    except pickle.UnpicklingError as e:
        raise CheckpointError(
            f"{path} was not loaded: it is damaged, or holds more than weights and plain values and could run code; "
            "use a file written by this project"
        ) from e
    except CheckpointError:
        raise
    except (OSError, MemoryError) as e:
        raise NotRead(f"{path} cannot be read now ({why(e)}): check its permissions and the disk") from e
    except Exception as e:  # a file of any other kind can fail in any way inside torch's readers
        raise CheckpointError(f"{path} cannot be read as a checkpoint: damaged, cut off or of another kind") from e
    return _verify(payload, path)


def unpacked(path: Path) -> Any:
    """What torch.save wrote: tensors and plain values.

    Raises OSError or MemoryError where it cannot be read, any other error where it is not as it was written: torch 2.14
    does not compare the checksums in it, a flipped bit would be another weight.
    """
    content = io.BytesIO(path.read_bytes())  # from a file torch's readers raise OSError for what is cut off, too
    if zipfile.is_zipfile(content):
        with zipfile.ZipFile(content) as archive:
            if sum(record.file_size for record in archive.infolist()) > 2 * len(content.getbuffer()):
                raise zipfile.BadZipFile("torch.save does not compress")  # it would swell on being read
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is not as it was written")
    content.seek(0)
    return torch.load(content, map_location="cpu", weights_only=True)


def why(error: BaseException) -> str:
    """In the system's words, without its number and the path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def find(model: str | os.PathLike | None = None) -> Path:
    """Where the weights are: what is given, $AUDIO_CNN_MODEL, the working directory, the box.

    `model` is a file, a folder that holds one, a network in the box (`resnet34`) or on the Hugging Face Hub
    (`OWNER/NAME` or `OWNER/NAME@REVISION`, fetched once). Raises CheckpointError naming what was tried.
    """
    wanted, origin = (model, "") if model else (os.environ.get("AUDIO_CNN_MODEL"), " (from AUDIO_CNN_MODEL)")
    if wanted:
        path = Path(wanted)
        if path.is_dir():
            for name in NAMES:
                if (path / name).is_file():
                    return path / name
            raise CheckpointError(f"{path}{origin} holds neither {' nor '.join(NAMES)}")
        if path.exists():
            return path
        boxed = BOX / str(wanted) / NAMES[0]
        if path.name == str(wanted) and boxed.is_file():
            return boxed
        if (hub_id := HUB_ID.fullmatch(str(wanted))) and path.suffix not in (".pth", ".pt"):
            return _from_hub(*hub_id.groups())
        known = ", ".join(p.parent.name for p in in_box()) or "nothing"
        raise CheckpointError(f"{wanted}{origin} does not exist: give the path of a checkpoint; in the box: {known}")
    for name in NAMES:
        if Path(name).is_file():
            return Path(name)
    if DEFAULT.is_file():
        return DEFAULT
    raise CheckpointError(f"no weights: {DEFAULT} is missing; give --model PATH or set AUDIO_CNN_MODEL")


def in_box() -> list[Path]:
    """The weights in the box, the one that answers unless told otherwise first."""
    return sorted(BOX.glob(f"*/{NAMES[0]}"), key=lambda path: (path != DEFAULT, path))


def _from_hub(repo: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        endpoint = os.environ.get("HF_ENDPOINT")  # another Hub than the public one
        return Path(hf_hub_download(repo, NAMES[0], revision=revision, endpoint=endpoint))
    except HFValidationError as e:  # '../weights' looks like OWNER/NAME
        raise CheckpointError(f"{repo} is no file here, and no name on the Hub: give a path, or OWNER/NAME") from e
    except LocalEntryNotFoundError as e:
        raise CheckpointError(f"{repo} is no file here, and the Hugging Face Hub cannot be reached to ask there") from e
    except HfHubHTTPError as e:
        raise CheckpointError(
            f"{repo} is no file here, and on the Hugging Face Hub there is no {NAMES[0]} in {repo}"
            f"{f' at {revision}' if revision else ''} that may be read: check the name, or log in with hf auth login"
        ) from e


def _verify(payload: Any, path: Path) -> Checkpoint:
    kinds = {"format": str, "model": dict, "mel": dict, "labels": list, "state_dict": dict}
    kinds |= {"calibration": dict, "metrics": dict, "recipe": dict, "provenance": dict}
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path} holds a {type(payload).__name__}, not a checkpoint")
    if lacking := [k for k in kinds if k not in payload]:
        raise CheckpointError(f"{path} lacks {', '.join(lacking)}: it was not written by this project")
    if payload["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {str(payload['format'])[:40]!r}, this version reads {FORMAT!r}")
    if wrong := [k for k, kind in kinds.items() if not isinstance(payload[k], kind)]:
        raise CheckpointError(f"{path}: {', '.join(wrong)} should be {', '.join(kinds[k].__name__ for k in wrong)}")
    model = _config(ModelConfig, payload["model"], "model", path)
    mel = _config(MelConfig, payload["mel"], "mel", path)
    labels = payload["labels"]
    if len(labels) != model.num_classes or len(set(map(str, labels))) != len(labels):
        raise CheckpointError(f"{path}: {len(labels)} labels for a network of {model.num_classes} classes")
    if unknown := [x for x in labels if x not in ESC50]:
        raise CheckpointError(f"{path}: {str(unknown[0])[:40]!r} is not a class of ESC-50")
    with torch.device("meta"):  # shapes without memory: a hostile configuration cannot ask for any
        expected = AudioCNN(model).state_dict()
    if sum(tensor.numel() for tensor in expected.values()) > MAX_PARAMETERS:
        raise CheckpointError(f"{path}: a network of more than {MAX_PARAMETERS / 1e6:.0f} M parameters is not loaded")
    state = payload["state_dict"]
    if lacking := [k for k in expected if k not in state]:
        raise CheckpointError(f"{path}: {len(lacking)} tensors of {model.name} are missing, first {lacking[0]}")
    if surplus := [k for k in state if k not in expected]:
        first = str(surplus[0])[:60]
        raise CheckpointError(f"{path}: {len(surplus)} tensors have no place in {model.name}, first {first}")
    for key, wanted in expected.items():
        if not isinstance(state[key], Tensor) or state[key].shape != wanted.shape:
            found = tuple(state[key].shape) if isinstance(state[key], Tensor) else type(state[key]).__name__
            raise CheckpointError(f"{path}: {key} is {found}, {model.name} needs {tuple(wanted.shape)}")
        dense = state[key].layout is torch.strided and not state[key].is_quantized
        if not dense or state[key].is_floating_point() != wanted.is_floating_point():
            raise CheckpointError(f"{path}: {key} holds {state[key].dtype}, {model.name} needs plain {wanted.dtype}")
        if not torch.isfinite(state[key]).all():
            raise CheckpointError(f"{path}: {key} holds NaN or infinite numbers; the training went wrong")
    extras = {k: payload[k] for k in ("calibration", "metrics", "recipe", "provenance")}
    return Checkpoint(model=model, mel=mel, labels=tuple(labels), state_dict=state, **extras)


def _config(kind: type[Config], values: dict, part: str, path: Path) -> Config:
    values = SINCE.get(part, {}) | values
    known = {f.name for f in dataclasses.fields(kind)}
    if set(values) != known:
        odd = sorted(map(str, set(values) ^ known))
        raise CheckpointError(f"{path}: {part} settings do not fit this version: {', '.join(odd)[:200]}")
    for f in dataclasses.fields(kind):
        # every annotation here is a plain type or a tuple of one; an int will do for a float, a bool for neither
        plain = tuple if isinstance(f.type, types.GenericAlias) else f.type
        allowed = {float: (int, float), tuple: (tuple, list)}.get(plain, plain)
        if not isinstance(values[f.name], allowed) or (isinstance(values[f.name], bool) and plain is not bool):
            found = str(values[f.name])[:40]
            raise CheckpointError(f"{path}: {part} setting {f.name} is {found!r}, not {plain.__name__}")
    try:
        return kind(**values)
    except (ValueError, TypeError) as e:
        raise CheckpointError(f"{path}: {part} settings are wrong: {e}") from e
