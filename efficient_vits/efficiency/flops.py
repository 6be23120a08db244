"""FLOPs of a model by tracing it once with fvcore under the rules of `rules.py`."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efficient_vits.efficiency.gradients import gradient_cost
from efficient_vits.efficiency.inputs import (
    check_arguments,
    check_images,
    device_of,
    dtype_of,
    masked,
    random_images,
)
from efficient_vits.efficiency.modules import ModuleFlops, by_kind, module_tree
from efficient_vits.efficiency.rules import FREE, MATRIX_PRODUCTS, RULES, RULES_VERSION
from efficient_vits.efficiency.traced import Gradients, TracedCall, UnreadableArgument, Value
from efficient_vits.efficiency.tracing import TensorsOnly, traceable, zeros_on_cpu

with warnings.catch_warnings():
    # fvcore scripts some functions on import, which newer torch warns about.
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis

Handle = Callable[[Sequence[Value], Sequence[Value]], Counter[str]]

#: What follows an operator's name in `by_operator` where it is its backward pass.
BACKWARD = " backward"


class UncountedOperators(RuntimeError):
    """A model has operators without a rule, which `strict=True` does not accept.

    Attributes:
        operators: for each operator the modules that call it, by qualified name, and how often.
    """

    def __init__(self, operators: Mapping[str, Mapping[str, int]]) -> None:
        self.operators = {name: dict(places) for name, places in operators.items()}
        found = "; ".join(
            f"{name} in {', '.join(_place(*place) for place in places.items())}"
            for name, places in sorted(self.operators.items())
        )
        super().__init__(f"no rule under {RULES_VERSION!r} for {found}")


def _place(module: str, times: int) -> str:
    name = module or "the model itself"
    return name if times == 1 else f"{name} ({times} times)"


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations per image; a multiply-add is one.

    Attributes:
        total: all operations.
        macs: the multiply-adds of matrix products and convolutions among them.
        by_operator: `total` by the kind of operation. Fused attention appears as the products and
            the softmax it consists of; the backward pass with " backward" behind the name.
        by_module: `total` by module, a tree. ``by_module["blocks.0"]`` is the node of a name.
        by_kind: `total` by what the work is for: "embedding", "token mixing", "mlp", "reduction",
            "head", "other". See `module_kinds`.
        uncounted: how often each operator was met that computes something and has no rule. Where
            this is not empty, `total` is too small.
        rules: name and version of the counting rules.
        training: the mode the model was counted in.
        forward: operations of the forward pass.
        backward: operations of the backward pass, None where it was not counted.
    """

    total: int
    macs: int
    by_operator: dict[str, int]
    by_module: ModuleFlops
    by_kind: dict[str, int]
    uncounted: dict[str, int]
    rules: str
    training: bool
    forward: int
    backward: int | None


