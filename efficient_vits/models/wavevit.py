r"""Wave-ViT: a pyramid whose attention shrinks keys and values by a wavelet transform.

    x + mixer(norm x),    then x + mlp(norm x),    mlp = W_2 gelu(DWConv_3(W_1 x))

The mixer of the two fine stages is `WaveletsBlock`, that of the two coarse ones softmax attention.
At the end, the mean of all tokens attends to them once (class attention) and is classified.

Source: Yao et al., "Wave-ViT: Unifying Wavelet and Transformers for Visual Representation
Learning", ECCV 2022 (arXiv 2207.04978), section 3. Written anew (the authors' code is Apache-2.0)
on timm's `Attention`, PVTv2's MLP and VOLO's class block. Images may have any size: grids are
padded in the transform. The published weights come from a training with token labelling and have
a classifier of patches too, ``token_label=True``; MixToken, an augmentation of that training,
belongs to the recipe and is not here.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Tuple  # noqa: UP035 (TorchScript reads Tuple)

import torch
from timm.layers import (
    Attention,
    ConvNormAct,
    DropPath,
    LayerNorm,
    calculate_drop_path_rates,
    get_device_dtype,
)
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from timm.models.volo import ClassBlock
from torch import Tensor, nn

from efficient_vits import catalog
from efficient_vits.attention._grid import to_tokens
from efficient_vits.attention.wavelet import WaveletsBlock
from efficient_vits.models import efficient_vits
from efficient_vits.models._pyramid import Downsample, Pyramid, Stage

NORM = functools.partial(LayerNorm, eps=1e-6)


class Stem(nn.Module):
    """Three convolutions at half resolution, and patches of them: (B, C, H, W) -> (B, C', H', W').

    Args:
        in_chans: C.
        hidden: Channels at half resolution.
        dim: C'.
    """

    def __init__(self, in_chans: int, hidden: int, dim: int, **factory: Any) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_chans, hidden, 7, stride=2, **factory)
        self.conv2 = ConvNormAct(hidden, hidden, 3, **factory)
        self.conv3 = ConvNormAct(hidden, hidden, 3, **factory)
        self.embed = Downsample(hidden, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.conv3(self.conv2(self.conv1(x))))


class WaveBlock(nn.Module):
    """Transformer block on a grid, with a convolution in its MLP.

    Args:
        dim: Channels.
        num_heads: Heads.
        mlp_ratio: Hidden channels of the MLP, in multiples of `dim`.
        sr_ratio: Of the wavelet attention; 0 for softmax attention.
        drop_path: Probability of leaving out a residual branch in training.

    Shape: tokens (B, H * W, dim) and their (H, W) -> the same tokens.
    """

    wavelets: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        sr_ratio: int,
        drop_path: float,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.wavelets = sr_ratio > 0
        self.norm1 = NORM(dim, **factory)
        self.attn: nn.Module
        if self.wavelets:
            self.attn = WaveletsBlock(dim, num_heads, sr_ratio=sr_ratio, **factory)
        else:
            self.attn = Attention(dim, num_heads, qkv_bias=True, **factory)
        self.norm2 = NORM(dim, **factory)
        self.mlp = MlpWithDepthwiseConv(dim, int(dim * mlp_ratio), **factory)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, grid_size: Tuple[int, int]) -> Tensor:  # noqa: UP006
        y = self.norm1(x)
        y = self.attn(y.unflatten(1, grid_size)).flatten(1, 2) if self.wavelets else self.attn(y)
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x), [grid_size[0], grid_size[1]]))


class NormedStage(Stage):
    """A level with a norm at its end; the arguments are those of `Stage`."""

    def __init__(
        self, dim: int, downsample: nn.Module, blocks: Sequence[nn.Module], **factory: Any
    ) -> None:
        super().__init__(dim, downsample, blocks)
        self.norm = NORM(dim, **factory)

    def end(self, tokens: Tensor) -> Tensor:
        """The tokens, normed."""
        return self.norm(tokens)


class ClassPool(nn.Module):
    """The mean of all tokens, after it attended to them, in front of the tokens; all normed.

    Shape: (B, dim, H, W) -> (B, 1 + H * W, dim).
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, **factory: Any) -> None:
        super().__init__()
        self.block = ClassBlock(
            dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=NORM, **factory
        )
        self.norm = NORM(dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = to_tokens(x)
        return self.norm(self.block(torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)))


