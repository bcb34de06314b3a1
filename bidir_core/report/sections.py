"""The sections of a report: the answer, and an appendix in the order of the published summary."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from bidir_core.analyse import stats
from bidir_core.analyse.contrasts import in_words
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.pairing import repeats
from bidir_core.analyse.study import CAUSAL, Study, main_regime, ordered_cells
from bidir_core.analyse.verdict import size
from bidir_core.common import formatting
from bidir_core.common.errors import UserError
from bidir_core.report import answers, tables
from bidir_core.report.markdown import Table, bullets, code, escape
from bidir_core.runs.layout import FINETUNE_DIRS, LEAKY_WARNING, STAGES, evaluation_dir

Part = str | Table  # a Markdown paragraph, or a table


def build_sections(numbers: Findings) -> list[Section]:
    """Every section that the study has something for."""
    made = [(key, make(numbers)) for key, (_, make) in _SECTIONS.items()]
    kept = [(key, tuple(part for part in parts if part)) for key, parts in made]
    return [Section(key, parts) for key, parts in kept if parts]


def _scope(numbers: Findings) -> Sequence[Part]:
    run = numbers.study.some_run
    settings, metrics = run.settings, run.metrics or {}
    limit = settings.get("limit")
    how_many = f"first {limit} per task" if limit else "all items"
    if limit and settings.get("sample", "first") != "first":
        how_many = f"{limit} per task, {settings['sample']} sample"
    if settings.get("items_file"):
        how_many = "those that a file names (--items-file)"
    errors = sum((each.metrics or {}).get("n_errors") or 0 for each in numbers.study.all_runs)
    lines = [
        f"Base model: {code(numbers.study.model)}",
        f"Eval tasks: {', '.join(escape(in_words(task)) for task in run.tasks)}",
        f"Split: {code(settings.get('split', 'validation'))}; fold: "
        f"{code(settings.get('fold', 'all'))}",
        f"Items: {escape(how_many)}; n = {formatting.count(metrics.get('n_items') or 0)} in all; "
        f"could not be scored, over all runs: {formatting.count(errors)}",
        f"Bidirectional regime: {code(numbers.study.regime)}",
        f"Metric: {code(numbers.metric)}, macro = unweighted mean over tasks; intervals are 95 %; "
        f"differences are in points; equivalent means the whole interval lies within "
        f"{size(numbers.margin)}",
    ]
    if (times := repeats(settings)) != 1:
        lines.append(f"Each context is given {times} times, joined by a blank line")
    if settings.get("fold") == "explore":
        lines.append(
            "**Explore fold**: these items are for choosing recipes, so nothing below is a "
            "claim; make claims on the confirm fold"
        )
    source = run.config.get("source")
    if run.is_reference:
        lines.append(
            f"**Published numbers only** ({escape(source)}): no items, so nothing is paired"
        )
    return [bullets(lines)]


def _stages(numbers: Findings) -> Sequence[Part]:
    study = numbers.study
    have = {FINETUNE_DIRS[arm.code] for arm in study.arms if arm.code in FINETUNE_DIRS}
    for arm, regime in study.cells:
        checkpoint = None if arm == study.base else arm.code
        have.add(evaluation_dir(regime, checkpoint=checkpoint))
    lines = [
        f"{stage.name}: {stage.description}{'' if folder in have else ' - *not run*'}"
        for folder, stage in STAGES.items()
    ]
    return [bullets(lines)]


def _macro(numbers: Findings) -> Sequence[Part | None]:
    against = {
        cell: contrast
        for cell in numbers.study.cells
        if cell != numbers.stage1
        and (contrast := numbers.between(numbers.stage1, cell)) is not None
    }
    study = numbers.study
    hurts = [
        bullets(answers.how_much_it_hurts(numbers.damage(regime), escape(regime)))
        for regime in study.bidirectional_regimes(study.base)
    ]
    return [tables.macro_table(study, against), tables.seeds_note(study, against), *hurts]


def _per_task(numbers: Findings) -> Sequence[Part]:
    shown = [numbers.damage(r) for r in numbers.study.bidirectional_regimes(numbers.study.base)]
    cells = [cell for cell in ordered_cells(numbers.study) if cell[0] == numbers.study.base]
    for arm in numbers.study.trained("3B", "distill")[:1]:
        repair = numbers.repair(arm)
        shown += [repair.gain, repair.gap]
        cells.append((arm, numbers.study.own_regime(arm)))
    known = [contrast for contrast in shown if contrast is not None]
    parts: list[Part] = [tables.per_task_table(numbers.study, numbers.metric, cells, known)]
    if set(numbers.study.cells) - set(cells):
        parts += ["All arms:", tables.all_cells_table(numbers.study, numbers.metric)]
    return parts


def _non_prefill(numbers: Findings) -> Sequence[Part]:
    tried = numbers.study.trained("3B", "distill", "unknown")
    if not tried:
        return ["- Not run."]
    return [
        "Did fine-tuning help one condition at the expense of the other? Base and checkpoint, "
        "both under standard causal prefill:",
        *(bullets(answers.normal_behaviour(numbers.repair(arm))) for arm in tried),
    ]


def _two_by_two(numbers: Findings) -> Sequence[Part]:
    if len(numbers.study.arms) < 2:
        return []
    parts: list[Part] = [
        "Fine-tuning on these data may raise accuracy under any mask. Repair of the mask is "
        "what the fine-tune gains under its regime beyond what its control gains, less the "
        "same under causal: the interaction. 3B's control is 3C; distillation adds nothing "
        "but the base model's own predictions, so its control is the base model.",
        tables.two_by_two_table(numbers.study, numbers.metric),
        tables.interaction_table(numbers),
    ]
    for arm in numbers.study.trained("3B", "distill"):
        repair = numbers.repair(arm)
        parts.append(bullets(answers.can_it_be_fixed(repair)))
        shared = tables.same_training(numbers.study, arm) if arm.code == "3B" else None
        if shared is not None:
            parts.append(
                f"By their records, {escape(repair.arm)} and {escape(repair.control)} {shared}."
            )
    return parts


def _differences(numbers: Findings) -> Sequence[Part]:
    contrasts = numbers.contrasts()
    if not contrasts:
        return []
    notes = [
        f"{escape(in_words(contrast.title))}: {escape(note)}"
        for contrast in contrasts
        for note in contrast.notes
    ]
    return [
        "A verdict is *no difference* only if the whole interval lies within "
        f"{size(numbers.margin)}, *lower* or *higher* if it leaves out 0 (of a single task, only if the exact test "
        "agrees), else *undecided*. "
        "Detectable: the smallest true difference found with 80 % power.",
        tables.contrast_table(contrasts),
        bullets(dict.fromkeys(notes)),
    ]


def _churn(numbers: Findings) -> Sequence[Part]:
    contrasts = [
        contrast for contrast in numbers.contrasts(leaky=False) if contrast.basis == "paired"
    ]
    if not contrasts:
        return []
    text = (
        "Items whose correctness changed, in either direction (broken: right to wrong; fixed: "
        "wrong to right), and exact McNemar tests, Holm-adjusted over the tasks of a contrast. "
        "With several seeds, counts are means and there is one p value for each seed; with more than "
        f"{tables.MOST_P_VALUES}, the lowest and the highest."
    )
    return [text, tables.test_table(contrasts)]


def _leaky(numbers: Findings) -> Sequence[Part]:
    leaky = numbers.study.trained("3A")
    if not leaky:
        return []
    parts = [f"**{LEAKY_WARNING}**"]
    for arm in leaky:
        regime = numbers.study.own_regime(arm)
        contrasts = [
            numbers.between(numbers.stage1, (arm, regime)),
            numbers.between(numbers.stage1, (arm, CAUSAL)),
        ]
        lines = [
            f"{escape(contrast.b)} (LEAKY) against stage 1: {answers.against(contrast)}"
            for contrast in contrasts
            if contrast is not None
        ]
        parts.append(bullets(lines or ["It was not evaluated."]))
    return parts


def _curve(numbers: Findings) -> Sequence[Part]:
    if len(numbers.study.arms) < 2:
        return []
    table = tables.curve_table(numbers.study.finetunes)
    if not table:
        return ["- Not run: no quick evaluations were recorded."]
    text = (
        "Quick evaluations during training, on a few items of the explore fold: for the shape "
        "of the recovery, not for claims."
    )
    return [text, table]


def _artifacts(numbers: Findings) -> Sequence[Part]:
    left_out = bullets(_left_out(numbers.study.left_out))
    heading = "Left out of this report:" if left_out else ""
    return [tables.artifact_table(numbers.study), heading, left_out]


def _left_out(runs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A line for each reason: there may be dozens of runs with the same one."""
    by_reason: dict[str, list[str]] = {}
    for run, why in runs:
        by_reason.setdefault(why, []).append(code(run))
    for why, names in by_reason.items():
        if len(names) == 1:
            yield f"{names[0]}: {escape(why)}"
        else:
            yield f"{len(names)} runs, {escape(why)}: {', '.join(names)}"


