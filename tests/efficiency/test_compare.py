import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from efficient_vits.efficiency import compare, measure
from efficient_vits.efficiency.compare import ratio_interval
from efficient_vits.efficiency.journal import Journal


def row(name: str, speed: float | None = 100.0, **changes: Any) -> dict[str, Any]:
    throughput = None
    if speed is not None:
        throughput = {
            "images_per_second": speed,
            "spread": 0.2,
            "batch_size": 8,
            "device": "cuda:0",
            "interval": [speed * 0.9, speed * 1.2],
            "prediction": [speed * 0.8, speed * 1.5],
        }
    base = {
        "key": f"{name}{speed}{sorted(changes)}",
        "name": name,
        "parameters": 20_000_000,
        "flops": {"total": 4_600_000_000, "macs": 4_500_000_000, "rules": "r1", "training": False},
        "memory": {"peak_bytes": 2**27, "activation_bytes": 2**20, "device": "cuda:0"},
        "throughput": throughput,
        "input_size": [3, 224, 224],
        "dtype": "float32",
        "environment": {"cpu": "z80", "device": "GPU", "torch": "2", "host": "any"},
        "job": {"options": {"device": "cuda"}, "model_arguments": {}},
    }
    return base | changes


def failed(name: str) -> dict[str, Any]:
    return {"key": name, "name": name, "error": "RuntimeError: a|b", "reason": "exception"}


def test_ratios_and_their_intervals() -> None:
    found = compare([row("vit_s16"), row("hydra_s16", 150.0)], "vit_s16")
    base, other = (entry.figures["throughput"] for entry in found.entries)
    assert (base.ratio, base.ratio_interval) == (1.0, None)
    assert other.interval == pytest.approx((135, 180))
    assert other.ratio == 1.5
    up, down = math.log(1.2), -math.log(0.9)
    both = math.hypot(up, down)
    assert other.ratio_interval == pytest.approx((1.5 * math.exp(-both), 1.5 * math.exp(both)))
    assert found.entries[1].figures["parameters"].ratio == 1
    assert found.entries[1].figures["parameters"].interval is None
    assert (found.interval, found.baseline) == ("confidence", "vit_s16")
    predicted = compare([row("vit_s16")], interval="prediction")
    assert predicted.entries[0].figures["throughput"].interval == (80, 150)
    assert predicted.entries[0].figures["throughput"].ratio is None


def test_the_interval_of_a_ratio_covers_it() -> None:
    """95 % of intervals of two means hold the ratio of the means."""
    generator = torch.Generator().manual_seed(1)
    true_a, true_b, error_a, error_b, n = 300.0, 200.0, 9.0, 4.0, 4000
    a = true_a + error_a * torch.randn(n, generator=generator, dtype=torch.float64)
    b = true_b + error_b * torch.randn(n, generator=generator, dtype=torch.float64)
    hits = 0
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        low, high = ratio_interval(
            x,
            (x - 1.96 * error_a, x + 1.96 * error_a),
            y,
            (y - 1.96 * error_b, y + 1.96 * error_b),
        )
        assert low < x / y < high
        hits += low <= true_a / true_b <= high
    # Four standard deviations of such a count are 0.014.
    assert abs(hits / n - 0.95) < 0.014


def test_without_intervals_there_are_quartiles() -> None:
    old = row("vit_s16")
    assert old["throughput"].pop("interval")
    found = compare([row("hydra_s16"), old])
    # No interval of another kind stands beside them.
    assert found.interval == "quartiles"
    for entry in found.entries:
        assert entry.figures["throughput"].interval == pytest.approx((100 / 1.1, 100 / 0.9))
    assert "middle half of the timed batches" in str(found)
    old["throughput"]["spread"] = 2.0
    assert compare([old]).entries[0].figures["throughput"].interval is None
    assert compare([old], columns=["flops"]).interval == "none"
    with pytest.raises(ValueError, match="no prediction interval of old"):
        compare(
            [row("a"), row("old", throughput={**old["throughput"], "prediction": None})],
            interval="prediction",
        )


def test_different_machines_are_refused_unless_asked_for() -> None:
    rows = [row("a"), row("b", environment={"cpu": "z80", "device": "other", "torch": "2"})]
    with pytest.raises(ValueError, match="machines") as refusal:
        compare(rows)
    assert "memory, throughput of different machines" in str(refusal.value)
    assert "across=['machines']" in str(refusal.value)
    assert str(refusal.value).endswith("What differs: device: GPU (a), other (b)")
    assert [e.labels for e in compare(rows, across=["machines"]).entries] == [
        {"device": "GPU"},
        {"device": "other"},
    ]
    # What does not depend on the machine needs no permission, nor does what nobody measured.
    assert compare(rows, columns=["parameters", "flops", "macs", "flops.total"])
    assert compare([row("a", None), {**rows[1], "throughput": None}], columns=["throughput"])


def test_an_option_that_does_not_apply_makes_no_difference() -> None:
    def with_option(name: str, fused: bool | None) -> dict[str, Any]:
        plain = row(name)
        return {
            **plain,
            "throughput": {**plain["throughput"], "options": {"fused_attention": fused}},
        }

    compare([with_option("mixer", None), with_option("vit", True)])
    with pytest.raises(ValueError, match=r"True \(vit\), False \(swin\)"):
        compare([with_option("mixer", None), with_option("vit", True), with_option("swin", False)])


