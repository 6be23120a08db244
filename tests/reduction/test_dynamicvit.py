"""DynamicViT against plain loops, and training's hidden tokens against inference's dropped ones."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import create_feature_extractor

from efficient_vits import auxiliary_loss
from efficient_vits.attention import attention_traits, list_attentions
from efficient_vits.models import create_vit
from efficient_vits.reduction import create_reduction
from efficient_vits.reduction.dynamicvit import Decisions, distill, patches_kept, stage_blocks

SMALL = {"patch_size": 16, "embed_dim": 32, "depth": 4, "num_heads": 4, "num_classes": 5}
ABLE = [n for n in list_attentions() if attention_traits(n).token_sizes]


def build(size=128, **arguments):
    arguments = {"img_size": size, **SMALL, "reduction": "dynamicvit", **arguments}
    return create_vit(**arguments).double()


def stage(block=1, dim=32, **arguments):
    reduction = create_reduction("dynamicvit", dim, 4, block, **arguments).double()
    with torch.no_grad():
        for parameter in reduction.parameters():  # a predictor that tells tokens apart
            parameter.add_(0.3 * torch.randn_like(parameter))
    return reduction


def images(batch=2, height=128, width=128):
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


def naive_scores(reduction, x, left):
    """Log-probability of keeping each patch token of one image, (N, C) with `left` a list."""
    z = [F.gelu(reduction.embed(reduction.norm(token))) for token in x]
    half = x.shape[1] // 2
    mean = sum(z[i][half:] for i in left) / len(left)
    scores = []
    for token in z:
        hidden = F.gelu(reduction.fc1(torch.cat([token[:half], mean])))
        scores.append(reduction.score(F.gelu(reduction.fc2(hidden))).log_softmax(dim=0)[0])
    return torch.stack(scores)


@settings(max_examples=30, deadline=None)
@given(
    patches=st.integers(1, 13),
    prefix=st.integers(0, 2),
    keep_rate=st.floats(0.05, 1.0),
    block=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 999),
)
def test_inference_equals_its_naive_twin(patches, prefix, keep_rate, block, seed):
    torch.manual_seed(seed)
    reduction = stage(block, num_prefix_tokens=prefix, keep_rate=keep_rate).eval()
    x = torch.randn(1, prefix + patches, 32, dtype=torch.float64)
    source = torch.arange(prefix, prefix + patches)[None]
    y, size, moved = reduction(x, None, source, {})
    scores = naive_scores(reduction, x[0, prefix:], list(range(patches))).tolist()
    count = max(1, int(keep_rate * (patches + (0.5 if block > 1 else 0))))
    best = sorted(sorted(range(patches), key=lambda i: -scores[i])[:count])
    assert size is None
    assert torch.equal(y[0], x[0, [*range(prefix), *(prefix + i for i in best)]])
    where = [prefix + best.index(i) if i in best else -1 for i in range(patches)]
    assert moved[0].tolist() == where


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_training_equals_its_naive_twin(prefix):
    """Given the noise: decisions, sizes, the loss, and gradients of the soft decisions."""
    reduction = stage(2, num_prefix_tokens=prefix, keep_rate=0.6, ratio_weight=3.0)
    x = torch.randn(2, prefix + 9, 32, dtype=torch.float64)
    before = torch.ones(2, prefix + 9, 1)
    before[0, prefix + 2], before[1, prefix + 5] = 1e-6, 1e-6
    torch.manual_seed(1)
    _, size, source = reduction(x, before, torch.arange(prefix, prefix + 9).expand(2, -1), {})
    loss = auxiliary_loss(reduction)

    left = [[i for i in range(9) if before[b, prefix + i] > 0.5] for b in range(2)]
    keep = torch.stack([naive_scores(reduction, x[b, prefix:], left[b]) for b in range(2)])
    logits = torch.stack([keep, torch.log1p(-keep.exp())], dim=-1)
    torch.manual_seed(1)
    noise = -torch.empty_like(logits).exponential_().log()
    soft = (logits + noise).softmax(dim=-1)[..., 0]
    hard = (soft > 0.5).double() + soft - soft.detach()
    decided = before[:, prefix:, 0] * hard
    # Sizes are float32, and what was dropped has 1e-6 left.
    torch.testing.assert_close(size[:, prefix:, 0].double(), decided + 1e-6, atol=3e-6, rtol=0)
    assert torch.equal(size[:, :prefix], before[:, :prefix])
    ratio = torch.stack([decided[b].sum() / 9 for b in range(2)])
    expected = 3.0 / 3 * ((ratio - 0.6**2) ** 2).mean()
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(source == -1, decided < 0.5)
    weights = torch.randn(2, 9, dtype=torch.float64)
    ours = torch.autograd.grad((size[:, prefix:, 0] * weights).sum(), reduction.parameters())
    theirs = torch.autograd.grad((decided * weights).sum(), reduction.parameters())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ABLE)
def test_a_hidden_token_is_as_good_as_none(attention):
    """What training computes for the tokens it kept is what a model without the others computes."""
    model = build(attention=attention, keep_rate=0.5).train()
    x = model._embed(images(1))
    hidden, size, _ = model.blocks[1].before["dynamicvit"](x, None, None, {})
    kept = size[0, :, 0] > 0.5
    assert 5 < kept.sum() < 60
    model.blocks[1].before.clear()
    together = model.blocks[1](hidden, size, None, {})[0][:, kept]
    alone = model.blocks[1](x[:, kept], None, None, {})[0]
    # 30 tokens of weight 1e-6 among 30 of weight 1
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("keep_rate", [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize(("patches", "off_by"), [(196, 0), (576, 0), (144, 1), (256, 1)])
def test_keeps_as_many_tokens_as_published(keep_rate, patches, off_by):
    left, counts = patches, []
    for s in range(3):
        left = patches_kept(left, s, keep_rate)
        counts.append(left)
    published = [int(patches * keep_rate ** (s + 1)) for s in range(3)]
    assert max(abs(a - b) for a, b in zip(counts, published, strict=True)) <= off_by


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, [3, 6, 9]), (24, [6, 12, 18]), (4, [1, 2, 3]), (2, [0, 1]), (1, [0])]
)
def test_stages_are_quarters_of_the_depth(depth, blocks):
    assert stage_blocks(depth) == blocks
    active = [create_reduction("dynamicvit", 8, depth, i).active for i in range(depth)]
    assert [i for i in range(depth) if active[i]] == blocks


def test_counts_of_inference_and_training():
    model = build(keep_rate=0.5)
    assert model.token_counts == [65, 33, 17, 9]
    seen = []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda module, args, y: seen.append(y.shape[1]))
    model.train()(images())
    assert seen == [65] * 4
    seen.clear()
    model.eval()(images())
    assert seen == [65, 33, 17, 9]


@pytest.mark.parametrize("keep_rate", [1e-3, 1.0])
@pytest.mark.parametrize(
    "prefix",
    [{}, {"reg_tokens": 4}, {"class_token": False, "global_pool": "avg"}],
)
def test_rates_at_the_edges(keep_rate, prefix):
    model = build(keep_rate=keep_rate, **prefix)
    P = model.num_prefix_tokens
    left = 64 if keep_rate == 1 else 1
    assert model.token_counts == [P + 64, *[P + left] * 3]
    for training in (False, True):
        y = model.train(training)(images())
        assert y.isfinite().all()


def test_nothing_is_dropped_twice_and_nothing_comes_back():
    model = build(keep_rate=0.5).train()
    maps = model.token_maps(images())
    for earlier, later in itertools.pairwise(maps):
        assert not ((earlier == -1) & (later != -1)).any()
    assert (maps[0] != -1).all()
    assert 0 < (maps[-1] == -1).float().mean() < 1


def test_every_predictor_learns_from_the_task_alone():
    model = build().train()
    model(images()).square().sum().backward()
    stages = [block.before["dynamicvit"] for block in list(model.blocks)[1:]]
    assert all(p.grad.abs().sum() > 0 for s in stages for p in s.parameters())


@pytest.mark.parametrize("attention", ABLE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_activations_stay_finite_in_training(attention, dtype):
    model = build(attention=attention).float().train()
    x = 30 * images(3).float()
    x[1] = 0
    x[2] = 1
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = model(x)
    (y.float().square().mean() + auxiliary_loss(model)).backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_goes_with_merging():
    """A merged token counts once in the decisions, and keeps its size where it stays."""
    model = build(reduction=["tome", "dynamicvit"], r=[20, 0, 0, 0], keep_rate=0.5)
    assert model.token_counts == [45, 23, 12, 6]
    assert model.eval()(images()).isfinite().all()
    model.train()(images()).sum().backward()
    # Targets are parts of what is there, and nothing says that they are missed by more than all.
    assert 0 < auxiliary_loss(model) < 2
    reduction = stage(1)
    size = torch.full((1, 10, 1), 3.0)
    _, after, _ = reduction.train()(torch.randn(1, 10, 32).double(), size, None, {})
    assert set(after[0, 1:, 0].round(decimals=2).tolist()) <= {0.0, 3.0}


@pytest.mark.filterwarnings("ignore:.*obtained by tracing the model in:UserWarning")
@pytest.mark.parametrize("attention", ABLE)
def test_traced_models_drop_too(attention):
    """Also beside an attention that asks in Python whether there are sizes."""
    model, x = build(attention=attention).eval(), images()
    traced = create_feature_extractor(model, return_nodes=["head"])
    torch.testing.assert_close(traced(x)["head"], model(x))
    assert traced.train()(x)["head"].isfinite().all()
    assert auxiliary_loss(traced) > 0


def test_training_compiles_and_keeps_its_losses():
    model, x = build().train(), images()
    torch._dynamo.reset()
    torch.compile(model, backend="eager", fullgraph=True)(x).sum().backward()
    assert auxiliary_loss(model) > 0


def test_decisions_belong_to_one_training_pass():
    model, x = build(), images()
    model.train()(x)
    assert auxiliary_loss(model) > 0
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert auxiliary_loss(twin) == 0
    stages = [module for module in model.modules() if isinstance(module, Decisions)]
    assert [s.kept.shape for s in stages] == [(2, 64)] * 3
    model.eval()(x)
    assert auxiliary_loss(model) == 0
    assert [s.kept for s in stages] == [None] * 3


def teacher(**arguments):
    return create_vit(**{**SMALL, "img_size": 128, **arguments}).double().eval()


def test_distillation_by_hand():
    student, guide, x = build(keep_rate=0.5).train(), teacher(reg_tokens=2), images()
    torch.manual_seed(3)
    logits, loss = distill(student, guide, x, logit_weight=0.25, token_weight=2.0)
    torch.manual_seed(3)
    tokens = student.forward_features(x)
    torch.testing.assert_close(logits, student.forward_head(tokens))
    torch.manual_seed(3)
    kept = student.token_maps(x)[-1] != -1
    with torch.no_grad():
        aims = guide.forward_features(x)
        p = guide(x).softmax(dim=-1)
    q = logits.softmax(dim=-1)
    classes = sum((p[b] * (p[b] / q[b]).log()).sum() for b in range(2)) / 2
    errors = [
        (tokens[b, 1 + i] - aims[b, 3 + i]).square().mean()
        for b in range(2)
        for i in range(64)
        if kept[b, i]
    ]
    torch.testing.assert_close(loss, 0.25 * classes + 2.0 * sum(errors) / len(errors))
    loss.backward()
    assert all(p.grad is None for p in guide.parameters())
    assert student.patch_embed.proj.weight.grad.abs().sum() > 0
    # Against itself nothing is to be learnt but what dropping changes.
    same = build(keep_rate=1.0).train()
    twin = teacher()
    twin.load_state_dict(same.state_dict(), strict=False)
    for block in list(same.blocks)[1:]:
        block.before["dynamicvit"].score.bias.data.copy_(torch.tensor([99.0, -99.0]))
    assert distill(same, twin, x)[1].abs() < 1e-10


@pytest.mark.parametrize(
    ("student", "guide", "message"),
    [
        (lambda: build().eval(), teacher, "training mode"),
        (lambda: teacher().train(), teacher, "reduction='dynamicvit'"),
        (lambda: build().train(), lambda: teacher(embed_dim=64), "patch tokens"),
        (lambda: build().train(), lambda: teacher(patch_size=32), "patch tokens"),
    ],
)
def test_distillation_between_models_that_do_not_fit_is_refused(student, guide, message):
    with pytest.raises(ValueError, match=message):
        distill(student(), guide(), images())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_rate": 0.0}, "keep_rate"),
        ({"keep_rate": 1.1}, "keep_rate"),
        ({"embed_dim": 30, "num_heads": 3}, "divisible by 4"),
        ({"attention": "nystrom"}, "token_sizes"),
        ({"prop_attn": False}, "prop_attn"),
    ],
)
def test_what_cannot_work_says_so(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)
