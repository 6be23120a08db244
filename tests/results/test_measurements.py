import dataclasses
import json

import pytest

from efficient_vits.cli import main
from efficient_vits.efficiency import measure
from efficient_vits.results import (
    front,
    load_rows,
    load_runs,
    place,
    published_accuracy,
    read_measurements,
)


@pytest.fixture(scope="module")
def measurement():
    from torch import nn

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 4, 4)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    found = measure(Tiny(), input_size=(3, 32, 32), batch_size=2, device="cpu")
    return dataclasses.replace(found, name="vit_ti16")


def row(**changes):
    base = {
        "name": "hydra_s16",
        "parameters": 22_059_496,
        "flops": {"total": 4_287_964_032},
        "memory": {"peak_bytes": 10**8, "batch_size": 1, "device": "cuda:0"},
        "throughput": {
            "images_per_second": 5000.0,
            "latency_seconds": 0.0128,
            "spread": 0.01,
            "repeats": 9,
            "batch_size": 64,
            "device": "cuda:0",
        },
        "input_size": [3, 224, 224],
        "dtype": "float32",
        "environment": {"device": "NVIDIA GeForce RTX 3090", "cpu": "some processor"},
    }
    return base | changes


def test_a_measurement(measurement):
    (run,) = read_measurements(measurement)
    assert run.name == "vit_ti16"
    assert (run.img_size, run.params) == (32, measurement.parameters)
    assert run.flops == measurement.flops.total
    assert run.memory == {2: measurement.memory.peak_bytes}
    assert run.throughput == measurement.throughput.images_per_second
    assert run.throughput_batch_size == 2
    assert run.top1 is None
    assert run.device == measurement.environment["cpu"]
    assert (run.taxonomy_class, run.year) == ("Baseline", 2020)
    assert read_measurements(measurement.to_dict()) == [run]
    assert read_measurements([measurement, run]) == [run, run]


def test_what_measure_prints_is_read(tmp_path, capsys):
    options = ["--img-size", "32", "--batch-size", "1", "--device", "cpu", "--no-throughput"]
    assert main(["measure", "vit_ti16", *options, "--json"]) == 0
    path = tmp_path / "own.json"
    path.write_text(capsys.readouterr().out)
    (run,) = read_measurements(path)
    assert (run.name, run.img_size, run.throughput) == ("vit_ti16", 32, None)
    assert run.memory[1] > 0
    assert run.source == str(path)
    frame = load_runs(path)
    assert len(frame) == 106
    assert frame.iloc[-1]["name"] == "vit_ti16"
    assert frame.iloc[-1]["memory_1"] == run.memory[1]


def test_on_a_gpu(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row()) + "\n\n" + json.dumps(row(input_size=[3, 224, 320])) + "\n")
    first, second = read_measurements(str(path))
    assert (first.device_class, first.img_size) == ("RTX 3090", 224)
    assert second.img_size == (224, 320)
    on_cpu = row(throughput=None, memory={"peak_bytes": 1, "batch_size": 1, "device": "cpu"})
    assert read_measurements(on_cpu)[0].device == "some processor"


def test_accuracy_is_own_or_borrowed():
    assert read_measurements(row(top1=70.5, top5=90.0))[0].top1 == 70.5
    published = published_accuracy()
    assert published["hydra_s16", 224] == 77.84
    assert published["vit_s16", 224] == 82.54
    (run,) = read_measurements(row(), accuracy=published)
    assert run.top1 == 77.84
    assert run.source_of("top1") != run.source_of("throughput") == "own measurement"
    assert read_measurements(row(top1=70.5), accuracy=published)[0].top1 == 70.5
    assert read_measurements(row(input_size=[3, 96, 96]), accuracy=published)[0].top1 is None
    unknown = read_measurements(row(name="convnext_tiny"), accuracy=published)[0]
    assert (unknown.top1, unknown.taxonomy_class, unknown.year) == (None, "", None)


def test_a_failure_is_left_out_and_said():
    rows = [row(), {"name": "vit_l16", "error": "RuntimeError: too large"}]
    with pytest.warns(UserWarning, match="vit_l16: RuntimeError: too large"):
        found = read_measurements(rows)
    assert [run.name for run in found] == ["hydra_s16"]


