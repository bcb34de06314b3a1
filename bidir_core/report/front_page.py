"""The first page of a report: the verdict, three bullets and what is undecided.

The chart of the verdict stands after its first paragraph (:mod:`bidir_core.report.charts`).
Everything else is the appendix.
"""

from __future__ import annotations

from collections.abc import Iterator

from bidir_core.analyse.contrasts import Contrast, level
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.pairing import repeats
from bidir_core.analyse.study import CAUSAL, NAMES, Cell
from bidir_core.common import formatting
from bidir_core.report import answers
from bidir_core.report.markdown import bullets, capital, code, escape
from bidir_core.runs.layout import TRAININGS

OPEN = 4  # undecided differences that are told on the first page


def parts(numbers: Findings) -> tuple[str, ...]:
    """The paragraphs of the first page, the verdict first."""
    undecided = list(_undecided(numbers)) or ["Nothing of what was run."]
    return (
        _verdict(numbers),
        bullets(_findings(numbers)),
        "**What is undecided**",
        bullets(undecided),
        _about(numbers),
    )


def _verdict(numbers: Findings) -> str:
    damage = numbers.damage()
    if damage is not None:
        return f"**{answers.how_much_it_hurts(damage, escape(numbers.study.regime))[0]}**"
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
        yield _kept(damage)
    yield f"**Without training**: {_without_training(numbers)}"
    yield f"**With training**: {_with_training(numbers)}"


def _kept(damage: Contrast) -> str:
    sentences = []
    if damage.above_chance is not None:
        kept = answers.retention(damage.above_chance)
        sentences.append(f"of the accuracy above chance, kept: {kept}.")
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
    return f"{escape(best.b)} reaches {answers.against(best)}: {verdict}.{among}"


def _with_training(numbers: Findings) -> str:
    study = numbers.study
    arm = study.main_pair()[0] or next(iter(study.trained("distill")), None)
    if arm is None:
        return "not run: no fine-tune is part of this report."
    repair = numbers.repair(arm)
    if repair.gain is None and repair.gap is None:
        return answers.can_it_be_fixed(repair)[0]
    who = f"the {TRAININGS[arm.code].plain}, {escape(repair.arm)}"
    text = f"{who}: {answers.short_answer(repair)}."
    text += f" {answers.repair_or_tuning(repair)}"
    if repair.gap is not None:
        text += f" {answers.against_stage_1(repair.gap)}"
    return text


def _undecided(numbers: Findings) -> Iterator[str]:
    """Undecided differences, those of the untrained model first; then what was not run."""
    damage = numbers.damage()
    if damage is not None:
        if damage.basis != "paired":
            yield from (f"The runs do not pair: {escape(note)}." for note in damage.notes)
        tasks = [code(t.task) for t in damage.tasks if t.judgement.verdict == "undecided"]
        if tasks and len(tasks) < len(damage.tasks):
            yield f"By task, the verdict above is undecided on {', '.join(tasks)}."
    undecided = [c for c in numbers.contrasts(leaky=False) if c.verdict == "undecided"]
    for contrast in undecided[:OPEN]:
        yield f"{capital(contrast.title)}: {answers.difference(contrast)}; {contrast.words}."
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
