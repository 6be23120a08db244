"""Every test starts from the same random state; a failure repeats itself."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # hub_server and hub_client, for several folders

from hub_server import Hub, serving


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty Hugging Face Hub on loopback."""
    with serving() as hub:
        yield hub
