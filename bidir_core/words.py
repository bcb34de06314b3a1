"""Sentences and text tables computed from numbers and their uncertainty; either way is sayable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bidir_core import stats
from bidir_core.regimes import parse_regime
from bidir_core.retention import Retention

if TYPE_CHECKING:
    from bidir_core.compare import Comparison, Row
    from bidir_core.store import Run


def points(fraction: float, *, signed: bool = False) -> str:
    """0.0471 -> ``4.7``; signed ``+4.7``. A true minus sign is not used: tables get parsed."""
    value = round(100 * fraction, 1) + 0.0  # no "-0.0"
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def count(n: int) -> str:
    return f"{n:,}"


def p_text(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def subject(run_a: Run, run_b: Run) -> str:
    """What was changed between two runs, as the subject of a sentence."""
    regime_a, regime_b = parse_regime(run_a.regime), parse_regime(run_b.regime)
    check_a, check_b = run_a.settings.get("checkpoint"), run_b.settings.get("checkpoint")
    if run_a.model == run_b.model and check_a == check_b:
        if regime_a.is_causal and not regime_b.is_causal:
            dials = str(regime_b).partition(":")[2]
            return "Bidirectional prefill" + (f" ({dials})" if dials else "")
        if regime_a != regime_b:
            return f"Going from {regime_a} to {regime_b}"
        return "The second run"
    if run_a.model == run_b.model and check_a is None and regime_a == regime_b:
        return "Fine-tuning" + ("" if regime_a.is_causal else f" (both under {regime_a})")
    if run_a.model == run_b.model and check_a is None:
        return f"Going from the base model under {regime_a} to a fine-tune under {regime_b}"
    return f"'{run_b.id}' against '{run_a.id}'"


def verdict_sentence(
    who: str,
    estimate: stats.Estimate,
    *,
    tasks: Sequence[str],
    metric: str = "acc",
    margin: float = stats.MARGIN,
) -> str:
    """One honest sentence, such as "Bidirectional prefill lowers macro accuracy by 4.7 points
    (95 % CI 3.9 to 5.4, n = 2,299, 5 tasks); different."

    Direction words (raises, lowers) appear only when the interval excludes 0.
    """
    verdict = stats.verdict(estimate, margin=margin)
    what = "macro accuracy" if len(tasks) > 1 else f"accuracy on {tasks[0]}"
    if metric != "acc":
        what += f" ({metric})"
    base = f"n = {count(estimate.n)}, {len(tasks)} task{'s' if len(tasks) > 1 else ''}"
    if estimate.excludes_zero:
        verb = "raises" if estimate.value > 0 else "lowers"
        near, far = sorted((abs(estimate.low), abs(estimate.high)))
        change = f"{verb} {what} by {points(abs(estimate.value))} points"
        interval = f"95 % CI {points(near)} to {points(far)}"
    else:
        change = f"changes {what} by {points(estimate.value, signed=True)} points"
        interval = (
            f"95 % CI {points(estimate.low, signed=True)} to {points(estimate.high, signed=True)}"
        )
    return f"{who} {change} ({interval}, {base}); {_ending(estimate, verdict, margin)}."


def row_words(
    estimate: stats.Estimate, verdict: stats.Verdict, *, margin: float = stats.MARGIN
) -> str:
    """A table cell's words for one task."""
    if verdict == "different":
        return "higher" if estimate.value > 0 else "lower"
    return _ending(estimate, verdict, margin)


def _ending(estimate: stats.Estimate, verdict: stats.Verdict, margin: float) -> str:
    if verdict == "different":
        return "different"
    size = f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"
    if verdict == "no difference":
        return f"no difference {'beyond' if estimate.excludes_zero else 'within'} {size}"
    if estimate.excludes_zero:
        return "undecided once the number of tasks is allowed for (Holm)"
    return f"undecided, needs about n = {count(stats.n_to_decide(estimate, margin=margin))}"


def retention_text(kept: Retention) -> str:
    if kept.value is None or kept.low is None or kept.high is None:
        return f"suppressed: {kept.why_suppressed}"
    return (
        f"{100 * kept.value:.1f} % (95 % CI {100 * kept.low:.1f} to {100 * kept.high:.1f} %, "
        f"n = {count(kept.n)})"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1) -> str:
    """An aligned text table; the first ``left`` columns and the last are left-aligned."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    last = len(header) - 1
    lines = []
    for row in cells:
        parts = [
            cell.ljust(width) if i < left or i == last else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def comparison_text(result: Comparison) -> str:
    """A comparison for the terminal."""
    header = (
        "task", "n", "a", "b", "delta", "95 % CI", "broken", "fixed", "churn",
        "p (McNemar)", "p (Holm)", "detectable", "verdict",
    )  # fmt: skip

    def line(row: Row) -> list[str]:
        return [
            row.task,
            count(row.n),
            f"{row.acc_a:.4f}",
            f"{row.acc_b:.4f}",
            points(row.delta, signed=True),
            f"{points(row.low, signed=True)} to {points(row.high, signed=True)}",
            count(row.broken),
            count(row.fixed),
            f"{points(row.churn / row.n)} %",
            p_text(row.p_value),
            p_text(row.p_holm),
            "-" if row.detectable is None else points(row.detectable),
            row.words,
        ]

    lines = [
        f"a: {result.run_a}",
        f"b: {result.run_b}",
        f"metric {result.metric}; differences (b - a) and intervals in points",
        "",
        table(header, [line(row) for row in result.rows]),
        "",
        result.sentence,
    ]
    if result.plain_ratio is not None:
        lines.append(f"plain ratio b/a: {result.plain_ratio:.3f}x")
    lines.append(f"kept above chance: {retention_text(result.above_chance)}")
    if result.above_no_context is not None:
        lines.append(f"kept above no context: {retention_text(result.above_no_context)}")
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])
