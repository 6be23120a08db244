"""What every model of ours must do at its smallest; new ones are picked up from the catalog.

ViT-shaped models are cut to two blocks. A family with a shape of its own says in a file of `small/`
which of its models stands for it, and which arguments make that small. LayerScale is set to 1
throughout: at its initial 1e-4 no block would matter to any output.
"""

import copy
import inspect
import json
import math
import pickle
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import set_exportable, set_scriptable
from timm.models import create_feature_extractor, get_graph_node_names
from timm.optim import param_groups_layer_decay

import efficient_vits
from efficient_vits import auxiliary_loss
from efficient_vits.efficiency import count_flops
from efficient_vits.models import ComposableViT
from efficient_vits.reduction import reduction_traits

SMALL = {"img_size": 64, "depth": 2, "init_values": 1.0, "num_classes": 7}
FILES = [
    json.loads(p.read_text()) for p in sorted((Path(__file__).parent / "small").glob("*.json"))
]
FAMILIES = {file["model"]: {"num_classes": 7, **file["arguments"]} for file in FILES}
SIZED = [n for n in timm.list_models("*_ti16*", module="efficient_vits") if n not in FAMILIES]
NAMES = [*SIZED, *FAMILIES]
VITS = [n for n in SIZED if isinstance(timm.create_model(n, device="meta"), ComposableViT)]
# Those that are built for one input size, and those that take any.
FIXED = [n for n in NAMES if timm.get_pretrained_cfg(n).fixed_input_size]
FLEXIBLE = [n for n in NAMES if n not in FIXED]
# What timm's classes leave out is not promised under our names for them either.
TIMMS = [n for n in NAMES if efficient_vits.model_card(n).built_on == "timm"]
OURS = [n for n in NAMES if n not in TIMMS]


def build(name, **arguments):
    if name in FLEXIBLE:
        arguments.pop("img_size", None)
    model = timm.create_model(name, **{**FAMILIES.get(name, SMALL), **arguments}).eval()
    for parameter in getattr(model, "head", model).parameters(recurse=False):
        # A classifier that begins at zero would hide everything before it.
        if parameter.ndim == 2 and not parameter.is_meta and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def images(batch=2, channels=3, height=64, width=64, **factory):
    return torch.randn(batch, channels, height, width, **factory)


def test_every_model_is_in_the_catalog_and_none_is_left_out():
    ours = set(timm.list_models(module="efficient_vits"))
    assert set(efficient_vits.list_models(built_on="efficient_vits")) <= ours
    assert ours <= set(efficient_vits.list_models())
    assert {n.replace("_ti16", "_s16") for n in SIZED} <= ours
    # Names of ours for what timm implements: its own classes, or ours derived from just those.
    for name in ours & set(efficient_vits.list_models(built_on="timm")):
        line = type(timm.create_model(name, device="meta")).__mro__
        assert any(cls.__module__.startswith("timm.models.") for cls in line[:2])


def test_every_family_stands_for_its_class_here():
    """No class of model is left out of what follows."""
    classes = {type(timm.create_model(n, device="meta")) for n in NAMES}
    left_out = [
        n
        for n in timm.list_models(module="efficient_vits")
        if type(timm.create_model(n, device="meta")) not in classes
    ]
    assert left_out == []


