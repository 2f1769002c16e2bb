"""What excites each channel: python -m cnn.atlas [--model FILE] [--data ESC50_DIR] [--out FILE]

Hears the example clips, or with --data all of ESC-50, and writes beside the weights, as atlas.json, the three clips in
which each channel of each map rose highest, and how far each gate was open on average. The file says of which weights
it is; with others it is refused. B windows, C channels, f x t cells of a map.
"""

import argparse
import csv
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnn import checkpoint
from cnn.audio import AudioError, load
from cnn.classifier import Classifier

FORMAT = "audio-cnn-atlas/1"
NAME = "atlas.json"
EXAMPLES = Path(__file__).resolve().parent.parent / "assets" / "examples"
MOST = 3  # clips per channel
HEARD = re.compile(r"conv1|.*\.relu|fpn\..*")  # written for these; the other maps peak where one of these does

Excites = dict[str, list[list[tuple[int, float, float]]]]


class AtlasError(ValueError):
    """An atlas cannot be made, written or read; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Atlas:
    clips: tuple[dict[str, str], ...]  # file (below root), label, and where known title and author
    excites: Excites  # map tap -> per channel up to three (clip number, peak, seconds), the highest peak first
    gates: dict[str, list[float]]  # gate tap -> (C,) mean over the clips
    weights: str  # fingerprint of the checkpoint
    root: str = ""  # the folder of the clips; '' for the examples in the box

    def path(self, clip: int) -> Path:
        """Where the clip of that number is, if this computer has it."""
        return Path(self.root or EXAMPLES) / self.clips[clip]["file"]


def make(classifier: Classifier, clips: Sequence[Mapping[str, str]], root: str | os.PathLike = "") -> Atlas:
    """Hear every window of every clip. Where a channel never rises above 0 nothing excites it: its list is empty or
    short. Seconds are those of the centre of the cell that peaks, at most the clip's length. Silent clips count for
    nothing. Raises AudioError for a file that is no sound, AtlasError where all are silent.
    """
    taken = Atlas(tuple(dict(clip) for clip in clips), {}, {}, fingerprint(classifier.checkpoint), os.fspath(root))
    taps = classifier.model.taps
    peaks: dict[str, list[np.ndarray]] = {tap: [] for tap in classifier.map_taps if HEARD.fullmatch(tap)}  # (C, 3) each
    opened: dict[str, list[np.ndarray]] = {tap: [] for tap, about in taps.items() if not about.is_map}  # (C,) each
    for number in range(len(clips)):
        clip = load(taken.path(number))
        parts, starts, heard = classifier.cut(clip)
        if not heard.any():
            continue
        _, kept = classifier.read(parts[heard], [*peaks, *opened], _peak)
        for tap, gates in opened.items():
            gates.append(kept[tap].mean(axis=0, dtype=np.float64))
        for tap, found in peaks.items():
            hop = taps[tap].stride * classifier.mel.hop_length / classifier.mel.sample_rate
            highest, columns = kept[tap][..., 0], kept[tap][..., 1]  # (B, C)
            window = highest.argmax(axis=0)  # (C,)
            channels = np.arange(len(window))
            seconds = starts[heard][window] + columns[window, channels] * hop
            rows = [np.full(len(window), number), highest[window, channels], np.minimum(seconds, clip.seconds)]
            found.append(np.stack(rows, axis=1, dtype=np.float32))
    if not any(peaks.values()):
        raise AtlasError("there is nothing to hear in these clips: name others with --data")
    for tap, found in peaks.items():
        taken.excites[tap] = [
            [(int(clip), _short(peak), _short(at)) for clip, peak, at in rows[:MOST] if peak > 0]
            for rows in (sorted(clips.tolist(), key=lambda row: -row[1]) for clips in np.stack(found, axis=1))
        ]
    taken.gates.update({tap: [_short(x) for x in np.mean(gates, axis=0).tolist()] for tap, gates in opened.items()})
    _complete(taken.excites, classifier)
    return taken


def write(atlas: Atlas, path: str | os.PathLike) -> None:
    """Whole or not at all. Raises AtlasError."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    heard = {tap: rows for tap, rows in atlas.excites.items() if HEARD.fullmatch(tap)}
    plain = {"format": FORMAT} | asdict(atlas) | {"excites": heard}
    try:
        part.write_text(json.dumps(plain, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as e:
        raise AtlasError(f"{path} could not be written ({e.strerror}): choose another place with --out") from e
    finally:
        part.unlink(missing_ok=True)


def read(path: str | os.PathLike, classifier: Classifier) -> Atlas:
    """The atlas of this very network. Raises AtlasError for a file that is missing, damaged or of other weights."""
    path = Path(path)
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise AtlasError(f"{path} does not exist: python -m cnn.atlas --model FILE makes it") from e
    except OSError as e:
        raise AtlasError(f"{path} cannot be read ({e.strerror}): check its permissions") from e
    except (ValueError, RecursionError) as e:
        raise AtlasError(f"{path} is no atlas or damaged: python -m cnn.atlas --model FILE makes it again") from e
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise AtlasError(f"{path} is no atlas of this version: python -m cnn.atlas --model FILE makes it again")
    if plain.get("weights") != fingerprint(classifier.checkpoint):
        raise AtlasError(
            f"{path} was made with other weights than these: python -m cnn.atlas --model FILE makes one for them"
        )
    try:
        atlas = _checked(plain, classifier)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise AtlasError(f"{path} is damaged ({e}): python -m cnn.atlas --model FILE makes it again") from e
    _complete(atlas.excites, classifier)
    return atlas


def fingerprint(weights: checkpoint.Checkpoint) -> str:
    """SHA-256 of what decides how channels answer: every tensor, by name, and the front end."""
    digest = hashlib.sha256(json.dumps(asdict(weights.mel), sort_keys=True).encode())
    for name, tensor in sorted(weights.state_dict.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.numpy().data)
    return digest.hexdigest()


def examples() -> list[dict[str, str]]:
    """The clips in the box, with their authors."""
    told = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
    return [{key: clip[key] for key in ("file", "label", "title", "author")} for clip in told]


def esc50(root: str | os.PathLike) -> list[dict[str, str]]:
    """Every clip of an ESC-50 folder. Raises AtlasError."""
    table = Path(root) / "meta" / "esc50.csv"
    try:
        with table.open(newline="", encoding="utf-8") as file:
            clips = [{"file": f"audio/{row['filename']}", "label": row["category"]} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError) as e:
        raise AtlasError(f"{table} cannot be read: --data wants a folder of ESC-50, with audio/ and meta/") from e
    except KeyError as e:
        raise AtlasError(f"{table} has no column {e}: --data wants a folder of ESC-50") from e
    if not clips:
        raise AtlasError(f"{table} names no clips: --data wants a folder of ESC-50")
    return clips


def _peak(values: torch.Tensor) -> torch.Tensor:
    """Map (B, C, f, t) -> (B, C, 2): the highest cell and its column; gates (B, C) as they are."""
    if values.ndim == 2:
        return values.clone()
    highest, cells = values.flatten(2).max(dim=2)
    return torch.stack([highest, (cells % values.shape[3]).to(highest)], dim=2)


def _complete(excites: Excites, classifier: Classifier) -> None:
    """Add the maps that peak where another does: before a ReLU as behind it, a stage as its last block."""
    for layer, depth in zip(classifier.model.stages, classifier.config.depths, strict=True):
        for j in range(depth):
            excites[f"{layer}.block{j}.conv"] = excites[f"{layer}.block{j}.relu"]
        excites[layer] = excites[f"{layer}.block{depth - 1}.relu"]


def _checked(plain: dict[str, Any], classifier: Classifier) -> Atlas:
    """Whatever is not as `write` leaves it raises ValueError, KeyError, TypeError or AttributeError."""
    clips, taps = plain["clips"], classifier.model.taps
    for clip in clips:
        file = Path(clip["file"])
        if file.is_absolute() or ".." in file.parts or not all(isinstance(text, str) for text in clip.values()):
            raise ValueError(f"clip {clip['file']!r}")
    excites: Excites = {}
    for tap in (tap for tap in classifier.map_taps if HEARD.fullmatch(tap)):
        excites[tap] = [[(int(k), float(peak), float(at)) for k, peak, at in rows] for rows in plain["excites"][tap]]
        rows = [row for channel in excites[tap] for row in channel]
        if len(excites[tap]) != taps[tap].channels or any(not 0 <= row[0] < len(clips) for row in rows):
            raise ValueError(tap)
        if not all(math.isfinite(x) and x >= 0 for row in rows for x in row):
            raise ValueError(tap)
    gates = {tap: [float(x) for x in plain["gates"][tap]] for tap, about in taps.items() if not about.is_map}
    for tap, means in gates.items():
        if len(means) != taps[tap].channels or not all(0 <= x <= 1 for x in means):
            raise ValueError(tap)
    return Atlas(tuple(clips), excites, gates, plain["weights"], str(plain["root"]))


def _short(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 written, 2 not, with the reason on stderr."""
    p = argparse.ArgumentParser(prog="python -m cnn.atlas", description="What excites each channel of a network.")
    p.add_argument("--model", metavar="FILE", help="a best_model.pth, or the name of a network in the box")
    p.add_argument("--data", metavar="DIR", help="a folder of ESC-50 to hear instead of the example clips")
    p.add_argument("--out", metavar="FILE", help=f"where to write (default: {NAME} beside the weights)")
    args = p.parse_args(argv)
    try:
        weights = checkpoint.find(args.model)
        classifier = Classifier(checkpoint.load(weights))
        out = Path(args.out) if args.out else weights.with_name(NAME)
        clips = esc50(args.data) if args.data else examples()
        print(f"Hearing {len(clips)} clips ...", file=sys.stderr, flush=True)
        write(make(classifier, clips, Path(args.data).resolve() if args.data else ""), out)
    except (AudioError, AtlasError, checkpoint.CheckpointError) as e:
        print(e, file=sys.stderr)
        return 2
    print(f"{out}: {len(clips)} clips, {classifier.network}, {out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
