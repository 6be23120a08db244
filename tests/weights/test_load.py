"""Loading is strict, resamples to the model's resolution, and leaves dtype and device alone."""

import pytest
import timm
import torch
from torch import nn

import efficient_vits
from efficient_vits.models import create_vit
from efficient_vits.weights import Loaded, WeightsError

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
PAPER = {"no_embed_class": True, "init_values": 1e-4}  # as the variants have it

# One model per mechanism with parameters of its own.
MECHANISMS = {
    "softmax": {},
    "hydra": {"attention": "hydra"},
    "linformer": {"attention": "linformer", "k": 8, "qkv_bias": False},
    "switch": {"mlp": "switch", "num_experts": 3},
    "tome": {"reduction": "tome", "r": 2},
    "all at once": {"attention": "hydra", "mlp": "switch", "num_experts": 3, "reduction": "tome"},
}


def tiny(img_size=64, **arguments):
    """A ViT in which no two tensors are alike, nor 0 or 1."""
    model = create_vit(img_size=img_size, **{**SIZES, **PAPER, **arguments}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def copies(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal_states(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


def refusal(model, state):
    """The message, after a check that the model is as it was."""
    before = copies(model)
    with pytest.raises(WeightsError) as error:
        efficient_vits.load_weights(model, state)
    assert_equal_states(model.state_dict(), before)
    return str(error.value)


@pytest.mark.parametrize("arguments", MECHANISMS.values(), ids=MECHANISMS)
def test_round_trip(arguments, tmp_path):
    source, model = tiny(**arguments), tiny(**arguments)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    loaded = efficient_vits.load_weights(model, tmp_path / "weights.pt")
    assert loaded == Loaded("efficient_vits", resampled=[], absent=[])
    assert_equal_states(model.state_dict(), source.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), source(x))


def test_what_does_not_fit_is_listed_in_one_error():
    model = tiny()
    state = copies(tiny())
    del state["norm.weight"], state["blocks.1.ls2.gamma"]
    state["head.bias"] = torch.zeros(6)
    state["blocks.0.attn.qkv.weight"] = torch.zeros(96, 33)
    state["blocks.0.adapter"] = torch.zeros(1)
    state["ema.decay"] = torch.zeros(1)
    message = refusal(model, state)
    lines = {line.strip().split(":")[0]: line for line in message.splitlines()}
    assert {name.strip() for name in lines["missing (2)"].split(":")[1].split(",")} == {
        "norm.weight",
        "blocks.1.ls2.gamma",
    }
    assert {name.strip() for name in lines["unexpected (2)"].split(":")[1].split(",")} == {
        "blocks.0.adapter",
        "ema.decay",
    }
    misshapen = lines["of another shape (2)"]
    assert "head.bias (6,), want (5,)" in misshapen
    assert "blocks.0.attn.qkv.weight (96, 33), want (96, 32)" in misshapen


@pytest.mark.parametrize(
    "arguments",
    [
        *MECHANISMS.values(),
        {"no_embed_class": False},
        {"class_token": False, "global_pool": "avg"},
        {"init_values": None},
    ],
    ids=[*MECHANISMS, "class-token slot", "no class token", "no LayerScale"],
)
def test_no_tensor_may_be_missing(arguments):
    model, state = tiny(**arguments), tiny(**arguments).state_dict()
    for name in state:
        assert name in refusal(model, {key: state[key] for key in state if key != name})


@pytest.mark.parametrize(
    "arguments", [MECHANISMS["softmax"], MECHANISMS["linformer"], MECHANISMS["switch"]]
)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (0, 8), (17, 8, 2), (1, 2, 3, 4, 5)], ids=str)
def test_no_tensor_may_be_of_another_shape(arguments, shape):
    model, state = tiny(**arguments), tiny(**arguments).state_dict()
    for name in state:
        message = refusal(model, {**state, name: torch.zeros(shape)})
        assert f"{name} {shape}, want {tuple(state[name].shape)}" in message


