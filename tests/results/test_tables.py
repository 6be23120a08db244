import pytest

from efficient_vits import catalog
from efficient_vits.results import (
    TASKS,
    load_rows,
    stated,
    table1,
    table2,
    table3,
    table4,
    table5,
    table6,
)


def test_sizes():
    tables = (table1, table2, table3, table4, table5, table6)
    assert [len(table()) for table in tables] == [29, 4, 47, 3, 12, 91]


def test_every_row_has_a_source():
    for number, table in enumerate((table1, table2, table3, table4, table5, table6), 1):
        assert {row.source for row in table()} == {f"supplement, Table {number}"}


def test_table1():
    settings = {row.parameter: (row.pretrain, row.finetune) for row in table1()}
    assert settings["Epochs"] == ("90", "50")
    assert settings["LR"] == ("3e-3", "3e-4")
    assert settings["Batch Size"] == ("2048", "2048")


def test_table2():
    rows = {row.parameter: row for row in table2()}
    assert (rows["epochs"].cars, rows["epochs"].places) == (2000, 50)
    assert rows["batch size"].flowers == 256
    assert rows["lr"].cars == 3e-4


def test_names_are_of_the_catalog():
    for row in [*table3(), *table6()]:
        assert row.name in catalog.cards()
    for row in table3():
        assert catalog.cards()[row.name].paper_model == row.printed_model
        assert catalog.cards()[row.name].taxonomy_class == row.taxonomy_class


def test_table3_has_the_accuracies_of_the_runs():
    """The ImageNet column is a run at 224 px, but for HiViT, whose run was not published."""
    known = {(run.name, run.top1) for run in load_rows() if run.img_size == 224}
    other = [row.name for row in table3() if (row.name, row.imagenet) not in known]
    assert other == ["hivit_ti16"]


def test_missing_accuracies_are_none():
    rows = {row.name: row for row in table3()}
    assert rows["coat_tiny"].flowers is None
    assert rows["afno_ti16"].cars is None
    assert rows["vit_s16"].cars == 91.58


def test_table4():
    assert {(row.pearson, row.spearman) for row in table4()} == {
        (0.49, 0.75),
        (0.97, 0.96),
        (0.75, 0.80),
    }


def test_table5():
    rows = {row.taxonomy_class: row for row in table5()}
    assert rows["Hybrid Attention"].families["inference_memory"] == (
        "CoaT",
        "EfficientViT",
        "CvT",
        "NextViT",
    )
    assert all(set(row.families) == set(TASKS) for row in table5())
    assert sum(row.architectures for row in table5()) == 40


def test_table6_is_as_printed():
    rows = table6()
    polysa = [row.throughput for row in rows if row.name == "polysa_s16"]
    assert polysa == [3404.60, 3538.89, 1836.55]
    assert (rows[-1].throughput, rows[-1].top1) == (None, None)
    assert sum(row.top1 is None for row in rows) == 1


def test_stated_figures():
    assert stated("throughput_min").number == 11878
    assert stated("memory_slope").value == "25.43"
    # The text's own percentages follow from its other figures.
    width = stated("throughput_max").number - stated("throughput_min").number
    mean = (stated("throughput_max").number + stated("throughput_min").number) / 2
    assert round(100 * width / mean, 2) == stated("throughput_range").number
    with pytest.raises(ValueError, match=r"no 'speed'; accepted are throughput_min"):
        stated("speed")
