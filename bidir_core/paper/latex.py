"""Text and numbers as LaTeX, and tables in booktabs style.

Names of models, tasks, runs and files come from outside: everything goes through :func:`escape`,
so that no text can start a command, and a character that pdfLaTeX cannot set is written as its
code point.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

_COMMANDS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "^": r"\textasciicircum{}", "_": r"\_", "~": r"\textasciitilde{}", "%": r"\%",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "`": r"\textasciigrave{}",
}  # fmt: skip
# Two of them would be set as a longer dash.
_LIGATURES = re.compile(r"(?<=-)(?=-)")


def escape(text: object) -> str:
    """Text from outside as one line of inert LaTeX."""
    return prose(" ".join(str(text).split()))


def prose(text: str) -> str:
    """As :func:`escape`, with the blanks at both ends kept: a part of a sentence."""
    return _LIGATURES.sub("{}", "".join(map(_character, text)))


def _character(one: str) -> str:
    if one in _COMMANDS:
        return _COMMANDS[one]
    if " " <= one <= "~":
        return one
    letter = "À" <= one <= "ÿ" and unicodedata.category(one).startswith("L")
    return one if letter else f"[U+{ord(one):04X}]"


def code(text: object) -> str:
    """Text from outside in typewriter, which may break after a separator."""
    return r"\texttt{" + re.sub(r"(\\_|[/:,=-])(?=.)", r"\1\\allowbreak{}", escape(text)) + "}"


def number(text: str) -> str:
    """A printed number: ``-4.7`` gets a true minus, ``51.8 %`` a thin space, ``<`` its math."""
    shown = text.replace(" %", r"\,\%").replace("%", r"\%").replace(r"\\%", r"\%")
    return re.sub(r"^([+<-])", r"$\1$", shown)


def wrapped(centimetres: float) -> str:
    """A column whose text wraps, ragged (package array)."""
    return f">{{\\raggedright\\arraybackslash}}p{{{centimetres:g}cm}}"


@dataclass
class Tabular:
    """Rows of LaTeX cells under a header, as one booktabs table; a row may be a heading alone.

    ``columns`` is the column specification, one letter or :func:`wrapped` a column. ``long``
    tables (package longtable) run over pages.
    """

    key: str
    caption: str
    columns: Sequence[str]
    header: Sequence[str]
    long: bool = False
    rows: list[Sequence[str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def add(self, *cells: object) -> None:
        self.rows.append([str(cell) for cell in cells])

    def heading(self, text: object) -> None:
        """A line over the whole width, before the rows that it names."""
        self.rows.append([str(text)])

    def tex(self) -> str:
        spec = "@{}" + "".join(self.columns) + "@{}"
        header = " & ".join(self.header) + r" \\"
        body = "\n".join(self._lines())
        caption = f"\\caption{{{self.caption}}}\\label{{tab:{self.key}}}"
        if self.long:
            return "\n".join([
                r"\begingroup\footnotesize\setlength{\tabcolsep}{3.5pt}",
                r"\setlength{\LTcapwidth}{\linewidth}",
                f"\\begin{{longtable}}{{{spec}}}", caption + r" \\", r"\toprule", header,
                r"\midrule", r"\endfirsthead", r"\toprule", header, r"\midrule", r"\endhead",
                r"\bottomrule", r"\endfoot", body, r"\end{longtable}", r"\endgroup",
            ])  # fmt: skip
        return "\n".join([
            r"\begin{table}[htbp]", r"\centering\footnotesize\setlength{\tabcolsep}{3.5pt}",
            r"\setlength{\belowcaptionskip}{6pt}", caption,
            f"\\begin{{tabular}}{{{spec}}}", r"\toprule", header, r"\midrule", body,
            r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ])  # fmt: skip

    def _lines(self) -> list[str]:
        lines = []
        for i, row in enumerate(self.rows):
            if len(row) == 1:
                lines += [r"\addlinespace"] if i else []
                lines.append(f"\\multicolumn{{{len(self.columns)}}}{{@{{}}l}}{{{row[0]}}} \\\\*")
            else:
                lines.append(" & ".join(row) + r" \\")
        return lines
