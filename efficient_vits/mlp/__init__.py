"""MLP blocks: modules ``(B, N, C) -> (B, N, C)`` that work on each token on its own.

One file per mechanism; a file that registers itself with `register_mlp` is found by name, offered
at every size in timm's registry, and tested.
"""

from efficient_vits._discover import import_submodules
from efficient_vits.mlp._interface import (
    MlpTraits,
    create_mlp,
    list_mlps,
    mlp_traits,
    register_mlp,
)

__all__ = ["MlpTraits", "create_mlp", "list_mlps", "mlp_traits", "register_mlp"]

import_submodules(__name__, __path__)
