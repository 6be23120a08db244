"""Efficient vision transformers for timm.

Importing this package adds its models to timm's registry::

    import timm, efficient_vits
    model = timm.create_model("hydra_s16", num_classes=100, img_size=384)
"""

from efficient_vits import attention, mlp, models, reduction
from efficient_vits._auxiliary import auxiliary_loss
from efficient_vits._fuse import fuse, fused_modules
from efficient_vits.catalog import ModelCard, Paper, list_models, model_card
from efficient_vits.models import replace_attention
from efficient_vits.weights import load_weights, warm_start

__version__ = "0.1.0"

__all__ = [
    "ModelCard",
    "Paper",
    "attention",
    "auxiliary_loss",
    "fuse",
    "fused_modules",
    "list_models",
    "load_weights",
    "mlp",
    "model_card",
    "models",
    "reduction",
    "replace_attention",
    "warm_start",
]
