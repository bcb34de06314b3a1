"""The scorecard: what the runs of each model say to the four questions, a row a model.

    hurt     looking ahead against causal, untrained
    why      what leaving the first layers causal gives back, on the half that did not choose how many
    repair   the repair fine-tune (3B) beyond its control fine-tune (3C): the interaction
    helps    where the passage comes last: looking ahead against causal

A run counts for what it is, whatever its folder: evaluations, points of sweeps, controls, observed
attention. A row uses one set of items in one number format, the fullest there is; each difference is
of two runs made together where there are such. The verdicts are those of :mod:`bidir_core.analyse`;
here they get the few words of a table's cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from bidir_core.analyse.compare import macro_judgement
from bidir_core.analyse.contrasts import Contrast
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.order_help import Trial, beside, order_trials
from bidir_core.analyse.pairing import repeats
from bidir_core.analyse.study import CAUSAL, is_usual, items_key, make_study
from bidir_core.analyse.verdict import Judgement, Verdict, in_points, judge, size
from bidir_core.common.errors import UserError
from bidir_core.common.formatting import count, points
from bidir_core.data.assets import title_of
from bidir_core.data.builtin_tasks import ORDER_TASKS
from bidir_core.explain.controls import OUTCOME_WORDS, largest_summary, with_observation
from bidir_core.explain.sweep_outcomes import Law, law_of
from bidir_core.runs.layout import FINETUNE_DIRS
from bidir_core.runs.run import Run

PLAIN = "bidirectional"
SINK = "bidirectional:sink=1"
HIDDEN = "causal:hide=0"
Outcome = Literal["supports", "refutes", "undecided"]
Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Badge:
    """What one control says of a claim; ``detail`` is a sentence with its numbers."""

    claim: str
    title: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Cell:
    """One answer: a few ``words``, the difference they rest on, and ``what`` that is.

    ``value``: the difference, also where nothing gives it an interval. ``runs``: ids of baseline and
    candidate, or of one sweep. ``reason``: a limit of the number; its short form stands before a colon.
    ``supported``: whether a decided number bears out the words.
    """

    words: str
    judgement: Judgement
    value: float
    what: str
    runs: tuple[str, ...]
    badges: tuple[Badge, ...] = ()
    reason: str = ""
    supported: bool = True


@dataclass(frozen=True)
class Row:
    """A model's answers, None where nothing was run. ``steps``: everything against causal, for a
    picture, as (label, judgement). ``problem``: why its runs cannot be read."""

    model: str
    limit: int | None
    n: int
    dtype: str
    published: bool = False
    hurt: Cell | None = None
    why: Cell | None = None
    repair: Cell | None = None
    helps: Cell | None = None
    without_training: Cell | None = None
    steps: tuple[tuple[str, Judgement], ...] = ()
    problem: str = ""

    @property
    def title(self) -> str:
        return title_of(self.model)

    @property
    def extent(self) -> str:
        return f"first {self.limit} of each task" if self.limit else "whole sets"

    @property
    def n_answered(self) -> int:
        return sum(c is not None for c in (self.hurt, self.why, self.repair, self.helps))


@dataclass(frozen=True)
class Source:
    """Runs of the untrained model on one set of items that were made together, by regime."""

    runs: dict[str, Run] = field(default_factory=dict)
    sweep: Run | None = None


def scorecard(runs: Iterable[Run], *, limit: int | None = None) -> list[Row]:
    """A row for each model with finished runs, the best studied first, published ones last.

    ``limit``: prefer the items of this ``--limit``; else the most items that a model was asked.
    """
    by_model: dict[str, list[Run]] = {}
    published: dict[str, list[Run]] = {}
    for run in runs:
        if run.state == "reference":
            published.setdefault(run.model, []).append(run)
        elif run.state == "done":
            by_model.setdefault(run.model, []).append(run)
    rows = [row for group in by_model.values() if (row := _row_or_problem(group, limit))]
    rows.sort(key=lambda row: (-row.n_answered, -len(row.steps), -row.n, row.model))
    return rows + [row for group in published.values() if (row := _published(group))]


def _row_or_problem(runs: Sequence[Run], limit: int | None) -> Row | None:
    try:
        return _row(runs, limit)
    except UserError as error:
        return Row(runs[0].model, None, 0, "", problem=str(error))


def _row(runs: Sequence[Run], limit: int | None) -> Row | None:
    """One model's row; None where no run of it can be paired."""
    asks_order = [run for run in runs if _asks_order(run)]
    runs = [run for run in runs if not _asks_order(run)]
    sets = _sets([run for run in runs if _is_plain(run)], limit)
    if not sets:
        return None
    key, sources = next(iter(sets.items()))
    causal = next(source.runs[CAUSAL] for source in sources if CAUSAL in source.runs)
    law, sweep = _law(source for set_sources in sets.values() for source in set_sources)
    hurt = _cell(sources, PLAIN, CAUSAL, "looking ahead against causal", HURT)
    claims = _gives_back("First token causal helps")
    sink = _cell(sources, SINK, PLAIN, "back with the first token causal", claims)
    layers = _first_layers(law, sweep)
    findings = _findings(runs, key, sources[0])
    badges = _badges(runs, sources)
    steps = [("Looking ahead", hurt.judgement)] if hurt else []
    if (sink_runs := _pair(sources, SINK)) is not None:
        steps.append(("First token causal", macro_judgement(*sink_runs)))
    swept = {source.sweep.id for source in sources if source.sweep is not None}
    same_items = sweep is not None and sweep.id in swept
    if same_items and law is not None and law.confirm is not None and law.first_layer:
        steps.append((f"First {law.first_layer} layers causal", law.confirm))
    repair = None
    if findings is not None:
        repair, repair_steps = _repair(findings)
        steps += repair_steps
    regained = [cell for cell in (layers if same_items else None, sink) if cell is not None]
    why = layers or sink
    return Row(
        model=causal.model,
        limit=causal.settings.get("limit"),
        n=int((causal.metrics or {}).get("n_items") or 0),
        dtype=str(causal.config.get("dtype") or ""),
        hurt=hurt,
        why=None if why is None else replace(why, badges=badges),
        repair=repair,
        helps=_helps(asks_order),
        # The number of layers was chosen on one half of the items and is judged on the other.
        without_training=next(
            (cell for cell in regained if cell.judgement.verdict == "better"),
            next(iter(regained), None),
        ),
        steps=tuple(steps),
    )


