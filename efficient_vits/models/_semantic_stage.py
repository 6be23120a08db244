"""The stage of STViT-R in which most layers run on semantic tokens, not on patches.

It is made of units of six layers, (B, H, W, C) -> the same:

    base       Swin's window attention on the patches
    generate   in every window, 3 x 3 semantic tokens: queries are the window pooled by maximum,
               keys the window with a margin around it; no skip connection around the attention
    refine     every semantic token reads from all of them and all patches; in the first unit
               learned centres are added to the queries
    local      semantic tokens of one window among themselves
    mix        all semantic tokens among themselves
    recover    every patch reads from all semantic tokens

For the source see `efficient_vits.models.stvit_swin`. The authors' code knows the margin for a
stage of 14 x 14 patches only; here windows and margins are shifted into any grid, which is the same
there.
"""

from typing import Any, Optional, Tuple  # noqa: UP035 (TorchScript reads them)

import torch
from timm.layers import register_notrace_function, resample_abs_pos_embed, trunc_normal_
from timm.models import checkpoint_seq
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from efficient_vits.reduction._cross import CrossLayer
from efficient_vits.reduction.stvit import pool_grid

LAYERS = ("base", "generate", "refine", "local", "mix", "recover")
SIDE = 3  # semantic tokens in a row or column of a window
MARGIN = 3  # by how much the windows of the keys are larger


