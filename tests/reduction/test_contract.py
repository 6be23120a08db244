"""What every registered token reduction must do; new ones are picked up by name."""

import copy

import pytest
import torch
from timm.layers import set_exportable

from efficient_vits.attention import attention_traits, create_attention, list_attentions
from efficient_vits.models.reduced import dense_tokens
from efficient_vits.reduction import (
    ReductionTraits,
    create_reduction,
    list_reductions,
    reduction_traits,
)
from efficient_vits.reduction._interface import REPORTS

DIM, DEPTH, PATCHES = 32, 4, 15
NAMES = list_reductions()
PAIRS = [
    (name, prefix)
    for name in NAMES
    for prefix in (0, 1, 2, 5)
    if prefix or not reduction_traits(name).needs_prefix
]


def active_blocks(name, prefix=1, **factory):
    """The reduction of each block in which it does something, in inference, of static shapes."""
    with set_exportable(True):
        blocks = [
            create_reduction(name, DIM, DEPTH, i, num_prefix_tokens=prefix, **factory).eval()
            for i in range(DEPTH)
        ]
    return [block for block in blocks if getattr(block, "active", True)]


def give(name, x, prefix):
    """What the reduction needs, from an attention that has it."""
    needs = reduction_traits(name).needs
    info = {}
    if needs:
        giver = next(n for n in list_attentions() if needs <= attention_traits(n).offered)
        report = tuple(needs & REPORTS)
        attention = create_attention(
            giver, DIM, num_heads=4, num_prefix_tokens=prefix, report=report, grid_size=(3, 5)
        )
        attention.to(x.device, x.dtype)(x, info=info)
    return info


def run(reduction, name, x, size=None, source=None, prefix=1):
    return reduction(x, size, source, give(name, x, prefix))


def test_without_a_prefix_token_there_is_no_class_attention():
    class Picky(torch.nn.Module):
        traits = ReductionTraits(needs=frozenset({"class_attention"}))

        def __init__(self, dim, depth, block, *, num_prefix_tokens=1):
            super().__init__()

    assert create_reduction(Picky, DIM, DEPTH, 0)
    with pytest.raises(ValueError, match=r"Picky.*no prefix token"):
        create_reduction(Picky, DIM, DEPTH, 0, num_prefix_tokens=0)


@pytest.mark.parametrize(("name", "prefix"), PAIRS)
def test_leaves_as_many_tokens_as_it_says(name, prefix):
    blocks = active_blocks(name, prefix)
    assert blocks, "with its default arguments it does nothing in any block"
    x = torch.randn(2, prefix + PATCHES, DIM)
    for reduction in blocks:
        y, size, source = run(reduction, name, x, prefix=prefix)
        count = reduction.num_tokens(prefix + PATCHES)
        assert count is None or y.shape == (2, count, DIM)
        assert source is None, "nobody asked for the map"
        if size is not None:
            assert size.shape == (2, y.shape[1], 1)


@pytest.mark.parametrize("name", [n for n in NAMES if reduction_traits(n).sizes])
def test_gives_the_sizes_that_it_declares(name):
    x = torch.randn(2, 1 + PATCHES, DIM)
    y, size, _ = run(active_blocks(name)[0].train(), name, x)
    assert size.shape == (2, y.shape[1], 1)
    assert size.dtype == torch.float32


@pytest.mark.parametrize(("name", "prefix"), PAIRS)
def test_maps_every_patch_to_a_token_that_exists(name, prefix):
    x = torch.randn(2, prefix + PATCHES, DIM)
    source = torch.arange(prefix, prefix + PATCHES).expand(2, -1)
    y, size, source = run(active_blocks(name, prefix)[0], name, x, None, source, prefix)
    assert source.shape == (2, PATCHES)
    assert source.min() >= -1
    assert source.max() < y.shape[1]
    assert not ((source >= 0) & (source < prefix)).any(), "a patch went into a prefix token"
    assert dense_tokens(y, source).shape == (2, PATCHES, DIM)
    if size is not None and reduction_traits(name).sizes_count:
        for image in range(2):
            here = source[image][source[image] >= 0]
            stands_for = torch.bincount(here, minlength=y.shape[1])
            assert torch.equal(size[image, prefix:, 0], stands_for[prefix:].float())


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_that_was_dropped_stays_dropped(name):
    x = torch.randn(2, 1 + PATCHES, DIM)
    source = torch.arange(1, 1 + PATCHES).repeat(2, 1)
    source[:, 3] = -1
    _, _, source = run(active_blocks(name)[0], name, x, None, source)
    assert (source[:, 3] == -1).all()
    assert (source != -1).any()


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_mix(name):
    reduction = active_blocks(name)[0].double()
    x = torch.randn(3, 1 + PATCHES, DIM, dtype=torch.float64)
    info = give(name, x, 1)
    together = reduction(x, None, None, dict(info))[0]
    for i in range(3):
        one = {key: value[i : i + 1] for key, value in info.items()}
        torch.testing.assert_close(reduction(x[i : i + 1], None, None, one)[0], together[i : i + 1])


@pytest.mark.parametrize("patches", [1, 2, 3])
@pytest.mark.parametrize(("name", "prefix"), PAIRS)
def test_few_tokens_are_enough(name, prefix, patches):
    x = torch.randn(2, prefix + patches, DIM)
    info = {
        "keys": torch.randn(2, 4, prefix + patches, 8),
        "class_attention": torch.rand(2, 4, prefix, prefix + patches),
        "attention": torch.rand(2, 4, prefix + patches, prefix + patches),
    }
    reduction = active_blocks(name, prefix)[0]
    y, _, _ = reduction(x, None, None, info)
    assert y.shape[1] >= prefix + 1
    assert reduction.num_tokens(prefix + patches) in (None, y.shape[1])
    assert y.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_dtype_and_stays_finite(name, dtype):
    x = (30 * torch.randn(2, 1 + PATCHES, DIM)).to(dtype).requires_grad_()
    reduction = active_blocks(name)[0].to(dtype)
    info = {
        "keys": torch.zeros(2, 4, 1 + PATCHES, 8, dtype=dtype),
        "class_attention": torch.rand(2, 4, 1, 1 + PATCHES, dtype=dtype),
        "attention": torch.rand(2, 4, 1 + PATCHES, 1 + PATCHES, dtype=dtype),
    }
    y, _, _ = reduction(x, None, None, info)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_runs_on_the_meta_device(name):
    reduction = active_blocks(name)[0].to("meta")
    x = torch.randn(2, 1 + PATCHES, DIM, device="meta")
    info = {
        "keys": torch.randn(2, 4, 1 + PATCHES, 8, device="meta"),
        "class_attention": torch.rand(2, 4, 1, 1 + PATCHES, device="meta"),
        "attention": torch.rand(2, 4, 1 + PATCHES, 1 + PATCHES, device="meta"),
    }
    y, _, _ = reduction(x, None, None, info)
    assert y.is_meta
    assert reduction.num_tokens(1 + PATCHES) in (None, y.shape[1])


@pytest.mark.parametrize("name", NAMES)
def test_can_be_copied(name):
    x = torch.randn(2, 1 + PATCHES, DIM)
    reduction = active_blocks(name)[0]
    info = give(name, x, 1)
    twin = copy.deepcopy(reduction)
    expected = reduction(x, None, None, dict(info))[0]
    assert torch.equal(twin(x, None, None, dict(info))[0], expected)