# Which runs: one set of items, and the runs on it that were made together.


def _is_full(run: Run) -> bool:
    """An evaluation, asked as it is."""
    return (run.config.get("kind") or "eval") == "eval" and is_usual(run.settings)


def _is_plain(run: Run) -> bool:
    """The untrained model's, with its items."""
    return run.has_items and not run.settings.get("checkpoint") and _is_full(run)


def _asks_order(run: Run) -> bool:
    return bool(run.tasks) and all(task in ORDER_TASKS for task in run.tasks)


def _sets(runs: Sequence[Run], limit: int | None) -> dict[Key, list[Source]]:
    """The sets of items that have a causal run, the fullest first, with their sources: first those
    with a causal run and with most regimes."""
    sets: dict[Key, dict[str, Source]] = {}
    for run in sorted(runs, key=lambda run: run.id.split("/")[1], reverse=True):
        sweep = Run(run.path.parent.parent) if run.is_point else None
        by_place = sets.setdefault(items_key(run, dtype=True), {})
        source = by_place.setdefault(sweep.id if sweep else "", Source(sweep=sweep))
        source.runs.setdefault(run.regime, run)

    def rank(key: Key) -> tuple[bool, bool, int, int]:
        every = [run for source in sets[key].values() for run in source.runs.values()]
        regimes = {run.regime for run in every}
        n = max(int((run.metrics or {}).get("n_items") or 0) for run in every)
        wanted = limit is not None and every[0].settings.get("limit") == limit
        return PLAIN in regimes, wanted, n, len(regimes)

    with_causal = [key for key in sets if any(CAUSAL in s.runs for s in sets[key].values())]
    return {
        key: sorted(sets[key].values(), key=lambda s: (CAUSAL not in s.runs, -len(s.runs)))
        for key in sorted(with_causal, key=rank, reverse=True)
    }


