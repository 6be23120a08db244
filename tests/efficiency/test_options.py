import copy

import pytest
import timm
import torch
from timm.layers import set_fused_attn, use_fused_attn
from torch import Tensor, nn

from efficient_vits.efficiency import Options
from efficient_vits.efficiency.options import prepared


class Seen(nn.Module):
    """Remembers under what it was run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fused_attn = True
        self.register_buffer("table", torch.arange(3.0))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        self.seen = {
            "dtype": out.dtype,
            "channels_last": x.is_contiguous(memory_format=torch.channels_last)
            and self.conv.weight.is_contiguous(memory_format=torch.channels_last),
            "tf32": (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32),
            "fused": (self.fused_attn, use_fused_attn()),
            "threads": torch.get_num_threads(),
        }
        return out


def state() -> tuple[object, ...]:
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.get_num_threads(),
        use_fused_attn(),
        use_fused_attn(experimental=True),
    )


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (Options(amp="bfloat16"), {"dtype": torch.bfloat16}),
        (Options(amp="float16", dtype="float32"), {"dtype": torch.float16}),
        (Options(dtype="bfloat16"), {"dtype": torch.bfloat16}),
        (Options(dtype="float64", channels_last=True), {"dtype": torch.float64}),
        (Options(tf32=True), {"tf32": ("high", True)}),
        (Options(tf32=False), {"tf32": ("highest", False)}),
        (Options(channels_last=True), {"channels_last": True}),
        (Options(fused_attention=False), {"fused": (False, False)}),
        (Options(threads=3), {"threads": 3}),
        (Options(), {"channels_last": False, "dtype": torch.float32, "fused": (True, True)}),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_options_hold_inside_and_nothing_is_left_of_them(
    options: Options, seen: dict[str, object], fails: bool
) -> None:
    model = Seen()
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    before = state()
    tensors = {
        name: (id(t), t.data_ptr(), t.stride(), t.clone()) for name, t in model.state_dict().items()
    }
    held = [id(t) for t in (*model.parameters(), *model.buffers(), model.conv.weight.grad)]
    try:
        with prepared(model, None, options) as ready:
            ready.run(ready.images((3, 8, 8), 2))
            if fails:
                raise KeyError("in the middle")
    except KeyError:
        assert fails
    assert {name: model.seen[name] for name in seen} == seen
    assert state() == before
    assert model.fused_attn is True
    assert held == [id(t) for t in (*model.parameters(), *model.buffers(), model.conv.weight.grad)]
    for name, tensor in model.state_dict().items():
        _, pointer, stride, values = tensors[name]
        assert (tensor.data_ptr(), tensor.stride(), tensor.dtype) == (pointer, stride, values.dtype)
        assert torch.equal(tensor, values)
    assert model.conv.weight.grad.dtype == torch.float32


def test_what_is_in_force_is_recorded() -> None:
    with prepared(Seen().double(), None, None) as ready:
        assert ready.options == Options(
            dtype="float64",
            tf32=None,  # torch's default: convolutions may, matrix products may not
            fused_attention=True,
            threads=torch.get_num_threads(),
        )
    with prepared(nn.Linear(2, 2), None, Options(tf32=True, fused_attention=False)) as ready:
        assert (ready.options.tf32, ready.options.fused_attention) == (True, None)
    mixed = nn.Sequential(Seen(), Seen())
    mixed[1].fused_attn = False
    with prepared(mixed, None, None) as ready:
        assert ready.options.fused_attention is None


def test_timms_experimental_fusion_is_restored() -> None:
    try:
        set_fused_attn(True, experimental=True)
        with prepared(Seen(), None, Options(fused_attention=False)):
            assert not use_fused_attn()
        assert use_fused_attn(experimental=True)
    finally:
        set_fused_attn(True)


def test_plain_and_fused_attention_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = nn.functional.scaled_dot_product_attention

    def fused(*args: Tensor, **arguments: object) -> Tensor:
        calls.append(args)
        return plain(*args, **arguments)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", fused)
    model = timm.create_model("test_vit").eval()
    outputs = []
    for choice in (True, False):
        with prepared(model, None, Options(fused_attention=choice)) as ready, torch.no_grad():
            outputs.append(ready.run(ready.images((3, 160, 160), 1)))
        assert bool(calls) is choice
        calls.clear()
    # Two orders of summation in float32.
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_each_shape_is_compiled_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def compiled(model: nn.Module, **arguments: object) -> nn.Module:
        calls.append(arguments)
        return copy.deepcopy(model)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append("reset"))
    with prepared(nn.Linear(4, 2), None, Options(compile=True)) as ready:
        assert ready.options.compile == "default"
        for batch_size in (1, 1, 2):
            assert ready.run(ready.images((4,), batch_size)).shape == (batch_size, 2)
    anew = ["reset", {"mode": "default", "dynamic": False}]
    assert calls == [*anew, *anew, "reset"]


def test_torchs_compiler_gives_the_same_outputs() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU()).eval()
    with prepared(model, None, Options(compile="default")) as ready, torch.inference_mode():
        images = ready.images((4,), 3)
        torch.testing.assert_close(ready.run(images), model(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amp": "float32"}, "amp must be one of None, 'bfloat16', 'float16', got 'float32'"),
        ({"amp": True}, "got True"),
        ({"dtype": "int8"}, "dtype must be one of None, 'float32'.*got 'int8'"),
        ({"tf32": 1}, "tf32 must be one of None, True, False, got 1"),
        ({"channels_last": None}, "channels_last must be one of True, False, got None"),
        ({"compile": "fast"}, "compile must be one of .*'reduce-overhead'.*got 'fast'"),
        ({"fused_attention": "no"}, "fused_attention must be one of"),
        ({"threads": 0}, "threads must be a positive integer or None, got 0"),
        ({"threads": True}, "got True"),
        ({"amp": "float16", "dtype": "bfloat16"}, "amp='float16' is for float32 parameters"),
    ],
)
def test_impossible_options(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**arguments)


def test_what_the_device_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(TypeError, match="options must be an Options, got dict"),
        prepared(nn.Linear(2, 2), None, {"amp": "float16"}),
    ):
        pytest.fail("entered")
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: False)
    before = state()
    with (
        pytest.raises(ValueError, match="amp='float16': torch has no autocast for cpu"),
        prepared(nn.Linear(2, 2), None, Options(amp="float16", threads=3)),
    ):
        pytest.fail("entered")
    assert state() == before
