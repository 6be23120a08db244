"""The model card that goes with weights to the Hub."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import timm
from huggingface_hub import ModelCardData

from efficient_vits import attention, catalog, mlp, reduction

if TYPE_CHECKING:
    from efficient_vits.efficiency import Measurement

BENCHMARK = """\
@misc{nauen2023transformer,
  title={Which Transformer to Favor: A Comparative Analysis of Efficiency in Vision Transformers},
  author={Nauen, Tobias Christian and Palacio, Sebastian and Raue, Federico and Dengel, Andreas},
  year={2023},
  eprint={2308.09372},
  archivePrefix={arXiv},
}"""

Recipe = str | Mapping[str, Any]


def card_text(
    repo_id: str,
    config: Mapping[str, Any],
    *,
    measurement: "Measurement | None" = None,
    recipe: Recipe | None = None,
    licence: str | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """A model card in Markdown, with the front matter that the Hub reads.

    Args:
        repo_id: Repository that it is for.
        config: Content of ``config.json``.
        measurement: What the model costs; its table is left out without.
        recipe: How it was trained, in words or as settings and values.
        licence: Licence of the weights, as the Hub calls it (``apache-2.0``).
        datasets: What it was trained on, as the Hub calls it (``imagenet-1k``).
    """
    architecture = config["architecture"]
    ours = bool(timm.list_models(architecture, module="efficient_vits"))
    about = sources(architecture, config.get("model_args", {}))
    data = ModelCardData(
        license=licence,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "efficient-vits", *_classes(about)],
        datasets=list(datasets) or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {repo_id}",
        f"An image classifier, timm's `{architecture}`, for {config['num_classes']} classes.",
        _arguments(config.get("model_args", {})),
        "## Mechanism",
        _taxonomy(about),
        "## Training",
        _recipe(recipe),
        f"Data: {', '.join(datasets) or 'not stated'}.",
        *(["## Efficiency", _efficiency(measurement)] if measurement else []),
        "## Use",
        _usage(repo_id, config, ours),
        "## Licence",
        _licence(licence, about),
        "## Citation",
        *(f"```bibtex\n{entry}\n```" for entry in [*_papers(about), BENCHMARK]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def sources(architecture: str, arguments: Mapping[str, Any]) -> list[catalog.ModelCard]:
    """The catalog's cards of a model: its own, and those of mechanisms that arguments name."""
    names = [architecture]
    for axis, known in (
        ("attention", attention.list_attentions()),
        ("reduction", reduction.list_reductions()),
        ("mlp", mlp.list_mlps()),
    ):
        given = arguments.get(axis)
        for name in given if isinstance(given, list | tuple) else [given]:
            if name in known:
                names += [n for n in catalog.cards() if n.startswith(f"{name}_s16")][:1]
    found = [catalog.cards()[name] for name in dict.fromkeys(names) if name in catalog.cards()]
    return list({card.paper or card.name: card for card in reversed(found)}.values())[::-1]


def _classes(about: Iterable[catalog.ModelCard]) -> list[str]:
    return list(dict.fromkeys(card.axis.lower().replace(" ", "-") for card in about))


def _arguments(arguments: Mapping[str, Any]) -> str:
    if not arguments:
        return ""
    return "Arguments of the model: " + ", ".join(f"`{k}={v!r}`" for k, v in arguments.items())


def _taxonomy(about: Sequence[catalog.ModelCard]) -> str:
    if not about:
        return "The catalog of `efficient_vits` does not know this model."
    lines = ["| changes | class | paper |", "|---|---|---|"]
    for card in about:
        paper = "-"
        if card.paper:
            link = f" ([arXiv {card.paper.arxiv}](https://arxiv.org/abs/{card.paper.arxiv}))"
            paper = f"{card.paper.title}, {card.paper.venue}{link if card.paper.arxiv else ''}"
        lines.append(f"| {card.axis} | {card.taxonomy_class or '-'} | {paper} |")
    return "\n".join(lines)


def _recipe(recipe: Recipe | None) -> str:
    if recipe is None:
        return "The recipe is not stated."
    if isinstance(recipe, str):
        return recipe
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in recipe.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _efficiency(measurement: "Measurement") -> str:
    size = " x ".join(map(str, measurement.input_size))
    rows = [
        ("input", f"{size}, {measurement.dtype}"),
        ("parameters", f"{measurement.parameters / 1e6:.2f} M"),
        ("FLOPs", f"{measurement.flops.total / 1e9:.3f} G per image (a multiply-add is one)"),
        ("MACs", f"{measurement.flops.macs / 1e9:.3f} G per image"),
    ]
    if measurement.memory:
        use = measurement.memory
        rows.append(
            ("memory", f"{use.peak_bytes / 2**20:.1f} MiB at batch {use.batch_size}, {use.device}")
        )
    if measurement.throughput:
        speed = measurement.throughput
        text = f"{speed.images_per_second:.1f} images/s at batch {speed.batch_size}, {speed.device}"
        rows.append(("throughput", text))
    if measurement.transform:
        rows.append(("measured after", measurement.transform))
    facts = measurement.environment
    machine = str(facts.get("device", facts["cpu"]))
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "timm", "efficient_vits"))
    table = [f"| {name} | {_cell(value)} |" for name, value in rows]
    return "\n".join(
        ["| figure | value |", "|---|---|", *table, "", f"Measured on {machine}; {versions}."]
    )


def _usage(repo_id: str, config: Mapping[str, Any], ours: bool) -> str:
    more = "import efficient_vits  # registers the architecture\n" if ours else ""
    needs = "The architecture is one of the package `efficient_vits`.\n\n" if ours else ""
    return (
        f"{needs}```python\nimport timm\n{more}\n"
        f'model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()\n'
        f"data_config = timm.data.resolve_model_data_config(model)\n"
        f"transform = timm.data.create_transform(**data_config)\n```"
    )


def _licence(licence: str | None, about: Sequence[catalog.ModelCard]) -> str:
    lines = [f"Weights: {licence}." if licence else "No licence of the weights is stated."]
    lines += [
        f"The authors' code of this mechanism, [{card.authors_code}]"
        f"(https://github.com/{card.authors_code}), has the licence {card.licence or 'unknown'}."
        for card in about
        if card.authors_code
    ]
    return " ".join(lines)


def _papers(about: Sequence[catalog.ModelCard]) -> list[str]:
    papers = dict.fromkeys(card.paper for card in about if card.paper)
    return [
        f"@misc{{{paper.first_author.lower().replace(' ', '')}{paper.year},\n"
        f"  title={{{paper.title}}},\n"
        f"  author={{{paper.first_author} and others}},\n"
        f"  year={{{paper.year}}},\n"
        f"  note={{{paper.venue}}},\n"
        + (f"  eprint={{{paper.arxiv}}},\n  archivePrefix={{arXiv}},\n" if paper.arxiv else "")
        + "}"
        for paper in papers
    ]


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", r"\|")
