"""A report as one HTML file that needs nothing else: it opens offline and may be mailed.

It holds what the Markdown holds, from the same data, and besides that interactive charts (plotly.js
is inside), the items that flipped, and how it was made. Every text from outside is escaped, and
the file's own Content-Security-Policy forbids to load or send anything.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from bidir_core.analyse.contrasts import cell_title, in_words
from bidir_core.analyse.flips import flips_of
from bidir_core.analyse.pairing import Metric, PairedItems, pair, repeats
from bidir_core.analyse.study import CAUSAL, Cell, Study
from bidir_core.common import formatting
from bidir_core.common.errors import UserError
from bidir_core.common.version import __version__
from bidir_core.data import item_texts
from bidir_core.data.item_texts import visible
from bidir_core.report.charts import Chart, charts
from bidir_core.report.markdown import Table
from bidir_core.report.sections import ALL_SECTIONS, FLIPS, Report, Section
from bidir_core.runs.run import Run

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
    """An interval whose ends stay on one line: ``51.8 %`` above ``(38.3 to 65.8 %)``; with real minus signs."""
    text = formatting.minus(text)
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
    return formatting.minus(f"{value:+.2f}" if signed else f"{value:.2f}")


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
    text = formatting.minus(visible(markdown))
    text = text.replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")
    return Markup(_parser().render(text))


# The items that flipped most between two runs, with what both said of them.

CLASSES = ("broken", "fixed", "changed_wrong")
TOP = 40  # of each class: what a reader looks at, in a file small enough to mail
CONTEXT, CHOICE = 900, 400  # characters kept of each


@dataclass(frozen=True)
class Choice:
    """One choice of an item and its log-likelihood (nats) in both runs."""

    text: str
    ll_a: float
    ll_b: float
    gold: bool
    pred_a: bool
    pred_b: bool


@dataclass(frozen=True)
class FlipRow:
    """One item whose answer changed. ``change``: of the right choice's margin, in nats."""

    item_id: str
    task: str
    flip: str
    context: str
    choices: tuple[Choice, ...]
    margin_a: float
    margin_b: float
    doc_hash: str = ""

    @property
    def change(self) -> float:
        return self.margin_b - self.margin_a


@dataclass(frozen=True)
class FlipTable:
    """The top flips of run b against run a; ``counts`` are of all their paired items."""

    a: str
    b: str
    run_a: str
    run_b: str
    n: int
    counts: dict[str, int]
    rows: tuple[FlipRow, ...]

    @property
    def has_texts(self) -> bool:
        return any(row.context for row in self.rows)


def flip_tables(study: Study, metric: Metric, *, top: int = TOP) -> list[FlipTable]:
    """What the mask broke (stage 1 to stage 2) and what training fixed (stage 2 to stage 4).

    Pairs without items are left out; of several seeds the first is shown.
    """
    base, regime = study.base, study.regime
    cells: list[tuple[Cell, Cell]] = [((base, CAUSAL), (base, regime))]
    for arm in study.trained("3B", "distill")[:1]:
        arm_regime = study.own_regime(arm)
        cells.append(((base, arm_regime), (arm, arm_regime)))
    flips = []
    for a, b in cells:
        runs = [next(iter(study.runs(*cell).values()), None) for cell in (a, b)]
        if runs[0] is None or runs[1] is None or not all(run and run.has_items for run in runs):
            continue
        try:
            pairs = pair(runs[0], runs[1], metric)
            name_a, name_b = in_words(cell_title(study, a)), in_words(cell_title(study, b))
            flips.append(flip_table(name_a, name_b, pairs, top))
        except UserError:
            continue  # the section on differences says why they do not pair
    return flips


