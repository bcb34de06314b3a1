"""Numbers to sentences. Every sentence can come out either way.

Two rules hold throughout. A gain is called repair only if the interaction with the control is
above 0; otherwise it may be ordinary tuning. "No cost" and "no difference" are said only of an
interval that lies wholly inside the margin; an interval that is merely wide is "undecided".
"""

from __future__ import annotations

from typing import Literal

from bidir_core.analyse import stats
from bidir_core.analyse.contrasts import Contrast
from bidir_core.analyse.effects import Retention
from bidir_core.analyse.judgement import Repair
from bidir_core.analyse.phrases import in_points, interval_of, phrase, retention_text, size
from bidir_core.analyse.verdict import Judgement
from bidir_core.common import formatting
from bidir_core.report.markdown import escape

Key = Literal["better", "worse", "equivalent", "undecided", "unknown"]


def _key(judgement: Judgement) -> Key:
    """The verdict; ``unknown`` without an interval."""
    return "unknown" if judgement.estimate is None else judgement.verdict


def _why(judgement: Judgement) -> str:
    """The test that leaves a difference undecided though its interval excludes 0, or nothing."""
    by_test = judgement.reason in ("exact test", "several tests")
    return f"; {phrase(judgement)}" if by_test else ""


def how_much_it_hurts(damage: Contrast | None, regime: str) -> list[str]:
    """Question 1, as list entries."""
    if damage is None:
        return ["Not run: it takes stage 1 and stage 2 over the same items."]
    who = f"Without adaptation, {regime} prefill"
    lead = {
        "worse": f"It hurts. {who} lowers macro accuracy",
        "better": f"It does not hurt here. {who} raises macro accuracy",
        "equivalent": f"It makes no difference beyond {size(damage.margin)}. {who} moves macro accuracy",
        "undecided": f"These runs do not decide it. {who} moves macro accuracy",
        "unknown": f"{who} moves macro accuracy",
    }[_key(damage.judgement)]
    return [f"{lead} {change(damage)}{_why(damage.judgement)}.", kept(damage)]


def can_it_be_fixed(repair: Repair) -> list[str]:
    """Question 2 for one arm, as list entries; the first is the short answer."""
    if repair.gain is None and repair.gap is None:
        return [f"Not run: no evaluation of {escape(repair.arm)} under {escape(repair.regime)}."]
    lines = [f"**{escape(repair.arm)}**: {short_answer(repair)}."]
    if repair.gain is not None:
        verb = _verb(repair.gain, "raises", "lowers")
        lines.append(
            f"Against stage 2, fine-tuning {verb} macro accuracy under {escape(repair.regime)} "
            f"{change(repair.gain)}."
        )
    if repair.gap is not None:
        lines.append(f"{against_stage_1(repair.gap)} {kept(repair.gap)}")
    lines.append(repair_or_tuning(repair))
    if repair.control_gap is not None:
        lines.append(cost_of_the_mask(repair.control_gap, escape(repair.control)))
    return lines


def short_answer(repair: Repair) -> str:
    """Yes, partially, no, or why that cannot be said."""
    gap = _key(repair.gap.judgement) if repair.gap else "unknown"
    margin = repair.gap.margin if repair.gap else stats.MARGIN
    level = {
        "better": "the level of stage 1 is passed",
        "equivalent": f"stage 1 is reached within {size(margin)}",
        "worse": "but not back to stage 1",
        "undecided": "whether stage 1 is reached is undecided",
        "unknown": "whether stage 1 is reached cannot be said",
    }[gap]
    better = f"Accuracy improves, {level}"
    return {
        "nothing to repair": "There was nothing to repair: stage 2 is not below stage 1",
        "no gain": "No: fine-tuning does not raise accuracy under bidirectional prefill",
        "gain undecided": "Undecided: the runs do not show whether fine-tuning raises accuracy",
        "repaired": f"Yes, {level}",
        "partly repaired": f"Partially, {level}",
        "repaired, level undecided": f"At least in part; {level}",
        "no control": f"{better}; that this is repair, and not ordinary tuning, is not shown",
        "repair undecided": f"{better}; whether this is repair or ordinary tuning is undecided",
        "tuning": f"{better}; it is not repair of the mask: the control gains as much",
    }[repair.outcome]


def repair_or_tuning(repair: Repair) -> str:
    """What the interaction says."""
    interaction = repair.interaction
    if interaction is None or interaction.estimate is None:
        return (
            f"Repair cannot be told from ordinary tuning: {escape(repair.missing)}. The interaction "
            "needs the fine-tune and its control under both regimes."
        )
    number = in_points(interaction)
    meaning = {
        "better": "above 0: part of the gain is repair of the mask, not ordinary tuning",
        "worse": "below 0: under this regime the fine-tune gains less than its control does",
        "equivalent": f"within {size(interaction.margin)} of 0: the gain is ordinary tuning, not repair",
        "undecided": "not separable from 0: repair is not shown",
    }[interaction.verdict]
    note = f" It is {repair.note}." if repair.note else ""
    lead = f"Gain beyond its control, {escape(repair.control)} (the interaction)"
    return f"{lead}: {number}, {meaning}.{_seeds(repair.interaction_by_seed)}{note}"


