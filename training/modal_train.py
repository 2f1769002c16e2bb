"""Training on Modal's GPUs; run from the repository's folder, after `modal setup`.

    modal run training/modal_train.py::train [--recipe R --fold K --any-field value] [--push-to-hub OWNER/NAME]
    modal run training/modal_train.py::crossval [--recipe R --any-field value]      # five folds on five GPUs at once
    AUDIO_CNN_GPU=L4,A10G modal run ...      # other GPUs, the first that is free; AUDIO_CNN_GPU= : none
    modal volume get esc-model best_model.pth

Volume `esc50-data` holds ESC-50, fetched once; another folder of its layout, put there before, is taken as it is.
Volume `esc-model` holds `best_model.pth` of the run of `train` that ended last, and by the run's name `runs/`,
`tensorboard_logs/`, `crossval/` (folds and their logs), `results/`. It is committed after every checkpoint: cancelled
and given again, a command goes on from there. `modal run --detach` lets what is computing go on without this machine;
given again when that has ended (`modal app list`), the command does the rest. `--widen` is a path in `esc-model`;
that of a recipe is looked for in `crossval/`.
"""

import dataclasses
import errno
import inspect
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import modal
from modal.exception import ConflictError, NotFoundError

from cnn import checkpoint
from cnn.audio import AudioError
from cnn.checkpoint import NAMES, CheckpointError
from training import config as configs
from training import esc50
from training import train as loop
from training.card import CardError
from training.config import TrainConfig
from training.crossval import FOLDS, RESULTS, run_fold
from training.data import DataError
from training.evaluate import write_whole
from training.gather import gather
from training.logs import TensorBoard
from training.publish import PublishError, commands, publish
from training.state import NotWritten, TrainingError, commit
from training.widen import Missing

ROOT = Path(__file__).resolve().parent.parent
DATA, MODELS = Path("/mnt/esc50"), Path("/mnt/esc-model")  # where the volumes are mounted
SHIPPED = FOLDS[-1]  # the fold that the published network holds out
GPUS = list(filter(None, os.environ.get("AUDIO_CNN_GPU", "H200,A100,A10G").split(",")))
SECRET = "huggingface"
HOUR = 3600  # s
MENDABLE = (AudioError, CardError, CheckpointError, DataError, PublishError, TrainingError)  # by people, in words


def pinned(*packages: str) -> list[str]:
    """What tests/requirements.txt pins and training imports, `name==version`."""
    text = (ROOT / "tests" / "requirements.txt").read_text()
    return [re.search(rf"^{name}==\S+", text, re.MULTILINE)[0] for name in packages]


app = modal.App("audio-cnn-training")
data = modal.Volume.from_name("esc50-data", create_if_missing=True)
models = modal.Volume.from_name("esc-model", create_if_missing=True)
image = modal.Image.debian_slim(python_version="3.11").pip_install_from_requirements(str(ROOT / "requirements.txt"))
if modal.is_local():  # in the container the packages are installed and the list of them is not there
    image = image.pip_install(*pinned("tensorboard", "scipy"))
image = image.add_local_dir(str(ROOT / "assets" / "fonts"), "/root/assets/fonts")  # of the report
image = image.add_local_python_source("cnn", "training")

# Modal starts a function that was preempted again by itself; these are for containers that crash or run for a day.
ENVIRONMENT = {"AUDIO_CNN_COMMIT": commit()}  # there is no repository in a container
COMPUTING = dict(
    image=image, env=ENVIRONMENT, gpu=GPUS or None, cpu=8, memory=16_384, timeout=24 * HOUR,
    retries=modal.Retries(max_retries=5), volumes={str(DATA): data.read_only(), str(MODELS): models},
)  # fmt: skip


# --- in the containers


@app.function(image=image, timeout=3 * HOUR, retries=2, volumes={str(DATA): data})
def fetch() -> None:
    """ESC-50 into its volume. A broken download goes on at the next try."""
    try:
        print(esc50.prepare(DATA), flush=True)
    finally:
        data.commit()


def catch_up() -> None:
    """See what other containers have committed: one that was at work before saw the volume as it was then, and a run
    that another one had to leave would begin anew in it."""
    with suppress(RuntimeError):  # a file of an earlier run is still open here: what is seen has to do
        models.reload()


