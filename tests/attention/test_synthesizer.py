"""The Synthesizers against the paper's formulas; mixtures; grids; foreign weights."""

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import efficient_vits
from efficient_vits.attention import create_attention

FORMS = {
    "dense": "synthesizer_d",
    "random": "synthesizer_r",
    "factorized_dense": "synthesizer_fd",
    "factorized_random": "synthesizer_fr",
}
CASES = {
    **{name: (name, {}) for name in FORMS.values()},
    "pairs": ("synthesizer_fd", {"pairs": True}),
    "f=3": ("synthesizer_fd", {"f": 3}),
    "rank 3": ("synthesizer_fr", {"f": 3}),
    "R+D": ("synthesizer_r", {"mix_with": ("dense",)}),
    "R+FR": ("synthesizer_r", {"mix_with": ["factorized_random"]}),
    "FD+dot": ("synthesizer_fd", {"mix_with": ("dot",), "pairs": True}),
    "all": ("synthesizer_d", {"mix_with": ("random", "factorized_dense", "dot"), "f": 2}),
}
MIXTURES = [case for case, (_, own) in CASES.items() if "mix_with" in own]


def build(case, heads=2, head_dim=4, grid=(2, 3), prefix=1, **arguments):
    name, own = CASES[case]
    return create_attention(
        name,
        heads * head_dim,
        num_heads=heads,
        grid_size=grid,
        num_prefix_tokens=prefix,
        **own,
        **arguments,
    )


def naive_logit(form, layer, tokens, h, n, m, heads):
    """One logit of one head: what token n thinks of token m."""

    def of_head(values):
        return values.chunk(heads)[h]

    if form == "dense":
        return layer.weight[h, m] @ of_head(layer.hidden(tokens[n])).relu() + layer.bias[h, m]
    if form == "random":
        return layer.weight[h, n, m]
    if form == "factorized_random":
        return layer.left[h, n] @ layer.right[h, m]
    if form == "factorized_dense":
        a, b = of_head(layer.to_a(tokens[n])), of_head(layer.to_b(tokens[n]))
        return a[m // len(b)] * b[m % len(b) if layer.pairs else m // len(a)]
    q, k = layer.qk(tokens[n]).chunk(2)[0], layer.qk(tokens[m]).chunk(2)[1]
    return of_head(q) @ of_head(k) / (len(q) / heads) ** 0.5


def naive(mixer, x, is_causal=False):
    """Pair by pair, head by head."""
    shares = torch.ones(1) if mixer.mixture is None else mixer.mixture.exp()
    images = []
    for tokens in x:
        N, heads = len(tokens), []
        for h, v in enumerate(mixer.v(tokens).chunk(mixer.num_heads, dim=-1)):
            rows = []
            for n in range(N):
                seen = n + 1 if is_causal else N
                logits = sum(
                    share
                    / shares.sum()
                    * torch.stack(
                        [
                            naive_logit(form, layer, tokens, h, n, m, mixer.num_heads)
                            for m in range(seen)
                        ]
                    )
                    for share, (form, layer) in zip(shares, mixer.logits.items(), strict=True)
                )
                rows.append(logits.exp() / logits.exp().sum() @ v[:seen])
            heads.append(torch.stack(rows))
        images.append(mixer.proj(torch.cat(heads, dim=-1)))
    return torch.stack(images)


def results(forward, mixer, x, target):
    mixer.zero_grad()
    x.grad = None
    y = forward(x)
    (y * target).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in mixer.parameters())]


def compare(twin, case, heads, head_dim, grid, prefix, seed, **call):
    torch.manual_seed(seed)
    mixer = build(case, heads, head_dim, grid, prefix).double()
    for name, parameter in mixer.named_parameters():
        if name == "mixture" or name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    N = prefix + grid[0] * grid[1]
    x = torch.randn(2, N, heads * head_dim, dtype=torch.float64, requires_grad=True)
    target = torch.randn_like(x)
    fast = results(lambda x: mixer(x, **call), mixer, x, target)
    slow = results(lambda x: twin(mixer, x, **call), mixer, x, target)
    for ours, plain in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, plain)  # float64: rounding alone


