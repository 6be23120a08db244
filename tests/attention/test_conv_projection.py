"""Convolutional projection against its formula, patch by patch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.attention import create_attention


def naive_convolution(layer, image):
    """A depth-wise convolution with zeros around the image, and a batch norm in evaluation."""
    conv, bn = layer.conv, layer.bn
    k, s = conv.kernel_size[0], conv.stride[0]
    padded = F.pad(image, [k // 2] * 4)
    rows = range(0, padded.shape[2] - k + 1, s)
    columns = range(0, padded.shape[3] - k + 1, s)
    patches = [
        (padded[:, :, i : i + k, j : j + k] * conv.weight[:, 0]).sum(dim=(2, 3))
        for i in rows
        for j in columns
    ]
    tokens = torch.stack(patches, dim=1)  # (B, patches, C)
    tokens = (tokens - bn.running_mean) / (bn.running_var + bn.eps).sqrt()
    return tokens * bn.weight + bn.bias


def naive(mixer, x, scale=None, mixes_prefix=True):
    from einops import einsum, rearrange

    P, (H, W) = mixer.num_prefix_tokens, mixer.grid_size
    image = rearrange(x[:, P:], "b (h w) c -> b c h w", h=H, w=W)
    parts = []
    for name in "qkv":
        tokens = naive_convolution(getattr(mixer, f"{name}_conv"), image)
        if mixes_prefix or name == "q":
            tokens = torch.cat([x[:, :P], tokens], dim=1)
        tokens = getattr(mixer, f"{name}_proj")(tokens)
        parts.append(rearrange(tokens, "b n (h d) -> b h n d", h=mixer.num_heads))
    q, k, v = parts
    logits = einsum(q, k, "b h n d, b h m d -> b h n m") * (scale or x.shape[-1] ** -0.5)
    y = einsum(logits.softmax(dim=-1), v, "b h n m, b h m d -> b h n d")
    return mixer.proj(rearrange(y, "b h n d -> b n (h d)"))


def build(grid=(4, 5), prefix=1, heads=2, **own):
    mixer = create_attention(
        "conv_projection",
        4 * heads,
        num_heads=heads,
        grid_size=grid,
        num_prefix_tokens=prefix,
        **own,
    ).double()
    with torch.no_grad():
        for tensor in [*mixer.parameters(), *mixer.buffers()]:
            if tensor.is_floating_point():
                tensor.normal_().abs_() if tensor.ndim == 1 else tensor.normal_()
    return mixer.eval()


def tokens(grid=(4, 5), prefix=1, heads=2, batch=2):
    return torch.randn(batch, prefix + grid[0] * grid[1], 4 * heads, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    prefix=st.integers(0, 2),
    heads=st.integers(1, 3),
    kernel_size=st.sampled_from([1, 3, 5]),
    stride_kv=st.integers(1, 3),
    batch=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(grid, prefix, heads, kernel_size, stride_kv, batch, seed):
    torch.manual_seed(seed)
    mixer = build(grid, prefix, heads, kernel_size=kernel_size, stride_kv=stride_kv)
    x = tokens(grid, prefix, heads, batch).requires_grad_()
    target, results = torch.randn_like(x), []
    for forward in (mixer, lambda x: naive(mixer, x)):
        mixer.zero_grad()
        x.grad = None
        y = forward(x)
        (y * target).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in mixer.parameters())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)  # float64: rounding alone


@pytest.mark.parametrize("slip", [{"scale": 0.5}, {"mixes_prefix": False}])
def test_the_twin_tells_a_slip(slip):
    """A scale by the width of one head, and a class token that nobody attends to."""
    mixer, x = build(), tokens()
    torch.testing.assert_close(naive(mixer, x), mixer(x))
    assert not torch.allclose(naive(mixer, x, **slip), mixer(x), rtol=1e-3)


def test_a_patch_is_seen_by_its_neighbours_before_anything_is_mixed():
    """Queries depend on the 3 x 3 patches around, and the class token's query on itself alone."""
    mixer, x = build(), tokens()
    queries = []
    mixer.q_proj.register_forward_hook(lambda module, args, output: queries.append(output))
    changed = x.clone()
    changed[:, 1 + 7] += 1  # row 1, column 2 of 4 x 5
    mixer(x)
    mixer(changed)
    moved = (queries[0] != queries[1]).any(dim=2)[0].nonzero().flatten() - 1
    assert moved.tolist() == [1, 2, 3, 6, 7, 8, 11, 12, 13]


def test_a_call_may_give_its_own_grid():
    mixer, x = build(), tokens()
    turned = mixer(x, None, False, (5, 4))
    assert not torch.allclose(turned, mixer(x))
    mixer.set_grid_size((5, 4))
    assert torch.equal(mixer(x), turned)
    with pytest.raises(AssertionError, match="set_grid_size"):
        mixer(x, None, False, (5, 5))


@pytest.mark.parametrize("own", [{"kernel_size": 2}, {"kernel_size": -1}, {"stride_kv": 0}])
def test_options_out_of_range_are_refused(own):
    with pytest.raises(ValueError, match=str(next(iter(own.values())))):
        build(**own)
