"""Numbers to sentences, and the first page of a report. Every sentence can come out either way.

Two rules hold throughout. A gain is called repair only if the interaction with the control is
above 0; otherwise it may be ordinary tuning. "No cost" and "no difference" are said only of an
interval that lies wholly inside the margin; an interval that is merely wide is "undecided".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from bidir_core.analyse import stats
from bidir_core.analyse.contrasts import Contrast, in_words, level
from bidir_core.analyse.judgement import Findings, Repair
from bidir_core.analyse.pairing import repeats
from bidir_core.analyse.stats import Retention
from bidir_core.analyse.study import CAUSAL, NAMES, Cell
from bidir_core.analyse.verdict import (
    Judgement,
    in_points,
    interval_of,
    phrase,
    retention_text,
    size,
)
from bidir_core.common import formatting
from bidir_core.report.markdown import bullets, capital, escape
from bidir_core.runs.layout import TRAININGS

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
        verb = {"better": "raises", "worse": "lowers"}.get(repair.gain.verdict, "moves")
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
    lead = f"Beyond its control, {escape(repair.control)}, it gains {number} (the interaction)"
    return f"{lead}, {meaning}.{_seeds(repair.interaction_by_seed)}{note}"


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


def _seeds(per_seed: tuple[float, ...]) -> str:
    if len(per_seed) < 2:
        return ""
    shown = ", ".join(formatting.points(value, signed=True) for value in per_seed)
    return f" By seed: {shown}."


# The first page: the verdict, after which its chart stands, three bullets and what is undecided.

OPEN = 4  # undecided differences that are told on the first page


def front_page(numbers: Findings) -> list[str]:
    """The paragraphs of the first page, the verdict first."""
    undecided = list(_undecided(numbers)) or ["Nothing of what was run."]
    return [
        _verdict(numbers),
        bullets(_findings(numbers)),
        "**What is undecided**",
        bullets(undecided),
        _about(numbers),
    ]


def _verdict(numbers: Findings) -> str:
    damage = numbers.damage()
    if damage is not None:
        return f"**{how_much_it_hurts(damage, escape(numbers.study.regime))[0]}**"
    cell, runs = next(iter(numbers.study.cells.items()))
    acc, regime = level(runs, numbers.metric), escape(cell[1])
    reached = f" Macro accuracy, {regime}: {100 * acc.value:.1f} %." if acc is not None else ""
    return f"**Not run: it takes stage 1 and stage 2 over the same items.**{reached}"


def _about(numbers: Findings) -> str:
    """One line: the model, the items, and what a reader must know before quoting anything."""
    study, run = numbers.study, numbers.study.some_run
    n = (run.metrics or {}).get("n_items") or 0
    tasks = f"{len(run.tasks)} task{'s' if len(run.tasks) != 1 else ''}"
    text = f"{escape(study.model)}: {tasks}, n = {formatting.count(n)} items"
    if run.is_reference:
        source = escape(run.config.get("source"))
        return f"{text}. **Published numbers only** ({source}): no items, so nothing is paired."
    facts = [str(run.config.get("dtype") or ""), f"{len(study.all_runs)} runs", numbers.metric]
    text += "".join(f", {escape(fact)}" for fact in facts if fact)
    if (times := repeats(run.settings)) != 1:
        text += f", each context given {times} times"
    if run.settings.get("fold") == "explore":
        text += ". **Explore fold**: for choosing recipes, so nothing here is a claim"
    return text + "."


def _findings(numbers: Findings) -> Iterator[str]:
    damage = numbers.damage()
    if damage is not None:
        yield _what_is_left(damage)
    yield f"**Without training**: {_without_training(numbers)}"
    yield f"**With training**: {_with_training(numbers)}"


def _what_is_left(damage: Contrast) -> str:
    sentences = []
    if damage.above_chance is not None:
        share = retention(damage.above_chance)
        sentences.append(f"of the accuracy above chance, kept: {share}.")
    if damage.basis == "paired" and damage.n_seeds == 1:
        broken = formatting.count(round(sum(task.judgement.broken or 0 for task in damage.tasks)))
        fixed = formatting.count(round(sum(task.judgement.fixed or 0 for task in damage.tasks)))
        sentences.append(f"It breaks {broken} right answers and fixes {fixed} wrong ones.")
    return f"**What is left**: {' '.join(sentences)}" if sentences else ""


def _without_training(numbers: Findings) -> str:
    """The other bidirectional regime that keeps most, and how many it was chosen from."""
    study = numbers.study
    others = [
        contrast
        for regime in study.bidirectional_regimes(study.base)
        if regime != study.regime and (contrast := numbers.damage(regime)) is not None
    ]
    if not others:
        return "no other bidirectional regime was run on these items."
    best = max(others, key=lambda contrast: contrast.value)
    among = f" It is the best of {len(others)} tried on these items." if len(others) > 1 else ""
    verdict = "still lower" if best.verdict == "worse" else best.words
    return f"{escape(best.b)} reaches {against(best)}: {verdict}.{among}"


def _with_training(numbers: Findings) -> str:
    study = numbers.study
    arm = study.main_pair()[0] or next(iter(study.trained("distill")), None)
    if arm is None:
        return "not run: no fine-tune is part of this report."
    repair = numbers.repair(arm)
    if repair.gain is None and repair.gap is None:
        return can_it_be_fixed(repair)[0]
    who = f"the {TRAININGS[arm.code].plain}, {escape(repair.arm)}"
    answered = short_answer(repair)
    text = f"{who}: {answered[:1].lower()}{answered[1:]}."
    text += f" {repair_or_tuning(repair)}"
    if repair.gap is not None:
        text += f" {against_stage_1(repair.gap)}"
    return text


def _undecided(numbers: Findings) -> Iterator[str]:
    """Undecided differences, those of the untrained model first; then what was not run."""
    damage = numbers.damage()
    if damage is not None:
        if damage.basis != "paired":
            yield from (f"The runs do not pair: {escape(note)}." for note in damage.notes)
        tasks = [
            escape(formatting.task_title(t.task))
            for t in damage.tasks
            if t.judgement.verdict == "undecided"
        ]
        if tasks and len(tasks) < len(damage.tasks):
            yield f"By task, the verdict above is undecided on {', '.join(tasks)}."
    undecided = [c for c in numbers.contrasts(leaky=False) if c.verdict == "undecided"]
    for contrast in undecided[:OPEN]:
        yield f"{capital(in_words(contrast.title))}: {difference(contrast)}; {contrast.words}."
    if len(undecided) > OPEN:
        yield f"{len(undecided) - OPEN} more: see *Differences With Their Uncertainty*."
    missing = list(_not_run(numbers))
    if missing:
        yield f"Not run: {', '.join(missing)}."


def _not_run(numbers: Findings) -> Iterator[str]:
    study = numbers.study
    cells: list[tuple[str, Cell]] = [("stage 1", numbers.stage1)]
    cells.append((f"stage 2 ({study.regime})", (study.base, study.regime)))
    yield from (escape(name) for name, cell in cells if not study.runs(*cell))
    ours, control = study.main_pair()
    if ours is None:
        yield "a repair fine-tune (3B)"
    if control is None:
        yield "its causal control (3C)"
    for arm in (ours, control):
        if arm is not None and not study.runs(arm, CAUSAL):
            yield f"{NAMES.get(arm.code, arm.code)} under causal attention"