def test_different_protocols_are_refused_unless_asked_for() -> None:
    def asked(**options: Any) -> dict[str, Any]:
        return row("b", job={"options": {"device": "cuda", **options}, "model_arguments": {}})

    for other, what in (
        (asked(batch_size=64), "batch_size: not said (a), 64 (b)"),
        (asked(protocol="paper"), "protocol: not said (a), paper (b)"),
        (row("b", dtype="float16"), "dtype: float32 (a), float16 (b)"),
    ):
        with pytest.raises(ValueError, match="different protocols") as refusal:
            compare([row("a"), other])
        assert what in str(refusal.value)
        assert len(compare([row("a"), other], across=["protocols"]).entries[0].labels) == 1
    assert compare([row("a"), asked(memory=True), asked(device="cuda:1")])
    counted = row("b", flops={"total": 1, "rules": "r2", "training": False})
    with pytest.raises(ValueError, match="FLOPs rules: r1"):
        compare([row("a"), counted], columns=["flops"])
    assert compare([row("a"), counted], columns=["throughput"])


def test_the_baseline_of_a_row_is_like_it_in_all_else() -> None:
    small, large = {"input_size": [3, 224, 224]}, {"input_size": [3, 384, 384]}
    rows = [row("v", 100, **small), row("v", 50, **large), row("h", 75, **large)]
    found = compare(rows, "v")
    assert [entry.figures["throughput"].ratio for entry in found.entries] == [1, 1, 1.5]
    assert [entry.labels["input"] for entry in found.entries] == ["224x224", "384x384", "384x384"]
    assert compare([rows[0], rows[2]], "v").entries[1].figures["throughput"].ratio == 0.75
    with pytest.raises(ValueError, match="no row of the baseline 'x'; there are v, h"):
        compare(rows, "x")
    with pytest.raises(ValueError, match="2 rows are of the baseline 'v'"):
        compare([*rows[:2], row("h", input_size=[3, 64, 64])], "v")
    with pytest.raises(ValueError, match="the baseline 'f' failed: RuntimeError"):
        compare([rows[0], failed("f")], "f")


def test_what_is_wrong_is_said() -> None:
    rows = [row("a")]
    for arguments, message in (
        ({"columns": ["speed"]}, "no row has a number at 'speed'; there are parameters"),
        ({"columns": []}, "columns is empty"),
        ({"interval": "best"}, "confidence, prediction, got 'best'"),
        ({"across": ["hosts"]}, r"machines, protocols, got \['hosts'\]"),
        ({"across": "machines"}, "got 'machines'"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(rows, **arguments)
    for nothing in ([], [failed("a")]):
        with pytest.raises(ValueError, match="nothing to compare"):
            compare(nothing)
    with pytest.raises(ValueError, match="got int"):
        compare(7)


def test_files_measurements_and_dictionaries(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with Journal(path) as journal:
        for one in (row("a"), failed("b")):
            journal.append(one)
    assert compare(path) == compare(str(path)) == compare([row("a"), failed("b")])
    own = measure(nn.Conv2d(3, 3, 1), input_size=(3, 8, 8), batch_size=1, throughput=False)
    found = compare([own, own.to_dict()], "Conv2d", columns=["parameters", "memory.peak_bytes"])
    assert [entry.figures["parameters"].value for entry in found.entries] == [12, 12]
    assert found.entries[1].figures["memory.peak_bytes"].ratio == 1


def test_as_text_and_in_every_format() -> None:
    found = compare(
        [row("v_s"), row("h|x", 150.0), failed("f_f")], "v_s", columns=["memory", "throughput"]
    )
    header, _, base, other, failure, *notes = str(found).splitlines()
    assert header.split("  ")[0] == "model"
    assert base.split() == ["v_s", "128.0", "1.000", "100.0", "[90.00,", "120.0]", "1.000"]
    assert other.endswith("150.0 [135.0, 180.0]  1.500 [1.215, 1.852]")
    assert failure.split() == ["f_f", "-", "-", "-", "-"]
    assert notes == [
        "Ratios are relative to v_s.",
        "Intervals are the confidence intervals of the medians; those of ratios follow from both.",
        "f_f failed: RuntimeError: a|b",
    ]
    markdown = found.to_markdown()
    assert r"| h\|x | 128.0 | 1.000 | 150.0 \[135.0, 180.0\] | 1.500 \[1.215, 1.852\] |" in markdown
    assert markdown.endswith("\n\nf\\_f failed: RuntimeError: a\\|b")
    latex = found.to_latex()
    assert latex.startswith("% Ratios are relative to v_s.\n")
    assert "h\\textbar{}x & 128.0 & 1.000 & 150.0 {[}135.0, 180.0]" in latex
    first, second, third = csv.DictReader(io.StringIO(found.to_csv()))
    assert float(second["throughput"]) == 150
    assert float(second["throughput_low"]) == 135
    assert float(second["throughput_ratio"]) == 1.5
    assert (
        float(second["throughput_ratio_high"])
        == found.entries[1].figures["throughput"].ratio_interval[1]
    )  # type: ignore[index]
    assert (float(first["memory"]), first["memory_low"]) == (2**27, "")
    assert (third["throughput"], third["error"]) == ("", "RuntimeError: a|b")
    assert "ratio" not in compare([row("a")]).to_csv()
    assert json.dumps(found.entries[1].labels) == "{}"
