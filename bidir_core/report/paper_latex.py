"""Text, numbers and tables as LaTeX.

Names of models, tasks, runs and files come from outside: everything goes through :func:`escape`,
so that no text can start a command, and a character that pdfLaTeX cannot set is written as its
code point.
"""

from __future__ import annotations

import re
import unicodedata

from bidir_core.report.markdown import Table, cell_text

_COMMANDS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "^": r"\textasciicircum{}",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "%": r"\%",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
}

# Two hyphens side by side would be set as one longer dash.
_LIGATURES = re.compile(r"(?<=-)(?=-)")

LONG_CELL = 32  # characters: a column of text with a longer cell wraps
LONG_TABLE = 30  # rows: a longer table runs over pages


def escape(text: object) -> str:
    """Text from outside as one line of inert LaTeX."""
    return _LIGATURES.sub("{}", "".join(map(_character, " ".join(str(text).split()))))


def _character(character: str) -> str:
    if character in _COMMANDS:
        return _COMMANDS[character]
    if " " <= character <= "~":
        return character
    is_letter = "À" <= character <= "ÿ" and unicodedata.category(character).startswith("L")
    return character if is_letter else f"[U+{ord(character):04X}]"


def code(text: object) -> str:
    """Text from outside in typewriter, which may break after a separator."""
    return r"\texttt{" + re.sub(r"(\\_|[/:,=-])(?=.)", r"\1\\allowbreak{}", escape(text)) + "}"


def number(text: str) -> str:
    """A printed number: ``-4.7`` gets a true minus, ``51.8 %`` a thin space, ``<`` its math."""
    shown = escape(text).replace(r" \%", r"\,\%").replace(r"\textless{}", "$<$")
    return re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", shown)


def tabular(table: Table) -> str:
    """The table in booktabs style, without empty columns; a long one as a longtable.

    Packages: booktabs, array and longtable. There is no float and no caption around it.
    """
    table = table.without_empty_columns()
    cells = table.texts()
    specs = []
    for column, texts in zip(table.columns, zip(*cells, strict=True), strict=True):
        if column.kind not in ("text", "code"):
            specs.append("r")
        elif max(map(len, texts)) > LONG_CELL:
            specs.append(r">{\raggedright\arraybackslash}p{5cm}")
        else:
            specs.append("l")
    header = " & ".join(escape(column.name) for column in table.columns) + r" \\"
    lines = []
    for row in table.rows:
        shown = []
        for value, column in zip(row, table.columns, strict=True):
            text = cell_text(value, column)
            write = code if column.kind == "code" else escape if column.kind == "text" else number
            shown.append(write(text) if text else "")
        lines.append(" & ".join(shown) + r" \\")
    environment = "longtable" if len(lines) > LONG_TABLE else "tabular"
    repeat = [r"\endhead"] if environment == "longtable" else []
    return "\n".join(
        [
            f"\\begin{{{environment}}}{{@{{}}{''.join(specs)}@{{}}}}",
            r"\toprule",
            header,
            r"\midrule",
            *repeat,
            *lines,
            r"\bottomrule",
            f"\\end{{{environment}}}",
        ]
    )
