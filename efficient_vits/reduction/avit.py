r"""A-ViT: every token halts on its own, and what it was on the way adds up to what it becomes.

After block l each token that still runs gets a halting probability from its first channel,

    h_l = sigmoid(gate_scale * x_l[0] - gate_center),    h_L = 1 after the last block.

It halts at the first block N where  h_1 + ... + h_N >= 1 - eps.  No block computes it, and no other
token sees it, from there on. Its output is the mean of what it was, by these probabilities,

    y = sum_{l < N} h_l x_l + r x_N,    r = 1 - sum_{l < N} h_l.

Two losses: the ponder loss a_p * mean(N + r) makes tokens halt early; the prior
a_d / L * KL(target || H), with H_l the halting probability that block l hands out, as a share of
that of all blocks, and a Gaussian over the blocks as target, says where they should.

Source: Yin et al., "A-ViT: Adaptive Tokens for Efficient Vision Transformer", CVPR 2022 (arXiv
2112.07658), section 3, on adaptive computation time (Graves, 2016). Written from the paper; the
authors' code has a non-commercial licence and is not used. Their defaults are kept; for DeiT-Ti and
DeiT-S they report gates of 10, 30 and 10, 75 and losses of 5e-4 and 1e-3.

Where this differs from the published runs: halted tokens are skipped in inference, where those only
masked them. Halted tokens take no part in H. The target sums to one. The paper takes the mean over
the way for the class token only; here, as in the published runs, for all tokens, so that average
pooling and dense maps have an output of every patch. Without a class token nothing else changes.
"""

from typing import Any, ClassVar, Dict, Final, Optional, Tuple  # noqa: UP035 (TorchScript)

import torch
from timm.layers import is_exportable, register_notrace_function
from torch import Tensor, nn

from efficient_vits._numerics import widen
from efficient_vits.reduction._interface import ReductionTraits, register_reduction
from efficient_vits.reduction._loss import LossTerm
from efficient_vits.reduction._tokens import keep_tokens, token_indices


