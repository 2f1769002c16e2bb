"""Publishing on a Hub that stands in for Hugging Face's: one commit, the README's own text kept, loaded again."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from huggingface_hub import constants

import training.publish as publish_module
from cnn import __main__ as cli
from cnn import checkpoint
from cnn.audio import Clip
from tests.standins.hub_standin import Hub, hub_standin
from training import config
from training.card import BEGIN, END, CardError, card, readme
from training.publish import PublishError, main, publish
from training.robustness import CONDITIONS

TOKEN = "hf_test"
REPORT = {"fold": 5, "clips": 8, "correct": 6, "correct_top3": 7, "accuracy": 0.75, "interval": [0.41, 0.93],
          "per_class": {"dog": 0.5, "crying_baby": 1.0}}  # fmt: skip
ORIGIN = {"data": "ESC-50 (esc50-16k, 16000 Hz)", "folds_trained_on": [1, 2, 3, 4], "fold_held_out": 5, "commit": "abc",
          "date": "2026-11-22"}  # fmt: skip


@pytest.fixture(autouse=True)
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's package without a Hub, a cache and a log-in of its own."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # read from the environment when the package is imported, which another test may have done
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)


@pytest.fixture
def hub(client: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "blobs").mkdir()
    with hub_standin(tmp_path / "blobs", TOKEN) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def weights(tiny: Path, tmp_path: Path) -> Path:
    """The tiny network as if it had been trained and measured."""
    recipe = dataclasses.asdict(config.make("best-16k", width=4))
    kept = dataclasses.replace(checkpoint.load(tiny), metrics=REPORT, provenance=ORIGIN, recipe=recipe)
    checkpoint.save(kept, tmp_path / "mine" / "best_model.pth")
    return tmp_path / "mine" / "best_model.pth"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results.json of the same settings, with a robustness table."""
    row = {"clips": 40, "correct": 20, "accuracy": 0.5, "interval": [0.3, 0.7], "loss": 12.5}
    told = {
        "dataset": "esc50-16k",
        "config": {k: v for k, v in dataclasses.asdict(config.make("best-16k", width=4)).items() if k != "fold"},
        "folds": [{"fold": k, "n": 8, "accuracy": k / 10} for k in range(1, 6)],
        "mean": 0.3,
        "std": 0.158,
        "robustness": {"folds": [1, 2, 3, 4, 5], "rows": dict.fromkeys(CONDITIONS, row)},
    }
    (tmp_path / "results.json").write_text(json.dumps(told))
    return tmp_path / "results.json"


