"""Float16 with scaled gradients, which torch can do on the CPU too, and what float32 can't hide."""

import functools
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from efficient_vits.training import (
    NotFiniteError,
    Options,
    devices,
    evaluate_source,
    evaluation,
    precision,
    session,
    totals,
    trainer,
)


@pytest.fixture
def half(monkeypatch):
    monkeypatch.setattr(precision, "HALF_ON", {"cpu"})


def first_scale(monkeypatch, scale):
    scaler = functools.partial(torch.amp.GradScaler, init_scale=scale)
    monkeypatch.setattr(precision, "GradScaler", scaler)


def weights(run):
    return load_file(run / "last" / "model.safetensors")


def rows(run):
    def strict(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (run / "epochs.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=strict) for line in lines]


def test_float16_learns_what_float32_learns(run, tmp_path, half, recipe):
    """Its matrix products are in float16, in evaluation too."""
    types = {True: set(), False: set()}
    seen = []

    def watch(module, inputs, output):
        types[module.training].add(output.dtype)

    build = session.build_model

    def watched(*given):
        model = build(*given)
        model.blocks[0].mlp.fc1.register_forward_hook(watch)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "build_model", watched)
        # What comes after the last epoch, the count of the FLOPs, is in float32.
        run("half", on_epoch=lambda row: seen.append({mode: {*of} for mode, of in types.items()}))
    assert seen[-1] == {True: {torch.float16}, False: {torch.float16}}
    run("whole", recipe=recipe.with_changes(amp=False))
    for one, two in zip(rows(tmp_path / "whole"), rows(tmp_path / "half"), strict=True):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-2)
        assert two["losses"] != one["losses"]
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=0.05)
        assert two["skipped_updates"] == 0
    for name, weight in weights(tmp_path / "half").items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, weights(tmp_path / "whole")[name], rtol=0, atol=0.02)


def test_updates_whose_gradients_overflow_are_left_out(run, tmp_path, half, monkeypatch, recipe):
    first_scale(monkeypatch, 2.0**60)
    start = []
    build = session.build_model

    def kept(*given):
        model = build(*given)
        start.append({name: value.clone() for name, value in model.state_dict().items()})
        return model

    monkeypatch.setattr(session, "build_model", kept)
    run()
    for row in rows(tmp_path / "run"):
        assert row["skipped_updates"] == 3
        assert row["gradient_norm"] is None
    for name, weight in weights(tmp_path / "run").items():
        assert torch.equal(weight, start[0][name]), name
    state = json.loads((tmp_path / "run" / "last" / "state.json").read_text())
    assert f'["scale", {2.0**54}]' in json.dumps(state["training"])  # halved by each of six


def test_the_mean_norm_is_of_the_updates_that_were_made(run, tmp_path, half, monkeypatch):
    run("as it is")
    [expected, _] = rows(tmp_path / "as it is")
    norms = []
    # The first update's gradients overflow, half of them would not.
    first_scale(monkeypatch, largest_scale(run, tmp_path) * 2)
    run("scaled", on_update=lambda update: norms.append(update.gradient_norm))
    [row, _] = rows(tmp_path / "scaled")
    assert row["skipped_updates"] == 1
    assert norms[0] is None
    assert row["gradient_norm"] == pytest.approx((float(norms[1]) + float(norms[2])) / 2)
    assert math.isfinite(expected["gradient_norm"])


def largest_scale(run, folder):
    """The largest power of two with which no update overflows."""
    for exponent in range(40, 10, -1):
        with pytest.MonkeyPatch.context() as patch:
            first_scale(patch, 2.0**exponent)
            run(f"try {exponent}")
        if not any(row["skipped_updates"] for row in rows(folder / f"try {exponent}")):
            return 2.0**exponent
    raise AssertionError("every scale overflows")


