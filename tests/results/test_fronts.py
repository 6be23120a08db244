import dataclasses

import pytest

from efficient_vits.results import front, load_rows, load_runs

RUNS = load_rows()


def run(name, top1, throughput, **fields):
    base = dataclasses.replace(RUNS[0], name=name, top1=top1, throughput=throughput)
    return dataclasses.replace(base, **fields)


A, B, C = run("a", 80.0, 100.0), run("b", 70.0, 200.0), run("c", 75.0, 90.0)


def test_members_and_others():
    found = front([A, B, C])
    assert [r.name for r in found.members] == ["b", "a"]
    assert found.names == ["b", "a"]
    assert found.dominated == (C,)
    assert [r.name for r in found.dominators(C)] == ["a"]
    assert found.dominators(A) == []
    assert [r.name for r in found.dominated_by(A)] == ["c"]
    assert [r.name for r in found.dominated_by(run("d", 99.0, 150.0))] == ["a", "c"]
    assert found.hypervolume({"accuracy": 60, "throughput": 0}) == 20 * 100 + 10 * 100


def test_directions_can_be_given():
    worst = front([A, B, C], {"accuracy": "min", "throughput": "min"})
    assert set(worst.names) == {"b", "c"}


def test_runs_without_a_figure_are_reported():
    found = front([A, run("d", 90.0, None)])
    assert found.names == ["a"]
    assert [r.name for r in found.incomplete] == ["d"]
    with pytest.raises(ValueError, match="d has no throughput"):
        found.dominators(found.incomplete[0])


def test_the_benchmarks_front():
    """Figure 2 and Table 5: the families on the front of throughput and accuracy."""
    assert front().names == [
        "vit_ti16",
        "tokenlearner_s16_8_50",
        "hydra_s16",
        "synthesizer_fr_s16",
        "tokenlearner_s16_8_75",
        "dynamicvit_s16",
        "tome_s16_r8",
        "evit_fuse_s16",
        "evit_s16",
        "vit_s16",
        "nextvit_small",
        "vit_b16",
        "focalnet_small_srf",
    ]


def test_a_frame_gives_the_same():
    frame = load_runs()
    assert front(frame).members == front().members
    small = front(frame[frame["params"] < 10_000_000])
    assert small.members
    assert all(r.params < 10_000_000 for r in small.members)


def test_one_network_under_several_names_is_reported():
    (found,) = front().split
    assert found == (("evit_fuse_s16", "evit_s16", "vit_s16"), ("deit_s16",))
    assert "one network" in str(front())
    assert front([A, B, C]).split == ()


def test_devices_are_not_mixed():
    other = run("d", 90.0, 5.0, device="cpu")
    with pytest.raises(ValueError, match="choose one with device=, accepted are A100, cpu"):
        front([A, other])
    assert front([A, other], device="A100").names == ["a"]
    assert front([A, other], ["accuracy", "params"]).names == ["d"]
    with pytest.raises(ValueError, match="no run on device class 'H100'; accepted are A100, cpu"):
        front([A, other], device="H100")


def test_a_reference_of_other_objectives_is_refused():
    with pytest.raises(ValueError, match="each of accuracy, throughput, got params"):
        front().hypervolume({"params": 1})
