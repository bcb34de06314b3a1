"""What the fine-tunes of a model's study show, from its runs.

    python -m scripts.repair --study qwen-1.5b            # docs/claims-qwen-1.5b.json
    python -m scripts.findings                            # then writes the pages

What is chosen (a learning rate, a recipe) is chosen on the ``explore`` half of the items with seed 0;
what is claimed is measured on ``confirm``. A difference is formed for each item, averaged over seeds and
tasks; runs of one name that were made alike all count: an item's outcome is their mean.

docs/claims.json and docs/recipes.json were written in the same way, of the embedded model, where the
items of all seeds lay; only one seed's are committed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.study import arm_of, items_key
from bidir_core.analyse.verdict import JSON_WORDS, Aim, judge, reached
from bidir_core.common.errors import UserError
from bidir_core.common.files import write_json
from bidir_core.data.items import fold_of
from bidir_core.explain.sweep_outcomes import Outcomes, outcomes
from bidir_core.runs.find import list_runs
from bidir_core.runs.run import Run
from scripts.pages import DOCS

FOLDS: dict[str, str | None] = {"explore": "explore", "confirm": "confirm", "all": None}
SEEDS = range(100)
B, C = "bidirectional", "causal"
REGIMES = (C, B)
COMMITTED_BASE = {C: "bf16-causal", B: "bf16-bidirectional"}
Cell = tuple[str, str]  # an arm ("base", "3B-full", ..), the regime that it is evaluated under
STAGE1: Cell = ("base", C)
RunsByName = Mapping[str, Sequence[Run]]


def runs_by_name(roots: Sequence[Path | str] | None = None) -> dict[str, list[Run]]:
    """The finished runs of each name: the newest that has its items, and those made like it; of a
    name without items the newest alone."""
    by_name: dict[str, list[Run]] = {}
    done = [run for run in list_runs(roots) if run.name and run.state == "done"]  # newest first
    for run in sorted(done, key=lambda run: not run.has_items):
        alike = by_name.setdefault(str(run.name), [])
        if not alike or (run.has_items and _made_like(run) == _made_like(alike[0])):
            alike.append(run)
    return by_name


def _made_like(run: Run) -> tuple[object, ...]:
    trained = run.config.get("training_record") or {}
    setup = run.regime, run.settings.get("context"), trained.get("data_fingerprint")
    return items_key(run, dtype=True), *arm_of(run), *setup


@dataclass(frozen=True)
class Names:
    """How a study's runs are named: ``prefix`` is empty for the committed one.

    The base model's runs are the committed ones, or the two points of a study's law.
    """

    runs: RunsByName
    study: str = ""

    @classmethod
    def of(cls, study: str, roots: Sequence[Path | str] | None = None) -> Names:
        runs = runs_by_name(roots)
        if study and f"law-{study}" in runs:
            law = runs[f"law-{study}"][0].path / "points"
            runs |= {f"{study}-base-{regime}": [Run(law / regime)] for regime in REGIMES}
        return cls(runs, study)

    @property
    def prefix(self) -> str:
        return f"{self.study}-" if self.study else ""

    def cell(self, cell: Cell, seed: int) -> str:
        """The evaluation run of one cell; the base model has no seeds."""
        arm, regime = cell
        if arm == "base":
            return f"{self.prefix}base-{regime}" if self.study else COMMITTED_BASE[regime]
        return f"{self.trained(arm, seed)}-{regime}"

    def trained(self, arm: str, seed: int) -> str:
        """The fine-tune of an arm; in a study seed 0 of 3B is one of those tried at several rates."""
        if self.study and seed == 0 and arm.startswith("3B-"):
            rate = chosen_rate(self.runs, self.study, arm.removeprefix("3B-"))
            return f"{self.prefix}{arm}-lr{rate:g}-seed0" if rate else f"{self.prefix}{arm}-seed0"
        return f"{self.prefix}{arm}-seed{seed}"

    @property
    def stage1(self) -> str:
        return self.cell(STAGE1, 0)

    def usable(self, name: str) -> bool:
        """Whether a run of that name has its items at hand."""
        return name in self.runs and self.runs[name][0].has_items


def chosen_rate(runs: RunsByName, study: str, method: str) -> float | None:
    """Of the learning rates that 3B was tried at, the best on explore; None if none was finished."""
    pattern = re.compile(rf"{re.escape(study)}-3B-{method}-lr(\S+)-seed0-bidirectional")
    tried = [
        (float(match[1]), runs[name][0]) for name in runs if (match := pattern.fullmatch(name))
    ]
    return max(tried, key=lambda pair: explore_macro(pair[1]), default=(None,))[0]


def explore_macro(run: Run) -> float:
    """Macro accuracy over the items of the explore half."""
    items = run.items(["task", "doc_hash", "correct"])
    half = items[[fold_of(doc_hash) == "explore" for doc_hash in items["doc_hash"]]]
    return float(half.groupby("task")["correct"].mean().mean())


# Differences


def each_run(names: Names, wanted: Iterable[str]) -> Outcomes:
    """Who was right in each run of these names, by run id, over stage 1's items.

    UserError if a name has no run with items, or a run does not pair.
    """
    every = dict.fromkeys([names.stage1, *wanted])
    if missing := [name for name in every if not names.usable(name)]:
        raise UserError(f"there is no finished run named {', '.join(missing)}; make it first")
    runs = {run.id: run for name in every for run in names.runs[name]}
    return outcomes(names.runs[names.stage1][0], runs, "acc")


def each_name(names: Names, single: Outcomes, wanted: Iterable[str]) -> Outcomes:
    """:func:`each_run` with the runs of a name as one: ``right`` is how often an item was right."""
    ids = {
        name: [run.id for run in names.runs[name]]
        for name in dict.fromkeys([names.stage1, *wanted])
    }
    return replace(
        single,
        right={name: np.mean([single.right[id] for id in same], 0) for name, same in ids.items()},
        known={name: np.all([single.known[id] for id in same], 0) for name, same in ids.items()},
    )


Side = tuple[int, Sequence[str]]  # a sign, and the runs by seed (one run is the same for all seeds)


def difference(
    outcomes: Outcomes, sides: Sequence[Side], fold: str, tasks: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The signed sum of the sides in points, with its interval, over the items that all scored.

    Of these tasks, or of all. None where a task has no such item in this fold.
    """
    mask = outcomes.mask(*(name for _, runs in sides for name in runs), half=FOLDS[fold])
    values = {}
    for task in tasks or tasks_of(outcomes):
        in_task = mask & (outcomes.task == task)
        if not in_task.any():
            return None
        right = {name: values[in_task] for name, values in outcomes.right.items()}
        parts = [sign * np.stack([1.0 * right[name] for name in runs]) for sign, runs in sides]
        values[task] = sum(parts[1:], parts[0])
    effect = stats.stratified_mean(values)
    ends = {end: _points(getattr(effect.estimate, end)) for end in ("value", "low", "high")}
    by_seed = [_points(value) for value in effect.per_seed]
    return {**ends, "n": effect.estimate.n, "by_seed": by_seed}


