import dataclasses

import pytest

from efficient_vits.results import accuracy_per_parameter, front, fronts_by_year, load_rows

RUNS = load_rows()


def test_the_front_over_the_years():
    """Section D.5."""
    years = {entry.year: entry for entry in fronts_by_year()}
    assert sorted(years) == [2015, 2020, 2021, 2022, 2023, 2024]
    assert {"vit_ti16", "vit_s16", "vit_b16"} <= set(years[2020].front.names)
    assert {"tokenlearner_s16_8_50", "tokenlearner_s16_8_75"} <= set(years[2021].added)
    assert {"hydra_s16", "evit_s16", "tome_s16_r8"} <= set(years[2022].added)
    assert years[2023].added == years[2024].added == ()
    assert years[2024].front.members == front().members


def test_the_dominated_volume_never_shrinks():
    volumes = [entry.hypervolume for entry in fronts_by_year()]
    assert volumes == sorted(volumes)
    assert 1 < volumes[-1] / volumes[1] < 1.15


def test_added_and_dropped():
    def run(name, year, top1):
        return dataclasses.replace(RUNS[0], name=name, year=year, top1=top1, throughput=10.0)

    first, second, _ = fronts_by_year(
        [run("a", 2020, 70.0), run("b", 2021, 80.0), run("c", 2022, 7.0)]
    )
    assert (first.added, first.dropped) == (("a",), ())
    assert (second.added, second.dropped) == (("b",), ("a",))
    with pytest.raises(ValueError, match="whose year the catalog knows"):
        fronts_by_year([run("a", None, 70.0)])


def test_accuracy_per_parameter():
    """Section D.7: models by accuracy; the smallest have the most accuracy per parameter."""
    runs = accuracy_per_parameter()
    accuracies = [run.top1 for run in runs]
    assert accuracies == sorted(accuracies)
    assert len({run.name for run in runs}) == len(runs) == 46
    best = max(runs, key=lambda run: run.accuracy_per_parameter)
    assert best.name == "efficientformerv2_s0"
    assert best.accuracy_per_parameter == pytest.approx(71.53 / 3.423256)
    worst = min(runs, key=lambda run: run.accuracy_per_parameter)
    assert worst.name == "switch8_s16"
    with pytest.raises(ValueError, match="img_size=100"):
        accuracy_per_parameter(img_size=100)


def test_the_front_of_parameters():
    """Section D.7, Figure 10: most are at the larger images, and CoaT is not."""
    members = front(objectives=("accuracy", "params")).members
    assert sum(run.img_size != 224 for run in members) > len(members) / 2
    assert any(run.label == "coat_tiny" for run in members)
