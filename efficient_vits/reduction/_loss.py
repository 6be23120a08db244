"""Leaving a loss term on the way."""

from typing import Any, Optional

from timm.layers import register_notrace_module
from torch import Tensor, nn


@register_notrace_module
class LossTerm(nn.Module):
    """Passes its input on and keeps a loss term for `efficient_vits.auxiliary_loss`.

    A module of its own that fx does not look into: a traced model then keeps its terms too, where
    an attribute set in traced code would be set once, while tracing.

    Shape: x of any shape and a scalar, None where there is no term -> x.
    """

    auxiliary_loss: Optional[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary_loss = None

    def forward(self, x: Tensor, loss: Optional[Tensor]) -> Tensor:
        self.auxiliary_loss = loss if self.training else None
        return x

    def __getstate__(self) -> dict[str, Any]:
        # A loss term belongs to one forward pass, and its graph can be neither copied nor pickled.
        return {**self.__dict__, "auxiliary_loss": None}
