r"""GTP-ViT: in every block some patches hand their content on to their neighbours and leave.

Before the first block, a graph joins every patch with its eight neighbours on the grid and with
the patches whose embeddings are most similar to its own. Normalised by degrees it is
A = D^-1/2 (A_spatial or A_semantic) D^-1/2. After the attention of a block the patches that matter
least are propagated, and their scales with them:

    x_kept <- x_kept + alpha A[kept, gone] x_gone ,    s_kept <- s_kept + alpha A[kept, gone] s_gone

log s is added to the logits of later attentions. Which patches matter: those that cannot be written
by others (large attention to themselves) times those that others need (large attention received).
Since propagation smooths tokens, attention keeps only the larger part of its weights
(`SparsifiedAttention`, what the registered models have; with `attention="softmax"` it keeps all).

Source: Xu et al., "GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation", WACV
2024 (arXiv 2311.03035), sections 3.2 to 3.4. Written from the paper. The authors' code (Apache-2.0)
fixes the details: a product of the two criteria, of which each is the maximum over heads, and a
threshold on the whole map of a head. There are no parameters: a trained ViT runs with it as it is.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Optional, Tuple  # noqa: UP035 (TorchScript reads them)

import torch
from timm.layers import register_notrace_function
from torch import Tensor, nn

from efficient_vits._numerics import unit_vectors, wide_matmul, widen
from efficient_vits.attention._interface import AttentionTraits, refuse_mask
from efficient_vits.attention.softmax import SoftmaxAttention
from efficient_vits.reduction._interface import ReductionTraits, register_reduction
from efficient_vits.reduction._tokens import redirect, take

GRAPHS = ("spatial", "semantic", "mixed")
SELECTIONS = tuple(
    f"{what}Attn{over}" for what in ("CLS", "IMG", "Diag", "Mixed") for over in ("Mean", "Max")
)


@register_notrace_function
def strongest(weights: Tensor, share: float) -> Tensor:
    """The larger part of each map (B, heads, N, N), the others 0; ties at the border stay."""
    total = weights.shape[2] * weights.shape[3]
    smaller = int(total * (1 - share))
    if smaller == 0:
        return weights
    largest = weights.detach().flatten(2).topk(total - smaller + 1, dim=2, sorted=False)[0]
    border = largest.amin(dim=2)[:, :, None, None]
    return weights * (weights >= border)


class SparsifiedAttention(SoftmaxAttention):
    """Softmax attention without the small weights; what is left is not rescaled.

    Args:
        sparsity: Part of each head's N x N weights that stays, over all queries together, with
            0 < sparsity <= 1; theta in the paper.

    The other arguments are those of `SoftmaxAttention`. The map that it reports as ``"attention"``
    is without the small weights, ``"class_attention"`` has them all.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        mask=True, token_sizes=True, gives=SoftmaxAttention.traits.gives
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        scale_norm: bool = False,
        *,
        sparsity: float = 0.5,
        num_prefix_tokens: int = 1,
        report: Sequence[str] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if not 0 < sparsity <= 1:
            raise ValueError(f"sparsity is the part that stays, 0 < sparsity <= 1, got {sparsity}")
        super().__init__(
            dim,
            num_heads,
            qkv_bias,
            qk_norm,
            proj_bias,
            attn_drop,
            proj_drop,
            norm_layer,
            scale_norm,
            num_prefix_tokens=num_prefix_tokens,
            report=report,
            device=device,
            dtype=dtype,
        )
        self.sparsity = sparsity
        self.fused_attn = False  # the fused kernel has no map to take weights out of

    def probabilities(self, logits: Tensor, is_causal: bool) -> Tensor:
        # Which weights are small depends on all queries, later ones too.
        refuse_mask("sparsified attention", None, is_causal)
        return strongest(logits.softmax(dim=-1), self.sparsity)


@register_notrace_function
def spatial_neighbours(height: int, width: int, like: Tensor) -> Tensor:
    """Patches that touch, corners included, (H W, H W) of 0 and 1 on the device of `like`."""
    cells = torch.arange(height * width, device=like.device)
    row, column = cells // width, cells % width
    apart = torch.maximum(
        (row[:, None] - row[None]).abs(), (column[:, None] - column[None]).abs()
    )  # (H W, H W), in steps of a king on a chess board
    return (apart == 1).to(like.dtype)


@register_notrace_function
def semantic_neighbours(patches: Tensor, count: int) -> Tensor:
    """Each patch's `count` most similar others by cosine, (B, N, C) -> (B, N, N) of 0 and 1."""
    unit = unit_vectors(widen(patches))
    similarity = wide_matmul(unit, unit.transpose(1, 2))
    itself = torch.eye(patches.shape[1], dtype=torch.bool, device=patches.device)
    others = similarity.masked_fill(itself, float("-inf"))
    nearest = others.topk(min(count, patches.shape[1] - 1), dim=2)[1]
    return torch.zeros_like(similarity).scatter(2, nearest, 1.0)


