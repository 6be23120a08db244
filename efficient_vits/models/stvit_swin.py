r"""STViT-R-Swin: Swin whose third stage works on a few semantic tokens per window.

The stage makes semantic tokens of the patches, lets these exchange information, and recovers the
patches from them (`efficient_vits.models._semantic_stage` has the six layers). The map is dense
again after that, so that the model is a backbone like Swin.

Source: Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View", CVPR
2023 (arXiv 2303.08685), section 3, and the network of its experiments with Swin. Written
anew; the authors' code is MIT. The shell is timm's `SwinTransformer` (Apache-2.0), after Liu et
al., "Swin Transformer", ICCV 2021 (arXiv 2103.14030). As in the benchmark's runs there is
LayerScale, but not in the layer of window attention that a unit begins with.
"""

import functools
import math
import re
from collections import OrderedDict
from typing import Any

import torch
from timm.layers import (
    DropPath,
    LayerNorm,
    LayerScale,
    resample_abs_pos_embed,
    resample_patch_embed,
    resize_rel_pos_bias_table,
    to_2tuple,
)
from timm.models.swin_transformer import PatchMerging, SwinTransformer
from torch import Tensor, nn

from efficient_vits import catalog
from efficient_vits._state import put
from efficient_vits.models import efficient_vits
from efficient_vits.models._semantic_stage import LAYERS, SIDE, SemanticStage

# Those of the Swins of the same name. The paper has all three, the benchmark ran ti.
SIZES: dict[str, dict[str, Any]] = {
    "ti": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "s": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "b": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}
STAGE = 2


def branch_end(
    dim: int, init_values: float | None, drop_path: float, **factory: Any
) -> nn.Sequential:
    """What a branch goes through before it is added: LayerScale, and dropping it at random."""
    parts: dict[str, nn.Module] = {}
    if init_values:
        parts["ls"] = LayerScale(dim, init_values, **factory)
    if drop_path:
        parts["drop"] = DropPath(drop_path)
    return nn.Sequential(OrderedDict(parts))


