import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from efficient_vits.cli import main


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models of this size are no faster on several threads, and much slower on busy machines."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: exit status, stdout, stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in argv])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def run_json(run: Callable[..., tuple[int, str, str]]) -> Callable[..., Any]:
    """Runs a command with --json, which must succeed without a word on stderr."""

    def run_json(*argv: object) -> Any:
        status, out, err = run(*argv, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return run_json


@pytest.fixture
def refused(run: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Runs a command that must be refused in one line on stderr alone, and returns that line."""

    def refused(*argv: object) -> str:
        status, out, err = run(*argv)
        assert (status, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err

    return refused


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of hydra_ti16 for 64 x 64 pixels and 10 classes, in a wrapper."""
    path = tmp_path_factory.mktemp("weights") / "hydra.pt"
    torch.manual_seed(0)
    model = timm.create_model("hydra_ti16", num_classes=10, img_size=64)
    torch.nn.init.normal_(model.head.weight)  # or all classes are about equally probable
    torch.save({"model": model.state_dict()}, path)
    return path