def test_nothing_of_a_bad_file_is_loaded_whatever_the_order():
    state = copies(tiny())
    for order in (state.items(), reversed(state.items())):
        assert "extra" in refusal(tiny(), {**dict(order), "extra": torch.zeros(1)})
        assert "extra" in refusal(tiny(), {"extra": torch.zeros(1), **dict(order)})


@pytest.mark.parametrize("size", [96, (64, 128), (32, 48)], ids=str)
@pytest.mark.parametrize(
    ("arguments", "resampled"),
    [
        ({}, {"pos_embed"}),
        ({"no_embed_class": False, "reg_tokens": 3}, {"pos_embed"}),
        (
            MECHANISMS["linformer"],
            {"pos_embed"} | {f"blocks.{i}.attn.proj_{p}" for i in range(2) for p in "kv"},
        ),
    ],
    ids=["softmax", "prefix slots", "linformer"],
)
def test_another_resolution_is_resampled_as_set_input_size_does(arguments, resampled, size):
    source, model = tiny(**arguments), tiny(size, **arguments)
    loaded = efficient_vits.load_weights(model, source.state_dict())
    assert loaded.layout == "efficient_vits"
    assert set(loaded.resampled) == resampled
    source.set_input_size(size)
    assert_equal_states(model.state_dict(), source.state_dict())
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.randn(2, 3, height, width)
    assert torch.equal(model(x), source(x))


def test_another_patch_size_is_resampled():
    source, model = tiny(), tiny(32, patch_size=8)
    loaded = efficient_vits.load_weights(model, source.state_dict())
    assert loaded.resampled == ["patch_embed.proj.weight"]
    source.set_input_size(img_size=(32, 32), patch_size=(8, 8))
    assert_equal_states(model.state_dict(), source.state_dict())


def theirs(**arguments):
    """timm's own VisionTransformer, no two tensors alike."""
    model = timm.models.VisionTransformer(
        img_size=64,
        patch_size=16,
        norm_layer=lambda *a, **k: nn.LayerNorm(*a, eps=1e-6, **k),
        **{**SIZES, **arguments},
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


# A sum of the same terms in another order: float32 rounding of logits of size 1 to 10.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def test_timms_plain_vit_is_loaded_exactly():
    source, model = theirs(), tiny()
    x = torch.randn(2, 3, 64, 64)
    assert not torch.allclose(model(x), source(x), **ROUNDING)
    assert efficient_vits.load_weights(model, source.state_dict()).layout == "timm ViT"
    torch.testing.assert_close(model(x), source(x), **ROUNDING)


def test_timms_plain_vit_into_one_without_layer_scale():
    source, model = theirs(), tiny(init_values=None)
    x = torch.randn(2, 3, 64, 64)
    efficient_vits.load_weights(model, source.state_dict())
    torch.testing.assert_close(model(x), source(x), **ROUNDING)


def test_timms_plain_vit_at_another_resolution():
    source, model = theirs(), tiny(96)
    loaded = efficient_vits.load_weights(model, source.state_dict())
    assert loaded == Loaded("timm ViT", resampled=["pos_embed"], absent=[])
    source.set_input_size((96, 96))
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(model(x), source(x), **ROUNDING)


def test_timms_deit3_is_loaded_exactly():
    source, model = theirs(no_embed_class=True, init_values=1e-6), tiny()
    x = torch.randn(2, 3, 64, 64)
    assert efficient_vits.load_weights(model, source.state_dict()).layout == "efficient_vits"
    torch.testing.assert_close(model(x), source(x), **ROUNDING)


def test_timms_plain_vit_must_be_whole_too():
    state = theirs().state_dict()
    del state["blocks.1.mlp.fc1.bias"]
    assert "missing (1): blocks.1.mlp.fc1.bias" in refusal(tiny(), state)


def test_a_model_on_the_meta_device_is_refused():
    state = tiny().state_dict()
    model = create_vit(img_size=64, device="meta", **SIZES, **PAPER)
    with pytest.raises(ValueError, match=r"meta device.*to_empty"):
        efficient_vits.load_weights(model, state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_and_memory_of_the_model_stay(dtype):
    model, state = tiny().to(dtype), tiny().state_dict()
    before = {name: (value, value.data_ptr()) for name, value in model.named_parameters()}
    efficient_vits.load_weights(model, state)
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert parameter.data_ptr() == before[name][1]
        assert parameter.requires_grad
        assert parameter.dtype == dtype
        assert torch.equal(parameter, state[name].to(dtype))


def test_the_state_dict_stays_as_it_was_and_shares_nothing():
    source, model = tiny(), tiny(96)
    state = source.state_dict()
    before = copies(source)
    efficient_vits.load_weights(model, {"model": state})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_equal_states(state, before)


class Buffers(nn.Module):
    structural_buffers = ("window",)

    def __init__(self, start=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), start))
        self.register_buffer("index", torch.arange(3))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("window", torch.full((4,), start))
        self.register_buffer("running_mean", torch.full((2,), start))


