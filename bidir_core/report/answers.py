"""Numbers to sentences. Every sentence can come out either way.

Two rules hold throughout. A gain is called repair only if the interaction with the control is
above 0; otherwise it may be ordinary tuning. "No cost" and "no difference" are said only of an
interval that lies wholly inside the margin; an interval that is merely wide is "undecided".
"""

from __future__ import annotations

from dataclasses import dataclass

from bidir_core.analyse import effects, stats
from bidir_core.analyse.contrasts import (
    Contrast,
    cell_title,
    contrast,
    direction_of,
    interaction,
    interaction_note,
)
from bidir_core.analyse.effects import Retention
from bidir_core.analyse.pairing import Metric
from bidir_core.analyse.study import CAUSAL, Arm, Cell, Study
from bidir_core.common import formatting
from bidir_core.report.markdown import escape, retention_text

LEAKY_WARNING = (
    "3A is leaky: in its training each response token was visible to the place that had to "
    "predict it. Its numbers are a warning, never a result."
)


@dataclass(frozen=True)
class Attempt:
    """What is known of one fine-tuned arm; a None was not run.

    ``gain``: it minus the base, both under the regime. ``gap``: it under the regime minus stage 1.
    ``control_gap``: it under the regime minus the causal control, causal: the cost of the mask at
    equal training. ``normal``: it minus stage 1, both causal. ``control_normal``: it minus the
    control, both causal. ``interaction`` or why there is none; ``interaction_note``: how many of
    the seeds it is from, if not from all.
    """

    arm: str
    control: str
    regime: str
    gain: Contrast | None
    gap: Contrast | None
    control_gap: Contrast | None
    normal: Contrast | None
    control_normal: Contrast | None
    interaction: effects.Contrast | str
    interaction_note: str = ""
    margin: float = stats.MARGIN


def how_much_it_hurts(damage: Contrast | None, regime: str) -> list[str]:
    """Question 1, as list entries."""
    if damage is None:
        return ["Not run: it takes stage 1 and stage 2 over the same items."]
    who = f"Without adaptation, {regime} prefill"
    lead = {
        "lower": f"It hurts. {who} lowers macro accuracy",
        "higher": f"It does not hurt here. {who} raises macro accuracy",
        "same": f"It makes no difference beyond {size(damage.margin)}. {who} moves macro accuracy",
        "undecided": f"These runs do not decide it. {who} moves macro accuracy",
        "unknown": f"{who} moves macro accuracy",
    }[damage.direction]
    return [f"{lead} {change(damage)}.", kept(damage)]


def can_it_be_fixed(damage: Contrast | None, attempt: Attempt) -> list[str]:
    """Question 2 for one arm, as list entries; the first is the short answer."""
    if attempt.gain is None and attempt.gap is None:
        return [f"Not run: no evaluation of {attempt.arm} under {attempt.regime}."]
    lines = [f"**{attempt.arm}**: {short_answer(damage, attempt)}."]
    if attempt.gain is not None:
        verb = _verb(attempt.gain, "raises", "lowers")
        lines.append(
            f"Against stage 2, fine-tuning {verb} macro accuracy under {attempt.regime} "
            f"{change(attempt.gain)}."
        )
    if attempt.gap is not None:
        lines.append(against_stage_1(attempt.gap))
    lines.append(repair_or_tuning(attempt))
    if attempt.control_gap is not None:
        lines.append(cost_of_the_mask(attempt.control_gap, attempt.control))
    return lines


def short_answer(damage: Contrast | None, attempt: Attempt) -> str:
    """Yes, partially, no, or why that cannot be said."""
    gain = attempt.gain.direction if attempt.gain else "unknown"
    gap = attempt.gap.direction if attempt.gap else "unknown"
    found = attempt.interaction
    repaired = "unknown" if isinstance(found, str) else direction_of(found.estimate, attempt.margin)
    if damage is not None and damage.direction in ("same", "higher"):
        return "There was nothing to repair: stage 2 is not below stage 1"
    if gain in ("lower", "same"):
        return "No: fine-tuning does not raise accuracy under bidirectional prefill"
    if gain in ("undecided", "unknown"):
        return "Undecided: the runs do not show whether fine-tuning raises accuracy"
    reached = {
        "higher": "the level of stage 1 is passed",
        "same": f"stage 1 is reached within {size(attempt.margin)}",
        "lower": "but not back to stage 1",
        "undecided": "whether stage 1 is reached is undecided",
        "unknown": "whether stage 1 is reached cannot be said",
    }[gap]
    if repaired == "higher":
        return {"lower": "Partially, ", "same": "Yes, ", "higher": "Yes, "}.get(
            gap, "At least in part; "
        ) + reached
    lead = "Accuracy improves, " + reached
    if repaired == "unknown":
        return f"{lead}; that this is repair, and not ordinary tuning, is not shown"
    if repaired == "undecided":
        return f"{lead}; whether this is repair or ordinary tuning is undecided"
    return f"{lead}; it is not repair of the mask: the control gains as much"


def repair_or_tuning(attempt: Attempt) -> str:
    """What the interaction says."""
    found = attempt.interaction
    if isinstance(found, str):
        return (
            f"Repair cannot be told from ordinary tuning: {escape(found)}. The interaction needs "
            "the fine-tune and its control under both regimes."
        )
    estimate = found.estimate
    number = f"{formatting.points(estimate.value, signed=True)} points ({interval_of(estimate)})"
    formula = f"({attempt.arm} - {attempt.control} under {attempt.regime}) - (the same, causal)"
    meaning = {
        "higher": "above 0: part of the gain is repair of the mask, not ordinary tuning",
        "lower": "below 0: under this regime the fine-tune gains less than its control does",
        "same": f"within {size(attempt.margin)} of 0: the gain is ordinary tuning, not repair",
        "undecided": "not separable from 0: repair is not shown",
        "unknown": "unknown",
    }[direction_of(estimate, attempt.margin)]
    note = f" It is {attempt.interaction_note}." if attempt.interaction_note else ""
    return f"Interaction, {formula}: {number}, {meaning}.{_seeds(found.per_seed)}{note}"


