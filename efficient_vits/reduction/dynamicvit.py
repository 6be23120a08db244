r"""DynamicViT: at three depths a small network decides which patch tokens go on.

Before a stage s, a predictor looks at every patch token x_i and at the mean of those that are left:

    z = gelu(W norm x),    pi_i = softmax(MLP([z_i (first half), mean_j D_j z_j (second half)]))

In training the decision is drawn, D_i <- D_i * GumbelSoftmax(pi_i) with a straight-through
gradient, and all tokens keep flowing: those with D_i = 0 are hidden from every attention. In
inference the tokens with the best pi_i stay, ``keep_rate**s`` of all, and the others are gone. The
loss

    w / S * sum_s mean_images (mean_i D_i^s - keep_rate**s)^2

holds the decisions of training to the numbers of inference.

Source: Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification",
NeurIPS 2021 (arXiv 2106.02034), sections 3.2 (predictor), 3.3 (masking) and 3.4 (losses).
Written from the paper; the authors' code is MIT.

Where this differs from the paper: there, a token that was dropped attends to itself in training;
here it attends to the tokens that are left only. Nothing that is left ever sees it, either way.
"""

from typing import Any, ClassVar, Dict, Final, Optional, Tuple  # noqa: UP035 (TorchScript reads them)

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, register_notrace_module
from torch import Tensor, nn

from efficient_vits._numerics import widen
from efficient_vits._state import rename
from efficient_vits.reduction._interface import ReductionTraits, register_reduction
from efficient_vits.reduction._loss import LossTerm
from efficient_vits.reduction._tokens import keep_tokens