def test_mistakes(tmp_path):
    path = tmp_path / "own.json"
    path.write_text("name,params\nvit,1\n")
    with pytest.raises(ValueError, match=r"own.json is neither JSON"):
        read_measurements(path)
    path.write_text('[{"name": "vit_s16"}]')
    with pytest.raises(ValueError, match=r"no measurement \(name\); one has name, parameters"):
        load_rows(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"no measurement \(int\)"):
        read_measurements(path)
    for broken in (
        {"flops": 4.3e9},
        {"flops": {}},
        {"input_size": [224]},
        {"input_size": 224},
        {"memory": 3},
        {"throughput": {"device": "cpu"}},
        {"environment": None},
        {"training": {"epochs": 3}},
    ):
        path.write_text(json.dumps(row(**broken)))
        with pytest.raises(ValueError, match=r"own\.json has a row of 'hydra_s16' that is no meas"):
            read_measurements(path)
    with pytest.raises(ValueError, match="got int"):
        read_measurements(3)
    with pytest.raises(FileNotFoundError):
        read_measurements(tmp_path / "none.json")


def test_the_file_of_a_sweep(tmp_path):
    path = tmp_path / "rows.jsonl"
    failed = {"key": "a", "name": "hydra_s16", "error": "RuntimeError: out of memory"}
    lines = [json.dumps(line) for line in (failed, row(key="b"), row(key="a", parameters=7))]
    whole = "\n".join(lines) + "\n"
    path.write_text(whole)
    # What failed and was measured later is no failure any more.
    assert [run.params for run in read_measurements(path)] == [7, 22_059_496]
    path.write_text(whole + '{"key": "c", "na')
    assert len(read_measurements(path)) == 2
    path.write_text(json.dumps(row()) + '\n{"na')
    with pytest.raises(ValueError, match="neither JSON"):
        read_measurements(path)


def trained(*, total=2048, accumulation=2, epochs=50, classes=1000, peak=3 * 10**10, lineage=None):
    """What a training run leaves in ``result.json``."""
    before = {"recipe": {"img_size": 192}, "data": "imagenet21k"}
    return row(
        throughput=None,
        memory=None,
        top1=89.5,
        top5=94.5,
        data="imagenet",
        num_classes=classes,
        lineage=[before, {"recipe": {"img_size": 224}}] if lineage is None else lineage,
        training={
            "gpu_hours": 10.0,
            "peak_memory": peak,
            "device": "cpu" if peak is None else "cuda",
            "batch": {"total": total, "processes": 4, "accumulation": accumulation, "micro": 256},
            "epochs": epochs,
        },
    )


def test_a_training_run_brings_its_costs():
    (run,) = read_measurements(trained())
    assert (run.top1, run.top5) == (89.5, 94.5)
    assert (run.training_memory, run.training_gpus) == (3 * 10**10, 4)
    assert run.training_time == 36_000
    assert run.pretrain_size == 192
    assert run.device_class == "RTX 3090"
    assert run.source_of("training_memory") == "own measurement; 2 passes per update"
    assert run.source_of("training_time") == "own measurement; on imagenet"
    assert run.source_of("pretrain_size") == "own measurement; on imagenet21k"
    frame = load_runs(trained())
    assert frame.iloc[-1]["training_memory"] == 3 * 10**10


def test_the_time_of_other_epochs_is_scaled_and_says_so():
    (run,) = read_measurements(trained(epochs=20))
    assert run.training_time == 90_000
    assert "20 epochs scaled to 50" in run.source_of("training_time")


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"total": 1024}, {"training_memory"}),
        ({"classes": 10}, {"training_time"}),
        ({"lineage": []}, {"training_time", "pretrain_size"}),
        ({"peak": None}, {"training_memory", "training_time", "training_gpus"}),
    ],
)
def test_costs_that_do_not_compare_are_absent(changes, absent):
    (run,) = read_measurements(trained(**changes))
    names = ("training_memory", "training_time", "training_gpus", "pretrain_size")
    assert {name for name in names if getattr(run, name) is None} == absent
    assert run.device == ("some processor" if "peak" in changes else "NVIDIA GeForce RTX 3090")


def test_a_training_run_beside_the_benchmarks():
    runs = load_rows(trained())
    assert any(
        run.source == "own measurement" for run in front(runs, ("accuracy", "flops")).members
    )
    placed = place(trained(), ("accuracy", "flops"))
    assert placed.on_front
    assert placed.run.training_memory == 3 * 10**10
    with pytest.raises(ValueError, match="no other run on it"):
        place(trained(), ("accuracy", "training_memory"))
    on_a100 = {**trained(), "environment": {"device": "NVIDIA A100-SXM4-40GB", "cpu": "any"}}
    assert len(place(on_a100, ("accuracy", "training_time")).front.members) > 1
