"""Asking the Hub again where it says that it is busy, and saying in one line what else it says."""

import email.utils
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, TypeVar

from huggingface_hub.utils import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from efficient_vits._state import WeightsError

Result = TypeVar("Result")

BUSY = (429, 502, 503, 504)
ATTEMPTS = 5
LONGEST_WAIT = 60.0


class HubError(RuntimeError):
    """The Hub, or what lies between, did not do what was asked."""


def with_retries(
    call: Callable[[], Result], *, sleep: Callable[[float], Any] = time.sleep
) -> Result:
    """What `call` returns, which is tried again while the Hub is busy.

    The client repeats only some of its requests: not those that make a repository or a commit, and
    no download that ends in 503. It is tried five times, with pauses of 1, 2, 4 and 8 seconds, or
    those that the Hub asks for (``Retry-After``). Where it asks for more than a minute, the error
    is raised at once.

    Args:
        call: Takes nothing; may be called several times.
        sleep: Waits for so many seconds.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except HfHubHTTPError as error:
            # Its `response` is missing where the client found the file's absence in its cache.
            response = getattr(error, "response", None)
            pause = 2.0**attempt
            if response is not None:
                pause = parse_retry_after(response.headers.get("Retry-After"), pause)
            busy = response is not None and response.status_code in BUSY
            if not busy or pause > LONGEST_WAIT or attempt == ATTEMPTS - 1:
                raise
        sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def parse_retry_after(value: str | None, default: float) -> float:
    """Seconds to wait after a ``Retry-After`` header: a number or a date; else `default`."""
    if value is None:
        return default
    if re.fullmatch("[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return default
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())


def explain(error: Exception, what: str, repo_id: str, token: str | bool | None) -> HubError:
    """The client's error as one line, in which the token never stands.

    Args:
        error: What the client raised.
        what: What was asked for, such as ``config.json``.
        repo_id: Whose.
        token: The token that was passed, if any.
    """
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client wraps what goes wrong in its threads
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        text = f"{repo_id} is open to some users only; ask for access on its page and pass a token"
    elif isinstance(error, RepositoryNotFoundError):
        text = f"there is no repository {repo_id}, or it is private and the token does not open it"
    elif isinstance(error, RevisionNotFoundError):
        text = f"{repo_id} has no such revision"
    elif isinstance(error, LocalEntryNotFoundError):
        text = f"{what} of {repo_id} is not in the cache, and the Hub cannot be reached"
    elif isinstance(error, EntryNotFoundError):
        text = f"{repo_id} has no {what}"
    elif status in (401, 403):
        text = f"the Hub refuses {what} of {repo_id} ({status}); does the token allow it?"
    elif status in BUSY:
        text = f"the Hub was too busy ({status}) for {what} of {repo_id}; try again later"
    else:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__} {lines[0] if lines else ''}".rstrip()
        text = f"{what} of {repo_id} failed: {reason}"
    return HubError(text.replace(token, "***") if isinstance(token, str) and token else text)


@contextmanager
def hub_errors(what: str, repo_id: str, token: str | bool | None) -> Iterator[None]:
    """Make the client's errors a `HubError`; arguments are those of `explain`."""
    try:
        yield
    except (HubError, WeightsError):
        raise
    except Exception as error:  # a broken connection raises what the client's HTTP library has
        raise explain(error, what, repo_id, token) from error
