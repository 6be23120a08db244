r"""HiViT: a ViT whose patch embedding is hierarchical, with MLPs alone before its blocks.

    y = x + W_2 gelu(W_1 norm(x))           twice per block of the first two stages
    x <- W norm(four neighbours of x)        between stages: half the resolution, twice the channels

The image becomes patches of 4 x 4 pixels. Two stages of MLPs, which mix no tokens, and two mergers
turn these into patches of 16 x 16; on them stands a ViT with absolute and relative positions.

Source: Zhang et al., "HiViT: A Simpler and More Efficient Design of Hierarchical Vision
Transformer", ICLR 2023 (arXiv 2205.14949), section 3. Written anew (the authors' code is MIT); the
ViT's blocks are timm's (Apache-2.0). Width, blocks per stage and heads:

    hivit_ti16      192, (1, 1, 10), 3   as the benchmark ran it: half as wide as HiViT-T
    hivit_t16_384d  384, (1, 1, 10), 6   HiViT-T of the paper
    hivit_s16       384, (2, 2, 20), 6   HiViT-S
    hivit_b16       512, (2, 2, 20), 8   HiViT-B
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import (
    LayerNorm,
    PatchEmbed,
    RelPosBias,
    get_device_dtype,
    to_2tuple,
    trunc_normal_,
)
from timm.models.swin_transformer import PatchMerging
from timm.models.vision_transformer_relpos import RelPosBlock
from torch import Tensor, nn

from efficient_vits import catalog
from efficient_vits._state import put
from efficient_vits.models import efficient_vits
from efficient_vits.models._hivit_stages import MlpBlock, MlpStage, ViTStage
from efficient_vits.models.reduced import taken_blocks

SIZES: dict[str, dict[str, Any]] = {
    "hivit_ti16": {"embed_dim": 192, "depths": (1, 1, 10), "num_heads": 3},
    "hivit_t16_384d": {"embed_dim": 384, "depths": (1, 1, 10), "num_heads": 6},
    "hivit_s16": {"embed_dim": 384, "depths": (2, 2, 20), "num_heads": 6},
    "hivit_b16": {"embed_dim": 512, "depths": (2, 2, 20), "num_heads": 8},
}


class HiViT(nn.Module):
    """HiViT.

    Args:
        img_size: Height and width of the input in pixels, multiples of `patch_size`.
        patch_size: Pixels along one side of a patch of the ViT, a multiple of 4.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for none.
        global_pool: ``"avg"``, or empty for none.
        embed_dim: Channels of the ViT, a multiple of 4; the first stage has a quarter of them.
        depths: Blocks of the three stages; in the first two a block is two MLPs.
        num_heads: Heads of the ViT.
        stem_mlp_ratio: Channels inside an MLP over those outside, in the first two stages.
        mlp_ratio: Likewise in the ViT.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after projections and inside MLPs.
        attn_drop_rate: Dropout on attention weights.
        drop_path_rate: Stochastic depth in the last block.

    Shape: (B, in_chans, H, W) -> (B, num_classes).

    Raises:
        ValueError: A size that does not divide, or an unknown pooling.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 192,
        depths: Sequence[int] = (1, 1, 10),
        num_heads: int = 3,
        stem_mlp_ratio: float = 3.0,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if patch_size % 4 or embed_dim % 4 or len(depths) != 3:
            raise ValueError(
                f"hivit needs patch_size and embed_dim divisible by 4 and three depths, got "
                f"{patch_size=}, {embed_dim=}, {depths=}"
            )
        factory = {"device": device, "dtype": dtype}
        self.patch_size, self.in_chans, self.num_classes = patch_size, in_chans, num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.global_pool = _checked_pool(global_pool)
        grid_size = self._grid_of(to_2tuple(img_size))
        norm = functools.partial(LayerNorm, eps=1e-6)

        self.patch_embed = PatchEmbed(
            to_2tuple(img_size),
            patch_size // 4,
            in_chans,
            embed_dim // 4,
            norm_layer=norm,
            flatten=False,
            output_fmt="NHWC",
            **factory,
        )
        counts = [2 * depths[0], 2 * depths[1], depths[2]]
        rates = torch.linspace(0, drop_path_rate, sum(counts), device="cpu").split(counts)

        def merger(dim: int) -> nn.Module:
            return PatchMerging(dim // 2, dim, norm_layer=norm, **factory)

        def mlps(dim: int, stage: int) -> list[nn.Module]:
            return [
                MlpBlock(dim, stem_mlp_ratio, proj_drop_rate, rate, norm, **factory)
                for rate in rates[stage].tolist()
            ]

        vit_blocks = [
            RelPosBlock(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias=True,
                rel_pos_cls=functools.partial(RelPosBias, window_size=grid_size),
                proj_drop=proj_drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=rate,
                norm_layer=norm,
                **factory,
            )
            for rate in rates[2].tolist()
        ]
        self.stages = nn.Sequential(
            MlpStage(nn.Identity(), mlps(embed_dim // 4, 0)),
            MlpStage(merger(embed_dim // 2), mlps(embed_dim // 2, 1)),
            ViTStage(merger(embed_dim), vit_blocks, embed_dim, grid_size, **factory),
        )
        self.feature_info = [
            {"module": f"stages.{i}", "num_chs": embed_dim // 4 * 2**i, "reduction": reduction}
            for i, reduction in enumerate((patch_size // 4, patch_size // 2, patch_size))
        ]
        self.fc_norm = norm(embed_dim, **factory)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **factory) if num_classes else nn.Identity()
        self.init_weights()

    def _grid_of(self, img_size: tuple[int, int]) -> tuple[int, int]:
        height, width = img_size
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"hivit needs sizes divisible by its patch size {self.patch_size}, got {img_size=}"
            )
        return height // self.patch_size, width // self.patch_size

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Draw all weights anew, also those without values after ``to_empty``."""
        module: Any
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, ViTStage):
                trunc_normal_(module.pos_embed, std=0.02)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the absolute and relative positions."""
        names = ("pos_embed", "relative_position_bias_table")
        return {name for name, _ in self.named_parameters() if name.endswith(names)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters from the image on, for layer-wise learning rates."""
        fine = [
            (r"^stages\.(\d+)\.(?:downsample|pos_embed)", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^fc_norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": r"^stages\.(\d+)" if coarse else fine}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass."""
        stage: Any
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Change the input resolution; positions are resampled.

        Args:
            img_size: New height and width in pixels.
        """
        grid_size = self._grid_of(to_2tuple(img_size))
        self.patch_embed.set_input_size(img_size=to_2tuple(img_size))
        for stage in self.stages:
            if isinstance(stage, ViTStage):
                stage.set_grid_size(grid_size)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: Classes; 0 for none.
            global_pool: ``"avg"``, empty for none; None keeps what is there.
        """
        if global_pool is not None:
            self.global_pool = _checked_pool(global_pool)
        self.num_classes = num_classes
        factory = get_device_dtype(self)
        self.head = (
            nn.Linear(self.num_features, num_classes, **factory) if num_classes else nn.Identity()
        )
        self.head.train(self.training)

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
        """Features and the maps after some of the stages.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Stages to take, the last n of them, or all.
            norm: Apply the final norm to the map of the last stage.
            stop_early: Leave out stages after the last one taken.
            output_fmt: ``"NCHW"`` or ``"NHWC"``.
            intermediates_only: Return the maps alone.
            output_dict: Return a dict.

        Raises:
            ValueError: Another `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"hivit gives maps as NCHW or NHWC, got {output_fmt=}")
        taken = taken_blocks(len(self.stages), indices)
        x, maps = self.patch_embed(x), []
        for i, stage in enumerate(self.stages[: max(taken) + 1] if stop_early else self.stages):
            x = stage(x)
            if i in taken:
                y = self.fc_norm(x) if norm and isinstance(stage, ViTStage) else x
                maps.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        if output_dict:
            features = {} if intermediates_only else {"image_features": x}
            return {**features, "image_intermediates": maps}
        return maps if intermediates_only else (x, maps)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages after the last one that `indices` takes; returns what it takes."""
        taken = taken_blocks(len(self.stages), indices)
        last = max(taken)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if prune_norm or shortened:
            self.fc_norm = nn.Identity()
        if shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, rows, columns, C)."""
        return self.stages(self.patch_embed(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, norm and classify; `pre_logits` leaves the classifier out."""
        if self.global_pool == "avg":
            x = x.mean(dim=(1, 2))
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the benchmark's code and of the authors', whose blocks are one list."""
        merges = sorted(
            int(name.split(".")[1]) for name in state if name.endswith("reduction.weight")
        )
        out: dict[str, Tensor] = {}
        for name, value in state.items():
            if name.endswith("relative_position_index"):
                continue  # it follows from the grid
            match = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
            if name in ("pos_embed", "absolute_pos_embed"):
                name = "stages.2.pos_embed"
            elif match is not None:
                name = _block_name(int(match[1]), match[2], merges)
            put(out, name, value)
        return out


def _block_name(index: int, rest: str, merges: list[int]) -> str:
    """Our name of a parameter of block `index` of the list; `merges` says where mergers stand."""
    stage = sum(merge < index for merge in merges)
    if index in merges:
        return f"stages.{stage + 1}.downsample.{rest}"
    first = merges[stage - 1] + 1 if stage else 0
    if stage < 2:
        rest = rest.replace("norm2.", "norm.")
    rest = rest.replace("attn.relative_position", "attn.rel_pos.relative_position")
    return f"stages.{stage}.blocks.{index - first}.{rest}"


def _checked_pool(global_pool: str) -> str:
    if global_pool not in ("avg", ""):
        raise ValueError(f"hivit pools by 'avg' or '' (not at all), got {global_pool=}")
    return global_pool


def _merge(size: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {**size, **arguments}


for _name, _size in SIZES.items():
    efficient_vits.add_entry_point(
        _name,
        HiViT,
        doc=(
            f"HiViT, {_size['embed_dim']} wide, with {_size['depths']} blocks.\n\n"
            f"Takes all arguments of `HiViT`."
        ),
        cfg={
            "fixed_input_size": True,
            "pool_size": (14, 14),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        merge=functools.partial(_merge, _size),
    )
    catalog.derive(_name, axis="mlp", relatives=list(SIZES))