@app.function(**COMPUTING)
def run(config: TrainConfig, name: str, repo: str) -> dict[str, Any]:
    """Train into runs/NAME and the volume's root, publish to `repo` unless ''.

    `accuracy`, `pinned` (OWNER/NAME@REVISION or ''); or `error`, a sentence: raised, Modal would try in vain again.
    """
    catch_up()
    out = MODELS / "runs" / name
    logger = TensorBoard(MODELS / "tensorboard_logs" / name)
    try:
        resume = (out / "resume.pt").exists()
        result = loop.train(config, DATA, out, resume=resume, logger=logger, on_checkpoint=models.commit)
        part = MODELS / f".{NAMES[0]}.part"
        shutil.copyfile(result.checkpoint, part)
        os.replace(part, MODELS / NAMES[0])
        models.commit()
        return {"accuracy": result.accuracy, "pinned": publish(result.checkpoint, repo) if repo else ""}
    except (*MENDABLE, OSError) as e:
        return {"error": in_the_words_of_modal(e, out)}


@app.function(**COMPUTING)
def fold(config: TrainConfig, name: str, robust: bool) -> str:
    """One fold of a cross-validation into crossval/NAME; what is wrong, in a sentence, or ''."""
    catch_up()
    runs = MODELS / "crossval" / name
    try:
        run_fold(config, DATA, runs, on_checkpoint=models.commit, robust=robust)
    except (*MENDABLE, OSError) as e:
        return in_the_words_of_modal(e, runs)
    return ""


@app.function(image=image, timeout=HOUR, volumes={str(MODELS): models})
def collect(name: str, repo: str) -> dict[str, Any]:
    """Gather crossval/NAME into results/NAME: `files`, content by name, `mean`, `pinned`; or `error`, as in run."""
    catch_up()
    runs, out = MODELS / "crossval" / name, MODELS / "results" / name
    answer: dict[str, Any] = {"files": {}, "pinned": ""}
    try:
        answer["mean"] = gather(runs, out)["mean"]
        models.commit()
        answer["files"] = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        if repo:
            answer["pinned"] = publish(runs / f"fold{SHIPPED}" / NAMES[0], repo, results=out / "results.json")
    except (*MENDABLE, OSError) as e:
        answer["error"] = in_the_words_of_modal(e, runs)
    return answer


def in_the_words_of_modal(error: Exception, folder: Path) -> str:
    """What the sender of the command can do. Raises what may pass, such as a disk's faults: Modal tries again."""
    place = folder.relative_to(MODELS)
    if isinstance(error, (OSError, NotWritten, checkpoint.NotWritten)):
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno != errno.ENOSPC:
            raise error
        return (
            "volume esc-model is full: remove what you do not need with modal volume rm, then give the command again; "
            f"what is in {place} is kept, and goes on from its last checkpoint"
        )
    if isinstance(error, Missing):
        there = error.path.relative_to(MODELS) if error.path.is_relative_to(MODELS) else error.path
        told = f"{there}, the network to grow from, is not in volume esc-model: name another with --widen"
        match there.parts if error.settings else ():
            case ("crossval", name, _, _):
                made = f"::crossval {error.settings} --name {name}"
            case ("runs", name, _):
                made = f"::train {error.settings} --fold {error.fold} --name {name}"
            case _:
                return told
        return f"{told}, or make it: modal run training/modal_train.py{made}"
    if isinstance(error, TrainingError):
        return f"{error} (on Modal: another --name, or forget this one, modal volume rm -r esc-model {place})"
    if isinstance(error, PublishError):
        return f"{error}; what was trained is kept in {place} of volume esc-model, the same command publishes it"
    return str(error)


# --- on this machine


class UserError(ValueError):
    """The command cannot be carried out; the message says why and the way out."""


@contextmanager
def in_words() -> Iterator[None]:
    """What people can mend ends the command with one sentence; a bug ends it as a bug."""
    try:
        yield
    except (*MENDABLE, UserError) as e:
        raise SystemExit(f"error: {e}") from e


