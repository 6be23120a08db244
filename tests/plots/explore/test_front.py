"""The front on the page is the one that the library computes."""

import itertools
import random

import pytest

from efficient_vits.results import METRICS, Run, front, metric, pareto_mask

YEARS = [2015, 2020, 2021, 2022, 2023, 2024]
SIZES = ["Ti", "S", "B", "other"]


def expected(runs: list[Run], indices: list[int], x: str, y: str) -> dict[str | None, set[int]]:
    """Members by device class, computed by `results.front`."""
    place = {id(runs[i]): i for i in indices}
    chosen = [runs[i] for i in indices]
    bound = metric(x).device_bound or metric(y).device_bound
    complete = [r for r in chosen if r.value(x) is not None and r.value(y) is not None]
    classes = dict.fromkeys(run.device_class for run in complete) if bound else [None]
    fronts = {device: front(chosen, (x, y), device=device) for device in classes}
    return {d: {place[id(run)] for run in f.members} for d, f in fronts.items() if f.members}


@pytest.mark.parametrize("directions", list(itertools.product(("max", "min"), repeat=2)))
def test_mask_is_that_of_the_library(page, directions):
    generator = random.Random(0)
    # Few distinct values make many ties and equal points; signs and zeros of both kinds too.
    clouds = [[]] + [
        [(generator.randint(-k, k) * 0.1, generator.randint(-k, k) * -0.1) for _ in range(n)]
        for n in (1, 2, 3, 5, 8, 40, 150)
        for k in (1, 3, 30)
    ]
    found = page.js(
        "return arguments[0].map((points) => explorer.paretoMask(points, arguments[1]))",
        clouds,
        directions,
    )
    assert found == [pareto_mask(points, directions) for points in clouds]
    assert any(any(mask) and not all(mask) for mask in found)


@pytest.mark.parametrize(
    ("fragment", "x", "y"),
    [
        ("", "throughput", "accuracy"),
        ("x=params", "params", "accuracy"),
        ("x=params&y=flops&xs=linear", "params", "flops"),
        ("x=memory&y=top5&px=384&px=224", "memory", "top5"),
        ("x=accuracy&y=training_time&xs=linear&ys=log", "accuracy", "training_time"),
        ("x=inference_time&class=Kernel+Attention&class=Baseline", "inference_time", "accuracy"),
        ("q=swin", "throughput", "accuracy"),
        ("runs=own", "throughput", "accuracy"),
    ],
)
def test_what_is_drawn_is_the_front_of_what_is_visible(page, runs, fragment, x, y):
    page.go(fragment)
    visible = sorted(page.points())
    assert visible
    drawn = page.fronts()
    assert {device: set(members) for device, members in drawn.items()} == expected(
        runs, visible, x, y
    )
    for members in drawn.values():
        along = [runs[i].value(x) for i in members]
        assert along == sorted(along)
    shape = "vh" if metric(x).direction == "max" else "hv"
    assert {trace["shape"] for trace in page.traces()[: len(drawn)]} == {shape}


def test_any_filters_and_axes(page, runs):
    """60 random states, through the page's own functions."""
    generator = random.Random(1)

    def some(name, values):
        return [(name, v) for v in generator.sample(values, generator.randint(1, len(values)))]

    classes = sorted({run.taxonomy_class or "not classified" for run in runs})
    partial = 0
    for _ in range(60):
        x, y = generator.sample(list(METRICS), 2)
        pairs = [("x", x), ("y", y), ("xs", generator.choice(["log", "linear"]))]
        pairs += some("class", classes) if generator.random() < 0.6 else []
        pairs += some("size", SIZES) if generator.random() < 0.4 else []
        pairs += some("px", ["224", "382", "384", "192x256"]) if generator.random() < 0.4 else []
        pairs += [("from", str(generator.choice(YEARS)))] if generator.random() < 0.3 else []
        pairs += (
            [("q", generator.choice(["s16", "vit", "2021"]))] if generator.random() < 0.3 else []
        )
        found = page.js(
            "const view = explorer.view(new URLSearchParams(arguments[0]).toString());"
            "return {passed: view.passed, drawn: view.drawn,"
            " fronts: view.fronts.map((f) => [f.device, f.members, f.split])}",
            pairs,
        )
        assert set(found["passed"]) == {i for i, run in enumerate(runs) if passes(run, pairs)}
        assert found["drawn"] == [
            i
            for i in found["passed"]
            if runs[i].value(x) is not None and runs[i].value(y) is not None
        ]
        members = {device: set(indices) for device, indices, _ in found["fronts"]}
        assert members == expected(runs, found["passed"], x, y)
        for device, _, split in found["fronts"]:
            chosen = [runs[i] for i in found["passed"]]
            assert names_of(split) == names_of(front(chosen, (x, y), device=device).split)
        partial += 0 < len(found["passed"]) < len(runs)
    assert partial > 20


def passes(run: Run, pairs: list[tuple[str, str]]) -> bool:
    """The filters once more, in the plainest form."""
    from efficient_vits.plots.explore._rows import size_of

    size = run.img_size
    pixels = str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"
    facts = {
        "class": run.taxonomy_class or "not classified",
        "size": size_of(run.name),
        "px": pixels,
    }
    for name, fact in facts.items():
        wanted = [value for key, value in pairs if key == name]
        if wanted and fact not in wanted:
            return False
    given = dict(pairs)
    if "from" in given and (run.year is None or run.year < int(given["from"])):
        return False
    return "q" not in given or given["q"] in haystack(run)


def haystack(run: Run) -> str:
    from efficient_vits.catalog import cards

    card = cards().get(run.name)
    known = [run.label, run.taxonomy_class or "not classified", run.device, run.source]
    if card and card.paper:
        known += [card.paper.title, card.paper.first_author, card.paper.venue, card.paper.arxiv]
    if card:
        known += [card.authors_code, card.licence]
    return " ".join(known).lower()


def names_of(split):
    return sorted((sorted(on), sorted(off)) for on, off in split)


def test_the_page_says_what_is_compared(page, runs):
    text = page.text("#compared")
    assert "A100: " in text
    assert "RTX 3090: 2 of 3 runs" in text
    assert "runs on different devices are not compared" in text
    assert "One network under several names: vit_s16" in text
    assert page.fronts().keys() == {"A100", "RTX 3090"}
    assert [t["dash"] for t in page.traces()[:2]] == ["solid", "dash"]
    page.go("x=params")
    text = page.text("#compared")
    assert "Both hold on every device" in text
    assert "of 110 runs" in text
    assert page.fronts().keys() == {None}
    page.go("x=memory")
    assert "contains what its training process held" in page.text("#compared")
    page.click("#front")
    assert page.fronts() == {}
    assert page.js("return document.getElementById('status').textContent").startswith("9")
