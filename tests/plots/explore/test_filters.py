"""Filters, search, the table, the address, and the rows as CSV."""

import csv
from urllib.parse import quote

import pytest


def indices(runs, condition):
    return {i for i, run in enumerate(runs) if condition(run)}


def has_point(run):
    return run.throughput is not None and run.top1 is not None


@pytest.mark.parametrize(
    ("fragment", "condition"),
    [
        ("class=Kernel+Attention&class=More+MLPs",
         lambda r: r.taxonomy_class in ("Kernel Attention", "More MLPs")),
        ("class=not+classified", lambda r: r.taxonomy_class == ""),
        ("px=384&px=382", lambda r: r.img_size in (382, 384)),
        ("px=192x256", lambda r: r.img_size == (192, 256)),
        ("from=2022", lambda r: r.year is not None and r.year >= 2022),
        ("to=2020", lambda r: r.year is not None and r.year <= 2020),
        ("from=2022&to=2021", lambda r: r.year in (2021, 2022)),
        ("size=Ti", lambda r: "_ti" in r.name or "_tiny" in r.name),
        ("runs=own", lambda r: r.source == "own measurement"),
        ("device=RTX+3090", lambda r: r.device_class == "RTX 3090"),
        ("q=FOCALnet%20%20382", lambda r: "focalnet" in r.label and "382" in r.label),
        ("class=no+such+class&px=7&x=nothing&from=soon&run=length", lambda r: True),
    ],
)  # fmt: skip
def test_points_and_rows_agree(page, runs, fragment, condition):
    page.go(fragment)
    wanted = indices(runs, condition)
    assert wanted
    assert set(page.rows()) == wanted
    assert page.points().keys() == {i for i in wanted if has_point(runs[i])}
    drawn = len(page.points())
    assert page.text("#status").startswith(f"{drawn} of 111 runs visible, ")


def test_boxes_years_and_search_filter(page, runs):
    page.click("[data-group=class][value='Baseline']")
    assert set(page.rows()) == indices(runs, lambda r: r.taxonomy_class != "Baseline")
    page.click("[aria-label='Class: none']")
    assert page.rows() == []
    page.click("[data-group=class][value='Baseline']")
    assert set(page.rows()) == indices(runs, lambda r: r.taxonomy_class == "Baseline")
    assert page.fragment() == "#class=Baseline"
    page.choose("from", "2021")
    page.click("[aria-label='Class: all']")
    assert page.fragment() == "#from=2021"
    page.choose("to", "2021")
    assert set(page.rows()) == indices(runs, lambda r: r.year == 2021)
    page.click("#reset")
    page.search("beltagy")
    assert page.rows() == []
    page.search("token merging")
    assert set(page.rows()) == indices(runs, lambda r: r.taxonomy_class == "Token Merging")
    page.click("#reset")
    assert len(page.rows()) == 111
    assert page.fragment() == ""
    assert page.one("#search").get_attribute("value") == ""


def test_the_address_brings_everything_back(page, runs):
    page.click("[data-group=class][value='Baseline']").click("[data-group=px][value='384']")
    page.choose("x", "params").choose("ys", "log").choose("theme", "dark").choose("from", "2020")
    page.search("s16")
    page.click("[data-sort=flops]").click("[data-sort=flops]").click("#names")
    page.click("#rows .model")
    before = (page.rows(), page.points(), page.fronts(), page.ring(), page.text("#status"))
    fragment = page.js("return location.hash")
    assert before[3] == [before[0][0]]
    page.load(fragment)
    after = (page.rows(), page.points(), page.fronts(), page.ring(), page.text("#status"))
    assert after == before
    assert page.js("return location.hash") == fragment
    controls = ["x", "ys", "theme", "from", "search"]
    values = [page.one(f"#{name}").get_attribute("value") for name in controls]
    assert values == ["params", "log", "dark", "2020", "s16"]
    assert not page.one("#names").is_selected()
    assert not page.one("[data-group=class][value='Baseline']").is_selected()
    assert page.all("#chart .annotation-text") == []


COLUMNS = [
    ("accuracy", lambda r: r.top1, "descending"),
    ("training_memory", lambda r: r.training_memory, "ascending"),
    ("year", lambda r: r.year, "descending"),
    ("pretraining", lambda r: r.pretrain_size, "ascending"),
]


@pytest.mark.parametrize(("column", "value", "first"), COLUMNS)
def test_headers_sort(page, runs, column, value, first):
    if column != "accuracy":  # by which the table is sorted at the start
        page.click(f"[data-sort={column}]")
    for direction in (first, {"ascending": "descending", "descending": "ascending"}[first]):
        figures = [value(runs[i]) for i in page.rows()]
        known = [figure for figure in figures if figure is not None]
        assert known == sorted(known, reverse=direction == "descending")
        # What lacks the figure comes last, whichever way the others go.
        assert figures[len(known) :] == [None] * (len(figures) - len(known))
        header = page.one(f"th:has([data-sort={column}])")
        assert header.get_attribute("aria-sort") == direction
        assert len(page.all("th[aria-sort]")) == 1
        page.click(f"[data-sort={column}]")


def test_names_sort_as_people_read_them(page, runs):
    page.click("[data-sort=model]")
    labels = [runs[i].label for i in page.rows()]
    assert labels.index("tokenlearner_s16_8_50") < labels.index("tokenlearner_s16_8_75")
    assert labels.index("vit_s16") < labels.index("vit_s16@384") < labels.index("vit_ti16")


def test_the_table_says_who_is_on_the_front(page):
    members = {run for front in page.fronts().values() for run in front}
    said = page.js(
        "return [...document.querySelectorAll('#rows tr')]"
        ".filter((row) => row.cells[1].textContent === 'yes').map((row) => +row.dataset.run)"
    )
    assert set(said) == members


def test_visible_rows_as_csv(page, runs, tmp_path):
    page.go("q=" + quote("a100") + "&size=other&size=Ti&sort=params")
    page.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page.click("#csv")
    path = tmp_path / "runs.csv"
    page.wait(path.is_file)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shown = page.rows()
    assert len(rows) == len(shown) > 5
    on_front = {run for front in page.fronts().values() for run in front}
    for row, i in zip(rows, shown, strict=True):
        run = runs[i]
        # A spreadsheet would take a name that begins like this for a formula.
        name = f"'{run.name}" if run.name.startswith("=") else run.name
        assert row["name"] == name
        assert row["params"] == str(run.params)
        assert row["accuracy"] == ("" if run.top1 is None else f"{run.top1:g}")
        assert float(row["throughput"]) == run.throughput
        assert row["on_front"] == ("yes" if i in on_front else "no")
        assert row["device"] == run.device
    assert any(row["name"].startswith("'=") for row in rows)
    assert any("</script>" in row["name"] for row in rows)
