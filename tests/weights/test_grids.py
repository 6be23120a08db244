"""Weights of another grid of patches, for every mechanism: what `set_input_size` makes of them.

Trained on 4 x 4 patches, loaded into 6 x 6, by `load_weights` and by ``pretrained=True``.
"""

import pytest
import safetensors.torch
import timm
import torch

from efficient_vits.attention import attention_traits, list_attentions
from efficient_vits.models import create_vit
from efficient_vits.reduction import list_reductions
from efficient_vits.weights import load_weights

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5, "init_values": 1.0}
SMALL |= {"no_embed_class": True}
TRAINED, WANTED = (64, 64), (96, 96)  # 4 x 4 and 6 x 6 patches

POOLED = {"class_token": False, "global_pool": "avg", "fc_norm": False}


def needs(name):
    """What a ViT with this attention needs."""
    traits = attention_traits(name)
    return {} if traits.prefix_tokens and traits.mixes_prefix else POOLED


MECHANISMS = {
    **{name: {"attention": name, **needs(name)} for name in list_attentions()},
    **{f"reduction {name}": {"reduction": name} for name in list_reductions()},
    "mlp switch": {"mlp": "switch", "num_experts": 3},
}


def build(name, img_size):
    torch.manual_seed(0)
    return create_vit(img_size=img_size, **SMALL, **MECHANISMS[name]).eval()


def randomised(model):
    """No two entries alike, all within what a trained model has."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def assert_equal_states(model, other):
    assert model.state_dict().keys() == other.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_larger_grid_is_what_set_input_size_makes(name, tmp_path):
    source = randomised(build(name, TRAINED))
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    trained, model = build(name, TRAINED), build(name, WANTED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    assert load_weights(trained, path).resampled == []
    assert "pos_embed" in load_weights(model, path).resampled
    trained.set_input_size(img_size=WANTED)
    assert_equal_states(model, trained)
    overlay = {"file": str(path), "num_classes": 5}
    build_argument = {**SMALL, "img_size": WANTED, **MECHANISMS[name]}
    pretrained = timm.create_model(
        "vit_s16", pretrained=True, pretrained_cfg_overlay=overlay, **build_argument
    ).eval()
    assert_equal_states(pretrained, trained)
    x = torch.randn(1, 3, *WANTED)
    torch.manual_seed(1)
    expected = trained(x)
    torch.manual_seed(1)
    assert torch.equal(model(x), expected)
    assert expected.isfinite().all()


@pytest.mark.parametrize("name", MECHANISMS)
def test_other_classes_and_channels(name, tmp_path):
    source = randomised(build(name, TRAINED))
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    arguments = {**SMALL, "img_size": WANTED, **MECHANISMS[name], "num_classes": 10, "in_chans": 1}
    model = timm.create_model(
        "vit_s16",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path), "num_classes": 5},
        **arguments,
    )
    source.set_input_size(img_size=WANTED)
    for key, value in model.state_dict().items():
        theirs = source.state_dict()[key]
        if key == "patch_embed.proj.weight":
            theirs = theirs.sum(dim=1, keepdim=True)
            torch.testing.assert_close(value, theirs)
        elif key.startswith("head."):
            assert len(value) == 10
        else:
            assert torch.equal(value, theirs), key
