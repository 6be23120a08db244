"""Published weights: the packaged table of what exists, where, and under which licence."""

import csv
import functools
from dataclasses import dataclass
from importlib import resources

HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that somebody published for a model, or for one that it can stand in for.

    Attributes:
        tag: What `timm.create_model` knows them by, after the model's name and a dot; empty where
            they can only be fetched by hand, and then go through `efficient_vits.load_weights`.
        source: A repository on the Hub, with the file's name after ``:`` where it has a name of its
            own, or the address of a file or a page that has it.
        layout: Whose parameter names the file has, as `efficient_vits.weights.Loaded` says it.
        licence: SPDX identifier, ``none`` where the authors state none.
        top1: ImageNet-1k accuracy in %, as the publisher states it; None where they state none.
        arguments: What the model needs so that these weights are right, as keyword arguments.
        note: What else one should know.
    """

    tag: str
    source: str
    layout: str
    licence: str
    top1: float | None = None
    arguments: str = ""
    note: str = ""

    @property
    def address(self) -> str:
        """Where a browser finds them."""
        return self.source if "://" in self.source else HUB + self.source.partition(":")[0]

    @property
    def hub_id(self) -> str:
        """Repository on the Hub; empty for what lies elsewhere."""
        return "" if "://" in self.source else self.source.partition(":")[0]

    @property
    def hub_filename(self) -> str:
        """Name of the file in it, where it is not the usual one."""
        return "" if "://" in self.source else self.source.partition(":")[2]


@functools.cache
def weights() -> dict[str, tuple[PublishedWeights, ...]]:
    """All published weights by model name, in the order of preference."""
    table = resources.files(__package__).joinpath("weights.csv").read_text(encoding="utf-8")
    found: dict[str, tuple[PublishedWeights, ...]] = {}
    for row in csv.DictReader(table.splitlines()):
        entry = PublishedWeights(
            tag=row["tag"],
            source=row["source"],
            layout=row["layout"],
            licence=row["licence"],
            top1=float(row["top1"]) if row["top1"] else None,
            arguments=row["arguments"],
            note=row["note"],
        )
        found[row["name"]] = (*found.get(row["name"], ()), entry)
    return found
