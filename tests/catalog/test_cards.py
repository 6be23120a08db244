"""The cards are complete, consistent, and agree with the models they describe."""

import csv
import json
import re
import warnings
from importlib import resources

import pytest
import timm

import efficient_vits
from efficient_vits import catalog
from efficient_vits.catalog import ModelCard, Paper

OURS = timm.list_models(module="efficient_vits")
AXES = {"baseline", "token mixing", "token sequence", "MLP block"}

# The benchmark's classes, each on the axis that it changes.
TAXONOMY = {
    "Baseline": "baseline",
    "Baseline (ResNet)": "baseline",
    "Low-Rank Attention": "token mixing",
    "Sparse Attention": "token mixing",
    "Fixed Attention": "token mixing",
    "Kernel Attention": "token mixing",
    "Hybrid Attention": "token mixing",
    "Non-Attention Shuffling": "token mixing",
    "Fourier Attention": "token mixing",
    "Token Removal": "token sequence",
    "Token Merging": "token sequence",
    "Summary Tokens": "token sequence",
    "More MLPs": "MLP block",
}


def rows():
    table = resources.files("efficient_vits.catalog").joinpath("models.csv")
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def faults(row):
    """Columns of a row whose value cannot be right."""
    found = []
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", row["name"]):
        found.append("name")
    if row["axis"] not in AXES:
        found.append("axis")
    if TAXONOMY.get(row["taxonomy_class"]) != row["axis"]:
        found.append("taxonomy_class")
    if row["built_on"] not in {"efficient_vits", "timm"}:
        found.append("built_on")
    for column in ("paper_model", "paper_title", "first_author", "venue"):
        if not row[column].strip() or row[column] != row[column].strip():
            found.append(column)
    # arXiv numbers begin with the year and the month; a paper is not printed before.
    if not re.fullmatch(r"\d{2}(0[1-9]|1[0-2])\.\d{4,5}", row["arxiv"]):
        found.append("arxiv")
    elif int("20" + row["arxiv"][:2]) > int(row["year"]):
        found.append("year")
    printed = re.search(r" (\d{4})$", row["venue"])
    if printed is None or int(printed[1]) < int(row["year"]):
        found.append("venue")
    if not 32 <= int(row["img_size"]) <= 1024:
        found.append("img_size")
    for column, least, most in (("params", 1e6, 1e9), ("flops", 1e8, 1e11)):
        if row[column] and not least < int(row[column]) < most:
            found.append(column)
    if not isinstance(json.loads(row["reference_args"] or "{}"), dict):
        found.append("reference_args")
    if (row["params"] or row["flops"]) and not row["reference_name"]:
        found.append("reference_name")
    if row["authors_code"] and not re.fullmatch(r"[\w.-]+/[\w.-]+", row["authors_code"]):
        found.append("authors_code")
    if row["licence"] and not row["authors_code"]:
        found.append("licence")
    return found


def test_the_table_has_the_53_models_of_the_benchmark():
    names = [row["name"] for row in rows()]
    assert len(names) == 53
    assert len(set(names)) == 53


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["name"])
def test_a_row_is_complete_and_consistent(row):
    assert faults(row) == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("name", "Hydra-S/16"),
        ("axis", "attention"),
        ("taxonomy_class", "Token Merging"),
        ("built_on", "us"),
        ("paper_title", ""),
        ("first_author", "Bolya "),
        ("arxiv", "2213.07484"),
        ("year", "2021"),
        ("venue", "ECCV Workshops"),
        ("venue", "ECCV 2021"),
        ("img_size", "22"),
        ("params", "22"),
        ("flops", "4.6"),
        ("reference_args", "[]"),
        ("reference_name", ""),
        ("authors_code", "https://github.com/a/b"),
    ],
)
def test_a_wrong_cell_is_found(column, value):
    row = next(row for row in rows() if row["name"] == "hydra_s16")
    try:
        found = faults({**row, column: value})
    except ValueError:
        return
    assert column in found


def test_one_paper_has_one_description():
    papers = {}
    for row in rows():
        paper = (
            row["paper_title"],
            row["first_author"],
            row["venue"],
            row["authors_code"],
            row["licence"],
        )
        assert papers.setdefault(row["arxiv"], paper) == paper