def _pair(sources: Sequence[Source], regime: str, against: str = CAUSAL) -> tuple[Run, Run] | None:
    """The runs of two regimes, baseline first: made together if there are such."""
    for source in sources:
        if regime in source.runs and against in source.runs:
            return source.runs[against], source.runs[regime]
    first, second = (
        next((s.runs[name] for s in sources if name in s.runs), None) for name in (against, regime)
    )
    return None if first is None or second is None else (first, second)


# The answers.


def _cell(
    sources: Sequence[Source], regime: str, against: str, what: str, claims: Mapping[Verdict, str]
) -> Cell | None:
    """One regime minus another, in the words for its verdict; None if either was not run."""
    runs = _pair(sources, regime, against)
    if runs is None:
        return None
    judged = macro_judgement(*runs)
    ids = tuple(run.id for run in runs)
    return Cell(claims[judged.verdict], judged, judged.value, what, ids)


HURT: dict[Verdict, str] = {
    "worse": "It hurts",
    "better": "It helps",
    "equivalent": "No difference",
    "undecided": "Undecided",
}


def _law(sources: Iterable[Source]) -> tuple[Law | None, Run | None]:
    """The law of the first finished sweep that has one, and that sweep."""
    for source in sources:
        try:
            if source.sweep is not None and source.sweep.state == "done":
                return law_of(source.sweep), source.sweep
        except UserError:
            continue
    return None, None


def _first_layers(law: Law | None, sweep: Run | None) -> Cell | None:
    if law is None or sweep is None or law.regained is None:
        return None
    back = law.regained
    which = f"first {law.first_layer} layers" if law.first_layer != 1 else "first layer"
    words = _gives_back(f"In the {which}")[back.verdict]
    what = f"back with the {which} causal"
    return Cell(words, back, back.value, what, (sweep.id,), reason="held-out half")


def _gives_back(claim: str) -> dict[Verdict, str]:
    return {
        "better": claim,
        "worse": "It adds damage",
        "equivalent": "Gives nothing back",
        "undecided": "Undecided",
    }


def _badges(runs: Iterable[Run], sources: Sequence[Source]) -> tuple[Badge, ...]:
    """The controls on this set of items, and whether losing the first token is the damage."""
    badges = []
    swept = (s.sweep for s in sources if s.sweep is not None)
    controls = next((run for run in swept if (run.metrics or {}).get("controls")), None)
    if controls is not None:
        attended = [run for run in runs if run.config.get("kind") == "attend"]
        summary = largest_summary(controls.settings, attended)
        judged = (controls.metrics or {})["controls"]
        for row in with_observation(judged, summary.metrics if summary else None):
            words = OUTCOME_WORDS.get(row["outcome"], row["outcome"])
            outcome: Outcome = "undecided"
            if row["outcome"] in ("supports", "refutes", "partly"):
                outcome = "supports" if row["outcome"] == "supports" else "refutes"
            title, detail = str(row["title"]), f"{words}. {row['finding']}"
            badges.append(Badge("first token", title, outcome, detail))
    lost = _pair(sources, PLAIN, HIDDEN)
    if lost is not None:
        judged = macro_judgement(*lost)
        detail = f"Looking ahead minus only hiding the first token: {in_points(judged)}."
        outcome = "refutes" if judged.verdict == "worse" else "undecided"
        badges.append(Badge("lost first token", "First token hidden (hide=0)", outcome, detail))
    return tuple(badges)


