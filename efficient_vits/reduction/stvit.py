r"""STViT: a few semantic tokens, clusters of the patches, take the place of all patch tokens.

Two transformer layers make S^2 semantic tokens of the tokens x. Their queries start from the
patches, pooled to a grid of S x S, and in the second layer from learned centres g too:

    s_1 = layer_1(pool(x); [pool(x), x])
    s_2 = layer_2(s_1 + g; [s_1, x])

where ``layer(q; c)`` is a pre-norm layer, attention of q to the context c and an MLP. The blocks
after that run on s_2.

Source: Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View", CVPR
2023 (arXiv 2303.08685). Written anew; the authors' code is MIT and has the model with windows only
(`efficient_vits.models.stvit_swin`). For a ViT the following is this package's reading: the
maximum as pooling, as with windows; skip connections and no LayerScale in the two layers, since
what later blocks know of the image comes through them alone; prefix tokens that are read from, pass
by unchanged, and meet the semantic tokens in the blocks that follow. The registered models have as
many layers in all as the ViT, two of them being these, after the fourth of twelve: with the paper's
16 semantic tokens that is 58 % fewer FLOPs for s, where the paper says nearly 60.

The assignment is soft. The map from patches to tokens names, for every patch, the semantic token
that pays it most attention in the second layer.
"""

from typing import Any, ClassVar, Dict, Optional, Tuple  # noqa: UP035 (TorchScript reads them)

import torch
from timm.layers import register_notrace_function, trunc_normal_
from torch import Tensor, nn

from efficient_vits.catalog import Paper
from efficient_vits.reduction._cross import CrossLayer
from efficient_vits.reduction._interface import ReductionTraits, register_reduction
from efficient_vits.reduction._tokens import redirect


