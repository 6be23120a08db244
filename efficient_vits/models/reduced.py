"""The composable ViT with a token reduction: what changes when tokens get fewer on the way.

timm's methods hold but for `forward_features` and `forward_intermediates`, which hand tokens, sizes
and the map from patches to tokens from block to block.
"""

import functools
from collections.abc import Sequence
from typing import Any, Dict, List, Optional, Tuple, Union  # noqa: UP035 (TorchScript reads them)

import torch
from timm.layers import register_notrace_function
from timm.models import checkpoint
from torch import Tensor, nn

from efficient_vits._registry import Mechanism
from efficient_vits._state import put
from efficient_vits.attention import attention_traits, list_attentions
from efficient_vits.models.block import ReducedBlock
from efficient_vits.models.vit import ComposableViT
from efficient_vits.reduction import reduction_traits
from efficient_vits.reduction._tokens import token_indices


class ReducedViT(ComposableViT):
    """A ViT in which tokens get fewer from block to block.

    Tokens, their sizes and the map from patches to tokens go from block to block as arguments.
    `forward_intermediates` restores dense feature maps: every patch gets the token that it went to,
    zeros where it was dropped.

    Args:
        reduction: The token reductions, in the order in which they run.
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
        reduction: Sequence[Mechanism],
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
        proportional = _check_reductions(reduction, attention, prop_attn)
        super().__init__(
            img_size,
            patch_size,
            attention=attention,
            mlp=mlp,
            depth=depth,
            block_fn=functools.partial(
                ReducedBlock, reductions=reduction, num_blocks=depth, proportional=proportional
            ),
            **arguments,
        )
        pooled = arguments.get("global_pool", "token") in ("avg", "avgmax", "max")
        for mechanism in reduction:
            unread = pooled and not arguments.get("pool_include_prefix")
            if unread and reduction_traits(mechanism).prefix:
                raise ValueError(
                    f"{mechanism.name} works on the class token, which "
                    f"global_pool={arguments['global_pool']!r} does not read; use 'token'"
                )
        # TorchScript would compile the forward of an nn.Sequential, which passes one argument only.
        self.blocks: nn.ModuleList = nn.ModuleList(self.blocks)
        names = [mechanism.name for mechanism in reduction]
        shown = names[0] if len(names) == 1 else names
        self.composition += f", reduction={shown!r}, prop_attn={proportional}"
        traits = attention_traits(attention)
        if traits.token_count or traits.grid:
            full = super().token_counts[0]
            attended = self._attended()
            if changed := [i for i, n in enumerate(attended) if n != full]:
                raise ValueError(
                    f"{attention.name} is bound to the grid of patches, but {', '.join(names)} "
                    f"leaves {attended[changed[0]]} of {full} tokens to block {changed[0]}"
                )
        for i, reducer in enumerate(self.reductions()):
            if i and reduction_traits(type(reducer)).grid:
                raise ValueError(
                    f"{type(reducer).__name__} works on the grid of patches, of which "
                    f"{type(self.reductions()[0]).__name__} leaves none; it can only be the first "
                    f"reduction of a model"
                )
        for reducer in self.reductions():
            if hasattr(reducer, "arrange"):
                reducer.arrange(self.blocks)
        # Arranging may add blocks or take some away.
        tap = self.feature_info[0]
        self.feature_info[:] = [{**tap, "module": f"blocks.{i}"} for i in range(len(self.blocks))]

    @torch.jit.ignore
    def _attended(self) -> list[int | None]:
        """Number of tokens that the attention of each block sees; None where it is not fixed."""
        counts: list[int | None] = [super().token_counts[0], *self.token_counts[:-1]]
        block: Any
        for i, block in enumerate(self.blocks):
            for reducer in block.before.values():
                n = counts[i]
                counts[i] = None if n is None else reducer.num_tokens(n)
        return counts

    @torch.jit.ignore
    def reductions(self) -> list[Any]:
        """The reductions of all blocks in the order in which they run."""
        blocks: Any = self.blocks
        return [reducer for block in blocks for reducer in block.reductions()]

    @torch.jit.ignore
    def from_reference(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The benchmark's names to ours, as far as reductions have parameters beside the blocks."""
        out = dict(state)
        for path, module in self.blocks.named_modules():
            theirs = getattr(module, "reference_prefix", None)
            if theirs is not None:
                names = [name for name in out if name.startswith(theirs)]
                part = {name[len(theirs) :]: out.pop(name) for name in names}
                for name, value in module.from_reference(part).items():
                    put(out, f"blocks.{path}.{name}", value)
        for reducer in self.reductions():
            if hasattr(reducer, "from_reference_model"):
                out = reducer.from_reference_model(out)
        return out

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
        state: Dict[str, Tensor] = {}  # noqa: UP006
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x, size, source, state = checkpoint(block, x, size, source, state)
            else:
                x, size, source, state = block(x, size, source, state)
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
        source: Optional[Tensor] = token_indices(x, P)
        state: Dict[str, Tensor] = {}  # noqa: UP006
        intermediates: List[Tensor] = []  # noqa: UP006
        prefix_tokens: List[Tensor] = []  # noqa: UP006
        blocks = self.blocks[: max(take_indices) + 1] if stop_early else self.blocks
        for i, block in enumerate(blocks):
            if self.grad_checkpointing:
                x, size, source, state = checkpoint(block, x, size, source, state)
            else:
                x, size, source, state = block(x, size, source, state)
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

    @torch.jit.ignore
    def token_maps(self, x: Tensor) -> List[Tensor]:  # noqa: UP006
        """What became of every patch: for each block (B, patches), the token it is in afterwards.

        The token's index counts prefix tokens; -1 stands for a patch that was dropped. Patches
        are in the order of the grid, row by row.

        Args:
            x: Images (B, 3, H, W).
        """
        x = self._embed(x)
        size: Optional[Tensor] = None
        source: Optional[Tensor] = token_indices(x, self.num_prefix_tokens)
        state: Dict[str, Tensor] = {}  # noqa: UP006
        maps = []
        for block in self.blocks:
            x, size, source, state = block(x, size, source, state)
            maps.append(source)
        return maps


