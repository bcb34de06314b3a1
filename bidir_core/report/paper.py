"""The material of a paper in one folder: tables, figures, number macros and claims.

The folder is built beside its place and moved there in one rename. Its tables are the report's.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bidir_core.analyse.contrasts import cell_title, level
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.study import Study, ordered_cells
from bidir_core.common import formatting
from bidir_core.report.made_folder import MadeFolder
from bidir_core.report.markdown import Table, cell_text
from bidir_core.report.paper_claims import claims_json, claims_table, make_claims
from bidir_core.report.paper_figures import FIGURES, save, style
from bidir_core.report.sections import Report, build_sections

PAPER = MadeFolder("--paper", "bidir_core report --paper")
Tell = Callable[[float, str], object]  # the share that is done, and what comes next


def write_paper(report: Report, folder: Path | str) -> Path:
    """Write the folder of a paper and return it.

    Raises UserError if the folder holds anything that this command did not write, or cannot be
    written.
    """
    return PAPER.make(folder, _command(report), lambda path: write_files(report, path))


def zip_paper(report: Report, name: str, tell: Tell) -> bytes:
    """The same folder as one ZIP file, in which it is called ``name``. ``tell`` hears how far it is."""
    return PAPER.zipped(name, _command(report), lambda path: write_files(report, path, tell))


def _command(report: Report) -> str:
    return report.command(out="DIR", flag="--paper")


# --- the files -----------------------------------------------------------------------------------


def write_files(report: Report, folder: Path, tell: Tell = lambda share, next_step: None) -> None:
    """Write tables, figures, number macros and claims into an empty folder."""
    tell(0.0, "numbers and claims")
    numbers, tables = _without_leaky(report)
    claims = make_claims(numbers)
    (folder / "tables").mkdir()
    for table in (*tables.values(), claims_table(claims)):
        if table:
            _write(folder / "tables" / f"{table.key}.tex", tabular(table) + "\n")
            _write(folder / "tables" / f"{table.key}.csv", table.csv())
    _write(folder / "numbers.tex", number_macros(numbers))
    claims_text = json.dumps(claims_json(numbers, claims), indent=1, ensure_ascii=False)
    _write(folder / "claims.json", claims_text + "\n")
    (folder / "figures").mkdir()
    with style():
        for done, (name, draw) in enumerate(FIGURES.items(), 1):
            tell(0.9 * done / len(FIGURES), f"figure {name}")
            figure = draw(numbers)
            if figure is not None:
                save(figure, folder / "figures" / name)


def _without_leaky(report: Report) -> tuple[Findings, dict[str, Table]]:
    """The report's numbers and tables, without a leaky fine-tune: its numbers are no result."""
    study = report.study
    if not any(arm.leaky for arm in study.arms):
        return report.numbers, report.tables
    cells = {cell: runs for cell, runs in study.cells.items() if not cell[0].leaky}
    finetunes = {arm: runs for arm, runs in study.finetunes.items() if not arm.leaky}
    clean: Study = replace(study, cells=cells, finetunes=finetunes)
    numbers = Findings(clean, report.numbers.metric, report.numbers.margin)
    return numbers, replace(report, sections=tuple(build_sections(numbers))).tables


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


# --- number macros ---------------------------------------------------------------------------------

_MACROS = r"""% \runnumber{KEY} prints a number of the runs; an unknown key is an error.
% Differences, their ends and the margin are in points, what is kept is in per cent.
\makeatletter
\providecommand{\runnumber}[1]{\@ifundefined{run:#1}{\errmessage{no number '#1'}}{\@nameuse{run:#1}}}
"""


def number_macros(numbers: Findings) -> str:
    """A TeX file that defines every number of :func:`printed_numbers` under its key."""
    lines = [
        f"\\@namedef{{run:{key}}}{{{number(text)}}}"
        for key, text in printed_numbers(numbers).items()
    ]
    return _MACROS + "\n".join([*lines, r"\makeatother"]) + "\n"


def printed_numbers(numbers: Findings) -> dict[str, str]:
    """Key, such as ``stage-2-minus-stage-1/piqa/difference``, to the number as it is printed."""
    printed: dict[str, str] = {}

    def add(key: str, text: str) -> None:
        plain = re.sub(r"[^a-z0-9./+]+", "-", key.lower())
        key = base = re.sub(r"-*(/|$)-*", r"\1", plain)
        copy = 2
        while key in printed:  # names that give the same key are numbered
            key, copy = f"{base}-{copy}", copy + 1
        printed[key] = text

    def add_difference(key: str, value: float, low_high: object, n: int | None) -> None:
        add(f"{key}/difference", formatting.points(value, signed=True))
        for end in ("low", "high"):
            if low_high is not None:
                add(f"{key}/{end}", formatting.points(getattr(low_high, end), signed=True))
        if n is not None:
            add(f"{key}/n", formatting.count(n))

    study = numbers.study
    add("margin", f"{100 * numbers.margin:g}")
    for cell in ordered_cells(study):
        accuracy = level(study.runs(*cell), numbers.metric)
        if accuracy is not None:
            key = f"{cell_title(study, cell)}/macro/{numbers.metric}"
            add(key, f"{accuracy.value:.4f}")
            for end in ("low", "high") if accuracy.interval is not None else ():
                add(f"{key}/{end}", f"{getattr(accuracy.interval, end):.4f}")
    for contrast in numbers.contrasts(leaky=False):
        title = contrast.title
        add_difference(f"{title}/macro", contrast.value, contrast.interval, contrast.n)
        floors = (("chance", contrast.above_chance), ("no-context", contrast.above_floor))
        for floor, kept in floors:
            for part in ("value", "low", "high"):
                value = getattr(kept, part, None)
                if value is not None:
                    add(f"{title}/kept-above-{floor}/{part}", f"{100 * value:.1f}")
        for row in contrast.tasks:
            key, p_holm = f"{title}/{row.task}", row.judgement.p_adjusted
            add_difference(key, row.delta, row.interval, row.n)
            if p_holm:
                add(f"{key}/p-holm", " / ".join(map(formatting.p_text, p_holm)))
    for arm in study.trained("3B", "distill"):
        interaction = numbers.interaction(arm)
        if not isinstance(interaction, str):
            by_task = {"macro": interaction.effect.estimate, **interaction.effect.per_task}
            for task, estimate in by_task.items():
                key = f"interaction {arm.title}/{task}"
                add_difference(key, estimate.value, estimate, estimate.n)
    return printed


# --- LaTeX ----------------------------------------------------------------------------------------
# Names of models, tasks, runs and files come from outside: everything goes through :func:`escape`, so
# that no text can start a command, and a character that pdfLaTeX cannot set becomes its code point.

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
