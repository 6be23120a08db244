"""Figures, each drawn once for all tests, and runs of a user's own."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure

from efficient_vits import plots, results
from efficient_vits.results import Run

DRAWN: dict[tuple[str, str], Figure] = {}


@pytest.fixture(scope="session")
def drawn() -> Callable[..., Figure]:
    """The figure of the benchmark's runs, by name and theme; not to be changed."""

    def drawn(name: str, theme: str = "light") -> Figure:
        if (name, theme) not in DRAWN:
            DRAWN[name, theme] = plots.draw(name, theme=theme)
        return DRAWN[name, theme]

    return drawn


@pytest.fixture(scope="session")
def own() -> list[Run]:
    """Measurements of six models on another device, a tenth as fast, and repeats of one."""
    names = ("vit_ti16", "vit_s16", "vit_b16", "hydra_s16", "fnet_s16", "coat_tiny")
    best = {run.name: run for run in results.accuracy_per_parameter()}
    runs = [
        dataclasses.replace(
            best[name],
            source="own.json",
            device="Some Processor",
            throughput=(best[name].throughput or 0) / 10,
            memory={},
            training_memory=None,
            training_time=None,
            corrections={},
        )
        for name in names
    ]
    repeats = [dataclasses.replace(runs[0], throughput=800.0 + i) for i in (0, 3, 4, 13)]
    return [*runs, *repeats]


@pytest.fixture(scope="session")
def with_own(own: list[Run]) -> list[Run]:
    return results.load_rows(own)


def _points_of(axes: Any) -> set[tuple[float, float]]:
    """The places of all markers in some axes, rounded."""
    return {
        (round(float(x), 6), round(float(y), 6))
        for collection in axes.collections
        if collection.get_gid() != "own"
        for x, y in collection.get_offsets()
    }


def _line(axes: Any, gid: str) -> list[tuple[float, float]]:
    """The corners of the only line with this name."""
    (found,) = [one for one in axes.lines if one.get_gid() == gid]
    return [(float(x), float(y)) for x, y in found.get_xydata()]


def _title_of(figure: Any) -> str:
    return str(figure.get_suptitle())


def _words(figure: Any) -> str:
    """All words of a figure, in one line."""
    from matplotlib.text import Text

    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())


@pytest.fixture(scope="session")
def points_of() -> Callable[..., Any]:
    return _points_of


@pytest.fixture(scope="session")
def line() -> Callable[..., Any]:
    return _line


@pytest.fixture(scope="session")
def title_of() -> Callable[..., str]:
    return _title_of


@pytest.fixture(scope="session")
def words() -> Callable[..., str]:
    return _words
