"""Put a checkpoint on the Hugging Face Hub: weights, readable configuration, model card, in one commit.

    python -m training.publish --checkpoint best_model.pth --repo OWNER/NAME [--private] [--results results.json]

The repository is made where there is none. What its README.md says outside the generated card is kept.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, RemoteEntryNotFoundError

from cnn import checkpoint as checkpoints
from cnn.checkpoint import NAMES, CheckpointError
from cnn.hub import PublishError, refusal, writer
from training.card import CardError, card, configuration, readme


def publish(
    path: Path, repo: str, *, private: bool = False, results: Path | None = None, token: str | None = None
) -> str:
    """Upload the checkpoint to `repo`; `OWNER/NAME@REVISION`, which cnn.checkpoint.find takes.

    `private` holds for a repository that is made now. `token`: default that of `hf auth login` or HF_TOKEN.
    Raises CheckpointError, CardError or PublishError; then nothing of it is on the Hub.
    """
    api = writer(repo, token)
    kept = checkpoints.load(path)
    text = card(kept, path, repo, _read_results(results) if results else None)
    settings = json.dumps(configuration(kept), indent=2, ensure_ascii=False) + "\n"
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        head = api.model_info(repo).sha
        try:  # of this very commit, so that an older copy in the cache is not taken for it
            existing = Path(api.hf_hub_download(repo, "README.md", revision=head)).read_bytes().decode()
        except RemoteEntryNotFoundError:
            existing = ""
        files = {NAMES[0]: str(path), "config.json": settings.encode()}
        files["README.md"] = readme(existing, text, repo).encode()
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=f"{kept.model.name}: weights, configuration and model card",
            parent_commit=head,
        )
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as e:
        raise refusal(e, repo) from e
    except UnicodeDecodeError as e:
        raise PublishError(f"README.md in {repo} is not UTF-8 text: repair it there") from e
    return f"{repo}@{commit.oid}"


def commands(pinned: str) -> str:
    """How to use `OWNER/NAME@REVISION`, for people to copy."""
    return f"python app.py --model {pinned}\npython -m cnn sound.wav --model {pinned}"


def _read_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise CardError(f"{path} cannot be read as results of python -m training.crossval: {e}") from e
    needed = ("dataset", "config", "folds", "mean", "std")
    if not isinstance(results, dict) or (lacking := [k for k in needed if k not in results]):
        raise CardError(f"{path} is no results.json of python -m training.crossval: {', '.join(lacking)} missing")
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.publish", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="best_model.pth, or a folder that holds one")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="where the repository is made now")
    parser.add_argument("--results", type=Path, help="results.json of the same settings on five folds, for the card")
    args = parser.parse_args(argv)
    try:
        path = args.checkpoint / NAMES[0] if args.checkpoint.is_dir() else args.checkpoint
        pinned = publish(path, args.repo, private=args.private, results=args.results)
    except KeyboardInterrupt:
        print("\nstopped: what was sent is there as a whole or not at all; give the command again", file=sys.stderr)
        return 130
    except (CardError, CheckpointError, PublishError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(f"published: {pinned}\n{commands(pinned)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
