import json
from pathlib import Path
from typing import Any

import pytest

from efficient_vits.efficiency import sweep
from efficient_vits.efficiency.jobs import Job, make_jobs


def jobs(*names: str, **changes: Any) -> list[Job]:
    arguments: dict[str, Any] = {
        "img_sizes": (),
        "batch_sizes": (),
        "model_arguments": {},
        "options": {},
        "transform": None,
        "seed": 0,
        "imports": (),
    }
    return make_jobs(names, **{**arguments, **changes})


def test_the_product() -> None:
    made = jobs("test_vit", "resnet18", img_sizes=[64, (64, 96), None], batch_sizes=[1, 8])
    assert len(made) == 12
    assert len({job.key for job in made}) == 12
    assert [(job.name, job.img_size, job.options) for job in made[:3]] == [
        ("test_vit", (64, 64), {"batch_size": 1}),
        ("test_vit", (64, 64), {"batch_size": 8}),
        ("test_vit", (64, 96), {"batch_size": 1}),
    ]


def test_patterns_are_timms_and_nothing_is_there_twice() -> None:
    names = [job.name for job in jobs("test_vit", "test_vit*")]
    assert names[0] == "test_vit"
    assert len(names) == len(set(names)) > 3
    assert [job.name for job in jobs("resnet18.a1_in1k")] == ["resnet18.a1_in1k"]


def test_a_key_is_that_of_the_measurement() -> None:
    (plain,) = jobs("test_vit")
    # What is the default, said or not, measures the same; so does a module that registers it.
    for same in (
        {"options": {"throughput": True}},
        {"imports": ["json"]},
        {"img_sizes": [None], "batch_sizes": [None]},
    ):
        assert jobs("test_vit", **same)[0].key == plain.key, same
    others = [
        {"options": {"throughput": False}},
        {"options": {"device": "cpu"}},
        {"seed": 1},
        {"img_sizes": [64]},
        {"model_arguments": {"depth": 2}},
        {"transform": "efficient_vits:fuse"},
    ]
    keys = {jobs("test_vit", **other)[0].key for other in others}
    assert len(keys | {plain.key}) == 7
    # A file that is resumed by a later version has the keys of this one.
    assert plain.key == "ea47942768d68c30"


def test_jobs_go_through_json() -> None:
    (job,) = jobs(
        "test_vit",
        img_sizes=[(64, 96)],
        model_arguments={"depth": 2, "pair": (1, 2)},
        options={"device": "cpu"},
        imports=["json"],
    )
    again = Job.from_dict(json.loads(json.dumps(job.to_dict())))
    assert again == job
    assert again.key == job.key


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        ([], {}, "names is empty"),
        (["test_vti"], {}, "no model 'test_vti'; near names: test_vit"),
        (["no_such_*"], {}, "no model like 'no_such_\\*'"),
        (["test_vit"], {"options": {"devise": "cpu"}}, "no option 'devise'; accepted are device"),
        (["test_vit"], {"options": {"batch_size": 1}}, "a sweep has batch_sizes for it"),
        (["test_vit"], {"options": {"on_step": print}}, "a sweep has on_progress for it"),
        (["test_vit"], {"img_sizes": [0]}, "img_sizes are positive integers, got 0"),
        (["test_vit"], {"batch_sizes": [True]}, "batch_sizes are positive integers, got True"),
    ],
)
def test_what_is_wrong_is_said(names: list[str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jobs(*names, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_sizes": ["64"]}, "img_sizes are pixels"),
        ({"imports": "json"}, "imports must be a list of strings, got the string 'json'"),
        ({"transform": len}, "'module:function', got <built-in function len>"),
        ({"transform": "fuse"}, "'module:function', got 'fuse'"),
        ({"options": {"device": object}}, "option device cannot be written as JSON"),
        ({"model_arguments": {"norm_layer": len}}, "model_arguments cannot be written as JSON"),
    ],
)
def test_what_has_the_wrong_type_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        jobs("test_vit", **changes)


def test_one_name_is_no_list_of_names(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="names must be a list of strings, got the string"):
        sweep("test_vit", output=tmp_path / "rows.jsonl")
    assert list(tmp_path.iterdir()) == []
