import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from efficient_vits.results import read_measurements
from efficient_vits.training import (
    CheckpointError,
    NotFiniteError,
    Options,
    Recipe,
    Start,
    Trainer,
    evaluate_source,
    from_checkpoint,
    load_data,
    train,
)
from efficient_vits.training.rows import best_epoch
from efficient_vits.training.start import build_model


def files(run):
    """The bytes of a run's last weights and of what goes on from them."""
    names = sorted(path.name for path in (run / "last").glob("*.safetensors"))
    return {name: (run / "last" / name).read_bytes() for name in names}


def test_a_run_leaves_rows_and_a_result(run, tmp_path):
    rows, updates = [], []
    result = run(on_epoch=rows.append, on_update=updates.append)
    assert [row.epoch for row in rows] == [1, 2]
    assert len(updates) == 6
    lines = (tmp_path / "run" / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["top1"] == result["top1"]
    assert result["top1"] == max(row.top1 for row in rows)
    [read] = read_measurements(tmp_path / "run" / "result.json")
    assert (read.name, read.img_size, read.top1) == ("vit_ti16", 32, result["top1"])
    assert read.params == result["parameters"]
    assert result["training"]["device"] == "cpu"


def test_the_mean_loss_is_that_of_the_updates(run):
    rows, updates = [], []
    run(on_epoch=rows.append, on_update=updates.append)
    for row in rows:
        own = [float(u.losses["task"]) for u in updates if u.epoch == row.epoch - 1]
        assert row.losses["task"] == pytest.approx(sum(own) / len(own), rel=1e-12)


def test_the_schedule_is_stepped_per_update(run, recipe):
    lr = []
    run(on_update=lambda update: lr.append(update.lr))
    warm = [recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * i / 3 for i in range(3)]
    cosine = [
        recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * i / 3)) / 2
        for i in range(3)
    ]
    assert lr == pytest.approx(warm + cosine)