def field_flags(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For an entry point: `modal run` reads --recipe and one flag per field of TrainConfig off its signature, too.

    So they are in --help, and a wrong one is refused before anything is started.
    """
    kinds = {f.name: Literal["true", "false"] if f.type is bool else f.type for f in dataclasses.fields(TrainConfig)}
    kinds["recipe"] = Literal[tuple(configs.RECIPES)]
    keyword = inspect.Parameter.KEYWORD_ONLY
    fields = [inspect.Parameter(k, keyword, default=None, annotation=v) for k, v in kinds.items() if k not in left_out]
    fields.reverse()  # --help lists them backwards

    def derive(entry: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(entry).parameters.values() if p.kind is not p.VAR_KEYWORD]
        entry.__signature__ = inspect.Signature([*own, *fields])
        entry.__annotations__ = {p.name: p.annotation for p in (*own, *fields)}
        return entry

    return derive


def settings(given: dict[str, Any]) -> TrainConfig:
    """The preset with the fields that were given; `widen` is a path in volume esc-model."""
    booleans = {f.name for f in dataclasses.fields(TrainConfig) if f.type is bool}
    fields = {k: v == "true" if k in booleans else v for k, v in given.items() if v is not None}
    try:
        config = configs.make(**{"recipe": TrainConfig.recipe, **fields})
    except ValueError as e:
        raise UserError(str(e)) from e
    if config.widen:  # a recipe names where crossval leaves its folds on this machine
        paths = fields.get("widen") or config.widen.replace("runs/", "crossval/")
        config = dataclasses.replace(config, widen=configs.each_of(paths, lambda path: str(MODELS / path)))
    return config


def plain(name: str) -> str:
    """Raises UserError unless it is the name of a folder and nothing more."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"--name {name!r}: letters, digits, dots, dashes and underscores make a name")
    return name


def see_to_data() -> None:
    """Have ESC-50 fetched unless the volume holds a data set: `meta` is what comes there last."""
    if all(entry.path.strip("/") != "meta" for entry in data.listdir("/")):
        fetch.remote()


def with_token(function: modal.Function, repo: str) -> modal.Function:
    """The function with the Hub's token in its environment, where there is something to publish."""
    if not repo:
        return function
    secret = modal.Secret.from_name(SECRET, required_keys=["HF_TOKEN"])
    try:
        secret.hydrate()
    except (ConflictError, NotFoundError) as e:
        raise UserError(
            f"--push-to-hub needs the Modal secret {SECRET!r} with a token that may write: "
            f"modal secret create {SECRET} HF_TOKEN=hf_..."
        ) from e
    # options replace what was declared, and the environment counts among the secrets
    return function.with_options(secrets=[secret], env=ENVIRONMENT if function is run else None)


def tell(pinned_id: str) -> None:
    if pinned_id:
        print(f"published: {pinned_id}\n{commands(pinned_id)}")


@app.local_entrypoint()
@field_flags()
def train(name: str = "", push_to_hub: str = "", **given: Any) -> None:
    """Train one network with --fold held out, or go on with the run of that name (default: RECIPE-foldK)."""
    with in_words():
        config = settings(given)
        name = plain(name or f"{config.recipe}-fold{config.fold}")
        function = with_token(run, push_to_hub)
        see_to_data()
        answer = function.remote(config, name, push_to_hub)
        if "error" in answer:
            raise UserError(answer["error"])
    print(f"{100 * answer['accuracy']:.2f} % on fold {config.fold}, which was held out: {NAMES[0]} in volume esc-model")
    tell(answer["pinned"])


@app.local_entrypoint()
@field_flags("fold")
def crossval(name: str = "", push_to_hub: str = "", robustness: bool = True, out: str = "", **given: Any) -> None:
    """Train every fold at once, gather them in results/NAME (default: RECIPE) and copy that to --out.

    Default of --out: training/results/NAME. What is published is the network that holds out the last fold.
    """
    with in_words():
        config = settings(given)
        name = plain(name or config.recipe)
        collecting = with_token(collect, push_to_hub)
        see_to_data()
        inputs = [(dataclasses.replace(config, fold=k), name, robustness) for k in FOLDS]
        said = fold.starmap(inputs, return_exceptions=True)
        if failed := [f"fold {k}: {what}" for k, what in zip(FOLDS, said, strict=True) if what]:
            raise UserError(f"{'; '.join(failed)}; what is done is kept for when the command is given again")
        answer = collecting.remote(name, push_to_hub)
        folder = Path(out) if out else RESULTS / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in answer["files"].items():
            write_whole(folder / file, content)
        if "error" in answer:
            raise UserError(answer["error"])
    print(f"{100 * answer['mean']:.2f} % on average over {len(FOLDS)} folds, each held out once: {folder}/results.json")
    tell(answer["pinned"])