def bins(length: int, parts: int, device: torch.device) -> Tensor:
    """Indices of `length` places in `parts` bins of nearly the same size, (parts, longest bin).

    The bins are those of adaptive pooling: they cover everything and may overlap by one place. A
    shorter bin names its last place again, which changes no maximum.
    """
    longest = 0
    for i in range(parts):
        longest = max(longest, -((-(i + 1) * length) // parts) - i * length // parts)
    part = torch.arange(parts, device=device).unsqueeze(1)
    first = part * length // parts
    last = ((part + 1) * length + parts - 1) // parts - 1
    return torch.minimum(first + torch.arange(longest, device=device), last)


@register_notrace_function
def pool_grid(x: Tensor, height: int, width: int) -> Tensor:
    """Maxima over a grid of bins, (B, H, W, C) -> (B, height, width, C)."""
    rows = bins(x.shape[1], height, x.device)
    columns = bins(x.shape[2], width, x.device)
    return x[:, rows].amax(dim=2)[:, :, columns].amax(dim=3)


@register_notrace_function
def pool_patches(x: Tensor, height: int, width: int, side: int) -> Tensor:
    """Patch tokens (B, N, C) of a grid pooled to a square, (B, side * side, C).

    Raises:
        ValueError: They are no such grid.
    """
    B, N, C = x.shape
    if height * width != N:
        raise ValueError(f"stvit pools a grid of {height} x {width} patches, got {N}")
    return pool_grid(x.reshape(B, height, width, C), side, side).reshape(B, side * side, C)


@register_notrace_function
def assign(source: Optional[Tensor], weights: Tensor, num_prefix_tokens: int) -> Optional[Tensor]:
    """The map after patches went to the token with the largest of the weights (B, S, N) on them."""
    P = num_prefix_tokens
    prefix = torch.arange(P, device=weights.device).expand(weights.shape[0], P)
    return redirect(source, torch.cat([prefix, P + weights.argmax(dim=1)], dim=1))


# With its two layers each is as deep as the ViT of that size.
SIZES: dict[str, dict[str, int]] = {
    "ti": {"embed_dim": 192, "depth": 10, "num_heads": 3},
    "s": {"embed_dim": 384, "depth": 10, "num_heads": 6},
    "b": {"embed_dim": 768, "depth": 10, "num_heads": 12},
    "l": {"embed_dim": 1024, "depth": 22, "num_heads": 16},
}


@register_reduction(
    "stvit",
    sizes=SIZES,
    paper=Paper(
        title="Making Vision Transformers Efficient from A Token Sparsification View",
        first_author="Chang",
        venue="CVPR 2023",
        year=2023,
        arxiv="2303.08685",
    ),
)
class STViT(nn.Module):
    """Semantic tokens in place of the patch tokens, before one block of the model.

    Args:
        dim: Channels C.
        depth: Blocks of the model.
        block: Which of them this is.
        num_prefix_tokens: P, the tokens that pass by.
        num_heads: Heads of the two layers.
        grid_size: Rows and columns of patch tokens; without, they are taken for one row.
        semantic_side: S; there are S * S semantic tokens, also of fewer patches.
        semantic_after: Part of the depth at which this happens: block
            ``int(semantic_after * depth)`` is the first on semantic tokens.
        semantic_mlp_ratio: Hidden channels of the two layers' MLPs over `dim`.

    Raises:
        ValueError: No semantic token, or a point outside the model.

    Shape: (B, P + N, C) -> (B, P + S * S, C).
    """

    flop_kind: ClassVar[str] = "reduction"
    traits: ClassVar[ReductionTraits] = ReductionTraits(place="before", grid=True)

    def __init__(
        self,
        dim: int,
        depth: int,
        block: int,
        *,
        num_prefix_tokens: int = 1,
        num_heads: int = 8,
        grid_size: tuple[int, int] | None = None,
        semantic_side: int = 4,
        semantic_after: float = 0.4,
        semantic_mlp_ratio: float = 4.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if semantic_side < 1:
            raise ValueError(f"stvit needs semantic_side >= 1, got {semantic_side}")
        if not 0 <= semantic_after < 1:
            raise ValueError(f"stvit needs 0 <= semantic_after < 1, got {semantic_after}")
        self.point = int(semantic_after * depth)
        self.num_prefix_tokens = num_prefix_tokens
        self.semantic_side = semantic_side
        self.active = block == self.point
        self.in_a_row = grid_size is None
        self.height, self.width = grid_size or (1, 0)
        if not self.active:
            return
        factory = {"device": device, "dtype": dtype}
        self.first = CrossLayer(dim, num_heads, semantic_mlp_ratio, **factory)
        self.second = CrossLayer(dim, num_heads, semantic_mlp_ratio, **factory)
        self.centres = nn.Parameter(torch.empty(1, semantic_side**2, dim, **factory))
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Draw the learned centres anew."""
        trunc_normal_(self.centres, std=0.02)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Take patches of another grid."""
        self.in_a_row = False
        self.height, self.width = grid_size

    @torch.jit.ignore
    def num_tokens(self, n: int) -> int:
        """Tokens that n tokens become."""
        return self.num_prefix_tokens + self.semantic_side**2

    def forward(
        self,
        x: Tensor,
        size: Optional[Tensor],
        source: Optional[Tensor],
        info: Dict[str, Tensor],  # noqa: UP006
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
        P = self.num_prefix_tokens
        width = x.shape[1] - P if self.in_a_row else self.width
        pooled = pool_patches(x[:, P:], self.height, width, self.semantic_side)
        semantic = self.first(pooled, torch.cat([pooled, x], dim=1))
        queries, context = semantic + self.centres, torch.cat([semantic, x], dim=1)
        if source is not None:
            weights = self.second.weights(queries, context)[:, :, queries.shape[1] + P :]
            source = assign(source, weights, P)
        # A semantic token stands for no number of patches.
        return torch.cat([x[:, :P], self.second(queries, context)], dim=1), None, source

    def extra_repr(self) -> str:
        return f"semantic_side={self.semantic_side}"