class STViTSwin(SwinTransformer):
    """Swin with semantic tokens in its third stage; timm's `SwinTransformer` otherwise.

    Args:
        img_size: Height and width of the input in pixels.
        window_size: Rows and columns of a window in patches, in all stages.
        init_values: Initial LayerScale; none without.

    The other arguments are those of timm's `SwinTransformer`.

    Raises:
        ValueError: There is no third stage, or its depth is not a multiple of six.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int | tuple[int, int] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        init_values: float | None = 1e-5,
        norm_layer: Any = LayerNorm,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if len(depths) <= STAGE:
            raise ValueError(f"semantic tokens live in the third stage, got {depths=}")
        shared = {"mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias, "norm_layer": norm_layer}
        shared |= {"device": device, "dtype": dtype}
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            # The third stage is put in its place below; timm would build Swin's blocks.
            depths=tuple(0 if i == STAGE else n for i, n in enumerate(depths)),
            num_heads=num_heads,
            window_size=window_size,
            drop_rate=drop_rate,
            proj_drop_rate=proj_drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=0.0,
            weight_init="skip",
            **shared,
        )
        self.weight_init_mode = ""
        self.window_size = to_2tuple(window_size)
        rows, columns = self.patch_embed.grid_size
        scale = 2**STAGE
        layers = sum(depths)
        rates = [drop_path_rate * i / max(layers - 1, 1) for i in range(layers)]
        before = sum(depths[:STAGE])
        self.layers[STAGE] = SemanticStage(
            PatchMerging(embed_dim * scale // 2, norm_layer=norm_layer, device=device, dtype=dtype),
            (-(-rows // scale), -(-columns // scale)),
            depths[STAGE],
            rates[before : before + depths[STAGE]],
            dim=embed_dim * scale,
            num_heads=num_heads[STAGE],
            window_size=self.window_size,
            init_values=init_values,
            proj_drop=proj_drop_rate,
            attn_drop=attn_drop_rate,
            **shared,
        )
        # Swin has no LayerScale: it goes to where the branches are dropped.
        factory = {"device": device, "dtype": dtype}
        stage: Any
        for i, stage in enumerate(self.layers):
            for j, block in enumerate(() if i == STAGE else stage.blocks):
                rate = rates[sum(depths[:i]) + j]
                block.drop_path1 = branch_end(block.dim, init_values, rate, **factory)
                block.drop_path2 = branch_end(block.dim, init_values, rate, **factory)
        self.init_weights()

    @torch.jit.ignore
    def set_input_size(
        self,
        img_size: tuple[int, int] | None = None,
        patch_size: tuple[int, int] | None = None,
        window_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Change the input resolution; windows keep their size unless another is given.

        Args:
            img_size: New height and width in pixels; None keeps them.
            patch_size: New height and width of a patch in pixels; None keeps them.
            window_size: New rows and columns of a window in patches; None keeps them.
        """
        if img_size is not None or patch_size is not None:
            self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        if window_size is not None:
            self.window_size = to_2tuple(window_size)
        stage: Any
        for i, stage in enumerate(self.layers):
            self.feature_info[i]["reduction"] = max(self.patch_embed.patch_size) * 2**i
            scale = 2 ** max(i - 1, 0)
            size = tuple(-(-length // scale) for length in self.patch_embed.grid_size)
            stage.set_input_size(size, self.window_size)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Position biases and learned centres."""
        return super().no_weight_decay() | {f"layers.{STAGE}.blocks.0.centres"}

    @torch.jit.ignore
    def token_maps(self, x: Tensor) -> list[Tensor]:
        """Which semantic token every patch of the third stage takes most from when it is recovered.

        Args:
            x: Images (B, 3, H, W).

        Returns:
            For each unit (B, patches) indices of semantic tokens, 9 to a window. Both are in the
            order of their grid, row by row.
        """
        x = self.layers[:STAGE](self.patch_embed(x))
        stage: Any = self.layers[STAGE]
        x, maps = stage.downsample(x), []
        for unit in stage.blocks:
            y = unit.base(x)
            weights = unit.recover.weights(y.flatten(1, 2), unit.tokens(y))
            maps.append(weights.argmax(dim=2))
            x = unit(x)
        return maps

    @torch.jit.ignore
    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """timm's, and with ``output_dict=True`` its results by name."""
        output_dict = kwargs.pop("output_dict", False)
        result = super().forward_intermediates(x, *args, **kwargs)
        if not output_dict:
            return result
        if isinstance(result, list):
            return {"image_intermediates": result}
        features, maps = result
        return {"image_features": features, "image_intermediates": maps}

    @torch.jit.ignore
    def resample_parameter(self, name: str, value: Tensor) -> Tensor:
        """Parameters of another, square, resolution and windows brought to this one."""
        own = self.get_parameter(name)
        if name == "patch_embed.proj.weight" and value.ndim == 4 and value.numel():
            return resample_patch_embed(value, list(self.patch_embed.patch_size))
        if name.endswith("relative_position_bias_table") and value.shape[1:] == own.shape[1:]:
            window = self.get_submodule(name.rpartition(".")[0]).window_size
            return resize_rel_pos_bias_table(value, window, own.shape)
        if name.endswith("centres") and value.ndim == 3 and value.numel():
            unit: Any = self.get_submodule(name.rpartition(".")[0])
            side = math.isqrt(value.shape[1])
            if side**2 == value.shape[1]:
                grid = [unit.down * SIDE, unit.across * SIDE]
                return resample_abs_pos_embed(value, grid, [side, side], num_prefix_tokens=0)
        return value

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours."""
        if "layers.0.downsample.reduction.weight" not in state:  # there it ends a stage
            return state
        out: dict[str, Tensor] = {}
        for name, value in state.items():
            if name.endswith(("relative_position_index", "attn_mask")):
                continue
            put(out, _own_name(name), value)
        return out


def _own_name(name: str) -> str:
    """One of the benchmark's names in ours."""
    name = re.sub(r"^head\.", "head.fc.", name)
    name = re.sub(
        r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name
    )
    if not name.startswith(f"layers.{STAGE}."):
        return re.sub(r"\.layer_scale_(\d)$", r".drop_path\1.ls.gamma", name)
    name = name.replace(f"layers.{STAGE}.semantic_token2", f"layers.{STAGE}.blocks.0.centres")
    name = re.sub(r"\.layer_scale_(\d)$", r".ls\1.gamma", name)
    if "centres" in name:
        return name

    def unit(m: re.Match[str]) -> str:
        number, layer = divmod(int(m[1]), len(LAYERS))
        return f"layers.{STAGE}.blocks.{number}.{LAYERS[layer]}."

    return re.sub(rf"^layers\.{STAGE}\.blocks\.(\d+)\.", unit, name)


def _merge(host: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {**host, **arguments}


_NAMES = {f"stvit_swin_{size}_w7": size for size in SIZES}
for _name, _size in _NAMES.items():
    efficient_vits.add_entry_point(
        _name,
        STViTSwin,
        doc=(
            f"Swin-{_size.capitalize()} with windows of 7, semantic tokens in its third stage.\n\n"
            f"Takes all arguments of `STViTSwin`."
        ),
        cfg={
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
            "pool_size": (7, 7),
        },
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        merge=functools.partial(_merge, SIZES[_size]),
    )
    catalog.derive(_name, axis="reduction", relatives=list(_NAMES))