REPAIRED = {
    "nothing to repair": "Nothing to repair",
    "no gain": "Not repaired",
    "gain undecided": "Undecided",
    "repaired": "Repaired",
    "partly repaired": "Partly repaired",
    "repaired, level undecided": "At least partly repaired",
    "no control": "A gain, no control",
    "repair undecided": "Repair undecided",
    "tuning": "Ordinary tuning",
}


CONTROL = "Control fine-tune (3C)"
OUTCOMES: dict[Verdict, Outcome] = {
    "better": "supports",
    "equivalent": "refutes",
    "worse": "refutes",
    "undecided": "undecided",
}


def _findings(runs: Sequence[Run], key: Key, source: Source) -> Findings | None:
    """The study of the model's fine-tunes: on this set of items if any was evaluated there."""
    evaluated = [
        run for run in runs if run.settings.get("checkpoint") and _is_full(run) and not run.is_point
    ]
    if not evaluated:
        return None
    trained = [run for run in runs if run.stage in FINETUNE_DIRS.values()]
    untrained = [run for run in runs if _is_plain(run) and not run.is_point]
    on_these_items = [run for run in evaluated if items_key(run, dtype=True) == key]
    if on_these_items:
        evaluated = on_these_items
        untrained = [run for run in untrained if items_key(run, dtype=True) == key]
        if not {CAUSAL, PLAIN} <= {run.regime for run in untrained}:
            untrained += [source.runs[r] for r in (CAUSAL, PLAIN) if r in source.runs]
    try:
        findings = Findings(make_study([*untrained, *evaluated, *trained], mixed_dtypes=False))
    except UserError:
        return None
    return findings if findings.study.main_pair()[0] is not None else None


def _repair(findings: Findings) -> tuple[Cell, list[tuple[str, Judgement]]]:
    """The main fine-tune and its control, and both against the untrained model, causal."""
    study = findings.study
    arm, control = study.main_pair()
    assert arm is not None
    repair, regime = findings.repair(arm), study.own_regime(arm)
    words, judged = REPAIRED[repair.outcome], repair.interaction
    same = findings.between(findings.stage1, (control, regime)) if control is not None else None
    shown = (("Repair fine-tune", repair.gap), ("Control fine-tune", same))
    steps = [(name, c.judgement) for name, c in shown if c is not None and c.basis == "paired"]
    if judged is not None and judged.estimate is not None:
        n = judged.n_seeds
        detail = repair.note or (f"{n} training seeds" if n > 1 else "one training seed")
        badge = Badge("beats control", CONTROL, OUTCOMES[judged.verdict], detail)
        effect = findings.interaction(arm)
        ends = () if isinstance(effect, str) else (effect.runs[1][0], effect.runs[0][0])
        what = "beyond the control fine-tune"
        note = repair.note.removeprefix("from ")
        cell = Cell(words, judged, judged.value, what, ends, (badge,), note)
        return cell, steps
    missing = Badge("beats control", CONTROL, "undecided", repair.missing)
    return _without_interaction(words, repair.gain or repair.gap, missing), steps


def _without_interaction(words: str, contrast: Contrast | None, badge: Badge) -> Cell:
    if contrast is None:
        nothing = judge(None)
        return Cell(words, nothing, nothing.value, badge.detail, (), (badge,), supported=False)
    ids = contrast.runs[0] if contrast.runs else ()
    what = "repair fine-tune, both looking ahead"
    return Cell(words, contrast.judgement, contrast.value, what, ids, (badge,), badge.detail, False)


