import itertools

import pytest

from efficient_vits.results import decision_flowchart, front, load_rows
from efficient_vits.results.metrics import metric
from efficient_vits.results.pareto import hypervolume

CHART = decision_flowchart()


def test_branches_are_members_of_their_fronts():
    assert [branch.metric for branch in CHART.branches] == [
        "throughput",
        "training_time",
        "memory",
        "training_memory",
        "params",
    ]
    for branch in CHART.branches:
        members = front(objectives=("accuracy", branch.metric)).members
        assert branch.front == len(members)
        assert all(leaf.run in members for leaf in branch.leaves)
        assert 1 <= len(branch.leaves) <= 4
        assert 0.9 < branch.share <= 1


def test_leaves_join_without_gaps():
    for branch in CHART.branches:
        assert branch.leaves[0].above is None
        for lower, upper in itertools.pairwise(branch.leaves):
            assert upper.above == lower.accuracy < upper.accuracy
            sign = 1 if metric(branch.metric).direction == "min" else -1
            assert sign * lower.run.value(branch.metric) < sign * upper.run.value(branch.metric)


def test_the_answer_is_the_cheapest_that_is_accurate_enough():
    for branch in CHART.branches:
        for accuracy in (70, 78, 80, 82, 84):
            chosen = CHART.choose(branch.metric, accuracy)
            able = [leaf.run for leaf in branch.leaves if leaf.run.top1 >= accuracy]
            assert chosen == (able[0] if able else None)
            assert chosen is None or chosen.top1 >= accuracy
        assert CHART.choose(branch.metric, 99) is None


def test_no_other_members_have_more_volume():
    (branch,) = decision_flowchart(metrics=("throughput",), choices=2).branches
    found = front()
    points = [[r.top1, r.throughput] for r in (*found.members, *found.dominated)]
    reference = [min(p[0] for p in points) - 1, min(p[1] for p in points) * 0.99]

    def volume(runs):
        return hypervolume([[r.top1, r.throughput] for r in runs], reference, ["max", "max"])

    chosen = volume([leaf.run for leaf in branch.leaves])
    assert all(chosen >= volume(pair) for pair in itertools.combinations(found.members, 2))
    assert branch.share == pytest.approx(chosen / volume(found.members))


def test_models_without_the_figure_are_listed():
    branch = next(branch for branch in CHART.branches if branch.metric == "memory")
    assert "nextvit_small" in branch.incomplete
    assert "nextvit_small" in str(CHART)


def test_the_text_has_every_leaf():
    text = str(CHART)
    for branch in CHART.branches:
        assert branch.question in text
        assert all(f"{leaf.condition}: {leaf.run.label}" in text for leaf in branch.leaves)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"choices": 0}, "positive number, got 0"),
        ({"metrics": ()}, "different ones out of throughput"),
        ({"metrics": ("params", "params")}, "different ones"),
        ({"metrics": ("accuracy",)}, "different ones"),
        ({"device": "cpu"}, "accepted are A100"),
        ({"runs": [], "metrics": ("params",)}, "no run has both accuracy and params"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        decision_flowchart(**arguments)


def test_fewer_members_than_choices():
    (branch,) = decision_flowchart(load_rows()[:1], metrics=("memory",), choices=9).branches
    assert len(branch.leaves) == 1
    assert branch.share == pytest.approx(1)


def test_a_branch_that_is_not_there():
    with pytest.raises(ValueError, match="no branch 'flops'; accepted are throughput"):
        CHART.choose("flops", 80)
