"""A step is the same step in parts, processes or threads; a grown network starts as the one it grew from."""

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cnn import checkpoint
from cnn.checkpoint import CheckpointError
from cnn.mel import LogMel, MelConfig
from cnn.model import AudioCNN, ModelConfig
from training import config, parallel, state
from training.feed import Batch, Feed
from training.learner import Learner, Mode
from training.widen import grown, read_narrow, side_by_side

CPU = Mode("cpu", "fp32", "contiguous")


def network(width: int = 4, **fields) -> AudioCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AudioCNN(ModelConfig(num_classes=3, width=width, **fields))


def batch(size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 1, 32, 48, generator=generator)
    return Batch(x, torch.softmax(torch.randn(size, 3, generator=generator), 1), torch.arange(size), seed=5)


def feed(seed: int = 0) -> Feed:
    db = -60 + 20 * torch.randn(10, 128, 251, generator=torch.Generator().manual_seed(2))
    made = config.make("best-16k", batch_size=4, crop_frames=64, gentle=0.0, seed=seed)
    return Feed(db, list(range(1, 10)), torch.arange(10) % 3, 3, LogMel(MelConfig(relative=True)), made)


def test_a_batch_depends_on_nothing_but_seed_epoch_and_step():
    whole, other = feed(), feed()
    wanted = [b for epoch in range(2) for b in whole.epoch(epoch)]
    assert len(wanted) == 4 and 0 not in torch.cat([b.chosen for b in wanted])  # row 0 is not to be trained on
    other.batch(5, 1)
    threaded = [b for epoch in range(2) for b in other.epoch(epoch, ahead=3)]
    for a, b in zip(wanted, threaded, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.soft, b.soft) and a.seed == b.seed
    assert not torch.equal(wanted[0].x, feed(seed=1).batch(0, 0).x)
    for b in wanted:
        assert b.x.shape == (4, 1, 128, 64) and torch.allclose(b.soft.sum(1), torch.ones(4))


def test_a_gentle_start_mixes_nothing_spares_all_and_ends_where_the_recipe_says():
    hard = {"batch_size": 8, "crop_frames": 64, "epochs": 8, "mixup": 1.0, "mixup_end_share": 0.0, "noise": 1.0}
    db = -60 + 20 * torch.randn(64, 128, 251, generator=torch.Generator().manual_seed(2))
    kinds = ({"spared": 1.0, "mixup": 0.0}, {"spared": 0.0, "gentle": 0.5}, {"spared": 0.0, "gentle": 0.0})
    made = [config.make("best-16k", **hard | kind) for kind in kinds]
    end = LogMel(MelConfig(relative=True))
    plain, gentle, full = (Feed(db, list(range(64)), torch.arange(64), 64, end, c) for c in made)
    one_hot = [np.mean([(b.soft.amax(1) == 1).all() for b in gentle.epoch(epoch)]) for epoch in range(8)]
    assert one_hot[0] == 1 and 0 < np.mean(one_hot[1:4]) < 1 and not any(one_hot[4:])
    assert torch.equal(gentle.batch(0, 0).soft, plain.batch(0, 0).soft)
    floor = [[b.x.mean().item() for b in feed.epoch(0)] for feed in (plain, gentle, full)]
    assert abs(np.mean(floor[0]) - np.mean(floor[1])) < 0.3 * abs(np.mean(floor[0]) - np.mean(floor[2]))
    for epoch in (4, 7):
        assert torch.equal(gentle.batch(epoch, 1).x, full.batch(epoch, 1).x)


def test_every_picture_keeps_the_label_of_its_clip():
    """Clip i is a level of -i dB everywhere; only some of the clips are trained on."""
    db = -torch.arange(8.0)[:, None, None].expand(8, 128, 251)
    made = config.make("resnet34-44k", batch_size=3, crop_frames=251, freq_masks=0, time_masks=0, mixup=0.0)
    targets = torch.tensor([0, 1, 2, 2, 1, 0, 1, 2])
    for b in Feed(db, [1, 3, 4, 6, 7], targets, 3, LogMel(MelConfig(mean=0.0, std=1.0)), made).epoch(0):
        clips = (-b.x[:, 0, 5, 7]).round().long()
        assert torch.equal(clips, b.chosen) and torch.equal(b.soft.argmax(1), targets[clips])


