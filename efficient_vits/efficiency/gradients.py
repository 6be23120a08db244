"""What the backward pass through each operator costs: one table beside that of `rules.py`.

A matrix product or convolution `y = a b` costs its multiply-adds again for each of `a` and `b` that
needs a gradient: the image, frozen weights and all that depends on them alone need none. A function
of each element costs its derivative, times the gradient; what the forward pass computed is at hand.
An operand that was broadcast gets the sum of what it was repeated for, a value with several users
the sum of theirs. What has no entry costs its forward cost once more.
"""

from collections import Counter
from collections.abc import Callable

from efficient_vits.efficiency.contractions import einsum_cost
from efficient_vits.efficiency.rules import RULES
from efficient_vits.efficiency.traced import TracedCall

#: FLOPs of the backward pass, under the names of the operations that it consists of.
Gradient = Callable[[TracedCall], Counter[str]]


def gradient_cost(name: str, call: TracedCall) -> Counter[str]:
    """FLOPs of the backward pass of one call, by operation.

    Args:
        name: a key of `RULES`, or an operator that is free in the forward pass.
        call: where the gradient of its result arrives.
    """
    gradient = GRADIENTS.get(name)
    if gradient is not None:
        return gradient(call)
    cost = RULES[name](call) if name in RULES else 0
    return Counter(cost if isinstance(cost, dict) else {name: cost})


def _product(name: str, left: int, right: int, bias: int | None = None) -> Gradient:
    def gradient(call: TracedCall) -> Counter[str]:
        forward = RULES[name](call)
        assert isinstance(forward, int)
        wanted = call.needs_gradient(left) + call.needs_gradient(right)
        cost = Counter({name: forward * wanted})
        if bias is not None:
            cost["sum"] = _summed(call, bias)
        return cost

    return gradient


def _summed(call: TracedCall, argument: int) -> int:
    """Additions that bring a gradient of the result's shape to the shape of an argument.

    What the images have in common gets the sum over them, so that one image counts like each of
    many.
    """
    if not call.needs_gradient(argument):
        return 0
    repeated = call.numel(argument) < call.output_numel or call.is_shared(argument)
    return call.output_numel if repeated else 0


def _operands(name: str, *costs: int) -> Gradient:
    """So many operations per result for the gradient of each of the first arguments."""

    def gradient(call: TracedCall) -> Counter[str]:
        wanted = [i for i in range(len(costs)) if call.needs_gradient(i)]
        return Counter(
            {
                name: sum(costs[i] for i in wanted) * call.output_numel,
                "sum": sum(_summed(call, i) for i in wanted),
            }
        )

    return gradient


def _inputs(name: str, cost: int) -> Gradient:
    return lambda call: Counter({name: cost * call.numel(0)})


def _norm(name: str, weight: int, *, centred: bool) -> Gradient:
    """Gradients of the input, the weight (a multiply-add per element) and the bias (an addition).

    That of the input x = r (g - mean(g) - y mean(g y)), for the normalised y, takes a sum, two
    multiply-adds and two products; without a mean in the forward pass it has no mean(g).
    """

    def gradient(call: TracedCall) -> Counter[str]:
        affine = call.is_given(weight)
        cost = 0
        if call.needs_gradient(0):
            cost += (7 if centred else 5) + affine
        cost += _affine(call, weight, bias=weight + 1 if centred else None)
        return Counter({name: cost * call.numel(0)})

    return gradient


def _affine(call: TracedCall, weight: int, *, bias: int | None) -> int:
    return 2 * call.needs_gradient(weight) + (bias is not None and call.needs_gradient(bias))


def _batch_norm(name: str) -> Gradient:
    of_the_batch = _norm(name, 1, centred=True)

    def gradient(call: TracedCall) -> Counter[str]:
        if call.constant(5):
            return of_the_batch(call)
        # With known statistics it is a scaling.
        cost = call.needs_gradient(0) + _affine(call, 1, bias=2)
        return Counter({name: cost * call.numel(0)})

    return gradient


def _einsum(call: TracedCall) -> Counter[str]:
    wanted = call.need_gradients(1)
    return Counter(
        einsum_cost(call.constant(0), call.shapes(1), call.integers(2), gradients=wanted)
    )


