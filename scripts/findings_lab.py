"""What committed sweeps, controls and attention summaries say of each model: blocks and tables.

Runs are found by model, by what they hold, and by their name, which has ``sweep``, ``controls``,
``attention`` or ``whole`` (a sweep over whole sets) in it; of several the one with the most items
counts, of equal ones the oldest. A block whose run is not there names the command that makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bidir_core.analyse.pairing import METRICS
from bidir_core.common import formatting
from bidir_core.explain.controls import (
    CONTROLS,
    OUTCOME_WORDS,
    above,
    judge,
    largest_summary,
    observed,
    together,
)
from bidir_core.explain.sweep_summary import Sweep
from bidir_core.regimes import parse_regime
from bidir_core.runs.layout import COMMITTED_RUNS, LAB
from bidir_core.runs.run import Run
from scripts import findings_sweep
from scripts import findings_text as text
from scripts.blocks import Blocks, table

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


def blocks(root: Path = COMMITTED_RUNS) -> Blocks:
    """What stands on the pages."""
    return {
        "controls": partial(controls, root),
        "whole": partial(_block, whole, SECOND, root),
        "layers": partial(_block, layers, EMBEDDED, root),
        "attention": partial(_block, attention, EMBEDDED, root),
    }


def tables(root: Path = COMMITTED_RUNS) -> Blocks:
    """What stands in files of its own; those of the second model begin with ``gemma_``."""
    made = {one.__name__: partial(_block, one, EMBEDDED, root) for one in (sweep, points, prompts)}
    return made | {
        f"gemma_{one.__name__}": partial(_block, one, SECOND, root)
        for one in (sweep, points, prompts, layers, attention)
    }


def _block(block: Callable[[Evidence], str], model: str, root: Path) -> str:
    return block(evidence(model, root))


# --- the blocks ----------------------------------------------------------------------------------


def sweep(found: Evidence) -> str:
    """Every point of the sweep but its layer windows, against the prototype where it has them."""
    if found.sweep is None:
        return _not_run(found, "--sweep sink=0,1,2,4,8", "sweep")
    return text.basis(found.sweep) + findings_sweep.points(found.sweep)


def layers(found: Evidence) -> str:
    """Which windows of layers cost most."""
    windows = findings_sweep.windows(found.sweep) if found.sweep else ""
    return windows or _not_run(found, "--sweep layers=windows:5", "sweep")


def controls(root: Path) -> str:
    """What was fixed beforehand as refuting the story, and what came of it on each model."""
    cells, sources = {}, ""
    for model in (EMBEDDED, SECOND):
        found = evidence(model, root)
        sources += text.basis(found.controls) if found.controls else _not_run(
            found, "--controls", "controls"
        )  # fmt: skip
        cells[model] = _outcomes_of_controls(found)
    rows = [
        [title, refuted_by, *(cells[model].get(name, "not run") for model in cells)]
        for name, title, _, refuted_by, _ in CONTROLS
    ]
    return f"{sources.rstrip()}\n\n" + table(["control", "the story is refuted by", *cells], rows)


def _outcomes_of_controls(found: Evidence) -> dict[str, str]:
    """By control: the share of the damage that its one point removes, if it has one; the verdict."""
    if found.controls is None:
        return {}
    view = Sweep(found.controls)
    numbers = view.outcomes(view.usual, "acc")
    assert numbers is not None
    middle, cells = found.controls.config.get("middle_token"), {}
    dials = {
        "necessity": "sink=1", "sufficiency": "rows=0-0", "placebo": f"skip={middle}",
        "relocated": f"self={middle}", "tail": "tail=1",
    }  # fmt: skip
    judged = {row["name"]: row["outcome"] for row in judge(view)}
    if answer := observed(found.attention.metrics) if found.attention else None:
        judged["triviality"] = together(judged.get("triviality", "undecided"), answer[0])
    for name, outcome in judged.items():
        verdict = OUTCOME_WORDS[outcome]
        verdict = f"**{verdict}**" if verdict.startswith("refuted") else verdict
        slug = name in dials and view.slug_of(f"{PLAIN}:{dials[name]}", view.usual)
        share = text.share(numbers.removed(CAUSAL, PLAIN, slug)) if slug else ""
        cells[name] = f"removes {share}: {verdict}" if slug else verdict
    return cells


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


def _not_run(found: Evidence, options: str, name: str) -> str:
    """Which command makes the run that a block is missing."""
    line = f"lab --model {found.model} {options} --limit {text.FIRST} --dtype float32 --compact"
    if name == "attention":
        regimes = "--regime causal --regime bidirectional --regime bidirectional:sink=1"
        line = f"attend --model {found.model} --task {TASKS} --limit 20 {regimes}"
    return f"Not run yet at this size. It is made by `python -m bidir_core {line} --name {name}`.\n"
