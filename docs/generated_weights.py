"""The table of published weights on the weights page, made from the catalog."""

from efficient_vits import ModelCard, catalog
from efficient_vits.catalog import PublishedWeights

HEADER = (
    "| model | tag | where | layout | licence | top-1 | with | note |",
    "|---|---|---|---|---|---:|---|---|",
)


def lines() -> list[str]:
    """The rows of the page's two tables: weights, then models of the benchmark without any."""
    cards = catalog.cards().values()
    # Models that stand on the weights of another are told of in the text.
    own = [(card, entry) for card in cards for entry in card.weights if not _is_lent(card, entry)]
    without = [card for card in cards if card.paper_model and card.no_weights]
    return [
        *HEADER,
        *(_row(card, entry) for card, entry in own),
        "",
        "| model of the benchmark without weights | why | nearest beginning |",
        "|---|---|---|",
        *(
            f"| `{card.name}` | {card.no_weights} | {_code(card.warm_start)} |"
            for card in sorted(without, key=lambda card: card.name)
        ),
    ]


def _is_lent(card: ModelCard, entry: PublishedWeights) -> bool:
    reductions = ("tome_", "evit_", "gtp_")
    return card.name.startswith(reductions) and entry.hub_id.startswith("timm/")


def _row(card: ModelCard, entry: PublishedWeights) -> str:
    place = entry.source if entry.hub_id else entry.source.split("/")[2]
    top1 = "" if entry.top1 is None else f"{entry.top1:g}"
    cells = [
        f"`{card.name}`",
        _code(entry.tag),
        f"[{place}]({entry.address})",
        entry.layout,
        entry.licence,
        top1,
        _code(entry.arguments),
        entry.note,
    ]
    return "| " + " | ".join(cells) + " |"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
