r"""Class attention: the last layers of the model update the class token alone.

After the last block come two layers with weights of their own, in which the prefix tokens p read
from all tokens, themselves among them, and the patch tokens x stay as they are:

    p <- p + s_1 attention(norm p; norm [p, x])
    p <- p + s_2 mlp(norm p)

with a learned scale s per channel. The cost is linear in the number of tokens.

Source: Touvron et al., "Going deeper with Image Transformers", ICCV 2021 (arXiv 2103.17239),
section 3: what CaiT does with its class token, for any ViT. Written anew; the authors'
code is Apache-2.0. timm's layer of this kind has room for one token and none for registers. In CaiT
the class token does not exist before these layers; here it comes from the blocks, like that of the
ViT around it.

What the layers say of the image is in the prefix tokens. The patch tokens leave them unchanged and
as many as they were, so that feature maps and heads on patches remain; a model that
averages the patches and does not take the class token would never read it, and is refused.
"""

from typing import Any, ClassVar, Dict, Optional, Tuple  # noqa: UP035 (TorchScript reads them)

import torch
from timm.layers import LayerNorm
from torch import Tensor, nn

from efficient_vits.catalog import Paper
from efficient_vits.reduction._cross import CrossLayer
from efficient_vits.reduction._interface import ReductionTraits, register_reduction


@register_reduction(
    "class_attention",
    paper=Paper(
        title="Going deeper with Image Transformers",
        first_author="Touvron",
        venue="ICCV 2021",
        year=2021,
        arxiv="2103.17239",
    ),
)
class ClassAttention(nn.Module):
    """Class-attention layers after the last block.

    Args:
        dim: Channels C.
        depth: Blocks of the model.
        block: Which of them this is.
        num_prefix_tokens: P, the tokens that are updated.
        num_heads: Heads of the class attention.
        layers: How many layers.
        class_init_values: Initial scale of what a layer adds.
        class_mlp_ratio: Hidden channels of the layers' MLPs over `dim`.

    Raises:
        ValueError: No layer, or no prefix token to update.

    Shape: (B, P + N, C) -> the same.
    """

    flop_kind: ClassVar[str] = "reduction"
    traits: ClassVar[ReductionTraits] = ReductionTraits(place="after", prefix=True)

    def __init__(
        self,
        dim: int,
        depth: int,
        block: int,
        *,
        num_prefix_tokens: int = 1,
        num_heads: int = 8,
        layers: int = 2,
        class_init_values: float = 1e-4,
        class_mlp_ratio: float = 4.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"class_attention needs layers >= 1, got {layers}")
        self.num_prefix_tokens = num_prefix_tokens
        self.active = block == depth - 1
        self.layers = nn.ModuleList(
            CrossLayer(
                dim,
                num_heads,
                class_mlp_ratio,
                init_values=class_init_values,
                norm_layer=LayerNorm,
                device=device,
                dtype=dtype,
            )
            for _ in range(layers if self.active else 0)
        )

    @torch.jit.ignore
    def num_tokens(self, n: int) -> int:
        """Tokens that n tokens become: as many."""
        return n

    def forward(
        self,
        x: Tensor,
        size: Optional[Tensor],
        source: Optional[Tensor],
        info: Dict[str, Tensor],  # noqa: UP006
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        for layer in self.layers:
            prefix = layer(prefix, torch.cat([prefix, patches], dim=1))
        return torch.cat([prefix, patches], dim=1), size, source
