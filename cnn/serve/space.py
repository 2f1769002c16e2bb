"""Put this repository on the Hugging Face Hub as a Space, in one commit: make space REPO=OWNER/NAME

What git tracks goes up as it lies here, weights included (plain git refuses files over 10 MB, the Hub's API takes
them); what the Space holds beyond that is removed. The README's front matter says how it is run.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from cnn.hub import PublishError, refusal, writer

ROOT = Path(__file__).resolve().parents[2]
KEPT = ".gitattributes"  # the Hub's own, which says what it stores as large files


def tracked(root: Path) -> list[str]:
    """Paths below `root` that git tracks and that are there, sorted."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as e:
        raise PublishError(f"git does not say which files of {root} belong to it: upload from a git clone") from e
    return sorted(name for name in listed.split("\0") if name and (root / name).is_file())


def upload(repo: str, root: Path, *, private: bool = False) -> str:
    """Make the Space `OWNER/NAME` hold what git tracks below `root`; its address. Makes it where there is none.

    `private` holds for a Space that is made now. The token is that of `hf auth login` or HF_TOKEN. Raises PublishError;
    then it has not changed, or is new and empty.
    """
    api, files = writer(repo), tracked(root)
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
    except (HTTPError, OfflineModeIsEnabled) as e:
        raise refusal(e, f"the Space {repo}") from e
    except ValueError as e:
        told = " ".join(str(e).split())
        raise PublishError(f"the Hugging Face Hub refuses the front matter of README.md: {told}") from e
    return str(url)


def _message(root: Path) -> str:
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    return f"The repository at {head.stdout.strip()}" if head.returncode == 0 else "The repository"


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="make space", description=__doc__.split("\n")[0])
    p.add_argument("repo", metavar="OWNER/NAME")
    p.add_argument("--private", action="store_true", help="where the Space is made now")
    args = p.parse_args(argv)
    try:
        url = upload(args.repo, ROOT, private=args.private)
    except PublishError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(f"The Space builds now, for some minutes: {url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
