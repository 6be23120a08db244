import timm
import yaml

from efficient_vits.efficiency import Measurement, measure
from efficient_vits.weights._hub_card import card_text, sources

CONFIG = {"architecture": "hydra_ti16", "num_classes": 10, "model_args": {"img_size": [64, 64]}}


def front_matter(text: str) -> dict[str, object]:
    _, header, _ = text.split("---\n", 2)
    content: dict[str, object] = yaml.safe_load(header)
    return content


def measured() -> Measurement:
    model = timm.create_model("hydra_ti16", img_size=64, num_classes=10)
    return measure(model, throughput=False)


def test_the_header_that_the_hub_reads() -> None:
    text = card_text("org/model", CONFIG, licence="apache-2.0", datasets=["imagenet-1k"])
    assert front_matter(text) == {
        "license": "apache-2.0",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "efficient-vits", "token-mixing"],
        "datasets": ["imagenet-1k"],
    }


def test_what_is_not_stated_is_not_made_up() -> None:
    text = card_text("org/model", CONFIG)
    assert front_matter(text).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "No licence of the weights is stated." in text
    assert "The recipe is not stated." in text
    assert "Data: not stated." in text
    assert "## Efficiency" not in text


def test_what_it_says() -> None:
    measurement = measured()
    text = card_text(
        "org/model",
        CONFIG,
        measurement=measurement,
        recipe={"epochs": 3, "loss": "a | b\nc"},
        licence="mit",
        datasets=["a/b", "c"],
    )
    for line in (
        "# org/model",
        "| token mixing | Kernel Attention | Hydra Attention: Efficient Attention with Many Heads, "
        "ECCV Workshops 2022 ([arXiv 2209.07484](https://arxiv.org/abs/2209.07484)) |",
        "| epochs | 3 |",
        r"| loss | a \| b c |",
        "Data: a/b, c.",
        f"| parameters | {measurement.parameters / 1e6:.2f} M |",
        f"| FLOPs | {measurement.flops.total / 1e9:.3f} G per image (a multiply-add is one) |",
        'model = timm.create_model("hf-hub:org/model", pretrained=True).eval()',
        "import efficient_vits  # registers the architecture",
        "  eprint={2209.07484},",
        "  eprint={2308.09372},",
    ):
        assert line in text.splitlines(), line
    assert "Weights: mit." in text


def test_mechanisms_that_arguments_name_are_cited() -> None:
    arguments = {"attention": "hydra", "reduction": ["tome", "evit"], "r": 4}
    about = sources("vit_s16", arguments)
    titles = [card.paper.title for card in about if card.paper]
    assert any("Hydra" in title for title in titles)
    assert any("Token Merging" in title for title in titles)
    assert any("reorganizations" in title.lower() for title in titles)
    assert len(titles) == len(set(titles)) == 4
    text = card_text("org/model", {**CONFIG, "architecture": "vit_s16", "model_args": arguments})
    assert "token-sequence" in str(front_matter(text)["tags"])
    assert "`reduction=['tome', 'evit']`" in text


def test_a_model_outside_the_catalog() -> None:
    config = {"architecture": "resnet10t", "num_classes": 3}
    text = card_text("org/model", config)
    assert "does not know this model" in text
    assert "import efficient_vits" not in text
    assert text.count("```bibtex") == 1
