r"""Switch MLP: many expert MLPs, of which every token visits one.

    e(x) = argmax_i p_i(x),    p(x) = softmax(W x),    y = E_e(x)

The load-balancing loss is  a * E * sum_i f_i P_i  with f_i the fraction of tokens sent to expert i,
P_i its mean probability and a = 0.01.

With a capacity factor c, an expert takes at most  c T / E  of the T tokens of a batch, rounded up.
Tokens that come later in the batch pass by the MLP: y = 0, and the skip connection remains.

Source: Fedus, Zoph, Shazeer, "Switch Transformers", JMLR 2022 (arXiv 2101.03961), sections 2.1
and 2.2, eq. 3-6. The paper multiplies the output by p_e(x); the benchmark's runs multiplied by
p / p = 1, which passes the same kind of gradient to the router. That is the default here,
``scale_by_prob=True`` is the paper's.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Final, List, Optional  # noqa: UP035 (TorchScript reads List)

import torch
import torch.nn.functional as F
from timm.layers import is_exportable, register_notrace_module
from torch import Tensor, nn

from efficient_vits._numerics import without_autocast
from efficient_vits._state import put, rename
from efficient_vits.mlp._interface import MlpTraits, register_mlp


class ExpertLinear(nn.Module):
    """One linear layer per expert, stacked: weight (E, out, in), bias (E, out) or None."""

    __jit_unused_properties__: ClassVar[list[str]] = ["active_parameters"]

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features, **factory))
        self.bias = (
            nn.Parameter(torch.empty(num_experts, out_features, **factory)) if bias else None
        )
        self.reset_parameters()

    @property
    def active_parameters(self) -> int:
        """Parameters of one expert: a token visits no other."""
        return sum(p.numel() for p in self.parameters()) // len(self.weight)

    def reset_parameters(self) -> None:
        """The linear layers of a ViT: truncated normal of width 0.02, no bias."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Every expert on its own tokens, (E, T, in) -> (E, T, out)."""
        y = x @ self.weight.transpose(1, 2)
        return y if self.bias is None else y + self.bias.unsqueeze(1)

    def expert(self, x: Tensor, index: int) -> Tensor:
        """One expert, (T, in) -> (T, out)."""
        bias = self.bias
        return F.linear(x, self.weight[index], None if bias is None else bias[index])

    def extra_repr(self) -> str:
        experts, out_features, in_features = self.weight.shape
        return f"experts={experts}, in={in_features}, out={out_features}"


