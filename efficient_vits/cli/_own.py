"""The user's own measurements, for commands that set them beside the benchmark's runs."""

import sys
import warnings
from collections.abc import Sequence

from efficient_vits.cli._errors import mistakes, one_line
from efficient_vits.results import Run, published_accuracy, read_measurements


def read_own(files: Sequence[str]) -> list[Run]:
    """Runs with the benchmark's accuracy where they have none; what is left out goes to stderr."""
    with warnings.catch_warnings(record=True) as said, mistakes(ValueError, OSError):
        warnings.simplefilter("always")
        own = read_measurements(files, accuracy=published_accuracy())
    for warning in said:
        print(one_line(warning.message), file=sys.stderr)
    return own
