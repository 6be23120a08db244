"""Informer's ViTs: ProbSparse attention in post-norm blocks.

Source: Zhou et al., "Informer", AAAI 2021 (arXiv 2012.07436), whose encoder has such blocks, with
two 1x1 convolutions over the sequence. These are linear layers of each token, and are the block's
MLP here, so that any other MLP fits too; their weights are read from both forms.
"""

from typing import Optional

from torch import Tensor

from efficient_vits._registry import Entry
from efficient_vits._state import put, rename
from efficient_vits.attention import _interface as attention_axis
from efficient_vits.attention.informer import InformerAttention
from efficient_vits.models.block import Block
from efficient_vits.models.variants import register_variants

OUTER = "attention."  # what the benchmark's code calls the block's ``attn``


class InformerBlock(Block):
    """Post-norm transformer block: ``x = norm(x + attention(x))``, then ``norm(x + mlp(x))``.

    Arguments and shape are those of `Block`.
    """

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        y = self.attn(x, attn_mask=attn_mask, is_causal=is_causal)
        x = self.norm1(x + self.drop_path1(self.ls1(y)))
        return self.norm2(x + self.drop_path2(self.ls2(self.mlp(x))))

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours: its MLP is two 1x1 convolutions."""
        out = rename(state, {"conv1.": "mlp.fc1.", "conv2.": "mlp.fc2."})
        theirs = {name: out.pop(name) for name in list(out) if name.startswith(OUTER)}
        inner = InformerAttention.from_reference(rename(theirs, {OUTER: ""}))
        for name, value in inner.items():
            put(out, f"attn.{name}", value)
        for name in ("mlp.fc1.weight", "mlp.fc2.weight"):
            if name in out and out[name].ndim == 3:
                out[name] = out[name].squeeze(-1)
        return out


register_variants(
    attention_axis.REGISTRY,
    Entry(
        "informer",
        InformerAttention,
        models={"informer_{size}": {}},
        vit={"block_fn": InformerBlock, "init_values": None},
    ),
)