def tasks_of(outcomes: Outcomes) -> list[str]:
    return list(dict.fromkeys(outcomes.task.tolist()))


def _points(fraction: float) -> float:
    return round(100 * fraction, 3) + 0.0  # no -0.0


def estimate(entry: Mapping[str, Any]) -> stats.Estimate:
    """What :func:`difference` wrote, as fractions again."""
    value, low, high = (entry[name] / 100 for name in ("value", "low", "high"))
    return stats.Estimate(value, low, high, entry["n"])


# Claims

CLAIM_FOLDS = ("confirm", "all")  # claims are made on the first; the second is shown beside it


@dataclass(frozen=True)
class Claim:
    """A difference, ``plus`` minus ``minus``, and what is aimed at. ``margin`` in points."""

    key: str
    what: str
    plus: Sequence[Cell]
    minus: Sequence[Cell]
    aim: Aim = "none"
    margin: float = 1.0

    @property
    def cells(self) -> tuple[tuple[int, Cell], ...]:
        return *((1, cell) for cell in self.plus), *((-1, cell) for cell in self.minus)


def trained_claims(method: str) -> list[Claim]:
    """What is claimed of a method's fine-tunes; keys of LoRA's end in ``_lora``."""
    ours, ours_causal = (f"3B-{method}", B), (f"3B-{method}", C)
    control, control_causal = (f"3C-{method}", B), (f"3C-{method}", C)
    taught, taught_causal = (f"distill-{method}", B), (f"distill-{method}", C)
    masked, plain, stage1 = "under bidirectional prefill", "in causal mode", "minus stage 1"
    against, distilled = f"minus its control 3C {plain}", "the distilled model"
    cross = "the interaction, (3B - 3C under bidirectional) - (3B - 3C causal)"
    better: Aim = "within or better"
    result = (
        Claim("3b_stage1", f"3B {masked}, {stage1}", [ours], [STAGE1], "at least"),
        Claim("3b_control", f"3B {masked}, {against}", [ours], [control_causal], "within", 1.5),
        Claim("3b_price", f"3B {plain}, {stage1}", [ours_causal], [STAGE1]),
        Claim(
            "3b_causal", f"3B {plain}, {against}", [ours_causal], [control_causal], "within", 1.5
        ),
        Claim("interaction", cross, [ours, control_causal], [control, ours_causal], "above"),
        Claim("distil_stage1", f"{distilled} {masked}, {stage1}", [taught], [STAGE1], better, 1.5),
        Claim(
            "distil_causal", f"{distilled} {plain}, {stage1}", [taught_causal], [STAGE1], "within"
        ),
    )
    if method == "full":
        return list(result)
    return [replace(c, key=f"{c.key}_lora", what=f"{c.what}; LoRA adapters") for c in result]


def method_claim(arm: str, regime: str) -> Claim:
    """LoRA against all weights."""
    mode = "causal mode" if regime == C else "bidirectional prefill"
    what = f"{arm}, {mode}: LoRA minus all weights"
    cells = [(f"{arm}-lora", regime)], [(f"{arm}-full", regime)]
    return Claim(f"lora_{arm.lower()}_{regime}", what, *cells, "within or better")


