"""One process with the real client for all tests of the Hub, one Hub for each test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import Client, started
from hub_server import Hub, serving


@pytest.fixture(scope="session")
def running_hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture(scope="session")
def running_client(running_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with started(running_hub.endpoint, tmp_path_factory.mktemp("hub")) as client:
        yield client


@pytest.fixture
def hub(running_hub: Hub) -> Hub:
    """The client's Hub, empty."""
    running_hub.repositories.clear()
    running_hub.large.clear()
    running_hub.faults.clear()
    running_hub.requests.clear()
    return running_hub


@pytest.fixture
def cache(running_client: Client) -> Path:
    """The client's cache, empty."""
    path = running_client.log.parent / "hub"
    shutil.rmtree(path, ignore_errors=True)
    return path


@pytest.fixture
def client(running_client: Client, hub: Hub, cache: Path) -> Client:
    """A process with the real client, an empty cache, and an empty Hub."""
    return running_client
