"""The benchmark's runs as data, fronts, what follows from them, and which model to take.

The runs are those of "Which Transformer to Favor" (arXiv 2308.09372); a user's own measurements
load into the same form. `load_runs` needs pandas, correlations and the memory model need scipy:
``pip install 'efficient-vits[results]'``. All else runs without.
"""

from efficient_vits.results.constraints import Constraint, parse_constraint
from efficient_vits.results.correlations import (
    Correlation,
    correlation,
    dataset_correlation,
    device_correlation,
    metric_correlation,
    metric_correlations,
)
from efficient_vits.results.flowchart import Branch, Flowchart, Leaf, decision_flowchart
from efficient_vits.results.fronts import Front, front
from efficient_vits.results.history import YearFront, accuracy_per_parameter, fronts_by_year
from efficient_vits.results.measurements import published_accuracy, read_measurements
from efficient_vits.results.memory_model import MemoryModel, fit_memory
from efficient_vits.results.metrics import METRICS, Metric, metric
from efficient_vits.results.pareto import dominates, dominators, hypervolume, pareto_mask
from efficient_vits.results.place import Placement, place
from efficient_vits.results.printed import (
    Comparison,
    Difference,
    compare_printed,
    memory_is_batch_64,
)
from efficient_vits.results.recommend import Choice, Recommendation, recommend
from efficient_vits.results.runs import SAME_NETWORK, Run, as_rows, load_rows, load_runs, to_frame
from efficient_vits.results.scaling import (
    PAIRS,
    Pretraining,
    Scaling,
    model_or_image,
    pretraining_sizes,
)
from efficient_vits.results.statements import Checked, check_statements
from efficient_vits.results.table5 import Cell, family_of, table5_rebuilt
from efficient_vits.results.tables import (
    TASKS,
    DatasetAccuracy,
    DatasetSetting,
    HardwareCorrelation,
    OptimalModels,
    PrintedRun,
    Setting,
    Stated,
    stated,
    table1,
    table2,
    table3,
    table4,
    table5,
    table6,
)
from efficient_vits.results.uncertainty import Membership, Spread, membership, repeat_spread

__all__ = [
    "METRICS",
    "PAIRS",
    "SAME_NETWORK",
    "TASKS",
    "Branch",
    "Cell",
    "Checked",
    "Choice",
    "Comparison",
    "Constraint",
    "Correlation",
    "DatasetAccuracy",
    "DatasetSetting",
    "Difference",
    "Flowchart",
    "Front",
    "HardwareCorrelation",
    "Leaf",
    "Membership",
    "MemoryModel",
    "Metric",
    "OptimalModels",
    "Placement",
    "Pretraining",
    "PrintedRun",
    "Recommendation",
    "Run",
    "Scaling",
    "Setting",
    "Spread",
    "Stated",
    "YearFront",
    "accuracy_per_parameter",
    "as_rows",
    "check_statements",
    "compare_printed",
    "correlation",
    "dataset_correlation",
    "decision_flowchart",
    "device_correlation",
    "dominates",
    "dominators",
    "family_of",
    "fit_memory",
    "front",
    "fronts_by_year",
    "hypervolume",
    "load_rows",
    "load_runs",
    "membership",
    "memory_is_batch_64",
    "metric",
    "metric_correlation",
    "metric_correlations",
    "model_or_image",
    "pareto_mask",
    "parse_constraint",
    "place",
    "pretraining_sizes",
    "published_accuracy",
    "read_measurements",
    "recommend",
    "repeat_spread",
    "stated",
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table5_rebuilt",
    "table6",
    "to_frame",
]
