"""All figures by name: what each shows, and its number in the supplement."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efficient_vits.plots import (
    bars,
    compared,
    correlations,
    flowchart,
    fronts,
    hardware,
    scaling,
    variability,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn.

    Attributes:
        name: Of its function in `efficient_vits.plots`, and of its file.
        function: Takes ``runs`` and ``theme``.
        number: In the supplement; None for those that are not there.
        shows: What it shows, in one line.
        published: What it shows without own runs, where the runs behind the supplement's figure
            are not published; empty for all others.
    """

    name: str
    function: Callable[..., "Figure"]
    number: int | None
    shows: str
    published: str = ""

    @property
    def title(self) -> str:
        """What it shows, with its number."""
        return self.shows if self.number is None else f"Figure {self.number}, {self.shows}"


def _picture(
    number: int | None, function: Callable[..., "Figure"], shows: str, published: str = ""
) -> Picture:
    return Picture(function.__name__, function, number, shows, published)


# Figures by name, in the order of the supplement.
FIGURES: dict[str, Picture] = {
    picture.name: picture
    for picture in (
        _picture(None, fronts.throughput_front, "throughput and accuracy, with the front"),
        _picture(None, fronts.memory_front, "inference memory and accuracy, with the front"),
        _picture(None, flowchart.decision_flowchart, "which model to take, from what is scarce"),
        _picture(
            1,
            variability.metric_variability,
            "how far repeats of one measurement lie apart",
            "range and standard deviation of throughput and of the time of an epoch",
        ),
        _picture(2, compared.dataset_fronts, "throughput and accuracy on four data sets"),
        _picture(3, bars.class_accuracy, "accuracy by class, at 224 px and on larger images"),
        _picture(
            4,
            hardware.device_throughput,
            "throughput on one device against another",
            "correlations between three devices, Table 4",
        ),
        _picture(
            5,
            compared.device_fronts,
            "throughput and accuracy on two devices",
            "the front on an A100, and Table 4",
        ),
        _picture(6, scaling.model_or_image, "scaling the model against scaling the image"),
        _picture(7, compared.fronts_over_time, "the front of what was published up to each year"),
        _picture(
            8,
            bars.pretraining_resolution,
            "pre-training at 192 px against 224 px",
            "the differences of accuracy, and the mean speed-up instead of one for each model",
        ),
        _picture(9, bars.accuracy_per_parameter, "accuracy and accuracy per parameter"),
        _picture(10, fronts.parameter_front, "parameters and accuracy, with the front"),
        _picture(
            11, correlations.training_time_correlation, "time of fine-tuning and inference time"
        ),
        _picture(12, fronts.training_time_front, "fine-tuning time and accuracy, with the front"),
        _picture(
            13, correlations.training_memory_correlation, "training memory and inference time"
        ),
        _picture(14, correlations.memory_model, "training memory and FLOPs, with the fitted line"),
        _picture(15, fronts.training_memory_front, "training memory and accuracy, with the front"),
    )
}


def draw(name: str, runs: Any = None, *, theme: str = "light") -> "Figure":
    """Draw a figure by name.

    Args:
        name: One of `FIGURES`.
        runs: The benchmark's for None, a frame of `results.load_runs`, or what
            `results.read_measurements` takes.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ImportError: matplotlib, adjustText or scipy is not installed.
        ValueError: No such figure or theme; or the runs lack what it shows.
    """
    if name not in FIGURES:
        near = difflib.get_close_matches(name, FIGURES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no figure {name!r}; {hint}accepted are {', '.join(FIGURES)}")
    return FIGURES[name].function(runs, theme=theme)
