"""What a Synthesizer puts in place of q k^T: modules that make logits of tokens, not of pairs.

Each takes tokens (B, N, dim) and returns logits (B, heads, N, N), or (1, heads, N, N) where they
are the same for every image. `synthesizer.py` has the sources.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from efficient_vits._numerics import widen
from efficient_vits.attention._tokens import Grid, resample_tokens, square_grid

LARGEST_SIDE = 1024  # of grids that weights may come from


class Logits(nn.Module):
    """Base class: parameters that follow the grid.

    Every form takes ``(dim, num_heads, grid, prefix, bias, f)``: rows and columns of patch tokens,
    the number of tokens in front of them, whether linear layers have a bias, and the factor of the
    factorized forms, which is their own default if None.
    """

    shared = False  # between images
    factorized = False

    def __init__(self, num_heads: int, grid_size: Grid, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens
        self.num_tokens = num_prefix_tokens + grid_size[0] * grid_size[1]

    @torch.jit.ignore
    def set_grid_size(self, grid_size: Grid) -> None:
        """Resample the parameters to another grid."""
        old_grid = self.grid_size
        if tuple(grid_size) == tuple(old_grid):
            return
        self._set_geometry(grid_size)
        for name, old in list(self.named_parameters()):
            path, _, leaf = name.rpartition(".")
            new = self._resample(name, old.detach(), old_grid)
            owner = self.get_submodule(path)
            setattr(owner, leaf, nn.Parameter(new, requires_grad=old.requires_grad))
            if isinstance(owner, nn.Linear):
                owner.out_features = owner.weight.shape[0]

    @torch.jit.ignore
    def _set_geometry(self, grid_size: Grid) -> None:
        self.grid_size = grid_size
        self.num_tokens = self.num_prefix_tokens + grid_size[0] * grid_size[1]

    @torch.jit.ignore
    def resample_parameter(self, name: str, value: Tensor) -> Tensor:
        """A parameter of another, square, grid brought to this one's."""
        own = dict(self.named_parameters()).get(name)
        if own is None or own.ndim != value.ndim or not value.numel():
            return value
        old_grid = self._grid_of(name, value)
        return value if old_grid is None else self._resample(name, value, old_grid)

    @torch.jit.ignore
    def _grid_of(self, name: str, value: Tensor) -> Grid | None:
        """The square grid that a parameter belongs to; None if that cannot be."""
        return square_grid(value.shape[1], self.num_prefix_tokens) if value.ndim > 1 else None

    @torch.jit.ignore
    def _resample(self, name: str, value: Tensor, old: Grid) -> Tensor:
        return value


