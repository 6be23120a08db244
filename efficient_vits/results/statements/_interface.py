"""A checked statement, and how a verdict is found."""

from dataclasses import dataclass

from efficient_vits.results.fronts import Front
from efficient_vits.results.table5 import family_of
from efficient_vits.results.tables import stated

CONFIRMED, DIFFERS, NO_DATA = "confirmed", "differs", "no data"


@dataclass(frozen=True)
class Checked:
    """A statement and what the runs say.

    Attributes:
        section: Where it stands in the supplement.
        statement: What it says, in short.
        paper: Its figure or word.
        ours: The same from the runs, or the nearest that they give.
        verdict: ``"confirmed"``, ``"differs"`` or ``"no data"``.
    """

    section: str
    statement: str
    paper: str
    ours: str
    verdict: str


def verdict(holds: bool) -> str:
    """The verdict on what can be decided."""
    return CONFIRMED if holds else DIFFERS


def figure(section: str, statement: str, key: str, ours: float, note: str = "") -> Checked:
    """A figure of the text against ours at its precision."""
    known = stated(key)
    digits = len(known.value.partition(".")[2])
    same = round(ours, digits) == known.number
    unit = f" {known.unit}" if known.unit else ""
    shown = f"{ours:.{digits}f}" if same else f"{ours:.{digits + 1}f}"
    return Checked(section, statement, known.value + unit, shown + unit + note, verdict(same))


def families(found: Front) -> set[str]:
    """The printed names of the families on a front."""
    return {family_of(run) for run in found.members}