@register_notrace_function
def token_graph(
    patches: Tensor,
    grid_size: Optional[Tuple[int, int]],  # noqa: UP006
    num_neighbours: int,
    kind: str,
) -> Tensor:
    """The normalised graph of patches (B, N, C), (B, N, N) in float32 at least.

    Raises:
        ValueError: The patches do not fill the grid.
    """
    patches = patches.detach()
    if kind == "semantic" or grid_size is None:
        graph = semantic_neighbours(patches, num_neighbours)
    else:
        if grid_size[0] * grid_size[1] != patches.shape[1]:
            raise ValueError(
                f"gtp joins neighbours on a grid of {grid_size} patches, got {patches.shape[1]}; "
                f"use set_input_size, or graph='semantic'"
            )
        graph = spatial_neighbours(grid_size[0], grid_size[1], widen(patches))
        graph = graph.expand(patches.shape[0], -1, -1)
        if kind == "mixed":
            graph = torch.maximum(graph, semantic_neighbours(patches, num_neighbours))
    scale = graph.sum(dim=-1).clamp(min=1).rsqrt()
    return scale.unsqueeze(2) * graph * scale.unsqueeze(1)


@register_notrace_function
def importance(attention: Tensor, selection: str, num_prefix_tokens: int) -> Tensor:
    """How much each patch matters, attention (B, heads, N, N) -> (B, N - P)."""
    P = num_prefix_tokens
    attention = widen(attention.detach())
    criteria = []
    if selection.startswith("CLS"):
        criteria.append(attention[:, :, 0, P:])
    if selection.startswith("IMG") or selection.startswith("Mixed"):
        criteria.append(attention.sum(dim=2)[:, :, P:])
    if selection.startswith("Diag") or selection.startswith("Mixed"):
        criteria.append(attention.diagonal(dim1=2, dim2=3)[:, :, P:])
    score = torch.ones_like(criteria[0][:, 0])
    for criterion in criteria:
        over_heads = criterion.amax(dim=1) if selection.endswith("Max") else criterion.mean(dim=1)
        score = score * over_heads
    return score


@register_notrace_function
def propagate(
    x: Tensor,
    size: Optional[Tensor],
    source: Optional[Tensor],
    graph: Tensor,
    score: Tensor,
    num_prop: int,
    alpha: float,
) -> Tuple[Tensor, Tensor, Optional[Tensor], Tensor]:  # noqa: UP006
    """Hand on the content of the `num_prop` patches with the smallest score (B, N - P).

    Shapes are as in `create_reduction`; graph (B, N - P, N - P) becomes that of the kept patches.
    In the map, a propagated patch is where most of it went, and dropped if no neighbour is left.
    """
    if size is None:
        size = torch.ones_like(x[..., :1], dtype=torch.float32)
    patches = score.shape[1]
    P, n = x.shape[1] - patches, patches - min(num_prop, patches - 1)
    if n == patches:
        return x, size, source, graph
    order = score.argsort(dim=1, descending=True)
    kept, gone = order[:, :n], order[:, n:]
    rows = take(graph, kept)  # (B, n, N - P)
    graph = rows.gather(2, kept.unsqueeze(1).expand(-1, n, -1))
    edges = rows.gather(2, gone.unsqueeze(1).expand(-1, n, -1))  # (B, n, num_prop)

    received = alpha * wide_matmul(edges, take(x, gone + P))
    scale = alpha * wide_matmul(edges, take(size, gone + P))
    x = torch.cat([x[:, :P], (take(x, kept + P) + received).to(x.dtype)], dim=1)
    new_size = torch.cat([size[:, :P], take(size, kept + P) + scale.to(size.dtype)], dim=1)
    if source is not None:
        share, target = edges.max(dim=1)
        places = torch.arange(P + n, device=x.device).expand(x.shape[0], -1)
        new = torch.zeros_like(order).scatter(1, kept, places[:, P:])
        new = new.scatter(1, gone, torch.where(share > 0, target + P, -1))
        source = redirect(source, torch.cat([places[:, :P], new], dim=1))
    return x, new_size, source, graph


