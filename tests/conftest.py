"""Every test starts from the same random state; a failure repeats itself."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)
