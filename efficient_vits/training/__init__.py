"""Training: the benchmark's recipe, from one command on a laptop to many machines.

Needs ``pip install 'efficient-vits[train]'``: pydantic for the recipe, accelerate for any number of
processes, scikit-learn for the digits that it can be tried on.
"""

from efficient_vits.training.batches import BatchError, BatchPlan, plan_batches
from efficient_vits.training.checkpoint import CheckpointError
from efficient_vits.training.cluster import submit
from efficient_vits.training.data import Data, DataError, load_data
from efficient_vits.training.evaluation import Accuracy, evaluate_model, evaluate_source
from efficient_vits.training.health import NotFiniteError
from efficient_vits.training.presets import PRESETS, preset
from efficient_vits.training.recipe import Recipe, RecipeError
from efficient_vits.training.rows import EpochRow
from efficient_vits.training.session import Options, train
from efficient_vits.training.start import Start, StartError, build_model, from_checkpoint
from efficient_vits.training.trainer import Trainer, Update

__all__ = [
    "PRESETS",
    "Accuracy",
    "BatchError",
    "BatchPlan",
    "CheckpointError",
    "Data",
    "DataError",
    "EpochRow",
    "NotFiniteError",
    "Options",
    "Recipe",
    "RecipeError",
    "Start",
    "StartError",
    "Trainer",
    "Update",
    "build_model",
    "evaluate_model",
    "evaluate_source",
    "from_checkpoint",
    "load_data",
    "plan_batches",
    "preset",
    "submit",
    "train",
]
