"""The control panel: what could have refuted the story, and what it showed."""

from __future__ import annotations

from bidir_ui import fmt, html, lab_view, widgets
from bidir_ui.lab_data import Lab

MARKS = {
    "supports": ("b-up", "● supports"),
    "refutes": ("b-down", "✕ refutes"),
    "partly": ("", "◐ partly"),
    "undecided": ("", "○ undecided"),
    "open": ("", "□ for information"),
}


def panel(lab: Lab) -> None:
    """One row a control: the question, what would refute the story, what was found."""
    widgets.heading("Controls that could refute it")
    rows = lab.found.get("controls") or []
    if not rows:
        widgets.not_run(
            "That one change removes the damage does not say why. One command asks what could "
            "refute the story:",
            lab_view.COMMANDS[-1],
        )
        return
    cells = []
    for row in rows:
        cls, word = MARKS.get(row["outcome"], MARKS["open"])
        cells.append(
            (
                html.join(
                    html.el("b", row["title"]), html.el("br"), html.el("small", row["question"])
                ),
                html.span(cls + " b-nowrap", word),
                fmt.tie(row["finding"]),
                row["refuted_by"],
            )
        )
    head = ("Control", "Outcome", "What it shows", "What would refute the story")
    html.show(widgets.table(head, cells, left=(0, 1, 2, 3)))
