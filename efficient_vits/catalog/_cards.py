"""Model cards: the packaged table, and the cards of models that follow from its rows."""

import csv
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from efficient_vits.catalog._weights import PublishedWeights, weights

AXES = {
    "attention": "token mixing",
    "reduction": "token sequence",
    "mlp": "MLP block",
}


@dataclass(frozen=True)
class Paper:
    """Where a mechanism was published.

    Attributes:
        title: Title of the paper.
        first_author: Family name of its first author.
        venue: Where and when it appeared, such as ``ICLR 2023``.
        year: Year in which it became public.
        arxiv: Its number on arXiv; empty where it is not there.
    """

    title: str
    first_author: str
    venue: str
    year: int
    arxiv: str = ""


@dataclass(frozen=True)
class ModelCard:
    """What is known about a model.

    Attributes:
        name: Name in timm's registry.
        axis: What it changes in a ViT: ``token mixing``, ``token sequence``, ``MLP block``, or
            ``baseline``.
        taxonomy_class: The benchmark's class; empty for what it does not classify.
        paper: Its source; None where nobody said.
        built_on: ``efficient_vits`` or ``timm``: whose implementation it is.
        paper_model: Name in the benchmark's tables; empty for what it did not run.
        img_size: Pixels of height and width at which the figures hold.
        params: Parameters at 1000 classes, as published; None where the benchmark has no figure.
        flops: FLOPs per image, a multiply-add being one, as published; None likewise.
        reference_args: Arguments that make the model the one the benchmark ran.
        reference_name: Name in the benchmark's code.
        authors_code: GitHub repository of the authors' code; empty where none was found.
        licence: SPDX identifier of that code's licence, ``none`` where it has none, empty where
            unknown. This package's own code is Apache-2.0 throughout.
        note: What else one should know.
        weights: Weights that somebody published for it, the preferred ones first.
        no_weights: Where there are none, why not.
        warm_start: Name in timm, with its tag, of the nearest published weights to start from with
            `efficient_vits.warm_start`; empty where nothing published has its parts.
    """

    name: str
    axis: str
    taxonomy_class: str = ""
    paper: Paper | None = None
    built_on: str = "efficient_vits"
    paper_model: str = ""
    img_size: int = 224
    params: int | None = None
    flops: int | None = None
    reference_args: Mapping[str, Any] = field(default_factory=dict)
    reference_name: str = ""
    authors_code: str = ""
    licence: str = ""
    note: str = ""
    weights: tuple[PublishedWeights, ...] = ()
    no_weights: str = ""
    warm_start: str = ""

    @property
    def year(self) -> int | None:
        return None if self.paper is None else self.paper.year


def _read(row: Mapping[str, str]) -> ModelCard:
    return ModelCard(
        name=row["name"],
        axis=row["axis"],
        taxonomy_class=row["taxonomy_class"],
        paper=Paper(
            row["paper_title"], row["first_author"], row["venue"], int(row["year"]), row["arxiv"]
        ),
        built_on=row["built_on"],
        paper_model=row["paper_model"],
        img_size=int(row["img_size"]),
        params=int(row["params"]) if row["params"] else None,
        flops=int(row["flops"]) if row["flops"] else None,
        reference_args=json.loads(row["reference_args"] or "{}"),
        reference_name=row["reference_name"],
        authors_code=row["authors_code"],
        licence=row["licence"],
        note=row["note"],
        weights=weights().get(row["name"], ()),
        no_weights=row["no_weights"],
        warm_start=row["warm_start"],
    )


@functools.cache
def cards() -> dict[str, ModelCard]:
    """All cards by name; registration of variants adds to it."""
    table = resources.files(__package__).joinpath("models.csv").read_text(encoding="utf-8")
    return {row["name"]: _read(row) for row in csv.DictReader(table.splitlines())}


def derive(
    name: str,
    *,
    axis: str,
    relatives: Sequence[str],
    paper: Paper | None = None,
    img_size: int | None = None,
    stands_in_for: str = "",
    warm_start: str = "",
) -> None:
    """Make sure that `name` has a card: its own, or one after the first relative that has.

    What is particular to the relative (its figures, its row in the benchmark, notes) stays there.

    Args:
        name: Model name.
        axis: The registry it comes from.
        relatives: Names of variants of the same mechanism, nearest first.
        paper: Source of a mechanism that the packaged table does not know.
        img_size: Pixels of height and width; None for those of the relative, or 224 without one.
        stands_in_for: Name of a model whose published weights are right for this one as they are.
        warm_start: Name in timm of the nearest published weights.
    """
    table = cards()
    published = weights().get(name, ()) + weights().get(stands_in_for, ())
    if name in table:
        table[name] = dataclasses.replace(
            table[name], weights=published, warm_start=warm_start or table[name].warm_start
        )
        return
    known = next((table[other] for other in relatives if other in table), None)
    if known is None:
        known = ModelCard(name=name, axis=AXES[axis], paper=paper)
    table[name] = dataclasses.replace(
        known,
        name=name,
        img_size=img_size or known.img_size,
        paper_model="",
        params=None,
        flops=None,
        reference_args={},
        reference_name="",
        note="",
        weights=published,
        no_weights="" if published else known.no_weights or "no weights of this size were found",
        warm_start=warm_start,
    )
