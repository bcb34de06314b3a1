"""A table of the report on a page. Apart from the widgets, since most pages need none of it."""

from __future__ import annotations

from bidir_core.report import html_page
from bidir_core.report.markdown import Table
from bidir_ui.kit import widgets
from bidir_ui.kit.html import Html, el


def report_table(table: Table) -> Html:
    """A table of the report; a long one is folded."""
    kinds = [column.kind for column in table.columns]
    left = [i for i, kind in enumerate(kinds) if kind in ("text", "code")]
    rows = [
        [_cell(text, kind) for text, kind in zip(row, kinds, strict=True)] for row in table.texts()
    ]
    shown = widgets.table([column.name for column in table.columns], rows, left=left)
    if len(rows) > html_page.FOLDED:
        words = f"Table, {len(rows)} rows"
        shown = el("details", el("summary", words), shown, cls="b b-fold")
    return shown


def _cell(text: str, kind: str) -> object:
    if kind == "code":
        long = len(text) > html_page.LONG
        return el("span", text, cls="b-mono b-long" if long else "b-mono")
    return text if kind == "text" else html_page.tied(text)
