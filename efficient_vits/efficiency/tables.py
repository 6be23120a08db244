"""Tables of text: for a terminal, Markdown, LaTeX and CSV, with everything escaped."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

Cells = Sequence[str]

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # A bracket after the end of a row would be read as the argument of `\\`.
    "[": "{[}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def to_text(headers: Cells, rows: Iterable[Cells], *, left: int) -> str:
    """Aligned columns; the first `left` to the left, the others, being figures, to the right."""
    table = [headers, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(headers))]
    lines = [_aligned(row, widths, left) for row in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def to_markdown(headers: Cells, rows: Iterable[Cells], *, left: int) -> str:
    """A table as GitHub and MyST read it."""
    rule = ["---" if i < left else "---:" for i in range(len(headers))]
    lines = [[markdown(cell) for cell in headers], rule]
    lines += [[markdown(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_latex(headers: Cells, rows: Iterable[Cells], *, left: int) -> str:
    """A `tabular` that needs the package booktabs."""
    columns = "l" * left + "r" * (len(headers) - left)
    head, *body = [" & ".join(map(latex, row)) + r" \\" for row in (headers, *rows)]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def to_csv(headers: Cells, rows: Iterable[Sequence[object]]) -> str:
    """RFC 4180 with plain line ends; None is an empty field, and a field is one line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(headers)
    for row in rows:
        writer.writerow([_one_line(cell) if isinstance(cell, str) else cell for cell in row])
    return out.getvalue().removesuffix("\n")


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_{}\[\]<>|~$#&])", r"\\\1", _one_line(text))


def latex(text: str) -> str:
    """Text that LaTeX shows as it is, in one line."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _aligned(row: Cells, widths: Sequence[int], left: int) -> str:
    cells = [
        cell.ljust(width) if i < left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
