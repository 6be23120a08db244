"""What pyramids have in common: stages on ever coarser grids, and timm's protocol around them.

A stage makes the grid smaller and then mixes tokens; a pyramid is a sequence of stages, a norm and
a classifier. Between stages there are maps (B, C, H, W), within them tokens (B, P + H * W, C) in
row-major order, behind P tokens without a place where a family has such. Nothing depends on the
size of the image. A family says what makes the grid smaller and which blocks a stage has, and
overrides the small methods whose meaning differs.
"""

from collections.abc import Sequence
from typing import Any, Tuple  # noqa: UP035 (TorchScript reads Tuple)

import torch
from timm.layers import DropPath, LayerNorm, LayerNorm2d, Mlp, get_device_dtype, trunc_normal_
from timm.models import checkpoint
from torch import Tensor, nn

from efficient_vits.attention._grid import to_image, to_tokens
from efficient_vits.models.reduced import taken_blocks

EPS = 1e-5  # of the layer norms


class Downsample(nn.Module):
    """Overlapping patches: a strided convolution and a norm, (B, C, H, W) -> (B, C', H', W').

    Args:
        in_chans: C.
        dim: C'.
        kernel_size: Rows and columns of a patch.
        stride: From patch to patch.
        padding: Rows and columns of zeros around the map.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        kernel_size: int = 3,
        stride: int = 2,
        padding: int = 1,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride, padding, **factory)
        self.norm = LayerNorm2d(dim, eps=EPS, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class GridBlock(nn.Module):
    """Pre-norm transformer block on a grid: ``x + attention(norm x)``, then ``x + mlp(norm x)``.

    Args:
        dim: Channels C.
        attn: The token mixer, called as ``attn(x, None, False, grid_size)``.
        mlp_ratio: Hidden channels of the MLP, in units of C.
        drop: Dropout in the MLP.
        drop_path: Probability that a half of the block is left out, per image.
        act_layer: Activation of the MLP.

    Shape: tokens (B, P + H * W, C) and their (H, W) -> the same tokens.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        *,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.norm1 = LayerNorm(dim, eps=EPS, **factory)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = LayerNorm(dim, eps=EPS, **factory)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop, **factory)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, grid_size: Tuple[int, int]) -> Tensor:  # noqa: UP006
        x = x + self.drop_path1(self.attn(self.norm1(x), None, False, grid_size))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """One level of a pyramid: a change of grid, then blocks.

    A family that adds tokens without a place does so in `begin` and sets `num_prefix_tokens`; what
    comes after the blocks is in `end`.

    Args:
        dim: Channels C.
        downsample: Makes the map of this level from the one before.
        blocks: Called with tokens (B, P + H * W, C) and their (H, W), give tokens of that shape.

    Shape: a map (B, C', H', W') -> a map (B, C, H, W), and prefix tokens (B, P, C).
    """

    def __init__(self, dim: int, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.dim = dim
        self.num_prefix_tokens = 0
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def begin(self, tokens: Tensor) -> Tensor:
        """What the first block gets, from the tokens of the smaller grid."""
        return tokens

    def end(self, tokens: Tensor) -> Tensor:
        """What becomes of the last block's tokens."""
        return tokens

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        x = self.downsample(x)
        H, W = x.shape[2], x.shape[3]
        tokens = self.begin(to_tokens(x))
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                tokens = checkpoint(block, tokens, (H, W))
            else:
                tokens = block(tokens, (H, W))
        tokens = self.end(tokens)
        P = self.num_prefix_tokens
        return to_image(tokens[:, P:], H, W), tokens[:, :P]


class Pyramid(nn.Module):
    """Stages, a norm, pooling, and a classifier, with timm's protocol.

    A family overrides what differs in it of `poolings`, `init_module`, `finish`, `pool_features`
    and `classify`, and calls `init_weights` once it is complete.

    Args:
        stages: The first at a quarter of the image's resolution, each at half of the one before;
            only the last may have prefix tokens.
        norm: After the last stage, on tokens or maps whose channels are last.
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier; 0 for none.
        global_pool: How features become one vector, one of `poolings`. With ``""`` nothing is
            pooled, and the classifier is applied to every token.
        drop_rate: Dropout in front of the classifier.

    Shape: images (B, in_chans, H, W) -> logits (B, num_classes).

    Raises:
        ValueError: A pooling that the family does not have.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        norm: nn.Module,
        *,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_prefix_tokens = stages[-1].num_prefix_tokens
        self.num_features = self.head_hidden_size = stages[-1].dim
        self.feature_info = [
            {"num_chs": stage.dim, "reduction": 4 * 2**i, "module": f"stages.{i}"}
            for i, stage in enumerate(stages)
        ]
        self.stages = nn.ModuleList(stages)
        self.norm = norm
        self.global_pool = self._checked(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._linear(num_classes, device, dtype)

    @torch.jit.ignore
    def poolings(self) -> tuple[str, ...]:
        """What `global_pool` can be."""
        return ("avg", "")

    @torch.jit.ignore
    def init_module(self, module: nn.Module) -> None:
        """Draw the weights of one layer, where they are not to be PyTorch's."""
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def finish(self, x: Tensor, prefix: Tensor) -> Tensor:
        """Features from the last map (B, C, H, W) and prefix tokens (B, P, C): the normed map."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def pool_features(self, x: Tensor) -> Tensor:
        """One vector (B, C) per image from the features, or with ``""`` the features."""
        return x.mean(dim=(2, 3)) if self.global_pool == "avg" else x

    def classify(self, x: Tensor) -> Tensor:
        """Logits of vectors (B, C), or of every place of unpooled features (B, C, H, W)."""
        if self.global_pool == "":
            return self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """What `finish` makes of the last stage's map."""
        for stage in self.stages:
            x, prefix = stage(x)
        return self.finish(x, prefix)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits from features, or the vectors in front of the classifier."""
        x = self.head_drop(self.pool_features(x))
        return x if pre_logits else self.classify(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Maps of the stages, and the features that `forward_features` gives.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Stages: the last n, a choice, or all.
            norm: Apply the model's norm to the last map, the only one that it fits.
            stop_early: Leave out what comes after the last of these stages.
            output_fmt: ``"NCHW"``, ``"NHWC"`` or ``"NLC"``.
            intermediates_only: Leave out the features.
            output_dict: Return a dict.

        Returns:
            Features and list of maps, the list, or a dict of ``image_features`` and
            ``image_intermediates``. The maps have no prefix tokens. Features are the last map that
            was computed where the last stage was left out.

        Raises:
            ValueError: Another `output_fmt`, or stages that the model does not have.
        """
        if output_fmt not in ("NCHW", "NHWC", "NLC"):
            raise ValueError(f"output_fmt must be NCHW, NHWC or NLC, got {output_fmt!r}")
        taken = taken_blocks(len(self.stages), indices)
        last = len(self.stages) - 1
        maps = []
        for i, stage in enumerate(self.stages):
            if stop_early and i > max(taken):
                break
            x, prefix = stage(x)
            if i in taken:
                y = x.permute(0, 2, 3, 1)
                y = self.norm(y) if norm and i == last else y
                maps.append(y.permute(0, 3, 1, 2) if output_fmt == "NCHW" else y)
        if output_fmt == "NLC":
            maps = [y.flatten(1, 2) for y in maps]
        results: dict[str, Any] = {"image_intermediates": maps}
        if not intermediates_only:
            complete = not stop_early or max(taken) == last
            results["image_features"] = self.finish(x, prefix) if complete else x
        if output_dict:
            return results
        return maps if intermediates_only else (results["image_features"], maps)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages after the last of `indices`, which need neither norm nor head.

        Returns:
            The indices that were meant, counted from the first stage.
        """
        taken = taken_blocks(len(self.stages), indices)
        cut = max(taken) < len(self.stages) - 1
        self.stages = self.stages[: max(taken) + 1]
        end: Any = self.stages[-1]
        self.num_prefix_tokens = end.num_prefix_tokens
        self.num_features = self.head_hidden_size = end.dim
        if cut or prune_norm:
            self.norm = nn.Identity().train(self.training)
        if cut or prune_head:
            self.reset_classifier(0, "")
        return taken

    @torch.jit.ignore
    def get_classifier(self) -> Any:
        """The classifier; an identity where there is none."""
        return self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier.

        Args:
            num_classes: Its outputs; 0 for none.
            global_pool: One of `poolings`; None keeps the pooling.

        Raises:
            ValueError: A pooling that the model does not have.
        """
        if global_pool is not None:
            self.global_pool = self._checked(global_pool)
        self.num_classes = num_classes
        self.head = self._linear(num_classes, **get_device_dtype(self))

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations within blocks again in the backward pass, or keep them."""
        stage: Any
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters from the input to the output: the stem, then blocks or stages.

        What comes before the blocks of a stage goes with its first, a norm with the last.
        """
        blocks = [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),
            (r"^stages\.(\d+)\.", (0,)),
        ]
        return {
            "stem": r"^stages\.0\.downsample",
            "blocks": r"^stages\.(\d+)" if coarse else blocks,
        }

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters of more than one dimension that are not decayed: none."""
        return set()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Draw all weights anew, also those without values after ``to_empty``; reset statistics."""
        module: Any
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            self.init_module(module)

    @torch.jit.ignore
    def _linear(self, num_classes: int, device: Any, dtype: Any) -> nn.Module:
        """A classifier of the features, drawn as the family's linear layers are."""
        if not num_classes:
            return nn.Identity().train(self.training)
        head = nn.Linear(self.num_features, num_classes, device=device, dtype=dtype)
        self.init_module(head)
        return head.train(self.training)

    @torch.jit.ignore
    def _checked(self, global_pool: str) -> str:
        if global_pool not in self.poolings():
            raise ValueError(
                f"global_pool of {type(self).__name__} must be one of {self.poolings()}, got "
                f"{global_pool!r}"
            )
        return global_pool