def against_stage_1(gap: Contrast) -> str:
    """What is left of the damage."""
    lead = {
        "lower": f"It does **not** recover to stage 1: {against(gap)}",
        "higher": f"It ends above stage 1: {against(gap)}",
        "same": f"It is equivalent to stage 1 within {size(gap.margin)}: {against(gap)}",
        "undecided": f"Against stage 1 it is undecided: {against(gap)}",
        "unknown": f"Against stage 1: {against(gap)}",
    }[gap.direction]
    return f"{lead}. {kept(gap)}"


def cost_of_the_mask(cost: Contrast, control: str) -> str:
    """Bidirectional after fine-tuning, against the control left causal: equal training."""
    meaning = {
        "lower": "bidirectional prefill still costs accuracy",
        "higher": "bidirectional prefill is ahead",
        "same": f"no cost beyond {size(cost.margin)} (equivalent)",
        "undecided": "whether bidirectional prefill still costs accuracy is undecided",
        "unknown": "whether bidirectional prefill still costs accuracy cannot be said",
    }[cost.direction]
    return f"At equal training (against {control} left causal): {against(cost)}; {meaning}."


def normal_behaviour(attempt: Attempt) -> list[str]:
    """The non-prefill check, as list entries."""
    normal = attempt.normal
    if normal is None:
        return [f"Not run: {attempt.arm} was not evaluated under causal attention."]
    meaning = {
        "lower": "fine-tuning introduced a regression under standard causal prefill",
        "higher": "standard causal prefill gained too, as ordinary tuning would do",
        "same": f"standard causal prefill is unchanged within {size(normal.margin)} (equivalent)",
        "undecided": "whether standard causal prefill changed is undecided",
        "unknown": "no interval can be computed, so this alone does not show a change",
    }[normal.direction]
    lines = [f"{attempt.arm}: {change(normal)}; {meaning}."]
    other = attempt.control_normal
    if other is not None:
        meaning = {
            "lower": "training under the mask cost normal behaviour something",
            "higher": "training under the mask left it ahead of the control",
            "same": f"no cost beyond {size(other.margin)} (equivalent)",
            "undecided": "whether the mask in training cost anything here is undecided",
            "unknown": "no interval can be computed",
        }[other.direction]
        lines.append(f"Against {attempt.control}, both causal: {against(other)}; {meaning}.")
    return lines


def change(one: Contrast) -> str:
    """``from `0.4540` to `0.4067`: -4.7 points (95 % CI -6.3 to -3.1, n = 2,299)``."""
    return _with_interval(f"from `{one.acc_a:.4f}` to `{one.acc_b:.4f}`: ", one)


def against(one: Contrast) -> str:
    """The same where nothing moves: ``0.4067` against `0.4540`, -4.7 points (...)``."""
    return _with_interval(f"`{one.acc_b:.4f}` against `{one.acc_a:.4f}`, ", one)


def _with_interval(lead: str, one: Contrast) -> str:
    text = f"{lead}{formatting.points(one.value, signed=True)} points"
    if one.interval is None:
        return f"{text} (no interval: too few numbers are known of these runs)"
    source = "unpaired " if one.basis == "unpaired" else ""
    seeds = f", {one.n_seeds} seeds" if one.n_seeds > 1 else ""
    return f"{text} ({source}{interval_of(one.interval)}{seeds})"


def interval_of(estimate: stats.Estimate) -> str:
    low, high = (
        formatting.points(estimate.low, signed=True),
        formatting.points(estimate.high, signed=True),
    )
    return f"95 % CI {low} to {high}, n = {formatting.count(estimate.n)}"


def kept(one: Contrast) -> str:
    """How much of stage 1 is kept: above chance first, since the plain ratio flatters."""
    parts = []
    if one.above_chance is not None:
        parts.append(f"above chance {retention(one.above_chance)}")
    if one.above_floor is not None:
        parts.append(f"above the no-context score {retention(one.above_floor)}")
    if one.ratio is not None:
        parts.append(f"plain ratio `{one.ratio:.3f}x`")
    return f"Kept of {escape(one.a)}: {'; '.join(parts)}." if parts else ""


def retention(found: Retention) -> str:
    why = f" ({found.why_suppressed})" if found.value is None else ""
    return retention_text(found) + why


def size(margin: float) -> str:
    return f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"


def _verb(one: Contrast, up: str, down: str) -> str:
    return {"higher": up, "lower": down}.get(one.direction, "moves")


def _seeds(per_seed: tuple[float, ...]) -> str:
    if len(per_seed) < 2:
        return ""
    shown = ", ".join(formatting.points(value, signed=True) for value in per_seed)
    return f" By seed: {shown}."


# The numbers of a report: a study's contrasts and attempts, each computed once.


class Numbers:
    """Computes what the sections of one study say, and remembers it."""

    def __init__(self, study: Study, metric: Metric, margin: float):
        self.study, self.metric, self.margin = study, metric, margin
        self._attempts: dict[Arm, Attempt] = {}
        self._contrasts: dict[tuple[Cell, Cell], Contrast | None] = {}

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
            (self.stage1, (study.base, regime)) for regime in study.regimes(study.base)
        ]
        for arm in study.arms:
            if arm == study.base or (arm.leaky and not leaky):
                continue
            for regime in study.regimes(arm):
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
