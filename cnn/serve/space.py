"""Put this repository on the Hugging Face Hub as a Space, in one commit: make space REPO=OWNER/NAME

What git tracks goes up as it lies here, weights included (plain git refuses files over 10 MB, the Hub's API takes
them); what the Space holds beyond that is removed. The README's front matter says how it is run.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from cnn.checkpoint import HUB_ID

ROOT = Path(__file__).resolve().parents[2]
KEPT = ".gitattributes"  # the Hub's own, which says what it stores as large files


class SpaceError(RuntimeError):
    """The Space was not changed; the message says why and the way out."""


def tracked(root: Path) -> list[str]:
    """Paths below `root` that git tracks and that are there, sorted."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as e:
        raise SpaceError(f"git does not say which files of {root} belong to it: upload from a git clone") from e
    return sorted(name for name in listed.split("\0") if name and (root / name).is_file())


def upload(repo: str, root: Path, *, private: bool = False) -> str:
    """Make the Space `OWNER/NAME` hold what git tracks below `root`; its address. Makes it where there is none.

    `private` holds for a Space that is made now. The token is that of `hf auth login` or HF_TOKEN. Raises SpaceError.
    """
    if not HUB_ID.fullmatch(repo) or "@" in repo:
        raise SpaceError(f"{repo!r} is no name of a Space: make space REPO=OWNER/NAME")
    files = tracked(root)
    if not (token := get_token()):
        raise SpaceError("no token of the Hugging Face Hub: run hf auth login, or set HF_TOKEN to one that may write")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        url = api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        there = api.space_info(repo)
        gone = {file.rfilename for file in there.siblings or []} - {KEPT, *files}
        api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, str(root / name)) for name in files),
                *(CommitOperationDelete(name) for name in sorted(gone)),
            ],
            repo_type="space",
            commit_message=_message(root),
            parent_commit=there.sha,
        )
    except (HTTPError, OfflineModeIsEnabled, ValueError) as e:  # ValueError: the front matter is refused
        raise SpaceError(_reason(e, repo)) from e
    return str(url)


def _message(root: Path) -> str:
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    return f"The repository at {head.stdout.strip()}" if head.returncode == 0 else "The repository"


def _reason(error: Exception, repo: str) -> str:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return f"the Hugging Face Hub refuses the token for {repo}: log in with one that may write, hf auth login"
        if status == 402:
            return f"the Hugging Face Hub makes no Space {repo} without payment: look at the plan of the account there"
        if status in (403, 404):
            return f"the token may not write to the Space {repo}: check the name, or take a token that may write to it"
        if status == 412:
            return f"the Space {repo} has changed in the meantime: run the command again"
        said = error.server_message or str(error).strip().split("\n")[0]
        return f"the Hugging Face Hub refused the Space {repo}: {said}"
    if isinstance(error, ValueError):
        return f"the Hugging Face Hub refuses the front matter of README.md: {' '.join(str(error).split())}"
    return f"the Hugging Face Hub cannot be reached ({error}): check the connection and run the command again"


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="make space", description=__doc__.split("\n")[0])
    p.add_argument("repo", metavar="OWNER/NAME")
    p.add_argument("--private", action="store_true", help="where the Space is made now")
    args = p.parse_args(argv)
    try:
        url = upload(args.repo, ROOT, private=args.private)
    except SpaceError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(f"The Space builds now, for some minutes: {url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
