"""What the paper's supplement says, checked against the runs.

Each statement has the paper's words or figure, ours, and a verdict: ``"confirmed"``, ``"differs"``,
or ``"no data"`` where what it needs was not published. A figure is confirmed if ours rounds to it.
Words are given a bound, which stands beside our figure.
"""

from efficient_vits.results.statements._data import classes, datasets, hardware, variability
from efficient_vits.results.statements._interface import Checked
from efficient_vits.results.statements._scaling import parameters, pretraining, scaling, years
from efficient_vits.results.statements._training import optimal, training

__all__ = ["Checked", "check_statements"]

_CHECKS = (
    variability,
    datasets,
    classes,
    hardware,
    scaling,
    years,
    pretraining,
    parameters,
    training,
    optimal,
)


def check_statements() -> list[Checked]:
    """All statements, in the supplement's order.

    Raises:
        ImportError: scipy is not installed.
    """
    return [checked for check in _CHECKS for checked in check()]
