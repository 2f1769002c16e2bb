"""The atlas: which clips excite a channel most, of these very weights."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cnn import checkpoint
from cnn.atlas import EXAMPLES, AtlasError, examples, fingerprint, main, make, read, write
from cnn.audio import load
from cnn.checkpoint import Checkpoint
from cnn.classifier import Classifier
from cnn.labels import ESC50
from cnn.mel import MEL_16K, LogMel
from cnn.model import SE_FPN, AudioCNN

RATE = 16_000
DEAD = 1  # a channel of conv1


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """With gates and a pyramid, and a channel that nothing ever lifts above 0."""
    config = dataclasses.replace(SE_FPN, depths=(1, 2), width=4, fpn_channels=4, head_hidden=(8, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        state = AudioCNN(config).state_dict()
    state["bn1.bias"][DEAD] = -1e6
    return Classifier(Checkpoint(config, MEL_16K, ESC50, state), "cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """Noise that fades in or out, of 1 to 8 s, and silence."""
    root = tmp_path_factory.mktemp("clips")
    rng, told = np.random.default_rng(0), []
    for seconds, label in ((5, "rain"), (8, "dog"), (1, "frog"), (5, "cat"), (3, "silence")):
        sound = rng.normal(0, 0.1, seconds * RATE) * np.linspace(*rng.uniform(0, 1, 2), seconds * RATE)
        soundfile.write(root / f"{label}.wav", sound * (label != "silence"), RATE, subtype="FLOAT")
        told.append({"file": f"{label}.wav", "label": label})
    return root, told


def test_the_three_clips_are_those_in_which_the_channel_rises_highest(classifier: Classifier, clips):
    root, told = clips
    atlas, plain, front_end = make(classifier, told, root), classifier.checkpoint.build(), LogMel(MEL_16K)
    assert atlas.clips == tuple(told) and list(map(atlas.path, range(5))) == [root / clip["file"] for clip in told]
    found: dict[str, list[list[tuple[float, int, float]]]] = {}
    gates: dict[str, list[np.ndarray]] = {}
    for number, clip in enumerate(told[:-1]):
        sound = load(root / clip["file"])
        starts = (0.0, 2.5, 3.0) if sound.seconds == 8 else (0.0,)
        pieces = [sound.samples[round(s * RATE) :][: 5 * RATE] for s in starts]
        pieces = [np.pad(piece, (0, 5 * RATE - len(piece))) for piece in pieces]
        with torch.inference_mode():
            _, maps = plain(front_end(torch.from_numpy(np.stack(pieces))), return_feature_maps=True)
        for tap, values in maps.items():
            if values.ndim == 2:
                gates.setdefault(tap, []).append(values.mean(dim=0).numpy())
                continue
            for c, cells in enumerate(values.numpy().swapaxes(0, 1)):  # (B, f, t)
                window, _, column = np.unravel_index(cells.argmax(), cells.shape)
                seconds = min(starts[window] + column * plain.taps[tap].stride * 0.02, sound.seconds)
                channels = found.setdefault(tap, [[] for _ in range(values.shape[1])])
                channels[c].append((float(cells.max()), number, seconds))
    assert set(atlas.excites) == set(found) and set(atlas.gates) == set(gates)
    for tap, channels in found.items():
        assert len(atlas.excites[tap]) == len(channels)
        for shown, rows in zip(atlas.excites[tap], channels, strict=True):
            true = [row for row in sorted(rows, reverse=True)[:3] if row[0] > 0]
            assert [clip for clip, _, _ in shown] == [clip for _, clip, _ in true]
            np.testing.assert_allclose([x[1:] for x in shown], [(x[0], x[2]) for x in true], rtol=1e-3, atol=1e-3)
    assert atlas.excites["conv1"][DEAD] == []
    for tap, means in gates.items():
        np.testing.assert_allclose(atlas.gates[tap], np.mean(means, axis=0), rtol=1e-3)


def test_it_is_read_as_written_and_only_with_its_weights(classifier: Classifier, clips, tmp_path: Path):
    root, told = clips
    atlas, path = make(classifier, told, root), tmp_path / "atlas.json"
    write(atlas, path)
    assert dataclasses.asdict(read(path, classifier)) == dataclasses.asdict(atlas)
    weights = classifier.checkpoint
    state = {name: tensor.clone() for name, tensor in weights.state_dict.items()}
    state["head.1.bias"][0] += 1e-3
    for other in (
        dataclasses.replace(weights, state_dict=state),
        dataclasses.replace(weights, mel=dataclasses.replace(weights.mel, relative=True)),
    ):
        with pytest.raises(AtlasError, match="made with other weights than these: python -m cnn.atlas"):
            read(path, Classifier(other, "cpu"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda plain: plain["clips"][0].update(file="../../secret.wav"), "damaged .clip '../../secret.wav'"),
        (lambda plain: plain["clips"][0].update(file="/etc/secret.wav"), "damaged .clip '/etc/secret.wav'"),
        (lambda plain: plain["clips"].pop(), "damaged"),
        (lambda plain: plain["excites"]["conv1"].pop(), "damaged .conv1"),
        (lambda plain: plain["excites"].pop("fpn.p1"), "damaged"),
        (lambda plain: plain["excites"]["conv1"][0].append([0, float("nan"), 0]), "damaged .conv1"),
        (lambda plain: plain["gates"]["layer1.block0.se"].append(2), "damaged .layer1.block0.se"),
        (lambda plain: plain.update(format="audio-cnn-atlas/0"), "no atlas of this version"),
    ],
)
def test_a_damaged_atlas_is_refused(classifier: Classifier, clips, tmp_path: Path, spoil, says: str):
    path = tmp_path / "atlas.json"
    write(make(classifier, clips[1][:1] + clips[1][3:4], clips[0]), path)
    plain = json.loads(path.read_text())
    spoil(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(AtlasError, match=says):
        read(path, classifier)


def test_what_is_no_atlas_is_refused_in_words(classifier: Classifier, clips, tmp_path: Path):
    with pytest.raises(AtlasError, match="does not exist: python -m cnn.atlas"):
        read(tmp_path / "none.json", classifier)
    (tmp_path / "half.json").write_bytes(b'{"format": "\xff')
    with pytest.raises(AtlasError, match="no atlas or damaged"):
        read(tmp_path / "half.json", classifier)
    with pytest.raises(AtlasError, match="nothing to hear"):
        make(classifier, clips[1][-1:], clips[0])
    with pytest.raises(AtlasError, match="could not be written .*--out"):
        write(make(classifier, clips[1][:1], clips[0]), tmp_path / "no" / "atlas.json")


def test_the_command_hears_esc_50_where_it_is_given(tiny: Path, tone_data: Path, tmp_path: Path, capsys):
    out = tmp_path / "atlas.json"
    assert main(["--model", str(tiny), "--data", str(tone_data), "--out", str(out)]) == 0
    assert "18 clips, resnet34" in capsys.readouterr().out
    atlas = read(out, Classifier.open(tiny, "cpu"))
    assert len(atlas.clips) == 18 and all(atlas.path(k).is_file() for k in range(18))
    assert {clip["label"] for clip in atlas.clips} == {"dog", "rain", "rooster"}
    assert main(["--model", str(tiny), "--data", str(tmp_path), "--out", str(out)]) == 2
    assert "esc50.csv cannot be read: --data wants a folder of ESC-50" in capsys.readouterr().err


def test_the_atlas_in_the_box_is_of_the_weights_and_the_examples_in_the_box():
    for path in checkpoint.BOX.glob("*/best_model.pth"):
        plain = json.loads(path.with_name("atlas.json").read_text(encoding="utf-8"))
        assert plain["weights"] == fingerprint(checkpoint.load(path))
        assert plain["clips"] == examples() and plain["root"] == ""
        assert all((EXAMPLES / clip["file"]).is_file() for clip in plain["clips"])
