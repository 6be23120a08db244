"""A second counter beside ours, torch's, and what makes the difference."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from efficient_vits.efficiency.flops import BACKWARD, FlopCount, count_flops
from efficient_vits.efficiency.inputs import device_of, random_images
from efficient_vits.efficiency.rules import MATRIX_PRODUCTS
from efficient_vits.efficiency.tracing import TensorsOnly, traceable, zeros_on_cpu


@dataclass(frozen=True)
class CounterRow:
    """Multiply-adds per image of one group of operators.

    Attributes:
        operators: the group, or the operators of torch in it.
        ours: by `count_flops`.
        torchs: by torch's counter, which gives two FLOPs for each.
        reason: why they differ, "" where they don't.
    """

    operators: str
    ours: int
    torchs: int
    reason: str


@dataclass(frozen=True)
class CounterComparison:
    """What `count_flops` and torch's `FlopCounterMode` say of one model, per image.

    Attributes:
        ours: what `count_flops` returned.
        torchs: half of what torch's counter says, in multiply-adds.
        rows: the multiply-adds of both by group of operators; they add up to both.
    """

    ours: FlopCount
    torchs: int
    rows: tuple[CounterRow, ...]

    @property
    def unexplained(self) -> int:
        """Multiply-adds of the difference that no row has a reason for."""
        return sum(row.ours - row.torchs for row in self.rows if row.reason == UNEXPLAINED)

    def __str__(self) -> str:
        lines = [("operators", "ours", "torch's", "reason")]
        lines += [(r.operators, f"{r.ours:,}", f"{r.torchs:,}", r.reason) for r in self.rows]
        lines.append(("all", f"{self.ours.macs:,}", f"{self.torchs:,}", ""))
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        return "\n".join(
            f"{name:<{widths[0]}}  {ours:>{widths[1]}}  {torchs:>{widths[2]}}  {why}".rstrip()
            for name, ours, torchs, why in lines
        )


UNEXPLAINED = "unexplained"
_CONVOLUTIONS = frozenset(["convolution", "convolution_mode", "conv1d", "conv2d", "conv3d"])


def compare_counters(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int = 1,
    training: bool = False,
    backward: bool = False,
) -> CounterComparison:
    """Counts a model with `count_flops` and with torch's `FlopCounterMode`, and explains both.

    Torch's counter sees the operators that run, after fusion; with `backward` it really runs the
    backward pass. It knows products and convolutions alone, so that `macs` are compared.

    Args:
        model, input_size, batch_size, training, backward: as `count_flops`.

    Raises:
        TypeError, ValueError, RuntimeError: as `count_flops`.
    """
    model = getattr(model, "_orig_mod", model)
    ours = count_flops(
        model, input_size, batch_size=batch_size, training=training, backward=backward
    )
    if device_of(model).type == "meta":
        model = zeros_on_cpu(model)
    device = device_of(model)
    images = random_images(model, input_size, batch_size, device=device)
    theirs, seen = FlopCounterMode(display=False), _Unseen()
    wanted = [p for p in model.parameters() if p.requires_grad] if backward else []
    with traceable(model, device, training=training, gradients=backward), theirs, seen:
        outputs = [y for y in TensorsOnly(model)(images) if y.requires_grad]
        if wanted and outputs:
            ones = [torch.ones_like(y) for y in outputs]
            torch.autograd.grad(outputs, wanted, ones, allow_unused=True)
    by_operator = {
        str(operator): round(flops / 2 / batch_size)
        for operator, flops in theirs.get_flop_counts().get("Global", {}).items()
    }
    unseen = {name: round(n / batch_size) for name, n in seen.macs.items()}
    return CounterComparison(
        ours=ours,
        torchs=round(theirs.get_total_flops() / 2 / batch_size),
        rows=tuple(_rows(ours, by_operator, unseen, seen.grouped // batch_size)),
    )


def _rows(
    ours: FlopCount, theirs: dict[str, int], unseen: dict[str, int], grouped: int
) -> list[CounterRow]:
    products: Counter[bool] = Counter()
    for name, n in ours.by_operator.items():
        operator = name.removesuffix(BACKWARD)
        if operator in MATRIX_PRODUCTS:
            products[operator in _CONVOLUTIONS] += n
    rows = []
    others = {name: n for name, n in theirs.items() if "conv" not in name}
    for name, n in unseen.items():
        counted = others.pop(name, 0)
        rows.append(CounterRow(name, n, counted, "" if n == counted else _UNSEEN[name][1]))
    rest = products[False] - sum(unseen.values())
    matrix = CounterRow(
        ", ".join(sorted(others)) or "matrix products", rest, sum(others.values()), ""
    )
    convolved = sum(n for name, n in theirs.items() if "conv" in name)
    convolution = CounterRow("convolutions", products[True], convolved - grouped, "")
    rows = [_judged(convolution), _judged(matrix), *rows]
    if grouped:
        rows.append(
            CounterRow(
                "convolutions in groups, backward",
                0,
                grouped,
                "torch multiplies the weight's gradient by the groups",
            )
        )
    return [row for row in rows if row.ours or row.torchs]


def _judged(row: CounterRow) -> CounterRow:
    if row.ours == row.torchs:
        return row
    return CounterRow(row.operators, row.ours, row.torchs, UNEXPLAINED)


def _scores(args: Sequence[Any]) -> int:
    query, key, value = (tensor.shape for tensor in args[:3])
    return int(prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _twice_the_scores(args: Sequence[Any]) -> int:
    return 2 * _scores(args[1:4])


_NO_FORMULA = "torch has no formula for it and counts 0"
_AGAIN = "torch counts the scores that the kernel computes again"

# Operators that torch's counter gives no products, or other ones than the plain code has: how many
# there are, and why it differs.
_UNSEEN: dict[str, tuple[Callable[[Sequence[Any]], int], str]] = {
    "aten._scaled_dot_product_flash_attention_for_cpu": (_scores, _NO_FORMULA),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": (_twice_the_scores, _NO_FORMULA),
    "aten._scaled_dot_product_flash_attention": (_scores, _NO_FORMULA),
    "aten._scaled_dot_product_efficient_attention": (_scores, _NO_FORMULA),
    "aten._scaled_dot_product_cudnn_attention": (_scores, _NO_FORMULA),
    "aten._scaled_dot_product_flash_attention_backward": (_twice_the_scores, _AGAIN),
    "aten._scaled_dot_product_efficient_attention_backward": (_twice_the_scores, _AGAIN),
    "aten._scaled_dot_product_cudnn_attention_backward": (_twice_the_scores, _AGAIN),
    "aten.mv": (lambda args: args[0].numel(), _NO_FORMULA),
    "aten.addmv": (lambda args: args[1].numel(), _NO_FORMULA),
    "aten.dot": (lambda args: args[0].numel(), _NO_FORMULA),
    "aten.vdot": (lambda args: args[0].numel(), _NO_FORMULA),
    "aten.addbmm": (lambda args: args[1].numel() * args[2].shape[-1], _NO_FORMULA),
}


class _Unseen(TorchDispatchMode):
    """Multiply-adds of what torch's counter misses, and what it has too much.

    Attributes:
        macs: by the operators of `_UNSEEN`.
        grouped: counted beyond the truth for weights of convolutions in groups.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs: Counter[str] = Counter()
        self.grouped = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(func.overloadpacket)
        if name in _UNSEEN:
            self.macs[name] += _UNSEEN[name][0](args)
        if name == "aten.convolution_backward":
            gradient, images, weight, *_, groups, wanted = args
            transposed = args[7]
            outputs = images if transposed else gradient
            if wanted[1]:
                once = outputs.numel() * prod(weight.shape[1:])
                self.grouped += (groups - 1) * once
        return func(*args, **(kwargs or {}))
