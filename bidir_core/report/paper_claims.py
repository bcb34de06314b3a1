"""A paper's claims: what is claimed, by which runs and test, what would refute it, its status.

A status is computed, never written: ``supported``, ``refuted`` or ``undecided``, from where the
95 % interval lies. A claim whose runs are missing is undecided, and says that it is untested.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bidir_core.analyse import stats
from bidir_core.analyse.contrasts import Contrast, TaskDelta
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.study import CAUSAL, Arm, Cell
from bidir_core.analyse.verdict import Verdict
from bidir_core.report.markdown import Column, Table

Status = Literal["supported", "undecided", "refuted"]
Wanted = Literal["lower", "higher", "not lower"]
METRICS = {"acc": "accuracy", "acc_norm": "length-normalised accuracy"}

_HOLDS: dict[Wanted, tuple[Verdict, ...]] = {
    "lower": ("worse",),
    "higher": ("better",),
    "not lower": ("equivalent", "better"),
}
PAIRED = (
    "paired difference over the same items: Tango's score interval by task, combined over tasks "
    "by MOVER"
)
PAIRED_SEEDS = "paired difference over the same items, mean over seeds, normal interval"
UNPAIRED = "unpaired difference of accuracies, normal interval: wider than a paired one would be"
NO_TEST = "none: too few numbers are known"
INTERACTION = "per-item interaction over the same items, mean over tasks, normal interval"
RULE = (
    "A claim of a difference is supported by a 95 % interval on its side of 0, refuted by one on "
    "the other side or wholly within the margin of 0, and undecided otherwise. A claim of no cost "
    "or of a level reached is supported by an interval wholly within the margin or above 0, "
    "refuted by one below 0 that is not within the margin. A single task must also pass Holm's "
    "adjustment."
)
MCNEMAR = "exact McNemar test, Holm-adjusted over the tasks, and Tango's score interval"


@dataclass(frozen=True)
class Claim:
    """``quantity`` is what ``interval`` estimates, as a fraction; ``numbers`` stand beside it."""

    claim: str
    status: Status
    reason: str
    quantity: str
    numbers: dict[str, Any]
    test: str
    runs: tuple[str, ...]
    cautions: tuple[str, ...]
    interval: stats.Estimate | None


def status_of(verdict: Verdict, wanted: Wanted) -> Status:
    """Whether a verdict bears out a claim; no difference beyond the margin refutes "lower"."""
    if verdict == "undecided":
        return "undecided"
    return "supported" if verdict in _HOLDS[wanted] else "refuted"


def make_claims(numbers: Findings) -> list[Claim]:
    """Every claim that the study's runs speak to, in reading order."""
    study, metric = numbers.study, METRICS[numbers.metric]
    claims: list[Claim] = []

    def compare(a: Cell, b: Cell, wanted: Wanted, statement: str) -> None:
        contrast = numbers.between(a, b)
        if contrast is not None:
            claims.append(_of_contrast(numbers, contrast, wanted, statement))

    no_cost = f"costs no macro {metric} under causal attention."
    for regime in study.bidirectional_regimes(study.base):
        stage2, lead = (study.base, regime), f"Without training, {regime} prefill"
        compare(numbers.stage1, stage2, "lower", f"{lead} lowers macro {metric}.")
        damage = numbers.between(numbers.stage1, stage2)
        if damage is not None and damage.basis == "paired":
            for row in damage.tasks:
                statement = f"{lead} lowers {metric} on {row.task}."
                claims.append(_of_contrast(numbers, damage, "lower", statement, row))
        if regime != study.regime:
            statement = f"{lead} keeps more macro {metric} than {study.regime} prefill."
            compare((study.base, study.regime), stage2, "higher", statement)
    for arm in study.trained("3B", "distill"):
        name, regime = arm.title, study.own_regime(arm)
        stage4, causal = (arm, regime), (arm, CAUSAL)
        training = f"Fine-tuning {name}" if arm.code == "3B" else f"Distillation ({name})"
        statement = f"{training} raises macro {metric} under {regime} prefill."
        compare((study.base, regime), stage4, "higher", statement)
        statement = (
            f"{name} under {regime} prefill reaches the macro {metric} of the base model under "
            "causal attention."
        )
        compare(numbers.stage1, stage4, "not lower", statement)
        if study.runs(*stage4):
            claims.append(_interaction(numbers, arm))
        compare(numbers.stage1, causal, "not lower", f"{training} {no_cost}")
        control = study.control_of(arm) if arm.code == "3B" else None
        if control is not None:
            statement = (
                f"At equal training, {regime} prefill costs no macro {metric}: {name} under it "
                f"against {control.title} under causal attention."
            )
            compare((control, CAUSAL), stage4, "not lower", statement)
            statement = f"Training {name} under the mask, instead of {control.title}, {no_cost}"
            compare((control, CAUSAL), causal, "not lower", statement)
    return claims


