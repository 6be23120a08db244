from collections.abc import Callable
from typing import Any

import pytest
import timm

from efficient_vits.catalog import ModelCard, cards, is_available


def lines(out: str) -> dict[str, str]:
    rows = [line.split("  ", 1) for line in out.splitlines()[1:]]
    return {label: text.strip() for label, text in rows}


def test_the_card(run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = run("info", "hydra_s16")
    assert (status, err) == (0, "")
    assert out.startswith("hydra_s16\n")
    shown = lines(out)
    assert shown["paper"] == "Hydra Attention: Efficient Attention with Many Heads"
    assert shown["arXiv"] == "https://arxiv.org/abs/2209.07484"
    assert shown["parameters"] == "22.06 M (published)"
    assert shown["FLOPs"].startswith("4.288 G at 224x224")
    assert shown["registered here"] == "yes"
    assert shown["pretrained"] == "none"
    assert shown["as benchmarked"].endswith('timm.create_model("hydra_s16")')


def test_arguments_and_tags(run: Callable[..., tuple[int, str, str]]) -> None:
    shown = lines(run("info", "efficientformerv2_s0")[1])
    assert shown["as benchmarked"].endswith("distillation=False)")
    assert shown["parameters"] == "3.42 M (published), 3.60 M (counted, without arguments)"
    assert shown["pretrained"] == "efficientformerv2_s0.snap_dist_in1k"


def test_a_size_that_the_benchmark_did_not_run(run: Callable[..., tuple[int, str, str]]) -> None:
    shown = lines(run("info", "hydra_ti16")[1])
    assert shown["parameters"] == "5.72 M (counted, without arguments)"
    assert shown["FLOPs"] == shown["as benchmarked"] == "-"


def test_a_model_of_a_later_version(
    run: Callable[..., tuple[int, str, str]],
    run_json: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    future = ModelCard("future_s16", axis="token mixing", params=1_000_000)
    monkeypatch.setitem(cards(), "future_s16", future)
    shown = lines(run("info", "future_s16")[1])
    assert shown["registered here"] == "not in this version"
    assert shown["parameters"] == "1.00 M (published)"
    assert shown["paper"] == "-"
    card = run_json("info", "future_s16")
    assert (card["registered"], card["parameters"], card["paper"]) == (False, None, None)


def test_json(run_json: Callable[..., Any]) -> None:
    card = run_json("info", "resnet50")
    assert card["paper"]["first_author"] == "He"
    assert card["registered"] is is_available("resnet50") is True
    assert card["parameters"] == card["params"] == 25_557_032
    assert card["pretrained"] == timm.list_pretrained("resnet50")
    assert "resnet50.a1_in1k" in card["pretrained"]


def test_an_unknown_name(refused: Callable[..., str]) -> None:
    line = refused("info", "hydra_s61")
    assert "'hydra_s61'" in line
    assert "hydra_s16" in line


def weights(out: str) -> list[str]:
    return [line.split("  ", 1)[1].strip() for line in out.splitlines() if line[:9] == "weights  "]


def test_weights_by_tag_and_by_hand(run: Callable[..., tuple[int, str, str]]) -> None:
    by_tag = weights(run("info", "vit_s16")[1])
    assert by_tag[0].startswith("vit_s16.augreg_in21k_ft_in1k: https://huggingface.co/timm/vit_")
    assert "licence Apache-2.0; 81.402 % top-1; layout timm ViT" in by_tag[0]
    (by_hand,) = weights(run("info", "wavevit_s")[1])
    assert by_hand.startswith("https://drive.google.com/")
    assert by_hand.endswith("by hand; with token_label=True")


def test_no_weights_and_what_is_nearest(run: Callable[..., tuple[int, str, str]]) -> None:
    out = run("info", "hydra_s16")[1]
    assert weights(out) == ["none: the authors released none"]
    assert lines(out)["warm start"] == "vit_small_patch16_224.augreg_in21k_ft_in1k"


def test_weights_in_json(run_json: Callable[..., Any]) -> None:
    card = run_json("info", "slab_s16")
    assert [entry["licence"] for entry in card["weights"]] == ["none"]
    assert card["no_weights"] == ""
