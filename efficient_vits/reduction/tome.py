r"""Token merging (ToMe): in every block, the r most similar pairs of tokens become one each.

Patch tokens are split alternately into two sets A and B. Every token of A looks up its most similar
token of B (cosine similarity of keys, averaged over heads); the r tokens of A with the best matches
are merged into theirs by a mean weighted with the number of patches each stands for. Later blocks
weigh a merged token by that number ("proportional attention").

Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023 (arXiv 2210.09461), section 3
and appendix D. Written anew; the authors' code is CC-BY-NC-4.0 and not used. The order of
the tokens afterwards is theirs, so that their weights give their outputs.
"""

from collections.abc import Sequence
from typing import ClassVar, Dict, Optional, Tuple  # noqa: UP035 (TorchScript reads them)

import torch
from timm.layers import register_notrace_function
from torch import Tensor, nn

from efficient_vits._numerics import unit_vectors
from efficient_vits.reduction._interface import ReductionTraits, register_reduction
from efficient_vits.reduction._tokens import redirect, take


@register_notrace_function
def bipartite_matching(
    keys: Tensor, r: int, num_prefix_tokens: int
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
    """Who is merged into whom.

    Args:
        keys: (B, N, d), prefix tokens first; these are left alone.
        r: Tokens to merge away, at most half of the patch tokens.
        num_prefix_tokens: How many tokens at the front are left alone.

    Returns:
        Indices into the N tokens: ``kept`` (B, A - r) and ``merged`` (B, r) split the set A,
        ``base`` (B, |B|) is the set B, ``target`` (B, r) says which of `base` each merged token
        joins.
    """
    B, N, _ = keys.shape
    # The sets alternate over the whole sequence, prefix included, as in the published weights.
    everyone = torch.arange(num_prefix_tokens, N, device=keys.device)
    a = everyone[num_prefix_tokens % 2 :: 2]
    b = everyone[1 - num_prefix_tokens % 2 :: 2]
    unit = unit_vectors(keys.detach())
    similarity = unit[:, a] @ unit[:, b].transpose(1, 2)  # (B, |A|, |B|)
    best, partner = similarity.max(dim=2)
    order = best.argsort(dim=1, descending=True)
    merged, target = order[:, :r], partner.gather(1, order[:, :r])
    kept = order[:, r:].sort(dim=1)[0]
    return a[kept], a[merged], b.expand(B, -1), target


@register_notrace_function
def merge(
    x: Tensor,
    size: Optional[Tensor],
    source: Optional[Tensor],
    keys: Tensor,
    r: int,
    num_prefix_tokens: int,
) -> Tuple[Tensor, Tensor, Optional[Tensor]]:  # noqa: UP006
    """Merge the r most similar pairs of tokens; shapes as in `create_reduction`.

    Sizes are float32 whatever the dtype of `x`: they count patches.
    """
    if size is None:
        size = torch.ones_like(x[..., :1], dtype=torch.float32)
    r = min(r, (x.shape[1] - num_prefix_tokens) // 2)
    if r == 0:
        return x, size, source
    kept, merged, base, target = bipartite_matching(keys, r, num_prefix_tokens)
    weighted = x * size
    into = target.unsqueeze(-1)
    total = take(weighted, base).scatter_add(
        1, into.expand(-1, -1, x.shape[-1]), take(weighted, merged)
    )
    counts = take(size, base).scatter_add(1, into, take(size, merged))
    P = num_prefix_tokens
    joined = (total / counts).to(x.dtype)
    x = torch.cat([x[:, :P], take(x, kept), joined], dim=1)
    new_size = torch.cat([size[:, :P], take(size, kept), counts], dim=1)
    if source is not None:
        first = P + kept.shape[1]  # where the set B begins
        old = torch.arange(size.shape[1], device=source.device).expand(x.shape[0], -1)
        new = old.scatter(1, kept, old[:, P:first])
        new = new.scatter(1, base, first + old[:, : base.shape[1]])
        new = new.scatter(1, merged, first + target)
        source = redirect(source, new)
    return x, new_size, source


def merges_per_block(r: int | Sequence[int], depth: int, inflect: float = 0.0) -> list[int]:
    """`r` for each block: an int for all, or a sequence that is 0 where it ends.

    Args:
        r: Tokens to merge away in a block.
        depth: Blocks.
        inflect: Slope of the schedule of a single `r`: 0 for the same in every block, -1 for
            falling from 2 r to 0, 1 for growing from 0 to 2 r; the sum stays about the same.

    Raises:
        ValueError: Negative, more entries than blocks, or a slope that is none.
    """
    schedule = [r] * depth if isinstance(r, int) else [*r, *[0] * (depth - len(r))]
    if len(schedule) > depth or any(not isinstance(n, int) or n < 0 for n in schedule):
        raise ValueError(
            f"tome takes r >= 0 or a sequence of at most {depth} such numbers, got {r!r}"
        )
    if not inflect:
        return schedule
    if not isinstance(r, int) or not -1 <= inflect <= 1:
        raise ValueError(
            f"tome takes -1 <= inflect <= 1 beside a single r, got {inflect=} and {r=!r}"
        )
    first = int(r * (1 - inflect))
    step = 2 * (r - first) / max(depth - 1, 1)
    return [int(first + step * i) for i in range(depth)]


@register_reduction("tome", models={"tome_{size}_r8": {"r": 8}, "tome_{size}_r13": {"r": 13}})
class ToMe(nn.Module):
    """Token merging in one block.

    Args:
        dim: Channels.
        depth: Blocks of the model.
        block: Which of them this is.
        num_prefix_tokens: Tokens that are never merged.
        r: Tokens to merge away in every block, or one number per block; at most half of the patch
            tokens go at a time.
        inflect: Slope of the schedule of a single `r`, -1 (from 2 r to 0) to 1 (from 0 to 2 r).

    Shape: (B, N, C) -> (B, N - r, C).
    """

    flop_kind: ClassVar[str] = "reduction"
    traits: ClassVar[ReductionTraits] = ReductionTraits(
        place="between", needs=frozenset({"keys"}), sizes=True, plain_weights=True
    )

    def __init__(
        self,
        dim: int,
        depth: int,
        block: int,
        *,
        num_prefix_tokens: int = 1,
        r: int | Sequence[int] = 8,
        inflect: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.r = merges_per_block(r, depth, inflect)[block]
        self.active = self.r > 0

    @torch.jit.ignore
    def num_tokens(self, n: int) -> int:
        """Tokens that n tokens become."""
        return n - min(self.r, (n - self.num_prefix_tokens) // 2)

    def forward(
        self,
        x: Tensor,
        size: Optional[Tensor],
        source: Optional[Tensor],
        info: Dict[str, Tensor],  # noqa: UP006
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
        keys = info["keys"].mean(dim=1)  # (B, N, d)
        return merge(x, size, source, keys, self.r, self.num_prefix_tokens)

    def extra_repr(self) -> str:
        return f"r={self.r}"