def _check_reductions(
    reductions: Sequence[Mechanism], attention: Mechanism, prop_attn: bool | None
) -> bool:
    """Whether the attention weighs tokens by their size; raises if these do not go together."""
    if not reductions:
        raise ValueError("reduction is an empty list; pass None for a model without")
    gives = attention_traits(attention)
    traits = {mechanism.name: reduction_traits(mechanism) for mechanism in reductions}
    for name, one in traits.items():
        if missing := sorted(one.needs - gives.offered):
            able = [
                other for other in list_attentions() if one.needs <= attention_traits(other).offered
            ]
            raise ValueError(
                f"{name} needs {missing} from the attention, which {attention.name} does "
                f"not give; {', '.join(able)} do"
            )
        if one.place == "between" and not gives.residual:
            raise ValueError(
                f"{name} works between attention and MLP, where a block with "
                f"{attention.name} has no skip connection"
            )
        if one.state and len(reductions) > 1:
            others = ", ".join(other for other in traits if other != name)
            raise ValueError(
                f"{name} hands a state per token from block to block and cannot stand beside "
                f"another reduction, got {others or 'it twice'}"
            )
    makers = [name for name, one in traits.items() if one.sizes]
    if prop_attn and not (makers and gives.token_sizes):
        lacking = attention.name if makers else ", ".join(traits)
        raise ValueError(f"prop_attn=True cannot work: {lacking} knows no token sizes")
    if prop_attn is False:
        for name, one in traits.items():
            if "token_sizes" in one.needs:
                raise ValueError(f"{name} drops tokens by their size: prop_attn=False cannot work")
        return False
    return bool(makers) and gives.token_sizes


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
