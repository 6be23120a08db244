r"""FNet: tokens are mixed by a Fourier transform, without any parameter.

    y = Re(F_tokens(F_channels(x)))

Source: Lee-Thorp et al., "FNet: Mixing Tokens with Fourier Transforms", NAACL 2022 (arXiv
2105.03824), section 3, which also has the product with DFT matrices that exported models use here.
Written anew; the authors' code is Apache-2.0. The paper's transform is not normalised;
the benchmark's is divided by the number of tokens times channels (``fft_norm="forward"``), which
is the default here.
"""

import math
from typing import Any, ClassVar, Final, Optional

import torch
from timm.layers import is_exportable, register_notrace_function
from torch import Tensor, nn

from efficient_vits._numerics import without_autocast
from efficient_vits.attention._fourier import refuse_arguments, waves, widened
from efficient_vits.attention._interface import AttentionTraits, refuse_mask, register_attention

FFT_NORMS = ("backward", "ortho", "forward")


def real_fourier(x: Tensor, fft_norm: str, products: bool) -> Tensor:
    """Real part of the 2-D DFT over tokens and channels, (B, N, C) -> the same.

    Args:
        x: Tokens, float32 or float64.
        fft_norm: One of `FFT_NORMS`, as in `torch.fft`.
        products: Use matrix products instead of the FFT.
    """
    if not products:
        return torch.fft.fft2(x, dim=(1, 2), norm=fft_norm).real
    _, N, C = x.shape
    cos, sin = waves(N, N, x)
    cos_c, sin_c = waves(C, C, x)
    y = cos @ (x @ cos_c) - sin @ (x @ sin_c)
    if fft_norm == "forward":
        return y / (N * C)
    return y / math.sqrt(N * C) if fft_norm == "ortho" else y


@register_notrace_function
def fourier_mix(x: Tensor, fft_norm: str, products: bool) -> Tensor:
    """`real_fourier` in float32 at least, whatever autocast says."""
    if torch.jit.is_scripting():
        return real_fourier(widened(x), fft_norm, products).to(x.dtype)
    with without_autocast(x.device.type):
        return real_fourier(widened(x), fft_norm, products).to(x.dtype)


@register_attention("fnet", vit={"global_pool": "avg"})
class FNetAttention(nn.Module):
    """FNet's token mixing.

    Args:
        dim: Channels.
        num_heads: Part of the interface, as are `qkv_bias` and `proj_bias`: there is nothing here
            that has heads or biases.
        qk_norm: Refused, as are `scale_norm` and `attn_drop`: there is nothing to norm or drop.
        proj_drop: Dropout on the output.
        fft_norm: What the transform is divided by: nothing ("backward"), the square root of tokens
            times channels ("ortho") or all of it ("forward").

    Shape: (B, N, dim) -> (B, N, dim), for any N; prefix tokens are tokens like all others.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        refuses=frozenset({"qk_norm", "scale_norm"})
    )
    products: Final[bool]

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
        fft_norm: str = "forward",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        refuse_arguments("fnet", qk_norm, scale_norm, attn_drop)
        if fft_norm not in FFT_NORMS:
            raise ValueError(f"fnet knows fft_norm {', '.join(FFT_NORMS)}, got {fft_norm!r}")
        self.fft_norm = fft_norm
        self.products = is_exportable()
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("fnet", attn_mask, is_causal)
        return self.proj_drop(fourier_mix(x, self.fft_norm, self.products))

    def extra_repr(self) -> str:
        return f"fft_norm={self.fft_norm!r}"
