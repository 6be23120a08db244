"""Axes, scales, marks, the tooltip, and what a click does."""

import math

import pytest
from selenium.webdriver.common.action_chains import ActionChains

from efficient_vits.plots.explore._marks import MARKS
from efficient_vits.results import METRICS

FACTORS = {
    **{"params": 1e6, "flops": 1e9, "inference_time": 1e-3, "training_time": 3600},
    **{"memory": 2**30, "training_memory": 2**30},
}


def layout(page, axis):
    return page.js(
        f"const axis = document.getElementById('chart')._fullLayout.{axis};"
        "return {type: axis.type, range: axis.range, ticks: axis.tickvals}"
    )


def pixel(page, run):
    """Where a run's point is in the window."""
    return page.js(
        "const chart = document.getElementById('chart');"
        "chart.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const {xaxis, yaxis} = chart._fullLayout;"
        "const box = chart.getBoundingClientRect();"
        "const [x, y] = arguments[0];"
        "return [box.left + xaxis._offset + xaxis.d2p(x), box.top + yaxis._offset + yaxis.d2p(y)]",
        page.points()[run],
    )


def move_to(page, run, then=lambda actions: actions):
    x, y = pixel(page, run)
    actions = ActionChains(page.driver, duration=20)
    actions.w3c_actions.pointer_action.move_to_location(round(x) + 30, round(y) + 30)
    actions.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    then(actions).perform()
    page.settle()


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_an_axis(page, runs, name):
    other = "accuracy" if name != "accuracy" else "params"
    page.choose("y", other).choose("x", name)
    factor = FACTORS.get(name, 1)
    expected = {
        i: run.value(name) / factor
        for i, run in enumerate(runs)
        if run.value(name) is not None and run.value(other) is not None
    }
    points = page.points()
    assert points.keys() == expected.keys()
    assert all(math.isclose(points[i][0], value) for i, value in expected.items())
    title = page.text("#chart .xtitle")
    assert title.startswith(METRICS[name].label.partition(" [")[0])
    way = {"max": "more", "min": "less"}[METRICS[name].direction]
    assert title.endswith(f", {way} is better")


def test_scales(page):
    assert (layout(page, "xaxis")["type"], layout(page, "yaxis")["type"]) == ("log", "linear")
    low, high = layout(page, "xaxis")["range"]
    ticks = layout(page, "xaxis")["ticks"]
    assert len(ticks) >= 3
    assert all(low <= math.log10(tick) <= high for tick in ticks)
    page.choose("xs", "linear").choose("ys", "log")
    assert (layout(page, "xaxis")["type"], layout(page, "yaxis")["type"]) == ("linear", "log")
    xs = [x for x, _ in page.points().values()]
    low, high = layout(page, "xaxis")["range"]
    assert low < min(xs) < max(xs) < high
    assert page.fragment() == "#xs=linear&ys=log"


def test_the_metric_of_the_other_axis_swaps(page):
    before = page.points()
    page.choose("x", "accuracy")
    assert page.fragment() == "#x=accuracy&y=throughput&xs=linear&ys=log"
    assert page.points() == {run: (y, x) for run, (x, y) in before.items()}
    page.click("#swap")
    assert page.fragment() == ""
    assert page.points() == before


def test_own_measurements_have_marks_of_their_own(page, runs):
    own = {i for i, run in enumerate(runs) if i >= 105 and run.top1 is not None}
    assert len(own) == 5
    marked = [t for t in page.traces() if t["meta"] and "own" in t["meta"]]
    stars = [trace for trace in marked if trace["symbol"] == "star"]
    assert {run for trace in stars for run in trace["runs"]} == own
    assert {trace["meta"]["own"] for trace in stars} == {True}
    assert not {t["symbol"] for t in marked if not t["meta"]["own"]} & {"star"}
    assert "6 own measurements" in page.text("#origin")


def test_no_two_classes_look_alike():
    looks = {(mark.colour, mark.symbol) for mark in MARKS}
    assert len(looks) == len(MARKS) == len({mark.name for mark in MARKS}) == 13


def test_the_tooltip_is_the_model_card(page, runs):
    run = next(i for i, r in enumerate(runs) if r.label == "vit_ti16" and r.pretrain_size == 224)
    assert not page.one("#hover").is_displayed()
    move_to(page, run)
    text = page.one("#hover").text
    for part in (
        *("vit_ti16", "Baseline", "2020", "An Image is Worth 16x16 Words", "Dosovitskiy"),
        *("Apache-2.0", f"{runs[run].top1:.2f}", "5.722 M", "A100"),
    ):
        assert part in text
    assert page.one("#card").text != text


def test_a_click_chooses(page, runs):
    run = next(i for i, r in enumerate(runs) if r.label == "hydra_s16" and i < 105)
    move_to(page, run, lambda actions: actions.click())
    (chosen,) = page.ring()
    assert runs[chosen].label == "hydra_s16"
    assert page.one("#card h3").text == "hydra_s16"
    assert page.one("#card a").get_attribute("href") == "https://arxiv.org/abs/2209.07484"
    assert page.fragment() == f"#run={chosen}"
    row = page.one("tr[aria-current]")
    assert row.get_attribute("data-run") == str(chosen)
    # It was brought into the table's own window.
    box = page.one(".scroll").rect
    assert box["y"] <= row.rect["y"] <= box["y"] + box["height"]


def test_zoom(page):
    before = layout(page, "yaxis")["range"]
    page.click("#zoom-in")
    low, high = layout(page, "yaxis")["range"]
    assert before[0] < low < high < before[1]
    page.click("#front")
    assert layout(page, "yaxis")["range"] == [low, high]
    page.click("#zoom-out")
    assert layout(page, "yaxis")["range"] == pytest.approx(before)
    page.click("#zoom-in").click("#zoom-reset")
    assert layout(page, "yaxis")["range"] == before


def test_a_drag_zooms_and_names_follow(page):
    x, y = pixel(page, min(page.points()))
    before = layout(page, "xaxis")["range"]
    actions = ActionChains(page.driver, duration=30)
    actions.w3c_actions.pointer_action.move_to_location(round(x) - 90, round(y) - 60)
    actions.click_and_hold()
    actions.w3c_actions.pointer_action.move_to_location(round(x) + 90, round(y) + 60)
    actions.release().perform()
    page.settle()
    low, high = layout(page, "xaxis")["range"]
    assert before[0] < low < high < before[1]
    assert page.js("return document.getElementById('chart').layout.xaxis.range") == [low, high]


def test_names_cover_neither_each_other_nor_leave_the_chart(page, runs):
    boxes = page.js(
        "return [...document.querySelectorAll('#chart .annotation-text')].map((e) => {"
        "const b = e.getBoundingClientRect();"
        "return [e.textContent, b.left, b.right, b.top, b.bottom]})"
    )
    names = [box[0] for box in boxes]
    assert len(names) > 8
    assert "my_net_ti" in names
    assert set(names) <= {run.label for run in runs}
    for i, (_, left, right, top, bottom) in enumerate(boxes):
        for _, left2, right2, top2, bottom2 in boxes[i + 1 :]:
            apart = right <= left2 or right2 <= left or bottom <= top2 + 3 or bottom2 <= top + 3
            assert apart, (boxes[i], left2, right2, top2, bottom2)
    page.click("#names")
    assert page.all("#chart .annotation-text") == []


def test_nothing_visible_is_said(page):
    page.go("class=")
    assert page.points() == {}
    assert page.rows() == []
    assert page.text("#chart .annotation-text") == "No visible run has both figures."
    assert page.text("#status") == "0 of 111 runs visible, 0 on the front."
