"""The runs of a model's fine-tuning study by their names, and differences between them.

A difference is formed for each item, averaged over seeds and tasks. Runs of one name that were made
alike all count: an item's outcome is their mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.study import arm_of, items_key
from bidir_core.common.errors import UserError
from bidir_core.data.items import fold_of
from bidir_core.explain.sweep_outcomes import Outcomes, outcomes
from bidir_core.runs.find import list_runs
from bidir_core.runs.run import Run

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
