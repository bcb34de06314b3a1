"""What committed sweeps, controls and attention summaries say of each model: blocks of the page.

Runs are found by model, by what they hold, and by their name, which has ``sweep``, ``controls``,
``attention`` or ``whole`` (a sweep over whole sets) in it; of several the one with the most items
counts, of equal ones the oldest. A block whose run is not there names the command that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.pairing import METRICS
from bidir_core.common import formatting
from bidir_core.explain.controls import (
    CONTROLS,
    OUTCOME_WORDS,
    Outcome,
    above,
    judge,
    largest_summary,
    observed,
    together,
)
from bidir_core.explain.sweep_summary import Sweep, best, best_of_dials, halves
from bidir_core.regimes import parse_regime
from bidir_core.runs.layout import COMMITTED_RUNS, LAB
from bidir_core.runs.run import Run
from scripts import findings_sweep
from scripts import findings_text as text
from scripts.blocks import table

EMBEDDED, SECOND = "smollm2-135m-instruct", "gemma3-270m"
TASKS = "hellaswag,piqa,arc_easy,arc_challenge,winogrande"
CAUSAL, PLAIN = "causal", "bidirectional"
REGIMES = (CAUSAL, PLAIN, "bidirectional:sink=1")


@dataclass(frozen=True)
class Evidence:
    """The lab's committed runs of one model."""

    model: str
    sweep: Run | None
    controls: Run | None
    attention: Run | None
    whole: Run | None  # a sweep over whole sets


def evidence(model: str, root: Path = COMMITTED_RUNS) -> Evidence:
    """The runs below ``root`` that speak for a model."""
    folders = sorted(one for one in (root / LAB).iterdir() if one.is_dir())
    runs = [run for run in map(Run, folders) if run.state == "done" and run.model == model]

    def most(name: str, of: str | None = None) -> Run | None:
        mine = [run for run in runs if name in (run.name or "") and run.settings.get(of or name)]
        return max(mine, key=lambda run: (run.metrics or {})["n_items"], default=None)

    sweep, controls = most("sweep"), most("controls")
    settings = next((run.settings for run in (sweep, controls) if run), {"model": model})
    named = [run for run in runs if "attention" in (run.name or "")]
    whole = most("whole", of="sweep")
    return Evidence(model, sweep, controls, largest_summary(settings, named), whole)


def blocks(root: Path = COMMITTED_RUNS) -> dict[str, Callable[[], str]]:
    """Every block by its name; those of the second model begin with ``gemma_``."""
    made: dict[str, Callable[[], str]] = {}
    for prefix, model in (("", EMBEDDED), ("gemma_", SECOND)):
        for block in (sweep, dials, layers, controls, points, prompts, attention):
            made[prefix + block.__name__] = partial(_block, block, model, root)
    made["gemma_whole"] = partial(_block, whole, SECOND, root)
    return made


def _block(block: Callable[[Evidence], str], model: str, root: Path) -> str:
    return block(evidence(model, root))


# --- the blocks ----------------------------------------------------------------------------------


def sweep(found: Evidence) -> str:
    """Every point of the sweep but its layer windows, against the prototype where it has them."""
    if found.sweep is None:
        return _not_run(found, "--sweep sink=0,1,2,4,8", "sweep")
    return text.basis(found.sweep) + findings_sweep.points(found.sweep)


def dials(found: Evidence) -> str:
    """What the confirm half says of points chosen on the explore half."""
    if found.sweep is None:
        return "Nothing chosen yet: there is no sweep.\n"
    view = Sweep(found.sweep)
    chosen = best(view, "acc")
    assert chosen is not None
    kinds = best_of_dials(view, "acc")
    lines = [f"- The sweep's best point: {chosen['sentence']}"]
    lines += [f"- Of {kind}: {one['sentence']}" for kind, one in kinds.items()]
    lines += _why_one_share(view, chosen, list(kinds.values()))
    return "\n".join(lines) + "\n"


