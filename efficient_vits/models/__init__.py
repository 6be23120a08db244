"""Models: the composable ViT, its variants at every size, and families of another shape."""

from efficient_vits._discover import import_submodules
from efficient_vits.models.create import create_vit
from efficient_vits.models.reduced import ReducedViT
from efficient_vits.models.replace import Replaced, replace_attention
from efficient_vits.models.vit import ComposableViT

__all__ = ["ComposableViT", "ReducedViT", "Replaced", "create_vit", "replace_attention"]

import_submodules(__name__, __path__)
