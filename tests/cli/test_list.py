from collections.abc import Callable
from typing import Any

import pytest

import efficient_vits
from efficient_vits.catalog import count_parameters_of
from efficient_vits.cli._errors import UserError
from efficient_vits.cli.list import parse_count, parse_years

# What only has published figures, so that nothing is built to count it.
QUICK = "[hv]*_s16"


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ((), {}),
        (("--axis", "baseline"), {"axis": "baseline"}),
        (("--taxonomy", "kernel"), {"taxonomy": "kernel"}),
        (("--year", "2020-2021"), {"year": (2020, 2021)}),
        (("--max-params", "22.1M"), {"max_params": 22_100_000}),
        (("--built-on", "efficient_vits"), {"built_on": "efficient_vits"}),
    ],
)
def test_options_are_those_of_list_models(
    options: tuple[str, ...], query: dict[str, Any], run_json: Callable[..., Any]
) -> None:
    names = [row["name"] for row in run_json("list", QUICK, *options)]
    assert names == efficient_vits.list_models(QUICK, **query)
    assert names


def test_a_row(run_json: Callable[..., Any]) -> None:
    card = efficient_vits.model_card("hydra_s16")
    assert run_json("list", "hydra_s16") == [
        {
            "name": "hydra_s16",
            "axis": "token mixing",
            "taxonomy_class": "Kernel Attention",
            "year": 2022,
            "built_on": "efficient_vits",
            "parameters": card.params,
            "params": card.params,
            "flops": card.flops,
            "reference_args": {},
        }
    ]


def test_parameters_are_counted_where_none_are_published(run_json: Callable[..., Any]) -> None:
    (row,) = run_json("list", "hydra_ti16")
    assert row["params"] is None
    assert row["parameters"] == count_parameters_of("hydra_ti16") == 5_721_832


def test_the_table(run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = run("list", "hydra_[st]*")
    header, _, *rows = out.splitlines()
    assert (status, err) == (0, "")
    assert header.split() == ["name", "class", "year", "parameters", "GFLOPs", "published"]
    assert [row.split() for row in rows] == [
        ["hydra_s16", "Kernel", "Attention", "2022", "22.06", "M", "4.288"],
        ["hydra_ti16", "Kernel", "Attention", "2022", "5.72", "M", "-"],
    ]


def test_figures_that_need_arguments_are_marked(run: Callable[..., tuple[int, str, str]]) -> None:
    _, out, _ = run("list", "efficientformerv2_s0")
    row, footnote = out.splitlines()[-2:]
    assert row.split()[-3:] == ["3.60", "M", "0.442*"]
    assert footnote.startswith("* with the arguments")


def test_no_match(run: Callable[..., tuple[int, str, str]], run_json: Callable[..., Any]) -> None:
    assert run_json("list", "hydra") == []
    status, out, err = run("list", "hydra")
    assert (status, out) == (0, "")
    assert "hydra_*" in err


@pytest.mark.parametrize(("text", "years"), [("2021", (2021, 2021)), ("2020-2022", (2020, 2022))])
def test_years(text: str, years: tuple[int, int]) -> None:
    assert parse_years(text) == years


@pytest.mark.parametrize("text", ["25M", "25m", "25e6", "25000000", "0.025B", "25000K"])
def test_counts(text: str) -> None:
    assert parse_count(text) == 25_000_000


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "25 M", "25T", "1e", "1e999", "nan", "0.1"])
def test_counts_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="25M"):
        parse_count(text)


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("--axis", "mixing", "token mixing"),
        ("--taxonomy", "kernal", "Kernel Attention"),
        ("--built-on", "keras", "timm"),
        ("--year", "21", "2020-2022"),
        ("--year", "2022-2020", "2020-2022"),
        ("--max-params", "many", "25M"),
    ],
)
def test_mistakes(option: str, value: str, accepted: str, refused: Callable[..., str]) -> None:
    line = refused("list", option, value)
    assert repr(value) in line
    assert accepted in line
