"""A section of a report: its key, its heading and what stands under it."""

from __future__ import annotations

from dataclasses import dataclass

from bidir_core.reporting.markdown import Table

SECTIONS = {
    "scope": "Scope",
    "stages": "Stage Definitions",
    "macro": "Macro Accuracy by Stage",
    "per_task": "Per-Task: Stage 1 vs Stage 2 vs Stage 4",
    "answers": "Direct Answer to the Main Questions",
    "non_prefill": "Additional Check: Non-Prefill Behavior After Finetune",
    "two_by_two": "Repair or Ordinary Tuning? The Complete 2x2",
    "differences": "Differences With Their Uncertainty",
    "churn": "Churn and McNemar Tests per Task",
    "leaky": "Leaky Exhibit: Stage 3A",
    "training": "Training",
    "curve": "Recovery Curve",
    "cost": "Cost",
    "artifacts": "Artifacts",
}
# The items themselves are listed in the HTML file only.
FLIPS = "flips"
ALL_SECTIONS = {**SECTIONS, FLIPS: "The Items Behind the Numbers: Flips"}


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it: Markdown paragraphs and tables, in order."""

    key: str
    parts: tuple[str | Table, ...]

    @property
    def heading(self) -> str:
        return SECTIONS[self.key]

    def markdown(self) -> str:
        shown = [p.markdown() if isinstance(p, Table) else p for p in self.parts]
        return "\n\n".join([f"## {self.heading}", *(text for text in shown if text)])

    @property
    def tables(self) -> list[Table]:
        return [part for part in self.parts if isinstance(part, Table)]
