"""Token sequence: modules after which there are fewer tokens.

One file per mechanism; a file that registers itself with `register_reduction` is found by name,
offered at every size in timm's registry, and tested.
"""

from efficient_vits._discover import import_submodules
from efficient_vits.reduction._interface import (
    ReductionTraits,
    create_reduction,
    list_reductions,
    reduction_traits,
    register_reduction,
)

__all__ = [
    "ReductionTraits",
    "create_reduction",
    "list_reductions",
    "reduction_traits",
    "register_reduction",
]

import_submodules(__name__, __path__)
