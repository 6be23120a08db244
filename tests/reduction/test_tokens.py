"""Following tokens: where they went, and what was reported of them."""

import functools

import pytest
import timm
import torch

from efficient_vits.reduction._tokens import compose, follow, keep_tokens, redirect
from efficient_vits.reduction.tome import ToMe


def test_a_kept_token_is_found_where_it_is_now():
    x = torch.arange(5.0).reshape(1, 5, 1)
    size, source = 1 + x, torch.tensor([[1, 2, 3, 4, -1]])
    y, size, source = keep_tokens(x, size, source, torch.tensor([[0, 3, 1]]))
    assert y.flatten().tolist() == [0, 3, 1]
    assert size.flatten().tolist() == [1, 4, 2]
    assert source.tolist() == [[2, -1, 1, -1, -1]]
    assert keep_tokens(x, None, None, torch.tensor([[0]]))[1:] == (None, None)


def test_redirecting_leaves_what_was_dropped():
    new = torch.tensor([[0, 1, -1, 1]])
    assert redirect(torch.tensor([[1, 2, 3, -1]]), new).tolist() == [[1, -1, 1, -1]]
    assert redirect(None, new) is None


def test_maps_follow_one_another():
    """Two prefix tokens; patch tokens 2, 3, 4 become 2, dropped, 3."""
    moved = torch.tensor([[2, -1, 3]])
    assert compose(torch.tensor([[4, 3, 2, -1]]), moved, 2).tolist() == [[3, -1, 2, -1]]
    assert compose(None, moved, 2) is None


def test_keys_are_averaged_and_attention_is_added_up():
    moved = torch.tensor([[1, -1, 1]])  # after one prefix token
    keys = torch.tensor([7.0, 1.0, 2.0, 5.0]).reshape(1, 1, 4, 1)
    assert follow("keys", keys, moved, 2, 1).flatten().tolist() == [7, 3]
    attention = torch.tensor([0.4, 0.1, 0.2, 0.3]).reshape(1, 1, 1, 4)
    followed = follow("class_attention", attention, moved, 2, 1).flatten()
    torch.testing.assert_close(followed, torch.tensor([0.4, 0.4]))
    everyone = torch.tensor(
        [[0.4, 0.1, 0.2, 0.3], [0.0, 0.2, 0.8, 0.0], [1.0, 0.0, 0.0, 0.0], [0.2, 0.2, 0.2, 0.4]]
    )
    followed = follow("attention", everyone.reshape(1, 1, 4, 4), moved, 2, 1)
    torch.testing.assert_close(followed[0, 0], torch.tensor([[0.4, 0.4], [0.1, 0.4]]))


def test_a_token_that_nobody_went_to_has_finite_keys():
    keys = torch.ones(1, 1, 3, 2)
    assert follow("keys", keys, torch.tensor([[1, 1]]), 3, 1).isfinite().all()


def two_mergings(*r):
    reductions = [functools.partial(ToMe, r=n) for n in r]
    return timm.create_model(
        "vit_ti16", img_size=64, depth=4, init_values=1.0, num_classes=7, reduction=reductions
    ).eval()


def test_several_reductions_run_in_the_order_given():
    model = two_mergings([2, 0, 0, 0], [3, 1, 0, 0])
    assert [list(block.between) for block in model.blocks] == [["tome", "tome@1"], ["tome"], [], []]
    assert [r.r for r in model.blocks[0].reductions()] == [2, 3]
    assert model.token_counts == [12, 11, 11, 11]
    y = model(torch.randn(2, 3, 64, 64))
    assert y.isfinite().all()


def test_one_after_the_other_in_one_block_goes_by_the_keys_of_merged_tokens():
    """By hand: merge, average the keys of what was merged, merge again."""
    first, second = ToMe(8, 4, 0, r=2), ToMe(8, 4, 0, r=3)
    x, keys = torch.randn(2, 10, 8), torch.randn(2, 1, 10, 4)
    here = torch.arange(1, 10).expand(2, -1)
    y, size, moved = first(x, None, here, {"keys": keys})
    group = torch.cat([torch.zeros(2, 1, dtype=torch.long), moved], dim=1)
    mean = torch.zeros(2, 1, 8, 4)
    for image in range(2):
        for token in range(8):
            mean[image, 0, token] = keys[image, 0, group[image] == token].mean(dim=0)
    torch.testing.assert_close(follow("keys", keys, moved, 8, 1), mean)
    by_hand, _, source = second(y, size, moved, {"keys": mean})
    z, _, again = second(
        y, size, torch.arange(1, 8).expand(2, -1), {"keys": follow("keys", keys, moved, 8, 1)}
    )
    assert torch.equal(by_hand, z)
    assert torch.equal(compose(moved, again, 1), source)


def test_the_map_of_patches_is_that_of_the_last_intermediate():
    model, x = two_mergings(2, 3), torch.randn(2, 3, 64, 64)
    maps = model.token_maps(x)
    assert [m.shape for m in maps] == [(2, 16)] * 4
    tokens, dense = model.forward_intermediates(x, [3], norm=True, output_fmt="NLC")
    for image in range(2):
        assert torch.equal(dense[0][image], tokens[image, maps[-1][image]])


def test_an_empty_list_is_no_reduction():
    with pytest.raises(ValueError, match="empty"):
        timm.create_model("vit_ti16", img_size=64, depth=2, reduction=[])