DAMAGE = "the base model under bidirectional prefill, minus stage 1"
METHODS = (("3B", B), ("3B", C), ("3C", C), ("distill", B), ("distill", C))
CLAIMS = (
    Claim("damage", DAMAGE, [("base", B)], [STAGE1]),
    *trained_claims("lora"),
    *trained_claims("full"),
    *(method_claim(*cell) for cell in METHODS),
)


def claims(names: Names) -> dict[str, Any]:
    """Every claim's numbers, and which runs they are from."""
    arms = dict.fromkeys(arm for claim in CLAIMS for _, (arm, _) in claim.cells)
    cells = [(arm, regime) for arm in arms for regime in REGIMES]
    seeds = {cell: [n for n in SEEDS if names.usable(names.cell(cell, n))] for cell in cells}
    wanted = sorted({names.cell(cell, seed) for cell in cells for seed in seeds[cell]})
    single = each_run(names, wanted)
    outcomes = each_name(names, single, wanted)
    adapters = {names.trained(arm, n) for arm in arms if arm.endswith("-lora") for n in SEEDS}
    return {
        "schema": 1,
        "metric": "acc",
        "unit": "points of macro accuracy",
        "claims": {claim.key: _claim(names, outcomes, claim, seeds) for claim in CLAIMS},
        "accuracy": {
            arm: {regime: _accuracy(names, outcomes, (arm, regime), seeds) for regime in REGIMES}
            for arm in arms
        },
        "adapters": {
            name: (names.runs[name][0].metrics or {}).get("weight_bytes")
            for name in sorted(adapters & set(names.runs))
        },
        "repeats": _repeats([names.runs[name] for name in wanted]),
        "runs": {
            name: {run.id: _accuracies(single, run.id) for run in names.runs[name]}
            for name in wanted
        },
    }


def _claim(
    names: Names, outcomes: Outcomes, claim: Claim, seeds: Mapping[Cell, Sequence[int]]
) -> dict[str, Any]:
    trained = [cell for _, cell in claim.cells if cell[0] != "base"]
    common = [n for n in SEEDS if all(n in seeds[cell] for cell in trained)] if trained else [0]
    goal = {"what": claim.what, "aim": claim.aim, "margin": claim.margin}
    if not common:
        missing = [names.cell(cell, 0) for cell in trained if not seeds[cell]]
        return {**goal, "seeds": [], "missing": missing}
    sides = [
        (sign, [names.cell(cell, n) for n in (common if cell[0] != "base" else common[:1])])
        for sign, cell in claim.cells
    ]
    numbers = {fold: difference(outcomes, sides, fold) for fold in CLAIM_FOLDS}
    by_task = {t: difference(outcomes, sides, "all", [t]) for t in tasks_of(outcomes)}
    entry = {**goal, "seeds": common if trained else [], **numbers, "by_task": by_task}
    return {**entry, **judged(entry)}


def judged(claim: Mapping[str, Any]) -> dict[str, str]:
    """The library's word for the difference on confirm, and whether the aim is reached."""
    if not claim.get("confirm"):
        return {}
    effect, margin = estimate(claim["confirm"]), claim["margin"] / 100
    verdict = judge(effect, margin=margin).verdict
    word = "equivalent" if verdict == "equivalent" else JSON_WORDS[verdict]
    return {"word": word, "reached": reached(claim["aim"], effect, margin)}


def _accuracy(
    names: Names, outcomes: Outcomes, cell: Cell, seeds: Mapping[Cell, Sequence[int]]
) -> dict[str, Any] | None:
    run_names = list(dict.fromkeys(names.cell(cell, seed) for seed in seeds[cell]))
    if not run_names:
        return None
    by_seed = [_accuracies(outcomes, name) for name in run_names]
    means = {fold: round(float(np.mean([s[fold] for s in by_seed])), 3) for fold in CLAIM_FOLDS}
    return means | {"n_runs": sum(len(names.runs[name]) for name in run_names)}


def _accuracies(outcomes: Outcomes, slug: str) -> dict[str, float]:
    """Macro accuracy in percent."""
    return {fold: round(100 * outcomes.accuracy(slug, FOLDS[fold]), 3) for fold in CLAIM_FOLDS}


def _repeats(runs: Iterable[Sequence[Run]]) -> dict[str, Any] | None:
    """How far the same run made twice lies apart: macro accuracies of evaluations, in points."""
    macros = [
        [(run.metrics or {})["macro"]["acc"] for run in pair] for pair in runs if len(pair) == 2
    ]
    gaps = [100 * (again - first) for first, again in macros]
    if not gaps:
        return None
    return {
        "n": len(gaps),
        "largest": round(float(np.abs(gaps).max()), 2),
        "standard_deviation_of_one": round(float(np.sqrt(np.mean(np.square(gaps)) / 2)), 2),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--study", required=True, help="short name of its model in its runs' names")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the file goes")
    options = parser.parse_args(arguments)
    out = options.docs / f"claims-{options.study}.json"
    try:
        write_json(out, claims(Names.of(options.study)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
