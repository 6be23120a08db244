import dataclasses
import subprocess
import sys

import pytest

from efficient_vits import catalog, results
from efficient_vits.results import Run, as_rows, load_rows, load_runs, to_frame

RUNS = load_rows()


def one(label, pretrain_size=224):
    (run,) = (r for r in RUNS if (r.label, r.pretrain_size) == (label, pretrain_size))
    return run


def test_there_are_the_runs_of_the_benchmark():
    assert len(RUNS) == 105
    assert sum(run.source == "published run records" for run in RUNS) == 90
    assert {run.device_class for run in RUNS} == {"A100"}


def test_models_have_names_of_the_catalog():
    for run in RUNS:
        card = catalog.cards()[run.name]
        assert (run.taxonomy_class, run.axis, run.year) == (
            card.taxonomy_class,
            card.axis,
            card.year,
        )


def test_parameters_are_those_of_the_catalog():
    """Within 0.2 %: some records lack a position of the class token or LayerScale."""
    compared = 0
    for run in RUNS:
        card = catalog.cards()[run.name]
        if run.img_size == card.img_size and run.source == "published run records":
            assert run.params == pytest.approx(card.params, rel=0.002), run.label
            compared += 1
    assert compared > 60


@pytest.mark.parametrize(
    ("label", "pretrain_size", "throughput"),
    [
        ("polysa_s16", 192, 5404.60),
        ("polysa_s16", 224, 5358.89),
        ("evit_fuse_s16", 224, 3558.60),
        ("dynamicvit_s16", 192, 4250.67),
    ],
)
def test_misprints_are_mended(label, pretrain_size, throughput):
    assert one(label, pretrain_size).throughput == throughput


def test_figures_are_plausible():
    for run in RUNS:
        assert 68 < run.top1 < run.top5 < 98
        assert 3e6 < run.params < 130e6
        assert 0.4e9 < run.flops < 20e9
        assert run.training_memory is None or 50 < run.training_memory / 2**30 < 600
        assert 10 < run.training_time / 3600 < 100
        assert run.pretrain_size in (192, 224)
        assert run.img_size in (224, 382, 384)
        values = [run.memory[b] for b in sorted(run.memory)]
        assert run.name.startswith("focalnet") or values == sorted(values)


def test_flops_tell_the_image_size():
    """A row at 384 px has about (384 / 224)^2 times the FLOPs or more; one at 224 px has not."""
    for run in RUNS:
        card = catalog.cards()[run.name]
        if card.flops and run.name not in ("evit_s16", "evit_fuse_s16"):
            assert (run.flops / card.flops > 2) == (run.img_size != 224), run.label


def test_every_value_has_a_source():
    columns = [column for column in load_runs().columns if column != "corrections"]
    for run in RUNS:
        for column in columns:
            known = run.value(column) if column.startswith("memory_") else getattr(run, column)
            assert known is None or run.source_of(column)
    assert one("afno_s16").source_of("memory_64").startswith("supplement, Table 6 (rounded); ")
    assert "2.9 times" in one("swiftformer_s@384").source_of("img_size")
    assert one("vit_s16").source_of("year") == "catalog"
    assert one("vit_s16").source_of("throughput") == "published run records"
    with pytest.raises(ValueError, match=r"no column 'speed'.*throughput"):
        one("vit_s16").source_of("speed")


def test_values_by_metric():
    run = one("vit_s16")
    assert run.value("accuracy") == run.top1 == 82.54
    assert run.value("memory") == run.value("memory_1") == run.memory[1]
    assert run.value("memory_128") == run.memory[128]
    assert run.value("memory_2") is None
    assert run.value("inference_time") == pytest.approx(1 / run.throughput)
    assert run.value("accuracy_per_parameter") == pytest.approx(82.54 / 22.059496)
    with pytest.raises(ValueError, match="accepted are accuracy"):
        run.value("speed")


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA A100", "A100"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA H100 PCIe", "H100"),
        ("cpu", "cpu"),
    ],
)
def test_device_class(device, expected):
    assert dataclasses.replace(RUNS[0], device=device).device_class == expected


def test_labels():
    run = dataclasses.replace(RUNS[0], name="x", img_size=224)
    assert run.label == "x"
    assert dataclasses.replace(run, img_size=384).label == "x@384"
    assert dataclasses.replace(run, img_size=(224, 320)).label == "x@224x320"


def test_the_frame_has_all_rows_and_types():
    frame = load_runs()
    assert frame.shape[0] == 105
    assert frame["throughput"].isna().sum() == 2
    assert frame["memory_1"].isna().sum() == 15
    assert frame.loc[frame["name"] == "polysa_s16", "throughput"].max() == 5404.60
    assert str(frame["params"].dtype) == "Int64"
    assert str(frame["throughput_spread"].dtype) == "float64"


def test_a_frame_goes_back_to_rows():
    assert as_rows(load_runs()) == RUNS
    frame = load_runs()
    part = frame[(frame["img_size"] == 384) & (frame["throughput"] > 1000)]
    rows = as_rows(part)
    assert [run.label for run in rows] == [
        run.label for run in RUNS if run.img_size == 384 and (run.throughput or 0) > 1000
    ]
    assert rows
    odd = dataclasses.replace(RUNS[0], img_size=(96, 128), memory={7: 5})
    assert as_rows(to_frame([odd, RUNS[1]])) == [odd, RUNS[1]]
    assert as_rows(to_frame([])) == []


def test_what_is_no_run_is_refused():
    with pytest.raises(ValueError, match="got dict"):
        as_rows([{"name": "vit_s16"}])
    with pytest.raises(ValueError, match="got int"):
        as_rows(3)
    with pytest.raises(ValueError, match="has columns throughput, this one not"):
        as_rows(load_runs().drop(columns="throughput"))


def test_rows_given_are_not_those_kept():
    load_rows().clear()
    assert len(load_rows()) == 105


def fresh_python(script):
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_plain_rows_need_neither_pandas_nor_scipy():
    script = """
import sys
sys.modules["pandas"] = sys.modules["scipy"] = None
from efficient_vits import results
print(len(results.load_rows()), len(results.front().members), results.recommend().eligible > 40)
for function in (results.load_runs, results.fit_memory):
    try:
        function()
    except ImportError as error:
        print(error)
"""
    first, *errors = fresh_python(script).splitlines()
    assert first == "105 16 True"
    assert len(errors) == 2
    assert all("efficient-vits[results]" in line for line in errors)


def test_importing_results_is_light():
    heavy = ["pandas", "scipy", "matplotlib"]
    report = f"print([n for n in {heavy} if n in sys.modules])"
    script = f"import sys\nimport efficient_vits.results\n{report}"
    assert fresh_python(script) == "[]"
    assert fresh_python(
        script.replace("import efficient_vits", "import pandas, efficient_vits")
    ) == ("['pandas']")


def test_public_names_exist():
    assert all(hasattr(results, name) for name in results.__all__)
    assert isinstance(RUNS[0], Run)
