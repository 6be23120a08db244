"""CoaT's factorised attention against its formula, and against timm's module."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.coat import ConvRelPosEnc, FactorAttnConvRelPosEnc

from efficient_vits.attention import create_attention


def naive_factorized(mixer, x):
    """Each channel of each token on its own, as a weighted sum over all tokens and neighbours."""
    P, (H, W), h = mixer.num_prefix_tokens, mixer.grid_size, mixer.num_heads
    q, k, v = mixer.qkv(x).chunk(3, dim=-1)
    d, out = q.shape[-1] // h, []
    near = []
    start = 0
    for conv in mixer.positions:
        reach, c = conv.kernel_size[0] // 2, conv.out_channels
        image = F.pad(v[:, P:, start : start + c].transpose(1, 2).reshape(-1, c, H, W), [reach] * 4)
        near.append(
            sum(
                image[:, :, i : i + H, j : j + W] * conv.weight[:, 0, i, j].view(-1, 1, 1)
                for i in range(2 * reach + 1)
                for j in range(2 * reach + 1)
            )
            + conv.bias.view(-1, 1, 1)
        )
        start += c
    near = F.pad(torch.cat(near, dim=1).flatten(2).transpose(1, 2), (0, 0, P, 0))
    for i in range(h):
        part = slice(i * d, (i + 1) * d)
        weights = k[..., part].exp() / k[..., part].exp().sum(dim=1, keepdim=True)
        scores = torch.einsum("bnc, bmc -> bnm", q[..., part], weights) / d**0.5
        out.append(scores @ v[..., part] + q[..., part] * near[..., part])
    return mixer.proj(torch.cat(out, dim=-1))


@settings(deadline=None, max_examples=15)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    prefix=st.integers(0, 2),
    heads=st.sampled_from([1, 2, 3, 6]),
    windows=st.sampled_from([(3, 5, 7), (1,), (3, 5, 7, 9)]),
)
def test_outputs_and_gradients_are_those_of_the_formula(grid, prefix, heads, windows):
    mixer = create_attention(
        "factorized_conv",
        12,
        num_heads=heads,
        grid_size=grid,
        num_prefix_tokens=prefix,
        windows=windows,
    ).double()
    x = torch.randn(2, prefix + grid[0] * grid[1], 12, dtype=torch.float64, requires_grad=True)
    wanted = (x, *mixer.parameters())
    got, want = mixer(x), naive_factorized(mixer, x)
    torch.testing.assert_close(got, want)
    seed = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, wanted, seed), torch.autograd.grad(want, wanted, seed)
    )


def pair():
    crpe = ConvRelPosEnc(head_chs=2, num_heads=8, window={3: 2, 5: 3, 7: 3})
    theirs = FactorAttnConvRelPosEnc(16, num_heads=8, qkv_bias=True, shared_crpe=crpe).double()
    ours = create_attention("factorized_conv", 16, num_heads=8, grid_size=(3, 5)).double()
    names = {"crpe.conv_list.": "positions."}
    state = {
        name.replace(*next(iter(names.items()))): value
        for name, value in theirs.state_dict().items()
    }
    ours.load_state_dict(state)
    x = torch.randn(2, 16, 16, dtype=torch.float64)
    return ours, x, theirs(x, size=(3, 5))


def test_it_is_timms():
    ours, x, want = pair()
    torch.testing.assert_close(ours(x), want)


def test_another_window_would_be_noticed():
    ours, x, want = pair()
    with torch.no_grad():
        ours.positions[2].weight[0, 0, 3, 3] += 1
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(ours(x), want)


def test_heads_are_divided_among_the_windows():
    for heads, channels in ((8, [16, 24, 24]), (3, [8, 8, 8]), (2, [8, 8]), (1, [8])):
        mixer = create_attention("factorized_conv", 8 * heads, num_heads=heads, grid_size=(2, 2))
        assert mixer.channels == channels
        assert mixer.positions[-1].kernel_size == (7, 7)


def test_an_even_window_is_refused():
    with pytest.raises(ValueError, match="odd windows"):
        create_attention("factorized_conv", 8, grid_size=(2, 2), windows=(2,))