@settings(max_examples=5, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    prefix=st.integers(0, 2),
    is_causal=st.booleans(),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("case", list(CASES))
def test_equals_its_naive_twin(case, heads, head_dim, grid, prefix, is_causal, seed):
    compare(naive, case, heads, head_dim, grid, prefix, seed, is_causal=is_causal)


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize(
    "wrong",
    [
        lambda mixer, x: naive(mixer, x) + 1e-4 * x,
        lambda mixer, x: naive(mixer, x, is_causal=True),
        lambda mixer, x: naive(mixer, x.flip(1)).flip(1),  # tokens are told apart
    ],
)
def test_a_wrong_twin_is_noticed(case, wrong):
    with pytest.raises(AssertionError, match="not close"):
        compare(wrong, case, 2, 3, (2, 3), 1, 0)


def test_the_two_tilings_differ():
    """4 values times 4 for 16 tokens: all products, or the 4 of equal places."""
    products = {}
    for pairs in (False, True):
        layer = create_attention("synthesizer_fd", 8, grid_size=(3, 5), pairs=pairs).logits
        products[pairs] = layer["factorized_dense"](torch.randn(1, 16, 8))[0, 0, 0].unique().numel()
    assert products == {False: 4, True: 16}


@pytest.mark.parametrize("case", list(CASES))
def test_a_mask_is_the_same_as_fewer_tokens_to_look_at(case):
    mixer, x = build(case).double(), torch.randn(2, 7, 8, dtype=torch.float64)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    torch.testing.assert_close(mixer(x, attn_mask=causal), mixer(x, is_causal=True))
    assert not torch.allclose(mixer(x, attn_mask=causal), mixer(x))
    only_itself = torch.eye(7, dtype=torch.bool)
    torch.testing.assert_close(mixer(x, attn_mask=only_itself), mixer.proj(mixer.v(x)))
    first_image = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    first_image[1] = only_itself
    y = mixer(x, attn_mask=first_image)
    torch.testing.assert_close(y[0], mixer(x)[0])
    torch.testing.assert_close(y[1], mixer.proj(mixer.v(x[1])))


def test_a_mixture_with_one_form_left_is_that_form():
    mixer = build("all").double()
    alone = create_attention("synthesizer_r", 8, num_heads=2, grid_size=(2, 3)).double()
    state = mixer.state_dict()
    alone.load_state_dict({name: state[name] for name in alone.state_dict()})
    with torch.no_grad():
        mixer.mixture[1] = 100  # the others: exp(-100)
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), alone(x))
    with torch.no_grad():
        mixer.mixture.zero_()
    assert not torch.allclose(mixer(x), alone(x))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("synthesizer_d", {"f": 4}, "f >= 1"),
        ("synthesizer_fd", {"f": 0}, "f >= 1"),
        ("synthesizer_fr", {"pairs": True}, "pairs"),
        ("synthesizer_r", {"mix_with": ("random",)}, "once"),
        ("synthesizer_r", {"mix_with": ("vanilla",)}, "dot"),
        ("synthesizer_r", {"qk_norm": True}, "qk_norm"),
    ],
)
def test_arguments_without_meaning_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        create_attention(name, 8, num_heads=2, grid_size=(2, 3), **arguments)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", list(CASES))
def test_another_grid_is_the_same_as_building_at_it(case, bias):
    mixer, other = build(case, grid=(2, 3), qkv_bias=bias), build(case, grid=(5, 4), qkv_bias=bias)
    mixer.set_grid_size((5, 4))
    for module in mixer.logits.values():
        module.set_grid_size((5, 4))  # a ViT asks all modules
    other.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 21, 8)
    torch.testing.assert_close(mixer(x), other(x))
    assert repr(mixer) == repr(other)
    with pytest.raises(AssertionError, match="set_grid_size"):
        mixer(torch.randn(2, 7, 8))


@pytest.mark.parametrize("name", ["synthesizer_d", "synthesizer_r", "synthesizer_fr"])
def test_logits_follow_the_grid_and_those_of_prefix_tokens_stay(name):
    mixer = build(name, grid=(2, 3), prefix=2).double()
    (layer,) = mixer.logits.values()
    x = torch.randn(1, 2 + 15, 8, dtype=torch.float64)
    x[:, 2:] = x[:, 2:3]  # tokens without a place, so that only the parameters tell places apart
    before = layer(x[:, :8])
    mixer.set_grid_size((5, 3))
    after = layer(x)
    torch.testing.assert_close(after[..., :2, :2], before[..., :2, :2])
    # Corners: the same but for what the bicubic filter takes from their neighbours.
    old = before[..., 0, 2:].reshape(*before.shape[:2], 2, 3)
    new = after[..., 0, 2:].reshape(*before.shape[:2], 5, 3)
    torch.testing.assert_close(new.mean(-2), old.mean(-2), rtol=0, atol=1e-6)