def _why_one_share(
    view: Sweep, chosen: Mapping[str, Any], family: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Why the best point's share of the damage is stated and no dial's, where that is so."""
    stated = (chosen.get("confirm") or chosen["same_items"])["removed"]
    shares = [one["simultaneous"]["removed"] for one in family]
    if stated is None or stated["value"] is None or not shares:
        return []
    if any(share is None or share["value"] is not None for share in shares):
        return []
    outcomes = view.outcomes(view.usual, "acc")
    assert outcomes is not None
    _, half = halves(view, outcomes)
    strict = family[0]["family"]["confidence"]
    alone, together = (
        outcomes.delta(CAUSAL, PLAIN, half, confidence=confidence)
        for confidence in (stats.CONFIDENCE, strict)
    )
    if alone is None or together is None or not alone.excludes_zero or together.excludes_zero:
        return []
    return [
        f"- Why a share is stated above for the best point and for no dial: on the items judged on "
        f"the damage, {text.delta(alone)} points at 95 %, leaves out 0, and {text.delta(together)} "
        f"at the {100 * strict:.2f} % of each of the {len(family)} simultaneous intervals does not; "
        "a share of what may be nothing has no meaning."
    ]


def layers(found: Evidence) -> str:
    """Which windows of layers cost most."""
    windows = findings_sweep.windows(found.sweep) if found.sweep else ""
    return windows or _not_run(found, "--sweep layers=windows:5", "sweep")


def controls(found: Evidence) -> str:
    """What was fixed beforehand as refuting the story and, once they were run, what came of it."""
    if found.controls is None:
        said = _not_run(found, "--controls", "controls")
        if found.model != EMBEDDED:
            return said
        rules = [[title, by] for _, title, _, by, _ in CONTROLS]
        return f"{said}\n{table(['control', 'refuted by'], rules)}"
    judged = {row["name"]: row for row in judge(Sweep(found.controls))}
    rows = []
    for name, title, _, refuted_by, _ in CONTROLS:
        row = judged.get(name)
        outcome: Outcome = row["outcome"] if row else "undecided"
        finding = row["finding"] if row else ""
        if name == "triviality":
            outcome, finding = _triviality(found, outcome, finding)
        verdict = OUTCOME_WORDS[outcome]
        verdict = f"**{verdict}**" if verdict.startswith("refuted") else verdict
        rows.append([title, refuted_by, finding, verdict if finding else "not run"])
    return text.basis(found.controls) + table(
        ["control", "refuted by", "what was found", "the story is"], rows
    )


def points(found: Evidence) -> str:
    """The controls' points of the usual prompt, by both measures."""
    if found.controls is None:
        return "Nothing to tell yet: no controls were run.\n"
    view, rows = Sweep(found.controls), []
    mine = [s for s, p in view.points.items() if p.condition == view.usual and p.part == "control"]
    for slug in mine:
        row = [_point_name(view, slug)]
        for measure in METRICS:
            numbers = view.outcomes(view.usual, measure)
            assert numbers is not None
            row += [
                f"{100 * numbers.accuracy(slug):.1f}",
                text.delta(numbers.delta(PLAIN, slug)),
                text.share(numbers.removed(CAUSAL, PLAIN, slug)),
            ]
        rows.append(row)
    header = [
        "point", *(f"{what}`{measure}`" for measure in METRICS
                   for what in ("", "to bidirectional, ", "damage removed, ")),
    ]  # fmt: skip
    return table(header, rows) + "".join(_long_enough(view, slug) for slug in mine)


def prompts(found: Evidence) -> str:
    """How well the model does at all with each prompt, and what it then loses."""
    if found.controls is None:
        return "Nothing to tell yet: no controls were run.\n"
    view, rows = Sweep(found.controls), []
    none = view.slug_of(CAUSAL, view.usual._replace(context="none"))
    for condition in dict.fromkeys(point.condition for point in view.points.values()):
        causal, plain, sink = (view.slug_of(one, condition) for one in REGIMES)
        if causal and plain and sink and none:
            numbers = view.outcomes(condition, "acc")
            assert numbers is not None
            alike = condition.chat_template == view.usual.chat_template  # else they do not pair
            rows.append(
                [
                    condition.words(view.usual) or "usual",
                    f"{100 * numbers.accuracy(causal):.1f}",
                    text.delta(above(view.runs[none], view.runs[causal])) if alike else "",
                    text.delta(numbers.delta(causal, plain)),
                    text.delta(numbers.delta(causal, sink)),
                    text.share(numbers.removed(causal, plain, sink)),
                ]
            )
    header = [
        "prompt", "causal", "over no context", "bidirectional to causal", "sink=1 to causal",
        "damage removed by sink=1",
    ]  # fmt: skip
    return table(header, rows)


def whole(found: Evidence) -> str:
    """Whole sets, as the sweep summed them up: its items are not committed."""
    if found.whole is None:
        return _not_run(found, "--sweep sink=1,4", "whole").replace(f" --limit {text.FIRST}", "")
    metrics = found.whole.metrics
    assert metrics is not None
    rows = [
        [f"`{measure}`", findings_sweep.short(point["regime"]), *text.stored(point[measure])]
        for measure in METRICS
        for point in metrics["points"]
    ]
    header = ["measure", "point", "accuracy", "to causal, points", "damage removed"]
    return text.basis(found.whole) + table(header, rows)


def attention(found: Evidence) -> str:
    """Where the prompt's tokens look, and how long the first one's state is, under each regime."""
    if found.attention is None:
        return _not_run(found, "", "attention")
    metrics = found.attention.metrics
    assert metrics is not None
    middle, rows = metrics["n_layers"] // 2, []
    for number, one in enumerate(metrics["observed"]):
        share, length = one["overall"]["prefix"], metrics["drift"][f"norm_{number}_first"]
        rows.append(
            [
                f"`{one['regime']}`",
                *(text.mean(share[name], 0, 100, " %") for name in ("first", "top", "future")),
                text.mean(length, middle, 1, ""),
            ]
        )
    header = [
        "regime", "attention on the first token", "on each head's most attended token",
        "on tokens ahead",
        f"length of the first token's state behind layer {middle}",
    ]  # fmt: skip
    return text.basis(found.attention) + table(header, rows)


# --- their parts ---------------------------------------------------------------------------------


def _long_enough(view: Sweep, slug: str) -> str:
    """What moving the sink does in the prompts that have the token it is moved to."""
    place = parse_regime(view.points[slug].regime).self_token
    if place is None:
        return ""
    lengths = view.runs[CAUSAL].items_table(("n_prefix_tokens",)).column("n_prefix_tokens")
    reached = np.array([min(found) > place for found in lengths.to_pylist()])
    numbers = view.outcomes(view.usual, "acc")
    assert numbers is not None
    n_short = int((~reached).sum())
    share = text.share(text.only(numbers, reached).removed(CAUSAL, PLAIN, slug))
    return (
        f"\n{formatting.count(n_short)} prompts are too short to have a token {place}; in the others "
        f"`self={place}` removes {share} of the damage by `acc`.\n"
    )


def _point_name(view: Sweep, slug: str) -> str:
    point = view.points[slug]
    patched = f", patched `{point.patch}`" if point.patch else ""
    return findings_sweep.short(point.regime) + patched


def _triviality(found: Evidence, outcome: Outcome, finding: str) -> tuple[Outcome, str]:
    """The sweep's own answer, and that of the attention summary."""
    answer = observed(found.attention.metrics) if found.attention else None
    if answer is None:
        return outcome, finding
    other, said = answer
    if not finding:
        return other, said
    return together(outcome, other), f"{finding} On more items: {said[0].lower()}{said[1:]}"


def _not_run(found: Evidence, options: str, name: str) -> str:
    """Which command makes the run that a block is missing."""
    line = f"lab --model {found.model} {options} --limit {text.FIRST} --dtype float32 --compact"
    if name == "attention":
        regimes = "--regime causal --regime bidirectional --regime bidirectional:sink=1"
        line = f"attend --model {found.model} --task {TASKS} --limit 20 {regimes}"
    return f"Not run yet at this size. It is made by `python -m bidir_core {line} --name {name}`.\n"