def test_the_schedules_go_where_they_are_said_to():
    def rates(**fields) -> list[float]:
        learner = Learner(config.make("resnet34-16k", **fields), network(), CPU, steps=20)
        told = [learner.lr]
        for _ in range(19):
            learner.optimizer.step()
            learner.schedule.step()
            told.append(learner.lr)
        return told

    cosine = rates(schedule="cosine", lr=1e-3)
    assert cosine[0] == 1e-3 and cosine[10] == pytest.approx(5e-4) and cosine == sorted(cosine, reverse=True)
    onecycle = rates(lr=1e-3, max_lr=0.25, warmup=0.5)
    assert onecycle[0] == pytest.approx(0.01) and max(onecycle) == onecycle[9] == 0.25 and onecycle[-1] < 1e-4


def test_clipping_holds_the_gradient_and_decay_spares_what_it_should():
    def norm(clip: float) -> float:
        learner = Learner(config.make("resnet34-16k", clip_norm=clip), network(), CPU, steps=4)
        learner.step(batch())
        return torch.cat([p.grad.flatten() for p in learner.model.parameters()]).norm().item()

    assert norm(0.0) > 0.2 and norm(0.1) == pytest.approx(0.1, rel=1e-3)
    for everything in (False, True):
        made = config.make("resnet34-16k", decay_all=everything, weight_decay=0.3)
        groups = Learner(made, network(), CPU, steps=4).optimizer.param_groups
        decayed = {p.ndim for g in groups if g["weight_decay"] for p in g["params"]}
        assert decayed == ({1, 2, 4} if everything else {2, 4})


def test_a_step_that_is_not_finite_changes_nothing():
    learner = Learner(config.make("resnet34-16k"), network(), CPU, steps=4)
    before = copy.deepcopy(learner.model.state_dict())
    bad = batch()
    bad.x[0] = torch.inf
    assert not np.isfinite(learner.step(bad)[0])
    after = learner.model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items() if not k.endswith("num_batches_tracked"))


def test_a_gradient_that_is_not_finite_under_a_finite_loss_changes_nothing():
    learner = Learner(config.make("resnet34-16k"), network(), CPU, steps=4)
    before = copy.deepcopy(learner.state())
    learner.model.conv1.weight.register_hook(lambda grad: grad * torch.inf)
    assert np.isnan(learner.step(batch())[0])  # the caller is told by the loss
    after = learner.state()
    for part in ("model", "average"):
        pairs = [(v, after[part][k]) for k, v in before[part].items() if not k.endswith("num_batches_tracked")]
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not after["optimizer"]["state"] and after["schedule"]["last_epoch"] == 0


def test_a_warm_up_of_one_step_exactly_is_legal():
    learner = Learner(config.make("resnet34-16k", warmup=0.25), network(), CPU, steps=4)
    told = []
    for _ in range(3):
        assert np.isfinite(learner.step(batch())[0])
        told.append(learner.lr)
    assert told[0] < 2e-3 and told == sorted(told, reverse=True)


def test_the_room_asked_for_holds_two_late_states_and_the_weights(tmp_path: Path):
    model = network(16)
    size = sum(v.nbytes for v in model.state_dict().values())
    learner = Learner(config.make("resnet34-16k", width=16), model, CPU, steps=4)
    learner.step(batch(2))
    best = {k: v.clone() for k, v in learner.average.module.state_dict().items()}
    for patience in (False, True):
        for name in ("one", "two"):
            told = {"learner": learner.state(), "best": best if patience else {}}
            state.write(told, tmp_path / name)
        torch.save(checkpoint.half(best), tmp_path / "weights")
        taken = sum(p.stat().st_size for p in tmp_path.iterdir())
        assert taken < state.room(size, patience) < 1.3 * taken


def test_processes_on_a_gpu_share_what_lies_on_the_cpu_too(monkeypatch):
    """No GPU here: what the group is asked for is looked at. NCCL has nothing for tensors on the CPU."""
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", asked.append)
    for name, value in {"get_rank": 1, "get_world_size": 2, "destroy_process_group": None}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with parallel.started() as ranks:
        assert (ranks.index, ranks.size) == (1, 2)
    kinds = dict(pair.split(":") for pair in asked[0].split(","))
    assert kinds == {"cpu": "gloo", "cuda": "nccl"}