def _helps(runs: Sequence[Run]) -> Cell | None:
    """The best of all ways of looking ahead on order tasks, and in how many of them it helps."""
    asked = [run for run in runs if run.has_items and not run.settings.get("patch")]
    try:
        trials = order_trials([run for run in asked if is_usual(run.settings)])
    except UserError:
        return None
    if not trials:
        return None
    best = max(trials, key=lambda trial: (trial.helped, trial.judgement.value))
    what, ids = f"{best.family}, {best.label}", (best.baseline.id, best.candidate.id)
    cell = Cell("", best.judgement, best.judgement.value, what, ids, reason=best.family)
    tries = "1 try" if len(trials) == 1 else f"{len(trials)} tries"
    if best.helped:
        words = f"In {sum(trial.helped for trial in trials)} of {tries}"
        return replace(cell, words=words, badges=_beside_repetition(best, asked))
    open_words = {"undecided": f"Not shown in {tries}", "better": "Not beyond guessing"}
    unshown = open_words.get(cell.judgement.verdict)
    return replace(cell, words=unshown or f"In none of {tries}", supported=unshown is None)


def _beside_repetition(trial: Trial, asked: Sequence[Run]) -> tuple[Badge, ...]:
    """Whether it helps more than giving the untrained model its prompt twice, causally, does."""
    twice = next(
        (
            run
            for run in asked
            if repeats(run.settings) > 1
            and run.regime == CAUSAL
            and not run.settings.get("checkpoint")
        ),
        None,
    )
    judged = beside(trial, twice) if twice is not None else None
    if judged is None or judged.estimate is None:
        return ()
    outcome = OUTCOMES[judged.verdict] if judged.decided else "undecided"
    n = count(judged.estimate.n)
    detail = f"{points(judged.value, signed=True)} points against it (n = {n})."
    return (Badge("beats repetition", "Prompt given twice, causal", outcome, detail),)


def _published(runs: Sequence[Run]) -> Row | None:
    """Numbers of a publication, which hold no items."""
    try:
        findings = Findings(make_study(runs))
    except UserError:
        return None
    study = findings.study
    damage, (arm, _) = findings.damage(), study.main_pair()
    hurt = repair = None
    if damage is not None:
        what = f"looking ahead against causal, {damage.basis}"
        hurt = Cell(HURT[damage.verdict], damage.judgement, damage.value, what, damage.runs[0])
    tuned = [other for other in study.arms if other != study.base] if arm is None else [arm]
    if tuned:
        judged_repair = findings.repair(tuned[0])
        words = REPAIRED[judged_repair.outcome]
        badge = Badge("beats control", CONTROL, "undecided", "no control was published")
        repair = _without_interaction(words, judged_repair.gain or judged_repair.gap, badge)
    some = study.some_run
    n = int((some.metrics or {}).get("n_items") or 0)
    return Row(some.model, some.settings.get("limit"), n, "", True, hurt, None, repair)


# One sentence for the best-studied model.


def answer(row: Row) -> str:
    """``SmolLM2 135M loses 4.5 accuracy points when ...; ...``: what its cells say, a clause
    each; a direction only where its interval has one."""
    clauses = []
    if row.hurt is not None:
        change = f"{points(abs(row.hurt.value))} accuracy points"
        when = "when prompt tokens look ahead"
        clauses.append(
            {
                "worse": f"{row.title} loses {change} {when}",
                "better": f"{row.title} gains {change} {when}",
                "equivalent": f"{row.title}'s accuracy moves by less than {size(row.hurt.judgement.margin)} {when}",
                "undecided": f"Whether {row.title} loses accuracy {when} is undecided",
            }[row.hurt.judgement.verdict]
        )
    back = row.without_training
    if back is not None and back.judgement.verdict == "better":
        how = back.what.removeprefix("back with ")
        clauses.append(f"leaving {how} gives back {points(back.value)}")
    if row.repair is not None and row.repair.what.startswith("beyond"):
        beyond = f"beats its control by {points(row.repair.value)}"
        shown = row.repair.judgement.verdict == "better"
        clauses.append(f"fine-tuning {beyond if shown else 'is not shown to beat its control'}")
    return "; ".join(clauses) + "." if clauses else ""
