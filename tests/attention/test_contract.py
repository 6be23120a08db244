"""What every registered token mixer must do; new ones are picked up by name."""

import copy

import pytest
import torch
from torch import nn

from efficient_vits.attention import attention_traits, create_attention, list_attentions

DIM, HEADS, GRID = 32, 4, (3, 5)
NAMES = list_attentions()
PREFIXES = [0, 1, 2, 5]


def build(name, prefix=1, grid=GRID, **arguments):
    mixer = create_attention(
        name, DIM, num_heads=HEADS, grid_size=grid, num_prefix_tokens=prefix, **arguments
    )
    return mixer.eval()


def tokens(prefix=1, grid=GRID, batch=2, **factory):
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
    mixer, x = build(name, prefix), tokens(prefix)
    y = mixer(x)
    assert y.shape == x.shape
    changed = x.clone()
    changed[:, -1] += 1
    assert not torch.allclose(mixer(changed)[:, 0], y[:, 0], atol=1e-6), "tokens do not mix"


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_mix(name):
    mixer, x = build(name).double(), tokens(dtype=torch.float64)
    alone = torch.cat([mixer(image) for image in x.split(1)])
    torch.testing.assert_close(mixer(x), alone)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name):
    mixer = build(name).train()
    mixer(tokens()).square().sum().backward()
    assert [n for n, p in mixer.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    mixer = build(name, grid=(2, 3)).double()
    x = tokens(grid=(2, 3), batch=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(mixer, (x,))


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip(name):
    first, second, x = build(name), build(name), tokens()
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    assert torch.equal(copy.deepcopy(first)(x), first(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_dtype(name, dtype):
    mixer, x = build(name), tokens()
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
    x = 30 * tokens(prefix, grid)
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
def test_device_and_dtype_arguments_reach_every_tensor(name):
    mixer = build(name, device="meta", dtype=torch.bfloat16)
    for tensor in [*mixer.parameters(), *mixer.buffers()]:
        assert tensor.is_meta
        assert tensor.dtype == torch.bfloat16 or not tensor.is_floating_point()
    assert mixer(tokens(device="meta", dtype=torch.bfloat16)).is_meta


@pytest.mark.parametrize("name", NAMES)
def test_materialises_from_the_meta_device(name):
    mixer = build(name, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*mixer.parameters(), *mixer.buffers()]:
            tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.zero_()
    for module in mixer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert mixer(tokens()).isfinite().all()


@pytest.mark.parametrize("argument", ["qk_norm", "scale_norm"])
@pytest.mark.parametrize("name", NAMES)
def test_norms_work_or_are_refused(name, argument):
    if argument in attention_traits(name).refuses:
        with pytest.raises(ValueError, match=argument):
            build(name, norm_layer=nn.LayerNorm, **{argument: True})
        return
    mixer = build(name, norm_layer=nn.LayerNorm, **{argument: True})
    assert sum(isinstance(m, nn.LayerNorm) for m in mixer.modules()) >= 1
    assert mixer(tokens()).shape == tokens().shape


@pytest.mark.parametrize("name", NAMES)
def test_biases_are_optional(name):
    without = build(name, qkv_bias=False, proj_bias=False)
    full = build(name, qkv_bias=True, proj_bias=True)
    count = sum(p.numel() for p in full.parameters()) - sum(p.numel() for p in without.parameters())
    assert count > 0
    assert without(tokens()).shape == tokens().shape


@pytest.mark.parametrize("name", having("mask"))
def test_a_masked_token_is_not_seen(name):
    mixer, x = build(name), tokens()
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
    with pytest.raises(ValueError, match="attn_mask"):
        build(name)(tokens(), attn_mask=torch.ones(16, 16, dtype=torch.bool))


@pytest.mark.parametrize("name", having("causal"))
def test_causal_attention_does_not_look_ahead(name):
    mixer, x = build(name), tokens()
    changed = x.clone()
    changed[:, 7:] += 1
    seen, unseen = mixer(x, is_causal=True), mixer(changed, is_causal=True)
    torch.testing.assert_close(seen[:, :7], unseen[:, :7])
    assert not torch.allclose(seen[:, 7:], unseen[:, 7:])


@pytest.mark.parametrize("name", lacking("causal"))
def test_causality_is_refused(name):
    with pytest.raises(ValueError, match="causal"):
        build(name)(tokens(), is_causal=True)


@pytest.mark.parametrize("name", having("token_sizes"))
def test_a_token_of_size_two_weighs_as_two_tokens(name):
    mixer, x = build(name).double(), tokens(dtype=torch.float64)
    size = torch.ones_like(x[..., :1])
    size[:, -1] = 2
    doubled = mixer(torch.cat([x, x[:, -1:]], dim=1))
    torch.testing.assert_close(mixer(x, size=size), doubled[:, :-1])
    torch.testing.assert_close(mixer(x, size=torch.ones_like(size)), mixer(x))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_are_not_declared_are_refused(name):
    traits = attention_traits(name)
    if traits.token_sizes or not traits.extended_call:
        return
    with pytest.raises(ValueError, match="size"):
        build(name)(tokens(), size=torch.ones(2, 16, 1))


@pytest.mark.parametrize("name", NAMES)
def test_reports_what_it_declares_and_nothing_else(name):
    traits = attention_traits(name)
    for gift in traits.gives:
        info = {}
        mixer = build(name, prefix=2, report=(gift,))
        mixer(tokens(2), info=info)
        assert info.keys() == {gift}
        batch, _, rows, _ = info[gift].shape
        assert (batch, rows) == ((2, 2) if gift == "class_attention" else (2, 17))
        if gift == "class_attention":
            assert info[gift].shape[-1] == 17
            torch.testing.assert_close(info[gift].sum(-1), torch.ones(info[gift].shape[:-1]))
    with pytest.raises((ValueError, TypeError), match="nonsense"):
        build(name, report=("nonsense",))


@pytest.mark.parametrize("name", having("token_count"))
def test_follows_another_grid(name):
    mixer = build(name, prefix=2)
    before = {k: v.clone() for k, v in mixer.state_dict().items()}
    for p in mixer.parameters():
        p.requires_grad_(False)
    mixer.set_grid_size((4, 6))
    assert mixer(tokens(2, (4, 6))).shape == (2, 26, DIM)
    assert not any(p.requires_grad for p in mixer.parameters()), "a frozen parameter thawed"
    with pytest.raises(AssertionError, match="set_grid_size"):
        mixer(tokens(2, GRID))
    mixer.set_grid_size(GRID)
    assert {k: v.shape for k, v in mixer.state_dict().items()} == {
        k: v.shape for k, v in before.items()
    }
    for key, value in mixer.state_dict().items():
        if value.shape[0] == 17:  # one row per token: those of the prefix are not interpolated
            assert torch.equal(value[:2], before[key][:2])


@pytest.mark.parametrize("name", having("token_count"))
def test_needs_to_know_the_grid(name):
    with pytest.raises(ValueError, match="grid_size"):
        create_attention(name, DIM, num_heads=HEADS)


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(build(name), "fused_attn")])
def test_fused_and_unfused_are_equal(name):
    mixer, x = build(name).double(), tokens(dtype=torch.float64)
    assert mixer.fused_attn
    calls = [{}, {"is_causal": True}] if attention_traits(name).causal else [{}]
    for call in calls:
        mixer.fused_attn = True
        fused = mixer(x, **call)
        mixer.fused_attn = False
        torch.testing.assert_close(mixer(x, **call), fused)


@pytest.mark.parametrize("name", NAMES)
def test_scripts(name):
    mixer, x = build(name), tokens()
    torch.testing.assert_close(torch.jit.script(mixer)(x), mixer(x))