@pytest.mark.parametrize("prefix", ["", "0.inner."])
@pytest.mark.parametrize("absent", [{"index"}, {"mask"}, {"window"}, {"index", "mask", "window"}])
def test_buffers_that_follow_from_the_architecture_may_be_absent(absent, prefix):
    model = Buffers(1.0)
    whole = nn.Sequential(nn.ModuleDict({"inner": model})) if prefix else model
    state = {f"{prefix}{n}": v for n, v in Buffers(2.0).state_dict().items() if n not in absent}
    loaded = efficient_vits.load_weights(whole, state)
    assert set(loaded.absent) == {prefix + name for name in absent}
    assert model.weight.tolist() == model.running_mean.tolist() == [2.0, 2.0]
    assert model.window[0] == (1.0 if "window" in absent else 2.0)
    assert model.index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("absent", ["running_mean", "weight"])
def test_what_was_learned_may_not_be_absent(absent):
    state = {n: v for n, v in Buffers(2.0).state_dict().items() if n != absent}
    assert f"missing (1): {absent}" in refusal(Buffers(1.0), state)
    state.pop("window")
    assert "window" not in refusal(Buffers(1.0), state)


def test_structural_buffers_are_those_of_their_own_module():
    holder = nn.Module()
    holder.inner = nn.Module()
    holder.inner.register_buffer("window", torch.zeros(2))
    holder.structural_buffers = ("window",)
    assert "missing (1): inner.window" in refusal(holder, {})


class Half(torch.Tensor):
    """Looks like a tensor and cannot be copied."""

    @classmethod
    def __torch_function__(cls, function, kinds, arguments=(), keywords=None):
        if function is torch.Tensor.copy_ or function.__name__ == "copy_":
            raise RuntimeError("torn")
        return super().__torch_function__(function, kinds, arguments, keywords or {})


@pytest.mark.parametrize("load", [efficient_vits.load_weights, efficient_vits.warm_start])
def test_a_copy_that_fails_halfway_is_taken_back(load):
    model, state = tiny(), copies(tiny())
    before = copies(model)
    state["norm.weight"] = state["norm.weight"].as_subclass(Half)
    with pytest.raises(WeightsError, match="torn"):
        load(model, state)
    assert_equal_states(model.state_dict(), before)


@pytest.mark.parametrize("load", [efficient_vits.load_weights, efficient_vits.warm_start])
def test_complex_numbers_are_refused(load):
    model, state = tiny(), copies(tiny())
    before = copies(model)
    state["norm.weight"] = state["norm.weight"].to(torch.complex64)
    with pytest.raises(WeightsError, match=r"norm\.weight is complex"):
        load(model, state)
    assert_equal_states(model.state_dict(), before)


def test_a_load_runs_no_hooks_that_could_change_the_model():
    """`load_state_dict` would run them before it finds out what does not fit."""
    model, state = tiny(), copies(tiny())

    def mutate(module, content, *rest):
        with torch.no_grad():
            module.cls_token.zero_()

    model.register_load_state_dict_pre_hook(mutate)
    state["extra"] = torch.zeros(1)
    assert "extra" in refusal(model, state)
