"""What pyramids have in common: stages of pre-norm blocks, and timm's protocol around them.

A stage makes the grid smaller and then mixes tokens; a pyramid is a sequence of stages, a norm and
a classifier. A family says what makes the grid smaller, which mixer its blocks have, and what
becomes of the last map.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Optional, Tuple  # noqa: UP035 (TorchScript reads Tuple)

import torch
from timm.layers import DropPath, LayerNorm, Mlp, get_device_dtype, trunc_normal_
from timm.models import checkpoint
from torch import Tensor, nn

from efficient_vits.attention._grid import to_image, to_tokens
from efficient_vits.models.reduced import taken_blocks

EPS = 1e-5  # of the layer norms


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
    """One level of a pyramid.

    Args:
        dim: Channels C.
        downsample: Makes the map of this level from the one before.
        blocks: Blocks of this level.
        class_token: A class token takes part in this level, and in this one only.

    Shape: a map (B, C', H', W') -> a map (B, C, H, W), and the class token (B, 1, C) or None.
    """

    def __init__(
        self,
        dim: int,
        downsample: nn.Module,
        blocks: Sequence[nn.Module],
        *,
        class_token: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.num_prefix_tokens = int(class_token)
        self.grad_checkpointing = False
        self.downsample = downsample
        self.cls_token = (
            nn.Parameter(torch.empty(1, 1, dim, device=device, dtype=dtype))
            if class_token
            else None
        )
        self.blocks = nn.ModuleList(blocks)

    def reset_parameters(self) -> None:
        """Draw the class token anew."""
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tuple[Tensor, Optional[Tensor]]:  # noqa: UP006
        x = self.downsample(x)
        B, _, H, W = x.shape
        tokens = to_tokens(x)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(B, -1, -1), tokens], dim=1)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                tokens = checkpoint(block, tokens, (H, W))
            else:
                tokens = block(tokens, (H, W))
        prefix: Optional[Tensor] = None
        if self.cls_token is not None:
            prefix = tokens[:, : self.num_prefix_tokens]
            tokens = tokens[:, self.num_prefix_tokens :]
        return to_image(tokens, H, W), prefix


class Pyramid(nn.Module):
    """A sequence of stages with timm's protocol.

    A family adds `finish`, `pool` and `pools`, and calls `init_weights` once it is complete.

    Args:
        stages: From the finest level to the coarsest; only the last may have a class token.
        reductions: Pixels per row of each level's map.
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier; 0 for none.
        global_pool: How features become one vector: one of `pools`.
        drop_rate: Dropout in front of the classifier.

    Raises:
        ValueError: A pooling that the family does not have.
    """

    pools: ClassVar[tuple[str, ...]] = ("avg", "")

    def __init__(
        self,
        stages: Sequence[Stage],
        reductions: Sequence[int],
        *,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_prefix_tokens = stages[-1].num_prefix_tokens
        self.num_features = self.head_hidden_size = stages[-1].dim
        self.feature_info = [
            {"num_chs": stage.dim, "reduction": reduction, "module": f"stages.{i}"}
            for i, (stage, reduction) in enumerate(zip(stages, reductions, strict=True))
        ]
        self.stages = nn.ModuleList(stages)
        self.norm = LayerNorm(self.num_features, eps=EPS, **factory)
        self.global_pool = self._checked(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = (
            nn.Linear(self.num_features, num_classes, **factory)
            if num_classes > 0
            else nn.Identity()
        )

    @torch.jit.ignore
    def _checked(self, global_pool: str) -> str:
        possible = [p for p in self.pools if p != "token" or self.num_prefix_tokens]
        if global_pool not in possible:
            raise ValueError(f"global_pool must be one of {possible}, got {global_pool!r}")
        return global_pool

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Draw all weights anew and reset running statistics."""
        module: Any
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the class tokens."""
        return {name for name, _ in self.named_parameters() if name.endswith(".cls_token")}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters from the input to the output: the stem, then blocks or stages."""
        blocks = [
            (r"^stages\.(\d+)\.(?:downsample|cls_token)", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
        ]
        return {
            "stem": r"^stages\.0\.downsample",
            "blocks": r"^stages\.(\d+)" if coarse else blocks,
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations within blocks again in the backward pass, or keep them."""
        stage: Any
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier; an identity where there is none."""
        return self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, of 0 classes for none; pooling stays as it is unless given."""
        if global_pool is not None:
            self.global_pool = self._checked(global_pool)
        self.num_classes = num_classes
        factory = get_device_dtype(self)
        self.head = (
            nn.Linear(self.num_features, num_classes, **factory)
            if num_classes > 0
            else nn.Identity()
        )
        self.head.train(self.training)

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
        if cut:
            self.num_prefix_tokens = end.num_prefix_tokens
            self.num_features = self.head_hidden_size = end.dim
        if cut or prune_norm:
            self.norm = nn.Identity()
        if cut or prune_head:
            self.reset_classifier(0, "")
        return taken

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
            ``image_intermediates``. The maps have no class token.
        """
        if output_fmt not in ("NCHW", "NHWC", "NLC"):
            raise ValueError(f"output_fmt must be NCHW, NHWC or NLC, got {output_fmt!r}")
        taken = taken_blocks(len(self.stages), indices)
        last = len(self.stages) - 1
        maps, prefix = [], None
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

    def finish(self, x: Tensor, prefix: Optional[Tensor]) -> Tensor:
        """Features from the last map (B, C, H, W) and class token (B, 1, C)."""
        raise NotImplementedError

    def pool(self, x: Tensor) -> Tensor:
        """One vector (B, C) per image from the features, or the features themselves."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        prefix: Optional[Tensor] = None
        for stage in self.stages:
            x, prefix = stage(x)
        return self.finish(x, prefix)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
