"""The composable ViT with a token reduction: what changes when tokens get fewer on the way.

timm's methods hold but for `forward_features` and `forward_intermediates`, which hand tokens, sizes
and the map from patches to tokens from block to block.
"""

import functools
from typing import Any, Dict, List, Optional, Tuple, Union  # noqa: UP035 (TorchScript reads them)

import torch
from timm.layers import register_notrace_function
from timm.models import checkpoint
from torch import Tensor, nn

from efficient_vits._registry import Mechanism
from efficient_vits.attention import attention_traits, list_attentions
from efficient_vits.models.block import ReducedBlock
from efficient_vits.models.vit import ComposableViT
from efficient_vits.reduction import reduction_traits


class ReducedViT(ComposableViT):
    """A ViT in which tokens get fewer from block to block.

    Tokens, their sizes and the map from patches to tokens go from block to block as arguments.
    `forward_intermediates` restores dense feature maps: every patch gets the token that it went to,
    zeros where it was dropped.

    Args:
        reduction: The token reduction.
        prop_attn: Weigh merged tokens by their size in the attention; by default wherever the
            attention can, which the model's repr tells.

    The other arguments are those of `ComposableViT`.

    Raises:
        ValueError: The attention does not give what the reduction needs, cannot weigh tokens as
            `prop_attn` asks, or is bound to a number of tokens that changes.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        *,
        attention: Mechanism,
        mlp: Mechanism,
        reduction: Mechanism,
        prop_attn: bool | None = None,
        depth: int = 12,
        **arguments: Any,
    ) -> None:
        if "block_fn" in arguments:
            raise TypeError(
                "block_fn replaces the block that holds the reduction; pass one of them"
            )
        if arguments.get("patch_drop_rate"):
            raise ValueError("patch_drop_rate and a token reduction both remove tokens; pass one")
        needs = reduction_traits(reduction)
        gives = attention_traits(attention)
        if missing := sorted(needs.needs - gives.gives):
            able = [
                name for name in list_attentions() if needs.needs <= attention_traits(name).gives
            ]
            raise ValueError(
                f"{reduction.name} needs {missing} from the attention, which {attention.name} does "
                f"not give; {', '.join(able)} do"
            )
        if needs.place == "between" and not gives.residual:
            raise ValueError(
                f"{reduction.name} works between attention and MLP, where a block with "
                f"{attention.name} has no skip connection"
            )
        proportional = needs.sizes and gives.token_sizes
        if prop_attn and not proportional:
            lacking = attention.name if needs.sizes else reduction.name
            raise ValueError(f"prop_attn=True cannot work: {lacking} knows no token sizes")
        if prop_attn is not None:
            proportional = prop_attn
        super().__init__(
            img_size,
            patch_size,
            attention=attention,
            mlp=mlp,
            depth=depth,
            block_fn=functools.partial(
                ReducedBlock, reduction=reduction, num_blocks=depth, proportional=proportional
            ),
            **arguments,
        )
        # TorchScript would compile the forward of an nn.Sequential, which passes one argument only.
        self.blocks: nn.ModuleList = nn.ModuleList(self.blocks)
        self.composition += f", reduction={reduction.name!r}, prop_attn={proportional}"
        if gives.token_count or gives.grid:
            full = super().token_counts[0]
            if changed := [i for i, n in enumerate(self.token_counts[:-1]) if n != full]:
                raise ValueError(
                    f"{attention.name} is bound to the grid of patches, but {reduction.name} "
                    f"leaves {self.token_counts[changed[0]]} of {full} tokens after block "
                    f"{changed[0]}"
                )

    @property
    def token_counts(self) -> list[int | None]:
        counts: list[int | None] = []
        count: int | None = self.patch_embed.num_patches + self.num_prefix_tokens
        block: Any
        for block in self.blocks:
            count = None if count is None else block.num_tokens(count)
            counts.append(count)
        return counts

    def _embed(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, N, C)."""
        return self.norm_pre(self._pos_embed(self.patch_embed(x)))

    def forward_features(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        """Images (B, 3, H, W) to the tokens that are left (B, N, C), normalised."""
        refuse_token_mask(attn_mask, is_causal)
        x = self._embed(x)
        size: Optional[Tensor] = None
        source: Optional[Tensor] = None
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x, size, source = checkpoint(block, x, size, source)
            else:
                x, size, source = block(x, size, source)
        return self.norm(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, List[int]]] = None,  # noqa: UP006
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Optional[Tensor] = None,
        is_causal: bool = False,
    ) -> Union[List[Tensor], Tuple[Tensor, List[Tensor]], Dict[str, Any]]:  # noqa: UP006
        """As timm's, with dense maps (B, C, H, W) restored from the tokens that are left."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        refuse_token_mask(attn_mask, is_causal)
        take_indices = taken_blocks(len(self.blocks), indices)
        B, _, height, width = x.shape
        P = self.num_prefix_tokens

        x = self._embed(x)
        size: Optional[Tensor] = None
        source: Optional[Tensor] = torch.arange(P, x.shape[1], device=x.device).expand(B, -1)
        intermediates: List[Tensor] = []  # noqa: UP006
        prefix_tokens: List[Tensor] = []  # noqa: UP006
        blocks = self.blocks[: max(take_indices) + 1] if stop_early else self.blocks
        for i, block in enumerate(blocks):
            if self.grad_checkpointing:
                x, size, source = checkpoint(block, x, size, source)
            else:
                x, size, source = block(x, size, source)
            if i in take_indices:
                y = self.norm(x) if norm else x
                prefix_tokens.append(y[:, :P])
                intermediates.append(dense_tokens(y, source))
        if output_fmt == "NCHW":
            H, W = self.patch_embed.dynamic_feat_size((height, width))
            intermediates = [
                y.reshape(B, H, W, -1).permute(0, 3, 1, 2).contiguous() for y in intermediates
            ]

        if output_dict:
            result: dict[str, Any] = {"image_intermediates": intermediates}
            if P and return_prefix_tokens:
                result["image_intermediates_prefix"] = prefix_tokens
            if not intermediates_only:
                result["image_features"] = self.norm(x)
            return result
        if P and return_prefix_tokens:
            pairs: Any = list(zip(intermediates, prefix_tokens, strict=True))
            intermediates = pairs
        return intermediates if intermediates_only else (self.norm(x), intermediates)


def taken_blocks(depth: int, indices: int | list[int] | None) -> list[int]:
    """Block indices that timm's ``indices`` stands for: the last n, a choice, or all."""
    if indices is None:
        return list(range(depth))
    if isinstance(indices, int):
        taken, fits = list(range(depth - indices, depth)), 0 < indices <= depth
    else:
        taken = [i + depth if i < 0 else i for i in indices]
        fits = bool(taken) and min(taken) >= 0 and max(taken) < depth
    if not fits:
        raise ValueError(
            f"indices must name blocks of {depth}, as a count or a list of indices, got {indices!r}"
        )
    return taken


@torch.fx.wrap
@register_notrace_function
def refuse_token_mask(attn_mask: Optional[Tensor], is_causal: bool) -> None:
    """Raise if a model with a token reduction is given an attention mask (scriptable)."""
    if attn_mask is not None or is_causal:
        raise ValueError("a model with a token reduction takes no attn_mask and is not causal")


def dense_tokens(x: Tensor, source: Tensor) -> Tensor:
    """Give every patch its token: x (B, N, C), source (B, N0) -> (B, N0, C), 0 where dropped."""
    index = source.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.shape[-1])
    return x.gather(1, index).masked_fill((source < 0).unsqueeze(-1), 0.0)
