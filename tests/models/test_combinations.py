"""Every token reduction with every token mixer, and reductions with each other.

Which pairs go together follows from what both declare; a pair either trains or raises.
"""

import itertools

import pytest
import timm
import torch

from efficient_vits import auxiliary_loss
from efficient_vits.attention import attention_traits, list_attentions
from efficient_vits.reduction import list_reductions, reduction_traits

HOST = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4}
REDUCTIONS = list_reductions()


def build(attention, reduction):
    traits = attention_traits(attention)
    host = {**HOST, "num_classes": 5, "init_values": 1.0}
    if not (traits.prefix_tokens and traits.mixes_prefix):
        host.update(class_token=False, global_pool="avg")
    return timm.create_model("vit_ti16", attention=attention, reduction=reduction, **host)


def steady(reduction):
    """Whether all blocks but the last leave as many tokens as they get."""
    counts = timm.create_model("vit_ti16", reduction=reduction, **HOST).token_counts
    return all(count == 65 for count in counts[:-1])


def obstacle(attention, reduction):
    """Why the two do not go together, as far as they say; empty if they do."""
    mixer, reducer = attention_traits(attention), reduction_traits(reduction)
    if reducer.needs - mixer.offered:
        return "needs"
    if reducer.place == "between" and not mixer.residual:
        return "no skip connection"
    if (mixer.token_count or mixer.grid) and not steady(reduction):
        return "bound to the grid"
    if not (mixer.prefix_tokens and mixer.mixes_prefix) and reducer.needs_prefix:
        return "prefix token"
    return ""


def train_once(model):
    model.train()
    x = torch.randn(2, 3, 64, 64)
    (model(x).square().sum() + auxiliary_loss(model)).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert sum(g.abs().sum() for g in gradients) > 0
    logits = model.eval()(x)
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("reduction", "attention"), list(itertools.product(REDUCTIONS, list_attentions()))
)
def test_a_pair_trains_or_says_why_not(reduction, attention):
    reason = obstacle(attention, reduction)
    if reason:
        with pytest.raises(ValueError, match=reason):
            build(attention, reduction)
        return
    train_once(build(attention, reduction))


def start(reduction):
    """Block and place of its first run in the model."""
    places = {"before": 0, "between": 1, "after": 2}
    model = timm.create_model("vit_ti16", reduction=reduction, **HOST)
    block = next(i for i, block in enumerate(model.blocks) if block.reductions())
    return block, places[reduction_traits(reduction).place]


def clash(first, second):
    """Why two reductions do not go together in this order; empty if they do."""
    if reduction_traits(first).state or reduction_traits(second).state:
        return "cannot stand beside"
    if reduction_traits(second).grid and start(first) <= start(second):
        return "can only be the first"
    if reduction_traits(first).grid and start(second) < start(first):
        return "can only be the first"
    return ""


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(REDUCTIONS, 2)))
def test_two_reductions_train_or_say_why_not(first, second):
    reason = clash(first, second)
    if reason:
        with pytest.raises(ValueError, match=reason):
            build("softmax", [first, second])
        return
    train_once(build("softmax", [first, second]))


def test_both_kinds_of_pairs_are_there():
    reasons = {obstacle(a, r) for r in REDUCTIONS for a in list_attentions()}
    assert {"", "needs", "bound to the grid", "prefix token"} <= reasons
    clashes = {clash(a, b) for a, b in itertools.permutations(REDUCTIONS, 2)}
    assert clashes == {"", "cannot stand beside", "can only be the first"}