def test_dense_factors_keep_their_height_in_the_image():
    """A first factor that grows from top to bottom does so at every resolution."""
    mixer = build("synthesizer_fd", heads=1, head_dim=1, grid=(8, 8), prefix=1, qkv_bias=True)
    layer = mixer.logits["factorized_dense"]

    def logits(size):
        return layer(torch.ones(1, 1 + size[0] * size[1], 1))[0, 0, 0, 1:].reshape(size)

    with torch.no_grad():
        layer.to_a.weight.copy_(torch.arange(8.0).view(8, 1))
        layer.to_a.bias.zero_()
        layer.to_b.weight.zero_()
        layer.to_b.bias.fill_(1)
    mixer.set_grid_size((16, 12))
    rows = logits((16, 12)).mean(1)
    # A row lies on the steps of the new factor, of which there are 14, 8 / 14 high.
    wanted = (torch.arange(16.0) + 0.5) / 16 * 65 / 9 - 0.5
    torch.testing.assert_close(rows, wanted.clamp(0, 7), rtol=0, atol=0.6)


REFERENCE = {
    "synthesizer_fd": {
        "logits.factorized_dense.to_a": "f_a",
        "logits.factorized_dense.to_b": "f_b",
    },
    "synthesizer_fr": {
        "logits.factorized_random.left": "random_attn_1",
        "logits.factorized_random.right": "random_attn_2",
    },
}


@pytest.mark.parametrize("name", list(REFERENCE))
def test_weights_of_another_resolution_and_of_the_benchmark_load(name):
    arguments = {"depth": 2, "num_classes": 5}
    small = timm.create_model(f"{name}_ti16", img_size=64, **arguments)
    large = timm.create_model(f"{name}_ti16", img_size=(96, 128), **arguments)
    theirs = {}
    for key, value in small.state_dict().items():
        for our, their in REFERENCE[name].items():
            key = key.replace(our, their)
        theirs[key] = value.transpose(1, 2) if key.endswith("random_attn_2") else value
    loaded = efficient_vits.load_weights(large, theirs)
    assert loaded.layout == "benchmark reference"
    small.set_input_size((96, 128))
    for key, value in small.state_dict().items():
        assert torch.equal(large.state_dict()[key], value), key


@pytest.mark.parametrize("case", list(CASES))
def test_weights_of_another_resolution_load(case):
    name, own = CASES[case]
    arguments = {"attention": name, "depth": 1, "num_classes": 5, **own}
    small = timm.create_model("vit_ti16", img_size=64, **arguments)
    large = timm.create_model("vit_ti16", img_size=96, **arguments)
    loaded = efficient_vits.load_weights(large, small.state_dict())
    assert any("logits" in name for name in loaded.resampled)
    small.set_input_size((96, 96))
    for key, value in small.state_dict().items():
        assert torch.equal(large.state_dict()[key], value), key


@pytest.mark.parametrize("case", list(CASES))
def test_values_that_fit_no_square_grid_are_left_alone(case):
    mixer = build(case, heads=3)
    for path, module in mixer.logits.items():
        for name, parameter in module.named_parameters():
            # No number of tokens gives this, heads included.
            for shape in [(7,), (7, 8), (3, 7777777, 5), (3, 6, 6, 1), (0, 1)]:
                value = torch.empty(shape, device="meta")
                assert module.resample_parameter(name, value) is value, (
                    path,
                    name,
                    parameter.shape,
                )


@pytest.mark.parametrize("case", [*MIXTURES, "pairs"])
def test_mixtures_compile_export_script_and_survive_half_precision(case):
    mixer, x = build(case).eval(), torch.randn(2, 7, 8)
    torch.testing.assert_close(torch.jit.script(mixer)(x), mixer(x))
    compiled = torch.compile(mixer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), mixer(x))
    exported = torch.export.export(mixer, (x,)).module()
    torch.testing.assert_close(exported(x), mixer(x))
    assert torch.equal(copy.deepcopy(mixer)(x), mixer(x))
    assert mixer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    x = (30 * x).requires_grad_()
    with torch.autocast("cpu", torch.float16):
        y = build(case)(x)
    y.float().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_shared_weights_are_not_copied_for_every_image():
    """Dropout hits the same weights in all images, and they are computed once."""
    mixer = build("synthesizer_r", attn_drop=0.5).train()
    image = torch.randn(1, 7, 8)
    y = mixer(image.expand(4, -1, -1))
    assert torch.equal(y[0], y[3])
    assert not torch.equal(mixer(image), mixer(image))
