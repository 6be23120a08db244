r"""TokenLearner: a handful of learned tokens take the place of all patch tokens.

Each learned token is an average of the N patch tokens, whose weights an MLP reads off the tokens
themselves:

    z_s = sum_n softmax_n(mlp(norm(x))_ns) x_n,    s = 1 ... S

The class token and other prefix tokens are no part of the average and pass by unchanged.

Source: Ryoo et al., "TokenLearner: What Can 8 Learned Tokens Do for Images and Videos?", NeurIPS
2021 (arXiv 2106.11297), section 2, in the form of the authors' version 1.1: an MLP in place of
convolutions, softmax over positions in place of sigmoids. Written anew; the authors' code
is Apache-2.0. The MLP is as wide as that of a block, as in the benchmark's runs.

The assignment is soft. The map from patches to tokens names, for every patch, the learned token in
whose average the patch weighs most.
"""

from typing import Any, ClassVar, Dict, Optional, Tuple  # noqa: UP035 (TorchScript reads them)

import torch
from timm.layers import LayerNorm, Mlp, register_notrace_function
from torch import Tensor, nn

from efficient_vits.reduction._interface import ReductionTraits, register_reduction
from efficient_vits.reduction._tokens import redirect

# What the benchmark's runs had twice: everything in a block that has weights.
TIED = ("norm1", "attn", "ls1", "norm2", "mlp", "ls2")


@register_notrace_function
def summarise(
    x: Tensor,
    scores: Tensor,
    size: Optional[Tensor],
    source: Optional[Tensor],
    num_prefix_tokens: int,
) -> Tuple[Tensor, Optional[Tensor]]:  # noqa: UP006
    """Averages of the patch tokens, behind the prefix tokens.

    Args:
        x: (B, P + N, C).
        scores: (B, N, S), logits of the patch tokens' weights in each of the S averages.
        size: (B, P + N, 1) or None; a token that stands for several patches weighs like them.
        source: (B, N0) or None.
        num_prefix_tokens: P.

    Returns:
        (B, P + S, C), and the map: the average in which each patch weighs most.
    """
    P = num_prefix_tokens
    if size is not None:
        scores = scores + size[:, P:].log()
    weights = scores.softmax(dim=1).to(x.dtype)  # (B, N, S), each average's sum to 1 over N
    learned = weights.transpose(1, 2) @ x[:, P:]
    if source is not None:
        prefix = torch.arange(P, device=x.device).expand(x.shape[0], P)
        source = redirect(source, torch.cat([prefix, P + weights.argmax(dim=2)], dim=1))
    return torch.cat([x[:, :P], learned.to(x.dtype)], dim=1), source


@register_reduction(
    "tokenlearner",
    models={"tokenlearner_{size}_8_75": {"at": 0.75}, "tokenlearner_{size}_8_50": {"at": 0.5}},
)
class TokenLearner(nn.Module):
    """Learned tokens in place of the patch tokens, before one block of the model.

    Args:
        dim: Channels C.
        depth: Blocks of the model.
        block: Which of them this is.
        num_prefix_tokens: Tokens that pass by.
        learned_tokens: How many tokens are learned; fewer patch tokens become as many too.
        at: Part of the depth at which this happens: block ``int(at * depth)`` is the first on
            learned tokens.
        bottleneck_ratio: Width of the MLP over `dim`.
        share_blocks: Run the blocks before that point a second time, on the learned tokens and with
            the same weights, in place of the blocks after it, as in the benchmark's runs. The model
            then has twice as many blocks as there are before the point, whatever `depth` says.

    Raises:
        ValueError: No learned token, a point outside the model, or no block to share.

    Shape: (B, P + N, C) -> (B, P + learned_tokens, C).
    """

    flop_kind: ClassVar[str] = "reduction"
    traits: ClassVar[ReductionTraits] = ReductionTraits(place="before")

    def __init__(
        self,
        dim: int,
        depth: int,
        block: int,
        *,
        num_prefix_tokens: int = 1,
        learned_tokens: int = 8,
        at: float = 0.5,
        bottleneck_ratio: float = 4.0,
        share_blocks: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if learned_tokens < 1:
            raise ValueError(f"tokenlearner needs learned_tokens >= 1, got {learned_tokens}")
        if not 0 <= at < 1:
            raise ValueError(f"tokenlearner needs 0 <= at < 1, got {at}")
        self.point = int(at * depth)
        if share_blocks and self.point == 0:
            raise ValueError(f"at={at} of {depth} blocks leaves none to share; share_blocks=False")
        self.num_prefix_tokens = num_prefix_tokens
        self.learned_tokens = learned_tokens
        self.share_blocks = share_blocks
        self.active = block == self.point
        if not self.active:
            return
        factory = {"device": device, "dtype": dtype}
        self.norm = LayerNorm(dim, eps=1e-6, **factory)
        self.mlp = Mlp(dim, int(bottleneck_ratio * dim), learned_tokens, **factory)

    @torch.jit.ignore
    def num_tokens(self, n: int) -> int:
        """Tokens that n tokens become."""
        return self.num_prefix_tokens + self.learned_tokens

    @torch.jit.ignore
    def arrange(self, blocks: nn.ModuleList) -> None:
        """With `share_blocks`, make the blocks from this one on those before it once more."""
        if not self.share_blocks:
            return
        everyone: Any = blocks
        beside = [r for block in everyone for r in block.reductions() if r is not self]
        if beside:
            raise ValueError(
                f"share_blocks=True runs blocks again, and {type(beside[0]).__name__} in them "
                f"would reduce again too; share_blocks=False stands beside other reductions"
            )
        # This block keeps its place, since this module is in it; the others can be the same.
        for name in TIED:
            setattr(blocks[self.point], name, getattr(blocks[0], name))
        del blocks[self.point + 1 :]
        blocks.extend(blocks[i] for i in range(1, self.point))

    @torch.jit.ignore
    def from_reference_model(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The benchmark's names of a whole model, where this module counts as a block."""
        out = {}
        for name, value in state.items():
            first, _, rest = name.partition(".")
            number, _, rest = rest.partition(".")
            if first == "blocks" and number.isdecimal() and int(number) >= self.point:
                own = int(number) == self.point
                place = f"{number}.before.tokenlearner" if own else str(int(number) - 1)
                name = f"blocks.{place}.{rest}"
            out[name] = value
        return out

    def forward(
        self,
        x: Tensor,
        size: Optional[Tensor],
        source: Optional[Tensor],
        info: Dict[str, Tensor],  # noqa: UP006
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
        scores = self.mlp(self.norm(x[:, self.num_prefix_tokens :]))
        x, source = summarise(x, scores, size, source, self.num_prefix_tokens)
        # An average of all patches stands for no number of them.
        return x, None, source

    def extra_repr(self) -> str:
        return f"learned_tokens={self.learned_tokens}, share_blocks={self.share_blocks}"
