"""Models: the composable ViT, its variants at every size, and families of another shape."""

from efficient_vits._discover import import_submodules
from efficient_vits.models.vit import ComposableViT, ReducedViT, create_vit

__all__ = ["ComposableViT", "ReducedViT", "create_vit"]

import_submodules(__name__, __path__)
