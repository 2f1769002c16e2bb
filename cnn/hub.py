"""What those who write to the Hugging Face Hub share: who they are there, and what a refusal means in one sentence."""

import os
import re

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

NAME = re.compile(r"[\w.-]+/[\w.-]+")


class PublishError(RuntimeError):
    """The Hub did not take it; the message says why and the way out."""


def writer(repo: str, token: str | None = None) -> HfApi:
    """The Hub ($HF_ENDPOINT, or the public one) for somebody who may write to `OWNER/NAME`. `token`: default that of
    `hf auth login` or HF_TOKEN. Raises PublishError."""
    try:
        validate_repo_id(repo)
    except HFValidationError as e:
        raise PublishError(f"{repo!r} is no name of a repository on the Hub ({e}): OWNER/NAME is needed") from e
    if not NAME.fullmatch(repo):
        raise PublishError(f"{repo!r} is no name of a repository on the Hub: OWNER/NAME is needed")
    if not (token := token or get_token()):
        raise PublishError("no token of the Hugging Face Hub: run hf auth login, or set HF_TOKEN to one that may write")
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)


def refusal(error: Exception, what: str) -> PublishError:
    """Of `what` ('the Space OWNER/NAME') by an `error` of huggingface_hub's, its HTTPError or OfflineModeIsEnabled."""
    if not isinstance(error, HfHubHTTPError):
        away = f"the Hugging Face Hub cannot be reached ({error})"
        return PublishError(f"{away}: check the connection and run the command again")
    said = error.server_message or str(error).strip().split("\n")[0]
    write = f"the token may not write to {what}: check the name, or take a token that may write to it"
    return PublishError({
        401: f"the Hugging Face Hub refuses the token for {what}: log in with one that may write, hf auth login",
        402: f"the Hugging Face Hub does not take {what} without payment: look at the plan of the account there",
        403: write,
        404: write,
        412: f"{what} has changed in the meantime: run the command again",
    }.get(error.response.status_code, f"the Hugging Face Hub refused {what}: {said}"))  # fmt: skip
