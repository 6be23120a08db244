"""Nyström attention against its formula, and with fewer landmarks than tokens in all it must do.

The contract tests have few tokens, where it is softmax attention; here are at least twice as many.
"""

import copy

import pytest
import timm
import torch
from einops import einsum, rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import set_exportable, set_scriptable
from timm.models import create_feature_extractor

from efficient_vits.attention import create_attention
from efficient_vits.attention.nystrom import from_landmarks, iterative_pinv, segment_means
from efficient_vits.efficiency import count_flops


def naive_segments(x, segments):
    """As even as possible, the longer ones at the end."""
    N = x.shape[2]
    lengths = [N // segments + (i >= segments - N % segments) for i in range(segments)]
    assert sum(lengths) == N
    return torch.stack([part.mean(2) for part in x.split(lengths, dim=2)], dim=2)


def naive(mixer, x):
    q, k, v = rearrange(mixer.qkv(x), "b n (s h d) -> s b h n d", s=3, h=mixer.num_heads)

    def attention(q, k):
        return (einsum(q, k, "b h n d, b h m d -> b h n m") / q.shape[-1] ** 0.5).softmax(-1)

    if mixer.landmarks >= x.shape[1]:
        y = attention(q, k) @ v
    else:
        landmarks_q, landmarks_k = (naive_segments(z, mixer.landmarks) for z in (q, k))
        A = attention(landmarks_q, landmarks_k)
        norms = A.sum(2).amax(-1) * A.sum(3).amax(-1)
        Z, eye = A.mT / norms[..., None, None], torch.eye(mixer.landmarks).to(A)
        for _ in range(mixer.pinv_steps):
            AZ = A @ Z
            Z = Z @ (13 * eye - AZ @ (15 * eye - AZ @ (7 * eye - AZ))) / 4
        y = attention(q, landmarks_k) @ Z @ attention(landmarks_q, k) @ v
    if mixer.conv is not None:
        half = mixer.conv.kernel_size[0] // 2
        padded = torch.nn.functional.pad(v, (0, 0, half, half))
        windows = padded.unfold(2, 2 * half + 1, 1)  # (B, heads, N, d, k)
        y = y + einsum(windows, mixer.conv.weight[:, 0, :, 0], "b h n d k, h k -> b h n d")
    y = mixer.proj(rearrange(y, "b h n d -> b n (h d)"))
    return y + rearrange(v, "b h n d -> b n (h d)") if mixer.value_skip else y


def compare(twin, heads, head_dim, tokens, seed, **own):
    torch.manual_seed(seed)
    mixer = create_attention("nystrom", heads * head_dim, num_heads=heads, **own).double()
    x = torch.randn(2, tokens, heads * head_dim, dtype=torch.float64, requires_grad=True)
    target = torch.randn_like(x)
    results = []
    for forward in (mixer, lambda x: twin(mixer, x)):
        mixer.zero_grad()
        x.grad = None
        y = forward(x)
        (y * target).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in mixer.parameters())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-8)  # float64, magnified


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 7),
    tokens=st.integers(1, 40),
    seed=st.integers(0, 99),
    landmarks=st.integers(1, 11),
    conv_size=st.sampled_from([None, 1, 3, 7]),
    value_skip=st.booleans(),
)
def test_equals_its_naive_twin(heads, head_dim, tokens, seed, landmarks, conv_size, value_skip):
    own = {"landmarks": landmarks, "conv_size": conv_size, "value_skip": value_skip}
    compare(naive, heads, head_dim, tokens, seed, **own)


def test_a_wrong_twin_is_noticed():
    def off(mixer, x):
        return naive(mixer, x) + 1e-4 * x

    def fewer_steps(mixer, x):
        mixer.pinv_steps -= 1
        return naive(mixer, x)

    for twin in (off, fewer_steps):
        with pytest.raises(AssertionError, match="not close"):
            compare(twin, 2, 5, 17, 0, landmarks=5)


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 60), segments=st.integers(1, 60))
def test_segments_are_as_even_as_can_be(tokens, segments):
    x = torch.randn(1, 2, tokens, 3, dtype=torch.float64)
    means = segment_means(x, segments)
    assert means.shape[2] == min(segments, tokens)
    torch.testing.assert_close(means, naive_segments(x, min(segments, tokens)))


def test_the_iteration_finds_the_pseudo_inverse():
    a = torch.randn(3, 8, 8, dtype=torch.float64).mul(2).softmax(-1)
    exact = torch.linalg.pinv(a)
    errors = [float((iterative_pinv(a, n) - exact).norm() / exact.norm()) for n in (2, 6, 20)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-8


@pytest.mark.parametrize("landmarks", [13, 20])
def test_with_a_landmark_per_token_it_is_softmax_attention(landmarks):
    softmax = create_attention("softmax", 16, num_heads=2).double()
    mixer = create_attention("nystrom", 16, num_heads=2, landmarks=landmarks).double()
    mixer.load_state_dict(softmax.state_dict())
    x = torch.randn(2, 13, 16, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), softmax(x))