def against_stage_1(gap: Contrast) -> str:
    """What is left of the damage."""
    lead = {
        "worse": f"It does **not** recover to stage 1: {against(gap)}",
        "better": f"It ends above stage 1: {against(gap)}",
        "equivalent": f"It is equivalent to stage 1 within {size(gap.margin)}: {against(gap)}",
        "undecided": f"Against stage 1 it is undecided: {against(gap)}",
        "unknown": f"Against stage 1: {against(gap)}",
    }[_key(gap.judgement)]
    return f"{lead}."


def cost_of_the_mask(cost: Contrast, control: str) -> str:
    """Bidirectional after fine-tuning, against the control left causal: equal training."""
    meaning = {
        "worse": "bidirectional prefill still costs accuracy",
        "better": "bidirectional prefill is ahead",
        "equivalent": f"no cost beyond {size(cost.margin)} (equivalent)",
        "undecided": "whether bidirectional prefill still costs accuracy is undecided",
        "unknown": "whether bidirectional prefill still costs accuracy cannot be said",
    }[_key(cost.judgement)]
    return f"At equal training (against {control} left causal): {against(cost)}; {meaning}."


def normal_behaviour(repair: Repair) -> list[str]:
    """The non-prefill check, as list entries."""
    normal = repair.normal
    if normal is None:
        return [f"Not run: {escape(repair.arm)} was not evaluated under causal attention."]
    meaning = {
        "worse": "fine-tuning introduced a regression under standard causal prefill",
        "better": "standard causal prefill gained too, as ordinary tuning would do",
        "equivalent": f"standard causal prefill is unchanged within {size(normal.margin)} (equivalent)",
        "undecided": "whether standard causal prefill changed is undecided",
        "unknown": "no interval can be computed, so this alone does not show a change",
    }[_key(normal.judgement)]
    lines = [f"{escape(repair.arm)}: {change(normal)}; {meaning}."]
    other = repair.control_normal
    if other is not None:
        meaning = {
            "worse": "training under the mask cost normal behaviour something",
            "better": "training under the mask left it ahead of the control",
            "equivalent": f"no cost beyond {size(other.margin)} (equivalent)",
            "undecided": "whether the mask in training cost anything here is undecided",
            "unknown": "no interval can be computed",
        }[_key(other.judgement)]
        lines.append(f"Against {escape(repair.control)}, both causal: {against(other)}; {meaning}.")
    return lines


def change(contrast: Contrast) -> str:
    """``from 45.4 % to 40.7 %: -4.7 points (95 % CI -6.3 to -3.1, n = 2,299)``."""
    a, b = 100 * contrast.acc_a, 100 * contrast.acc_b
    return f"from {a:.1f} % to {b:.1f} %: {difference(contrast)}"


def against(contrast: Contrast) -> str:
    """The same where nothing moves: ``40.7 % against 45.4 %, -4.7 points (...)``."""
    a, b = 100 * contrast.acc_a, 100 * contrast.acc_b
    return f"{b:.1f} % against {a:.1f} %, {difference(contrast)}"


def difference(contrast: Contrast) -> str:
    """``-4.7 points (95 % CI -6.3 to -3.1, n = 2,299)``."""
    text = f"{formatting.points(contrast.value, signed=True)} points"
    if contrast.interval is None:
        return f"{text} (no interval: too few numbers are known of these runs)"
    source = "unpaired " if contrast.basis == "unpaired" else ""
    seeds = f", {contrast.n_seeds} seeds" if contrast.n_seeds > 1 else ""
    return f"{text} ({source}{interval_of(contrast.interval)}{seeds})"


def kept(contrast: Contrast) -> str:
    """How much of stage 1 is kept: above chance first, since the plain ratio flatters."""
    parts = []
    if contrast.above_chance is not None:
        parts.append(f"above chance {retention(contrast.above_chance)}")
    if contrast.above_floor is not None:
        parts.append(f"above the no-context score {retention(contrast.above_floor)}")
    if contrast.ratio is not None:
        parts.append(f"plain ratio `{contrast.ratio:.3f}x`")
    return f"Kept of {escape(contrast.a)}: {'; '.join(parts)}." if parts else ""


def retention(retained: Retention) -> str:
    why = f" ({retained.why_suppressed})" if retained.value is None else ""
    return retention_text(retained, short=True) + why


def _verb(contrast: Contrast, up: str, down: str) -> str:
    return {"better": up, "worse": down}.get(contrast.verdict, "moves")


def _seeds(per_seed: tuple[float, ...]) -> str:
    if len(per_seed) < 2:
        return ""
    shown = ", ".join(formatting.points(value, signed=True) for value in per_seed)
    return f" By seed: {shown}."
