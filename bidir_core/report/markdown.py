"""Tables that print as Markdown and as CSV, and text that stays text in both.

Names of models, tasks, runs and files come from outside, so every cell is escaped; only what this
package writes itself is marked up.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from bidir_core.analyse.contrasts import in_words
from bidir_core.analyse.verdict import ends_text, estimate_text, retention_text
from bidir_core.common import formatting

Kind = Literal[
    "text",
    "code",
    "name",
    "count",
    "acc",
    "points",
    "interval",
    "spread",
    "estimate",
    "retention",
    "number",
    "percent",
]
# Values that take several columns of a CSV, by the ends of these columns' names.
_PARTS: dict[str, tuple[str, ...]] = {
    "interval": (" low", " high"),
    "spread": (" low", " high"),
    "estimate": ("", " low", " high"),
    "retention": ("", " low", " high"),
}
NOT_RUN = "not run"
_MARKUP = re.compile(r"([\\`*_{}\[\]|~$])")  # what marks up within a line


class Interval(NamedTuple):
    """Two ends, as fractions; printed in points (``interval``) or as accuracies (``spread``).

    An Estimate has ends too; with its value it prints as an ``estimate`` (points) or, of what is
    kept, as a ``retention`` (percent).
    """

    low: float
    high: float


@dataclass(frozen=True)
class Column:
    """``kind`` decides how a value prints; a None prints as ``absent``.

    A ``name`` (of a task, an arm or a cell) and the column's own print in words; a CSV keeps them."""

    name: str
    kind: Kind = "text"
    absent: str = ""

    @property
    def title(self) -> str:
        return in_words(self.name)

    @property
    def is_text(self) -> bool:
        return self.kind in ("text", "code", "name")


# A column's name and kind, a value in it and, if it is not empty, what a None prints as.
Entry = tuple[str, Kind, Any] | tuple[str, Kind, Any, str]


@dataclass(frozen=True)
class Table:
    """Rows of plain values under columns; ``key`` names its CSV file."""

    key: str
    columns: Sequence[Column]
    rows: list[Sequence[Any]] = field(default_factory=list)

    @classmethod
    def of(cls, key: str, rows: Iterable[Iterable[Entry]]) -> Table:
        """From rows whose entries name their columns: (name, kind, value) and, unless
        empty, what a None prints as. The first row's columns are the table's."""
        lines = [tuple(row) for row in rows]
        first = lines[0] if lines else ()
        columns = [Column(name, kind, *absent) for name, kind, _, *absent in first]
        return cls(key, columns, [[entry[2] for entry in line] for line in lines])

    def __bool__(self) -> bool:
        return bool(self.rows)

    def without_empty_columns(self) -> Table:
        """The same without the columns that hold nothing, where space is narrow."""
        keep = [i for i in range(len(self.columns)) if any(row[i] is not None for row in self.rows)]
        return Table(
            self.key,
            [self.columns[i] for i in keep],
            [[row[i] for i in keep] for row in self.rows],
        )

    def markdown(self) -> str:
        lines = [
            "| " + " | ".join(escape(column.title) for column in self.columns) + " |",
            "|" + "|".join("---" if column.is_text else "---:" for column in self.columns) + "|",
        ]
        for row in self.rows:
            cells = [_shown(value, column) for value, column in zip(row, self.columns, strict=True)]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def texts(self) -> list[list[str]]:
        """The cells as plain text, for a layout that escapes by itself."""
        return [
            [cell_text(value, column) for value, column in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]

    def csv(self) -> str:
        """Full precision, differences as fractions; an interval takes two columns."""
        header: list[str] = []
        for column in self.columns:
            name = column.name.removesuffix(" (points)")
            header += [name + end for end in _PARTS.get(column.kind, ("",))]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        for row in self.rows:
            cells: list[Any] = []
            for value, column in zip(row, self.columns, strict=True):
                names = [end.strip() or "value" for end in _PARTS.get(column.kind, ())]
                if not names:
                    cells.append(formatting.csv_cell(value))
                cells += [formatting.csv_cell(getattr(value, name, None)) for name in names]
            writer.writerow(cells)
        return out.getvalue()


def escape(text: object) -> str:
    """Text from outside as one line of inert Markdown, in and out of tables."""
    one_line = formatting.visible(" ".join(str(text).split()))
    safe = html.escape(_MARKUP.sub(r"\\\1", one_line), quote=False)
    # A bare address would become a link all the same.
    return safe.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def code(text: object) -> str:
    """Text from outside as a code span, fenced by more backticks than it holds."""
    one_line = formatting.visible(" ".join(str(text).split()))
    if not one_line:
        return ""
    if re.search(r"[|<>&\\]", one_line):
        return escape(one_line)  # a table would split it, or a renderer read it as HTML
    longest = max((len(run) for run in re.findall(r"`+", one_line)), default=0)
    fence, pad = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{pad}{one_line}{pad}{fence}"


def capital(text: object) -> str:
    """The same escaped, with a capital letter at its start."""
    shown = escape(text)
    return shown[:1].upper() + shown[1:]


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines if line)


def cell_text(value: Any, column: Column) -> str:
    """A cell as plain text on one line, not escaped for anything."""
    if value is None:
        return column.absent
    kind = column.kind
    if isinstance(value, str) or column.is_text:
        # Also a word in a number's place, such as "not run".
        text = in_words(str(value)) if kind == "name" else str(value)
        return formatting.visible(" ".join(text.split()))
    if kind == "interval":
        return ends_text(value.low, value.high)
    if kind == "spread":
        return f"{value.low:.4f} to {value.high:.4f}"
    if kind == "estimate":
        return estimate_text(value)
    if kind == "retention":
        return retention_text(value, short=True)
    form = {
        "count": lambda v: f"{v:,}",
        "acc": lambda v: f"{v:.4f}",
        "points": lambda v: formatting.points(v, signed=True),
        "number": lambda v: f"{v:,.1f}" if abs(v) < 1000 and v != int(v) else f"{v:,.0f}",
        "percent": lambda v: f"{100 * v:.1f} %",
    }[kind]
    return form(value)


def _shown(value: Any, column: Column) -> str:
    text = cell_text(value, column)
    if value is None:
        return text
    if column.kind == "code":
        return code(text)
    return escape(text) if isinstance(value, str) or column.is_text else text
