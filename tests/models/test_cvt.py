"""CvT: the published sizes, the class token, and weights of the transformers package."""

import pytest
import timm
import torch

import efficient_vits
from efficient_vits.weights import WeightsError

SMALL = {
    "depths": (1, 2, 2),
    "embed_dims": (8, 16, 24),
    "num_heads": (1, 2, 3),
    "num_classes": 7,
}


def build(**arguments):
    return timm.create_model("cvt_13", **{**SMALL, **arguments}).eval()


@pytest.mark.parametrize(
    ("name", "millions", "size"),
    [("cvt_13", 20.0, 224), ("cvt_21", 31.5, 224), ("cvt_w24", 277, 384)],
)
def test_sizes_are_those_of_the_paper(name, millions, size):
    """Tables 2 and 3."""
    model = timm.create_model(name, device="meta")
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=5e-3)
    assert model.pretrained_cfg["input_size"] == (3, size, size)
    assert efficient_vits.model_card(name).paper.arxiv == "2103.15808"


BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.convolution_projection_query.convolution_projection.convolution": (
        "attn.q_conv.conv"
    ),
    "attention.attention.convolution_projection_query.convolution_projection.normalization": (
        "attn.q_conv.bn"
    ),
    "attention.attention.convolution_projection_key.convolution_projection.convolution": (
        "attn.k_conv.conv"
    ),
    "attention.attention.convolution_projection_key.convolution_projection.normalization": (
        "attn.k_conv.bn"
    ),
    "attention.attention.convolution_projection_value.convolution_projection.convolution": (
        "attn.v_conv.conv"
    ),
    "attention.attention.convolution_projection_value.convolution_projection.normalization": (
        "attn.v_conv.bn"
    ),
    "attention.attention.projection_query": "attn.q_proj",
    "attention.attention.projection_key": "attn.k_proj",
    "attention.attention.projection_value": "attn.v_proj",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def in_transformers_names(model):
    """The model's state as ``CvtForImageClassification`` would save it."""
    ours, theirs = model.state_dict(), {}

    def move(old, new):
        for name in [n for n in ours if n.rpartition(".")[0] == old]:
            theirs[f"{new}.{name.rpartition('.')[2]}"] = ours.pop(name)

    for i, stage in enumerate(model.stages):
        level = f"cvt.encoder.stages.{i}"
        embedding = f"{level}.embedding.convolution_embeddings"
        move(f"stages.{i}.downsample.proj", f"{embedding}.projection")
        move(f"stages.{i}.downsample.norm", f"{embedding}.normalization")
        for j in range(len(stage.blocks)):
            for new, old in BLOCK.items():
                move(f"stages.{i}.blocks.{j}.{old}", f"{level}.layers.{j}.{new}")
    theirs["cvt.encoder.stages.2.cls_token"] = ours.pop("stages.2.cls_token")
    move("norm", "layernorm")
    move("head", "classifier")
    assert ours == {}
    return theirs


def randomised(model):
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1.0)
    return model


def test_pretrained_converts_them_on_the_way(tmp_path):
    trained = randomised(build())
    torch.save(in_transformers_names(trained), tmp_path / "pytorch_model.bin")
    overlay = {"file": str(tmp_path / "pytorch_model.bin")}
    model = build(pretrained=True, pretrained_cfg_overlay=overlay)
    for name, value in model.state_dict().items():
        # The classifier has another size than the record says; timm leaves it new.
        assert torch.equal(value, trained.state_dict()[name]) != name.startswith("head."), name
    assert timm.get_pretrained_cfg("cvt_13").hf_hub_id == "microsoft/cvt-13"


def test_weights_of_the_transformers_package_load():
    trained, model = randomised(build()), build()
    state = in_transformers_names(trained)
    assert state["cvt.encoder.stages.1.layers.1.output.dense.weight"].shape == (16, 64)
    loaded = efficient_vits.load_weights(model, state)
    assert loaded.layout == "transformers"
    assert loaded.absent == []
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_what_lacks_in_them_is_named():
    state = in_transformers_names(randomised(build()))
    del state["cvt.encoder.stages.1.layers.0.attention.attention.projection_key.weight"]
    state["cvt.pooler.weight"] = torch.zeros(3)
    with pytest.raises(WeightsError) as error:
        efficient_vits.load_weights(build(), state)
    assert error.value.faults == {
        "missing": ["stages.1.blocks.0.attn.k_proj.weight"],
        "unexpected": ["cvt.pooler.weight"],
    }


def test_a_bare_model_of_theirs_is_a_start():
    """``CvtModel`` has neither norm nor classifier."""
    state = {
        name.removeprefix("cvt."): value
        for name, value in in_transformers_names(randomised(build())).items()
        if name.startswith("cvt.")
    }
    account = efficient_vits.warm_start(build(), state)
    assert account.layout == "transformers"
    assert account.unused == []
    assert account.new == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    with pytest.raises(WeightsError, match="missing"):
        efficient_vits.load_weights(build(), state)


def test_the_class_token_joins_in_the_last_level():
    model, x = build(), torch.randn(2, 3, 64, 64)
    assert model.no_weight_decay() == {"stages.2.cls_token"}
    shapes = [
        stage(torch.randn(2, c, 32, 32))[1]
        for stage, c in zip(model.stages, (3, 8, 16), strict=True)
    ]
    assert [tuple(s.shape) for s in shapes] == [(2, 0, 8), (2, 0, 16), (2, 1, 24)]
    assert model.forward_features(x).shape == (2, 1 + 4 * 4, 24)
    with torch.no_grad():
        before = model(x)
        model.stages[2].cls_token += 1
    assert not torch.allclose(model(x), before)


def test_the_classifier_reads_what_pooling_says():
    x = torch.randn(2, 3, 64, 64)
    token = randomised(build(num_classes=0))
    mean, everything = build(num_classes=0, global_pool="avg"), build(num_classes=0, global_pool="")
    for model in (mean, everything):
        model.load_state_dict(token.state_dict())
    features = everything(x)
    torch.testing.assert_close(token(x), features[:, 0])
    torch.testing.assert_close(mean(x), features[:, 1:].mean(dim=1))
    with pytest.raises(ValueError, match="'max'"):
        build(global_pool="max")
    # Without the last level there is no class token to read.
    token.prune_intermediate_layers([1])
    assert token(x).shape == (2, 8 * 8, 16)
    with pytest.raises(ValueError, match="'token'"):
        token.reset_classifier(3, "token")
    token.reset_classifier(3, "avg")
    assert token(x).shape == (2, 3)


def test_stochastic_depth_grows_within_the_last_level():
    model = build(depths=(2, 2, 3), drop_path_rate=0.2)
    rates = [[getattr(b.drop_path1, "drop_prob", 0.0) for b in s.blocks] for s in model.stages]
    assert rates == [[0.0, 0.0], [0.0, 0.0], pytest.approx([0.0, 0.1, 0.2])]


def test_the_activation_of_the_authors_code():
    x, plain, quick = torch.randn(2, 3, 64, 64), build(), build(act_layer="quick_gelu")
    quick.load_state_dict(plain.state_dict())
    assert not torch.allclose(quick(x), plain(x), atol=1e-7)
    mlp, z = quick.stages[0].blocks[0].mlp, torch.randn(5)
    torch.testing.assert_close(mlp.act(z), z * (1.702 * z).sigmoid())
