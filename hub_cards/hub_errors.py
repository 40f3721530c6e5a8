"""Errors of the Hub and of the network, as one sentence that names the way out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from ..configuration.push_hawaii import IgnoredFileError
from ..files.escape import flatten
from ..files.user_error import UserError
from ..files.write_errors import NO_SPACE, describe_write_error


# The second half of a sentence, by status of the Hub's answer.
REMEDIES = {
    401: "the Hub does not know your token: run `hf auth login`, or set HF_TOKEN to a token that may write",
    403: "the token may not do this: make one that may write to {repo_id} at https://huggingface.co/settings/tokens, "
    "or name a repository of yours",
    404: "it was not found: check its name, and that the token may see it",
    409: "the repository was changed at the same time: look at the newest commit, and run the same command again",
    412: "somebody pushed to it during the upload: look at the newest commit, and run the same command again",
    429: "the Hub has received too many requests: run the same command again in some minutes",
}
FAILED = "the Hub failed with status {status}: run the same command again later"
UNREACHABLE = (
    "the connection to {endpoint} failed: check the network and run the same command again, which sends only what is "
    "missing"
)
NO_ANSWER = (
    "{endpoint} did not answer as the Hub does, but perhaps as a proxy or a login page: open it in a browser, check "
    "HF_ENDPOINT, and run the same command again"
)
NO_ADDRESS = (
    "HF_ENDPOINT is {endpoint}, which is not the address of a server: unset it, or write an address as in "
    "https://example.org"
)
OFFLINE = "HF_HUB_OFFLINE is set: unset it"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it: threads wrap the errors of single files."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _describe(error: BaseException, repo_id: str) -> str | None:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status >= 500:
            return FAILED.format(status=status)
        answer = f" (the Hub says: {flatten(error.server_message)})" if error.server_message else ""
        remedy = REMEDIES.get(status, f"the Hub refused it with status {status}")
        return remedy.format(repo_id=repo_id) + answer
    # A header has only ASCII: a copied token may have an invisible character.
    is_token = isinstance(error, UnicodeEncodeError) and error.object.startswith("Bearer ")
    if is_token or isinstance(error, LocalTokenNotFoundError):
        return REMEDIES[401]
    if isinstance(error, OfflineModeIsEnabled):
        return OFFLINE
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return NO_ADDRESS.format(endpoint=constants.ENDPOINT)
    if isinstance(error, httpx.TransportError | ConnectionError | TimeoutError):
        return UNREACHABLE.format(endpoint=constants.ENDPOINT)
    if isinstance(error, json.JSONDecodeError):
        return NO_ANSWER.format(endpoint=constants.ENDPOINT)
    if isinstance(error, IgnoredFileError):
        return str(error)
    if isinstance(error, OSError) and error.filename and error.errno not in NO_SPACE:
        return f"{error.filename} cannot be used ({error.strerror}): correct this and run the same command again"
    if (written := describe_write_error(error, Path(constants.HF_HOME))) is not None:
        return f"{': '.join(written)} and run the same command again"
    return None


@contextmanager
def explain_hub_errors(problem: str, repo_id: str) -> Iterator[None]:
    """
    Re-raises the errors of a block that uses the Hub.

    Args:
        problem (`str`):
            Start of the message: what could not be done.
        repo_id (`str`):
            The repository.

    Raises:
        UserError: unchanged, or `problem`, the reason and the way out in place of an error of the Hub, the network or
            a file.
        Exception: unchanged, any other error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # what is not of the Hub, the network or a file is raised again
        described = (_describe(cause, repo_id) for cause in _causes(error))
        if (reason := next((reason for reason in described if reason), None)) is None:
            raise
        raise UserError(f"{problem}: {' '.join(reason.split()).rstrip('.')}.") from error
