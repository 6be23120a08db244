r"""CvT: a pyramid whose tokens come from convolutions, and so do queries, keys and values.

Every level begins with a strided convolution that overlaps (7x7 / 4, then 3x3 / 2) and a layer norm
over channels; its blocks attend between convolutional projections
(`efficient_vits.attention.conv_projection`). There are no position embeddings: images of any size
go through. In the last level a class token joins, which the classifier reads.

Source: Wu et al., "CvT: Introducing Convolutions to Vision Transformers", ICCV 2021 (arXiv
2103.15808), section 3 and table 2. Written anew (the authors' code is MIT). The MLPs have GELU, as
in the paper, the benchmark and the weights' version on the Hub; the authors' code passes an
approximation of it, ``act_layer="quick_gelu"`` here. As in that code, stochastic depth is in the
last level.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import LayerNorm, calculate_drop_path_rates, get_act_layer, trunc_normal_
from torch import Tensor, nn

from efficient_vits import catalog
from efficient_vits._state import substitute
from efficient_vits.attention._grid import to_tokens
from efficient_vits.attention.conv_projection import ConvProjectionAttention
from efficient_vits.models import efficient_vits
from efficient_vits.models._pyramid import EPS, Downsample, GridBlock, Pyramid, Stage

# Kernel, stride, padding of the convolution that begins each level.
EMBEDDINGS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))

# Names of the benchmark's code, which are the authors', to ours.
REFERENCE = {
    r"^stage(\d+)\.patch_embed\.": r"stages.\1.downsample.",
    r"^stage(\d+)\.": r"stages.\1.",
    r"\.attn\.conv_proj_([qkv])\.": r".attn.\1_conv.",
    r"\.attn\.proj_([qkv])\.": r".attn.\1_proj.",
}

# Those of the transformers package, CvtModel and CvtForImageClassification.
TRANSFORMERS = {
    r"^(?:cvt\.)?encoder\.stages\.": "stages.",
    r"^(stages\.\d+)\.embedding\.convolution_embeddings\.": r"\1.downsample.",
    r"\.downsample\.projection\.": ".downsample.proj.",
    r"\.downsample\.normalization\.": ".downsample.norm.",
    r"^(stages\.\d+)\.layers\.": r"\1.blocks.",
    r"\.attention\.attention\.convolution_projection_([qkv])[a-z]+\.": r".attn.\1_conv.",
    r"_conv\.convolution_projection\.convolution\.": "_conv.conv.",
    r"_conv\.convolution_projection\.normalization\.": "_conv.bn.",
    r"\.attention\.attention\.projection_([qkv])[a-z]+\.": r".attn.\1_proj.",
    r"\.attention\.output\.dense\.": ".attn.proj.",
    r"\.intermediate\.dense\.": ".mlp.fc1.",
    r"\.output\.dense\.": ".mlp.fc2.",
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"^layernorm\.": "norm.",
    r"^classifier\.": "head.",
}


class ClassTokenStage(Stage):
    """A level in which a class token takes part; the arguments are those of `Stage`.

    Shape: a map (B, C', H', W') -> a map (B, C, H, W), and the class token (B, 1, C).
    """

    def __init__(
        self,
        dim: int,
        downsample: nn.Module,
        blocks: Sequence[nn.Module],
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(dim, downsample, blocks)
        self.num_prefix_tokens = 1
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Draw the class token anew."""
        trunc_normal_(self.cls_token, std=0.02)

    def begin(self, tokens: Tensor) -> Tensor:
        """The class token in front of the others."""
        return torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)


