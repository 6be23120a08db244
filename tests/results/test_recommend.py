import dataclasses

import pytest

from efficient_vits.results import load_rows, load_runs, recommend

RUNS = load_rows()


def run(name, top1, throughput, params=1_000_000, **fields):
    base = dataclasses.replace(RUNS[0], name=name, top1=top1, throughput=throughput, params=params)
    return dataclasses.replace(base, **fields)


def names(answer):
    return [choice.run.name for choice in answer.choices]


def test_choices_keep_the_bounds():
    answer = recommend(accuracy=">=80", memory="<1 GiB", params="<30M", throughput=">2000")
    assert answer.choices
    for choice in answer.choices:
        chosen = choice.run
        assert chosen.top1 >= 80
        assert min(chosen.memory.values()) < 2**30
        assert chosen.params < 30e6
        assert chosen.throughput > 2000


def test_ranking_and_dominated_models():
    runs = [run("slow", 82.0, 10.0), run("bad", 79.0, 15.0), run("fast", 80.0, 20.0)]
    assert names(recommend(runs=runs)) == ["slow"]
    assert names(recommend(runs=runs, prefer="throughput")) == ["fast", "slow"]
    assert names(recommend(runs=runs, accuracy=">=70")) == ["fast", "slow"]
    assert names(recommend(runs=runs, accuracy=">=70", limit=1)) == ["fast"]
    answer = recommend(runs=runs, accuracy=">=81")
    assert names(answer) == ["slow"]
    assert (answer.eligible, answer.considered) == (1, 3)


def test_ties_go_to_the_next_preference():
    runs = [run("large", 80.0, 10.0, 9), run("small", 80.0, 10.0, 5)]
    assert names(recommend(runs=runs, prefer=("accuracy", "params"))) == ["small"]
    both = recommend(runs=runs, prefer="accuracy")
    assert set(names(both)) == {"large", "small"}


def test_reasons_and_costs():
    runs = [run("slow", 82.0, 10.0), run("fast", 80.0, 20.0)]
    first, second = recommend(runs=runs, accuracy=">=70").choices
    assert first.reasons[0] == "20 images/s: best of 2 by throughput"
    assert any("80.00 % accuracy (accuracy >= 70)" in reason for reason in first.reasons)
    assert first.costs == ("2.00 points of accuracy less than slow",)
    assert second.reasons[0] == "10 images/s: number 2 of 2 by throughput"
    assert second.costs == ("0.50 times the throughput of fast",)


def test_of_several_runs_of_a_model_the_best_counts():
    runs = [run("a", 80.0, 10.0), run("a", 81.0, 9.0)]
    (choice,) = recommend(runs=runs).choices
    assert choice.run.top1 == 81.0
    (choice,) = recommend(runs=runs, accuracy=">=70").choices
    assert choice.run.throughput == 10.0


def test_nothing_keeps_the_bounds():
    answer = recommend(accuracy=">=85", throughput=">5000")
    assert answer.choices == ()
    assert answer.nearest == ("without accuracy >= 85: synthesizer_fr_s16 has 79.07 % accuracy",)
    both = recommend(accuracy=">=84", throughput=">5000")
    assert len(both.nearest) == 2
    assert "focalnet" not in both.nearest[1]


def test_a_figure_that_is_not_known_is_said():
    runs = [run("known", 80.0, 10.0), run("unknown", 90.0, None)]
    answer = recommend(runs=runs, throughput=">1")
    assert names(answer) == ["known"]
    assert answer.unknown == ("unknown",)


def test_memory_is_bounded_by_batch_64():
    choices = recommend(accuracy=">=83.9", memory="<0.7 GiB").choices
    (nextvit,) = (c for c in choices if c.run.name == "nextvit_small")
    assert "memory < 0.7 GiB, as batch 64 takes 0.69 GiB" in nextvit.reasons


def test_one_network_under_several_names_is_noted():
    (twin,) = recommend(runs=[run("deit_s16", 80.0, 10.0)]).choices
    assert any("vit_s16, evit_s16, evit_fuse_s16 as the same network" in n for n in twin.notes)
    (other,) = recommend(runs=[run("hydra_s16", 80.0, 10.0)]).choices
    assert not any("same network" in note for note in other.notes)


def test_a_frame_and_a_device():
    frame = load_runs()
    assert names(recommend(runs=frame, params="<6M")) == names(recommend(params="<6M"))
    own = [*RUNS, run("mine", 99.0, 5.0, device="cpu")]
    with pytest.raises(ValueError, match="choose one with device=, accepted are A100, cpu"):
        recommend(runs=own, throughput=">1")
    assert names(recommend(runs=own, throughput=">1", device="cpu")) == ["mine"]
    assert names(recommend(runs=own))[0] == "mine"


def test_the_text_has_everything():
    answer = recommend(accuracy=">=80", memory="<1 GiB", limit=2)
    text = str(answer)
    for choice in answer.choices:
        for part in (choice.run.label, *choice.reasons, *choice.costs, *choice.notes):
            assert part in text
    assert "accuracy >= 80, memory < 1 GiB" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accuracy": "high"}, "accuracy='high' is no bound"),
        ({"prefer": "speed"}, "no metric 'speed'"),
        ({"prefer": ()}, "at least one metric"),
        ({"limit": 0}, "positive number, got 0"),
        ({"device": "H100"}, "no run on device class 'H100'; accepted are A100"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        recommend(**arguments)