def _attention(call: TracedCall) -> Counter[str]:
    """As the plain code; a fused kernel may compute scores again, which is not counted."""
    key_tokens, dim = call.shape(1)[-2:]
    value_dim = call.shape(2)[-1]
    scores = call.output_numel // value_dim * key_tokens
    q, k, v, mask = (call.needs_gradient(i) for i in range(4))
    through_scores = q or k or mask
    return Counter(
        {
            "mul": q * call.numel(0),
            "matmul": scores * (dim * (q + k) + value_dim * (through_scores + v)),
            "sum": scores if mask and (call.numel(3) < scores or call.is_shared(3)) else 0,
            "softmax": 4 * scores * through_scores,
            "dropout": scores * through_scores if call.constant(4) else 0,
        }
    )


def _repeated(call: TracedCall) -> Counter[str]:
    return Counter({"sum": _summed(call, 0)})


def _gathered(call: TracedCall) -> Counter[str]:
    return Counter({"scatter_add": call.output_numel})


def _free(call: TracedCall) -> Counter[str]:
    return Counter()


def _each(names: str, cost: int) -> dict[str, Gradient]:
    return {name: _operands(name, cost) for name in names.split()}


#: By the names of `RULES`, and of `FREE` where the way back is not free.
GRADIENTS: dict[str, Gradient] = {
    "linear": _product("linear", 0, 1, bias=2),
    **{
        n: _product(n, 0, 1)
        for n in ["matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "grouped_mm", "tensordot"]
    },
    **{n: _product(n, 1, 2, bias=0) for n in ("addmm", "addmv", "baddbmm")},
    "addbmm": _product("addbmm", 1, 2),
    **{
        n: _product(n, 0, 1, bias=2)
        for n in ["convolution", "convolution_mode", "conv1d", "conv2d", "conv3d"]
    },
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    # Functions of two operands.
    "add": _operands("add", 0, 0),
    **{n: _operands(n, 0, 1) for n in ("sub", "subtract")},
    "rsub": _operands("rsub", 1, 0),
    **{n: _operands(n, 1, 1) for n in ["mul", "multiply", "outer", "ger", "kron"]},
    **{n: _operands(n, 1, 3) for n in ["div", "divide", "true_divide"]},
    "pow": _operands("pow", 5, 22),
    "prelu": _operands("prelu", 1, 1),
    "lerp": _operands("lerp", 2, 1, 2),
    "addcmul": _operands("addcmul", 0, 2, 2),
    "addcdiv": _operands("addcdiv", 0, 2, 4),
    # Of one.
    **_each("neg negative abs exp log leaky_relu rrelu hardsigmoid", 1),
    **_each("square sqrt exp2 expm1 log2 log10 log1p sin cos elu celu selu", 2),
    **_each("sigmoid tanh reciprocal hardswish", 3),
    **_each("rsqrt softmax", 4),
    **_each("silu glu", 5),
    "gelu": _operands("gelu", 12),
    **_each("softplus log_sigmoid erf log_softmax", 23),
    "mish": _operands("mish", 28),
    **dict.fromkeys(["softshrink", "floor_divide", "remainder", "fmod", "frac"], _free),
    # Normalisation.
    **{n: _norm(n, 2, centred=True) for n in ["layer_norm", "native_layer_norm", "group_norm"]},
    **{n: _batch_norm(n) for n in ("batch_norm", "instance_norm")},
    "rms_norm": _norm("rms_norm", 2, centred=False),
    # Reductions.
    "sum": _free,
    "prod": _inputs("prod", 2),
    "mean": _operands("mean", 1),
    **{n: _inputs(n, 2) for n in ["norm", "frobenius_norm", "linalg_vector_norm", "linalg_norm"]},
    **{n: _inputs(n, 3) for n in ["var", "std", "var_mean", "std_mean"]},
    "logsumexp": _inputs("logsumexp", 22),
    # By index: what is added up comes back by being read.
    **dict.fromkeys(["scatter_add", "scatter_reduce", "index_add", "index_reduce"], _free),
    **dict.fromkeys(["scatter", "index_put"], _free),
    # Free on the way there.
    **dict.fromkeys(
        ["expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave"], _repeated
    ),
    **dict.fromkeys(["upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"], _repeated),
    **dict.fromkeys(
        ["gather", "index", "index_select", "embedding", "take", "take_along_dim"], _gathered
    ),
    **dict.fromkeys(["unfold", "im2col", "max_pool1d", "max_pool2d", "max_pool3d"], _gathered),
}
