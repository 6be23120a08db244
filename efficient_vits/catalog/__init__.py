"""What each model is: paper, taxonomy, published figures, licence of the authors' code.

One card per model, from which lists, documentation and tests are made. Cards of the benchmark's
models lie in ``models.csv``; other sizes of their mechanisms, and mechanisms that other packages
register, get theirs at registration.
"""

import difflib
import fnmatch
import functools
import re
import warnings

import timm

from efficient_vits.catalog._cards import AXES, ModelCard, Paper, cards, derive
from efficient_vits.catalog._weights import PublishedWeights, weights

__all__ = [
    "AXES",
    "ModelCard",
    "Paper",
    "PublishedWeights",
    "cards",
    "count_parameters_of",
    "derive",
    "is_available",
    "list_models",
    "model_card",
    "published_weights",
]


def is_available(name: str) -> bool:
    """Whether `timm.create_model` builds the model in this version."""
    return bool(timm.is_model(name))


def model_card(name: str) -> ModelCard:
    """The card of a model.

    Raises:
        ValueError: No such model; the nearest names are listed.
    """
    try:
        return cards()[name]
    except KeyError:
        near = difflib.get_close_matches(name, cards(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see efficient_vits.list_models()"
        raise ValueError(f"no model {name!r} in the catalog; {hint}") from None


def published_weights(name: str) -> tuple[PublishedWeights, ...]:
    """Weights that somebody published for a model, also before it has a card."""
    card = cards().get(name)
    return weights().get(name, ()) if card is None else card.weights


def list_models(
    pattern: str = "*",
    *,
    axis: str | None = None,
    taxonomy: str | None = None,
    year: int | tuple[int, int] | None = None,
    max_params: int | None = None,
    built_on: str | None = None,
) -> list[str]:
    """Names of the models of this package that fulfil all conditions, sorted.

    Args:
        pattern: Shell pattern of the name, such as ``"hydra_*"``.
        axis: ``"token mixing"``, ``"token sequence"``, ``"MLP block"`` or ``"baseline"``.
        taxonomy: Part of the benchmark's class, in any case, such as ``"kernel"``.
        year: Year of the paper, or first and last year.
        max_params: Most parameters, at 1000 classes.
        built_on: ``"efficient_vits"`` or ``"timm"``.

    Raises:
        ValueError: A value that no model has; the accepted ones are listed.
    """
    chosen = [card for name, card in cards().items() if is_available(name)]
    _accepted("axis", axis, {card.axis for card in chosen})
    _accepted("built_on", built_on, {card.built_on for card in chosen})
    classes = {card.taxonomy_class for card in chosen}
    if taxonomy is not None and not any(taxonomy.lower() in c.lower() for c in classes):
        raise ValueError(
            f"no taxonomy class contains {taxonomy!r}; there are {', '.join(sorted(classes))}"
        )
    first, last = _years(year, {card.year for card in chosen if card.year is not None})
    names = (
        card.name
        for card in chosen
        if fnmatch.fnmatch(card.name, pattern)
        and (axis is None or card.axis == axis)
        and (built_on is None or card.built_on == built_on)
        and (taxonomy is None or taxonomy.lower() in card.taxonomy_class.lower())
        and (year is None or (card.year is not None and first <= card.year <= last))
        and (max_params is None or count_parameters_of(card.name) <= max_params)
    )
    return sorted(names, key=_natural)


def _years(year: int | tuple[int, int] | None, known: set[int]) -> tuple[int, int]:
    """First and last year that are meant."""
    first, last = (min(known), max(known))
    if isinstance(year, int):
        first, last = year, year
    elif isinstance(year, tuple) and [type(y) for y in year] == [int, int]:
        first, last = year
    elif year is not None:
        first, last = 1, 0
    if not any(first <= y <= last for y in known):
        raise ValueError(
            f"no model has {year=}; a year or a (first, last) of them is accepted, there are "
            f"{', '.join(map(str, sorted(known)))}"
        )
    return first, last


def _natural(name: str) -> list[str | int]:
    """Sort key that reads numbers as numbers: r8 before r13."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _accepted(what: str, value: str | None, known: set[str]) -> None:
    if value is not None and value not in known:
        raise ValueError(f"no model has {what}={value!r}; there are {', '.join(sorted(known))}")


@functools.cache
def count_parameters_of(name: str) -> int:
    """Parameters of a model at 1000 classes: built without memory where its card has no figure."""
    card = model_card(name)
    if card.params is not None and not card.reference_args:
        return card.params
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialising on the meta device is a no-op, and said so
        model = timm.create_model(name, device="meta")
    return sum(p.numel() for p in model.parameters())