class TokenGraph(nn.Module):
    """Leaves the graph of its patches in ``info``, and the tokens as they are.

    Args:
        kind: One of `GRAPHS`.
        num_neighbours: Most similar patches that each is joined with.
        num_prefix_tokens: Tokens that are no patches.
        grid_size: Rows and columns of patches. Without, there are no neighbours on a grid.

    Raises:
        ValueError: Unknown kind, no neighbours, or a spatial graph without a grid.
    """

    grid_size: Optional[Tuple[int, int]]  # noqa: UP006

    def __init__(
        self,
        kind: str,
        num_neighbours: int,
        num_prefix_tokens: int,
        grid_size: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        if kind not in GRAPHS or num_neighbours < 1:
            raise ValueError(
                f"gtp takes a graph of {', '.join(GRAPHS)} and num_neighbours >= 1, got "
                f"graph={kind!r}, {num_neighbours=}"
            )
        if kind == "spatial" and grid_size is None:
            raise ValueError("gtp with graph='spatial' needs grid_size, got None")
        self.kind = kind
        self.num_neighbours = num_neighbours
        self.num_prefix_tokens = num_prefix_tokens
        self.grid_size = grid_size

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Another grid."""
        self.grid_size = grid_size

    @torch.jit.ignore
    def num_tokens(self, n: int) -> int:
        """All of them."""
        return n

    def forward(
        self,
        x: Tensor,
        size: Optional[Tensor],
        source: Optional[Tensor],
        info: Dict[str, Tensor],  # noqa: UP006
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
        patches = x[:, self.num_prefix_tokens :]
        info["gtp_graph"] = token_graph(patches, self.grid_size, self.num_neighbours, self.kind)
        return x, size, source


def propagated_per_block(num_prop: int | Sequence[int], depth: int) -> list[int]:
    """`num_prop` for each block: an int for all, or one number per block.

    Raises:
        ValueError: Negative, or not one per block.
    """
    schedule = [num_prop] * depth if isinstance(num_prop, int) else list(num_prop)
    if len(schedule) != depth or any(not isinstance(n, int) or n < 0 for n in schedule):
        raise ValueError(
            f"gtp takes num_prop >= 0, or one such number for each of {depth} blocks, got "
            f"{num_prop!r}"
        )
    return schedule


@register_reduction(
    "gtp",
    vit={"no_embed_class": False, "init_values": None, "attention": SparsifiedAttention},
)
class GTP(nn.Module):
    """Propagates patches to their neighbours in one block.

    Args:
        dim: Channels.
        depth: Blocks of the model.
        block: Which of them this is.
        num_prefix_tokens: Tokens that stay and take no part.
        grid_size: Rows and columns of patches before the first block. Without, a mixed graph has
            its semantic part only.
        num_prop: Patches to propagate in every block, or one number per block; one always stays.
        num_neighbours: Most similar patches that each is joined with.
        alpha: How much of its content a patch hands on.
        graph: ``"spatial"``, ``"semantic"``, or both, ``"mixed"``.
        selection: What makes a patch matter: ``CLSAttn`` the attention of the class token,
            ``IMGAttn`` that of all tokens, ``DiagAttn`` its own, ``MixedAttn`` the product of
            these two; and ``Mean`` or ``Max`` over heads.

    Shape: (B, N, C) -> (B, N - num_prop, C). The sizes that it returns are scales: weights in the
    attention that need not be integers.
    """

    flop_kind: ClassVar[str] = "reduction"
    traits: ClassVar[ReductionTraits] = ReductionTraits(
        place="between",
        needs=frozenset({"attention"}),
        sizes=True,
        sizes_count=False,
        state=True,
        plain_weights=True,
    )

    def __init__(
        self,
        dim: int,
        depth: int,
        block: int,
        *,
        num_prefix_tokens: int = 1,
        grid_size: tuple[int, int] | None = None,
        num_prop: int | Sequence[int] = 8,
        num_neighbours: int = 8,
        alpha: float = 0.2,
        graph: str = "mixed",
        selection: str = "MixedAttnMax",
    ) -> None:
        super().__init__()
        if selection not in SELECTIONS:
            raise ValueError(
                f"gtp selects by one of {', '.join(SELECTIONS)}, got selection={selection!r}"
            )
        if selection.startswith("CLS") and not num_prefix_tokens:
            raise ValueError(f"{selection=} goes by the class token; there is no prefix token")
        if alpha < 0:
            raise ValueError(f"gtp needs alpha >= 0, got {alpha}")
        self.num_prefix_tokens = num_prefix_tokens
        self.num_prop = propagated_per_block(num_prop, depth)[block]
        self.alpha = alpha
        self.selection = selection
        self.active = self.num_prop > 0
        self.graph = TokenGraph(graph, num_neighbours, num_prefix_tokens, grid_size)

    @torch.jit.ignore
    def arrange(self, blocks: nn.ModuleList) -> None:
        """The graph is that of the embeddings, before the first block."""
        first: Any = blocks[0]
        if "gtp_graph" not in first.before:
            first.before["gtp_graph"] = self.graph

    @torch.jit.ignore
    def num_tokens(self, n: int) -> int:
        """Tokens that n tokens become."""
        return n - min(self.num_prop, n - self.num_prefix_tokens - 1)

    def forward(
        self,
        x: Tensor,
        size: Optional[Tensor],
        source: Optional[Tensor],
        info: Dict[str, Tensor],  # noqa: UP006
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
        if "gtp_graph" not in info:  # a block on its own
            x, size, source = self.graph(x, size, source, info)
        score = importance(info["attention"], self.selection, self.num_prefix_tokens)
        x, size, source, info["gtp_graph"] = propagate(
            x, size, source, info["gtp_graph"], score, self.num_prop, self.alpha
        )
        return x, size, source

    def extra_repr(self) -> str:
        return f"num_prop={self.num_prop}, alpha={self.alpha}, selection={self.selection!r}"
