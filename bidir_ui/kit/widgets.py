"""Small pieces that several pages draw: banners, tables, the pair line, commands, mask pictures."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit.runtime.scriptrunner import add_script_run_ctx

from bidir_core.analyse.verdict import Judgement
from bidir_core.common.formatting import csv_cell
from bidir_core.report import plots
from bidir_core.report.rows import Row, interval_rows
from bidir_ui.kit import fmt, url
from bidir_ui.kit.html import Html, div, el, esc, scrolling, show, span


def banner(kind: str, title: object, *lines: object) -> None:
    """A state of the page, said calmly. ``kind``: info, error or empty."""
    show(div(f"b b-banner {kind}", el("h2", title), *(el("p", line) for line in lines if line)))


def say_what_failed(key: str, title: str = "That did not work") -> bool:
    """Whether a click left a reason under this key of the session; it is drawn once."""
    reason = st.session_state.pop(key, "")
    if reason:
        banner("error", title, reason)
    return bool(reason)


def note(*parts: object) -> None:
    """A remark in small grey type."""
    show(div("b b-note", *parts))


def lead(*parts: object) -> None:
    show(div("b b-lead", *(fmt.tie(p) if type(p) is str else p for p in parts)))


UNDECIDED = (
    "“undecided, needs about n = …”: with about that many items, in the same mix of tasks, the "
    "question would be settled if the difference stayed where it is: the interval, which narrows "
    "with the square root of n, would then leave out 0 (different) or fit within ±1 point (no "
    "difference), whichever takes fewer items."
)


def explain_undecided(*texts: object) -> None:
    """What "needs about n = .." answers, below the words that say it."""
    if any("needs about n" in str(text).replace("\xa0", " ") for text in texts):
        note(UNDECIDED)


def heading(text: str) -> None:
    """A section of the page, next in order below its title."""
    show(el("h2", text, cls="b-h3"))


def command(*lines: str) -> None:
    """A command line to copy."""
    st.code("\n".join(lines), language=None, wrap_lines=True)


def not_run(reason: str, *commands: str) -> None:
    """An honest gap: what is missing and which command makes it."""
    banner("empty", "Not run yet", reason)
    if commands:
        command(*commands)


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    name: str,
    total: bool = False,
    left: Sequence[int] = (),
) -> Html:
    """An HTML table with right-aligned numbers, to sort by its columns and to take along.

    ``name``: of its CSV, with run ids; without one it does neither, as where another table has its
    numbers. ``left`` columns are text. ``total``: the last row, which stays the last.
    """

    def cls(column: int) -> str | None:
        return "l wrap" if column in left else None

    rows = list(rows)
    body = [
        el(
            "tr",
            *(el("td", cell, cls=cls(i)) for i, cell in enumerate(row)),
            cls="total" if total and number == len(rows) - 1 else None,
        )
        for number, row in enumerate(rows)
    ]
    header = el(
        "tr",
        *(  # a column without a name has no header cell
            el("th", cell, cls=cls(i), scope="col", tabindex=0 if name else None)
            if cell
            else el("td")
            for i, cell in enumerate(head)
        ),
    )
    drawn = scrolling(el("table", el("thead", header), el("tbody", *body), cls="b b-table"))
    return taken(drawn, name) if name else drawn


def taken(drawn: Html, name: str) -> Html:
    """A table that sorts, with what takes it along below it; ``name``: of its CSV."""
    file = name.removesuffix(".csv").replace("/", "_") + ".csv"
    save = el("button", "CSV", value=file, title=f"Download this table as {file}")
    copy = el("button", "Markdown", title="Copy this table as Markdown")
    return div("b-taken", drawn, div("b-take", save, copy))


class Selected(NamedTuple):
    """``opened``: the row of a cell that was clicked, or, where one row at most can be ticked, that
    row. ``rows``: those that are ticked."""

    opened: int | None
    rows: list[int]


def selectable(
    frame: pd.DataFrame,
    columns: Mapping[str, Any],
    *,
    key: str,
    mode: Literal["single-row", "multi-row"],
    tall: int,
    alt: str,
    signed: Sequence[str] = (),
) -> Selected:
    """A table whose rows open at a click and can be ticked; returns their positions.

    ``tall``: the height in pixels from which it scrolls; a row has 35. ``signed``: columns of
    differences, written as ``+1.2`` and with a real minus; it takes long on thousands of rows.
    """
    styled = frame.style.format(lambda value: fmt.signed(value, 1), subset=list(signed))
    event = st.dataframe(
        styled if signed else frame,
        key=key,
        hide_index=True,
        on_select="rerun",
        selection_mode=[mode, "single-cell"],
        height="content" if 35 * (len(frame) + 1) <= tall + 40 else tall,
        placeholder=fmt.NONE,
        alt=alt,
        column_config=columns,
    )
    # The table may have changed since the click: rows that it no longer has are ignored.
    rows = [row for row in event["selection"]["rows"] if row < len(frame)]
    cells = [row for row, _ in event["selection"]["cells"] if row < len(frame)]
    opened = cells or (rows if mode == "single-row" else [])
    return Selected(opened[0] if opened else None, rows)


def row(*, right: bool = False, gap: str = "small") -> Any:
    """A container whose parts stand beside one another."""
    return st.container(
        horizontal=True,
        vertical_alignment="center",
        horizontal_alignment="right" if right else "left",
        gap=gap,  # type: ignore[arg-type]
    )


def facts(rows: Iterable[tuple[object, object]]) -> None:
    """Names and values, as a definition list."""
    show(facts_html(rows))


def facts_html(rows: Iterable[tuple[object, object]]) -> Html:
    parts = [part for name, value in rows for part in (el("dt", name), el("dd", value))]
    return el("dl", *parts, cls="b b-kv")


def link(text: object, page: str, query: Mapping[str, str], **attributes: object) -> Html:
    """A link to a page of the app, for tables."""
    return el("a", text, href=url.href(page, query), target="_self", **attributes)


def page_link(page: str, label: str, query: Mapping[str, str], icon: str = "") -> None:
    """A link to a page of the app, on a line of its own."""
    st.page_link(
        f"pages/{page}.py",
        label=label,
        icon=f":material/{icon}:" if icon else None,
        query_params=query,
    )


def small(text: object) -> Html:
    return el("small", text)


def dot(colour: str) -> Html:
    return span(f"b-dot b-{colour}")


def interval(
    label: str, value: float, judged: Judgement | None, text: str = "", **more: Any
) -> Row:
    """A row of :func:`intervals`: a difference, shaped and coloured by its verdict."""
    ends = judged.estimate if judged is not None else None
    text = text or f"{fmt.points(value)} {fmt.interval_of(ends)}"
    if judged is None or ends is None:
        return Row(label, text, value, **more)
    return Row(label, text, value, ends.low, ends.high, judged.verdict, **more)


def intervals(rows: Sequence[Row], axis: str) -> None:
    """Differences with their intervals, a row each, around 0."""
    show(div("b", interval_rows(rows, reference=0.0, axis=fmt.tie(axis))))


def chart(figure: go.Figure, alt: str, *, save_as: str = "", **options: Any) -> Any:
    """A Plotly figure in the app's manner: the theme's ink, a text alternative, and no tool bar
    but, with ``save_as`` (a file's name), the button that saves it as PNG in the browser."""
    dark = st.context.theme.type == "dark"
    plots.ink(figure, *(("#e6e8ea", "#a3a9b0") if dark else ("#1f2328", "#5c646d")))
    config: dict[str, Any] = {"displayModeBar": bool(save_as), "responsive": True}
    if save_as:
        config |= {
            "modeBarButtons": [["toImage"]],
            "displaylogo": False,
            "toImageButtonOptions": {"format": "png", "filename": save_as, "scale": 2},
        }
    return st.plotly_chart(figure, config=config, alt=alt, **options)


def mask_svg(mask: np.ndarray, n_prefix: int, label: str) -> Html:
    """A picture of who sees whom: a row a query, filled cells what it sees.

    The look-ahead part, above the diagonal, has its own colour. Long sequences are sampled to
    at most 72 tokens a side, always keeping the first token and the prefix boundary.
    """
    total = len(mask)
    keep = np.unique(np.r_[0, np.linspace(0, total - 1, min(total, 72)).round().astype(int)])
    cut = mask[np.ix_(keep, keep)]
    size = len(keep)
    shapes = []
    for row in range(size):
        ahead = np.arange(size) > row
        for part, colour in ((cut[row] & ~ahead, plots.GREY), (cut[row] & ahead, plots.BLUE)):
            for start, stop in _spans(part):
                shapes.append(el("rect", x=start, y=row, width=stop - start, height=1, fill=colour))
    edge, thick = int((keep < n_prefix).sum()), size / 120
    lines = [
        el("rect", x=0, y=edge - thick / 2, width=size, height=thick, fill=plots.RED),
        el("rect", x=edge - thick / 2, y=0, width=thick, height=size, fill=plots.RED),
    ]
    svg = el(
        "svg",
        *shapes,
        *lines,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {size} {size}",
        shape_rendering="crispEdges",
        preserveAspectRatio="none",
    )
    # Streamlit's sanitiser drops inline SVG; as an image it stays, and cannot run anything.
    data = base64.b64encode(svg.encode()).decode()
    return el("img", src=f"data:image/svg+xml;base64,{data}", alt=label, cls="b-mask")


def _spans(row: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.r_[0, row.astype(int), 0]))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def legend(*entries: tuple[str, str]) -> Html:
    """Colour and word pairs."""
    squares = [
        el("span", el("span", cls="b-sq", style=f"background:{colour}"), word)
        for colour, word in entries
    ]
    return div("b b-legend", *squares)