class DotLogits(Logits):
    """Queries times keys, as in plain attention: what mixtures call "vanilla"."""

    def __init__(
        self, dim: int, num_heads: int, grid: Grid, prefix: int, bias: bool, f: Any, **factory: Any
    ) -> None:
        super().__init__(num_heads, grid, prefix)
        self.scale = (dim // num_heads) ** -0.5
        self.qk = nn.Linear(dim, 2 * dim, bias=bias, **factory)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        # (2, B, heads, N, d)
        qk = self.qk(x).reshape(B, N, 2, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k = qk.unbind(0)
        return (q * self.scale) @ k.transpose(-2, -1)


class DenseLogits(Logits):
    """W_2 relu(W_1 x), per head d hidden channels and one output per token."""

    def __init__(
        self, dim: int, num_heads: int, grid: Grid, prefix: int, bias: bool, f: Any, **factory: Any
    ) -> None:
        super().__init__(num_heads, grid, prefix)
        self.hidden = nn.Linear(dim, dim, bias=bias, **factory)
        self.weight = nn.Parameter(
            torch.empty(num_heads, self.num_tokens, dim // num_heads, **factory)
        )
        self.bias = (
            nn.Parameter(torch.empty(num_heads, self.num_tokens, **factory)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W_2 anew: uniform, bound 1 / sqrt(d); no bias."""
        bound = 1 / math.sqrt(self.weight.shape[2])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        hidden = self.hidden(x).relu().reshape(B, N, self.num_heads, C // self.num_heads)
        logits = torch.einsum("bnhd,hmd->bhnm", hidden, self.weight)
        return logits if self.bias is None else logits + self.bias.unsqueeze(1)

    @torch.jit.ignore
    def _resample(self, name: str, value: Tensor, old: Grid) -> Tensor:
        if name not in ("weight", "bias"):
            return value
        return resample_tokens(value, old, self.grid_size, self.num_prefix_tokens, dim=1)


class RandomLogits(Logits):
    """A matrix of parameters per head, the same for all images."""

    shared = True

    def __init__(
        self, dim: int, num_heads: int, grid: Grid, prefix: int, bias: bool, f: Any, **factory: Any
    ) -> None:
        super().__init__(num_heads, grid, prefix)
        self.weight = nn.Parameter(
            torch.empty(num_heads, self.num_tokens, self.num_tokens, **factory)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the logits anew: standard normal."""
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.unsqueeze(0)

    @torch.jit.ignore
    def _grid_of(self, name: str, value: Tensor) -> Grid | None:
        return super()._grid_of(name, value) if value.shape[1] == value.shape[2] else None

    @torch.jit.ignore
    def _resample(self, name: str, value: Tensor, old: Grid) -> Tensor:
        for dim in (1, 2):
            value = resample_tokens(value, old, self.grid_size, self.num_prefix_tokens, dim)
        return value


class FactorizedRandomLogits(Logits):
    """R_1 R_2^T, of rank f. N is rounded up to a multiple of f, as the benchmark does."""

    shared = True
    factorized = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        prefix: int,
        bias: bool,
        f: int | None,
        **factory: Any,
    ) -> None:
        super().__init__(num_heads, grid, prefix)
        self.f = 8 if f is None else f
        padded = self._padded(self.num_tokens)
        self.left = nn.Parameter(torch.empty(num_heads, padded, self.f, **factory))
        self.right = nn.Parameter(torch.empty(num_heads, padded, self.f, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both factors anew: standard normal."""
        nn.init.normal_(self.left)
        nn.init.normal_(self.right)

    def forward(self, x: Tensor) -> Tensor:
        N = x.shape[1]
        return (self.left[:, :N] @ self.right[:, :N].transpose(-2, -1)).unsqueeze(0)

    @torch.jit.ignore
    def _padded(self, num_tokens: int) -> int:
        return math.ceil(num_tokens / self.f) * self.f

    @torch.jit.ignore
    def _grid_of(self, name: str, value: Tensor) -> Grid | None:
        if value.shape[2] != self.f:
            return None
        return largest_grid(
            self.num_prefix_tokens, lambda num_tokens: self._padded(num_tokens) == value.shape[1]
        )

    @torch.jit.ignore
    def _resample(self, name: str, value: Tensor, old: Grid) -> Tensor:
        P = self.num_prefix_tokens
        value = resample_tokens(value[:, : P + old[0] * old[1]], old, self.grid_size, P, dim=1)
        padding = value.new_zeros(
            value.shape[0], self._padded(self.num_tokens) - self.num_tokens, self.f
        )
        return torch.cat([value, padding], dim=1)


class FactorizedDenseLogits(Logits):
    """Products of f values and N / f values that each token projects to.

    The logit for token m is ``a[m // g] * b[m // f]``, with g = ceil(N / f): the benchmark's
    reading, in which the two change together along the image. With `pairs` it is
    ``a[m // g] * b[m % g]``: every pair once.
    """

    factorized = True
    pairs: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        prefix: int,
        bias: bool,
        f: int | None,
        pairs: bool = False,
        **factory: Any,
    ) -> None:
        super().__init__(num_heads, grid, prefix)
        self.fixed = f
        self.pairs = pairs
        self.f, self.g = self._factors(self.num_tokens)
        self.to_a = nn.Linear(dim, num_heads * self.f, bias=bias, **factory)
        self.to_b = nn.Linear(dim, num_heads * self.g, bias=bias, **factory)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        # The product of two activations leaves the range of float16.
        a = widen(self.to_a(x)).reshape(B, N, self.num_heads, self.f).transpose(1, 2).unsqueeze(-1)
        b = widen(self.to_b(x)).reshape(B, N, self.num_heads, self.g).transpose(1, 2)
        if self.pairs:
            logits = (a * b.unsqueeze(-2)).flatten(-2)
        else:
            long = (B, self.num_heads, N, self.f, self.g)
            other = (B, self.num_heads, N, self.g, self.f)
            logits = a.expand(long).flatten(-2) * b.unsqueeze(-1).expand(other).flatten(-2)
        return logits[..., :N]

    @torch.jit.ignore
    def _factors(self, num_tokens: int) -> tuple[int, int]:
        f = round(math.sqrt(num_tokens)) if self.fixed is None else self.fixed
        return f, math.ceil(num_tokens / f)

    @torch.jit.ignore
    def _set_geometry(self, grid_size: Grid) -> None:
        super()._set_geometry(grid_size)
        self.f, self.g = self._factors(self.num_tokens)

    @torch.jit.ignore
    def _grid_of(self, name: str, value: Tensor) -> Grid | None:
        rows, rest = divmod(value.shape[0], self.num_heads)
        if rest:
            return None
        which = name.startswith("to_b")
        return largest_grid(
            self.num_prefix_tokens, lambda num_tokens: self._factors(num_tokens)[which] == rows
        )

    @torch.jit.ignore
    def _resample(self, name: str, value: Tensor, old: Grid) -> Tensor:
        """Interpolate along the factor.

        An entry stands for a run of tokens, line by line through the image; it is read off where
        the run lay at the same height of the old image. As many entries as before stay as they are.
        """
        P, (H, W) = self.num_prefix_tokens, self.grid_size
        old_f, old_g = self._factors(P + old[0] * old[1])
        is_a = name.startswith("to_a")
        entries, run, old_run = (self.f, self.g, old_g) if is_a else (self.g, self.f, old_f)
        old_entries = value.shape[0] // self.num_heads
        if old_entries == entries:
            return value
        where = torch.arange(entries, device=value.device) + 0.5
        if self.pairs and not is_a:  # the place within a run
            where = where * old_g / self.g
        else:
            height = (where * run - P) / (H * W)
            where = (height * old[0] * old[1] + P) / old_run
        value = value.reshape(self.num_heads, old_entries, -1)
        value = interpolate(value, where - 0.5).flatten(0, 1)
        return value.squeeze(-1) if name.endswith("bias") else value


def interpolate(value: Tensor, where: Tensor) -> Tensor:
    """(heads, n', C) read at positions (n,) between its entries: (heads, n, C)."""
    last = value.shape[1] - 1
    where = where.clamp(0, last)
    low = where.floor().long()
    high = (low + 1).clamp(max=last)
    share = (where - low).to(value.dtype).view(1, -1, 1)
    return value[:, low] * (1 - share) + value[:, high] * share


def largest_grid(num_prefix_tokens: int, fits: Callable[[int], bool]) -> Grid | None:
    """The largest square grid whose number of tokens `fits`, or None."""
    sides: Iterator[int] = iter(range(LARGEST_SIDE, 0, -1))
    return next(((s, s) for s in sides if fits(num_prefix_tokens + s * s)), None)


FORMS: dict[str, Any] = {
    "dense": DenseLogits,
    "random": RandomLogits,
    "factorized_dense": FactorizedDenseLogits,
    "factorized_random": FactorizedRandomLogits,
    "dot": DotLogits,
}