def _of_contrast(
    numbers: Findings,
    contrast: Contrast,
    wanted: Wanted,
    statement: str,
    row: TaskDelta | None = None,
) -> Claim:
    """A claim about the direction of a contrast, or of one task of it."""
    if row is not None:
        test = MCNEMAR
    elif contrast.basis == "paired":
        test = PAIRED if contrast.n_seeds < 2 else PAIRED_SEEDS
    else:
        test = UNPAIRED if contrast.basis == "unpaired" else NO_TEST
    source, judgement = row or contrast, (row or contrast).judgement
    values: dict[str, Any] = {
        "first": source.acc_a,
        "second": source.acc_b,
        "difference": row.delta if row is not None else contrast.value,
    }
    if row is not None:
        values |= {"p": judgement.p_values, "p_holm": judgement.p_adjusted}
    return Claim(
        statement,
        status_of(judgement.verdict, wanted),
        "" if source.interval else "no interval can be computed from what the runs hold",
        contrast.title + (f", {row.task}" if row else ""),
        values | _ends(source.interval),
        test,
        tuple(dict.fromkeys(run for pair in contrast.runs for run in pair)),
        (*_fold_caution(numbers), *contrast.notes),
        source.interval,
    )


def _interaction(numbers: Findings, arm: Arm) -> Claim:
    """The only claim of repair: what the mask's own training adds beyond ordinary tuning."""
    study, regime = numbers.study, numbers.study.own_regime(arm)
    statement = (
        f"Part of what {arm.title} gains over the base model under {regime} prefill is repair of "
        "the mask, not ordinary tuning."
    )
    interaction = numbers.interaction(arm)
    if isinstance(interaction, str):
        cells = [study.runs(arm, regime), study.runs(arm, CAUSAL)]
        runs = tuple(run.id for by_seed in cells for run in by_seed.values())
        quantity, reason = "interaction with the control", f"not tested: {interaction}"
        return Claim(statement, "undecided", reason, quantity, {}, INTERACTION, runs, (), None)
    estimate = interaction.effect.estimate
    return Claim(
        statement,
        status_of(numbers.judged(estimate).verdict, "higher"),
        "",
        f"({arm.title} minus {interaction.control.title} under {regime}) - (the same under causal)",
        {"difference": estimate.value} | _ends(estimate),
        INTERACTION,
        tuple(dict.fromkeys(run for ids in interaction.runs for run in ids)),
        _fold_caution(numbers),
        estimate,
    )


def _fold_caution(numbers: Findings) -> tuple[str, ...]:
    """What a reader of a claim must know besides its status."""
    if numbers.study.some_run.settings.get("fold") != "explore":
        return ()
    return ("explore fold: for choosing recipes; a claim needs the confirm fold",)


def _ends(interval: stats.Estimate | None) -> dict[str, float]:
    return {} if interval is None else {"low": interval.low, "high": interval.high, "n": interval.n}


# The claims as a table and as JSON.


def claims_table(claims: Iterable[Claim]) -> Table:
    difference = Column("Difference (points)", "estimate", "no interval")
    columns = [Column("Claim"), Column("Statement"), difference, Column("Status")]
    rows = [(f"C{i}", c.claim, c.interval, c.status) for i, c in enumerate(claims, 1)]
    return Table("claims", columns, list(rows))


def claims_json(numbers: Findings, claims: Sequence[Claim]) -> dict[str, Any]:
    """Differences and interval ends are fractions, not points."""
    settings = numbers.study.some_run.settings
    return {
        "metric": numbers.metric,
        "margin": numbers.margin,
        **{name: settings.get(name) for name in ("split", "fold", "limit", "sample")},
        "rule": RULE,
        "claims": [
            {"id": f"C{number}"} | {k: v for k, v in vars(claim).items() if k != "interval"}
            for number, claim in enumerate(claims, 1)
        ],
    }
