"""A report as one HTML file that needs nothing else: it opens offline and may be mailed.

It holds what the Markdown holds, from the same data, and besides that interactive charts (plotly.js
is inside), the items that flipped, and how it was made. Every text from outside is escaped, and
the file's own Content-Security-Policy forbids to load or send anything.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from bidir_core.common import formatting
from bidir_core.common.version import __version__
from bidir_core.data.item_texts import visible
from bidir_core.report.charts import Chart, charts
from bidir_core.report.markdown import Table
from bidir_core.report.sections import ALL_SECTIONS, FLIPS, Report, Section
from bidir_core.report.top_flips import TOP, flip_tables

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

FOLDER = Path(__file__).with_name("html")

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)

FOLDED = 24  # a table with more rows than this is folded away
LONG = 24  # a code cell with more characters may break anywhere
OPENING = 110  # characters of a question that stand in the flips' table

Block = Markup | Table | Chart


def blocks(section: Section, shown: Sequence[Chart | Markup]) -> list[Block]:
    """What stands under a heading: paragraphs as HTML, tables, and charts before the first table;
    on the first page after the first paragraph, the verdict."""
    out: list[Block] = []
    waiting: list[Block] = list(shown)
    for part in section.parts:
        if isinstance(part, Table):
            out += [*waiting, part.without_empty_columns()]
            waiting = []
        elif part:
            out.append(paragraphs(part))
            if section.is_front:
                out += waiting
                waiting = []
    return [*out, *waiting]


def page(report: Report, only: Collection[str] | None = None) -> str:
    """The whole file. ``only``: keys of sections, ``flips`` among them; None means all."""
    by_section = charts(report)
    sections = [(s, blocks(s, by_section.get(s.key, []))) for s in report.chosen(only)]
    flips = None
    if only is None or FLIPS in only:
        flips = flip_tables(report.study, report.numbers.metric)
    contents = [(s.key, s.heading) for s, _ in sections if not s.is_front]
    contents += [(FLIPS, ALL_SECTIONS[FLIPS])] if flips is not None else []
    drawn = [part for _, parts in sections for part in parts if isinstance(part, Chart)]
    return template("report.html.j2").render(
        policy=POLICY,
        title=report.title,
        css=inlined("report.css", "rows.css"),
        contents=contents,
        sections=sections,
        flips=flips,
        flips_heading=ALL_SECTIONS[FLIPS],
        top=TOP,
        folded=FOLDED,
        long=LONG,
        opening_length=OPENING,
        command=report.command(only),
        facts=facts(report),
        figures=_figures(drawn, report.stem),
        plotly=_plotly() if drawn else "",
        script=inlined("report.js"),
    )


def facts(report: Report) -> list[tuple[str, str]]:
    """Versions: of this program, and of what the runs were made with, as they recorded it."""
    versions_of: dict[str, dict[str, None]] = {}
    for run in report.study.all_runs:
        packages = run.config.get("packages")
        for name, version in packages.items() if isinstance(packages, dict) else ():
            versions_of.setdefault(str(name), {})[str(version)] = None
    rows = [("bidir", __version__), ("runs", formatting.count(len(report.study.all_runs)))]
    return rows + [(name, ", ".join(versions)) for name, versions in sorted(versions_of.items())]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        # Whatever is printed has its invisible characters spelled out, then is escaped.
        finalize=lambda value: (
            visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
    )
    environment.filters.update(count=formatting.count, nats=_nats, opening=_opening, tied=tied)
    environment.tests.update(
        markup=lambda value: isinstance(value, Markup),
        chart=lambda value: isinstance(value, Chart),
    )
    return environment


def template(name: str) -> Template:
    """A template of this folder, in which every text is escaped and shown as it is."""
    return _environment().get_template(name)


def tied(text: str) -> str:
    """An interval whose ends stay on one line: ``51.8 %`` above ``(38.3 to 65.8 %)``."""
    ties = (
        (" to ", "\u00a0to\u00a0"),
        (" %", "\u00a0%"),
        ("(no ", "(no\u00a0"),
        ("n = ", "n\u00a0=\u00a0"),
    )
    for loose, tied_up in ties:
        text = text.replace(loose, tied_up)
    return text


def _nats(value: float, signed: bool = False) -> str:
    return f"{value:+.2f}" if signed else f"{value:.2f}"


def _opening(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= OPENING else one_line[: OPENING - 1].rstrip() + "…"


def inlined(*names: str) -> Markup:
    """These files of this folder, style or script, one after the other."""
    return Markup("").join(Markup((FOLDER / name).read_text(encoding="utf-8")) for name in names)


@cache
def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())


def _figures(shown: list[Chart], stem: str) -> Markup:
    """The figures as JSON that cannot end the script element it stands in."""
    figures: dict[str, Any] = {"stem": stem}
    for chart in shown:
        chart.figure.update_layout(
            template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)"
        )
        figures[chart.key] = json.loads(chart.figure.to_json())
    text = json.dumps(figures, ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


# The report's own Markdown as inert HTML.

UNDERSTOOD = ["heading", "list", "emphasis", "backticks", "escape", "entity"]


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("zero").enable(UNDERSTOOD)


def paragraphs(markdown: str) -> Markup:
    """Paragraphs and lists of a section's text; no number stands apart from its sign."""
    text = visible(markdown).replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")
    return Markup(_parser().render(text))
