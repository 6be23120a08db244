"""A-ViT against a version that runs image by image and block by block on the tokens left."""

import copy
import pickle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import set_exportable
from timm.models import create_feature_extractor

from efficient_vits import auxiliary_loss
from efficient_vits.attention import attention_traits, list_attentions
from efficient_vits.efficiency import count_flops
from efficient_vits.models import create_vit
from efficient_vits.models.block import Block
from efficient_vits.reduction.avit import halt, log_prior, longest, prior_loss, seen

# A gate at which the tokens of a random image halt at different depths.
GATE = {"gate_scale": 2.0, "gate_center": 0.0}
SMALL = {"patch_size": 16, "embed_dim": 32, "depth": 4, "num_heads": 4, "num_classes": 5}
ABLE = [n for n in list_attentions() if attention_traits(n).token_sizes]


def build(size=128, **arguments):
    arguments = {**SMALL, "reduction": "avit", "img_size": size, **GATE, **arguments}
    return create_vit(**arguments).double().eval()


def images(batch=3, height=128, width=128):
    # Images of different contrast halt differently.
    contrast = torch.linspace(0.5, 4, batch, dtype=torch.float64).view(-1, 1, 1, 1)
    return contrast * torch.randn(batch, 3, height, width, dtype=torch.float64)


def naive(model, image):
    """One image (1, 3, H, W): its tokens before the last norm, where each halted, and ponder."""
    x = model._embed(image)
    left = list(range(x.shape[1]))
    output, halted = [0] * len(left), [None] * len(left)
    total, ponder = [0.0] * len(left), 0.0
    for i, block in enumerate(model.blocks):
        if left:
            y = Block.forward(block, x[:, left])
        going = []
        for slot, token in enumerate(left):
            gate = block.after["avit"]
            h = torch.sigmoid(gate.gate_scale * y[0, slot, 0] - gate.gate_center)
            if i == len(model.blocks) - 1 or total[token] + h >= 1 - gate.halting_eps:
                output[token] = output[token] + (1 - total[token]) * y[0, slot]
                halted[token] = i
                ponder = ponder + i + 1 + (1 - total[token])
            else:
                output[token] = output[token] + h * y[0, slot]
                total[token] = total[token] + h
                going.append(token)
        x = x.clone()
        x[:, left] = y
        left = going
    return torch.stack(output), halted, ponder / len(output)