@pytest.mark.parametrize("name", timm.list_models(module="efficient_vits"))
def test_is_built_at_its_full_size_and_complete(name):
    model = timm.create_model(name, device="meta")
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert sum(p.numel() for p in model.parameters()) == efficient_vits.catalog.count_parameters_of(
        name
    )
    cfg, state = model.pretrained_cfg, model.state_dict()
    assert cfg["architecture"] == name
    for key in ("first_conv", "classifier"):
        for layer in [cfg[key]] if isinstance(cfg[key], str) else cfg[key]:
            assert f"{layer}.weight" in state
    assert type(model).__name__ in repr(model)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_mix(name):
    model, x = build(name).double(), images(3, dtype=torch.float64)
    y = model(x)
    assert y.shape == (3, 7)
    torch.testing.assert_close(torch.cat([model(image) for image in x.split(1)]), y)
    assert (y[0] - y[1]).abs().max() > 1e-3, "the image does not matter"


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_trains(name):
    model = build(name).train()
    (model(images()).square().sum() + auxiliary_loss(model)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_changes_no_gradient(name):
    model, x = build(name).double().train(), images(dtype=torch.float64)
    gradients, start = [], copy.deepcopy(model.state_dict())
    for enable in (False, True):
        # Training may move buffers and draw at random: both runs start from the same state.
        model.load_state_dict(start)
        torch.manual_seed(0)
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        (model(x).square().sum() + auxiliary_loss(model)).backward()
        # torch's own batch norm sees a checkpointed batch twice; nothing else may.
        moved = [
            buffer.clone()
            for key, buffer in model.named_buffers()
            if key.split(".")[-1] not in ("running_mean", "running_var", "num_batches_tracked")
        ]
        gradients.append([p.grad.clone() for p in model.parameters()] + moved)
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def saved_bytes(model, x):
    """What autograd keeps of one forward pass, each storage once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for pointer, size in storages.items() if pointer not in own)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_saves_memory(name):
    model, x = build(name).train(), images()
    plain = saved_bytes(model, x)
    model.set_grad_checkpointing()
    assert saved_bytes(model, x) < 0.8 * plain


@pytest.mark.parametrize("name", VITS)
def test_takes_timms_arguments(name):
    model = build(name, in_chans=1, img_size=(64, 96), reg_tokens=2, qkv_bias=False, drop_rate=0.1)
    assert model(images(channels=1, width=96)).shape == (2, 7)
    assert model.num_prefix_tokens == 2 + model.has_class_token
    without = {"num_classes": 0, "class_token": False, "global_pool": "avg"}
    if any(reduction_traits(type(r)).needs_prefix for r in getattr(model, "reductions", list)()):
        with pytest.raises(ValueError, match="no prefix token"):
            build(name, **without)
        return
    headless = build(name, **without)
    assert headless(images()).shape == (2, headless.embed_dim)


@pytest.mark.parametrize("name", NAMES)
def test_takes_what_every_model_takes(name):
    model = build(name, in_chans=1, drop_rate=0.1, drop_path_rate=0.1, img_size=(64, 96))
    assert model(images(channels=1, width=96)).shape == (2, 7)
    headless = build(name, num_classes=0)
    x = images()
    features = headless(x)
    assert features.shape == (2, headless.head_hidden_size)
    tokens = headless.forward_features(x)
    torch.testing.assert_close(features, headless.forward_head(tokens, pre_logits=True))


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_argument_is_refused(name):
    with pytest.raises(TypeError, match="not_an_argument"):
        build(name, not_an_argument=1)


@pytest.mark.parametrize("name", [n for n in FIXED if n in OURS])
def test_another_input_size_is_the_same_as_building_at_it(name):
    model = build(name)
    model.set_input_size(img_size=(96, 64))
    other = build(name, img_size=(96, 64))
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in other.state_dict().items()
    }
    other.load_state_dict(model.state_dict())
    x = images(height=96)
    assert torch.equal(model(x), other(x))
    assert getattr(model, "token_counts", None) == getattr(other, "token_counts", None)


@pytest.mark.parametrize("name", FLEXIBLE)
def test_takes_images_of_any_size(name):
    model = build(name)
    sizes = [(64, 96), (80, 72), (97, 66)]
    assert all(model(images(height=h, width=w)).isfinite().all() for h, w in sizes)
    if hasattr(model, "set_input_size"):
        before, x = model(images(height=96)), images(height=96)
        model.set_input_size(img_size=(96, 64))
        assert model(x).shape == before.shape


@pytest.mark.parametrize("name", VITS)
def test_counts_its_tokens_without_running(name):
    model = build(name)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(
            lambda module, args, output: seen.append(
                (output[0] if isinstance(output, tuple) else output).shape[1]
            )
        )
    model(images())
    assert [count or now for count, now in zip(model.token_counts, seen, strict=True)] == seen


def reduced(pixels, reduction):
    """Rows or columns of a map; pyramids round up."""
    return math.ceil(pixels / reduction)


@pytest.mark.parametrize("name", NAMES)
def test_intermediates_are_dense_maps(name):
    model, x = build(name, img_size=(64, 96)), images(width=96)
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert [m.shape for m in maps] == [
        (2, info["num_chs"], reduced(64, info["reduction"]), reduced(96, info["reduction"]))
        for info in model.feature_info
    ]
    stopped = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    assert torch.equal(stopped[0], maps[0])
    features = build(name, features_only=True, out_indices=(0, 1))
    strides = features.feature_info.reduction()
    maps = features(images())
    if getattr(features, "output_fmt", "NCHW") == "NHWC":
        maps = [m.permute(0, 3, 1, 2) for m in maps]
    assert [m.shape for m in maps] == [
        (2, channels, reduced(64, stride), reduced(64, stride))
        for channels, stride in zip(features.feature_info.channels(), strides, strict=True)
    ]


@pytest.mark.parametrize("name", SIZED)
def test_intermediates_come_in_timms_other_forms(name):
    model, x = build(name, img_size=(64, 96)), images(width=96)
    width, final = model.num_features, model.forward_features(x)
    if name in VITS and model.num_prefix_tokens:
        pairs = model.forward_intermediates(
            x, 1, return_prefix_tokens=True, intermediates_only=True
        )
        assert pairs[0][1].shape == (2, model.num_prefix_tokens, width)
    result = model.forward_intermediates(x, norm=True, output_fmt="NLC", output_dict=True)
    assert result["image_intermediates"][0].shape == (2, 24, width)
    torch.testing.assert_close(result["image_features"], final)
    features = build(name, features_only=True, out_indices=(0, 1))
    assert features.feature_info.reduction() == [16, 16]


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_graph_breaks(name):
    model, x = build(name), images()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_exports(name):
    model, x = build(name), images()
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", NAMES)
def test_runs_in_onnxruntime(name, tmp_path):
    import onnxruntime

    path, x = tmp_path / "model.onnx", images()
    with set_exportable(True):
        model = build(name)
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    # float32 sums in another order, outputs of the order of 1
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), atol=1e-4, rtol=1e-4)


# Where tokens are hidden in training and dropped in inference, the two graphs differ.
@pytest.mark.filterwarnings("ignore:.*obtained by tracing the model in:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_scripts_and_traces(name):
    with set_scriptable(True):
        model = build(name)
    x = images()
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
    output = "head" if name in SIZED else get_graph_node_names(model)[1][-1]
    traced = create_feature_extractor(model, {output: "logits"})
    torch.testing.assert_close(traced(x)["logits"], model(x))


@pytest.mark.parametrize("name", NAMES)
def test_is_the_same_in_channels_last_and_close_in_half_precision(name):
    # In float64: ResT's instance norm of nearly equal weights magnifies how sums are rounded.
    model, x = build(name).double(), images(dtype=torch.float64)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), model(x))
    model, x = model.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        z = model(x)
    assert z.isfinite().all()
    half = model.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_can_be_copied_and_pickled_after_training(name):
    model, x = build(name).train(), images()
    model(x).sum().backward()
    model.eval()
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_layer_decay_groups_follow_the_depth(name):
    model = build(name)
    groups = param_groups_layer_decay(model, layer_decay=0.5, no_weight_decay_list=["pos_embed"])
    scales = sorted({g["lr_scale"] for g in groups})
    assert len(scales) > 2
    assert scales[-1] == 1.0
    if name in SIZED:
        assert scales[-4:] == [0.125, 0.25, 0.5, 1.0]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_flops_are_the_same_fused_unfused_and_on_meta(name):
    model = build(name)
    counted = count_flops(model, (3, 64, 64))
    assert counted.uncounted == {}
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    unfused = count_flops(model, (3, 64, 64))
    meta = count_flops(build(name, device="meta"), (3, 64, 64))
    assert counted.total == unfused.total == meta.total
    assert counted.macs == unfused.macs == meta.macs


@pytest.mark.parametrize("name", OURS)
def test_materialises_from_the_meta_device(name):
    model = build(name, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    model.init_weights()
    assert model(images()).isfinite().all()


@pytest.mark.parametrize("name", [n for n in NAMES if not timm.list_pretrained(n)])
def test_pretrained_weights_that_do_not_exist_are_not_pretended(name):
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize("name", NAMES)
def test_entry_points_say_what_they_are(name):
    entry_point = timm.model_entrypoint(name)
    assert entry_point.__module__.split(".")[-1] == "efficient_vits"
    assert inspect.getmodule(entry_point).default_cfgs[name]
    assert entry_point.__doc__.strip()
    if name in SIZED:
        assert "-Ti/16" in entry_point.__doc__
