"""Differences between the repair runs, item by item, as means over seeds.

One method for every number: a difference is formed for each item, averaged over seeds and over
tasks (:func:`bidir_core.analyse.effects.stratified_mean`, whose interval knows of the items and, with
several seeds, of the seeds). Recipes are chosen on the ``explore`` half of the items; claims are
made on ``confirm``. Where runs of one name were made more than once, all of them count: an item's
outcome is then its mean over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.analyse import effects, stats
from bidir_core.analyse.study import arm_of, items_key
from bidir_core.common.errors import UserError
from bidir_core.explain.sweep_summary import Outcomes, outcomes
from bidir_core.runs.find import list_runs
from bidir_core.runs.run import Run

BASE = {"causal": "bf16-causal", "bidirectional": "bf16-bidirectional"}
STAGE1 = BASE["causal"]
FOLDS: dict[str, str | None] = {"explore": "explore", "confirm": "confirm", "all": None}
# A side of a difference: its sign, and its runs by seed (a run without seeds stands alone).
Side = tuple[int, Sequence[str]]


def finished(roots: Sequence[Path | str] | None = None) -> dict[str, Run]:
    """The newest finished run of each name, among all folders of runs.

    One whose items were kept goes before one of which only the metrics are left.
    """
    found: dict[str, Run] = {}
    runs = [run for run in list_runs(roots) if run.name and run.state == "done"]  # newest first
    for run in sorted(runs, key=lambda run: not run.has_items):
        found.setdefault(str(run.name), run)
    return found


def repetitions(roots: Sequence[Path | str] | None = None) -> dict[str, list[Run]]:
    """The finished runs of each name that have their items: the newest, and those made like it."""
    found: dict[str, list[Run]] = {}
    for run in list_runs(roots):  # newest first
        if run.name and run.state == "done" and run.has_items:
            mine = found.setdefault(str(run.name), [])
            if not mine or _made_like(run) == _made_like(mine[0]):
                mine.append(run)
    return found


def _made_like(run: Run) -> tuple[object, ...]:
    """What runs of one name have in common if one is the other made again."""
    trained = run.config.get("training_record") or {}
    same = run.regime, run.settings.get("context"), trained.get("data_fingerprint")
    return items_key(run, dtype=True), *arm_of(run), *same


def by_run(runs: Mapping[str, Sequence[Run]], names: Iterable[str]) -> Outcomes:
    """Who was right in each run of these names, by its id, over stage 1's items.

    UserError if a name has no run, or a run does not pair.
    """
    wanted = dict.fromkeys([STAGE1, *names])
    if missing := [name for name in wanted if not runs.get(name)]:
        raise UserError(f"there is no finished run named {', '.join(missing)}; make it first")
    single = {run.id: run for name in wanted for run in runs[name]}
    return outcomes(runs[STAGE1][0], single, "acc")


def by_name(found: Outcomes, runs: Mapping[str, Sequence[Run]], names: Iterable[str]) -> Outcomes:
    """:func:`by_run` with the runs of a name as one: ``right`` is how often an item was right."""
    ids = {name: [run.id for run in runs[name]] for name in dict.fromkeys([STAGE1, *names])}
    return replace(
        found,
        right={name: np.mean([found.right[id] for id in mine], 0) for name, mine in ids.items()},
        known={name: np.all([found.known[id] for id in mine], 0) for name, mine in ids.items()},
    )


def differences(
    found: Outcomes, sides: Sequence[Side], half: str | None
) -> dict[str, np.ndarray] | None:
    """Per task, the signed sum of the sides ``[n_seeds, n_items]`` where all their runs scored.

    None where a task has no such item in this half.
    """
    names = [name for _, runs in sides for name in runs]
    mask = found.mask(*names, half=half)
    values: dict[str, np.ndarray] = {}
    for task in dict.fromkeys(found.task.tolist()):
        mine = mask & (found.task == task)
        if not mine.any():
            return None
        # A side of one run, such as the base model, is the same for every seed.
        values[task] = np.zeros((1, int(mine.sum())))
        for sign, runs in sides:
            right = np.stack([found.right[name][mine] for name in runs]).astype(np.float64)
            values[task] = values[task] + sign * right
    return values


def in_points(values: Mapping[str, np.ndarray] | None) -> dict[str, Any] | None:
    """Their mean as it stands in a JSON file: points, not fractions."""
    if values is None:
        return None
    contrast = effects.stratified_mean(values)
    one = contrast.estimate
    return {
        **{name: _points(getattr(one, name)) for name in ("value", "low", "high")},
        "n": one.n,
        "by_seed": [_points(value) for value in contrast.per_seed],
    }


def estimate(entry: Mapping[str, Any]) -> stats.Estimate:
    """What :func:`in_points` wrote, as fractions again."""
    value, low, high = (entry[name] / 100 for name in ("value", "low", "high"))
    return stats.Estimate(value, low, high, entry["n"])


def by_fold(found: Outcomes, sides: Sequence[Side], folds: Iterable[str]) -> dict[str, Any]:
    """The same difference in each of these folds."""
    return {fold: in_points(differences(found, sides, FOLDS[fold])) for fold in folds}


def _points(fraction: float) -> float:
    return round(100 * fraction, 3) + 0.0  # no -0.0