def test_gradients_are_clipped(run, recipe, tmp_path, monkeypatch):
    norms, original = [], Trainer._update

    def watched(self, *args):
        step = self.optimizer.step

        def stepped():
            norms.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm())
            step()

        self.optimizer.step = stepped
        try:
            return original(self, *args)
        finally:
            self.optimizer.step = step

    monkeypatch.setattr(Trainer, "_update", watched)
    before = []
    run(
        recipe=recipe.with_changes(clip_grad=0.25),
        on_update=lambda u: before.append(u.gradient_norm),
    )
    assert max(map(float, before)) > 0.25  # or nothing would have been clipped
    assert max(map(float, norms)) < 0.2501


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "cutmix": 1.0, "optimizer": "adamw"}])
@pytest.mark.parametrize("after", [1, 3, 4])
def test_an_interrupted_run_ends_with_the_same_bits(run, recipe, tmp_path, changes, after):
    recipe = recipe.with_changes(**changes)
    whole, seen = run("whole", recipe=recipe), []

    def interrupt(update):
        seen.append(update)
        if len(seen) == after:
            raise KeyboardInterrupt

    how = {"recipe": recipe, "options": Options(save_every=1)}
    with pytest.raises(KeyboardInterrupt):
        run("broken", on_update=interrupt, **how)
    broken = run("broken", resume=True, **how)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")
    first, second = (
        [json.loads(line) for line in (tmp_path / name / "epochs.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    )
    for one, two in zip(first, second, strict=True):
        assert one["losses"] == pytest.approx(two["losses"], rel=1e-12)
        assert one["top1"] == two["top1"]
    assert broken["top1"] == whole["top1"]


SCRIPT = """
import os, signal, sys
from pathlib import Path
from efficient_vits.training import Options, Recipe, Start, load_data, train
recipe = Recipe(name="tiny", epochs=2, warmup_epochs=1, batch_size=448, img_size=16, lr=3e-3)
left = int(sys.argv[2])
def die(update):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
train(Start("vit_ti16", {"depth": 1, "embed_dim": 32, "num_heads": 2}), load_data("digits"),
      recipe, Path(sys.argv[1]), options=Options(save_every=1), resume=True, cpu=True,
      on_update=die)
"""


def test_kill_9_and_resume(tmp_path):
    def start(folder, left):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / folder), str(left)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, check=False, timeout=300).returncode

    recipe = Recipe(name="tiny", epochs=2, warmup_epochs=1, batch_size=448, img_size=16, lr=3e-3)
    tiny = Start("vit_ti16", {"depth": 1, "embed_dim": 32, "num_heads": 2})
    train(tiny, load_data("digits"), recipe, tmp_path / "whole", cpu=True)
    assert [start("broken", 2), start("broken", 3), start("broken", 0)] == [
        -signal.SIGKILL,
        -signal.SIGKILL,
        0,
    ]
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_workers_do_not_change_what_is_learnt(run, tmp_path):
    run("none")
    run("two", options=Options(workers=2))
    assert files(tmp_path / "none") == files(tmp_path / "two")


def test_accumulation_does_not_change_what_is_learnt(run, recipe, tmp_path):
    steady = recipe.with_changes(drop_path_rate=0.0)
    losses = {}
    for micro in (16, 4):
        seen = losses.setdefault(micro, [])
        run(
            f"micro{micro}",
            recipe=steady,
            options=Options(micro_batch=micro),
            on_update=lambda update, seen=seen: seen.append(float(update.losses["task"])),
        )
    assert losses[4] == pytest.approx(losses[16], abs=1e-5)


def test_a_run_is_not_overwritten_and_no_other_is_resumed(run, recipe, tmp_path):
    run()
    before = files(tmp_path / "run")
    with pytest.raises(FileExistsError, match="resume it, or choose another folder"):
        run()
    with pytest.raises(CheckpointError, match=r"recipe\.lr was 0\.003, is 0\.001"):
        run(recipe=recipe.with_changes(lr=1e-3), resume=True)
    with pytest.raises(CheckpointError, match="seed was 0, is 1"):
        run(seed=1, resume=True)
    assert files(tmp_path / "run") == before


def test_the_papers_flow(run, recipe, tmp_path):
    """Pre-trained small, fine-tuned larger, then larger again; each picks up the other's."""
    run("first", recipe=recipe.with_changes(name="pretrain-192"))
    for size, source, name in ((48, "first", "second"), (64, "second", "third")):
        start = from_checkpoint(tmp_path / source)
        model = build_model(start, recipe.with_changes(img_size=size), 10)
        trained = load_file(tmp_path / source / "best" / "model.safetensors")
        assert torch.equal(model.blocks[0].attn.qkv.weight, trained["blocks.0.attn.qkv.weight"])
        assert model.pos_embed.shape[1] == (size // 16) ** 2 != trained["pos_embed"].shape[1]
        run(name, start=start, recipe=recipe.with_changes(name=name, img_size=size))
    story = from_checkpoint(tmp_path / "third").lineage
    assert [step["recipe"]["name"] for step in story] == ["pretrain-192", "second", "third"]
    assert all(len(step["sha256"]) == 64 for step in story)
    assert all("torch" in step["environment"] for step in story)


def test_a_classifier_for_other_classes_begins_anew(run, recipe, tmp_path):
    run()
    start = from_checkpoint(tmp_path / "run")
    same, other = (build_model(start, recipe, classes) for classes in (10, 7))
    trained = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert torch.equal(same.head.weight, trained["head.weight"])
    assert other.head.weight.shape[0] == 7
    assert torch.equal(other.blocks[1].mlp.fc1.weight, trained["blocks.1.mlp.fc1.weight"])


def test_names_are_the_models_own(run, tmp_path, tiny, recipe):
    run()
    saved = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert saved.keys() == build_model(tiny, recipe, 10).state_dict().keys()


def test_a_loss_that_is_not_finite_stops_the_run(run, tmp_path, monkeypatch):
    original = Trainer._update

    def spoiled(self, batches, epoch, index):
        if (epoch, index) == (1, 1):
            with torch.no_grad():
                self.model.blocks[1].mlp.fc1.weight.fill_(math.inf)
        return original(self, batches, epoch, index)

    monkeypatch.setattr(Trainer, "_update", spoiled)
    with pytest.raises(NotFiniteError) as error:
        run()
    text = str(error.value)
    assert "update 1 of epoch 1" in text
    assert "blocks.1.mlp.fc1 (Linear)" in text
    assert "parameters that are not finite: blocks.1.mlp.fc1.weight" in text
    assert "gradient norms:" in text
    state = json.loads((tmp_path / "run" / "last" / "state.json").read_text())
    assert (state["epoch"], state["batch"]) == (1, 0)
    weights = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


def test_cutmix_has_pairs_in_every_pass(run, recipe):
    plans = []
    run(
        recipe=recipe.with_changes(batch_size=6, cutmix=1.0, epochs=1, warmup_epochs=0),
        options=Options(micro_batch=3),
        on_begin=lambda plan, updates: plans.append((plan.accumulation, plan.micro)),
    )
    assert plans == [(3, 2)]


def test_fewer_images_than_a_batch(run, recipe):
    with pytest.raises(ValueError, match="fewer images than one update, 64"):
        run(recipe=recipe.with_changes(batch_size=64))


def test_progressive_norms_go_from_layer_norm_to_batch_norm(run):
    from efficient_vits._repbn import ProgressiveRepBN

    seen = []

    def look(model, *_):
        norms = [m for m in model.modules() if isinstance(m, ProgressiveRepBN)]
        [progress] = {float(norm.progress) for norm in norms}
        seen.append(progress)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: (
            look(module) if module.training and hasattr(module, "patch_embed") else None
        )
    )
    try:
        run(start=Start("slab_ti16", {"depth": 1, "embed_dim": 32, "num_heads": 2}))
    finally:
        handle.remove()
    assert seen == pytest.approx([number / 5 for number in range(6)])


def test_the_best_epoch_is_kept_whenever_the_run_ends(run, recipe, tmp_path, monkeypatch):
    from efficient_vits.training import checkpoint

    def killed(folder, name, target):
        if name == "best":
            raise KeyboardInterrupt
        point(folder, name, target)

    point, once = checkpoint.point, recipe.with_changes(epochs=1, warmup_epochs=0)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "point", killed)
        with pytest.raises(KeyboardInterrupt):
            run(recipe=once)
    assert not (tmp_path / "run" / "best").exists()
    run(recipe=once, resume=True)
    assert (tmp_path / "run" / "best").resolve() == (tmp_path / "run" / "last").resolve()