@register_notrace_function
def begin(x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
    """State before the first block, of tokens (B, N, C): nobody has halted.

    Returns:
        score and remainder, the sum of halting probabilities and 1 less that sum, (B, N) in float32
        at least; running (B, N), boolean; output, the mean so far (B, N, C).
    """
    output = torch.zeros_like(widen(x))
    score = torch.zeros_like(output[..., 0])
    return score, torch.ones_like(score), torch.ones_like(score, dtype=torch.bool), output


def halt(
    score: Tensor, remainder: Tensor, running: Tensor, probability: Tensor, eps: float
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
    """One step of adaptive computation time; everything is (B, N).

    Args:
        score: Sum of the halting probabilities so far.
        remainder: 1 less those of the blocks after which the token went on.
        running: Which tokens the block computed.
        probability: Their halting probability after it.
        eps: A token halts once its score is 1 - eps.

    Returns:
        The weight of the block in the output of each token, 0 where it had halted; and the new
        score, remainder and running.
    """
    score = score + probability * running
    goes_on = running & (score < 1 - eps)
    weight = torch.where(goes_on, probability, remainder) * running
    return weight, score, remainder - probability * goes_on, goes_on


def seen(running: Tensor) -> Tensor:
    """Sizes that hide halted tokens from every attention, (B, N) -> (B, N, 1) in float32.

    Where all tokens of an image have halted nothing is left to see, and nobody to see it: all are
    1 there, as a softmax over no token has no value.
    """
    shown = running | ~running.any(dim=1, keepdim=True)
    return shown.unsqueeze(-1).float()


@register_notrace_function
def hide_halted(source: Optional[Tensor], running: Tensor) -> Optional[Tensor]:
    """The map from patches to tokens with halted ones dropped."""
    if source is None:
        return None
    gone = ~running.gather(1, source.clamp(min=0)) | (source < 0)
    return source.masked_fill(gone, -1)


def longest(running: Tensor, num_prefix_tokens: int) -> Tuple[int, bool]:  # noqa: UP006
    """The most patch tokens that run in an image; whether every image has as many.

    The second is False where a prefix token has halted: those keep their place. One read from the
    device for all of it.
    """
    prefix, patches = running[:, :num_prefix_tokens], running[:, num_prefix_tokens:]
    counts = patches.sum(dim=1)
    facts = [counts.max(), counts.min(), prefix.all().to(counts.dtype)]
    most, fewest, whole = torch.stack(facts).tolist()
    # Attention over no token at all is not defined everywhere.
    kept = max(most, 0 if num_prefix_tokens else 1)
    return kept, bool(whole) and fewest == kept


def first_running(running: Tensor, count: int, num_prefix_tokens: int) -> Tensor:
    """Tokens (B, P + count): the prefix, and patch tokens, those that run in front, in order."""
    P = num_prefix_tokens
    order = running[:, P:].byte().argsort(dim=1, descending=True, stable=True)[:, :count]
    prefix = torch.arange(P, device=running.device).expand(running.shape[0], P)
    return torch.cat([prefix, order + P], dim=1)


def log_prior(depth: int, center: float, device: torch.device) -> Tensor:
    """Logarithm of a Gaussian of width 1 over the blocks, as shares, (depth)."""
    block = torch.arange(depth, device=device)
    return (-0.5 * (block - center).square()).log_softmax(dim=0)


@register_notrace_function
def prior_loss(profile: Tensor, center: float) -> Tensor:
    """KL(target || H) over the number of blocks.

    Args:
        profile: (L), halting probability that each block handed out, as a mean over tokens.
        center: Where the target has its maximum, in blocks from 0.
    """
    depth = profile.shape[0]
    # The bounds, the authors' own, keep the logarithm and its gradient finite.
    shares = (profile / profile.sum().clamp(min=1e-6)).clamp(0.01, 0.99)
    target = log_prior(depth, center, profile.device)
    return (target.exp() * (target - shares.log())).sum() / depth


@register_reduction("avit", vit={"no_embed_class": False, "init_values": None})
class AViT(nn.Module):
    """Halting of single tokens after every block; the last one puts all of them back.

    Args:
        dim: Channels.
        depth: Blocks of the model.
        block: Which of them this is.
        num_prefix_tokens: Tokens at the front. They halt like all others, and keep their place.
        gate_scale: Factor of the first channel in the gate.
        gate_center: Taken off it.
        halting_eps: A token halts once its probabilities add up to 1 less this.
        ponder_weight: Weight a_p of the ponder loss.
        prior_weight: Weight a_d of the prior on where tokens halt.
        target_depth: The block, from 0, where the prior wants most tokens to halt; two thirds of
            `depth` by default.
        dynamic: Skip halted tokens in inference: every block computes only the patch tokens that
            still run, gathered to as many as the image of the batch with the most has. ``False``
            computes all tokens and hides halted ones: the same outputs at the cost of a plain ViT,
            with shapes that compilers and exporters can know. By default dynamic, unless timm
            builds an exportable model; training, TorchScript, fx, `torch.compile`, `torch.export`
            and the meta device always take the static path. `torch.jit.trace` takes the dynamic
            one, which holds for the traced image only.

    Shape: (B, N, dim) -> (B, n, dim), with n = N where halted tokens are only hidden, and after the
    last block. In ``source`` patches that have halted are -1; after the last block every patch is
    in its own token again.

    State in ``info``: ``avit_score``, ``avit_remainder`` and ``avit_running`` (B, n) of the tokens
    that are left; ``avit_output`` (B, N, dim) of all; ``avit_index`` (B, n), which of all those
    left are, once any was skipped; in training ``avit_profile``, one entry per block so far.
    """

    flop_kind: ClassVar[str] = "reduction"
    traits: ClassVar[ReductionTraits] = ReductionTraits(
        place="after",
        needs=frozenset({"token_sizes"}),
        sizes=True,
        state=True,
        auxiliary_loss=True,
    )
    # Read by `efficient_vits.efficiency`: random images say nothing of the cost.
    depends_on_image: ClassVar[bool] = True
    last: Final[bool]

    def __init__(
        self,
        dim: int,
        depth: int,
        block: int,
        *,
        num_prefix_tokens: int = 1,
        gate_scale: float = 100.0,
        gate_center: float = 3.0,
        halting_eps: float = 0.01,
        ponder_weight: float = 0.001,
        prior_weight: float = 0.01,
        target_depth: float | None = None,
        dynamic: bool | None = None,
    ) -> None:
        super().__init__()
        if not 0 < halting_eps < 1:
            raise ValueError(f"avit needs 0 < halting_eps < 1, got {halting_eps}")
        if target_depth is not None and not (0 <= target_depth < depth):
            raise ValueError(f"avit needs 0 <= target_depth < {depth}, got {target_depth}")
        self.last = block == depth - 1
        self.num_prefix_tokens = num_prefix_tokens
        self.gate_scale = gate_scale
        self.gate_center = gate_center
        self.halting_eps = halting_eps
        self.ponder_weight = ponder_weight
        self.prior_weight = prior_weight
        self.target_depth = 2 * depth / 3 if target_depth is None else target_depth
        self.dynamic = not is_exportable() if dynamic is None else dynamic
        self.losses = LossTerm()

    @torch.jit.ignore
    def num_tokens(self, n: int) -> Optional[int]:
        """None: it depends on the image."""
        return None

    def forward(
        self,
        x: Tensor,
        size: Optional[Tensor],
        source: Optional[Tensor],
        info: Dict[str, Tensor],  # noqa: UP006
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
        if "avit_score" in info:
            score, remainder = info["avit_score"], info["avit_remainder"]
            running, output = info["avit_running"], info["avit_output"]
        else:
            score, remainder, running, output = begin(x)
        gate = (widen(x[..., 0]) * self.gate_scale - self.gate_center).sigmoid()  # (B, N)
        probability = torch.ones_like(gate) if self.last else gate
        weight, score, left, goes_on = halt(
            score, remainder, running, probability, self.halting_eps
        )
        loss: Optional[Tensor] = None
        if self.training:
            loss = self.ponder_weight * (running + remainder * (running & ~goes_on)).mean()
            handed = (gate * running)[:, self.num_prefix_tokens :].mean().unsqueeze(0)
            profile = handed
            if "avit_profile" in info:
                profile = torch.cat([info["avit_profile"], handed])
            info["avit_profile"] = profile
            if self.last:
                loss = loss + self.prior_weight * prior_loss(profile, self.target_depth)
        part = self.losses(widen(x) * weight.unsqueeze(-1), loss)
        if "avit_index" in info:
            index = info["avit_index"].unsqueeze(-1).expand(-1, -1, x.shape[-1])
            output = output.scatter_add(1, index, part)
            stopped = output.gather(1, index)
        else:
            output = stopped = output + part
        if self.last:
            x = output.to(x.dtype)
            here = token_indices(x, self.num_prefix_tokens)
            return x, None, None if source is None else here

        # A class token that has halted is its output at once: intermediate features may show it.
        x = torch.where(goes_on.unsqueeze(-1), x, stopped.to(x.dtype))
        size, source = seen(goes_on), hide_halted(source, goes_on)
        info["avit_score"], info["avit_remainder"] = score, left
        info["avit_running"], info["avit_output"] = goes_on, output
        if not torch.jit.is_scripting() and self.skips(x):
            x, size, source = self.skip(x, size, source, info)
        return x, size, source

    @torch.jit.unused
    def skips(self, x: Any) -> bool:
        """Whether halted tokens are skipped, and not only hidden."""
        if self.training or not self.dynamic or torch.compiler.is_compiling():
            return False
        return not (isinstance(x, torch.fx.Proxy) or x.is_meta)

    @torch.jit.unused
    def skip(
        self,
        x: Tensor,
        size: Tensor,
        source: Optional[Tensor],
        info: Dict[str, Tensor],  # noqa: UP006
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
        """Gather the tokens that run, in `info` too; sizes are None where nothing is hidden."""
        P = self.num_prefix_tokens
        count, all_run = longest(info["avit_running"], P)
        if count < x.shape[1] - P:
            kept = first_running(info["avit_running"], count, P)
            x, size, source = keep_tokens(x, size, source, kept)
            for name in ("avit_score", "avit_remainder", "avit_running"):
                info[name] = info[name].gather(1, kept)
            index = info.get("avit_index")
            info["avit_index"] = kept if index is None else index.gather(1, kept)
        return x, None if all_run else size, source
