from collections.abc import Callable
from typing import Any

import pytest
import timm

from efficient_vits.efficiency import count_flops

SMALL = ("--img-size", "64")
Run = Callable[..., tuple[int, str, str]]


def test_the_figures_are_those_of_count_flops(run_json: Callable[..., Any]) -> None:
    result = run_json("flops", "vit_ti16", *SMALL)
    expected = count_flops(timm.create_model("vit_ti16", img_size=64), (3, 64, 64))
    assert (result["name"], result["input_size"]) == ("vit_ti16", [3, 64, 64])
    assert result["total"] == expected.total
    assert result["by_kind"] == expected.by_kind
    assert result["by_module"]["children"][0]["name"] == "patch_embed"
    assert (result["backward"], result["training"]) == (None, False)


def test_the_tree(run: Run) -> None:
    count = count_flops(timm.create_model("vit_ti16", img_size=64), (3, 64, 64))
    total, macs = (f"{n / 1e9:.3f}" for n in (count.total, count.macs))
    status, out, err = run("flops", "vit_ti16", *SMALL, "--depth", "3")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["module", "class", "kind", "GFLOPs", "share"]
    assert lines[2].split() == ["(model)", "ComposableViT", "other", total, "100.0%"]
    assert lines[3].startswith("├─ patch_embed ")
    assert lines[4].startswith("│  └─ proj ")
    assert any(line.startswith("│  ├─ 0 ") for line in lines)
    assert any(line.startswith("│  │  ├─ attn ") for line in lines)
    assert not any("qkv" in line for line in lines)
    assert lines[-1].startswith(f"vit_ti16: {total} GFLOPs, {macs} GMACs, rules paper-1 per")
    assert "attn" not in run("flops", "vit_ti16", *SMALL)[1]


@pytest.mark.parametrize(("view", "first"), [("operator", "linear"), ("kind", "mlp")])
def test_the_parts(run: Run, view: str, first: str) -> None:
    _, out, _ = run("flops", "vit_ti16", *SMALL, "--by", view)
    header, _, row = out.splitlines()[:3]
    assert header.split() == [view, "GFLOPs", "share"]
    assert row.split()[0] == first


def test_training_has_a_backward_pass(run: Run, run_json: Callable[..., Any]) -> None:
    result = run_json("flops", "resnet26", *SMALL, "--training")
    assert result["training"] is True
    assert result["total"] == result["forward"] + result["backward"]
    assert "forward and" in run("flops", "resnet26", *SMALL, "--training")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vit_ti61",), "no model 'vit_ti61'"),
        (("vit_ti16", "--by", "size"), "--by 'size' is no view; accepted are module, operator"),
        (("vit_ti16", "--depth", "0"), "--depth '0' is no number"),
        (("vit_ti16", "--img-size", "65"), "multiples of its patch size"),
    ],
)
def test_mistakes_are_said_in_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = run("flops", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
