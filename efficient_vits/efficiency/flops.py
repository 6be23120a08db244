"""FLOPs of a model by tracing it once with fvcore under the rules of `rules.py`."""

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from efficient_vits.efficiency.inputs import (
    check_arguments,
    check_images,
    device_of,
    dtype_of,
    evaluating,
    masked,
    random_images,
    state_of,
)
from efficient_vits.efficiency.operators import Rule
from efficient_vits.efficiency.rules import FREE, MATRIX_PRODUCTS, RULES, RULES_VERSION
from efficient_vits.efficiency.traced import TracedCall, UnreadableArgument, Value

with warnings.catch_warnings():
    # fvcore scripts some functions on import, which newer torch warns about.
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis

Handle = Callable[[Sequence[Value], Sequence[Value]], Counter[str]]


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations per image; a multiply-add is one.

    Attributes:
        total: all operations.
        macs: the multiply-adds of matrix products and convolutions among them.
        by_operator: `total` by the kind of operation. Fused attention appears as the products and
            the softmax it consists of.
        by_module: operations inside each module and its children, by qualified name; "" is the
            whole model. A shared module appears under its first name.
        uncounted: how often each operator was met that computes something and has no rule. Where
            this is not empty, `total` is too small.
        rules: name and version of the counting rules.
        training: the mode the model was counted in; counting is done in eval mode.
    """

    total: int
    macs: int
    by_operator: dict[str, int]
    by_module: dict[str, int]
    uncounted: dict[str, int]
    rules: str
    training: bool


def count_flops(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int = 1,
    images: Tensor | None = None,
) -> FlopCount:
    """Counts the operations of one forward pass in eval mode, without gradients.

    The model is run once on its own device, on random images that are the same every time, and is
    left as it was. A model on the meta device is counted as a copy on the CPU whose parameters and
    buffers are all zero; that differs only where the cost depends on the values.

    Random images stand for no image. A model that skips work where an image allows it is therefore
    counted without skipping anything, which is the most that it can cost; with `images` it is
    counted as it runs on these, and `flop_distribution` tells the mean and spread of many. (Such
    modules declare ``depends_on_image`` and have a switch ``dynamic``.)

    Args:
        model: any module that takes a tensor `(batch_size, *input_size)` and returns tensors, in
            whatever container. Work that none of them depends on is not counted.
        input_size: size of one image without the batch, `(channels, height, width)`.
        batch_size: images in the pass. The figures are per image, rounded to whole operations;
            work that is done once per pass (on weights, on tables) is shared by its images.
        images: count on these, `(batch, channels, height, width)`, as one batch, instead of on
            random ones; they are moved to the device and dtype of the model. `input_size` and
            `batch_size` are then theirs.

    Raises:
        TypeError, ValueError: an argument is not of the kind above, or the model is spread over
            several devices.
        RuntimeError: the model can't be traced with this input; the original error is its cause.
    """
    if images is not None:
        check_images(images)
        batch_size, *input_size = images.shape
    check_arguments(model, input_size, batch_size)
    # A compiled model cannot be traced; the module that it compiles can.
    model = getattr(model, "_orig_mod", model)
    device = device_of(model)
    if device.type == "meta":
        model, device = _zeros_on_cpu(model), torch.device("cpu")

    everything = images is None
    if images is None:
        images = random_images(model, input_size, batch_size, device=device)
    images = images.to(device, dtype_of(model))
    uncounted: Counter[str] = Counter()
    analysis = FlopCountAnalysis(_TensorsOnly(model), (images,))
    analysis.clear_op_handles().set_op_handle(**_handles(uncounted))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with _traceable(model, device), masked(model) if everything else nullcontext():
        try:
            by_operator = analysis.by_operator()
        except Exception as error:
            raise RuntimeError(
                f"could not trace {type(model).__name__} with an input of size "
                f"{tuple(images.shape)}: {error}"
            ) from error
    uncounted.update(analysis.unsupported_ops())

    per_image = {name: round(n / batch_size) for name, n in sorted(by_operator.items()) if n}
    total = sum(per_image.values())
    by_module = {
        _without_wrapper(name): round(n / batch_size) for name, n in analysis.by_module().items()
    }
    return FlopCount(
        total=total,
        macs=sum(n for name, n in per_image.items() if name in MATRIX_PRODUCTS),
        by_operator=per_image,
        by_module={**by_module, "": total},
        uncounted=dict(uncounted),
        rules=RULES_VERSION,
        training=False,
    )


class _TensorsOnly(nn.Module):
    """Returns the tensors among a model's outputs, the only thing that the tracer accepts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        tensors = tuple(_tensors(self.model(images)))
        if not tensors:
            # The tracer drops what no output needs: it would find nothing to count.
            raise TypeError("the model returned no tensor")
        return tensors


def _tensors(output: object) -> Iterator[Tensor]:
    """Tensors in containers, or else in the attributes of the objects there."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        else:
            attributes = tree_leaves(getattr(leaf, "__dict__", {}))
            yield from (value for value in attributes if isinstance(value, Tensor))


def _without_wrapper(name: str) -> str:
    return name.removeprefix("model").removeprefix(".")


def _handles(uncounted: Counter[str]) -> dict[str, Handle | None]:
    """fvcore's handles: for every operator a rule, or None for a free one."""
    handles: dict[str, Handle | None] = {}
    for name in (*FREE, *RULES):
        for kind in (f"aten::{name}", f"aten::{name}_", f"aten::_{name}"):
            handles[kind] = _handle(kind, name, RULES[name], uncounted) if name in RULES else None
    return handles


def _handle(kind: str, name: str, rule: Rule, uncounted: Counter[str]) -> Handle:
    def handle(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
        call = TracedCall(inputs, outputs)
        try:
            # Integers are free: an index is no floating-point number.
            cost: Any = rule(call) if call.gives_floats else 0
        except UnreadableArgument:
            uncounted[kind] += 1
            cost = 0
        return Counter(cost if isinstance(cost, dict) else {name: cost})

    return handle


def _zeros_on_cpu(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in state_of(twin):
            # Memory that was never written may hold indices that point outside of their tables.
            tensor.zero_()
    return twin


@contextmanager
def _traceable(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, no gradients, no warnings, no fast paths; everything restored afterwards."""
    hook_tables = [
        table
        for module in model.modules()
        for table in (module._forward_pre_hooks, module._forward_hooks)
    ]
    known_hooks = [set(table) for table in hook_tables]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    # The fast path of nn.MultiheadAttention is one operator that says nothing of what it does.
    torch.backends.mha.set_fastpath_enabled(False)
    rng_devices = [device] if device.type == "cuda" else []
    try:
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=rng_devices),
            torch.no_grad(),
            evaluating(model),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        # fvcore leaves its hooks behind when tracing fails.
        for table, known in zip(hook_tables, known_hooks, strict=True):
            for key in table.keys() - known:
                del table[key]
