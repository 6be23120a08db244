"""What families of stages on ever coarser grids have in common: timm's protocol.

Tokens lie on their grid, (B, H, W, C), within and between stages; images come and feature maps
leave as (B, C, H, W). Nothing depends on the size of the image.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from timm.models import checkpoint_seq
from torch import Tensor, nn

from efficient_vits.models.reduced import taken_blocks


class Downsample(nn.Module):
    """Overlapping patches: a strided convolution and a norm, (B, H, W, C) -> (B, H', W', C').

    Args:
        in_chans: C.
        dim: C'.
        kernel_size: Rows and columns of a patch; odd.
        stride: From patch to patch.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        kernel_size: int = 3,
        stride: int = 2,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.proj = nn.Conv2d(
            in_chans, dim, kernel_size, stride=stride, padding=kernel_size // 2, **factory
        )
        self.norm = nn.LayerNorm(dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """A change of grid, blocks, and a norm where there is one: (B, H, W, C) -> (B, H', W', C')."""

    def __init__(
        self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.Identity() if norm is None else norm
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)


class Pyramid(nn.Module):
    """Stages, a norm, pooling, and a classifier.

    Args:
        stages: The first at a quarter of the image's resolution, each at half of the one before.
        widths: Channels after each.
        norm: After the last stage.
        in_chans: Channels of the image.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: One of the class's `POOLS`. With ``""`` nothing is pooled: the classifier is
            applied to every token, and the output is a map.
        drop_rate: Dropout before the classifier.

    Shape: (B, in_chans, H, W) -> (B, num_classes).

    Raises:
        ValueError: Another `global_pool`.
    """

    #: What `global_pool` can be, the family's own choice first.
    POOLS: ClassVar[tuple[str, ...]] = ("avg", "")

    def __init__(
        self,
        stages: Sequence[Stage],
        widths: Sequence[int],
        norm: nn.Module,
        *,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = widths[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"stages.{i}"}
            for i, width in enumerate(widths)
        ]
        self._check_pool(global_pool)
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._linear(num_classes, device, dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """The map of the last stage, (B, in_chans, H, W) -> (B, C, H / 32, W / 32)."""
        x = self.stages(x.permute(0, 2, 3, 1))
        return self.norm(x).permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooling and classifier, (B, C, H, W) -> (B, num_classes), or (B, C) before it."""
        if self.global_pool == "avg":
            x = x.mean(dim=(2, 3))
        return self.classify(x, pre_logits)

    def classify(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of vectors (B, C) or, with ``global_pool=""``, of maps (B, C, H, W)."""
        x = self.head_drop(x)
        if pre_logits:
            return x
        if self.global_pool == "":
            return self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(x)

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
        """The maps of chosen stages, and the features.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Which stages: their indices, so many of the last, or None for all.
            norm: Apply the model's norm to the last map.
            stop_early: Do not run stages after the last that is chosen.
            output_fmt: ``"NCHW"`` or ``"NHWC"``, of the maps.
            intermediates_only: Return the maps alone.
            output_dict: Return ``image_features`` and ``image_intermediates`` by name.

        Raises:
            ValueError: Another `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {str(output_fmt)!r}")
        chosen = taken_blocks(len(self.stages), indices)
        maps, end = [], len(self.stages) - 1
        stages = self.stages[: max(chosen) + 1] if stop_early else self.stages
        x = x.permute(0, 2, 3, 1)
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in chosen:
                y = self.norm(x) if norm and i == end else x
                maps.append(y.permute(0, 3, 1, 2) if output_fmt == "NCHW" else y)
        if not intermediates_only:
            x = self.norm(x) if len(stages) == len(self.stages) else x
            x = x.permute(0, 3, 1, 2)
        if output_dict:
            features = {} if intermediates_only else {"image_features": x}
            return {**features, "image_intermediates": maps}
        return maps if intermediates_only else (x, maps)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what comes after the last chosen stage; returns the indices of those chosen.

        Norm and classifier are made for the last stage: they go with it.
        """
        chosen = taken_blocks(len(self.stages), indices)
        last = max(chosen)
        shorter = last + 1 < len(self.stages)
        self.stages = self.stages[: last + 1]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or shorter:
            self.norm = nn.Identity().train(self.training)
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return chosen

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer; the identity without classes."""
        return self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier.

        Args:
            num_classes: Classes; 0 leaves the classifier out.
            global_pool: One of `POOLS`; None keeps the pooling.

        Raises:
            ValueError: Another `global_pool`.
        """
        if global_pool is not None:
            self._check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = next(self.parameters())
        self.head = self._linear(num_classes, like.device, like.dtype)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: keep the inputs of blocks, run these again."""
        stage: Any
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters by depth, for layer-wise learning rates: by stage if coarse, or by block.

        The change of grid is in the group of the block after it, a norm in that of the one before.
        """
        blocks = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),
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
        """Draw all weights anew, also those without values after ``to_empty``."""
        module: Any
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        """The family's own initialisation, where it is not PyTorch's."""
        raise NotImplementedError

    def _linear(self, num_classes: int, device: Any, dtype: Any) -> nn.Module:
        if not num_classes:
            return nn.Identity().train(self.training)
        head = nn.Linear(self.num_features, num_classes, device=device, dtype=dtype)
        self._init_weights(head)
        return head.train(self.training)

    def _check_pool(self, global_pool: str) -> None:
        if global_pool not in self.POOLS:
            raise ValueError(
                f"{type(self).__name__} has global_pool={' or '.join(map(repr, self.POOLS))}, got "
                f"{global_pool!r}"
            )
