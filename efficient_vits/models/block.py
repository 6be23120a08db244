"""The transformer block with interchangeable attention, MLP and token reduction."""

from collections.abc import Sequence
from typing import Any, Dict, Final, List, Optional, Tuple  # noqa: UP035 (TorchScript reads them)

import torch
from timm.layers import DropPath, LayerNorm, LayerScale
from torch import Tensor, nn

from efficient_vits._registry import Spec
from efficient_vits._repbn import fold_norm
from efficient_vits._state import rename
from efficient_vits.attention import attention_traits, bind_report, create_attention
from efficient_vits.mlp import create_mlp
from efficient_vits.reduction import create_reduction, reduction_traits
from efficient_vits.reduction._interface import REGISTRY as REDUCTIONS
from efficient_vits.reduction._interface import REPORTS
from efficient_vits.reduction._tokens import compose, follow, token_indices


class Block(nn.Module):
    """Pre-norm transformer block: ``x + attention(norm x)``, then ``x + mlp(norm x)``.

    With an attention whose traits say ``residual=False`` it is ``x + mlp(norm attention(norm x))``.

    timm's `VisionTransformer` builds it as its ``block_fn`` and passes everything up to `dtype`;
    ``attn_layer`` and ``mlp_layer`` of timm are superseded by `attention` and `mlp`.

    Args:
        dim: Channels C.
        num_heads: Heads of the attention.
        attention: The token mixer.
        mlp: The MLP block.
        grid_size: Rows and columns of patch tokens.
        num_prefix_tokens: Tokens in front of them.
        depth: Index of the block.

    Shape: (B, N, C) -> (B, N, C).
    """

    residual: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        scale_mlp_norm: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: type[nn.Module] = LayerNorm,
        mlp_layer: type[nn.Module] | None = None,
        attn_layer: type[nn.Module] | None = None,
        depth: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        attention: Spec,
        mlp: Spec,
        grid_size: tuple[int, int],
        num_prefix_tokens: int,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(dim, **factory)
        self.attn = create_attention(
            attention,
            dim,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            scale_norm=scale_attn_norm,
            proj_bias=proj_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            norm_layer=norm_layer,
            grid_size=grid_size,
            num_prefix_tokens=num_prefix_tokens,
            depth=depth,
            **factory,
        )
        self.residual = attention_traits(attention).residual
        scaled, dropped = init_values and self.residual, drop_path > 0.0 and self.residual
        self.ls1 = LayerScale(dim, init_values, **factory) if scaled else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if dropped else nn.Identity()
        self.norm2 = norm_layer(dim, **factory)
        self.mlp = create_mlp(
            mlp,
            dim,
            int(dim * mlp_ratio),
            act_layer=act_layer,
            norm_layer=norm_layer if scale_mlp_norm else None,
            bias=proj_bias,
            drop=proj_drop,
            **factory,
        )
        self.ls2 = LayerScale(dim, init_values, **factory) if init_values else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        y = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        if self.residual:
            x = y = x + self.drop_path1(self.ls1(y))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(y))))

    def fuse(self) -> None:
        """Fold norms that are affine in evaluation into the linear layers that follow them."""
        self.norm1 = fold_norm(self.norm1, self.attn)
        self.norm2 = fold_norm(self.norm2, self.mlp)

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code (its DeiT) to ours."""
        names = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "filter.": "attn."}
        return rename(state, names)


class ReducedBlock(Block):
    """A block before, in or after which there are fewer tokens.

    Args:
        reductions: The token reductions, in this order where several run at one place. One whose
            ``active`` is False in this block is left out.
        num_blocks: Blocks of the model.
        proportional: The attention weighs tokens by their size.

    The other arguments are those of `Block`.

    Shape: x (B, N, C), size (B, N, 1) or None, source (B, N0) or None, and what reductions pass on
    to later blocks by name -> the same of fewer tokens.
    """

    extended_call: Final[bool]
    proportional: Final[bool]
    follows: Final[bool]
    reported: List[str]  # noqa: UP006

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        reductions: Sequence[Spec],
        num_blocks: int,
        proportional: bool,
        attention: Spec,
        depth: int,
        grid_size: tuple[int, int],
        num_prefix_tokens: int,
        device: Any = None,
        dtype: Any = None,
        **block: Any,
    ) -> None:
        places: dict[str, dict[str, nn.Module]] = {"before": {}, "between": {}, "after": {}}
        needs: frozenset[str] = frozenset()
        for mechanism in map(REDUCTIONS.resolve, reductions):
            reducer = create_reduction(
                mechanism,
                dim,
                num_blocks,
                depth,
                num_prefix_tokens=num_prefix_tokens,
                num_heads=num_heads,
                grid_size=grid_size,
                device=device,
                dtype=dtype,
            )
            if not getattr(reducer, "active", True):
                continue
            traits = reduction_traits(mechanism)
            needs |= traits.needs
            place = places[traits.place]
            again = sum(name.split("@")[0] == mechanism.name for name in place)
            place[f"{mechanism.name}@{again}" if again else mechanism.name] = reducer
        reported = needs & REPORTS
        if reported:
            attention = bind_report(attention, reported)
        super().__init__(
            dim,
            num_heads,
            attention=attention,
            depth=depth,
            grid_size=grid_size,
            num_prefix_tokens=num_prefix_tokens,
            device=device,
            dtype=dtype,
            **block,
        )
        self.extended_call = attention_traits(attention).extended_call
        self.proportional = proportional
        self.reported = sorted(reported)
        self.num_prefix_tokens = num_prefix_tokens
        # Where one reduction moves the tokens that the next one has reports of, they follow.
        self.follows = bool(reported) and len(places["between"]) + len(places["after"]) > 1
        self.before = nn.ModuleDict(places["before"])
        self.between = nn.ModuleDict(places["between"])
        self.after = nn.ModuleDict(places["after"])

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        size: Optional[Tensor],
        source: Optional[Tensor],
        state: Dict[str, Tensor],  # noqa: UP006
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor], Dict[str, Tensor]]:  # noqa: UP006
        info = state.copy()
        # Each loop has a name of its own: TorchScript cannot give one name to two modules.
        for preparation in self.before.values():
            x, size, source = preparation(x, size, source, info)
        y = self.norm1(x)
        if self.extended_call:
            weights = size if self.proportional else None
            y = self.attn(y, None, False, weights, info)
        else:
            y = self.attn(y)
        if self.residual:
            x = x + self.drop_path1(self.ls1(y))
            for reduction in self.between.values():
                if self.follows:
                    here = token_indices(x, self.num_prefix_tokens)
                    x, size, moved = reduction(x, size, here, info)
                    source = compose(source, moved, self.num_prefix_tokens)
                    for name in self.reported:
                        info[name] = follow(
                            name, info[name], moved, x.shape[1], self.num_prefix_tokens
                        )
                else:
                    x, size, source = reduction(x, size, source, info)
            y = x
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(y))))
        for conclusion in self.after.values():
            if self.follows:
                here = token_indices(x, self.num_prefix_tokens)
                x, size, moved = conclusion(x, size, here, info)
                source = compose(source, moved, self.num_prefix_tokens)
                for name in self.reported:
                    info[name] = follow(name, info[name], moved, x.shape[1], self.num_prefix_tokens)
            else:
                x, size, source = conclusion(x, size, source, info)
        for name in self.reported:
            info.pop(name)
        return x, size, source, info

    @torch.jit.ignore
    def reductions(self) -> list[Any]:
        """The reductions of this block in the order in which they run."""
        places = (self.before, self.between, self.after)
        return [reduction for place in places for reduction in place.values()]

    @torch.jit.ignore
    def num_tokens(self, n: int) -> int | None:
        """Tokens that leave the block where n enter it; None where it depends on the image."""
        count: int | None = n
        for reduction in self.reductions():
            count = None if count is None else reduction.num_tokens(count)
        return count
