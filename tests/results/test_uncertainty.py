import dataclasses
import math

import pytest

from efficient_vits.results import load_rows, membership, repeat_spread

RUNS = load_rows()


def run(name, top1, throughput):
    return dataclasses.replace(RUNS[0], name=name, top1=top1, throughput=throughput)


def test_four_names_of_one_network_lie_apart():
    """12 % of their mean, at 224 px."""
    same = [r for r in RUNS if r.network == "vit_s16" and r.img_size == 224]
    assert {r.name for r in same} == {"vit_s16", "deit_s16", "evit_s16", "evit_fuse_s16"}
    speeds = [r.throughput for r in same]
    mean = sum(speeds) / len(speeds)
    assert round(100 * (max(speeds) - min(speeds)) / mean) == 12
    assert max(r.params for r in same) < 1.002 * min(r.params for r in same)
    assert max(r.flops for r in same) < 1.002 * min(r.flops for r in same)


def test_spread_by_hand():
    runs = [run("a", 80.0, 100.0), run("a", 81.0, 110.0), run("b", 70.0, 50.0)]
    spread = repeat_spread("throughput", runs)
    assert spread.std == pytest.approx(math.log(1.1) / math.sqrt(2))
    assert spread.widest == pytest.approx(0.1)
    assert (spread.repeats, spread.degrees, spread.group) == (2, 1, "a at 224 px")
    accuracy = repeat_spread("accuracy", runs)
    assert accuracy.std == pytest.approx(math.sqrt(0.5))
    assert accuracy.widest == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no configuration has two values of throughput"):
        repeat_spread("throughput", runs[1:])


def test_training_time_of_identical_configurations():
    """The fine-tuning time of one network differs by up to 1.77 times."""
    assert repeat_spread("training_time").widest == pytest.approx(0.77, abs=0.01)


def test_without_spread_the_probability_is_the_front():
    for m in membership(draws=1, spread={"accuracy": 0, "throughput": 0}):
        assert m.probability == m.on_front


def test_two_equal_runs_share_the_front():
    """Of two runs with the same figures one is fastest; neither dominates where accuracy varies."""
    same = [run("a", 80.0, 100.0), run("b", 80.0, 100.0)]
    only_speed = membership(same, spread={"accuracy": 0, "throughput": 0.01}, draws=2000)
    assert [m.on_front for m in only_speed] == [True, True]
    assert sum(m.probability for m in only_speed) == pytest.approx(1.0)
    # Standard deviation of a share of 1/2 in 2000 draws is 0.011.
    assert only_speed[0].probability == pytest.approx(0.5, abs=0.05)
    both = membership(same, spread={"accuracy": 0.1, "throughput": 0.01}, draws=2000)
    # The second is dominated in a quarter of the draws.
    assert all(m.probability == pytest.approx(0.75, abs=0.05) for m in both)


def test_a_clear_case_is_sure():
    runs = [run("a", 80.0, 100.0), run("b", 60.0, 50.0)]
    sure = {m.label: m.probability for m in membership(runs)}
    assert sure == {"a": 1.0, "b": 0.0}


def test_names_and_networks():
    by_run = membership(draws=100)
    by_model = {m.label: m for m in membership(draws=100, by="model")}
    by_network = membership(draws=100, by="network")
    assert len(by_run) == 103
    assert len(by_model) == len({(r.name, r.img_size) for r in RUNS if r.throughput})
    (vit,) = (m for m in by_network if "vit_s16" in m.label.split(", ") and len(m.runs) > 5)
    assert set(vit.label.split(", ")) == {"vit_s16", "deit_s16", "evit_s16", "evit_fuse_s16"}
    assert not by_model["deit_s16"].on_front
    assert 0 < by_model["deit_s16"].probability < by_model["vit_s16"].probability < 1
    assert vit.probability > 0.95
    assert vit.probability >= max(by_model[r.name].probability for r in vit.runs)


def test_draws_can_be_repeated():
    first, second = (membership(draws=50, seed=3) for _ in range(2))
    assert first == second
    assert first != membership(draws=50, seed=4)


def test_a_metric_without_repeats_needs_no_spread():
    found = membership(objectives=("accuracy", "params"), draws=20)
    assert any(m.on_front for m in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draws": 0}, "positive number, got 0"),
        ({"draws": True}, "positive number, got True"),
        ({"by": "class"}, "by is one of run, model, network, got 'class'"),
        ({"spread": {"accuracy": -1}}, "0 or more, got -1"),
        ({"spread": {"params": 1}}, "'params', which is no objective"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        membership(**arguments)
