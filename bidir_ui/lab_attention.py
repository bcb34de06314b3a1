"""The triviality control on the Lab page: an ``attend`` summary answers it beside the sweep itself.

A sweep cannot know of summaries made after it; the page can.
"""

from __future__ import annotations

from typing import Any

from bidir_core import jobs
from bidir_core.lab.controls import CONTROLS
from bidir_core.lab.points import SINK
from bidir_core.lab.triviality import largest_summary, observed, together
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL
from bidir_ui import html, observed_data, url
from bidir_ui.data import RunInfo
from bidir_ui.html import Html
from bidir_ui.lab_data import Lab
from bidir_ui.observed_data import Observed

NAMES = [control[0] for control in CONTROLS]
ITEMS = 20  # of each task, for a summary: 100 items in all, some minutes on two cores


def answered(
    lab: Lab, runs: tuple[RunInfo, ...], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A sweep's judged controls with what the largest fitting summary says of triviality."""
    summary = largest_summary(lab.settings, observed_data.listed(runs))
    own = next((row for row in rows if row["name"] == "triviality"), None)
    if summary is None and (own is not None or not rows):
        return rows
    others = [row for row in rows if row is not own]
    made = _row(lab, summary, own)
    place = sum(NAMES.index(row["name"]) < NAMES.index("triviality") for row in others)
    return [*others[:place], made, *others[place:]]


def _row(lab: Lab, summary: Observed | None, own: dict[str, Any] | None) -> dict[str, Any]:
    _, title, question, refuted_by, _ = CONTROLS[NAMES.index("triviality")]
    row = {"name": "triviality", "title": title, "question": question, "refuted_by": refuted_by}
    if summary is None:
        return row | {
            "outcome": "missing",
            "finding": "Not measured. This line observes it, and the answer then stands here:",
            "source": html.el("code", command(lab)),
        }
    answer = observed(summary.metrics)
    assert answer is not None
    outcome, finding = answer
    if own is not None:
        outcome = together(own["outcome"], outcome)
        finding = f"{own['finding']} On more items: {finding[0].lower()}{finding[1:]}"
    return row | {"outcome": outcome, "finding": finding, "source": _link(summary)}


def _link(summary: Observed) -> Html:
    href = url.href("masks", url.params(attend=summary.info.id))
    return html.join("Seen in ", html.el("a", summary.info.id, href=href, target="_self"), ".")


def command(lab: Lab) -> str:
    """The line that makes a summary for this sweep's model and prompts."""
    words = ["attend", "--model", lab.info.model]
    for name in ("revision", "checkpoint"):
        words += [f"--{name}", str(lab.settings[name])] if lab.settings.get(name) else []
    words += ["--task", ",".join(map(str, lab.settings.get("tasks") or [])), "--limit", str(ITEMS)]
    for regime in (CAUSAL, BIDIRECTIONAL, SINK):
        words += ["--regime", str(regime)]
    if lab.settings.get("bos") not in (None, "auto"):
        words += ["--bos", str(lab.settings["bos"])]
    return jobs.command_text(words + ["--chat-template"] * bool(lab.settings.get("chat_template")))
