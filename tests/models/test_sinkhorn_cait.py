"""Sparse Sinkhorn attention in CaiT's shell: what the shell is, and what its arguments do."""

import pytest
import timm
import torch
from timm.layers import set_scriptable
from timm.models import create_feature_extractor
from timm.models.cait import Cait

import efficient_vits
from efficient_vits.attention.sinkhorn import SinkhornAttention
from efficient_vits.weights import WeightsError

SMALL = {"img_size": 64, "depth": 2, "init_values": 1.0, "num_classes": 7}


def build(**arguments):
    torch.manual_seed(0)
    return timm.create_model("sinkhorn_cait_ti16", **{**SMALL, **arguments}).eval()


def test_the_shell_is_timms():
    model = build()
    assert isinstance(model, Cait)
    assert all(isinstance(block.attn, SinkhornAttention) for block in model.blocks)
    shell = Cait(64, num_classes=7, embed_dim=192, depth=2, num_heads=3)
    ours, theirs = model.state_dict(), shell.state_dict()
    talking_heads = {n for n in theirs if "proj_l" in n or "proj_w" in n}
    assert len(talking_heads) == 8
    assert {n: v.shape for n, v in ours.items()} == {
        n: v.shape for n, v in theirs.items() if n not in talking_heads
    }


@pytest.mark.parametrize(
    "own",
    [{"sort": "sinkhorn"}, {"max_bucket": 2}, {"n_top": 2}, {"keys_as_values": False}],
)
def test_the_mixers_own_arguments_arrive(own):
    """Four buckets of four: with one bucket there would be nothing to sort."""
    x = torch.randn(2, 3, 64, 64)
    plain, model = build(max_bucket=4), build(**{"max_bucket": 4, **own})
    model.load_state_dict(plain.state_dict())
    assert not torch.allclose(model(x), plain(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("sort", ["topk", "sinkhorn"])
def test_sorting_survives_every_compiler(sort, tmp_path):
    import onnxruntime

    x, path = torch.randn(2, 3, 64, 64), tmp_path / "model.onnx"
    with set_scriptable(True):
        scriptable = build(sort=sort, max_bucket=4)
    torch.testing.assert_close(torch.jit.script(scriptable)(x), scriptable(x))
    model = build(sort=sort, max_bucket=4)
    traced = create_feature_extractor(model, {"head": "logits"})
    torch.testing.assert_close(traced(x)["logits"], model(x))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    # float32 sums in another order, outputs of the order of 1
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), atol=1e-4, rtol=1e-4)


def test_another_argument_is_refused():
    with pytest.raises(TypeError, match="grid"):
        build(grid=3)


def test_weights_of_another_resolution_load():
    wide, narrow = build(img_size=96), build()
    assert efficient_vits.load_weights(wide, narrow.state_dict()).resampled == ["pos_embed"]
    broken = {**narrow.state_dict(), "pos_embed": torch.zeros(1, 15, 192)}
    with pytest.raises(WeightsError, match="pos_embed"):
        efficient_vits.load_weights(wide, broken)


def test_a_position_embedding_stays_frozen():
    model = build()
    model.pos_embed.requires_grad_(False)
    model.set_input_size((96, 64))
    assert model.pos_embed.shape == (1, 24, 192)
    assert not model.pos_embed.requires_grad


def test_cards_of_other_sizes_have_the_paper_and_no_figures():
    small, tiny = (efficient_vits.model_card(f"sinkhorn_cait_{s}16") for s in ("s", "ti"))
    assert tiny.paper == small.paper
    assert tiny.paper.first_author == "Tay"
    assert (tiny.params, tiny.flops, tiny.paper_model) == (None, None, "")