def test_who_draws_batches_otherwise_gives_resume_states_a_new_number():
    """Else a run that was cut off would go on with other sounds than it would have had, and say nothing."""
    mel = MelConfig()
    every = {"noise": 1.0, "background": 1.0, "reverb": 1.0, "silence": 1.0, "spared": 0.0, "mixup": 1.0, "gentle": 0.0}
    made = config.make("robust-16k", batch_size=4, **every)
    feed = Feed(torch.zeros(4, mel.n_mels, mel.frames), [0, 1, 2, 3], torch.arange(4), 4, LogMel(mel), made)
    assert (state.FORMAT, feed.batch(1, 0).seed) == ("audio-cnn-resume/9", 3813665871770897114)


def test_the_average_of_decay_zero_is_the_last_network():
    learner = Learner(config.make("resnet34-16k", average=0.0), network(), CPU, steps=4)
    learner.step(batch())
    average = learner.average.module.state_dict()
    assert all(torch.equal(v, average[k]) for k, v in learner.model.state_dict().items())


PROCESS = """
import sys, torch
from training import config, parallel
from tests.test_learner import CPU, batch, network
from training.learner import Learner
torch.set_num_threads(1)
with parallel.started() as ranks:
    learner = Learner(config.make("resnet34-16k"), network(), CPU, steps=6, ranks=ranks)
    told = [learner.step(batch()) for _ in range(3)]
    assert ranks.agreed(lambda: ranks.index) == 0
    if ranks.first:
        torch.save([told, learner.model.state_dict()], sys.argv[1])
    parallel.tell("both say this")
    parallel.tell(f"{ranks.index} says this")
parallel.leave(0)
"""


@pytest.mark.parametrize(("size", "said"), [("1", "work\nPython's end\n"), ("2", "work\n")])
def test_one_of_several_processes_leaves_without_pythons_own_end(size: str, said: str):
    script = "import atexit; atexit.register(print, 'Python\\'s end'); from training import parallel; print('work');"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "WORLD_SIZE": size}
    command = [sys.executable, "-c", script + "parallel.leave(3)"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (3, said)


def test_two_processes_compute_what_one_does_in_two_parts(tmp_path: Path):
    script, out = tmp_path / "process.py", tmp_path / "told.pt"
    script.write_text(PROCESS)
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, out]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-8000:]
    said = [line for line in done.stderr.splitlines() if line.endswith("this")]
    assert sorted(said) == ["0 says this", "1 says this", "both say this"]
    told, state = torch.load(out, weights_only=True)

    learner = Learner(config.make("resnet34-16k", accumulate=2), network(), CPU, steps=6)
    assert [learner.step(batch()) for _ in range(3)] == [pytest.approx(t, rel=1e-5) for t in told]
    ours = learner.model.state_dict()
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, ours[key], rtol=1e-4, atol=1e-5)
    whole = Learner(config.make("resnet34-16k"), network(), CPU, steps=6)  # BatchNorm over the whole batch differs
    assert [whole.step(batch())[0] for _ in range(3)][-1] != pytest.approx(told[-1][0], rel=1e-5)
    with pytest.raises(ValueError, match="batch of 1 cannot be computed in 2 parts"):
        learner.step(batch(1))


PYRAMID = {"se": True, "se_reduction": 2, "fpn_channels": 8, "head_hidden": (6,), "head_dropouts": (0.5, 0.2)}