def test_is_close_to_softmax_attention_where_neighbours_are_alike():
    """Every segment is four times the same token: landmarks lose nothing."""
    softmax = create_attention("softmax", 16, num_heads=2).double()
    mixer = create_attention("nystrom", 16, num_heads=2, landmarks=5, pinv_steps=20).double()
    mixer.load_state_dict(softmax.state_dict())
    x = 2 * torch.randn(2, 5, 16, dtype=torch.float64)
    x = x.repeat_interleave(4, dim=1)
    torch.testing.assert_close(mixer(x), softmax(x))


def test_what_does_not_work_is_refused():
    with pytest.raises(ValueError, match="landmarks >= 1, got 0"):
        create_attention("nystrom", 16, landmarks=0)
    for conv_size in (0, 4, -1):
        with pytest.raises(ValueError, match=f"odd conv_size or None, got {conv_size}"):
            create_attention("nystrom", 16, conv_size=conv_size)


def mixer_and_tokens(tokens=17, **arguments):
    own = {"landmarks": 5, "conv_size": 3, "value_skip": True}
    mixer = create_attention("nystrom", 32, num_heads=4, **{**own, **arguments}).eval()
    return mixer, torch.randn(2, tokens, 32)


@pytest.mark.parametrize("tokens", [8, 9])
def test_gradients_are_those_of_finite_differences(tokens):
    own = {"landmarks": 4, "conv_size": 3, "value_skip": True}
    mixer = create_attention("nystrom", 6, num_heads=2, **own).double()
    x = torch.randn(1, tokens, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x,))


@pytest.mark.parametrize("kind", ["large", "zero", "constant"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite(dtype, kind):
    mixer, x = mixer_and_tokens(197, landmarks=32)
    x = {"large": 30 * x, "zero": 0 * x, "constant": 30 * x[:, :1].expand_as(x)}[kind]
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        y = mixer.train()(x)
    # The mean: that a sum's gradient of the weights is finite is no matter of the mixer's, at 197
    # large tokens its exact value is beyond float16 (softmax attention's is at the limit).
    y.float().mean().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_half_precision_stays_close():
    mixer, x = mixer_and_tokens(197, landmarks=32)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
    # 8 bits, and outputs of the order of 1
    torch.testing.assert_close(y.float(), mixer(x), atol=0.03, rtol=0.05)


def test_the_pseudo_inverse_is_in_float32_under_autocast():
    q, k, landmarks, seen = (3 * torch.randn(2, 4, n, 8) for n in (17, 5, 5, 5))
    expected = from_landmarks(q, k, landmarks, seen, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(from_landmarks(q, k, landmarks, seen, 6), expected)
        assert from_landmarks(q, k, landmarks, seen.bfloat16(), 6).dtype == torch.bfloat16


def test_images_of_a_batch_do_not_mix():
    mixer, x = mixer_and_tokens()
    mixer, x = mixer.double(), x.double()
    torch.testing.assert_close(mixer(x), torch.cat([mixer(image) for image in x.split(1)]))


def test_fused_and_unfused_are_equal():
    mixer, x = mixer_and_tokens()
    fused = mixer(x)
    mixer.fused_attn = False
    torch.testing.assert_close(mixer(x), fused)


def test_dropout_is_on_what_landmarks_see():
    mixer, x = mixer_and_tokens(attn_drop=0.999999, conv_size=None, value_skip=False)
    for fused in (True, False):
        mixer.fused_attn = fused
        torch.testing.assert_close(mixer.train()(x), mixer.proj.bias.expand_as(x))
        assert not torch.allclose(mixer.eval()(x), mixer.proj.bias.expand_as(x))


def test_scripts():
    mixer, x = mixer_and_tokens()
    torch.testing.assert_close(torch.jit.script(mixer)(x), mixer(x))


# 17 tokens and 5 landmarks
SMALL = {"img_size": 64, "depth": 2, "init_values": 1.0, "num_classes": 7, "landmarks": 5}


def small(**arguments):
    return timm.create_model("nystrom32_ti16", **{**SMALL, **arguments}).eval()


def test_the_model_is_traced_compiled_and_exported():
    with set_scriptable(True):
        model = small(conv_size=3)
    x = torch.randn(2, 3, 64, 64)
    y = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), y)
    traced = create_feature_extractor(model, {"head": "logits"})
    torch.testing.assert_close(traced(x)["logits"], y)
    model = small(conv_size=3)
    y = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), y)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), y)
    torch.testing.assert_close(copy.deepcopy(model)(x), y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_model_runs_in_onnxruntime(tmp_path):
    import onnxruntime

    path, x = tmp_path / "model.onnx", torch.randn(2, 3, 64, 64)
    with set_exportable(True):
        model = small(conv_size=3)
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    # float32 sums in another order, magnified by the pseudo-inverse
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), atol=1e-3, rtol=1e-3)


def test_flops_are_the_same_fused_unfused_and_on_meta():
    model = small()
    counted = count_flops(model, (3, 64, 64))
    assert counted.uncounted == {}
    for block in model.blocks:
        block.attn.fused_attn = False
    assert count_flops(model, (3, 64, 64)).total == counted.total
    assert count_flops(small(device="meta"), (3, 64, 64)).total == counted.total


def test_fewer_landmarks_are_fewer_flops():
    totals = [count_flops(small(landmarks=n), (3, 64, 64)).total for n in (3, 5, 8)]
    assert totals == sorted(set(totals))
