"""Mixers whose paper promises a cost linear in tokens hold no tensor that grows faster."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from efficient_vits.attention import create_attention
from efficient_vits.efficiency import count_flops

DIM, HEADS = 32, 4
LINEAR = {
    "hydra": {},
    "linear": {},
    "nystrom": {"landmarks": 16, "conv_size": 3, "value_skip": True},
    "performer": {"random_features": 16},
}


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operator returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def largest(name, tokens, fused=True, **call):
    mixer = create_attention(name, DIM, num_heads=HEADS, **LINEAR.get(name, {}))
    if not fused:
        mixer.fused_attn = False
    x = torch.randn(1, tokens, DIM, requires_grad=True)
    with Largest() as seen:
        mixer(x, **call).sum().backward()
    return seen.elements


def grows_linearly(name, **how):
    return largest(name, 2048, **how) <= 2.1 * largest(name, 1024, **how)


@pytest.mark.parametrize("name", list(LINEAR))
def test_no_tensor_outgrows_the_tokens(name):
    assert grows_linearly(name)


@pytest.mark.parametrize("name", ["hydra", "linear"])
def test_no_tensor_outgrows_the_tokens_when_causal(name):
    assert grows_linearly(name, is_causal=True)


def test_nor_does_one_of_unfused_attention_to_landmarks():
    assert grows_linearly("nystrom", fused=False)


def test_a_matrix_of_all_pairs_is_noticed():
    assert not grows_linearly("softmax", fused=False)


def flops_grow_linearly(name):
    mixer = create_attention(name, DIM, num_heads=HEADS, **LINEAR.get(name, {}))
    first, second, third = (count_flops(mixer, (n, DIM)).total for n in (1024, 2048, 3072))
    return third - second == pytest.approx(second - first, rel=1e-3)


@pytest.mark.parametrize("name", list(LINEAR))
def test_flops_grow_linearly(name):
    assert flops_grow_linearly(name)


def test_flops_of_all_pairs_are_noticed():
    assert not flops_grow_linearly("softmax")
