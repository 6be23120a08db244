import email.utils
import time
from typing import Any

import pytest
from hub_server import Fault, Hub
from huggingface_hub import get_hf_file_metadata, hf_hub_url

from efficient_vits.weights._hub_retry import (
    ATTEMPTS,
    HubError,
    explain,
    hub_errors,
    parse_retry_after,
    with_retries,
)


def ask(hub: Hub) -> Any:
    """One request of the real client, which does not repeat it by itself."""
    url = hf_hub_url("org/model", "config.json", endpoint=hub.endpoint)
    return get_hf_file_metadata(url, token=False)


@pytest.fixture
def busy(hub: Hub) -> Hub:
    hub.add("org/model", {"config.json": b"{}"})
    return hub


@pytest.mark.parametrize("status", [429, 503])
def test_it_asks_again_with_growing_pauses(busy: Hub, status: int) -> None:
    busy.faults.append(Fault("HEAD", "config", times=3, status=status))
    pauses: list[float] = []
    assert with_retries(lambda: ask(busy), sleep=pauses.append).commit_hash
    assert pauses == [1, 2, 4]
    assert len(busy.seen("HEAD")) == 4


def test_it_waits_as_long_as_the_hub_says(busy: Hub) -> None:
    busy.faults.append(Fault("HEAD", "config", status=429, headers={"Retry-After": "17"}))
    pauses: list[float] = []
    with_retries(lambda: ask(busy), sleep=pauses.append)
    # The fault's status is sent with its headers
    assert pauses == [17]


def test_it_gives_up(busy: Hub) -> None:
    busy.faults.append(Fault("HEAD", "config", times=99, status=503))
    pauses: list[float] = []
    with pytest.raises(OSError, match="503"):
        with_retries(lambda: ask(busy), sleep=pauses.append)
    assert len(busy.seen("HEAD")) == ATTEMPTS == len(pauses) + 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault("HEAD", "config", times=99, status=404),
        Fault("HEAD", "config", times=99, status=500),
        Fault("HEAD", "config", times=99, status=429, headers={"Retry-After": "3600"}),
    ],
    ids=["absent", "broken", "an hour"],
)
def test_it_asks_once_where_waiting_does_not_help(busy: Hub, fault: Fault) -> None:
    busy.faults.append(fault)
    with pytest.raises(OSError, match=str(fault.status)):
        with_retries(lambda: ask(busy), sleep=lambda _: pytest.fail("it waits"))
    assert len(busy.seen("HEAD")) == 1


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        with_retries(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, 3.0), ("0", 0.0), (" 12 ", 12.0), ("soon", 3.0), ("-4", 3.0), ("1e3", 3.0), ("", 3.0)],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    assert parse_retry_after(value, 3.0) == seconds


def test_retry_after_a_date() -> None:
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    past = email.utils.formatdate(time.time() - 30, usegmt=True)
    assert 25 < parse_retry_after(soon, 3.0) <= 30
    assert parse_retry_after(past, 3.0) == 0


def test_an_error_is_one_line_without_the_token() -> None:
    error = ValueError("hf_secret was not\nunderstood\n")
    assert str(explain(error, "config.json", "org/model", "hf_secret")) == (
        "config.json of org/model failed: ValueError *** was not"
    )


def test_causes_behind_the_clients_threads_are_named() -> None:
    error = RuntimeError("Error while uploading")
    error.__cause__ = OSError("disk is full")
    assert "disk is full" in str(explain(error, "the upload", "org/model", None))


def test_errors_that_say_it_already_pass() -> None:
    with pytest.raises(HubError, match=r"^mine$"), hub_errors("x", "org/model", None):
        raise HubError("mine")