@contextmanager
def waiting(words: str, *heights: int) -> Iterator[None]:
    """What is waited for and a block as tall, in pixels, as each part of what comes; drawn only where
    the wait is longer than a moment, and gone when it ends."""
    place = st.empty()
    blocks = [div("", style=f"height: {height}px", aria_hidden="true") for height in heights]
    skeleton = div("b b-wait", words, *blocks, role="status")
    timer = threading.Timer(WAIT_SECONDS, place.html, [str(skeleton)])
    add_script_run_ctx(timer)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # so that nothing is drawn after it ended
        place.empty()


WAIT_SECONDS = 0.3


def download(
    label: str, data: Any, name: str, mime: str, *, key: str, disabled: bool = False
) -> None:
    """A file to take away. ``data``: its bytes or text, or what makes them when it is asked for."""
    st.download_button(
        label,
        data,
        file_name=name,
        mime=mime,
        key=key,
        on_click="ignore",
        icon=":material/download:",
        disabled=disabled,
    )


Table: TypeAlias = pd.DataFrame | Callable[[], pd.DataFrame]


def _made(table: Table) -> pd.DataFrame:
    return table() if callable(table) else table


def csv_button(table: Table, name: str, *, key: str, label: str = "CSV") -> None:
    """Download a table; the file's name carries the run ids. Its texts are no formulas."""

    def data() -> bytes:
        safe = _made(table).map(csv_cell).rename(columns=csv_cell)
        return safe.to_csv(index=False).encode("utf-8")

    download(label, data, name, "text/csv", key=key)