def test_a_card_says_what_its_row_says():
    assert efficient_vits.model_card("evit_fuse_s16") == ModelCard(
        name="evit_fuse_s16",
        axis="token sequence",
        taxonomy_class="Token Merging",
        paper=Paper(
            title="Not All Patches are What You Need: Expediting Vision Transformers via Token "
            "Reorganizations",
            first_author="Liang",
            venue="ICLR 2022",
            year=2022,
            arxiv="2202.07800",
        ),
        built_on="efficient_vits",
        paper_model="EViT Fuse-S/16",
        img_size=224,
        params=22050664,
        flops=3064841151,
        reference_args={},
        reference_name="evit_small_patch16_fuse",
        authors_code="youweiliang/evit",
        licence="Apache-2.0",
        note="as evit_s16, the dropped tokens fused into one",
        weights=catalog.published_weights("evit_fuse_s16"),
        warm_start="vit_small_patch16_224.augreg_in21k_ft_in1k",
    )
    assert efficient_vits.model_card("efficientmod_s").reference_args == {
        "embed_dim": [32, 64, 128, 256]
    }
    assert efficient_vits.model_card("halonet_h0").params is None


@pytest.mark.parametrize("name", OURS)
def test_every_registered_model_has_a_card_with_its_source(name):
    card = efficient_vits.model_card(name)
    assert card.name == name
    assert card.built_on in {"efficient_vits", "timm"}
    assert isinstance(card.paper, Paper)
    assert card.paper.title
    assert card.paper.first_author
    assert card.year == card.paper.year > 2014
    # Empty where the benchmark has no relative of the model.
    assert TAXONOMY.get(card.taxonomy_class, "") == (card.taxonomy_class and card.axis)


def test_a_derived_card_may_have_an_image_size_of_its_own():
    card, relative = (efficient_vits.model_card(name) for name in ("cvt_w24", "cvt_13"))
    assert (card.img_size, relative.img_size) == (384, 224)
    assert card.paper == relative.paper
    assert efficient_vits.model_card("cvt_21").img_size == 224
    for name in timm.list_models(module="efficient_vits"):
        size = timm.get_pretrained_cfg(name).input_size
        assert efficient_vits.model_card(name).img_size == size[-1], name


def test_cards_of_other_sizes_have_no_figures_of_their_relatives():
    published = {row["name"] for row in rows()}
    derived = [card for name, card in catalog.cards().items() if name not in published]
    assert {"hydra_l16", "deit_b16", "switch8_ti16"} <= {card.name for card in derived}
    for card in derived:
        assert card.params is None
        assert card.flops is None
        assert card.paper_model == card.reference_name == card.note == ""
        assert card.reference_args == {}


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        ("hydra_l16", "hydra_s16"),
        ("vit_l16", "vit_s16"),
        ("deit_b16", "deit_s16"),
        ("tome_s16_r13", "tome_s16_r8"),
        ("switch8_b16", "switch8_s16"),
    ],
)
def test_cards_of_other_sizes_have_the_source_of_their_relatives(name, relative):
    card, other = efficient_vits.model_card(name), efficient_vits.model_card(relative)
    for field in (
        "axis",
        "taxonomy_class",
        "paper",
        "built_on",
        "authors_code",
        "licence",
        "img_size",
    ):
        assert getattr(card, field) == getattr(other, field), field


def available(built_on):
    return [
        name
        for name, card in catalog.cards().items()
        if card.built_on == built_on and card.params is not None and catalog.is_available(name)
    ]


@pytest.mark.parametrize("name", available("efficient_vits"))
def test_published_parameters_are_those_of_the_model(name):
    card = efficient_vits.model_card(name)
    model = timm.create_model(name, device="meta", **card.reference_args)
    assert sum(p.numel() for p in model.parameters()) == card.params


def test_parameters_of_models_without_figures_are_counted():
    # Twelve blocks of 12 C^2 + 15 C with two LayerScales; stem, position, class token, norm, head.
    def vit(dim, depth):
        block = 12 * dim**2 + 13 * dim + 2 * dim
        return depth * block + 768 * dim + dim + 196 * dim + dim + 2 * dim + 1000 * (dim + 1)

    assert vit(384, 12) == efficient_vits.model_card("vit_s16").params
    assert catalog.count_parameters_of("vit_s16") == vit(384, 12)
    assert efficient_vits.model_card("vit_l16").params is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert catalog.count_parameters_of("vit_l16") == vit(1024, 24)


def test_an_unknown_model_is_answered_with_near_names():
    with pytest.raises(ValueError, match=r"no model 'hydra_s61'.*hydra_s16"):
        efficient_vits.model_card("hydra_s61")
    with pytest.raises(ValueError, match=r"'zzzzzz'.*see efficient_vits\.list_models\(\)"):
        efficient_vits.model_card("zzzzzz")
