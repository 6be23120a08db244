import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor, nn

from efficient_vits.efficiency import count_flops
from efficient_vits.efficiency.tracing import zeros_on_cpu


class Leaves(nn.Module):
    """Leaves traces of a forward pass in train mode, as models do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.aux = nn.Linear(4, 4)
        self.loss: object = None
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.norm(x))
        self.loss = self.cache["y"] = y.sum()
        return y + self.aux(y) if self.training else y


def test_train_mode_is_counted_as_what_it_runs() -> None:
    model = Leaves().eval()
    trained = count_flops(model, (4,), batch_size=2, training=True)
    evaluated = count_flops(model, (4,), batch_size=2)
    assert (trained.training, evaluated.training) == (True, False)
    assert trained.by_operator == {
        "add": 4,
        "batch_norm": 5 * 4,
        "dropout": 4,
        "linear": 16,
    }
    assert evaluated.by_operator == {"batch_norm": 2 * 4}


@pytest.mark.parametrize("fails", [False, True])
def test_train_mode_leaves_no_trace(fails: bool) -> None:
    model = Leaves().eval()
    hook = model.norm.register_forward_hook(lambda *_: None)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if fails:
        with pytest.raises(RuntimeError, match="could not trace"):
            count_flops(model, (5,), batch_size=2, training=True, backward=True)
    else:
        count_flops(model, (4,), batch_size=2, training=True, backward=True)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert (model.loss, model.cache) == (None, {})
    assert not any(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [len(m._forward_hooks) for m in model.modules()] == [0, 1, 0, 0]
    hook.remove()
    assert not model.norm._forward_hooks


def test_a_batch_norm_over_one_value_says_so() -> None:
    with pytest.raises(RuntimeError, match="Expected more than 1 value per channel"):
        count_flops(Leaves(), (4,), training=True)


def test_zeros_have_the_shapes_dtypes_and_flags_of_the_model() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 2, dtype=torch.bfloat16), nn.BatchNorm1d(2))
    model[0].weight.requires_grad_(False)
    model.register_buffer("scalar", torch.zeros((), dtype=torch.complex64, device="meta"))
    twin = zeros_on_cpu(model)
    for (name, ours), theirs in zip(
        twin.state_dict(keep_vars=True).items(),
        model.state_dict(keep_vars=True).values(),
        strict=True,
    ):
        assert (ours.shape, ours.dtype, ours.requires_grad) == (
            theirs.shape,
            theirs.dtype,
            theirs.requires_grad,
        ), name
        assert ours.device.type == "cpu"
        assert not ours.detach().any()


def test_the_weights_of_a_meta_model_take_no_memory() -> None:
    """4 GB of weights under a peak that stays far below."""
    code = """
        import resource, sys, torch
        from torch import nn
        from efficient_vits.efficiency import count_flops

        def peak():
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

        with torch.device("meta"):
            model = nn.Sequential(*(nn.Linear(2**14, 2**14) for _ in range(4)))
        before = peak()
        assert count_flops(model, (2**14,)).macs == 4 * 2**28
        print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 1
