"""The sections of a report, in the order of the published summary and then what it lacked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bidir_core import stats, words
from bidir_core.pairing import Metric
from bidir_core.reporting import accuracy_tables, answers, difference_tables, run_tables
from bidir_core.reporting.answers import Attempt
from bidir_core.reporting.arms import CAUSAL, Arm
from bidir_core.reporting.contrast import Contrast
from bidir_core.reporting.contrasts import cell_title, contrast, interaction, interaction_note
from bidir_core.reporting.markdown import Table, code, escape
from bidir_core.reporting.study import Cell, Study, ordered_cells

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
STAGES = (
    ("Stage 1", "vanilla baseline: the base model, causal prefill"),
    ("Stage 2", "ablated baseline: the base model, bidirectional prefill, no fine-tuning"),
    (
        "Stage 3B",
        "leakage-safe fine-tune: prompt bidirectional, response causal, loss on the response only "
        "(`--prompt-bidir-response-causal-train`)",
    ),
    ("Stage 3C", "control: same data, order, steps and seed as 3B, causal mask (`--causal-train`)"),
    ("Stage 3A (leaky)", "bidirectional over prompt and response: a warning exhibit, never a result"),
    (
        "Distil",
        "the base model's own causal predictions, taught under the bidirectional regime "
        "(`--distill`)",
    ),
    ("Stage 4", "a fine-tuned checkpoint under bidirectional prefill"),
    ("Non-prefill compare", "base and fine-tuned checkpoint, both causal"),
)  # fmt: skip


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


class Builder:
    """Builds the sections of one study; each contrast and each attempt is computed once."""

    def __init__(self, study: Study, metric: Metric, margin: float):
        self.study, self.metric, self.margin = study, metric, margin
        self._attempts: dict[Arm, Attempt] = {}
        self._contrasts: dict[tuple[Cell, Cell], Contrast | None] = {}

    def sections(self) -> list[Section]:
        return [
            section
            for section in (
                self._scope(), self._stages(), self._macro(), self._per_task(), self._answers(),
                self._non_prefill(), self._two_by_two(), self._differences(), self._churn(),
                self._leaky(), self._training(), self._curve(), self._cost(), self._artifacts(),
            )
            if section is not None
        ]  # fmt: skip

    # --- what is compared with what ---------------------------------------------------------

    def between(self, a: Cell, b: Cell) -> Contrast | None:
        """Cell b minus cell a, or None if either was not run."""
        if (a, b) not in self._contrasts:
            key = f"{cell_title(self.study, b)} minus {cell_title(self.study, a)}"
            self._contrasts[a, b] = contrast(
                key, self.study, a, b, metric=self.metric, margin=self.margin
            )
        return self._contrasts[a, b]

    @property
    def stage1(self) -> Cell:
        return self.study.base, CAUSAL

    def damage(self, regime: str | None = None) -> Contrast | None:
        return self.between(self.stage1, (self.study.base, regime or self.study.regime))

    def attempt(self, arm: Arm) -> Attempt:
        """Everything the answers need of one fine-tuned arm."""
        if arm not in self._attempts:
            self._attempts[arm] = self._attempt(arm)
        return self._attempts[arm]

    def _attempt(self, arm: Arm) -> Attempt:
        study, regime = self.study, self.study.own_regime(arm)
        control = study.control_of(arm) if arm.code == "3B" else None
        found = interaction(study, arm, metric=self.metric)
        named = "the base model" if arm.code == "distill" else control.title if control else "3C"
        return Attempt(
            arm=escape(arm.title),
            control=escape(named),
            regime=escape(regime),
            gain=self.between((study.base, regime), (arm, regime)),
            gap=self.between(self.stage1, (arm, regime)),
            control_gap=self.between((control, CAUSAL), (arm, regime)) if control else None,
            normal=self.between(self.stage1, (arm, CAUSAL)),
            control_normal=self.between((control, CAUSAL), (arm, CAUSAL)) if control else None,
            interaction=found if isinstance(found, str) else found[0],
            interaction_note=interaction_note(study, arm),
            margin=self.margin,
        )

    def contrasts(self, *, leaky: bool = True) -> list[Contrast]:
        """All of them, in reading order."""
        study = self.study
        pairs: list[tuple[Cell, Cell]] = [
            (self.stage1, (study.base, regime))
            for regime in study.bidirectional_regimes(study.base)
        ]
        for arm in study.arms:
            if arm == study.base or (arm.leaky and not leaky):
                continue
            for regime in study.bidirectional_regimes(arm):
                pairs += [((study.base, regime), (arm, regime)), (self.stage1, (arm, regime))]
            pairs.append((self.stage1, (arm, CAUSAL)))
            control = study.control_of(arm) if arm.code == "3B" else None
            if control is not None:
                own = study.own_regime(arm)
                pairs += [
                    ((control, own), (arm, own)),
                    ((control, CAUSAL), (arm, CAUSAL)),
                    ((control, CAUSAL), (arm, own)),
                ]
        found = [self.between(a, b) for a, b in dict.fromkeys(pairs)]
        return [one for one in found if one is not None]

    # --- sections ---------------------------------------------------------------------------

    def _scope(self) -> Section:
        run = self.study.some_run
        settings, metrics = run.settings, run.metrics or {}
        limit = settings.get("limit")
        how_many = f"first {limit} per task" if limit else "all items"
        if limit and settings.get("sample", "first") != "first":
            how_many = f"{limit} per task, {settings['sample']} sample"
        errors = sum((one.metrics or {}).get("n_errors") or 0 for one in self.study.all_runs)
        lines = [
            f"Base model: {code(self.study.model)}",
            f"Eval tasks: {', '.join(code(task) for task in run.tasks)}",
            f"Split: {code(settings.get('split', 'validation'))}; fold: "
            f"{code(settings.get('fold', 'all'))}",
            f"Items: {escape(how_many)}; n = {words.count(metrics.get('n_items') or 0)} in all; "
            f"could not be scored, over all runs: {words.count(errors)}",
            f"Bidirectional regime: {code(self.study.regime)}",
            f"Metric: {code(self.metric)}, macro = unweighted mean over tasks; intervals are 95 %; "
            f"differences are in points; equivalent means the whole interval lies within "
            f"{answers.size(self.margin)}",
        ]
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
        return Section("scope", (bullets(lines),))

    def _stages(self) -> Section:
        have = {
            "Stage 1": bool(self.study.runs(*self.stage1)),
            "Stage 2": bool(self.study.bidirectional_regimes(self.study.base)),
            "Stage 3B": bool(self.study.trained("3B")),
            "Stage 3C": bool(self.study.trained("3C")),
            "Stage 3A (leaky)": bool(self.study.trained("3A")),
            "Distil": bool(self.study.trained("distill")),
            "Stage 4": any(a != self.study.base and r != CAUSAL for a, r in self.study.cells),
            "Non-prefill compare": any(
                a != self.study.base and r == CAUSAL for a, r in self.study.cells
            ),
        }
        lines = [f"{name}: {what}{'' if have[name] else ' - *not run*'}" for name, what in STAGES]
        return Section("stages", (bullets(lines),))

    def _macro(self) -> Section:
        against = {
            cell: found
            for cell in self.study.cells
            if cell != self.stage1 and (found := self.between(self.stage1, cell)) is not None
        }
        parts: list[str | Table] = [accuracy_tables.macro_table(self.study, against)]
        parts += [note] if (note := accuracy_tables.seeds_note(self.study, against)) else []
        derived = list(self._derived())
        if derived:
            parts += ["Derived:", bullets(derived)]
        return Section("macro", tuple(parts))

    def _derived(self) -> Iterator[str]:
        for regime in self.study.bidirectional_regimes(self.study.base):
            damage = self.damage(regime)
            if damage is not None and damage.ratio is not None:
                yield (
                    f"{capital(damage.b)} change vs Stage 1: `{damage.value:+.10f}` (retention "
                    f"`{damage.ratio:.3f}x`){_ci(damage)}"
                )
        for arm in self.study.trained("3B", "distill", "3A"):
            attempt = self.attempt(arm)
            label = f"Stage 4 ({attempt.arm})"
            if attempt.gain is not None:
                yield (
                    f"{label} change vs Stage 2: `{attempt.gain.value:+.10f}` (about "
                    f"`{100 * attempt.gain.value:+.2f}` macro points){_ci(attempt.gain)}"
                )
            if attempt.gap is not None and attempt.gap.ratio is not None:
                yield f"{label} retention vs Stage 1: `{attempt.gap.ratio:.4f}x`{_ci(attempt.gap)}"
        if self.study.trained("3B", "distill", "3A"):
            yield (
                "A change is not yet a repair: see *Repair or Ordinary Tuning?* for the interaction"
            )

    def _per_task(self) -> Section:
        shown = [self.damage(r) for r in self.study.bidirectional_regimes(self.study.base)]
        cells = [cell for cell in ordered_cells(self.study) if cell[0] == self.study.base]
        for arm in self.study.trained("3B", "distill")[:1]:
            attempt = self.attempt(arm)
            shown += [attempt.gain, attempt.gap]
            cells.append((arm, self.study.own_regime(arm)))
        known = [one for one in shown if one is not None]
        parts: list[str | Table] = [
            accuracy_tables.per_task_table(self.study, self.metric, cells, known)
        ]
        if set(self.study.cells) - set(cells):
            parts += ["All arms:", accuracy_tables.all_cells_table(self.study, self.metric)]
        return Section("per_task", tuple(parts))

    def _answers(self) -> Section:
        study = self.study
        parts = [
            "### 1) How much does prefill bidirectional attention hurt performance?",
            bullets(answers.how_much_it_hurts(self.damage(), escape(study.regime))),
        ]
        for regime in study.bidirectional_regimes(study.base):
            if regime != study.regime:
                parts.append(
                    bullets(answers.how_much_it_hurts(self.damage(regime), escape(regime)))
                )
        parts.append("### 2) Can this be fixed easily with a bit of finetuning?")
        tried = study.trained("3B", "distill")
        if not tried:
            parts.append("- Not run: no fine-tune is part of this report.")
        for arm in tried:
            regime = study.own_regime(arm)
            parts.append(bullets(answers.can_it_be_fixed(self.damage(regime), self.attempt(arm))))
        return Section("answers", tuple(parts))

    def _non_prefill(self) -> Section:
        tried = self.study.trained("3B", "distill", "unknown")
        if not tried:
            return Section("non_prefill", ("- Not run.",))
        parts: list[str] = [
            "Did fine-tuning help one condition at the expense of the other? Base and checkpoint, "
            "both under standard causal prefill:"
        ]
        for arm in tried:
            attempt = self.attempt(arm)
            normal = attempt.normal
            if normal is not None and normal.ratio is not None:
                parts.append(
                    bullets(
                        [
                            f"Vanilla non-prefill macro: `{normal.acc_a:.10f}`",
                            f"{attempt.arm} checkpoint non-prefill macro: `{normal.acc_b:.10f}`",
                            f"Delta: `{normal.value:+.10f}` (retention `{normal.ratio:.4f}x`)",
                        ]
                    )
                )
            parts += ["Interpretation:", bullets(answers.normal_behaviour(attempt))]
        return Section("non_prefill", tuple(parts))

    def _two_by_two(self) -> Section | None:
        if len(self.study.arms) < 2:
            return None
        parts: list[str | Table] = [
            "Fine-tuning on these data may raise accuracy under any mask. Repair of the mask is "
            "what the fine-tune gains under its regime beyond what its control gains, less the "
            "same under causal: the interaction. 3B's control is 3C; distillation adds nothing "
            "but the base model's own predictions, so its control is the base model.",
            accuracy_tables.two_by_two_table(self.study, self.metric),
        ]
        table = difference_tables.interaction_table(self.study, self.metric, self.margin)
        if table:
            parts.append(table)
        for arm in self.study.trained("3B", "distill"):
            attempt = self.attempt(arm)
            parts.append(bullets([answers.repair_or_tuning(attempt)]))
            shared = run_tables.same_training(self.study, arm) if arm.code == "3B" else None
            if shared is not None:
                parts.append(f"By their records, {attempt.arm} and {attempt.control} {shared}.")
        return Section("two_by_two", tuple(parts))

    def _differences(self) -> Section | None:
        found = self.contrasts()
        if not found:
            return None
        notes = [f"{escape(one.key)}: {escape(note)}" for one in found for note in one.notes]
        parts: list[str | Table] = [
            "A verdict is *no difference* only if the whole interval lies within "
            f"{answers.size(self.margin)}, *different* if it leaves out 0, else *undecided*. "
            "Detectable: the smallest true difference found with 80 % power.",
            difference_tables.contrast_table(found),
        ]
        if notes:
            parts.append(bullets(dict.fromkeys(notes)))
        return Section("differences", tuple(parts))

    def _churn(self) -> Section | None:
        found = [one for one in self.contrasts(leaky=False) if one.basis == "paired"]
        if not found:
            return None
        text = (
            "Items whose correctness changed, in either direction (broken: right to wrong; fixed: "
            "wrong to right), and exact McNemar tests, Holm-adjusted over the tasks of a contrast. "
            "With several seeds, counts are means and there is one p value for each seed."
        )
        return Section("churn", (text, difference_tables.test_table(found)))

    def _leaky(self) -> Section | None:
        leaky = self.study.trained("3A")
        if not leaky:
            return None
        parts = [f"**{answers.LEAKY_WARNING}**"]
        for arm in leaky:
            regime = self.study.own_regime(arm)
            found = [
                self.between(self.stage1, (arm, regime)), self.between(self.stage1, (arm, CAUSAL))
            ]  # fmt: skip
            lines = [
                f"{escape(one.b)} (LEAKY) against stage 1: {answers.against(one)}"
                for one in found
                if one is not None
            ]
            parts.append(bullets(lines or ["It was not evaluated."]))
        return Section("leaky", tuple(parts))

    def _training(self) -> Section | None:
        table = run_tables.recipe_table(self.study)
        return Section("training", (table,)) if table else None

    def _curve(self) -> Section | None:
        if len(self.study.arms) < 2:
            return None
        table = run_tables.curve_table(self.study)
        text = (
            "Quick evaluations during training, on a few items of the explore fold: for the shape "
            "of the recovery, not for claims."
        )
        parts = (text, table) if table else ("- Not run: no quick evaluations were recorded.",)
        return Section("curve", parts)

    def _cost(self) -> Section | None:
        table = run_tables.cost_table(self.study)
        return Section("cost", (table,)) if table else None

    def _artifacts(self) -> Section:
        parts: list[str | Table] = [run_tables.artifact_table(self.study)]
        if self.study.left_out:
            parts.append("Left out of this report:")
            parts.append(bullets(f"{code(run)}: {escape(why)}" for run, why in self.study.left_out))
        return Section("artifacts", tuple(parts))


def bullets(lines: object) -> str:
    return "\n".join(f"- {line}" for line in lines if line)  # type: ignore[attr-defined]


def capital(text: str) -> str:
    shown = escape(text)
    return shown[:1].upper() + shown[1:]


def _ci(one: Contrast) -> str:
    if one.interval is None:
        return "; no interval"
    source = "unpaired " if one.basis == "unpaired" else ""
    estimate: stats.Estimate = one.interval
    return f"; difference in points, {source}{answers.interval_of(estimate)}"
