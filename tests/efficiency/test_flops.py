import copy
import logging
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

from efficient_vits.efficiency import FlopCount, count_flops


def paper_vit(dim: int, depth: int, heads: int) -> nn.Module:
    return timm.models.VisionTransformer(
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        no_embed_class=True,
        init_values=1e-4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        device="meta",
    )


def small_vit(**kwargs: object) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, **kwargs)


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "flops"),
    [(192, 12, 3, 1282228308), (384, 12, 6, 4655972520), (768, 12, 12, 17678008656)],
)
def test_the_papers_vits_have_the_papers_flops(
    dim: int, depth: int, heads: int, flops: int
) -> None:
    result = count_flops(paper_vit(dim, depth, heads))
    assert result.total == flops
    assert result.uncounted == {}


@pytest.mark.parametrize(
    ("name", "dim", "img_size"),
    [("vit_tiny_patch16_224", 192, 224), ("vit_small_patch16_384", 384, 384)],
)
def test_macs_of_a_vit_are_the_closed_formula(name: str, dim: int, img_size: int) -> None:
    patches = (img_size // 16) ** 2
    tokens = patches + 1
    block = 12 * tokens * dim**2 + 2 * tokens**2 * dim
    with torch.device("meta"):
        model = timm.create_model(name)
    macs = count_flops(model, (3, img_size, img_size)).macs
    assert macs == patches * 16 * 16 * 3 * dim + 12 * block + dim * 1000


def test_the_parts_add_up() -> None:
    result = count_flops(small_vit(), (3, 64, 64))
    assert sum(result.by_operator.values()) == result.total == result.by_module.total
    blocks = result.by_module["blocks"]
    assert blocks.total == sum(block.total for block in blocks.children)
    assert result.by_module["blocks.0.attn.qkv"].own == 17 * 192 * 3 * 192
    assert result.training is False
    assert result.rules == "paper-1"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_fused_attention_changes_nothing(name: str) -> None:
    depth = {"depths": (1, 1, 1, 1)} if "swin" in name else {"depth": 2}
    model = timm.create_model(name, **depth)
    attention = [module for module in model.modules() if hasattr(module, "fused_attn")]
    assert attention
    counts = []
    for fused in (True, False):
        for module in attention:
            module.fused_attn = fused
        counts.append(count_flops(model))
    # (Which module the softmax belongs to does change.)
    assert counts[0].by_operator == counts[1].by_operator
    assert counts[0].total == counts[1].total


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "coat_tiny"])
def test_a_meta_model_counts_like_a_real_one(name: str) -> None:
    meta = timm.create_model(name, device="meta")
    assert count_flops(meta) == count_flops(timm.create_model(name))
    assert all(p.is_meta for p in meta.parameters())


def test_index_buffers_of_a_meta_model_are_valid() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))
            self.register_buffer("index", torch.arange(3), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.bias[self.index]

    assert count_flops(Table().to("meta"), (5, 3)).total == 15


def test_the_figure_is_per_image() -> None:
    model = small_vit()
    assert count_flops(model, (3, 64, 64), batch_size=3) == count_flops(model, (3, 64, 64))


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (torch.special.bessel_j0, "aten::special_bessel_j0"),
        (torch.linalg.svdvals, "aten::linalg_svdvals"),
        # A matrix norm takes a decomposition, which the vector norm's rule doesn't describe.
        (lambda x: torch.linalg.norm(x, ord="nuc", dim=(-2, -1)), "aten::linalg_norm"),
    ],
)
def test_an_operator_without_a_rule_is_reported(
    function: Callable[[Tensor], Tensor], operator: str
) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x + 1)

    result = count_flops(Model(), (2, 4, 4))
    assert result.uncounted == {operator: 1}
    assert result.by_operator == {"add": 32}


def test_an_autograd_function_is_reported() -> None:
    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.exp()

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Exp.apply(x)

    assert count_flops(Model(), (4,)).uncounted == {"prim::PythonOp.Exp": 1}


def test_multi_head_attention_is_looked_into() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    result = count_flops(layer, (5, 8))
    assert result.uncounted == {}
    assert result.macs == 5 * 8 * (4 * 8 + 2 * 16) + 2 * 5 * 5 * 8
    assert torch.backends.mha.get_fastpath_enabled()


class Logits:
    def __init__(self, values: Tensor) -> None:
        self.values = values


class Wrapped(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(x * 2)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"logits": y, "count": 3, "index": y.argmax()},
        lambda y: (3, [None, y.argmax()]),
        Logits,
    ],
)
def test_any_container_of_tensors_will_do(wrap: Callable[[Tensor], object]) -> None:
    assert count_flops(Wrapped(wrap), (5,)).by_operator == {"mul": 5}


def test_an_output_without_tensors_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="returned no tensor"):
        count_flops(Wrapped(lambda y: "no tensor"), (5,))


class Probe(nn.Module):
    """Draws random numbers and warns, as models may."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("the model's own", stacklevel=1)
        return self.layers(x) + torch.rand(4)


def _traces_of(model: nn.Module) -> list[tuple[bool, int, int]]:
    return [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_process_are_left_as_they_were(
    fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = Probe()
    model.layers[0].eval()
    hook = model.layers[0].register_forward_hook(lambda *_: None)
    model.layers(torch.randn(3, 4)).sum().backward()
    state, grads = copy.deepcopy(model.state_dict()), [p.grad for p in model.parameters()]
    before, random_state = _traces_of(model), torch.get_rng_state()
    filters = list(warnings.filters)

    with caplog.at_level(logging.DEBUG):
        if fails:
            with pytest.raises(RuntimeError, match=r"Probe .*\(1, 7\)") as caught:
                count_flops(model, (7,))
            assert caught.value.__cause__ is not None
        else:
            assert isinstance(count_flops(model, (4,)), FlopCount)

    assert _traces_of(model) == before
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert [p.grad for p in model.parameters()] == grads
    assert torch.equal(torch.get_rng_state(), random_state)
    assert warnings.filters == filters
    assert caplog.records == []
    hook.remove()
    assert not model.layers[0]._forward_hooks


def test_a_compiled_model_counts_like_the_one_it_compiles() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    assert count_flops(torch.compile(model), (4,)) == count_flops(model, (4,))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "vit"}, TypeError, "torch.nn.Module, got str"),
        ({"input_size": (3, 0, 224)}, ValueError, r"got \(3, 0, 224\)"),
        ({"input_size": ()}, ValueError, "input_size"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        count_flops(**{"model": nn.Identity(), **arguments})
