r"""Routing attention: tokens attend within clusters, which k-means finds among queries and keys.

    Q_c = top-w_n (q_n / |q_n|) . mu_c,    K_c = top-w_n (k_n / |k_n|) . mu_c
    y_n = mean over clusters c with n in Q_c of  softmax(q_n K_c^T / sqrt(d)) V_c

Every cluster takes the w = ceil(N / clusters) tokens that are nearest to its centroid, so that all
are of one size; a token may be in several clusters, or in none, and then its output is 0. With
about sqrt(N) clusters the cost is N^1.5. In training the centroids follow the mean direction of
the queries and keys that are nearest to them, and these are drawn to the centroids by a commitment
loss, the mean of ``(x / |x| - mu)^2``.

Source: Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers", TACL 2021
(arXiv 2003.05997), section 4.1, algorithm 1. Written anew. Its causal form is left out
(an image has no order), and so are its heads with local attention. The normalised centroid update
and the loss are those of the public PyTorch port (MIT) that the benchmark ran. There k-means on
the first batch placed the centroids, and they stayed: the call that moves them was missing. Here
they start in random directions, and move.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Final, Optional  # noqa: UP035 (TorchScript reads Dict)

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import register_notrace_module, use_fused_attn
from torch import Tensor, nn

from efficient_vits._numerics import unit_vectors, wide_matmul
from efficient_vits._state import put, rename
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    check_report,
    optional_norm,
    refuse_mask,
    register_attention,
)

# Keeps the output of a token in no cluster at 0. Its value is the benchmark's, for it shows: 1e-5
# of an output is enough to change one of the thousands of picks that the blocks after it make.
EPS = 1e-5


@register_notrace_module
@register_attention(
    "routing", models={"routing_{size}": {"output_bias": False}}, vit={"qkv_bias": False}
)
class RoutingAttention(nn.Module):
    """Routing attention.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads; each has centroids of its own.
        grid_size: Rows and columns of patch tokens; required unless `num_clusters` is given.
        num_prefix_tokens: Tokens in front of them.
        num_clusters: Clusters; by default about the square root of the number of tokens, which
            follows the grid.
        decay: How much of a centroid is kept in one step of training.
        commitment: Weight of the commitment loss.
        output_bias: Give ``proj`` a bias if `proj_bias` says so too; the benchmark's runs had none.
        report: ``("keys",)`` writes the keys into ``info``.

    Shape: (B, N, dim) -> (B, N, dim). ``info["keys"]`` (B, heads, N, d). In training,
    ``auxiliary_loss`` holds the commitment loss of the last forward pass.

    The centroids move in the backward pass, once per step even under gradient checkpointing, and
    equally in all processes of `torch.distributed`. `torch.compile` moves them in the forward
    pass; TorchScript leaves them where they are.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        gives=frozenset({"keys"}), auxiliary_loss=True
    )
    fused_attn: Final[bool]
    reports_keys: Final[bool]
    eps: Final[float]
    auxiliary_loss: Optional[Tensor]
    centroids: Tensor

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
        grid_size: tuple[int, int] | None = None,
        num_prefix_tokens: int = 1,
        num_clusters: int | None = None,
        decay: float = 0.999,
        commitment: float = 1e-4,
        output_bias: bool = True,
        report: Sequence[str] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("routing", dim, num_heads)
        check_report("routing", report, self.traits.gives)
        if num_clusters is None and grid_size is None:
            raise ValueError("routing needs num_clusters, or grid_size to choose it; got neither")
        if num_clusters is not None and num_clusters < 1:
            raise ValueError(f"routing needs num_clusters >= 1, got {num_clusters}")
        if not 0 <= decay <= 1:
            raise ValueError(f"routing needs 0 <= decay <= 1, got {decay}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.num_prefix_tokens = num_prefix_tokens
        self.follows_grid = num_clusters is None
        self.decay = decay
        self.commitment = commitment
        self.eps = EPS
        self.fused_attn = use_fused_attn()
        self.reports_keys = "keys" in report

        clusters = self._clusters_of(grid_size) if num_clusters is None else num_clusters
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.q_norm = optional_norm("routing", qk_norm, norm_layer, self.head_dim, **factory)
        self.k_norm = optional_norm("routing", qk_norm, norm_layer, self.head_dim, **factory)
        self.register_buffer(
            "centroids", torch.empty(num_heads, clusters, self.head_dim, **factory)
        )
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("routing", scale_norm, norm_layer, dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias and output_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.auxiliary_loss = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the centroids anew: unit vectors of random direction."""
        with torch.no_grad():
            self.centroids.copy_(unit_vectors(torch.randn_like(self.centroids)))

    def forward(
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,
        is_causal: bool = False,
        size: Optional[Tensor] = None,
        info: Optional[Dict[str, Tensor]] = None,  # noqa: UP006
    ) -> Tensor:
        refuse_mask("routing", attn_mask, is_causal)
        if size is not None:
            raise ValueError("routing does not take token sizes; pass size=None")
        B, N, C = x.shape
        H, d, clusters = self.num_heads, self.head_dim, self.centroids.shape[1]
        window = -(-N // clusters)
        # (3, B, H, N, d)
        qkv = self.qkv(x).reshape(B, N, 3, H, d).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if info is not None and self.reports_keys:
            info["keys"] = k

        units = unit_vectors(torch.cat([q, k], dim=2))  # (B, H, 2 N, d)
        scores = wide_matmul(units.detach(), self.centroids.transpose(1, 2))  # (B, H, 2 N, c)
        taken = scores[:, :, :N].topk(window, dim=2)[1]  # (B, H, w, c)
        taken_q = taken.transpose(2, 3).reshape(B, H, clusters * window, 1)
        taken = scores[:, :, N:].topk(window, dim=2)[1]
        taken_k = taken.transpose(2, 3).reshape(B, H, clusters * window, 1)
        in_clusters = [B, H * clusters, window, d]
        wide_q = taken_q.expand(-1, -1, -1, d)
        wide_k = taken_k.expand(-1, -1, -1, d)
        qc = q.gather(2, wide_q).reshape(in_clusters)
        kc = k.gather(2, wide_k).reshape(in_clusters)
        vc = v.gather(2, wide_k).reshape(in_clusters)

        if self.fused_attn:
            p = self.attn_drop.p if self.training else 0.0
            y = F.scaled_dot_product_attention(qc, kc, vc, dropout_p=p)
        else:
            weights = (qc * d**-0.5) @ kc.transpose(-2, -1)
            y = self.attn_drop(weights.softmax(dim=-1)) @ vc
        y = y.reshape(B, H, clusters * window, d).to(scores.dtype)
        total = torch.zeros([B, H, N, d], dtype=y.dtype, device=y.device)
        total = total.scatter_add(2, wide_q, y)
        count = torch.zeros([B, H, N, 1], dtype=y.dtype, device=y.device)
        count = count.scatter_add(2, taken_q, torch.ones_like(y[..., :1]))
        y = (total / (count + self.eps)).to(v.dtype)

        if self.training:
            nearest = scores.argmax(dim=-1, keepdim=True).expand(-1, -1, -1, d)
            self.auxiliary_loss = self.commitment * self.distance(units, nearest)
            if not torch.jit.is_scripting():
                self._follow(y, units.detach(), nearest)
        else:
            self.auxiliary_loss = None
        y = self.norm(y.transpose(1, 2).reshape(B, N, C))
        return self.proj_drop(self.proj(y))

    def distance(self, units: Tensor, nearest: Tensor) -> Tensor:
        """Mean square of what separates (B, H, M, d) from the centroids of these indices."""
        means = self.centroids.unsqueeze(0).expand(units.shape[0], -1, -1, -1).gather(2, nearest)
        apart = units - means
        return (apart if apart.dtype == torch.float64 else apart.float()).square().mean()

    @torch.jit.unused
    def _follow(self, y: Tensor, units: Tensor, nearest: Tensor) -> None:
        """Have the centroids move once the gradient of `y` is there.

        Not in the forward pass: gradient checkpointing runs that a second time, and has to find
        the centroids of the first.
        """
        H, clusters, d = self.centroids.shape
        sums = units.new_zeros(units.shape[0], H, clusters, d + 1, dtype=torch.float32)
        members = torch.cat([units, torch.ones_like(units[..., :1])], dim=-1).float()
        index = nearest[..., :1].expand(-1, -1, -1, d + 1)
        sums = sums.scatter_add(2, index, members).sum(dim=0)  # (H, c, d + 1): vectors and count
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        if torch.compiler.is_compiling():
            self.move_centroids(sums)
        elif y.requires_grad:
            y.register_hook(lambda gradient: self.move_centroids(sums))

    @torch.jit.unused
    def move_centroids(self, sums: Tensor) -> None:
        """One step towards the mean directions of `sums` (H, c, d + 1), counts at the end."""
        with torch.no_grad():
            vectors, count = sums[..., :-1], sums[..., -1:]
            old = self.centroids.to(sums.dtype)
            new = torch.lerp(unit_vectors(vectors), old, self.decay)
            self.centroids.copy_(torch.where(count > 0, new, old))

    def __getstate__(self) -> dict[str, Any]:
        # A loss term belongs to one forward pass, and its graph can be neither copied nor pickled.
        return {**self.__dict__, "auxiliary_loss": None}

    def _clusters_of(self, grid_size: tuple[int, int] | None) -> int:
        """As many clusters of about sqrt(N) tokens as N tokens need."""
        assert grid_size is not None
        num_tokens = self.num_prefix_tokens + grid_size[0] * grid_size[1]
        return math.ceil(num_tokens / round(math.sqrt(num_tokens)))

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Bring the number of clusters to another grid, unless it was chosen by hand."""
        if self.follows_grid:
            self.centroids = _resample(self.centroids, self._clusters_of(grid_size))

    @torch.jit.ignore
    def resample_parameter(self, name: str, value: Tensor) -> Tensor:
        """Centroids (H, c', d) of another number of clusters brought to this one's."""
        heads, clusters, d = self.centroids.shape
        fits = name == "centroids" and value.ndim == 3 and value.shape[::2] == (heads, d)
        return _resample(value, clusters) if fits and value.shape[1] else value

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours: its q, k and v are separate layers."""
        out = rename(state, {"to_out.": "proj.", "global_attn.kmeans.means": "centroids"})
        out.pop("global_attn.kmeans.initted", None)
        parts = [f"to_{part}.weight" for part in "qkv"]
        if all(part in out for part in parts):
            put(out, "qkv.weight", torch.cat([out.pop(part) for part in parts]))
        return out


def _resample(centroids: Tensor, clusters: int) -> Tensor:
    """(H, c', d) to (H, c, d): directions between neighbours in the list, lengths as they were."""
    if centroids.shape[1] == clusters:
        return centroids
    wide = centroids.detach().float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    new, new_length = (
        F.interpolate(z.transpose(1, 2), size=clusters, mode="linear").transpose(1, 2)
        for z in (wide, length)
    )
    return (unit_vectors(new) * new_length).to(centroids.dtype).contiguous()
