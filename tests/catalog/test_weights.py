"""What the catalog says about published weights: complete, consistent, and loadable as it says."""

import dataclasses
import re

import pytest
import timm

from efficient_vits._layouts import LAYOUTS
from efficient_vits.catalog import cards, is_available, published_weights
from efficient_vits.catalog._weights import PublishedWeights, weights

# The SPDX identifiers that occur, AML being Apple's licence for its models.
LICENCES = {
    *("Apache-2.0", "MIT", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "AML", "none"),
}
BENCHMARK = [name for name, card in cards().items() if card.paper_model]
ENTRIES = [(name, entry) for name in weights() for entry in weights()[name]]


def faults(entry: PublishedWeights) -> list[str]:
    """Fields that cannot be right."""
    found = []
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w./-]+)?", entry.source)
    if not hub and not re.fullmatch(r"https://[\w.-]+/\S+", entry.source):
        found.append("source")
    if entry.layout not in {*LAYOUTS, "timm"}:
        found.append("layout")
    if entry.licence not in LICENCES:
        found.append("licence")
    if "NC" in entry.licence and (entry.tag or "commercial" not in entry.note):
        found.append("tag")  # nobody gets these without having read so
    if entry.top1 is not None and not 60 < entry.top1 < 95:
        found.append("top1")
    if entry.tag and not re.fullmatch(r"[a-z0-9_]+", entry.tag):
        found.append("tag")
    return found


@pytest.mark.parametrize(("name", "entry"), ENTRIES, ids=lambda x: getattr(x, "source", x))
def test_an_entry_is_complete(name, entry):
    assert is_available(name)
    assert faults(entry) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", "vit_small"),
        ("source", "http://insecure.org/x.pth"),
        ("layout", "theirs"),
        ("licence", "unknown"),
        ("licence", "CC-BY-NC-4.0"),
        ("top1", 8.14),
        ("tag", "In1k"),
    ],
)
def test_a_wrong_entry_is_found(field, value):
    right = weights()["vit_s16"][0]
    assert faults(right) == []
    assert faults(dataclasses.replace(right, **{field: value})) in ([field], ["tag"])


def test_every_model_of_the_benchmark_has_weights_or_the_reason_why_not():
    assert len(BENCHMARK) == 53
    for name, card in cards().items():
        if is_available(name):
            assert bool(card.weights) != bool(card.no_weights), name
            assert card.weights == published_weights(name)


@pytest.mark.parametrize("name", BENCHMARK)
def test_what_timm_has_of_its_own_is_there(name):
    """Under timm's own names the tags are timm's; one of them is in the table."""
    card = cards()[name]
    tags = {full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")}
    assert {entry.tag for entry in card.weights if entry.tag} <= tags
    assert bool(tags) == any(entry.tag for entry in card.weights)


def test_other_sizes_have_their_own_weights_or_their_own_reason():
    assert cards()["cvt_21"].weights[0].source == "microsoft/cvt-21"
    assert cards()["hydra_ti16"].no_weights == cards()["hydra_s16"].no_weights
    assert cards()["slab_b16"].no_weights == "no weights of this size were found"
    assert cards()["hydra_b16"].warm_start == "vit_base_patch16_224.augreg_in21k_ft_in1k"
    assert {e.tag for e in cards()["tome_b16_r13"].weights} == {
        e.tag for e in cards()["vit_b16"].weights
    }


@pytest.mark.parametrize("name", sorted({c.warm_start for c in cards().values()} - {""}))
def test_the_nearest_weights_are_published_ones_of_timm(name):
    assert timm.get_pretrained_cfg(name).hf_hub_id == f"timm/{name}"
