"""Cross-covariance attention against its formula and against timm's; token sizes; cost."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.xcit import XCA
from timm.optim import param_groups_weight_decay

from efficient_vits.attention import create_attention
from efficient_vits.efficiency import count_flops


def naive(mixer, x, size=None):
    """Channel by channel; a token of size s is written down s times in the covariance."""
    images = []
    for index, tokens in enumerate(x):
        heads = []
        q, k, v = (part.chunk(mixer.num_heads, -1) for part in mixer.qkv(tokens).chunk(3, -1))
        for h, temperature in enumerate(mixer.temperature):
            times = 1 if size is None else size[index, :, 0].long()
            Q, K = (z[h].repeat_interleave(times, dim=0) for z in (q, k))
            rows = []
            for i in range(mixer.head_dim):
                cosines = [
                    Q[:, i] @ K[:, j] / Q[:, i].norm() / K[:, j].norm() for j in range(len(K.T))
                ]
                weights = (temperature * torch.stack(cosines)).exp()
                rows.append(v[h] @ (weights / weights.sum()))
            heads.append(torch.stack(rows, dim=-1))
        images.append(mixer.proj(torch.cat(heads, dim=-1)))
    return torch.stack(images)


def results(forward, mixer, x, target):
    mixer.zero_grad()
    x.grad = None
    y = forward(x)
    (y * target).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in mixer.parameters())]


def compare(twin, heads, head_dim, tokens, seed, **call):
    torch.manual_seed(seed)
    mixer = create_attention("xca", heads * head_dim, num_heads=heads).double()
    torch.nn.init.normal_(mixer.temperature)
    x = torch.randn(2, tokens, heads * head_dim, dtype=torch.float64, requires_grad=True)
    target = torch.randn_like(x)
    fast = results(lambda x: mixer(x, **call), mixer, x, target)
    slow = results(lambda x: twin(mixer, x, **call), mixer, x, target)
    for ours, plain in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, plain)  # float64: rounding alone


@settings(max_examples=20, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    tokens=st.integers(1, 23),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(heads, head_dim, tokens, seed):
    compare(naive, heads, head_dim, tokens, seed)


def test_equals_its_naive_twin_with_token_sizes():
    compare(naive, 2, 3, 7, 0, size=torch.randint(1, 9, (2, 7, 1)).double())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda mixer, x: naive(mixer, x) + 1e-4 * x,
        lambda mixer, x: naive(
            mixer, x, torch.full_like(x[..., :1], 2).index_fill(1, torch.tensor(0), 1)
        ),
    ],
)
def test_a_wrong_twin_is_noticed(wrong):
    with pytest.raises(AssertionError, match="not close"):
        compare(wrong, 2, 3, 7, 0)


def test_equals_timms():
    """timm shapes the temperature (heads, 1, 1)."""
    theirs = XCA(12, num_heads=3, qkv_bias=True).double()
    torch.nn.init.normal_(theirs.temperature)
    ours = create_attention("xca", 12, num_heads=3).double()
    state = theirs.state_dict()
    ours.load_state_dict({**state, "temperature": state["temperature"].flatten()})
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_reports_the_keys_as_they_leave_the_projection():
    mixer = create_attention("xca", 12, num_heads=3, report=("keys",))
    x, info = torch.randn(2, 11, 12), {}
    mixer(x, info=info)
    keys = mixer.qkv(x)[..., 12:24].reshape(2, 11, 3, 4).transpose(1, 2)
    torch.testing.assert_close(info["keys"], keys)


def test_tokens_can_be_merged():
    model = timm.create_model("xca_ti16", reduction="tome", r=3, img_size=64, depth=3).eval()
    assert model.token_counts == [14, 11, 8]
    assert "prop_attn=True" in repr(model)
    assert model(torch.randn(2, 3, 64, 64)).isfinite().all()


def test_the_temperature_is_spared_weight_decay():
    model = timm.create_model("xca_ti16", img_size=64, depth=2, device="meta")
    groups = param_groups_weight_decay(model, weight_decay=0.1)
    spared = {id(p) for g in groups for p in g["params"] if g["weight_decay"] == 0}
    assert all(id(block.attn.temperature) in spared for block in model.blocks)
    assert not any(id(block.attn.qkv.weight) in spared for block in model.blocks)


def test_costs_grow_in_step_with_the_tokens():
    def flops(side):
        model = timm.create_model("xca_ti16", img_size=16 * side, depth=1, device="meta")
        return count_flops(model, (3, 16 * side, 16 * side)).total

    # What comes on top of a smaller image is the same for every patch.
    a, b, c = flops(8), flops(16), flops(24)
    assert (b - a) / (16**2 - 8**2) == pytest.approx((c - b) / (24**2 - 16**2), rel=1e-9)


@pytest.mark.parametrize("kind", ["zero", "constant"])
def test_channels_without_variance_are_finite(kind):
    mixer = create_attention("xca", 8, num_heads=2, qkv_bias=False)
    x = torch.zeros(2, 5, 8) if kind == "zero" else torch.ones(2, 5, 8)
    x.requires_grad_()
    mixer(x).sum().backward()
    assert x.grad.isfinite().all()