# Key, heading, and what makes the paragraphs and tables under it (none that holds anything: no section).
_SECTIONS: dict[str, tuple[str, Callable[[Findings], Sequence[Part | None]]]] = {
    "answers": ("The Answer", answers.front_page),
    "scope": ("Scope", _scope),
    "stages": ("Stage Definitions", _stages),
    "macro": ("Macro Accuracy by Stage", _macro),
    "per_task": ("Per-Task: Stage 1 vs Stage 2 vs Stage 4", _per_task),
    "non_prefill": ("Additional Check: Non-Prefill Behavior After Finetune", _non_prefill),
    "two_by_two": ("Repair or Ordinary Tuning? The Complete 2x2", _two_by_two),
    "differences": ("Differences With Their Uncertainty", _differences),
    "churn": ("Churn and McNemar Tests per Task", _churn),
    "leaky": ("Leaky Exhibit: Stage 3A", _leaky),
    "training": ("Training", lambda numbers: [tables.recipe_table(numbers.study)]),
    "curve": ("Recovery Curve", _curve),
    "cost": ("Cost", lambda numbers: [tables.cost_table(numbers.study)]),
    "artifacts": ("Artifacts", _artifacts),
}

FRONT = "answers"
FLIPS = "flips"  # the items themselves are listed in the HTML file only
ALL_SECTIONS = {key: heading for key, (heading, _) in _SECTIONS.items()}
ALL_SECTIONS[FLIPS] = "The Items Behind the Numbers: Flips"


