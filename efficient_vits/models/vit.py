"""The composable ViT: timm's `VisionTransformer` with attention, reduction and MLP as arguments.

Source of the host: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv
2010.11929), in the form of the benchmark "Which Transformer to Favor" (arXiv 2308.09372): position
embedding without a slot for the class token and LayerScale, as in Touvron et al., "DeiT III", ECCV
2022 (arXiv 2204.07118).
"""

import functools
import inspect
import math
from typing import Any, ClassVar, Dict, List, Optional, Tuple, Union  # noqa: UP035 (TorchScript reads them)

import torch
from timm.layers import (
    Attention,
    DiffAttention,
    register_notrace_function,
    resample_abs_pos_embed,
    resample_patch_embed,
    to_2tuple,
)
from timm.models import VisionTransformer, checkpoint
from torch import Tensor, nn

from efficient_vits._registry import Mechanism, Spec
from efficient_vits.attention import _interface as attention_axis
from efficient_vits.mlp import _interface as mlp_axis
from efficient_vits.models.block import Block, ReducedBlock
from efficient_vits.reduction import _interface as reduction_axis

REGISTRIES = {
    r.axis: r for r in (attention_axis.REGISTRY, reduction_axis.REGISTRY, mlp_axis.REGISTRY)
}
VIT_PARAMETERS = frozenset(inspect.signature(VisionTransformer).parameters)
TIMM_ATTENTIONS: dict[str, type[nn.Module]] = {
    "": Attention,
    "attn": Attention,
    "diff": DiffAttention,
}


def create_vit(
    *,
    attention: Spec | None = None,
    reduction: Spec | None = None,
    mlp: Spec | None = None,
    prop_attn: bool | None = None,
    **arguments: Any,
) -> "ComposableViT":
    """Build a ViT from its three axes.

    Args:
        attention: Token mixer: a registered name, a class or a ``functools.partial``; softmax
            attention by default.
        reduction: Token reduction, likewise; none by default.
        mlp: MLP block, likewise; the plain MLP by default.
        prop_attn: Weigh merged tokens by their size in the attention. By default wherever the
            attention can.
        **arguments: Everything that timm's `VisionTransformer` takes, and the three mechanisms' own
            arguments.

    Raises:
        ValueError: Unknown mechanism, or mechanisms that do not go together.
        TypeError: An argument that neither the ViT nor one of the mechanisms takes.
    """
    attention = _alias(attention, "attention", arguments.pop("attn_layer", None), "attn_layer")
    mlp = _alias(mlp, "mlp", arguments.pop("mlp_layer", None), "mlp_layer")
    axes = {"attention": attention or "softmax", "reduction": reduction, "mlp": mlp or "mlp"}
    chosen: dict[str, Any]
    chosen = {a: REGISTRIES[a].resolve(spec) for a, spec in axes.items() if spec is not None}
    chosen, arguments = _distribute(chosen, arguments)
    if reduction is not None:
        return ReducedViT(**arguments, **chosen, prop_attn=prop_attn)
    if prop_attn is not None:
        raise TypeError(f"prop_attn={prop_attn} needs a reduction; tokens have no sizes without")
    foreign_block = not _is_our_block(arguments.get("block_fn", Block))
    if foreign_block and (attention is not None or mlp is not None):
        raise TypeError(
            "block_fn replaces the block that holds attention and mlp; pass either block_fn or "
            "these, not both"
        )
    return ComposableViT(**arguments, **chosen)


def _alias(spec: Spec | None, name: str, theirs: Any, timm_name: str) -> Spec | None:
    """`spec`, or what came under timm's name for the same thing."""
    if theirs is None:
        return spec
    if spec is not None:
        raise TypeError(f"{name} and {timm_name} name the same thing; pass one of them")
    if isinstance(theirs, str) and theirs in TIMM_ATTENTIONS and timm_name == "attn_layer":
        return TIMM_ATTENTIONS[theirs]
    return theirs