@register_notrace_module
@register_mlp("switch", models={"switch8_{size}": {"num_experts": 8}})
class SwitchMlp(nn.Module):
    """Switch MLP.

    Args:
        in_features: Channels in and out.
        hidden_features: Channels inside an expert.
        norm_layer: Refused: experts have no norm between their layers.
        num_experts: Experts.
        balance_weight: Weight of the balancing loss.
        scale_by_prob: Multiply the output by the router's probability, as the paper does.
        dynamic: Send to each expert only its tokens, the count of which depends on the data.
            ``False`` runs every expert on every token and picks: the same outputs at `num_experts`
            times the cost, with shapes that compilers and exporters can know. By default dynamic,
            unless timm builds an exportable model; `torch.compile`, `torch.export` and the meta
            device always take the static path.
        capacity_factor: Bound on the tokens of an expert, in multiples of an equal share of the
            batch, in training and evaluation alike: images of a batch then compete for places. The
            tokens lie in a buffer (experts, capacity, channels), with which experts can be spread
            over devices and shapes are static, so that `dynamic` has to be left open. None drops
            no token.

    Shape: (B, N, in_features) -> the same. In training, ``auxiliary_loss`` holds the balancing loss
    of the last forward pass.
    """

    traits: ClassVar[MlpTraits] = MlpTraits(auxiliary_loss=True)
    num_experts: Final[int]
    scale_by_prob: Final[bool]
    dynamic: Final[bool]
    capacity_factor: Final[Optional[float]]
    auxiliary_loss: Optional[Tensor]

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        *,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: type[nn.Module] | None = None,
        bias: bool = True,
        drop: float = 0.0,
        num_experts: int = 8,
        balance_weight: float = 0.01,
        scale_by_prob: bool = False,
        dynamic: bool | None = None,
        capacity_factor: float | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if norm_layer is not None:
            raise ValueError("switch experts have no norm between their layers; norm_layer=None")
        if num_experts < 1:
            raise ValueError(f"switch needs num_experts >= 1, got {num_experts}")
        if capacity_factor is not None and not capacity_factor > 0:
            raise ValueError(f"switch needs capacity_factor > 0 or None, got {capacity_factor}")
        if capacity_factor is not None and dynamic is not None:
            raise ValueError(
                f"with capacity_factor={capacity_factor} shapes are static; leave out {dynamic=}"
            )
        factory = {"device": device, "dtype": dtype}
        hidden = hidden_features or in_features
        self.num_experts = num_experts
        self.balance_weight = balance_weight
        self.scale_by_prob = scale_by_prob
        self.dynamic = not is_exportable() if dynamic is None else dynamic
        self.capacity_factor = capacity_factor
        self.router = nn.Linear(in_features, num_experts, **factory)
        self.fc1 = ExpertLinear(num_experts, in_features, hidden, bias, **factory)
        self.act = act_layer()
        self.fc2 = ExpertLinear(num_experts, hidden, in_features, bias, **factory)
        self.drop = nn.Dropout(drop)
        self.auxiliary_loss = None

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        x = x.reshape(B * N, C)
        probs = self.route(x)  # (B * N, E)
        top, chosen = probs.max(dim=-1)
        if self.capacity_factor is not None:
            y = self.fill(x, chosen, self.capacity(B * N))
        elif self.dynamic and not x.is_meta and not torch.compiler.is_compiling():
            y = self.dispatch(x, chosen)
        else:
            y = self.select(x, chosen)
        gate = top if self.scale_by_prob else top / top.detach()
        y = y * gate.to(y.dtype).unsqueeze(-1)
        if self.training:
            share = F.one_hot(chosen, self.num_experts).to(probs.dtype).mean(dim=0)
            balance = self.num_experts * (share * probs.mean(dim=0)).sum()
            self.auxiliary_loss = self.balance_weight * balance
        else:
            self.auxiliary_loss = None
        return y.reshape(B, N, C)

    def route(self, x: Tensor) -> Tensor:
        """Probabilities of the experts, (T, C) -> (T, E), in float32 at least."""
        if torch.jit.is_scripting():
            return self.router(x).float().softmax(dim=-1)
        with without_autocast(x.device.type):
            wide = torch.promote_types(x.dtype, torch.float32)
            bias = self.router.bias.to(wide)
            return F.linear(x.to(wide), self.router.weight.to(wide), bias).softmax(dim=-1)

    def dispatch(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Each expert on the tokens that chose it, (T, C) -> (T, C)."""
        order = chosen.argsort()
        counts: List[int] = torch.bincount(chosen, minlength=self.num_experts).tolist()  # noqa: UP006
        parts = []
        for index, tokens in enumerate(x[order].split(counts)):
            hidden = self.drop(self.act(self.fc1.expert(tokens, index)))
            parts.append(self.drop(self.fc2.expert(hidden, index)))
        return torch.cat(parts)[order.argsort()]

    def capacity(self, tokens: int) -> int:
        """How many of so many tokens an expert takes."""
        factor = self.capacity_factor
        if factor is None:
            return tokens
        return min(math.ceil(factor * tokens / self.num_experts), tokens)

    def fill(self, x: Tensor, chosen: Tensor, capacity: int) -> Tensor:
        """Each expert on the first tokens that chose it, (T, C) -> (T, C), 0 for the others."""
        C, places = x.shape[1], self.num_experts * capacity
        queue = F.one_hot(chosen, self.num_experts).cumsum(dim=0)  # (T, E)
        position = queue.gather(1, chosen.unsqueeze(1)).squeeze(1) - 1
        # One more place, behind all experts, for the tokens that find none.
        place = torch.where(position < capacity, chosen * capacity + position, places)
        buffer = x.new_zeros(places + 1, C).scatter(0, place.unsqueeze(1).expand(-1, C), x)
        tokens = buffer[:places].view(self.num_experts, capacity, C)
        y = self.drop(self.fc2(self.drop(self.act(self.fc1(tokens)))))
        return torch.cat([y.flatten(0, 1), y.new_zeros(1, C)])[place]

    def select(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Every expert on every token, of which each keeps its own, (T, C) -> (T, C)."""
        T, C = x.shape
        hidden = self.drop(self.act(self.fc1(x.expand(self.num_experts, T, C))))
        y = self.drop(self.fc2(hidden))  # (E, T, C)
        return y.gather(0, chosen.view(1, T, 1).expand(1, T, C)).squeeze(0)

    def __getstate__(self) -> dict[str, Any]:
        # A loss term belongs to one forward pass, and its graph can be neither copied nor pickled.
        return {**self.__dict__, "auxiliary_loss": None}

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours: its experts are separate MLPs."""
        out = rename(state, {"switch.": "router."})
        for layer in ("fc1", "fc2"):
            for kind in ("weight", "bias"):
                stack: list[Tensor] = []
                while (name := f"experts.{len(stack)}.{layer}.{kind}") in out:
                    stack.append(out.pop(name))
                if stack:
                    put(out, f"{layer}.{kind}", torch.stack(stack))
        return out