def window_places(length: int, window: int, margin: int, device: torch.device) -> Tensor:
    """Indices of windows over `length` places, (ceil(length / window), window + margin).

    Windows stand side by side; one that would leave the range is shifted into it, and a margin that
    does not fit is cut.
    """
    extent = min(window + margin, length)
    number = -(-length // window)
    first = torch.arange(number, device=device) * window - (extent - window) // 2
    return first.clamp(0, length - extent).unsqueeze(1) + torch.arange(extent, device=device)


@register_notrace_function
def take_windows(x: Tensor, window: Tuple[int, int], margin: int) -> Tensor:  # noqa: UP006
    """Windows with a margin, (B, H, W, C) -> (B * windows, rows, columns, C)."""
    rows = window_places(x.shape[1], window[0], margin, x.device)
    columns = window_places(x.shape[2], window[1], margin, x.device)
    y = x[:, rows][:, :, :, columns]  # (B, windows down, rows, windows across, columns, C)
    return y.transpose(2, 3).flatten(0, 2)


@register_notrace_function
def split_windows(x: Tensor, down: int, across: int, side: int) -> Tensor:
    """Semantic tokens by window, (B, down * across * side^2, C) -> (B * down * across, side^2, C).

    They come row by row over the whole map.
    """
    C = x.shape[-1]
    x = x.reshape(-1, down, side, across, side, C).transpose(2, 3)
    return x.reshape(-1, side * side, C)


@register_notrace_function
def join_windows(x: Tensor, down: int, across: int, side: int) -> Tensor:
    """The reverse of `split_windows`."""
    C = x.shape[-1]
    x = x.reshape(-1, down, across, side, side, C).transpose(2, 3)
    return x.reshape(-1, down * across * side * side, C)


class SemanticUnit(nn.Module):
    """Six layers, four of which run on semantic tokens, (B, H, W, C) -> the same.

    Args:
        dim: Channels C.
        input_resolution: H and W.
        num_heads: Heads of all layers.
        window_size: Rows and columns of a window.
        centres: Whether the semantic tokens have learned centres.
        drop_path: Rate of each layer.
        init_values: Initial LayerScale.
        **layer: Arguments that all layers share.
    """

    def __init__(
        self,
        dim: int,
        input_resolution: tuple[int, int],
        num_heads: int,
        window_size: tuple[int, int],
        centres: bool,
        drop_path: list[float],
        init_values: float | None,
        norm_layer: Any,
        device: Any = None,
        dtype: Any = None,
        **layer: Any,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        layer = {**layer, "norm_layer": norm_layer, **factory}
        self.base = SwinTransformerBlock(
            dim,
            input_resolution,
            num_heads,
            window_size=window_size,
            drop_path=drop_path[0],
            **layer,
        )
        self.generate, self.refine, self.local, self.mix, self.recover = (
            CrossLayer(
                dim,
                num_heads,
                init_values=init_values,
                drop_path=rate,
                skip=name != "generate",
                **layer,
            )
            for name, rate in zip(LAYERS[1:], drop_path[1:], strict=True)
        )
        self.side, self.margin = SIDE, MARGIN
        self._place(input_resolution)
        tokens = self.down * self.across * SIDE * SIDE
        self.centres: Optional[nn.Parameter] = (
            nn.Parameter(torch.empty(1, tokens, dim, **factory)) if centres else None
        )
        self.reset_parameters()

    @torch.jit.ignore
    def _place(self, resolution: tuple[int, int]) -> None:
        self.window: Tuple[int, int] = self.base.window_size  # noqa: UP006
        self.down = -(-resolution[0] // self.window[0])
        self.across = -(-resolution[1] // self.window[1])

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Draw the learned centres anew."""
        if self.centres is not None:
            trunc_normal_(self.centres, std=0.02)

    @torch.jit.ignore
    def set_input_size(self, feat_size: tuple[int, int], window_size: tuple[int, int]) -> None:
        """Take maps of another size; bias tables and centres are resampled."""
        before = [self.down * SIDE, self.across * SIDE]
        self.base.set_input_size(feat_size, window_size)
        self._place(feat_size)
        after = [self.down * SIDE, self.across * SIDE]
        if self.centres is not None and before != after:
            new = resample_abs_pos_embed(self.centres.detach(), after, before, num_prefix_tokens=0)
            self.centres = nn.Parameter(new, requires_grad=self.centres.requires_grad)

    def tokens(self, x: Tensor) -> Tensor:
        """Semantic tokens of the patches that left `base`, (B, H, W, C) -> (B, M, C)."""
        pooled = pool_grid(take_windows(x, self.window, 0), self.side, self.side).flatten(1, 2)
        keys = take_windows(x, self.window, self.margin).flatten(1, 2)
        s = self.generate(pooled, torch.cat([pooled, keys], dim=1))  # (B * windows, 9, C)
        s = join_windows(s, self.down, self.across, self.side)
        context = torch.cat([s, x.flatten(1, 2)], dim=1)
        if self.centres is not None:
            s = s + self.centres
        s = split_windows(self.refine(s, context), self.down, self.across, self.side)
        s = join_windows(self.local(s, s), self.down, self.across, self.side)
        return self.mix(s, s)

    def forward(self, x: Tensor) -> Tensor:
        x = self.base(x)
        return self.recover(x.flatten(1, 2), self.tokens(x)).reshape(x.shape)


class SemanticStage(nn.Module):
    """A stage of units in place of Swin's blocks; its protocol is that of timm's Swin stage.

    Args:
        downsample: What comes first.
        input_resolution: Rows and columns of the map that leaves it.
        depth: Layers, six per unit.
        drop_path: Rate of each layer.
        **unit: Arguments of `SemanticUnit`.

    Raises:
        ValueError: The layers make no whole units.
    """

    def __init__(
        self,
        downsample: nn.Module,
        input_resolution: tuple[int, int],
        depth: int,
        drop_path: list[float],
        **unit: Any,
    ) -> None:
        super().__init__()
        n = len(LAYERS)
        if depth < n or depth % n:
            raise ValueError(f"the third stage has units of {n} layers, got a depth of {depth}")
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(
            *(
                SemanticUnit(
                    input_resolution=input_resolution,
                    centres=i == 0,
                    drop_path=drop_path[i : i + n],
                    **unit,
                )
                for i in range(0, depth, n)
            )
        )

    @torch.jit.ignore
    def set_input_size(self, feat_size: tuple[int, int], window_size: tuple[int, int]) -> None:
        """Take maps (H, W) of another size, before the downsampling."""
        size = ((feat_size[0] + 1) // 2, (feat_size[1] + 1) // 2)
        unit: Any
        for unit in self.blocks:
            unit.set_input_size(size, window_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)
