import dataclasses
import statistics

import pytest

from efficient_vits.results import PAIRS, load_rows, model_or_image, pretraining_sizes
from efficient_vits.results.scaling import Scaling

RUN = load_rows()[0]


@pytest.mark.parametrize("pair", PAIRS)
def test_scaling_the_model_beats_scaling_the_image(pair):
    """Section D.4, but for inference memory of small models."""
    found = {entry.metric: entry for entry in model_or_image(*pair)}
    assert {"throughput", "training_time", "memory_64", "training_memory"} <= set(found)
    for name, entry in found.items():
        small_vit = pair[0] == "vit_ti16" and name.startswith("memory")
        assert entry.better == ("neither" if small_vit else "model"), name
        assert entry.image.img_size in (382, 384)
        assert entry.model.top1 > entry.image.top1 > entry.start.top1


def test_scaling_the_image_saves_memory_of_the_smallest():
    (entry,) = (e for e in model_or_image("vit_ti16", "vit_s16") if e.metric == "memory")
    assert entry.cost("image") < entry.cost("model")
    with pytest.raises(ValueError, match="'image' or 'model', got 'depth'"):
        entry.cost("depth")


@pytest.mark.parametrize(
    ("image", "model", "better"),
    [
        ((80, 100), (81, 110), "model"),
        ((81, 110), (80, 100), "image"),
        ((80, 100), (81, 90), "neither"),
        ((80, 100), (80, 101), "model"),
        ((80, 100), (80, 100), "neither"),
    ],
)
def test_which_way_is_better(image, model, better):
    def run(figures):
        return dataclasses.replace(RUN, top1=figures[0], throughput=figures[1])

    assert Scaling("throughput", RUN, run(image), run(model)).better == better


def test_a_pair_that_was_not_run():
    with pytest.raises(ValueError, match="no run of 'swin_ti_w7' at 384 or 382 px"):
        model_or_image("swin_ti_w7", "swin_s_w7")


def test_only_runs_with_one_pretraining_size_are_compared():
    def run(name, size, pretrain_size, top1):
        return dataclasses.replace(
            RUN, name=name, img_size=size, pretrain_size=pretrain_size, top1=top1
        )

    runs = [run("a", 224, 224, 70.0), run("a", 384, 224, 72.0), run("b", 224, 224, 75.0)]
    entry = model_or_image("a", "b", [*runs, run("a", 224, 192, 80.0)])[0]
    assert entry.start == runs[0]
    with pytest.raises(ValueError, match="no run of 'b' at 224 px, pre-trained at 224 px"):
        model_or_image("a", "b", [*runs[:2], run("b", 224, 192, 80.0)])


def test_pretraining_sizes():
    """Section D.6: most lose, some gain, at most 0.8 points; -0.16 on average, -0.17 here."""
    entries = pretraining_sizes()
    differences = [entry.difference for entry in entries]
    assert differences == sorted(differences)
    assert len(entries) == 28
    assert round(-differences[0], 1) == 0.8
    assert sum(d < 0 for d in differences) == 21
    assert differences[-1] > 0
    assert statistics.mean(differences) == pytest.approx(-0.168, abs=5e-4)


def test_pretraining_takes_the_mean_of_repeats():
    def run(name, size, top1):
        return dataclasses.replace(RUN, name=name, pretrain_size=size, top1=top1)

    runs = [run("a", 192, 80.0), run("a", 224, 81.0), run("a", 224, 82.0), run("b", 224, 70.0)]
    (entry,) = pretraining_sizes(runs)
    assert (entry.name, entry.difference) == ("a", -1.5)
