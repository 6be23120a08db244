"""Token mixing: modules ``(B, N, C) -> (B, N, C)`` in which tokens exchange information.

One file per mechanism; a file that registers itself with `register_attention` is found by name,
offered at every size in timm's registry, and tested.
"""

from efficient_vits._discover import import_submodules
from efficient_vits.attention._interface import (
    AttentionTraits,
    attention_traits,
    bind_report,
    check_heads,
    check_report,
    create_attention,
    list_attentions,
    optional_norm,
    refuse_mask,
    register_attention,
)

__all__ = [
    "AttentionTraits",
    "attention_traits",
    "bind_report",
    "check_heads",
    "check_report",
    "create_attention",
    "list_attentions",
    "optional_norm",
    "refuse_mask",
    "register_attention",
]

import_submodules(__name__, __path__)
