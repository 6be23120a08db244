"""The tables on the weights page are the catalog's."""

import sys
from pathlib import Path

import efficient_vits

DOCS = Path(__file__).parents[2] / "docs"


def tables():
    sys.path.insert(0, str(DOCS))
    try:
        import generated_weights
    finally:
        sys.path.remove(str(DOCS))
    return generated_weights.lines()


def test_the_tables_are_those_of_the_catalog():
    page = (DOCS / "weights.md").read_text(encoding="utf-8")
    assert page.endswith("\n".join(["", *tables(), ""]))


def test_they_have_every_model_of_the_benchmark_or_the_text_does():
    text = "\n".join(tables())
    cards = [c for c in efficient_vits.catalog.cards().values() if c.paper_model]
    lacking = {card.name for card in cards if f"`{card.name}`" not in text}
    # On a plain ViT's weights alone, as the text says.
    assert lacking == {"tome_s16_r8", "gtp_s16"}
