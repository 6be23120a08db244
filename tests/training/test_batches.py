import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_vits.training import plan_batches


@given(st.integers(1, 16), st.integers(1, 600), st.none() | st.integers(1, 300))
def test_the_batch_is_the_same_whatever_the_hardware(processes, share, micro):
    plan = plan_batches(processes * share, processes, micro)
    assert plan.processes * plan.accumulation * plan.micro == plan.total == processes * share
    assert plan.micro <= (micro or share)


def test_the_benchmarks_batch_on_a_laptop():
    assert str(plan_batches(2048, 1, 100)) == (
        "2048 images per update = 1 processes x 32 passes x 64 images"
    )


def test_what_cannot_be_shared():
    with pytest.raises(ValueError, match="2046 or 2049 can"):
        plan_batches(2048, 3)
    with pytest.raises(ValueError, match="2 can"):
        plan_batches(1, 2)
    with pytest.raises(ValueError, match="got 0"):
        plan_batches(8, 1, 0)


@given(st.integers(1, 16), st.integers(1, 300), st.none() | st.integers(2, 300))
def test_pairs_stay_together(processes, pairs, micro):
    plan = plan_batches(processes * pairs * 2, processes, micro, pairs=True)
    assert plan.micro % 2 == 0
    assert plan.processes * plan.accumulation * plan.micro == processes * pairs * 2
    assert plan.micro <= (micro or plan.total)


def test_what_cannot_be_shared_in_pairs():
    with pytest.raises(ValueError, match="by 2 processes in pairs; 4 or 8 can"):
        plan_batches(6, 2, pairs=True)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        plan_batches(6, 1, 1, pairs=True)