def test_the_best_epoch_is_that_of_the_weights_that_are_used(run, recipe, tmp_path, few_digits):
    rows = []
    averaged = recipe.with_changes(ema_decay=0.8, optimizer="adamw", lr=0.01, epochs=4)
    result = run(recipe=averaged, on_epoch=rows.append)
    averages = [row.ema_top1 for row in rows]
    assert result["top1"] == max(averages)
    assert result["best_epoch"] == averages.index(max(averages)) + 1
    found = evaluate_source(tmp_path / "run", few_digits, cpu=True)
    assert (found.top1, found.top5) == pytest.approx((result["top1"], result["top5"]))

    first, second = replace(rows[0], ema_top1=60.0), replace(rows[0], ema_top1=50.0, top1=99.0)
    assert best_epoch([first, second]) is first
    plain = [replace(row, ema_top1=None) for row in (first, second)]
    assert best_epoch(plain) is plain[1]


def test_layer_scale_begins_as_the_recipe_says(recipe):
    model = build_model(Start("vit_ti16"), recipe.with_changes(layer_scale=0.3), 10)
    assert float(model.blocks[0].ls1.gamma[0].detach()) == pytest.approx(0.3)


def test_no_checkpoint_there():
    with pytest.raises(CheckpointError, match="no checkpoint at nowhere"):
        from_checkpoint(Path("nowhere"))


def test_tensorboard_has_every_epoch_once(run, recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows, options = [], Options(tensorboard=True)

    def interrupt(update):
        if update.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(options=options, on_epoch=rows.append, on_update=interrupt)
    run(options=options, on_epoch=rows.append, resume=True)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name, own in (
        ("top1", [r.top1 for r in rows]),
        ("loss/task", [r.losses["task"] for r in rows]),
    ):
        assert [event.step for event in board.Scalars(name)] == [1, 2]
        assert [event.value for event in board.Scalars(name)] == pytest.approx(own)