def test_what_is_published_is_loaded_again_at_its_revision(hub: Hub, weights: Path, tone: Clip, tmp_path: Path, capsys):
    assert main(["--checkpoint", str(weights.parent), "--repo", "tester/net", "--private"]) == 0
    pinned = re.search(r"published: (tester/net@[0-9a-f]{40})\n", said := capsys.readouterr().out)[1]
    assert f"python app.py --model {pinned}" in said and f"python -m cnn sound.wav --model {pinned}" in said
    made, published = hub.repos["tester/net"]  # all of it in one commit
    assert set(published.files) - set(made.files) == {"best_model.pth", "config.json", "README.md"}
    assert pinned.endswith(published.sha) and hub.private == {"tester/net"}
    hub.add("tester/net", published.files | {"best_model.pth": b"newer weights"})
    assert checkpoint.find(pinned).read_bytes() == weights.read_bytes()
    soundfile.write(tmp_path / "tone.wav", tone.samples, tone.rate)
    assert cli.main([str(tmp_path / "tone.wav"), "--model", pinned, "--json", "--device", "cpu"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 3
    told = json.loads(published.files["config.json"])
    assert told["recipe"]["recipe"] == "best-16k" and told["mel"]["sample_rate"] == 16_000 and len(told["labels"]) == 50
    assert "state_dict" not in told


def test_the_card_tells_the_results_of_this_file_and_its_limits(hub: Hub, weights: Path, results: Path):
    publish(weights, "tester/net")
    text = hub.repos["tester/net"][-1].files["README.md"].decode()
    assert text.startswith("---\nlicense: cc-by-nc-3.0\n")
    for words in ("**75.00 %** of the 8 clips of fold 5 (95 % interval 41.0-93.0 %), 87.50 % among",
                  "Hardest: dog 50 %, crying baby 100 %", "folds 1, 2, 3, 4; fold 5 was held out", "commit `abc`",
                  "non-commercial", "--model tester/net@REVISION", "nothing above 8 kHz"):  # fmt: skip
        assert words in text
    assert "Outside clean clips" not in text and "30.00 %" not in text
    publish(weights, "tester/net", results=results)
    text = hub.repos["tester/net"][-1].files["README.md"].decode()
    assert "5 folds of esc50-16k" in text and "**30.00 %** on average, standard deviation 15.80 points" in text
    assert "| 4 | 8 | 40.00 % |" in text and "| clean | 50.00 % | 30.0-70.0 % |  |" in text
    assert len(re.findall(r"\| 50\.00 % \| 30\.0-70\.0 % \| -12\.50 \|", text)) == len(CONDITIONS) - 1


def test_the_card_of_a_grown_network_says_from_what_it_grew(weights: Path, results: Path):
    kept, told = checkpoint.load(weights), json.loads(results.read_text())
    plain = card(kept, weights, "a/b")
    assert "trained from scratch" in plain and "grown" not in plain and "- One fold and one seed: a point" in plain
    recipe = {"recipe": "best-16k", "model": "resnet10", "width": 32, "stem_stride": 4, "epochs": 720}
    grown = {"sha256": "f00d", "commit": "cafe", "recipe": recipe}
    text = card(dataclasses.replace(kept, provenance=ORIGIN | {"grown_from": [grown]}), weights, "a/b", told)
    for words in ("| grown from | a resnet10 of width 32", "`best-16k`, at most 720 epochs", "`cafe`", "`f00d`"):
        assert words in text
    assert "grown from an earlier one and" in text
    two = [grown, grown | {"recipe": grown["recipe"] | {"seed": 1, "spared": 1.0}}]
    still = dataclasses.replace(kept, recipe=kept.recipe | {"epochs": 0}, provenance=ORIGIN | {"grown_from": two})
    both = card(still, weights, "a/b")
    assert "grown from 2 earlier ones side by side |" in both and both.count("| grown from |") == 2
    assert "`best-16k` with spared 1.0, at most 720 epochs, seed 1, commit" in both  # stem_stride is the preset's
    assert "`best-16k`, no training of its own; every" in both
    assert "- One fold and 2 seeds: a point" in both
    short = dataclasses.asdict(config.make("short-16k"))
    old = {k: v for k, v in short.items() if k not in config.YOUNG or k == "stem_stride"}
    told_of_old = dataclasses.replace(still, provenance=ORIGIN | {"grown_from": [grown | {"recipe": old}]})
    words = "`short-16k` with kept_min 0.3, mixup_sharpness 1.0, repeated 0.0,"
    assert words in card(told_of_old, weights, "a/b", None)
    related = [two[0] | {"group": 0}, two[1] | {"group": 1}, two[1] | {"group": 1, "grown_from": [grown]}]
    grouped = dataclasses.replace(still, provenance=ORIGIN | {"grown_from": related})
    lineage = card(grouped, weights, "a/b")
    assert "grown from 2 earlier ones side by side (where it says so, the mean of the weights of several) |" in lineage
    assert lineage.count("| part 2 of 2: one of 2 whose weights' mean it is: a resnet10") == 2
    assert "| grown from | part 1 of 2: a resnet10" in lineage
    assert lineage.count("| grown from |") == 3 and lineage.count("| which was grown from | a resnet10") == 1
    assert "from scratch" not in text and "One fold and" not in text and "- One seed: a point" in text


def test_results_of_other_settings_are_not_printed_on_the_card(weights: Path, results: Path):
    told = json.loads(results.read_text())
    epochs, told["config"]["epochs"] = told["config"]["epochs"], 7
    results.write_text(json.dumps(told))
    with pytest.raises(CardError, match=rf"other settings than the checkpoint \(epochs {epochs} -> 7\)"):
        publish(weights, "tester/net", results=results)
    results.write_text("{}")
    with pytest.raises(CardError, match="no results.json of python -m training.crossval: dataset"):
        publish(weights, "tester/net", results=results)


def test_a_readmes_own_text_is_kept_to_the_letter(hub: Hub, weights: Path):
    mine = "---\nlicense: other\n---\r\n# My network\n\nTrained   at home. \n"
    hub.add("tester/net", {"README.md": mine.encode(), "more.txt": b"kept"})
    publish(weights, "tester/net")
    first = hub.repos["tester/net"][-1].files
    assert first["README.md"].decode().startswith(mine.rstrip()) and first["more.txt"] == b"kept"
    between = first["README.md"].decode().replace("# My network", "# Ours").replace("75.00 %", "99 %") + "\nP.S.\n"
    hub.add("tester/net", first | {"README.md": between.encode()})
    publish(weights, "tester/net")
    text = hub.repos["tester/net"][-1].files["README.md"].decode()
    assert text == between.replace("99 %", "75.00 %")


def test_front_matter_is_added_only_where_there_is_none_and_damaged_marks_are_told():
    assert readme("Just words.", "card", "a/b").startswith("---\nlicense: cc-by-nc-3.0\n")
    assert readme("Just words.", "card", "a/b").endswith(f"---\n\nJust words.\n\n{BEGIN}\ncard\n{END}\n")
    again = readme("", "card", "a/b")
    assert readme(again, "card", "a/b") == again and again.count("license:") == 1
    for damaged in (again.replace(END, ""), again.replace(BEGIN, ""), again + again, f"{END}\n{BEGIN}"):
        with pytest.raises(CardError, match="README.md in a/b must hold each of the lines"):
            readme(damaged, "card", "a/b")


def test_what_somebody_else_wrote_in_the_meantime_is_not_overwritten(hub: Hub, weights: Path, monkeypatch):
    def slow(existing: str, card: str, repo: str) -> str:
        hub.add("tester/net", {"README.md": b"theirs"})
        return readme(existing, card, repo)

    monkeypatch.setattr(publish_module, "readme", slow)
    with pytest.raises(PublishError, match="tester/net has changed in the meantime: run the command again"):
        publish(weights, "tester/net")
    assert hub.repos["tester/net"][-1].files == {"README.md": b"theirs"}


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ("tester/net", "", "no token of the Hugging Face Hub: run hf auth login, or set HF_TOKEN"),
        ("tester/net", "hf_wrong", "refuses the token for tester/net"),
        ("other/net", TOKEN, "the token may not write to other/net"),
        ("other/theirs", TOKEN, "the token may not write to other/theirs"),
        ("net", TOKEN, "OWNER/NAME is needed"),
        ("tester/net@main", TOKEN, "OWNER/NAME is needed"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub: Hub, weights: Path, monkeypatch, capsys, repo, token, words):
    hub.add("other/theirs", {"README.md": b"theirs"})
    monkeypatch.setenv("HF_TOKEN", token)
    assert main(["--checkpoint", str(weights), "--repo", repo]) == 1
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert said.startswith("error: ") and words in said
    assert list(hub.repos) == ["other/theirs"] and len(hub.repos["other/theirs"]) == 1


def test_a_hub_that_cannot_be_reached_and_a_file_that_is_no_checkpoint_are_told(weights: Path, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its retries
    with pytest.raises(PublishError, match="cannot be reached"):
        publish(weights, "tester/net")
    (tmp_path / "other.pth").write_bytes(b"not weights")
    for name, words in (("other.pth", "was not loaded"), ("none.pth", "does not exist")):
        with pytest.raises(checkpoint.CheckpointError, match=words):
            publish(tmp_path / name, "tester/net")