@pytest.mark.parametrize("attention", ["softmax", "linear"])
@pytest.mark.parametrize(("class_token", "reg_tokens"), [(True, 0), (True, 2), (False, 0)])
def test_equals_its_naive_twin_on_both_paths(attention, class_token, reg_tokens):
    pool = "token" if class_token else "avg"
    model = build(
        attention=attention, class_token=class_token, reg_tokens=reg_tokens, global_pool=pool
    )
    x = images()
    twins = [naive(model, image) for image in x.split(1)]
    depths = {depth for _, halted, _ in twins for depth in halted}
    assert len(depths) > 2, "the gate must tell tokens apart"
    expected = model.norm(torch.stack([tokens for tokens, _, _ in twins]))
    dynamic, static = model, copy.deepcopy(model)
    for block in static.blocks:
        block.after["avit"].dynamic = False
    P = model.num_prefix_tokens
    for path in (dynamic, static):
        torch.testing.assert_close(path.forward_features(x), expected)
        maps = path.token_maps(x)
        for image, (_, halted, _) in enumerate(twins):
            for i, found in enumerate(maps[:-1]):
                gone = torch.tensor([depth <= i for depth in halted[P:]])
                assert torch.equal(found[image] == -1, gone)
        assert torch.equal(maps[-1], torch.arange(P, P + 64).expand(3, -1))
    ours = [m.shape for m in dynamic.forward_intermediates(x, intermediates_only=True)]
    assert ours == [(3, 32, 8, 8)] * 4
    for a, b in zip(
        dynamic.forward_intermediates(x, intermediates_only=True, return_prefix_tokens=P > 0),
        static.forward_intermediates(x, intermediates_only=True, return_prefix_tokens=P > 0),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_gradients_of_training_equal_the_naive_twins():
    model, x = build(ponder_weight=0.5, prior_weight=0.0).train(), images()
    weights = torch.randn(3, 65, 32, dtype=torch.float64)
    loss = (model.forward_features(x) * weights).sum() + auxiliary_loss(model)
    ours = torch.autograd.grad(loss, list(model.blocks.parameters()))
    twins = [naive(model, image) for image in x.split(1)]
    ponder = 0.5 * sum(cost for _, _, cost in twins) / 3
    tokens = model.norm(torch.stack([tokens for tokens, _, _ in twins]))
    other = (tokens * weights).sum() + ponder
    torch.testing.assert_close(loss, other)
    theirs = torch.autograd.grad(other, list(model.blocks.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@settings(max_examples=50, deadline=None)
@given(
    probabilities=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9),
    eps=st.sampled_from([0.01, 0.1, 0.5]),
)
def test_the_weights_of_a_token_are_shares_of_one(probabilities, eps):
    score, remainder = torch.zeros(1, 1), torch.ones(1, 1)
    running, weights = torch.ones(1, 1, dtype=torch.bool), []
    for h in [*probabilities, 1.0]:
        step = torch.full((1, 1), h)
        weight, score, remainder, running = halt(score, remainder, running, step, eps)
        weights.append(weight.item())
    assert not running.any()
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert min(weights) >= -1e-6


def blocks_computed(model, x):
    """Tokens that each block computed."""
    seen = []
    hooks = [
        block.norm1.register_forward_hook(lambda module, args, y: seen.append(y.shape[1]))
        for block in model.blocks
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_computes_as_many_tokens_as_the_image_with_the_most_has():
    model, x = build(), images()
    maps = model.token_maps(x)
    most = [int((m >= 0).sum(dim=1).max()) for m in maps]
    assert blocks_computed(model, x) == [65, *(1 + n for n in most[:-1])]
    assert most[0] > most[2]
    assert model.token_counts == [None] * 4


@pytest.mark.parametrize("prefix", [{}, {"class_token": False, "global_pool": "avg"}])
def test_all_tokens_may_halt_at_once(prefix):
    model, x = build(gate_scale=0.0, gate_center=-20.0, **prefix), images()
    assert blocks_computed(model, x) == [65 if not prefix else 64, 1, 1, 1]
    assert model(x).isfinite().all()
    assert all((m == -1).all() for m in model.token_maps(x)[:-1])
    # Everything is what it was after the first block.
    first = model.blocks[0](model._embed(x), None, None, {})[3]["avit_output"]
    torch.testing.assert_close(model.forward_features(x), model.norm(first))


def test_a_gate_that_never_opens_is_a_plain_vit_of_the_last_block():
    model, x = build(gate_scale=0.0, gate_center=60.0), images()
    plain = create_vit(**SMALL, img_size=128).double().eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("attention", ABLE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_activations_stay_finite_in_training(attention, dtype):
    model = build(attention=attention).float().train()
    x = 30 * images().float()
    x[1] = 0
    x[2] = 1
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = model(x)
    (y.float().square().mean() + auxiliary_loss(model)).backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:.*obtained by tracing the model in:UserWarning")
def test_static_paths_are_taken_where_shapes_must_be_known():
    model, x = build(), images()
    y = model(x)
    traced = create_feature_extractor(model, return_nodes=["head"])
    assert blocks_computed(model, x) != [65] * 4
    assert blocks_computed(model.train(), x) == [65] * 4
    model.eval()
    torch.testing.assert_close(traced(x)["head"], y)
    torch.testing.assert_close(torch.jit.script(model)(x), y)
    with set_exportable(True):
        assert blocks_computed(build(), x) == [65] * 4
        assert blocks_computed(build(dynamic=True), x) != [65] * 4
    assert blocks_computed(build(dynamic=False), x) == [65] * 4


def test_training_compiles_and_keeps_its_losses():
    model, x = build().train(), images()
    model(x)
    expected = auxiliary_loss(model).detach()
    torch._dynamo.reset()
    torch.compile(model, backend="eager", fullgraph=True)(x).sum().backward()
    torch.testing.assert_close(auxiliary_loss(model).detach(), expected)


def test_a_class_token_that_halted_early_is_its_output_in_a_shorter_model():
    model, x = build(), images()
    halted = [naive(model, image)[1][0] for image in x.split(1)]
    final = model.forward_features(x)[:, 0]
    taps = model.forward_intermediates(
        x, [2], norm=True, return_prefix_tokens=True, intermediates_only=True
    )
    for image, depth in enumerate(halted):
        same = torch.allclose(taps[0][1][image, 0], final[image])
        assert same == (depth <= 2)
    model.prune_intermediate_layers([2], prune_head=False)
    torch.testing.assert_close(model.forward_features(x)[:, 0], taps[0][1][:, 0])


def test_one_compiled_block_fits_among_dynamic_ones():
    model, x = build(), images()
    torch._dynamo.reset()
    with torch.no_grad():
        y = model(x)
        model.blocks[2] = torch.compile(model.blocks[2], backend="eager")
        torch.testing.assert_close(model(x), y)


def test_flops_fall_where_tokens_halt_and_only_there():
    x = images(1).float()
    model = build().float()
    everything = count_flops(model, (3, 128, 128))
    gates = [block.after["avit"] for block in model.blocks]
    totals = []
    for center in (20.0, 0.0, -20.0):  # nobody halts, some do, everybody does
        for gate in gates:
            gate.gate_center = center
        totals.append(count_flops(model, images=x).total)
    assert everything.total >= totals[0] > totals[1] > totals[2]
    assert totals[2] < 0.5 * totals[0]
    for gate in gates:
        gate.dynamic = False
    masked = count_flops(model, images=x)
    assert masked.total == count_flops(model, (3, 128, 128)).total == everything.total
    assert masked.uncounted == everything.uncounted == {}


@pytest.mark.parametrize("depth", [2, 12, 24])
def test_the_prior_is_nearest_to_itself(depth):
    center = 2 * depth / 3
    target = log_prior(depth, center, torch.device("cpu")).exp()
    torch.testing.assert_close(target.sum(), torch.tensor(1.0))
    assert abs(int(target.argmax()) - center) < 1
    # The authors' bounds move both by less than 0.01; the reverse lies away from the target.
    assert abs(prior_loss(target, center)) < 0.01
    assert prior_loss(target.flip(0), center) > 0.03
    assert prior_loss(torch.zeros(depth), center).isfinite()


def test_losses_are_there_in_training_only():
    model, x = build(), images()
    model.train()(x)
    loss = auxiliary_loss(model)
    # Four blocks at least one of which every token runs, and what is left of one at the end.
    assert 0.001 < loss < 0.001 * 5 + 0.01
    assert auxiliary_loss(copy.deepcopy(model)) == 0
    assert auxiliary_loss(pickle.loads(pickle.dumps(model))) == 0
    model.eval()(x)
    assert auxiliary_loss(model) == 0


def test_helpers():
    running = torch.tensor([[True, True, False, True], [True, False, False, False]])
    assert longest(running, 1) == (2, False)
    assert longest(running[:1], 1) == (2, True)
    assert longest(running[1:, 1:], 0) == (1, False)
    assert longest(torch.tensor([[False, True, True]]), 1) == (2, False)
    none = torch.zeros(1, 2, dtype=torch.bool)
    assert seen(torch.cat([running[:, :2], none])).flatten().tolist() == [1, 1, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"halting_eps": 0.0}, "halting_eps"),
        ({"halting_eps": 1.0}, "halting_eps"),
        ({"target_depth": 4}, "target_depth < 4"),
        ({"target_depth": -1}, "target_depth"),
        ({"attention": "fnet", "class_token": False, "global_pool": "avg"}, "token_sizes"),
        ({"prop_attn": False}, "prop_attn"),
        ({"reduction": ["avit", "tome"]}, "tome"),
    ],
)
def test_what_cannot_work_says_so(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_other_sizes_of_images():
    model = timm.create_model("avit_ti16", img_size=(64, 96), depth=2, **GATE).eval()
    assert model(torch.randn(2, 3, 64, 96)).shape == (2, 1000)