def test_an_interrupted_run_has_the_same_scale(run, tmp_path, half, monkeypatch):
    monkeypatch.setattr(
        precision,
        "GradScaler",
        functools.partial(torch.amp.GradScaler, init_scale=8.0, growth_interval=2),
    )
    options = Options(save_every=1)
    run("whole", options=options)
    updates = []

    def interrupt(update):
        updates.append(update)
        if len(updates) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("broken", options=options, on_update=interrupt)
    run("broken", options=options, resume=True)
    files = [(tmp_path / name / "last" / "training.safetensors") for name in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()
    for name, weight in weights(tmp_path / "whole").items():
        assert torch.equal(weight, weights(tmp_path / "broken")[name]), name
    state = json.loads((tmp_path / "broken" / "last" / "state.json").read_text())
    assert '["scale", 64.0]' in json.dumps(state["training"])  # doubled by every second of six


class Steep(torch.autograd.Function):
    """Gives what it gets, with a gradient that is no number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


@pytest.mark.parametrize("clip", [1.0, None])
def test_a_gradient_that_is_not_finite_stops_the_run(run, recipe, tmp_path, monkeypatch, clip):
    """In the last update of an epoch: its weights would be the last checkpoint."""
    original = trainer.Trainer._update

    def spoiled(self, batches, epoch, index):
        if (epoch, index) == (1, 2):
            self.model.blocks[0].register_forward_hook(lambda *given: Steep.apply(given[-1]))
        return original(self, batches, epoch, index)

    monkeypatch.setattr(trainer.Trainer, "_update", spoiled)
    with pytest.raises(NotFiniteError) as error:
        run(recipe=recipe.with_changes(clip_grad=clip))
    text = str(error.value)
    assert "the gradient is not finite in update 2 of epoch 1" in text
    assert "every module's output is finite" in text
    assert "the loss alone" not in text
    assert "blocks.0 nan, blocks.1 " in text
    assert "blocks.1 nan" not in text
    state = json.loads((tmp_path / "run" / "last" / "state.json").read_text())
    assert (state["epoch"], state["batch"]) == (1, 0)
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "run").values())


def test_norms_are_written_without_clipping_too(run, recipe, tmp_path):
    run("with", recipe=recipe.with_changes(clip_grad=1e6))
    run("without", recipe=recipe.with_changes(clip_grad=None))
    for one, two in zip(rows(tmp_path / "with"), rows(tmp_path / "without"), strict=True):
        assert one["gradient_norm"] == two["gradient_norm"] > 0
        assert one["losses"] == two["losses"]


def test_what_accelerate_reads_from_the_environment_changes_no_gradient(
    run, recipe, tmp_path, monkeypatch
):
    recipe = recipe.with_changes(epochs=1, warmup_epochs=0)
    run("without", recipe=recipe)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    run("with", recipe=recipe)
    [one], [two] = rows(tmp_path / "without"), rows(tmp_path / "with")
    assert (one["losses"], one["gradient_norm"]) == (two["losses"], two["gradient_norm"])


def test_runs_with_and_without_mixed_precision_in_one_process(run, recipe, half):
    for amp in (True, False, True):
        run(f"{amp}", recipe=recipe.with_changes(amp=amp, epochs=1, warmup_epochs=0), resume=True)


def test_another_kind_of_device_in_one_process(run, tmp_path, few_digits, monkeypatch):
    run()
    monkeypatch.setattr(devices, "has_accelerator", lambda: True)
    with pytest.raises(RuntimeError, match=r"on the CPU already.*another process for an accel"):
        evaluate_source(tmp_path / "run", few_digits)
    monkeypatch.setitem(devices._chosen, "cpu", False)
    with pytest.raises(RuntimeError, match=r"on an accelerator already.*or give cpu=False"):
        run("other")
    assert not (tmp_path / "other").exists()


def test_apples_gpus_have_no_float64(run, tmp_path, few_digits, monkeypatch):
    assert precision.exact_dtype(torch.device("mps")) == torch.float32

    class NoDouble(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                assert out.dtype != torch.float64, func
            return out

    for module in (trainer, totals, evaluation):
        monkeypatch.setattr(module, "exact_dtype", lambda device: torch.float32)
    with NoDouble():
        run()
