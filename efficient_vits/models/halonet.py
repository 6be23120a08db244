r"""HaloNet: a residual network with halo attention in place of 3 x 3 convolutions.

    y = relu(x' + BN(W_3 relu(BN(halo(relu(BN(W_1 x)))))))

x' is the input, or a 1 x 1 convolution of it where size or channels change. Stage s = 0 ... 3 has
c = 64 * 2^s channels inside the bottleneck, c r_v after the attention and c r_b after the block.
The first block of a later stage halves the resolution by taking every other query.

Source: Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
CVPR 2021 (arXiv 2103.12731), section 3 and its table of models. Its authors published no code.
The shell is timm's `ByobNet` (Apache-2.0). The paper's table of layers leaves out skip connections
and norms, which its text presumes; so did the code of the benchmark, in which the network learned
nothing. With norms as in timm's `halonet_h1`, one after each convolution and one after the
attention, the numbers of parameters are the paper's. Images need not be multiples of the block
size: see `efficient_vits.attention.halo`. Displacements are counted in pixels also where queries
are strided; timm's `HaloAttn` counts queries there.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn

from efficient_vits import catalog
from efficient_vits.attention._interface import check_heads
from efficient_vits.attention.halo import halo_average, halo_weights
from efficient_vits.models import efficient_vits

# Block, halo, r_v, r_b, blocks of the third stage, channels before the classifier, pixels.
# H1 is timm's `halonet_h1`.
SIZES: dict[str, tuple[int, int, float, float, int, int, int]] = {
    "h0": (8, 3, 1.0, 0.5, 7, 0, 256),
    "h2": (8, 3, 1.0, 1.25, 11, 0, 256),
    "h3": (10, 3, 1.0, 1.5, 12, 1024, 320),
    "h4": (12, 2, 1.0, 3.0, 12, 1280, 384),
    "h5": (14, 2, 2.5, 2.0, 23, 1536, 448),
    "h6": (8, 4, 3.0, 2.75, 24, 1536, 512),
    "h7": (10, 3, 4.0, 3.5, 26, 2048, 600),
}


class HaloAttention2d(nn.Module):
    """Halo attention on a map, with 1 x 1 convolutions for queries, keys and values.

    Args:
        dim: Channels of the input, of queries and of keys.
        dim_out: Channels of the output.
        num_heads: Heads; they share the embeddings of displacements.
        stride: Pixels from one query to the next, a divisor of `block_size`.
        block_size: Pixels along one side of a block.
        halo_size: Pixels around a block that it sees, too.

    Shape: (B, dim, H, W) -> (B, dim_out, ceil(H / stride), ceil(W / stride)).

    Raises:
        ValueError: Sizes that do not divide.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        stride: int,
        block_size: int,
        halo_size: int,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_heads("halonet", dim, num_heads)
        check_heads("halonet", dim_out, num_heads)
        if block_size < 1 or halo_size < 0 or block_size % stride:
            raise ValueError(
                f"halonet needs halo_size >= 0 and a block_size that the stride {stride} divides, "
                f"got {block_size=}, {halo_size=}"
            )
        factory = {"device": device, "dtype": dtype}
        self.num_heads, self.stride = num_heads, stride
        self.block_size, self.halo_size = block_size, halo_size
        self.head_dim, self.head_dim_out = dim // num_heads, dim_out // num_heads
        self.scale = self.head_dim**-0.5
        self.q = nn.Conv2d(dim, dim, 1, stride=stride, bias=False, **factory)
        self.k = nn.Conv2d(dim, dim, 1, bias=False, **factory)
        self.v = nn.Conv2d(dim, dim_out, 1, bias=False, **factory)
        displacements = 2 * (block_size + halo_size) - 1
        self.height_rel = nn.Parameter(torch.empty(displacements, self.head_dim, **factory))
        self.width_rel = nn.Parameter(torch.empty(displacements, self.head_dim, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: normal, projections of width dim^-1/2, embeddings d^-1/2."""
        for projection in (self.q, self.k, self.v):
            trunc_normal_(projection.weight, std=projection.in_channels**-0.5)
        trunc_normal_(self.height_rel, std=self.scale)
        trunc_normal_(self.width_rel, std=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        q = self.q(x) * self.scale
        height, width = q.shape[2], q.shape[3]
        weights = halo_weights(
            q.reshape(B, self.num_heads, self.head_dim, height, width),
            self.k(x).reshape(B, self.num_heads, self.head_dim, H, W),
            self.height_rel,
            self.width_rel,
            self.block_size,
            self.halo_size,
            self.stride,
        )
        v = self.v(x).reshape(B, self.num_heads, self.head_dim_out, H, W)
        y = halo_average(weights, v, height, width, self.block_size, self.halo_size, self.stride)
        return y.reshape(B, self.num_heads * self.head_dim_out, height, width)


class HaloBottleneck(nn.Module):
    """Residual bottleneck with halo attention.

    timm's `ByobNet` builds it and passes everything up to `dtype`.

    Args:
        in_chs: Channels of the input.
        out_chs: Channels of the output.
        stride: 2 halves the resolution.
        layers: timm's choice of norm and activation.
        mid_chs: Channels of queries, keys and the attention's input.
        value_chs: Channels of the attention's output.
        num_heads: Heads.
        block_size: Pixels along one side of a block.
        halo_size: Pixels around a block that it sees, too.

    Shape: (B, in_chs, H, W) -> (B, out_chs, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int,
        dilation: tuple[int, int],
        group_size: int | None,
        bottle_ratio: float,
        downsample: str,
        drop_block: Any,
        drop_path_rate: float,
        layers: Any,
        device: Any = None,
        dtype: Any = None,
        *,
        mid_chs: int,
        value_chs: int,
        num_heads: int,
        block_size: int,
        halo_size: int,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_chs != out_chs:
            self.shortcut = layers.conv_norm_act(
                in_chs, out_chs, 1, stride=stride, apply_act=False, **factory
            )
        self.conv1_1x1 = layers.conv_norm_act(in_chs, mid_chs, 1, **factory)
        self.self_attn = HaloAttention2d(
            mid_chs, value_chs, num_heads, stride, block_size, halo_size, **factory
        )
        self.post_attn = layers.norm_act(value_chs, **factory)
        self.conv3_1x1 = layers.conv_norm_act(value_chs, out_chs, 1, apply_act=False, **factory)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0.0 else nn.Identity()
        self.act = layers.act(inplace=True)

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = False) -> None:
        """Draw what timm's `ByobNet` does not: the attention, and the scale of the residual."""
        self.self_attn.reset_parameters()
        if zero_init_last:
            nn.init.zeros_(self.conv3_1x1.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.post_attn(self.self_attn(self.conv1_1x1(x)))
        return self.act(self.drop_path(self.conv3_1x1(y)) + self.shortcut(x))


class HaloNet(ByobNet):
    """HaloNet, for images of any size; timm's `ByobNet` otherwise.

    Args:
        depths: Blocks of the four stages.
        output_ratio: r_b, channels of a block's output over those inside.
        value_ratio: r_v, channels of the attention's output over those of its input.
        block_size: Pixels along one side of a block, an even number.
        halo_size: Pixels around a block that it sees, too.
        num_heads: Heads in each stage.
        width: Channels of the stem and inside the first stage; each later stage has twice as many.
        num_features: Channels of a 1 x 1 convolution before the classifier; 0 leaves it out.
        num_classes: Classes; 0 for none.
        in_chans: Channels of the image.
        global_pool: timm's name of the pooling.
        output_stride: 8, 16 or 32; below 32 the last stages keep their resolution.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth in the last block.
        act_layer: timm's name of the activation.
        zero_init_last: Start with blocks that pass on their input.

    Shape: (B, in_chans, H, W) -> (B, num_classes).
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 7, 3),
        output_ratio: float = 0.5,
        *,
        value_ratio: float = 1.0,
        block_size: int = 8,
        halo_size: int = 3,
        num_heads: Sequence[int] = (4, 8, 8, 8),
        width: int = 64,
        num_features: int = 0,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str = "relu",
        zero_init_last: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        stages = []
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            channels = width * 2**stage
            block: Any = functools.partial(
                HaloBottleneck,
                mid_chs=channels,
                value_chs=int(channels * value_ratio),
                num_heads=heads,
                block_size=block_size,
                halo_size=halo_size,
            )
            out = int(channels * output_ratio)
            stages.append(ByoBlockCfg(type=block, d=depth, c=out, s=2 if stage else 1))
        cfg = ByoModelCfg(
            blocks=tuple(stages),
            stem_type="7x7",
            stem_pool="maxpool",
            stem_chs=width,
            num_features=num_features,
            act_layer=act_layer,
        )
        super().__init__(
            cfg,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            output_stride=output_stride,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            zero_init_last=zero_init_last,
            device=device,
            dtype=dtype,
        )
        self.zero_init_last = zero_init_last

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Draw all weights and statistics anew, also those without values after ``to_empty``."""
        module: Any
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, HaloBottleneck):
                module.init_weights(self.zero_init_last)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the embeddings of displacements."""
        return {n for n, _ in self.named_parameters() if n.endswith(("height_rel", "width_rel"))}

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


def _merge(size: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {**size, **arguments}


def _register(names: dict[str, str]) -> None:
    for name, size in names.items():
        block, halo, value_ratio, output_ratio, third, features, pixels = SIZES[size]
        own = {
            "depths": (3, 3, third, 3),
            "output_ratio": output_ratio,
            "value_ratio": value_ratio,
            "block_size": block,
            "halo_size": halo,
            "num_features": features,
        }
        side = -(-pixels // 32)
        efficient_vits.add_entry_point(
            name,
            HaloNet,
            doc=f"HaloNet-{size.upper()}, which the paper runs at {pixels} px.\n\n"
            f"Takes all arguments of `HaloNet`.",
            cfg={
                "input_size": (3, pixels, pixels),
                "pool_size": (side, side),
                "first_conv": "stem.conv1.conv",
                "classifier": "head.fc",
            },
            feature_cfg={"flatten_sequential": True},
            merge=functools.partial(_merge, own),
        )
        catalog.derive(name, axis="attention", relatives=list(names), img_size=SIZES[size][-1])


_register({f"halonet_{size}": size for size in SIZES})