def flip_table(
    a: str,
    b: str,
    pairs: PairedItems,
    top: int,
    *,
    kinds: Sequence[str] = CLASSES,
    by_task: bool = False,
    also: Collection[str] = (),
) -> FlipTable:
    """The top flips between two paired runs, called ``a`` and ``b``: ``top`` of each kind, or of
    each kind in each task. ``also``: ids of items to have in any case, after them."""
    frame = flips_of(pairs)
    classes = pairs.flip
    strength = frame["margin_change"].abs().fillna(0.0).to_numpy()
    ids = frame["item_id"].to_numpy(dtype=str)
    # Largest margin change first; the item's id settles ties, so that a report repeats itself.
    order = np.lexsort((ids, -strength))
    chosen = []
    for task in dict.fromkeys(pairs.task.tolist()) if by_task else [None]:
        rows = order if task is None else order[pairs.task[order] == task]
        chosen += [row for name in kinds for row in rows[classes[rows] == name][:top]]
    chosen += [row for row in np.flatnonzero(np.isin(ids, list(also))) if row not in chosen]
    return FlipTable(
        a=a,
        b=b,
        run_a=pairs.run_a.id,
        run_b=pairs.run_b.id,
        n=pairs.n,
        counts={name: int((classes == name).sum()) for name in CLASSES},
        rows=tuple(_rows(pairs, frame, np.array(chosen, dtype=np.int64))),
    )


def _rows(pairs: PairedItems, frame: pd.DataFrame, chosen: np.ndarray) -> list[FlipRow]:
    if not len(chosen):
        return []
    columns = ("task", "doc_id", "doc_hash", "gold", "contexts", "continuations", "ll")
    sides = [
        run.items_table(columns).take(rows[chosen]).to_pylist()
        for run, rows in ((pairs.run_a, pairs.rows_a), (pairs.run_b, pairs.rows_b))
    ]
    _join_texts(pairs.run_a, *sides)
    out = []
    for index, first, second in zip(chosen.tolist(), *sides, strict=True):
        if first["ll"] is None or second["ll"] is None:
            continue  # this run kept its choice but not the scores
        line = frame.iloc[index]
        texts = first if first["contexts"] is not None else second
        gold, scores = int(line["gold"]), list(zip(first["ll"], second["ll"], strict=True))
        out.append(
            FlipRow(
                item_id=str(line["item_id"]),
                task=str(line["task"]),
                flip=str(line["flip"]),
                context=_context(texts["contexts"], gold),
                choices=tuple(
                    Choice(text, *scores[i], i == gold, i == line["pred_a"], i == line["pred_b"])
                    for i, text in enumerate(_choices(texts, len(scores)))
                ),
                margin_a=float(line["margin_a"]),
                margin_b=float(line["margin_b"]),
                doc_hash=str(first["doc_hash"]),
            )
        )
    return out


def _join_texts(run: Run, first: list[dict], second: list[dict]) -> None:
    """Give compact records their texts back, if the data are on this machine."""
    bare = [a for a, b in zip(first, second) if a["contexts"] is None and b["contexts"] is None]
    if run.settings.get("context") not in (None, "full"):
        return
    split = str(run.settings.get("split") or "validation")
    for task in dict.fromkeys(record["task"] for record in bare):
        records = [record for record in bare if record["task"] == task]
        rows = [record["doc_id"] for record in records]
        texts = item_texts.load(task, rows, split, repeats(run.settings))
        for record in records:
            item_texts.fill(record, texts)


def _context(contexts: Sequence[str] | None, gold: int) -> str:
    if not contexts:
        return ""
    return cut(contexts[gold if len(contexts) > 1 else 0], CONTEXT)


def _choices(texts: dict, n_choices: int) -> list[str]:
    """The choices' texts; where they differ by their context (winogrande), that difference."""
    if texts["continuations"] is None:
        return [f"choice {i}" for i in range(n_choices)]
    given = texts["continuations"]
    if len(texts["contexts"]) > 1:
        given = item_texts.distinct_ends(texts["contexts"])
    return [cut(text.strip(), CHOICE) for text in given]


def cut(text: str, length: int) -> str:
    """At most ``length`` characters: the beginning and, what matters more to a model, the end."""
    if len(text) <= length:
        return text
    head = length // 3
    return f"{text[:head].rstrip()} [… {len(text) - length:,} characters …] {text[head - length :].lstrip()}"