class WaveViT(Pyramid):
    """Wave-ViT.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: ``"token"`` for class attention, ``""`` for none: the output is then a map.
        stem_dim: Channels at half resolution.
        embed_dims: Channels of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        mlp_ratios: Hidden channels of each stage's MLPs, in multiples of its channels.
        sr_ratios: Of each stage's wavelet attention; 0 for softmax attention.
        token_label: Have a classifier of patches. Half of the largest logit that any patch gives to
            a class is added to the image's, in evaluation and training alike; `forward_train` gives
            both by themselves, for a loss with labels of patches.
        drop_rate: Dropout before the classifiers.
        drop_path_rate: Probability of leaving out a residual branch of the last block in training;
            smaller in blocks before it.

    Shape: (B, in_chans, H, W) -> (B, num_classes).
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        stem_dim: int = 32,
        embed_dims: Sequence[int] = (64, 128, 320, 448),
        depths: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (2, 4, 10, 14),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        sr_ratios: Sequence[int] = (4, 2, 0, 0),
        token_label: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=False)
        stages: list[Stage] = []
        first = 0
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            if i == 0:
                change: nn.Module = Stem(in_chans, stem_dim, dim, **factory)
            else:
                change = Downsample(embed_dims[i - 1], dim, **factory)
            blocks = [
                WaveBlock(dim, num_heads[i], mlp_ratios[i], sr_ratios[i], rate, **factory)
                for rate in rates[first : first + depth]
            ]
            first += depth
            # The last norm comes after class attention.
            if i + 1 < len(depths):
                stages.append(NormedStage(dim, change, blocks, **factory))
            else:
                stages.append(Stage(dim, change, blocks))
        super().__init__(
            stages,
            nn.Identity(),
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **factory,
        )
        self.num_heads = tuple(num_heads)
        self.mlp_ratios = tuple(mlp_ratios)
        self.token_label = token_label
        self.pool = self._pool(device, dtype)
        self._add_aux_head(device, dtype)
        self.init_weights()

    @torch.jit.ignore
    def poolings(self) -> tuple[str, ...]:
        """What `global_pool` can be."""
        return ("token", "")

    @torch.jit.ignore
    def init_module(self, module: nn.Module) -> None:
        """Draw the weights of one layer, convolutions for a variance that is kept."""
        super().init_module(module)
        if isinstance(module, nn.Conv2d):
            rows, columns = module.kernel_size
            fan_out = rows * columns * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) from the last map, or the vectors in front of the classifier."""
        x = self.head_drop(self.pool(x))
        if self.global_pool == "":
            return x if pre_logits else self.classify(x)
        token = x[:, 0]
        if pre_logits:
            return token
        logits = self.classify(token)
        if self.has_aux_head:
            logits = logits + 0.5 * self.aux_head(x[:, 1:]).amax(dim=1)
        return logits

    @torch.jit.ignore
    def forward_train(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the image and of its patches, for training with token labels.

        Args:
            x: Images (B, in_chans, H, W).

        Returns:
            (B, num_classes), and (B, H / 32 * W / 32, num_classes) row by row.

        Raises:
            ValueError: The model has no classifier of patches.
        """
        if not self.has_aux_head:
            raise ValueError(
                "forward_train needs a model with token_label=True, classes and pooling, got "
                f"token_label={self.token_label}, num_classes={self.num_classes}, "
                f"global_pool={self.global_pool!r}"
            )
        x = self.head_drop(self.pool(self.forward_features(x)))
        return self.head(x[:, 0]), self.aux_head(x[:, 1:])

    @torch.jit.ignore
    def get_classifier(self) -> Any:
        """The last linear layer; of a model with token labels, that of the patches too."""
        return (self.head, self.aux_head) if self.has_aux_head else self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, and class attention where there was none.

        Args:
            num_classes: Classes; 0 leaves the classifier out.
            global_pool: ``"token"`` or ``""``; None keeps the pooling.

        Raises:
            ValueError: Another `global_pool`.
        """
        before = self.global_pool
        super().reset_classifier(num_classes, global_pool)
        factory = get_device_dtype(self)
        self._add_aux_head(**factory)
        if self.global_pool != before:
            self.pool = self._pool(**factory)
            self.pool.apply(self.init_module)

    def _add_aux_head(self, device: Any, dtype: Any) -> None:
        self.has_aux_head = bool(self.token_label and self.num_classes and self.global_pool)
        classes = self.num_classes if self.has_aux_head else 0
        self.aux_head = self._linear(classes, device, dtype)

    def _pool(self, device: Any, dtype: Any) -> nn.Module:
        if not self.global_pool:
            return nn.Identity().train(self.training)
        last = len(self.stages) - 1
        pool = ClassPool(
            self.num_features,
            self.num_heads[last],
            self.mlp_ratios[last],
            device=device,
            dtype=dtype,
        )
        return pool.train(self.training)

    @staticmethod
    def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The names of the authors' code, which are the benchmark's too, to ours."""
        # The constants of the transform are written by the modules themselves.
        named = {n: v for n, v in state.items() if not re.search(r"\.attn\.i?dwt\.", n)}
        # Softmax attention has one matrix for queries, keys and values here.
        for kv in [n for n in named if re.match(r"block\d+\.\d+\.attn\.kv\.(weight|bias)$", n)]:
            q = kv.replace(".kv.", ".q.")
            if q in named:
                named[kv.replace(".kv.", ".qkv.")] = torch.cat([named.pop(q), named.pop(kv)])
        last = max([int(n[5]) for n in named if re.match(r"block\d\.", n)], default=0)
        return {_renamed(name, last): value for name, value in named.items()}


# Names of the authors' code below a stage, and ours.
STAGE_PARTS = {"patch_embed": "downsample", "block": "blocks", "norm": "norm"}
PARTS = {
    r"^stages\.0\.downsample\.(proj|norm)\.": r"stages.0.downsample.embed.\1.",
    r"\.downsample\.conv\.0\.": ".downsample.conv1.conv.",
    r"\.downsample\.conv\.1\.": ".downsample.conv1.bn.",
    r"\.downsample\.conv\.3\.": ".downsample.conv2.conv.",
    r"\.downsample\.conv\.4\.": ".downsample.conv2.bn.",
    r"\.downsample\.conv\.6\.": ".downsample.conv3.conv.",
    r"\.downsample\.conv\.7\.": ".downsample.conv3.bn.",
    r"\.attn\.(reduce|filter)\.0\.": r".attn.\1.conv.",
    r"\.attn\.(reduce|filter)\.1\.": r".attn.\1.bn.",
    r"\.attn\.kv\.0\.": ".attn.kv_norm.",
    r"\.attn\.kv\.1\.": ".attn.kv.",
    r"\.mlp\.dwconv\.dwconv\.": ".mlp.dwconv.",
    r"^post_network\.0\.": "pool.block.",
}


def _renamed(name: str, last: int) -> str:
    """Our name for one of the authors' code, whose stages are counted from 1 to `last`."""
    part = re.match(r"(patch_embed|block|norm)(\d)\.", name)
    if part is not None:
        kind, stage, rest = part[1], int(part[2]), name[part.end() :]
        pooled = kind == "norm" and stage == last
        name = f"pool.norm.{rest}" if pooled else f"stages.{stage - 1}.{STAGE_PARTS[kind]}.{rest}"
    for theirs, ours in PARTS.items():
        name = re.sub(theirs, ours, name)
    return name


# As in the authors' code.
SIZES: dict[str, dict[str, Any]] = {
    "s": {},
    "b": {
        "stem_dim": 64,
        "embed_dims": (64, 128, 320, 512),
        "depths": (3, 4, 12, 3),
        "num_heads": (2, 4, 10, 16),
    },
    "l": {
        "stem_dim": 64,
        "embed_dims": (96, 192, 384, 512),
        "depths": (3, 6, 18, 3),
        "num_heads": (3, 6, 12, 16),
    },
}


def _merge(size: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {**size, **arguments}


for _size, _arguments in SIZES.items():
    efficient_vits.add_entry_point(
        f"wavevit_{_size}",
        WaveViT,
        doc=f"Wave-ViT-{_size.upper()}.\n\nTakes all arguments of `WaveViT`.",
        cfg={
            "pool_size": (7, 7),
            "first_conv": "stages.0.downsample.conv1.conv",
            "classifier": "head",
        },
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        merge=functools.partial(_merge, _arguments),
    )
    catalog.derive(f"wavevit_{_size}", axis="attention", relatives=["wavevit_s"])
