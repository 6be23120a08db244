"""Pictures. They need matplotlib or plotly: ``pip install 'efficient-vits[plots]'``.

Every figure is a function that takes runs (by default the benchmark's) and a theme, and returns a
figure of matplotlib. `FIGURES` has all of them by name. `explore` writes the interactive page, with
plotly alone.
"""

from efficient_vits.plots._style import write_figure
from efficient_vits.plots.bars import (
    accuracy_per_parameter,
    class_accuracy,
    pretraining_resolution,
)
from efficient_vits.plots.compared import dataset_fronts, device_fronts, fronts_over_time
from efficient_vits.plots.correlations import (
    memory_model,
    training_memory_correlation,
    training_time_correlation,
)
from efficient_vits.plots.explore import explore
from efficient_vits.plots.figures import FIGURES, Picture, draw
from efficient_vits.plots.flowchart import decision_flowchart
from efficient_vits.plots.fronts import (
    memory_front,
    parameter_front,
    throughput_front,
    training_memory_front,
    training_time_front,
)
from efficient_vits.plots.hardware import device_throughput
from efficient_vits.plots.scaling import model_or_image
from efficient_vits.plots.tokens import draw_tokens, paint_tokens
from efficient_vits.plots.variability import metric_variability

__all__ = [
    "FIGURES",
    "Picture",
    "accuracy_per_parameter",
    "class_accuracy",
    "dataset_fronts",
    "decision_flowchart",
    "device_fronts",
    "device_throughput",
    "draw",
    "draw_tokens",
    "explore",
    "fronts_over_time",
    "memory_front",
    "memory_model",
    "metric_variability",
    "model_or_image",
    "paint_tokens",
    "parameter_front",
    "pretraining_resolution",
    "throughput_front",
    "training_memory_correlation",
    "training_memory_front",
    "training_time_correlation",
    "training_time_front",
    "write_figure",
]
