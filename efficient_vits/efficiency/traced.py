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

    def __init__(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
        self._inputs = inputs
        self._outputs = outputs

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
