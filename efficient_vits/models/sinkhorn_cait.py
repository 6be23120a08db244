"""Sparse Sinkhorn attention in CaiT's shell, at the sizes of the ViT.

The shell is timm's `Cait` (Apache-2.0): patches mix in the blocks, and a class token collects from
them in two class-attention blocks at the end. Source: Touvron et al., "Going deeper with Image
Transformers", ICCV 2021 (arXiv 2103.17239), section 3; for the mixer see
`efficient_vits.attention.sinkhorn`. As in the benchmark's runs, buckets are sorted by "topk", hold
at most 32 tokens, and sorted keys take the place of sorted values, a slip of the library that was
used there; ``keys_as_values=False`` is the paper's attention.
"""

import functools
import inspect
from typing import Any

from timm.models.cait import Cait

from efficient_vits import catalog
from efficient_vits.attention.sinkhorn import SinkhornAttention
from efficient_vits.models import efficient_vits
from efficient_vits.models._cait import SizedCait
from efficient_vits.models.variants import CFG, PATCH_SIZE, SIZES

CAIT_PARAMETERS = frozenset(inspect.signature(Cait).parameters)
BENCHMARK: dict[str, Any] = {"sort": "topk", "keys_as_values": True}


class SinkhornCait(SizedCait):
    """CaiT whose blocks mix patches by sparse Sinkhorn attention.

    Args:
        init_values: Initial LayerScale.
        **arguments: Those of timm's `Cait`, and the own ones of `SinkhornAttention`: ``sort``,
            ``max_bucket``, ``n_top``, ``iterations``, ``temperature``, ``keys_as_values``.

    Raises:
        TypeError: An argument that neither of the two takes.
    """

    def __init__(self, init_values: float = 1e-4, **arguments: Any) -> None:
        shell = {k: v for k, v in arguments.items() if k in CAIT_PARAMETERS}
        own = {k: v for k, v in arguments.items() if k not in CAIT_PARAMETERS}
        mixer = functools.partial(SinkhornAttention, num_prefix_tokens=0, **{**BENCHMARK, **own})
        super().__init__(init_values, **{"attn_block": mixer, **shell})


def _merge(host: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {**host, **arguments}


_NAMES = {f"sinkhorn_cait_{size}{PATCH_SIZE}": size for size in SIZES}
for _name, _size in _NAMES.items():
    efficient_vits.add_entry_point(
        _name,
        SinkhornCait,
        doc=(
            f"CaiT-{_size.capitalize()}/{PATCH_SIZE} with sparse Sinkhorn attention.\n\n"
            f"Takes all arguments of `SinkhornCait`."
        ),
        cfg=CFG,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        merge=functools.partial(_merge, {"patch_size": PATCH_SIZE, **SIZES[_size]}),
    )
    catalog.derive(_name, axis="attention", relatives=list(_NAMES))
