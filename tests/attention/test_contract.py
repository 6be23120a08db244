"""What every registered token mixer must do; new ones are picked up by name."""

import copy

import pytest
import torch
from torch import nn

from efficient_vits.attention import attention_traits, create_attention, list_attentions

DIM, HEADS, GRID = 32, 4, (3, 5)
NAMES = list_attentions()
PREFIXES = [0, 1, 2, 5]


def usual(name):
    """A class token, where the mixer handles one."""
    return int(attention_traits(name).prefix_tokens)


def build(name, prefix=None, grid=GRID, **arguments):
    prefix = usual(name) if prefix is None else prefix
    mixer = create_attention(
        name, DIM, num_heads=HEADS, grid_size=grid, num_prefix_tokens=prefix, **arguments
    )
    return mixer.eval()


def tokens(name, prefix=None, grid=GRID, batch=2, **factory):
    prefix = usual(name) if prefix is None else prefix
    return torch.randn(batch, prefix + grid[0] * grid[1], DIM, **factory)


def having(trait):
    return [name for name in NAMES if getattr(attention_traits(name), trait)]


def lacking(trait):
    return [name for name in NAMES if not getattr(attention_traits(name), trait)]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", NAMES)
def test_mixes_tokens_whatever_their_prefix(name, prefix):
    if prefix and not attention_traits(name).prefix_tokens:
        with pytest.raises(ValueError, match="prefix"):
            build(name, prefix)
        return
    mixer, x = build(name, prefix), tokens(name, prefix)
    y = mixer(x)
    assert y.shape == x.shape
    changed = x.clone()
    changed[:, -1] += 1
    assert not torch.allclose(mixer(changed)[:, :-1], y[:, :-1], atol=1e-6), "tokens do not mix"


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_mix(name):
    mixer, x = build(name).double(), tokens(name, dtype=torch.float64)
    alone = torch.cat([mixer(image) for image in x.split(1)])
    torch.testing.assert_close(mixer(x), alone)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name):
    mixer = build(name).train()
    # The input needs one too: a mixer may have no parameters.
    mixer(tokens(name).requires_grad_()).square().sum().backward()
    assert [n for n, p in mixer.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    mixer = build(name, grid=(2, 3)).double()
    x = tokens(name, grid=(2, 3), batch=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(mixer, (x,))


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip(name):
    first, second, x = build(name), build(name), tokens(name)
    assert not torch.equal(first(x), second(x)) or not list(first.parameters())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    assert torch.equal(copy.deepcopy(first)(x), first(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_dtype(name, dtype):
    mixer, x = build(name), tokens(name)
    expected = mixer(x)
    got = mixer.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    # bfloat16 has 8 bits, and the values are of the order of 1.
    torch.testing.assert_close(got.float(), expected, atol=0.03, rtol=0.05)


@pytest.mark.parametrize("kind", ["large", "zero", "constant", "single"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_finite(name, dtype, kind):
    grid, prefix = ((1, 1), 0) if kind == "single" else (GRID, 1)
    if prefix and not attention_traits(name).prefix_tokens:
        prefix = 0
    mixer = build(name, prefix, grid).train()
    x = 30 * tokens(name, prefix, grid)
    if kind == "zero":
        x = torch.zeros_like(x)
    elif kind == "constant":
        x = x[:, :1].expand_as(x).clone()
    x.requires_grad_()
    with torch.autocast("cpu", dtype):
        y = mixer(x)
    y.float().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_no_padded_convolution_gets_an_image_narrower_than_its_stride(name):
    """There torch's bfloat16 gradient is not finite, but only where memory happens to hold NaN."""
    mixer, seen = build(name, 0, (3, 1)), []
    for module in mixer.modules():
        if isinstance(module, nn.Conv2d) and any(module.padding):
            module.register_forward_pre_hook(
                lambda conv, args: seen.append((args[0].shape[3], conv.stride[1]))
            )
    mixer(tokens(name, 0, (3, 1)))
    assert [(width, stride) for width, stride in seen if width < stride] == []


@pytest.mark.parametrize("name", NAMES)
def test_device_and_dtype_arguments_reach_every_tensor(name):
    mixer = build(name, device="meta", dtype=torch.bfloat16)
    for tensor in [*mixer.parameters(), *mixer.buffers()]:
        assert tensor.is_meta
        assert tensor.dtype == torch.bfloat16 or not tensor.is_floating_point()
    assert mixer(tokens(name, device="meta", dtype=torch.bfloat16)).is_meta


@pytest.mark.parametrize("name", NAMES)
def test_materialises_from_the_meta_device(name):
    mixer = build(name, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*mixer.parameters(), *mixer.buffers()]:
            tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.zero_()
    for module in mixer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert mixer(tokens(name)).isfinite().all()


@pytest.mark.parametrize("argument", ["qk_norm", "scale_norm"])
@pytest.mark.parametrize("name", NAMES)
def test_norms_work_or_are_refused(name, argument):
    if argument in attention_traits(name).refuses:
        with pytest.raises((ValueError, TypeError), match=argument):
            build(name, norm_layer=nn.LayerNorm, **{argument: True})
        return
    mixer = build(name, norm_layer=nn.LayerNorm, **{argument: True})
    assert sum(isinstance(m, nn.LayerNorm) for m in mixer.modules()) >= 1
    assert mixer(tokens(name)).shape == tokens(name).shape


@pytest.mark.parametrize("name", NAMES)
def test_biases_are_optional(name):
    without = build(name, qkv_bias=False, proj_bias=False)
    names = dict(without.named_parameters())
    assert not {"qkv.bias", "proj.bias"} & names.keys()
    full = dict(build(name, qkv_bias=True, proj_bias=True).named_parameters())
    assert {n.replace("weight", "bias") for n in names if n in ("qkv.weight", "proj.weight")} <= (
        full.keys()
    )
    assert without(tokens(name)).shape == tokens(name).shape


@pytest.mark.parametrize("name", having("mask"))
def test_a_masked_token_is_not_seen(name):
    mixer, x = build(name), tokens(name)
    N = x.shape[1]
    mask = torch.ones(N, N, dtype=torch.bool)
    mask[:, -1] = False
    changed = x.clone()
    changed[:, -1] += 1
    seen, unseen = mixer(x, attn_mask=mask), mixer(changed, attn_mask=mask)
    torch.testing.assert_close(seen[:, :-1], unseen[:, :-1])
    additive = torch.zeros(N, N).masked_fill(~mask, float("-inf"))
    torch.testing.assert_close(mixer(x, attn_mask=additive), seen)


@pytest.mark.parametrize("name", lacking("mask"))
def test_a_mask_is_refused(name):
    x = tokens(name)
    with pytest.raises(ValueError, match="attn_mask"):
        build(name)(x, attn_mask=torch.ones(x.shape[1], x.shape[1], dtype=torch.bool))


@pytest.mark.parametrize("name", having("causal"))
def test_causal_attention_does_not_look_ahead(name):
    mixer, x = build(name), tokens(name)
    changed = x.clone()
    changed[:, 7:] += 1
    seen, unseen = mixer(x, is_causal=True), mixer(changed, is_causal=True)
    torch.testing.assert_close(seen[:, :7], unseen[:, :7])
    assert not torch.allclose(seen[:, 7:], unseen[:, 7:])


@pytest.mark.parametrize("name", lacking("causal"))
def test_causality_is_refused(name):
    with pytest.raises(ValueError, match="causal"):
        build(name)(tokens(name), is_causal=True)


@pytest.mark.parametrize("name", having("token_sizes"))
def test_a_token_of_size_two_weighs_as_two_tokens(name):
    mixer, x = build(name).double(), tokens(name, dtype=torch.float64)
    size = torch.ones_like(x[..., :1])
    size[:, -1] = 2
    doubled = mixer(torch.cat([x, x[:, -1:]], dim=1))
    torch.testing.assert_close(mixer(x, size=size), doubled[:, :-1])
    torch.testing.assert_close(mixer(x, size=torch.ones_like(size)), mixer(x))


@pytest.mark.parametrize(
    "name", [n for n in lacking("token_sizes") if attention_traits(n).extended_call]
)
def test_sizes_that_are_not_declared_are_refused(name):
    x = tokens(name)
    with pytest.raises(ValueError, match="size"):
        build(name)(x, size=torch.ones_like(x[..., :1]))


@pytest.mark.parametrize("name", NAMES)
def test_reports_what_it_declares_and_nothing_else(name):
    prefix = 2 * usual(name)
    for gift in attention_traits(name).gives:
        x, info = tokens(name, prefix), {}
        build(name, prefix, report=(gift,))(x, info=info)
        assert info.keys() == {gift}
        rows = prefix if gift == "class_attention" else x.shape[1]
        assert (info[gift].shape[0], info[gift].shape[2]) == (2, rows)
        if gift == "class_attention":
            assert info[gift].shape[-1] == x.shape[1]
            torch.testing.assert_close(info[gift].sum(-1), torch.ones(info[gift].shape[:-1]))
    with pytest.raises((ValueError, TypeError), match="nonsense"):
        build(name, report=("nonsense",))


@pytest.mark.parametrize("name", having("token_count"))
def test_follows_another_grid(name):
    prefix = 2 * usual(name)
    mixer = build(name, prefix)
    before = {k: v.clone() for k, v in mixer.state_dict().items()}
    for p in mixer.parameters():
        p.requires_grad_(False)
    mixer.set_grid_size((4, 6))
    assert mixer(tokens(name, prefix, (4, 6))).shape == (2, prefix + 24, DIM)
    assert not any(p.requires_grad for p in mixer.parameters()), "a frozen parameter thawed"
    with pytest.raises(AssertionError, match="set_grid_size"):
        mixer(tokens(name, prefix, GRID))
    mixer.set_grid_size(GRID)
    assert {k: v.shape for k, v in mixer.state_dict().items()} == {
        k: v.shape for k, v in before.items()
    }
    for key, value in mixer.state_dict().items():
        if value.shape[:1] == (prefix + 15,):  # one row per token: the prefix is not interpolated
            assert torch.equal(value[:prefix], before[key][:prefix])


@pytest.mark.parametrize("name", having("token_count"))
def test_needs_to_know_the_grid(name):
    with pytest.raises(ValueError, match="grid_size"):
        create_attention(name, DIM, num_heads=HEADS)


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(build(name), "fused_attn")])
def test_fused_and_unfused_are_equal(name):
    mixer, x = build(name).double(), tokens(name, dtype=torch.float64)
    assert mixer.fused_attn
    calls = [{}, {"is_causal": True}] if attention_traits(name).causal else [{}]
    for call in calls:
        mixer.fused_attn = True
        fused = mixer(x, **call)
        mixer.fused_attn = False
        torch.testing.assert_close(mixer(x, **call), fused)


@pytest.mark.parametrize("name", NAMES)
def test_scripts(name):
    mixer, x = build(name), tokens(name)
    torch.testing.assert_close(torch.jit.script(mixer)(x), mixer(x))
