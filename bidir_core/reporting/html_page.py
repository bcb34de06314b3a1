"""A report as one HTML file that needs nothing else: it opens offline and may be mailed.

It holds what the Markdown holds, from the same data, and besides that interactive charts (plotly.js
is inside), the items that flipped, and how it was made. Every text from outside is escaped, and
the file's own Content-Security-Policy forbids to load or send anything.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bidir_core import __version__, words
from bidir_core.item_texts import visible
from bidir_core.reporting import html_text
from bidir_core.reporting.charts import Chart, charts
from bidir_core.reporting.flip_rows import CLASSES, TOP, flip_tables
from bidir_core.reporting.markdown import Table
from bidir_core.reporting.section import ALL_SECTIONS, FLIPS, Section

if TYPE_CHECKING:
    from bidir_core.report import Report

FOLDER = Path(__file__).with_name("html")
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
MADE_HEADING = "How This Was Made"
FOLDED = 24  # a table with more rows than this is folded away
LONG = 24  # a code cell with more characters may break anywhere
OPENING = 110  # characters of a question that stand in the flips' table
MARKS = {"broken": "▼ broken", "fixed": "▲ fixed", "changed_wrong": "◇ other wrong"}
WORDS = {
    "broken": "broken (right to wrong)",
    "fixed": "fixed (wrong to right)",
    "changed_wrong": "wrong to another wrong",
}
Block = Markup | Table | Chart


def blocks(section: Section, shown: list[Chart]) -> list[Block]:
    """What stands under a heading: paragraphs as HTML, tables, and charts before the first table."""
    out: list[Block] = []
    waiting = list(shown)
    for part in section.parts:
        if isinstance(part, Table):
            out += [*waiting, part.without_empty_columns()]
            waiting = []
        elif part:
            out.append(html_text.paragraphs(part))
    return [*out, *waiting]


def page(report: Report, only: Collection[str] | None = None) -> str:
    """The whole file. ``only``: keys of sections, ``flips`` among them; None means all."""
    made = charts(report)
    sections = [(s, blocks(s, made.get(s.key, []))) for s in report.chosen(only)]
    flips = None
    if only is None or FLIPS in only:
        flips = flip_tables(report.study, report.numbers.metric)
    contents = [(section.key, section.heading) for section, _ in sections]
    contents += [(FLIPS, ALL_SECTIONS[FLIPS])] if flips is not None else []
    drawn = [one for _, parts in sections for one in parts if isinstance(one, Chart)]
    return _template().render(
        policy=POLICY,
        title=html_text.line(report.title),
        css=_file("report.css"),
        contents=[*contents, ("made", MADE_HEADING)],
        sections=sections,
        flips=flips,
        flips_heading=ALL_SECTIONS[FLIPS],
        made_heading=MADE_HEADING,
        classes=CLASSES,
        marks=MARKS,
        words=WORDS,
        top=TOP,
        folded=FOLDED,
        long=LONG,
        opening_length=OPENING,
        command=command(report, only),
        facts=facts(report),
        figures=_figures(drawn, report.stem),
        plotly=_plotly(),
        script=_file("report.js"),
    )


def command(
    report: Report,
    only: Collection[str] | None = None,
    out: str = "report.html",
    flag: str = "--out",
) -> str:
    """The line that writes this report again or, with ``--paper`` as the flag, its paper."""
    numbers = report.numbers
    line = ["python", "-m", "bidir_core", "report", *(run.id for run in report.study.all_runs)]
    if numbers.metric != "acc":
        line += ["--metric", numbers.metric]
    if numbers.margin != 0.01:
        line += ["--margin", f"{100 * numbers.margin:g}"]
    if only is not None:
        line += ["--sections", ",".join(only)]
    return shlex.join([*line, flag, out])


def facts(report: Report) -> list[tuple[str, str]]:
    """Versions: of this program, and of what the runs were made with, as they recorded it."""
    found: dict[str, dict[str, None]] = {}
    for run in report.study.all_runs:
        packages = run.config.get("packages")
        for name, version in packages.items() if isinstance(packages, dict) else ():
            found.setdefault(str(name), {})[str(version)] = None
    rows = [("bidir", __version__), ("runs", words.count(len(report.study.all_runs)))]
    return rows + [(name, ", ".join(versions)) for name, versions in sorted(found.items())]


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        # Whatever is printed has its invisible characters spelled out, then is escaped.
        finalize=lambda value: (
            visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
    )
    environment.filters.update(count=words.count, nats=_nats, opening=_opening, tied=tied)
    environment.tests.update(
        markup=lambda value: isinstance(value, Markup),
        chart=lambda value: isinstance(value, Chart),
    )
    return environment.get_template("report.html.j2")


def tied(text: str) -> str:
    """An interval whose ends stay on one line: ``51.8 %`` above ``(38.3 to 65.8 %)``."""
    ties = ((" to ", "\u00a0to\u00a0"), (" %", "\u00a0%"), ("(no ", "(no\u00a0"))
    for loose, tied_up in ties:
        text = text.replace(loose, tied_up)
    return text


def _nats(value: float, signed: bool = False) -> str:
    return f"{value:+.2f}" if signed else f"{value:.2f}"


def _opening(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= OPENING else one_line[: OPENING - 1].rstrip() + "…"


def _file(name: str) -> Markup:
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


@cache
def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())


def _figures(shown: list[Chart], stem: str) -> Markup:
    """The figures as JSON that cannot end the script element it stands in."""
    found: dict[str, Any] = {"stem": stem}
    for one in shown:
        one.figure.update_layout(
            template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)"
        )
        found[one.key] = json.loads(one.figure.to_json())
    text = json.dumps(found, ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