@pytest.mark.parametrize(
    ("small", "large", "same"),
    [
        ({}, {"width": 8}, "head"),
        (PYRAMID, PYRAMID | {"width": 8, "fpn_channels": 16}, "head"),
        ({"depths": (1, 1, 2, 1)}, {"width": 8}, "head"),
        ({"depths": (1, 1, 1, 1)}, PYRAMID | {"width": 8}, "layer4"),  # there the head is another one
    ],
    ids=["wider", "wider, with gates and a pyramid", "deeper", "deeper, with gates and a pyramid"],
)
def test_a_grown_network_says_what_the_small_one_says_and_then_parts_ways(small, large, same):
    narrow, wide = network(4, **small), network(**large)
    for bn in (m for m in narrow.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        for values in (bn.running_mean, bn.bias):
            torch.nn.init.uniform_(values, -0.1, 0.1, generator=torch.Generator().manual_seed(3))
    wide.load_state_dict(grown(narrow.state_dict(), wide.state_dict(), torch.Generator().manual_seed(0)))
    x, said = batch().x, []
    for net in (narrow.eval(), wide.eval()):
        hook = net.get_submodule(same).register_forward_hook(lambda _module, _x, y: said.append(y))
        with hook, torch.inference_mode():
            net(x)
    expected = said[0].repeat_interleave(said[1].shape[1] // said[0].shape[1], dim=1)
    torch.testing.assert_close(said[1], expected, rtol=1e-4, atol=1e-5)
    learner = Learner(config.make("resnet34-16k", width=8, max_lr=0.1), wide, CPU, steps=4)
    before = {key: value.clone() for key, value in wide.named_parameters()}
    for _ in range(3):  # what begins as 0 hides what lies before it: a scale hides a gate, a gate's end its start
        learner.step(batch())
    assert not torch.equal(wide.conv1.weight[0], wide.conv1.weight[1])  # two that were one
    assert [key for key, value in wide.named_parameters() if torch.equal(value, before[key])] == []  # all of it learns


def test_networks_side_by_side_say_the_mean_of_what_they_say_and_stay_apart():
    three = [network(4) for _ in range(3)]
    for k, net in enumerate(three):
        for value in net.state_dict().values():
            if value.is_floating_point():
                torch.nn.init.uniform_(value, 0.1, 0.5, generator=torch.Generator().manual_seed(k))
    wide = network(12, groups=3)
    wide.load_state_dict(side_by_side([net.state_dict() for net in three], wide.state_dict()))
    x = batch().x
    with torch.inference_mode():
        mean = sum(net.eval()(x) for net in three) / 3
        torch.testing.assert_close(wide.eval()(x), mean, rtol=1e-4, atol=1e-5)
        with wide.reading(["layer4"]) as ours, three[1].reading(["layer4"]) as theirs:
            wide(x), three[1](x)
    second = ours["layer4"].chunk(3, dim=1)[1]
    torch.testing.assert_close(second, theirs["layer4"], rtol=1e-4, atol=1e-5)


def test_growing_from_the_wrong_network_is_refused(tmp_path: Path):
    narrow, path, ours = network(4), tmp_path / "best_model.pth", config.make("resnet34-16k")
    labels, mel = ("dog", "rain", "rooster"), MelConfig()

    def saved(**provenance) -> Path:
        made = checkpoint.Checkpoint(narrow.config, mel, labels, narrow.state_dict(), provenance=provenance)
        checkpoint.save(made, path)
        return path

    wide = network(8, groups=2).state_dict()
    with pytest.raises(ValueError, match=r"conv1.weight: \(4, 1, 7, 7\) and \(2, 1, 7, 7\) are not alike"):
        side_by_side([network(4).state_dict(), network(2).state_dict()], wide)
    with pytest.raises(ValueError, match=r"conv1.weight: 2 of \(2, 1, 7, 7\) side by side are no \(8, 1, 7, 7\)"):
        side_by_side([network(2).state_dict()] * 2, wide)
    with pytest.raises(ValueError, match="differ in more than width, first in layer1.1"):
        side_by_side([network(4).state_dict(), network(4, depths=(1, 1, 1, 1)).state_dict()], wide)
    with pytest.raises(ValueError, match="no multiple of"):
        grown(network(4).state_dict(), network(6).state_dict(), torch.Generator())
    with pytest.raises(ValueError, match=r"differ in more than width and depth, first in layer1.2.bn1.bias"):
        grown(network(4).state_dict(), network(4, depths=(2, 4, 6, 3)).state_dict(), torch.Generator())
    with pytest.raises(CheckpointError, match="does not say which folds"):
        read_narrow(saved(), ours, labels, mel)
    with pytest.raises(CheckpointError, match="was trained on fold 5"):
        read_narrow(saved(folds_trained_on=[1, 5]), ours, labels, mel)
    assert read_narrow(saved(folds_trained_on=[1]), ours, labels, mel).model == narrow.config
    assert read_narrow(path, config.make("resnet34-16k", model="se_fpn"), labels, mel).model == narrow.config
    with pytest.raises(CheckpointError, match=r"is a resnet34, from which no resnet10 .* its layers \(1, 1, 1, 1\)"):
        read_narrow(path, config.make("resnet34-16k", model="resnet10"), labels, mel)
    with pytest.raises(CheckpointError, match="is a resnet34, not a resnet10: side by side they must be alike"):
        read_narrow(path, config.make("resnet34-16k", model="resnet10", groups=2, widen="a,b"), labels, mel)
    gates = network(4, **PYRAMID)
    checkpoint.save(dataclasses.replace(checkpoint.load(path), model=gates.config, state_dict=gates.state_dict()), path)
    with pytest.raises(CheckpointError, match="from which no resnet34 can grow: .* a plain one"):
        read_narrow(path, ours, labels, mel)
