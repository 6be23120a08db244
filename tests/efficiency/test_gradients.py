"""The backward pass: its products against torch's counter, the rest against its formula."""

import math
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from efficient_vits.efficiency import FlopCount, count_flops
from efficient_vits.efficiency.flops import BACKWARD
from efficient_vits.efficiency.gradients import GRADIENTS
from efficient_vits.efficiency.rules import FREE, RULES

# Distinct sizes: a rule that takes the wrong dimension gives another number.
C, H, W = 2, 6, 5
NUMEL = C * H * W


class Function(nn.Module):
    """A function of the image, scaled first by a parameter so that it needs a gradient."""

    def __init__(self, function: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> object:
        return self.function(x, self.scale)


# What scaling an image by a scalar parameter costs on the way back: a product and a sum for it.
SCALED = 2 * NUMEL


def backward_of(function: Callable[[Tensor], object], *shape: int) -> FlopCount:
    model = Function(lambda x, scale: function(x * scale))
    return count_flops(model, shape or (C, H, W), backward=True, strict=True)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


CASES: dict[str, tuple[Callable[[Tensor], object], int]] = {
    "linear": (lambda y: F.linear(y, ones(7, W), ones(7)), NUMEL * 7),
    "matmul with itself": (lambda y: y @ y.transpose(2, 3), 2 * NUMEL * H + NUMEL),
    "conv2d": (lambda y: F.conv2d(y, ones(7, C, 3, 3)), 7 * 4 * 3 * C * 9),
    "transposed": (lambda y: F.conv_transpose2d(y, ones(C, 7, 2, 2), stride=2), NUMEL * 28),
    "einsum": (lambda y: torch.einsum("bchw,wk->bchk", y, ones(W, 7)), NUMEL * 7),
    "einsum, a sum": (lambda y: torch.einsum("bchw->bch", y), 0),
    # Each use of y sends a gradient; the second one is added to the first.
    "add": (lambda y: y + y, NUMEL),
    "mul": (lambda y: y * y, 2 * NUMEL + NUMEL),
    "broadcast": (lambda y: y[..., :1] + torch.zeros(1, C, H, W), NUMEL),
    "div": (lambda y: y / ones(1, C, H, W), NUMEL),
    "div by it": (lambda y: ones(1, C, H, W) / y, 3 * NUMEL),
    "sub": (lambda y: 1 - y, NUMEL),
    "pow": (lambda y: y**2, 5 * NUMEL),
    "exp": (torch.exp, NUMEL),
    "sqrt": (torch.sqrt, 2 * NUMEL),
    "sigmoid": (torch.sigmoid, 3 * NUMEL),
    "softmax": (lambda y: y.softmax(1), 4 * NUMEL),
    "gelu": (F.gelu, 12 * NUMEL),
    "silu": (F.silu, 5 * NUMEL),
    "relu": (F.relu, 0),
    "layer_norm": (lambda y: F.layer_norm(y, (W,), ones(W), ones(W)), 8 * NUMEL),
    "layer_norm, plain": (lambda y: F.layer_norm(y, (W,)), 7 * NUMEL),
    "rms_norm": (lambda y: F.rms_norm(y, (W,), ones(W)), 6 * NUMEL),
    "batch_norm": (lambda y: F.batch_norm(y, ones(C), ones(C), ones(C), ones(C)), NUMEL),
    "batch_norm, of the batch": (lambda y: F.batch_norm(y, None, None, training=True), 7 * NUMEL),
    "sum": (lambda y: y.sum(2), 0),
    "mean": (lambda y: y.mean((2, 3)), C),
    "cumsum": (lambda y: y.cumsum(2), NUMEL - C * W),
    "norm": (lambda y: y.norm(dim=2), 2 * NUMEL),
    "expand": (lambda y: y[:, :, :1].expand(1, C, H, W), NUMEL),
    "gather": (lambda y: y[:, [0, 1, 1]], 3 * H * W),
    "moves": (lambda y: y.flatten(1).roll(1, 1).view(1, H, -1).permute(0, 2, 1), 0),
    "fft": (lambda y: torch.fft.fft(y, dim=1).real, int(5 * NUMEL * math.log2(C))),
    # No gradient comes back through these, nor through what led to them.
    "argmax": (lambda y: (y.sigmoid().argmax(-1), y), 0),
    "compare": (lambda y: torch.where(y.sigmoid() > 0.5, y, 0), 0),
    "detach": (lambda y: y.sigmoid().detach() * y, NUMEL),
}


@pytest.mark.parametrize("name", CASES)
def test_cost(name: str) -> None:
    function, expected = CASES[name]
    count = backward_of(function)
    assert count.backward == SCALED + expected
    assert count.total == count.forward + count.backward
    assert count.forward == count_flops(Function(lambda x, s: function(x * s)), (C, H, W)).total


def torchs_products(model: nn.Module, images: Tensor) -> int:
    """Multiply-adds of forward and backward pass, as they run."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return counter.get_total_flops() // 2


def frozen(name: str, **arguments: object) -> nn.Module:
    model = timm.create_model(name, **arguments)
    for module in (model.patch_embed, model.blocks[0], model.blocks[1].norm1):
        module.requires_grad_(False)
    model.pos_embed.requires_grad_(False)
    model.cls_token.requires_grad_(False)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64),
    "frozen": lambda: frozen("vit_tiny_patch16_224", depth=3, img_size=64),
    "class attention": lambda: timm.create_model("cait_xxs24_224", depth=1, img_size=64),
    "resnet": lambda: timm.create_model("resnet26"),
    "filters": lambda: timm.create_model("gfnet_ti16", depth=2, img_size=64),
    "queries from tokens": lambda: timm.create_model("linformer_ti16", depth=2, img_size=64),
}


@pytest.mark.parametrize("name", MODELS)
def test_products_are_torchs_to_the_last_digit(name: str) -> None:
    model, images = MODELS[name]().train(), torch.randn(2, 3, 64, 64)
    ours = count_flops(model, images=images, training=True, backward=True, strict=True)
    assert ours.training
    assert 2 * ours.macs == torchs_products(model, images)


def test_frozen_layers_cost_nothing_on_the_way_back() -> None:
    model = MODELS["frozen"]()
    count = count_flops(model, (3, 64, 64), backward=True)
    forward = count_flops(model, (3, 64, 64))
    for name in ("patch_embed", "blocks.0"):
        assert count.by_module[name].total == forward.by_module[name].total
    # In the next layer the weights have gradients, its input has none.
    qkv = forward.by_module["blocks.1.attn.qkv"].total
    assert count.by_module["blocks.1.attn.qkv"].total == 2 * qkv + qkv // 192  # the bias: a sum


def test_a_model_without_trained_parameters_has_no_way_back() -> None:
    model = MODELS["vit"]().requires_grad_(False)
    assert count_flops(model, (3, 64, 64), backward=True).backward == 0
    assert count_flops(model, (3, 64, 64)).backward is None


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_the_batch_changes_nothing(name: str) -> None:
    model = MODELS[name]()
    two, three = (
        count_flops(model, (3, 64, 64), batch_size=n, training=True, backward=True) for n in (2, 3)
    )
    assert two == three
    if name == "vit":
        assert count_flops(model, (3, 64, 64), training=True, backward=True) == two


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 4),
    needs=st.tuples(*[st.booleans()] * 4),
    dropout=st.booleans(),
)
def test_fused_attention_is_its_plain_code(
    sizes: tuple[int, ...], needs: tuple[bool, ...], dropout: bool
) -> None:
    tokens, key_tokens, dim, value_dim = sizes
    p = 0.5 * dropout

    class Attention(nn.Module):
        def __init__(self, fused: bool) -> None:
            super().__init__()
            self.fused = fused
            shapes = [(tokens, dim), (key_tokens, dim), (key_tokens, value_dim)]
            shapes.append((tokens, key_tokens))
            self.operands = nn.ParameterList(
                nn.Parameter(torch.rand(2, *shape), requires_grad=need)
                for shape, need in zip(shapes, needs, strict=True)
            )

        def forward(self, x: Tensor) -> Tensor:
            q, k, v, mask = (x + operand for operand in self.operands)
            if self.fused:
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
            scores = (q * dim**-0.5) @ k.transpose(-2, -1) + mask
            return F.dropout(scores.softmax(-1), p, training=True) @ v

    fused, plain = (
        count_flops(Attention(fused), (2, 1, 1), training=True, backward=True, strict=True)
        for fused in (True, False)
    )
    assert fused == plain


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    equation=st.sampled_from(
        ["ij,jk->ik", "bij,bjk->bik", "ij,jk,kl->il", "i,ij->ij", "bij,bjk->bk", "ij,kl->ijkl"]
    ),
    size=st.tuples(*[st.integers(2, 4)] * 5),
    needs=st.tuples(*[st.booleans()] * 3),
)
def test_products_of_an_einsum_are_torchs(
    equation: str, size: tuple[int, ...], needs: tuple[bool, ...]
) -> None:
    sizes = dict(zip("bijkl", size, strict=True))
    terms = equation.partition("->")[0].split(",")

    class Einsum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.operands = nn.ParameterList(
                nn.Parameter(torch.rand([sizes[i] for i in term]), requires_grad=need)
                for term, need in zip(terms, needs, strict=False)
            )
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum(equation, *self.operands) + x.sum() + self.bias

    model = Einsum()
    ours = count_flops(model, (1,), backward=True, strict=True)
    assert ours.macs == torchs_products(model, torch.zeros(1, 1))


def test_the_table_names_operators_that_there_are() -> None:
    assert GRADIENTS.keys() <= RULES.keys() | FREE
    count = count_flops(MODELS["vit"](), (3, 64, 64), backward=True)
    backward = sum(n for name, n in count.by_operator.items() if name.endswith(BACKWARD))
    assert backward == count.backward