def _distribute(
    chosen: dict[str, Any], arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bind the mechanisms' own arguments to them; what is left is the ViT's."""
    own = {axis: REGISTRIES[axis].own_parameters(m) for axis, m in chosen.items()}
    rest = {}
    for name, value in arguments.items():
        owners = [axis for axis, names in own.items() if name in names]
        if name in VIT_PARAMETERS:
            rest[name] = value
        elif len(owners) == 1:
            chosen = {**chosen, owners[0]: chosen[owners[0]].bind(**{name: value})}
        elif owners:
            raise TypeError(
                f"{name!r} is an argument of {' and '.join(chosen[a].name for a in owners)}; "
                f"bind it with functools.partial to the one that is meant"
            )
        else:
            theirs = "; ".join(
                f"{chosen[axis].name}: {', '.join(names) or 'none'}" for axis, names in own.items()
            )
            raise TypeError(
                f"unexpected argument {name}={value!r}. Own arguments of {theirs}. "
                f"Arguments of the ViT: {', '.join(sorted(VIT_PARAMETERS))}"
            )
    return chosen, rest


def _is_our_block(block_fn: Any) -> bool:
    cls = getattr(block_fn, "func", block_fn)
    return isinstance(cls, type) and issubclass(cls, Block)


class ComposableViT(VisionTransformer):
    """A ViT whose token mixer and MLP are arguments; all of timm's methods and arguments hold.

    Args:
        img_size: Height and width of the input in pixels.
        patch_size: Height and width of a patch in pixels.
        attention: The token mixer.
        mlp: The MLP block.
        **arguments: Those of timm's `VisionTransformer`.

    Raises:
        ValueError: The attention cannot work with the other arguments.
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["token_counts"]

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        *,
        attention: Mechanism,
        mlp: Mechanism,
        block_fn: Any = Block,
        **arguments: Any,
    ) -> None:
        height, width = to_2tuple(img_size)
        patch_height, patch_width = to_2tuple(patch_size)
        grid_size = (height // patch_height, width // patch_width)
        num_prefix_tokens = arguments.get("class_token", True) + arguments.get("reg_tokens", 0)
        if _is_our_block(block_fn):
            _check_attention(attention, num_prefix_tokens, arguments)
            block_fn = functools.partial(
                block_fn,
                attention=attention,
                mlp=mlp,
                grid_size=grid_size,
                num_prefix_tokens=num_prefix_tokens,
            )
        super().__init__(img_size=img_size, patch_size=patch_size, block_fn=block_fn, **arguments)
        if tuple(self.patch_embed.grid_size) != grid_size:  # an embed_layer with its own stride
            self._set_grid_size()
        self.composition = f"attention={attention.name!r}, mlp={mlp.name!r}"

    @property
    def token_counts(self) -> list[int | None]:
        """Number of tokens after each block, prefix tokens included; None where it is not fixed."""
        count = self.patch_embed.num_patches + self.num_prefix_tokens
        return [count] * len(self.blocks)

    @torch.jit.ignore
    def set_input_size(
        self,
        img_size: tuple[int, int] | None = None,
        patch_size: tuple[int, int] | None = None,
    ) -> None:
        """Change the input resolution; position embedding and mechanisms are resampled.

        Args:
            img_size: New height and width in pixels; None keeps them.
            patch_size: New height and width of a patch in pixels; None keeps them.
        """
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        self._set_grid_size()

    @torch.jit.ignore
    def _set_grid_size(self) -> None:
        for module in self.blocks.modules():
            if hasattr(module, "set_grid_size"):
                module.set_grid_size(tuple(self.patch_embed.grid_size))

    @torch.jit.ignore
    def resample_parameter(self, name: str, value: Tensor) -> Tensor:
        """Position embedding or patch kernel of another, square, resolution brought to this one."""
        if name == "patch_embed.proj.weight" and value.ndim == 4 and value.numel():
            return resample_patch_embed(value, list(self.patch_embed.patch_size))
        if name != "pos_embed" or value.ndim != 3 or not value.numel():
            return value
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        side = math.isqrt(max(value.shape[1] - prefix, 0))
        if side == 0 or side**2 != value.shape[1] - prefix:
            return value
        return resample_abs_pos_embed(
            value, list(self.patch_embed.grid_size), [side, side], num_prefix_tokens=prefix
        )

    def extra_repr(self) -> str:
        return self.composition


def _check_attention(
    attention: Mechanism, num_prefix_tokens: int, arguments: dict[str, Any]
) -> None:
    """Raise if the attention cannot work in a ViT with these arguments."""
    traits = attention_axis.attention_traits(attention)
    if num_prefix_tokens and not traits.prefix_tokens:
        raise ValueError(
            f"{attention.name} handles no prefix tokens, the ViT has {num_prefix_tokens}; pass "
            f"class_token=False, reg_tokens=0 and global_pool='avg'"
        )
    if traits.token_count or traits.grid:
        for name in ("dynamic_img_size", "patch_drop_rate"):
            if arguments.get(name):
                raise ValueError(
                    f"{attention.name} is bound to the grid of patches, which "
                    f"{name}={arguments[name]!r} changes from call to call; use set_input_size"
                )


class ReducedViT(ComposableViT):
    """A ViT in which tokens get fewer from block to block.

    Tokens, their sizes and the map from patches to tokens go from block to block as arguments.
    `forward_intermediates` restores dense feature maps: every patch gets the token that it went to,
    zeros where it was dropped.

    Args:
        reduction: The token reduction.
        prop_attn: Weigh merged tokens by their size in the attention; by default wherever the
            attention can, which the model's repr tells.
        The others as in `ComposableViT`.

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
        needs = reduction_axis.reduction_traits(reduction)
        gives = attention_axis.attention_traits(attention)
        if missing := sorted(needs.needs - gives.gives):
            able = [
                name
                for name in attention_axis.list_attentions()
                if needs.needs <= attention_axis.attention_traits(name).gives
            ]
            raise ValueError(
                f"{reduction.name} needs {missing} from the attention, which {attention.name} does "
                f"not give; {', '.join(able)} do"
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