class CvT(Pyramid):
    """CvT.

    Args:
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier; 0 for none.
        global_pool: ``"token"``, the class token; ``"avg"``, the mean of the patches; ``""``, all.
        depths: Blocks of the three levels.
        embed_dims: Their channels.
        num_heads: Their heads.
        mlp_ratio: Hidden channels of the MLPs, in units of the level's.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout in front of the classifier.
        proj_drop_rate: Dropout after attention and in the MLPs.
        attn_drop_rate: Dropout on attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows from 0 within the last level.
        act_layer: Activation of the MLPs, a class or timm's name of it.

    Shape: images (B, in_chans, H, W) -> logits (B, num_classes). `forward_features` gives normed
    tokens (B, 1 + N, C), the class token first.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        *,
        depths: Sequence[int] = (1, 2, 10),
        embed_dims: Sequence[int] = (64, 192, 384),
        num_heads: Sequence[int] = (1, 3, 6),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | type[nn.Module] = "gelu",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        stages: list[Stage] = []
        for i, (depth, dim, heads, embedding) in enumerate(
            zip(depths, embed_dims, num_heads, EMBEDDINGS, strict=True)
        ):
            last = i == len(EMBEDDINGS) - 1
            before = embed_dims[i - 1] if i else in_chans
            blocks = [
                GridBlock(
                    dim,
                    ConvProjectionAttention(
                        dim,
                        heads,
                        qkv_bias=qkv_bias,
                        attn_drop=attn_drop_rate,
                        proj_drop=proj_drop_rate,
                        num_prefix_tokens=int(last),
                        **factory,
                    ),
                    mlp_ratio=mlp_ratio,
                    drop=proj_drop_rate,
                    drop_path=drop_path,
                    act_layer=get_act_layer(act_layer),
                    **factory,
                )
                for drop_path in calculate_drop_path_rates(drop_path_rate if last else 0.0, depth)
            ]
            embed = Downsample(before, dim, *embedding, **factory)
            if last:
                stages.append(ClassTokenStage(dim, embed, blocks, **factory))
            else:
                stages.append(Stage(dim, embed, blocks))
        super().__init__(
            stages,
            LayerNorm(embed_dims[-1], eps=EPS, **factory),
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **factory,
        )
        self.init_weights()

    @torch.jit.ignore
    def poolings(self) -> tuple[str, ...]:
        """What `global_pool` can be; without the last level there is no class token."""
        return ("token", "avg", "") if self.num_prefix_tokens else ("avg", "")

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Name of the class token."""
        return {name for name, _ in self.named_parameters() if name.endswith(".cls_token")}

    def finish(self, x: Tensor, prefix: Tensor) -> Tensor:
        """Normed tokens (B, P + H * W, C), the class token and those of the last map."""
        return self.norm(torch.cat([prefix, to_tokens(x)], dim=1))

    def pool_features(self, x: Tensor) -> Tensor:
        """The class token, the mean of the patches, or all tokens."""
        if self.global_pool == "token":
            return x[:, 0]
        if self.global_pool == "avg":
            return x[:, self.num_prefix_tokens :].mean(dim=1)
        return x

    def classify(self, x: Tensor) -> Tensor:
        """Logits of vectors (B, C), or of all tokens (B, P + H * W, C)."""
        return self.head(x)

    @staticmethod
    def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours."""
        return substitute(state, REFERENCE)

    @staticmethod
    def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the transformers package to ours."""
        return substitute(state, TRANSFORMERS)


_CFG = {
    "first_conv": "stages.0.downsample.proj",
    "classifier": "head",
    "crop_pct": 0.875,
}

_SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cvt_13": ({}, {}),
    "cvt_21": ({"depths": (1, 4, 16)}, {}),
    "cvt_w24": (
        {"depths": (2, 2, 20), "embed_dims": (192, 768, 1024), "num_heads": (3, 12, 16)},
        {"input_size": (3, 384, 384), "crop_pct": 1.0},
    ),
}

for _name, (_arguments, _cfg) in _SIZES.items():
    efficient_vits.add_entry_point(
        _name,
        CvT,
        doc=f"CvT-{_name[4:].upper()}. Takes all arguments of `efficient_vits.models.cvt.CvT`.",
        cfg={**_CFG, **_cfg},
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        merge=functools.partial(operator.or_, _arguments),
    )
    catalog.derive(
        _name,
        axis="attention",
        relatives=["cvt_13"],
        img_size=_cfg.get("input_size", (3, 224, 224))[-1],
    )
