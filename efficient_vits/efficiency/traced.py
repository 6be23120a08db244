"""Reading one operator of a traced graph: the shapes and the arguments it was called with."""

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

# torch._C.Value has no public type.
Value = Any


class UnreadableArgument(Exception):
    """An operator whose cost depends on something the trace doesn't tell."""


class TracedCall:
    """One operator call. Arguments are addressed by their position in the operator's schema."""

    def __init__(
        self,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        gradients: "Gradients | None" = None,
    ) -> None:
        self._inputs = inputs
        self._outputs = outputs
        self._gradients = gradients

    def shape(self, argument: int) -> list[int]:
        return _shape(self._inputs[argument])

    def shapes(self, argument: int) -> list[list[int]]:
        """Shapes of an argument that is a list of tensors."""
        return [_shape(value) for value in self._inputs[argument].node().inputs()]

    def numel(self, argument: int) -> int:
        return prod(self.shape(argument))

    @property
    def output_shape(self) -> list[int]:
        return _shape(self._outputs[0])

    @property
    def output_numel(self) -> int:
        return prod(self.output_shape)

    @property
    def gives_floats(self) -> bool:
        """Whether the (first) result is made of floating-point or complex numbers."""
        if not self._outputs[0].isCompleteTensor():
            raise UnreadableArgument
        # "Float", "Double", "Half", "BFloat16", "Float8_e4m3fn", "ComplexFloat", ...
        name = self._outputs[0].type().scalarType()
        return any(kind in name for kind in ("Float", "Double", "Half", "Complex"))

    def is_given(self, argument: int) -> bool:
        """Whether an optional argument is something else than None."""
        return not _is_none(self._inputs[argument])

    def has_argument(self, argument: int) -> bool:
        """Whether the overload that was called has an argument at this position."""
        return argument < len(self._inputs)

    def needs_gradient(self, argument: int) -> bool:
        """Whether the backward pass computes the gradient of this argument, if it comes by here."""
        return self._gradients is not None and self._gradients.required(self._inputs[argument])

    def need_gradients(self, argument: int) -> list[bool]:
        """The same for each tensor of an argument that is a list of them."""
        values = self._inputs[argument].node().inputs()
        return [self._gradients is not None and self._gradients.required(v) for v in values]

    def is_shared(self, argument: int) -> bool:
        """Whether the images of a batch have this argument in common, but not the result."""
        return (
            self._gradients is not None
            and not self._gradients.per_image(self._inputs[argument])
            and self._gradients.per_image(self._outputs[0])
        )

    @property
    def gives_gradient(self) -> bool:
        """Whether the backward pass comes by here."""
        return self._gradients is not None and any(map(self._gradients.arrives, self._outputs))

    @property
    def gradients_added(self) -> int:
        """Additions of the gradients that come back from several users of a result."""
        if self._gradients is None:
            return 0
        users = [(value, self._gradients.users(value)) for value in self._outputs]
        return sum((n - 1) * prod(_shape(value)) for value, n in users if n > 1)

    def constant(self, argument: int) -> Any:
        """Value of a Python scalar, string or None argument."""
        value = self._inputs[argument]
        if value.node().kind() != "prim::Constant":
            raise UnreadableArgument
        return value.toIValue()

    def integers(self, argument: int) -> list[int] | None:
        """Value of an argument that is an integer, a list of them (dimensions, sizes) or None."""
        value = self._inputs[argument]
        if _is_none(value):
            return None
        if value.node().kind() == "prim::ListConstruct":
            return [_integer(item) for item in value.node().inputs()]
        return [_integer(value)]


class Gradients:
    """Which values of a trace the backward pass gives a gradient.

    It is those that depend on a parameter with `requires_grad`, and that an output depends on
    through floating-point numbers. A comparison, an index or `detach` ends the way.
    """

    # Traced below autograd: the result doesn't say that it requires a gradient.
    _SILENT = frozenset({"aten::_convolution"})
    # The second argument gives its shape or dtype alone.
    _LIKE = frozenset({"aten::expand_as", "aten::type_as", "aten::view_as", "aten::reshape_as"})

    def __init__(self) -> None:
        self._arrives: dict[str, bool] = {}
        self._per_image: dict[str, bool] = {}

    def required(self, value: Value) -> bool:
        kind = value.type().kind()
        if kind == "TensorType":
            node = value.node()
            return value.requires_grad() or (
                node.kind() in self._SILENT and any(map(self.required, node.inputs()))
            )
        if kind == "ListType":
            # Only a list of tensors can have a gradient; that of one from an operator is unknown.
            return bool(value.type().getElementType().kind() == "TensorType")
        return bool(kind == "TupleType")

    def arrives(self, value: Value) -> bool:
        """Whether the backward pass brings a gradient to this value."""
        # Not by recursion: graphs are longer than Python's stack.
        pending = [value]
        while pending:
            name = pending[-1].debugName()
            if name in self._arrives:
                pending.pop()
                continue
            users = self._users(pending[-1]) if self.required(pending[-1]) else []
            results = [result for user in users for result in user.outputs()]
            unknown = [r for r in results if r.debugName() not in self._arrives]
            if any(map(self._ends, users)):
                self._arrives[name] = True
            elif unknown:
                pending += unknown
            else:
                self._arrives[name] = any(self._arrives[r.debugName()] for r in results)
        return self._arrives[value.debugName()]

    def per_image(self, value: Value) -> bool:
        """Whether a value depends on the images, which are the first input of the graph."""
        pending = [value]
        while pending:
            name, node = pending[-1].debugName(), pending[-1].node()
            inputs = list(node.inputs())
            unknown = [i for i in inputs if i.debugName() not in self._per_image]
            if name in self._per_image:
                pending.pop()
            elif node.kind() == "prim::Param":
                self._per_image[name] = pending[-1].offset() == 0
            elif unknown:
                pending += unknown
            else:
                self._per_image[name] = any(self._per_image[i.debugName()] for i in inputs)
        return self._per_image[value.debugName()]

    def users(self, value: Value) -> int:
        """How many operators, and outputs of the model, send this value a gradient."""
        if not self.required(value):
            return 0
        return sum(
            self._ends(user) or any(map(self.arrives, user.outputs()))
            for user in self._users(value)
        )

    @staticmethod
    def _ends(user: Any) -> bool:
        return bool(user.kind() == "prim::Return")

    def _users(self, value: Value) -> list[Any]:
        return [
            use.user
            for use in value.uses()
            if not (use.user.kind() in self._LIKE and use.offset == 1)
        ]


def _is_none(value: Value) -> bool:
    is_none: bool = value.type().kind() == "NoneType"
    return is_none


def _shape(value: Value) -> list[int]:
    if not value.isCompleteTensor():
        raise UnreadableArgument
    sizes: list[int] = value.type().sizes()
    return sizes


# While tracing, Python's `x.shape[1] // 2` is recorded as operators instead of a number.
_INTEGER_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::floor_divide": operator.floordiv,
}


def _integer(value: Value) -> int:
    node = value.node()
    kind = node.kind()
    inputs = list(node.inputs())
    if kind == "prim::Constant":
        return int(value.toIValue())
    if kind in ("aten::Int", "aten::ScalarImplicit", "prim::NumToTensor"):
        return _integer(inputs[0])
    if kind == "aten::size":
        return _shape(inputs[0])[_integer(inputs[1])]
    if kind in _INTEGER_ARITHMETIC:
        return _INTEGER_ARITHMETIC[kind](_integer(inputs[0]), _integer(inputs[1]))
    raise UnreadableArgument
