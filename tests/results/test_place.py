import dataclasses

import pytest

from efficient_vits.results import front, load_rows, place

RUNS = load_rows()
MINE = dataclasses.replace(
    RUNS[0],
    name="mine",
    top1=80.0,
    throughput=4300.0,
    params=10_000_000,
    source="own measurement",
    training_memory=None,
)


def test_behind_the_front():
    placed = place(MINE)
    assert not placed.on_front
    assert [run.name for run in placed.dominators] == ["tokenlearner_s16_8_75"] * 2
    assert placed.displaced == ()
    assert placed.gaps["accuracy"] == pytest.approx(0.69)
    assert placed.gaps["throughput"] == pytest.approx(253.7)
    assert "dominated by tokenlearner_s16_8_75" in str(placed)


@pytest.mark.parametrize("name", ["accuracy", "throughput"])
def test_the_gap_is_what_is_missing(name):
    placed = place(MINE)
    column = {"accuracy": "top1", "throughput": "throughput"}[name]
    reached = getattr(MINE, column) + placed.gaps[name]
    assert place(dataclasses.replace(MINE, **{column: reached + 0.01})).on_front
    assert not place(dataclasses.replace(MINE, **{column: reached - 0.01})).on_front


def test_on_the_front():
    placed = place(dataclasses.replace(MINE, top1=81.5, throughput=9000.0))
    assert placed.on_front
    assert placed.dominators == ()
    assert placed.gaps == {}
    assert "vit_ti16" in [run.name for run in placed.displaced]
    assert all(run in front().members for run in placed.displaced)
    assert "displaces vit_ti16" in str(placed)


def test_where_less_is_better():
    placed = place(dataclasses.replace(MINE, top1=75.0), ("accuracy", "params"))
    assert placed.gaps["params"] < 0
    fewer = MINE.params + placed.gaps["params"]
    better = dataclasses.replace(MINE, top1=75.0, params=int(fewer) - 1)
    assert place(better, ("accuracy", "params")).on_front


def test_a_measurement_needs_an_accuracy():
    row = {
        "name": "vit_s16",
        "parameters": 22_059_496,
        "flops": {"total": 4_655_972_520},
        "memory": None,
        "throughput": None,
        "input_size": [3, 224, 224],
        "environment": {"cpu": "some processor"},
    }
    with pytest.raises(ValueError, match="no accuracy, which the objectives need; accuracy= gives"):
        place(row, ("accuracy", "flops"))
    placed = place(row, ("accuracy", "flops"), accuracy=86.0)
    assert placed.on_front
    with pytest.raises(ValueError, match="no throughput"):
        place(row, accuracy=86.0)


def test_a_run_is_not_compared_with_itself():
    for run in front().members:
        assert place(run).on_front


def test_devices_are_not_mixed():
    other = dataclasses.replace(MINE, device="NVIDIA H100 PCIe")
    with pytest.raises(ValueError, match=r"on 'H100', and there is no other run.*A100.*accuracy"):
        place(other)
    assert not place(other, ("accuracy", "params")).on_front
    twin = dataclasses.replace(other, name="twin", top1=81.0, throughput=5000.0)
    placed = place(other, runs=[*RUNS, twin])
    assert [run.name for run in placed.dominators] == ["twin"]


def test_what_the_comparison_does_not_see_is_noted():
    placed = place(MINE, ("accuracy", "memory"))
    assert any("training process" in note for note in placed.notes)
    placed = place(dataclasses.replace(MINE, img_size=96), ("accuracy", "params"))
    assert any("no other run is at 96 px" in note for note in placed.notes)
    assert place(MINE).notes == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([MINE, MINE],), "one measurement can be placed, got 2"),
        ((3,), "got int"),
        ((MINE, ["speed"]), "no metric 'speed'"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        place(*arguments)
    with pytest.raises(ValueError, match="in per cent, between 0 and 100, got 101"):
        place(MINE, accuracy=101)
