"""How CUDA differs from the CPU in what it keeps, for tensors without values on any machine.

Under autocast CUDA runs more operators in float32 than the CPU does, and its fused attention takes
masks that need a gradient. A torch function mode makes both so, where tensors are on the CPU.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

# "CUDA Ops that can autocast to float32" of torch's documentation of torch.amp.
FLOAT32_OPERATORS = frozenset(
    [
        "acos",
        "asin",
        "binary_cross_entropy_with_logits",
        "cdist",
        "cosh",
        "cosine_embedding_loss",
        "cosine_similarity",
        "cross_entropy",
        "cumprod",
        "cumsum",
        "dist",
        "erfinv",
        "exp",
        "expm1",
        "group_norm",
        "hinge_embedding_loss",
        "kl_div",
        "l1_loss",
        "layer_norm",
        "log",
        "log10",
        "log1p",
        "log2",
        "log_softmax",
        "margin_ranking_loss",
        "mse_loss",
        "multi_margin_loss",
        "multilabel_margin_loss",
        "nll_loss",
        "norm",
        "normalize",
        "pdist",
        "poisson_nll_loss",
        "pow",
        "prod",
        "rdiv",
        "reciprocal",
        "renorm",
        "rpow",
        "rsqrt",
        "rtruediv",
        "sinh",
        "smooth_l1_loss",
        "soft_margin_loss",
        "softmax",
        "softmin",
        "softplus",
        "sum",
        "tan",
        "triplet_margin_loss",
    ]
)


class CudaRules(TorchFunctionMode):
    """Autocast and fused attention as CUDA has them.

    Args:
        fused_attention: whether `scaled_dot_product_attention` keeps no matrix of weights.
    """

    def __init__(self, *, fused_attention: bool) -> None:
        super().__init__()
        self._fused = fused_attention

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name.startswith("__"):
            name = name.strip("_")
        if name == "scaled_dot_product_attention" and self._fused:
            return fused_attention(*args, **kwargs)
        if name in FLOAT32_OPERATORS and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        return func(*args, **kwargs)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    """Stands for `scaled_dot_product_attention`; further arguments don't change what it keeps."""
    tensors = [query, key, value, attn_mask]
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        tensors = [t if t is None or not t.is_floating_point() else t.to(dtype) for t in tensors]
    out: Tensor = _FusedAttention.apply(*tensors)
    return out


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class _FusedAttention(torch.autograd.Function):
    """Keeps queries, keys, values, mask, output and one float32 per query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        if out.ndim == 4:  # (B, heads, N, d); as the kernels do, it lies as (B, N, heads, d)
            batch, heads, tokens, dim = out.shape
            out = query.new_empty(batch, tokens, heads, dim).transpose(1, 2)
        logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, _, logsumexp = ctx.saved_tensors
        _row_sums = torch.empty_like(logsumexp)
        found = [torch.empty_like(tensor) for tensor in (query, key, value)]
        if mask is None or not mask.requires_grad:
            return (*found, None)
        whole = mask.new_empty(*query.shape[:-1], key.shape[-2])
        return (*found, whole.sum_to_size(mask.shape))