def count_flops(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int = 1,
    images: Tensor | None = None,
    training: bool = False,
    backward: bool = False,
    strict: bool = False,
) -> FlopCount:
    """Counts the operations of one forward pass, in eval mode unless asked otherwise.

    The model is run once on its own device, on random images that are the same every time, and is
    left as it was. A model on the meta device is counted as a copy on the CPU whose parameters and
    buffers are all zero, which takes no memory for them; that differs only where the cost depends
    on the values.

    Random images stand for no image. A model that skips work where an image allows it is therefore
    counted without skipping anything, which is the most that it can cost; with `images` it is
    counted as it runs on these, and `flop_distribution` tells the mean and spread of many. (Such
    modules declare ``depends_on_image`` and have a switch ``dynamic``.)

    The backward pass is not run. What it costs follows from the trace: which values get a gradient,
    and the rules of `gradients.py`. It starts from a gradient of every output that has one; the
    loss is not counted, nor the step of the optimizer, nor what checkpointing computes again.

    Args:
        model: any module that takes a tensor `(batch_size, *input_size)` and returns tensors, in
            whatever container. Work that none of them depends on is not counted.
        input_size: size of one image without the batch, `(channels, height, width)`.
        batch_size: images in the pass. The figures are per image, rounded to whole operations;
            work that is done once per pass (on weights, on tables) is shared by its images.
        images: count on these, `(batch, channels, height, width)`, as one batch, instead of on
            random ones; they are moved to the device and dtype of the model. `input_size` and
            `batch_size` are then theirs.
        training: count what runs in train mode: dropout, statistics of the batch, heads that only
            training has. A batch norm over one value per channel needs `batch_size=2`.
        backward: count the backward pass too. Parameters without `requires_grad` get no gradient,
            nor does anything that depends on them and the images alone.
        strict: raise where an operator has no rule.

    Raises:
        TypeError, ValueError: an argument is not of the kind above, or the model is spread over
            several devices.
        UncountedOperators: `strict`, and an operator that computes has no rule.
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
        model, device = zeros_on_cpu(model), torch.device("cpu")

    everything = images is None
    if images is None:
        images = random_images(model, input_size, batch_size, device=device)
    images = images.to(device, dtype_of(model))
    tally = _Tally(Gradients() if backward else None)
    analysis = FlopCountAnalysis(TensorsOnly(model), (images,))
    analysis.clear_op_handles().set_op_handle(**tally.handles())
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with (
        traceable(model, device, training=training, gradients=backward),
        masked(model) if everything else nullcontext(),
    ):
        try:
            analysis.total()
        except Exception as error:
            raise RuntimeError(
                f"could not trace {type(model).__name__} with an input of size "
                f"{tuple(images.shape)}: {error}"
            ) from error
    for name, _ in model.named_modules():
        tally.add_unknown(name, analysis.unsupported_ops(f"model.{name}".rstrip(".")))
    if strict and tally.uncounted:
        raise UncountedOperators(tally.uncounted)
    return _result(model, tally, batch_size, training=training, backward=backward)


def _result(
    model: nn.Module, tally: "_Tally", batch_size: int, *, training: bool, backward: bool
) -> FlopCount:
    # Rounded here and nowhere else, so that all sums of parts are the total.
    per_image = {place: round(n / batch_size) for place, n in tally.cost.items()}
    by_operator: Counter[str] = Counter()
    own: Counter[str] = Counter()
    for (module, operator), n in sorted(per_image.items()):
        if n:
            by_operator[operator] += n
            own[module] += n
    tree = module_tree(model, own)
    backwards = sum(n for name, n in by_operator.items() if name.endswith(BACKWARD))
    return FlopCount(
        total=tree.total,
        macs=sum(
            n for name, n in by_operator.items() if name.removesuffix(BACKWARD) in MATRIX_PRODUCTS
        ),
        by_operator=dict(sorted(by_operator.items())),
        by_module=tree,
        by_kind=by_kind(tree),
        uncounted={name: sum(places.values()) for name, places in tally.uncounted.items()},
        rules=RULES_VERSION,
        training=training,
        forward=tree.total - backwards,
        backward=backwards if backward else None,
    )


class _Tally:
    """What the handles that fvcore calls have counted.

    Attributes:
        cost: operations by module and operator.
        uncounted: for each operator without a rule the modules it was met in, and how often.
    """

    def __init__(self, gradients: Gradients | None) -> None:
        self.cost: Counter[tuple[str, str]] = Counter()
        self.uncounted: dict[str, Counter[str]] = {}
        self._gradients = gradients

    def handles(self) -> dict[str, Handle | None]:
        """For every operator a function of a call, or None for one that is always free."""
        handles: dict[str, Handle | None] = {}
        for name in (*FREE, *RULES):
            counts = name in RULES or self._gradients is not None
            for kind in (f"aten::{name}", f"aten::{name}_", f"aten::_{name}"):
                handles[kind] = self._handle(kind, name) if counts else None
        return handles

    def _handle(self, kind: str, name: str) -> Handle:
        def handle(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
            call = TracedCall(inputs, outputs, self._gradients)
            module = _module_of(outputs)
            try:
                cost = _forward_cost(name, call)
                if call.gives_gradient:
                    way_back = gradient_cost(name, call)
                    way_back["add"] += call.gradients_added
                    cost += Counter({part + BACKWARD: n for part, n in way_back.items()})
            except UnreadableArgument:
                self.uncounted.setdefault(kind, Counter())[module] += 1
                return Counter()
            for part, n in cost.items():
                self.cost[module, part] += n
            return cost

        return handle

    def add_unknown(self, module: str, operators: Mapping[str, int]) -> None:
        """Operators that no handle is for, met in a module or those below it.

        A module comes after those that it is in.
        """
        for kind, times in operators.items():
            places = self.uncounted.setdefault(kind, Counter())
            places[module] += times
            if module:
                # They were taken for those of the module around it.
                parent = module.rpartition(".")[0]
                places[parent] -= times
                if not places[parent]:
                    del places[parent]


def _forward_cost(name: str, call: TracedCall) -> Counter[str]:
    # Integers are free: an index is no floating-point number.
    cost: Any = RULES[name](call) if name in RULES and call.gives_floats else 0
    return Counter(cost if isinstance(cost, dict) else {name: cost})


def _module_of(outputs: Sequence[Value]) -> str:
    """Qualified name of the module in whose forward pass a call is."""
    name: str = outputs[0].node().scopeName().rpartition("/")[2]
    return name.removeprefix("model").removeprefix(".")
