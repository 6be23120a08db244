"""Tables of the page on short trainings, made from the runs beside it when the page is built.

The directive ``learning-table`` stands for one of `TABLES`.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from generated_results import ResultsTable, markdown
from sphinx.application import Sphinx

from efficient_vits import catalog

ROWS = Path(__file__).parent / "data" / "convergence.jsonl"
SHORT, WHOLE, CUT = 30, 90, 10  # epochs
RATE = 3e-3  # the preset's
HALTING = (2, 3, 6, 12)  # blocks, of twelve

# What the benchmark could not train, did not, or got no result from that satisfied it.
UNTRAINED = ("performer", "linear", "reformer", "halonet", "avit", "gtp")

Runs = dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]]


def runs(**settings: Any) -> Runs:
    """The seeds' rows under these changes of the recipe, by model and what was taken from it."""
    found: Runs = defaultdict(list)
    for row in _rows():
        if row["settings"] == settings:
            found[row["model"], tuple(row["without"])].append(row)
    return found


def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


def accuracy(rows: Iterable[dict[str, Any]], epoch: int) -> str:
    """Mean over the seeds whose run is that long, and their range."""
    seeds = [row["top1"][epoch - 1] for row in rows if len(row["top1"]) >= epoch]
    if not seeds:
        return ""
    spread = f", {min(seeds):.1f} to {max(seeds):.1f}" if len(seeds) > 1 else ""
    return f"{mean(seeds):.1f} % ({len(seeds)} seed{'s' * (len(seeds) > 1)}{spread})"


def classes() -> str:
    """Accuracy after the short training, by taxonomy class."""
    whole = {name: rows for (name, without), rows in runs().items() if not without}
    cards = sorted((catalog.cards()[name] for name in whole), key=_place)
    return markdown(
        ("class", "model", f"after {SHORT} epochs"),
        (
            (card.taxonomy_class, _name(whole[card.name][0]), accuracy(whole[card.name], SHORT))
            for card in cards
            if accuracy(whole[card.name], SHORT)
        ),
    )


def _place(card: Any) -> tuple[int, str, str]:
    axes = ["baseline", *catalog.AXES.values()]
    return axes.index(card.axis), card.taxonomy_class, card.name


def untrained() -> str:
    """The models that the benchmark could not train."""
    rows = []
    for (name, without), seeds in sorted(runs().items()):
        if name.startswith(UNTRAINED) and not without:
            tokens = [max(row["largest_token"]) for row in seeds]
            gradients = [norm for row in seeds for block in row["gradients"] for norm in block]
            normalisers = [row["smallest_normaliser"] for row in seeds]
            rows.append(
                (
                    _name(seeds[0]),
                    accuracy(seeds, SHORT),
                    accuracy(seeds, WHOLE),
                    f"{max(tokens):.0f}",
                    f"{min(gradients):.1g} to {max(gradients):.2g}",
                    "" if None in normalisers else f"{min(normalisers):.2g}",
                )
            )
    return markdown(
        (
            "model",
            f"after {SHORT} epochs",
            f"after all {WHOLE}",
            "largest token",
            "gradient of a block",
            "smallest normaliser",
        ),
        rows,
    )


def clipping() -> str:
    """Runs with and without clipping of the gradients."""
    clipped, rows = runs(), []
    for key, unclipped in sorted(runs(clip_grad=None).items()):
        for label, seeds in (("at norm 1", clipped[key]), ("none", unclipped)):
            rows.append(
                (
                    _name(seeds[0]),
                    label,
                    accuracy(seeds, SHORT),
                    accuracy(seeds, WHOLE),
                    _largest_gradient(seeds),
                )
            )
    header = ("model", "clipping", f"after {SHORT} epochs", f"after all {WHOLE}")
    return markdown((*header, "largest gradient of a block"), rows)


def _largest_gradient(rows: Iterable[dict[str, Any]]) -> str:
    return f"{max(norm for row in rows for block in row['gradients'] for norm in block):.2g}"


def halting() -> str:
    """A-ViT's accuracy and tokens at several learning rates, at the end of its runs."""
    rows = []
    smaller = {row["settings"]["lr"] for row in _rows() if "lr" in row["settings"]}
    for rate in sorted({RATE, *smaller}, reverse=True):
        settings = {} if rate == RATE else {"lr": rate}
        found = runs(**settings)["avit_ti16", ()]
        for epochs in sorted({len(row["top1"]) for row in found}):
            seeds = [row for row in found if len(row["top1"]) == epochs]
            tokens = [[row["tokens"][block - 1] for row in seeds] for block in HALTING]
            rows.append(
                (
                    f"{rate:g}",
                    str(epochs),
                    accuracy(seeds, epochs),
                    *(", ".join(f"{count:.1f}" for count in block) for block in tokens),
                )
            )
    blocks = [f"tokens before block {block}" for block in HALTING]
    return markdown(("learning rate", "epochs", "top-1", *blocks), rows)


def halonet() -> str:
    """HaloNet without what the benchmark's code lacked."""
    rows = []
    for (name, without), seeds in sorted(runs().items(), key=lambda entry: len(entry[0][1])):
        if name == "halonet_h0":
            losses = [row["losses"]["task"][CUT - 1] for row in seeds]
            rows.append(
                (
                    " and ".join(without) or "nothing",
                    accuracy(seeds, CUT),
                    f"{mean(losses):.2f}",
                )
            )
    return markdown(("taken away", f"after {CUT} epochs", "loss"), rows)


def _name(row: dict[str, Any]) -> str:
    return f"`{row['model']}`" + (", cut" if row["arguments"] else "")


TABLES: dict[str, Callable[[], str]] = {
    "classes": classes,
    "untrained": untrained,
    "clipping": clipping,
    "halting": halting,
    "halonet": halonet,
}


class LearningTable(ResultsTable):
    """``learning-table``: the table of TABLES that its argument names."""

    tables = TABLES


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("learning-table", LearningTable)
    return {"parallel_read_safe": True}
