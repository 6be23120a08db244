import dataclasses

import pytest

from efficient_vits.results import load_rows, parse_constraint

RUN = dataclasses.replace(
    load_rows()[0], top1=80.0, params=25_000_000, memory={1: 2**30}, training_time=7200.0
)


@pytest.mark.parametrize(
    ("name", "text", "operator", "bound"),
    [
        ("accuracy", ">=80", ">=", 80),
        ("accuracy", " > 80.5 % ", ">", 80.5),
        ("accuracy", "80", ">=", 80),
        ("accuracy", 80, ">=", 80),
        ("params", "25M", "<=", 25e6),
        ("params", "<25m", "<", 25e6),
        ("params", 2.5e7, "<=", 25e6),
        ("flops", "<=4.6G", "<=", 4.6e9),
        ("memory", "<1 GiB", "<", 2**30),
        ("memory", "1gb", "<=", 1e9),
        ("memory", "1e9", "<=", 1e9),
        ("training_time", "<24 h", "<", 86400),
        ("training_time", "90min", "<=", 5400),
        ("inference_time", "5ms", "<=", 0.005),
        ("throughput", ">3000", ">", 3000),
        ("memory_64", "<2 GiB", "<", 2**31),
    ],
)
def test_bounds(name, text, operator, bound):
    found = parse_constraint(name, text)
    assert (found.metric, found.operator) == (name, operator)
    assert found.bound == pytest.approx(bound)


@pytest.mark.parametrize(
    ("name", "text", "accepted"),
    [
        ("accuracy", "eighty", "a number after >=, <=, >, < or alone, which means >="),
        ("accuracy", "=80", "a number after"),
        ("accuracy", "80 GiB", "%"),
        ("accuracy", "", "a number after"),
        ("accuracy", True, "a number after"),
        ("accuracy", float("nan"), "a number after"),
        ("params", "-5", "K, M, G, B, T"),
        ("params", -5, "K, M, G, B, T"),
        ("memory", "1 XiB", "KiB, MiB"),
        ("training_time", "1 day", "s, us, ms, min, h"),
        ("speed", ">1", "no metric 'speed'"),
    ],
)
def test_no_bounds(name, text, accepted):
    with pytest.raises(ValueError, match=accepted):
        parse_constraint(name, text)


def test_what_holds():
    assert parse_constraint("accuracy", ">=80").holds(RUN) is True
    assert parse_constraint("accuracy", ">80").holds(RUN) is False
    assert parse_constraint("params", "<25M").holds(RUN) is False
    assert parse_constraint("memory", "1 GiB").holds(RUN) is True
    assert parse_constraint("training_time", "2 h").holds(RUN) is True
    unknown = dataclasses.replace(RUN, training_time=None)
    assert parse_constraint("training_time", "2 h").holds(unknown) is None


def test_memory_at_batch_64_bounds_that_at_batch_1():
    run = dataclasses.replace(RUN, memory={64: 2**30})
    assert parse_constraint("memory", "<=1 GiB").holds(run) is True
    assert parse_constraint("memory", "<1 GiB").holds(run) is None
    assert parse_constraint("memory", ">0.5 GiB").holds(run) is None
