import pytest

from efficient_vits.results.metrics import METRICS, metric, objectives_of


def test_own_directions():
    assert objectives_of(["accuracy", "params"]) == {"accuracy": "max", "params": "min"}
    assert objectives_of({"accuracy": "min"}) == {"accuracy": "min"}


def test_memory_at_any_batch():
    assert metric("memory_7").column == "memory_7"
    assert metric("memory_7").direction == "min"
    assert metric("memory").column == "memory_1"


def test_names_are_their_keys():
    assert all(name == known.name for name, known in METRICS.items())


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (["accurcy"], "did you mean 'accuracy'"),
        (["memory_0"], "memory_<batch size>"),
        ({"accuracy": "up"}, "'max' or 'min', got 'up'"),
        (["accuracy", "accuracy"], "twice"),
        ([], "no objectives"),
        ("accuracy", "got the string 'accuracy'"),
    ],
)
def test_mistakes(objectives, message):
    with pytest.raises(ValueError, match=message):
        objectives_of(objectives)
