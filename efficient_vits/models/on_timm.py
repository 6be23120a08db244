"""Networks of timm in a published configuration, under the names of the catalog.

The classes, and the weights that are published, are timm's; each entry says which
configuration the name stands for. Published weights are offered where they are of exactly this
configuration, under timm's tags and with timm's own record of how they were trained. Swin V2 was
released with windows of 8 and 16 tokens only, and nobody released a Mixer-S/16: these two have
none.

CaiT is timm's class with the parts of the protocol that it lacks, another input size above all.
XCiT is the one exception to "timm's class". Its authors compute a query for every token in the
class attention and use the first; timm skips the others, 1.2 % of the network's FLOPs. The
published figures are those of the authors' computation, which `PublishedXcit` repeats. Outputs,
parameter names and weights are timm's.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from timm.models import cait, mlp_mixer, swin_transformer, swin_transformer_v2, xcit
from torch import Tensor, nn

from efficient_vits.models import efficient_vits
from efficient_vits.models._cait import SizedCait


class PublishedClassAttention(nn.Module):
    """Class attention with a query for every token, of which the first is used.

    Args:
        attention: timm's class attention, whose layers it takes over.

    Shape: (B, N, dim) -> (B, 1, dim), the new class token.
    """

    def __init__(self, attention: cait.ClassAttn) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.q = attention.q
        self.k = attention.k
        self.v = attention.v
        self.attn_drop = attention.attn_drop
        self.proj = attention.proj
        self.proj_drop = attention.proj_drop

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        heads = [B, N, self.num_heads, C // self.num_heads]
        q = self.q(x).reshape(heads).transpose(1, 2)[:, :, :1]  # (B, heads, 1, d)
        k = self.k(x).reshape(heads).transpose(1, 2)
        v = self.v(x).reshape(heads).transpose(1, 2)
        dropout = self.attn_drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.proj_drop(self.proj(y.transpose(1, 2).reshape(B, 1, C)))


class PublishedXcit(xcit.Xcit):
    """XCiT as its authors compute it; see the module.

    Source: El-Nouby et al., "XCiT: Cross-Covariance Image Transformers", NeurIPS 2021 (arXiv
    2106.09681); class attention: Touvron et al., ICCV 2021 (arXiv 2103.17239), section 3.

    Args:
        **arguments: Those of timm's `Xcit`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for block in self.cls_attn_blocks:
            block.attn = PublishedClassAttention(block.attn)


def _merge(configuration: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {**configuration, **arguments}


def _add(
    name: str,
    doc: str,
    create: Callable[..., nn.Module],
    configuration: dict[str, Any],
    cfg: Mapping[str, Any],
    feature_cfg: Mapping[str, Any],
    **more: Any,
) -> None:
    efficient_vits.add_entry_point(
        name,
        create,
        doc=f"{doc}\n\nTakes all arguments of `{create.__name__}`.",
        cfg=cfg,
        feature_cfg=feature_cfg,
        merge=functools.partial(_merge, configuration),
        **more,
    )


# Isotropic networks give the maps of their last blocks, pyramids one map per stage.
ISOTROPIC = {"out_indices": 3, "feature_cls": "getter"}
PYRAMID = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}

# Swin, section 3.3 (arXiv 2103.14030); Swin V2 has the same sizes.
SWIN = {"patch_size": 4, "window_size": 7, "embed_dim": 96, "num_heads": (3, 6, 12, 24)}
SWIN_DEPTHS = {"ti": (2, 2, 6, 2), "s": (2, 2, 18, 2)}
SWIN_CFG = {
    "fixed_input_size": True,
    "pool_size": (7, 7),
    "first_conv": "patch_embed.proj",
    "classifier": "head.fc",
}

for _size, _depths in SWIN_DEPTHS.items():
    _add(
        f"swin_{_size}_w7",
        f"Swin-{_size.capitalize()} with windows of 7 x 7 tokens.",
        swin_transformer.SwinTransformer,
        {**SWIN, "depths": _depths},
        SWIN_CFG,
        PYRAMID,
        filter_fn=swin_transformer.checkpoint_filter_fn,
    )

_add(
    "swinv2_ti_w7",
    "Swin-Ti V2 with windows of 7 x 7 tokens, at 224 px.",
    swin_transformer_v2.SwinTransformerV2,
    {**SWIN, "depths": SWIN_DEPTHS["ti"]},
    SWIN_CFG,
    PYRAMID,
)

# XCiT, table 1 (arXiv 2106.09681).
_add(
    "xcit_s12_p16",
    "XCiT-S12/16.",
    PublishedXcit,
    {
        "patch_size": 16,
        "embed_dim": 384,
        "depth": 12,
        "num_heads": 8,
        "eta": 1.0,
        "tokens_norm": True,
    },
    {"first_conv": "patch_embed.proj.0.0", "classifier": "head"},
    ISOTROPIC,
    filter_fn=xcit.checkpoint_filter_fn,
)

# CaiT, table 1 (arXiv 2103.17239).
_add(
    "cait_s24",
    "CaiT-S24/16.",
    SizedCait,
    {"patch_size": 16, "embed_dim": 384, "depth": 24, "num_heads": 8, "init_values": 1e-5},
    {"fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"},
    ISOTROPIC,
    filter_fn=cait.checkpoint_filter_fn,
)

# MLP-Mixer, table 1 (arXiv 2105.01601).
_add(
    "mixer_s16",
    "Mixer-S/16.",
    mlp_mixer.MlpMixer,
    {"patch_size": 16, "num_blocks": 8, "embed_dim": 512},
    {"fixed_input_size": True, "first_conv": "stem.proj", "classifier": "head"},
    ISOTROPIC,
)