def stage_blocks(depth: int) -> list[int]:
    """The blocks before which tokens are dropped: 3, 6, 9 of 12, quarters of any depth."""
    return sorted({depth // 4, depth // 2, 3 * depth // 4})


def patches_kept(patches: int, stage: int, keep_rate: float) -> int:
    """Patch tokens that are left of those that reach a stage, one at least.

    The published numbers are floor(N * keep_rate**s) of the N patches of the image. A later stage
    gets n of them and knows N * keep_rate**(s - 1) only to lie between n and n + 1: it takes the
    middle. At 224 and 384 pixels and rates of 0.5, 0.6, ... 1 that gives the published numbers;
    elsewhere it may be off by one.
    """
    return max(1, int(keep_rate * (patches + (0.5 if stage else 0.0))))


@register_notrace_function
def best_tokens(score: Tensor, stage: int, keep_rate: float, num_prefix_tokens: int) -> Tensor:
    """Which tokens stay, (B, n): the prefix, and the patches with the best `score` (B, N - P)."""
    count = patches_kept(score.shape[1], stage, keep_rate)
    best = score.topk(count, dim=1)[1].sort(dim=1)[0] + num_prefix_tokens
    prefix = torch.arange(num_prefix_tokens, device=score.device).expand(score.shape[0], -1)
    return torch.cat([prefix, best], dim=1)


@register_notrace_function
def ones_per_token(x: Tensor) -> Tensor:
    """Sizes of tokens (B, N, C) of which each is one patch, (B, N, 1) in float32."""
    return torch.ones_like(x[..., :1], dtype=torch.float32)


def still_kept(size: Tensor) -> Tensor:
    """What was decided so far of tokens of these sizes: 1 for those that are left, about 0 else.

    A merged token is larger than 1, a dropped one smaller; the gradient is that of the size.
    """
    return size / size.detach().clamp(min=1.0)


@register_notrace_function
def hide_dropped(source: Tensor, kept: Tensor) -> Tensor:
    """The map from patches to tokens with those dropped that `kept` (B, N) says no to."""
    stays = kept.gather(1, source.clamp(min=0)) & (source >= 0)
    return torch.where(stays, source, torch.full_like(source, -1))


@register_notrace_module
class Decisions(LossTerm):
    """Passes the decisions of a stage on, and keeps them and their loss.

    Attributes:
        kept: (B, N - P), the patch tokens that are left after the last training pass; None after
            inference.
    """

    auxiliary_loss: Optional[Tensor]  # said again: TorchScript reads no inherited annotations
    kept: Optional[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.kept = None

    def forward(self, x: Tensor, loss: Optional[Tensor]) -> Tensor:
        self.auxiliary_loss = loss if self.training else None
        self.kept = x[..., 0].detach() > 0.5 if self.training else None
        return x

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "kept": None}


@register_reduction("dynamicvit", vit={"no_embed_class": False, "init_values": None})
class DynamicViT(nn.Module):
    """Drops the patch tokens that a predictor finds least useful, before three blocks.

    Average pooling over tokens takes those that are left in inference, and all of them in training.

    Args:
        dim: Channels, divisible by 4.
        depth: Blocks of the model.
        block: Which of them this is.
        num_prefix_tokens: Tokens that are never dropped.
        keep_rate: Part of the patch tokens that stays at each of the three stages.
        ratio_weight: Weight w of the loss that holds training to `keep_rate`.

    Shape: (B, N, dim) -> (B, n, dim) in inference; in training all tokens, those that were dropped
    with a size of almost 0.
    """

    flop_kind: ClassVar[str] = "reduction"
    traits: ClassVar[ReductionTraits] = ReductionTraits(
        place="before", needs=frozenset({"token_sizes"}), sizes=True, auxiliary_loss=True
    )
    stage: Final[int]
    keep_rate: Final[float]

    def __init__(
        self,
        dim: int,
        depth: int,
        block: int,
        *,
        num_prefix_tokens: int = 1,
        keep_rate: float = 0.7,
        ratio_weight: float = 2.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not 0 < keep_rate <= 1:
            raise ValueError(f"dynamicvit needs 0 < keep_rate <= 1, got {keep_rate}")
        if dim % 4:
            raise ValueError(f"dynamicvit needs dim divisible by 4, got {dim}")
        factory = {"device": device, "dtype": dtype}
        stages = stage_blocks(depth)
        self.active = block in stages
        self.stage = stages.index(block) if self.active else 0
        self.num_prefix_tokens = num_prefix_tokens
        self.keep_rate = keep_rate
        self.target = keep_rate ** (self.stage + 1)
        self.weight = ratio_weight / len(stages)
        self.norm = nn.LayerNorm(dim, **factory)
        self.embed = nn.Linear(dim, dim, **factory)
        self.fc1 = nn.Linear(dim, dim // 2, **factory)
        self.fc2 = nn.Linear(dim // 2, dim // 4, **factory)
        self.score = nn.Linear(dim // 4, 2, **factory)
        self.decisions = Decisions()
        # Where the benchmark's code keeps these parameters: beside the blocks, by stage.
        self.reference_prefix = f"score_predictor.{self.stage}."

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours."""
        names = {
            "in_conv.0.": "norm.",
            "in_conv.1.": "embed.",
            "out_conv.0.": "fc1.",
            "out_conv.2.": "fc2.",
            "out_conv.4.": "score.",
        }
        return rename(state, names)

    @torch.jit.ignore
    def num_tokens(self, n: int) -> int:
        """Tokens that n tokens become in inference; in training all n stay."""
        patches = n - self.num_prefix_tokens
        return self.num_prefix_tokens + patches_kept(patches, self.stage, self.keep_rate)

    def forward(
        self,
        x: Tensor,
        size: Optional[Tensor],
        source: Optional[Tensor],
        info: Dict[str, Tensor],  # noqa: UP006
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
        P = self.num_prefix_tokens
        before = ones_per_token(x) if size is None else size
        decided = still_kept(before[:, P:])
        log_probs = self.predict(x[:, P:], decided)  # (B, N - P, 2): keep, drop
        if not self.training:
            score = self.decisions(log_probs, None)[..., 0]
            kept = best_tokens(score, self.stage, self.keep_rate, P)
            x, taken, moved = keep_tokens(x, size, source, kept)
            # What is None stays the constant None, which a tracer can tell from a tensor.
            size = None if size is None else taken
            source = None if source is None else moved
            return x, size, source
        drawn = F.gumbel_softmax(log_probs, hard=True)[..., :1]
        keep = decided * drawn  # (B, N - P, 1)
        loss = self.weight * (keep.mean(dim=(1, 2)) - self.target).square().mean()
        keep = self.decisions(keep, loss)
        # Almost nothing of a dropped token is left, but a logarithm with a gradient.
        patches = before[:, P:].detach().clamp(min=1.0) * keep + 1e-6
        size = torch.cat([before[:, :P], patches], dim=1)
        if source is not None:
            source = hide_dropped(source, size[..., 0] > 0.5)
        return x, size, source

    def predict(self, patches: Tensor, decided: Tensor) -> Tensor:
        """Log-probabilities of keeping and of dropping each patch token, in float32 at least.

        Args:
            patches: (B, N, C).
            decided: (B, N, 1), 1 for those that are left, about 0 for those that were dropped.
        """
        z = F.gelu(self.embed(self.norm(patches)))
        own, others = z.chunk(2, dim=-1)
        total = (widen(others) * decided).sum(dim=1, keepdim=True)
        mean = (total / decided.sum(dim=1, keepdim=True).clamp(min=1e-6)).to(z.dtype)
        z = torch.cat([own, mean.expand_as(others)], dim=-1)
        z = F.gelu(self.fc2(F.gelu(self.fc1(z))))
        return widen(self.score(z)).log_softmax(dim=-1)


def distill(
    student: Any,
    teacher: Any,
    images: Tensor,
    *,
    logit_weight: float = 0.5,
    token_weight: float = 0.5,
) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """One training pass of the student, and how far it is from a teacher without reduction.

        loss = a * KL(teacher || student) + b * mean_kept |student token - teacher token|^2

    KL is that of the classes, tokens are the patch tokens after the last norm, of which those count
    that the last stage of the student kept. Section 3.4 of the paper, whose weights are the
    defaults; its teacher is the ViT that the student started from. The whole loss of the paper is

        logits, distillation = distill(student, teacher, images)
        loss = criterion(logits, labels) + distillation + efficient_vits.auxiliary_loss(student)

    Args:
        student: A ViT with ``reduction="dynamicvit"`` in training mode.
        teacher: A ViT with as many patches, channels and classes; it gets no gradients, and is used
            in the mode it is in.
        images: (B, 3, H, W).
        logit_weight: a.
        token_weight: b.

    Returns:
        The logits of the student (B, classes), and the loss, a scalar in float32 at least.

    Raises:
        ValueError: The student has no stage of DynamicViT or is not training, or the patch tokens
            of the two differ in shape.
    """
    tokens = student.forward_features(images)
    logits = student.forward_head(tokens)
    stages = [module for module in student.modules() if isinstance(module, Decisions)]
    kept = stages[-1].kept if stages else None
    if kept is None:
        raise ValueError("distill needs a student with reduction='dynamicvit' in training mode")
    with torch.no_grad():
        aims = teacher.forward_features(images)
        classes = widen(teacher.forward_head(aims)).log_softmax(dim=-1)
    patches = widen(tokens[:, student.num_prefix_tokens :])
    aims = widen(aims[:, teacher.num_prefix_tokens :])
    if patches.shape != aims.shape:
        raise ValueError(
            f"student and teacher differ in patch tokens, {tuple(patches.shape)} and "
            f"{tuple(aims.shape)}"
        )
    of_classes = F.kl_div(
        widen(logits).log_softmax(dim=-1), classes, reduction="batchmean", log_target=True
    )
    weight = kept.to(patches.dtype)
    error = (patches - aims).square().mean(dim=-1)
    of_tokens = (weight * error).sum() / weight.sum().clamp(min=1.0)
    return logits, logit_weight * of_classes + token_weight * of_tokens