MOST_MARKDOWN = 1000  # rows of a table to copy


def take_away(table: Table, name: str, *, key: str) -> None:
    """A table to take along: as CSV, and as Markdown to copy. ``table``: a frame, or what makes one
    when it is asked for; ``name``: of the file, with run ids."""
    with st.container(horizontal=True, width="content"):  # on a narrow page they wrap together
        csv_button(table, name, key=f"{key}-csv")
        with st.popover("Markdown", key=f"{key}-md", on_change="rerun") as copy:
            if copy.open:
                frame = _made(table)
                st.code(markdown_of(frame.head(MOST_MARKDOWN)), language=None)
                if len(frame) > MOST_MARKDOWN:
                    note(f"The first {fmt.count(MOST_MARKDOWN)} rows; the CSV has all.")


@st.fragment
def numbers(frame: pd.DataFrame, name: str, *, key: str) -> None:
    """A chart's numbers as a table to sort and take along, sent when it is opened."""
    with st.expander("The numbers as a table", key=f"{key}-fold", on_change="rerun") as fold:
        if fold.open:
            rounded = frame.round(4)
            st.dataframe(rounded, hide_index=True, key=f"{key}-table")
            with row():
                take_away(rounded, name.replace("/", "_"), key=key)


def markdown_of(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table: numbers to the right, texts inert."""
    from bidir_core.report.markdown import escape

    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame.columns]

    def cell(value: Any) -> str:
        if value is None or value is pd.NA or value != value:
            return ""
        return f"{value:.5g}" if isinstance(value, float) else escape(value)

    head = [escape(name) for name in frame.columns]
    rows = [[cell(value) for value in line] for line in frame.itertuples(index=False)]
    lines = [head, ["---:" if right else "---" for right in numeric], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code_text(text: object) -> Html:
    return el("span", esc(text), cls="b-mono")
