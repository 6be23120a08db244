"""Costs of single operators by their shapes and arguments; `rules.py` says which has which."""

from collections.abc import Callable
from math import ceil, log2, prod

from efficient_vits.efficiency.contractions import einsum_cost
from efficient_vits.efficiency.traced import TracedCall, UnreadableArgument

#: FLOPs, or FLOPs under the names of the operators that this one stands for.
Rule = Callable[[TracedCall], int | dict[str, int]]


def matrix_product(left: int) -> Rule:
    """Every output element sums over the last dimension of the argument `left`."""
    return lambda call: call.output_numel * call.shape(left)[-1]


def addbmm(call: TracedCall) -> int:
    return call.numel(1) * call.shape(2)[-1]


def tensordot(call: TracedCall) -> int:
    contracted = call.integers(2) or []
    return call.output_numel * prod([call.shape(0)[dim] for dim in contracted])


def einsum(call: TracedCall) -> dict[str, int]:
    return einsum_cost(call.constant(0), call.shapes(1), call.integers(2))


def convolution(call: TracedCall) -> int:
    # Every output (of a transposed one: every input) meets each weight of one filter once.
    return call.output_numel * prod(call.shape(1)[1:])


def maybe_transposed_convolution(call: TracedCall) -> int:
    return call.numel(0) * prod(call.shape(1)[1:]) if call.constant(6) else convolution(call)


def attention(call: TracedCall) -> dict[str, int]:
    """Fused attention costs what the plain code `softmax(q * scale @ k.T + mask) @ v` would."""
    key_tokens, dim = call.shape(1)[-2:]
    value_dim = call.shape(2)[-1]
    scores = call.output_numel // value_dim * key_tokens
    is_masked = call.is_given(3) or call.constant(5)
    return {
        "mul": call.numel(0),
        "matmul": scores * (dim + value_dim),
        "add": scores if is_masked else 0,
        "softmax": 5 * scores,
        "dropout": scores if call.constant(4) else 0,
    }


def dropout(call: TracedCall) -> int:
    """In training what is left is scaled; else nothing happens."""
    return call.output_numel if call.constant(2) and call.constant(1) else 0


def each_output(cost: int) -> Rule:
    return lambda call: cost * call.output_numel


def each_input(cost: int, *, minus_output: int = 0) -> Rule:
    return lambda call: cost * call.numel(0) - minus_output * call.output_numel


def normalization(weight: int) -> Rule:
    """Mean, deviation, square, scale: 4; with the affine weight and bias, a multiply-add, 5."""
    return lambda call: (5 if call.is_given(weight) else 4) * call.numel(0)


def with_running_statistics(uses_batch: Callable[[TracedCall], bool]) -> Rule:
    """Known statistics leave one multiply-add of normalisation and one of affine weights."""

    def rule(call: TracedCall) -> int:
        if uses_batch(call):
            return (5 if call.is_given(1) else 4) * call.numel(0)
        return (2 if call.is_given(1) else 1) * call.numel(0)

    return rule


def rms_norm(call: TracedCall) -> int:
    return (4 if call.is_given(2) else 3) * call.numel(0)


def cumulative(call: TracedCall) -> int:
    shape = call.shape(0)
    if prod(shape) == 0 or not shape:
        return 0
    (length,) = [shape[dim] for dim in call.integers(1) or ()]
    # The first element of every lane is copied.
    return prod(shape) - prod(shape) // length


def matrix_or_vector_norm(call: TracedCall) -> int:
    dims = call.integers(2)
    is_vector_norm = not call.is_given(1) or (dims is not None and len(dims) == 1)
    if not is_vector_norm and call.constant(1) != "fro":
        raise UnreadableArgument
    return 2 * call.numel(0) - call.output_numel


def log_sum_exp(call: TracedCall) -> int:
    # x - max, exp, sum; log, + max.
    return 22 * call.numel(0) + 20 * call.output_numel


def added_elements(values: int, *, reduction: int | None = None) -> Rule:
    """One addition per element of the argument `values`; `reduction` is where its kind is said."""

    def rule(call: TracedCall) -> int:
        if reduction is not None and call.constant(reduction) in ("amax", "amin"):
            return 0
        return call.numel(values)

    return rule


def scatter(call: TracedCall) -> int:
    # scatter(..., reduce="add") has a fifth argument; the plain one only copies.
    return call.numel(2) if call.has_argument(4) else 0


def index_put(call: TracedCall) -> int:
    return call.numel(2) if call.constant(3) else 0


def fourier(cost: float, *, real_input: bool = False) -> Rule:
    """`cost * N log2(N)` per transform of N points (fftw.org/speed/method.html)."""

    def rule(call: TracedCall) -> int:
        points = list(call.output_shape)
        sizes, dims = call.integers(1), call.integers(2)
        if dims is None:
            dims = list(range(-len(sizes or points), 0))
        if real_input:
            # The result holds half of the last dimension only.
            points[dims[-1]] = call.shape(0)[dims[-1]] if sizes is None else sizes[-1]
        length = prod(points[dim] for dim in dims)
        return int(cost * prod(points) * log2(length)) if length else 0

    return rule


def average_pool(spatial: int) -> Rule:
    def rule(call: TracedCall) -> int:
        kernel = call.integers(1) or []
        window = kernel[0] ** spatial if len(kernel) == 1 else prod(kernel)
        return window * call.output_numel

    return rule


def antialiased(taps: int) -> Rule:
    """Two passes, along the width and then the height; shrinking widens the filter."""

    def rule(call: TracedCall) -> int:
        (*_, height, width), (*_, new_height, new_width) = call.shape(0), call.output_shape
        lanes = call.output_numel // (new_height * new_width)
        across = height * new_width * ceil(taps * max(1.0, width / new_width))
        down = new_height * new_width * ceil(taps * max(1.0, height / new_height))
        return lanes * (across + down)

    return rule


def grid_sample(call: TracedCall) -> int:
    taps_by_mode = {0: 2, 1: 0, 2: 4}  # bilinear, nearest, bicubic: per spatial dimension
    spatial = len(call.output_shape) - 2
    return taps_by_mode[call.constant(2)] ** spatial * call.output_numel


def pair_distances(call: TracedCall) -> int:
    return 3 * call.shape(0)[-1] * call.output_numel