@dataclass(frozen=True)
class Report:
    """A finished report: sections of Markdown paragraphs and tables.

    ``numbers`` computed them, and remembers every contrast.
    """

    study: Study
    sections: tuple[Section, ...]
    numbers: Findings = field(repr=False)

    @property
    def title(self) -> str:
        """Plain text: the model and the date."""
        date = f" ({self.date})" if self.date else ""
        return f"Bidirectional prefill and {self.study.model}{date}"

    @property
    def date(self) -> str:
        """The day of the newest run, empty if none recorded it."""
        return max(
            (str(run.created.date()) for run in self.study.all_runs if run.created), default=""
        )

    @property
    def stem(self) -> str:
        """A file's name: the model and the date."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.study.model.rpartition("/")[2])[:60]
        return "_".join(part for part in ("report", name, self.date) if part)

    def command(
        self, only: Collection[str] | None = None, out: str = "report.html", flag: str = "--out"
    ) -> str:
        """The line that writes this report again or, with ``--paper`` as the flag, its paper."""
        line = ["python", "-m", "bidir_core", "report", *(run.id for run in self.study.all_runs)]
        if self.study.regime != main_regime(self.study.cells):
            line += ["--regime", self.study.regime]
        if self.numbers.metric != "acc":
            line += ["--metric", self.numbers.metric]
        if self.numbers.margin != stats.MARGIN:
            line += ["--margin", f"{100 * self.numbers.margin:g}"]
        if only is not None:
            line += ["--sections", ",".join(only)]
        return shlex.join([*line, flag, out])

    def chosen(self, only: Collection[str] | None = None) -> list[Section]:
        """All sections, or those with these keys (see :func:`check_sections`)."""
        check_sections(only)
        return [s for s in self.sections if only is None or s.key in only]

    def markdown(self, only: Collection[str] | None = None) -> str:
        """The whole report, or the sections with these keys."""
        chosen = self.chosen(only)
        shown = [section.markdown(2) for section in chosen if section.is_front]
        appendix = [section for section in chosen if not section.is_front]
        shown += ["## Appendix"] if appendix else []
        shown += [section.markdown(3) for section in appendix]
        return "\n\n".join([f"# {escape(self.title)}", *shown]) + "\n"

    def chosen_tables(self, only: Collection[str] | None = None) -> dict[str, Table]:
        """The tables of these sections by their keys."""
        return {table.key: table for section in self.chosen(only) for table in section.tables}

    @property
    def tables(self) -> dict[str, Table]:
        """Every table by its key."""
        return self.chosen_tables()


def check_sections(only: Collection[str] | None) -> None:
    """Raise UserError for a key that is no section's. ``flips`` is one that only HTML has."""
    for key in only or ():
        if key not in ALL_SECTIONS:
            raise UserError(
                f"there is no section '{key[:80]}'; choose from {', '.join(ALL_SECTIONS)}"
            )


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it: Markdown paragraphs and tables, in order."""

    key: str
    parts: tuple[Part, ...]

    @property
    def heading(self) -> str:
        return ALL_SECTIONS[self.key]

    @property
    def is_front(self) -> bool:
        """Whether it is the first page; everything else is the appendix."""
        return self.key == FRONT

    def markdown(self, level: int) -> str:
        shown = [p.markdown() if isinstance(p, Table) else p for p in self.parts]
        return "\n\n".join([f"{'#' * level} {self.heading}", *(text for text in shown if text)])

    @property
    def tables(self) -> list[Table]:
        return [part for part in self.parts if isinstance(part, Table)]
