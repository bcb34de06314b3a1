"""Short fine-tuning recipes: which are tried, what each reached at which cost, which is chosen.

The choice looks at the ``explore`` half of the items and at seed 0 only: of the recipes that come
within a point of stage 1 there, the one with the fewest useful training tokens. What is said of it
afterwards is measured on ``confirm``, with more seeds.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bidir_core.explain.sweep_summary import Outcomes
from bidir_core.runs.run import Run
from bidir_core.train.config import OBJECTIVES, FinetuneConfig
from scripts.repair_pairs import BASE, STAGE1, by_fold, by_name, by_run

WITHIN = 1.0  # points
RULE = (
    f"of the recipes that are at most {WITHIN:g} point below stage 1 under bidirectional prefill "
    "on the explore half with seed 0, the one with the fewest useful training tokens; of equal "
    "ones the one with fewer forward passes a token, then the one with the higher difference"
)
_NAME = re.compile(r"(recipe-.+)-seed(\d+)")


@dataclass(frozen=True)
class Recipe:
    """What is tried out; everything else is as in the long runs."""

    objective: str
    method: str
    steps: int
    lr: float

    @property
    def name(self) -> str:
        return f"recipe-{self.objective}-{self.method}-{self.steps}-{self.lr:g}"

    def run_name(self, seed: int) -> str:
        return f"{self.name}-seed{seed}"

    @property
    def warmup_steps(self) -> int:
        """A fifth of the steps: the usual 20 would be most of a run of 25."""
        return min(FinetuneConfig.warmup_steps, max(1, self.steps // 5))


def grid(objectives: Sequence[str] = ("3B", "distill"), steps: Sequence[int] = (25, 50, 100)):
    """All recipes, all weights first. The highest rate only where few steps are taken."""
    full = [
        Recipe(objective, "full", n, lr)
        for objective in objectives
        for n in steps
        for lr in (1e-4, 3e-4, 1e-3)
        if n <= 50 or lr < 1e-3
    ]
    lora = [
        Recipe("3B", "lora", n, lr)
        for n in steps
        for lr in (1e-3, 3e-3)
        if n >= 50 and "3B" in objectives
    ]
    return full + lora


# --- what was reached ----------------------------------------------------------------------------


def summary(
    runs: Mapping[str, Run],
    usable: Mapping[str, Sequence[Run]],
    known: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Every recipe that was tried, and the choice, for a JSON file.

    ``runs``: the finished ones by name; ``usable``: those with their items at hand. ``known``: what
    was written before. A recipe whose seed 0 has no items here keeps what is known of it, so the
    choice stays; new seeds of it replace what older seeds had on the confirm half.
    """
    seeds: dict[str, list[int]] = defaultdict(list)
    for name in runs:
        match = _NAME.fullmatch(name)
        if match and all(usable.get(f"{name}-{regime}") for regime in BASE):
            seeds[match[1]].append(int(match[2]))
    names = [
        f"{name}-seed{seed}-{regime}"
        for name, mine in seeds.items()
        for seed in mine
        for regime in BASE
    ]
    names += BASE.values()
    found = by_name(by_run(usable, names), usable, names)
    old = {one["name"]: one for one in known}
    recipes = [
        _recipe(found, runs, name, sorted(mine))
        if 0 in mine or name not in old
        else _more_seeds(found, runs, old[name], sorted(mine))
        for name, mine in seeds.items()
    ]
    recipes += [dict(one) for name, one in old.items() if name not in seeds]
    recipes.sort(key=_cost)
    by_objective = {
        objective: choose([one for one in recipes if one["objective"] == objective])
        for objective in dict.fromkeys(one["objective"] for one in recipes)
    }
    return {
        "schema": 1,
        "metric": "acc",
        "unit": "points of macro accuracy against stage 1 (the base model, causal)",
        "rule": RULE,
        "chosen": choose(recipes),
        "chosen_by_objective": by_objective,
        "base": by_fold(
            found, [(1, [BASE["bidirectional"]]), (-1, [STAGE1])], ("explore", "confirm")
        ),
        "recipes": recipes,
    }


def choose(recipes: Sequence[Mapping[str, Any]]) -> str | None:
    """The name of the chosen one; None if none comes close enough."""
    near = [
        one
        for one in recipes
        if one["explore"] and one["explore"]["bidirectional"]["value"] >= -WITHIN
    ]
    return min(near, key=_cost)["name"] if near else None


def _cost(one: Mapping[str, Any]) -> tuple[float, ...]:
    explore = one["explore"]
    return (
        one["tokens"],
        one["passes_a_token"],
        -explore["bidirectional"]["value"] if explore else 0.0,
    )


def _recipe(
    found: Outcomes, runs: Mapping[str, Run], name: str, seeds: Sequence[int]
) -> dict[str, Any]:
    trained = {seed: runs[f"{name}-seed{seed}"] for seed in seeds}
    first = trained[seeds[0]]
    settings, metrics = first.settings, first.metrics or {}
    fresh = [seed for seed in seeds if seed != 0]
    return {
        "name": name,
        **{
            key: settings.get(key)
            for key in (
                "objective", "method", "steps", "lr", "warmup_steps", "batch_samples",
                "causal_anchor",
            )
        },
        "seeds": list(seeds),
        "tokens": metrics.get("tokens"),
        "loss_tokens": metrics.get("loss_tokens"),
        "passes_a_token": _passes(settings),
        **_seconds(trained),
        "device": metrics.get("cost", {}).get("device"),
        "weight_bytes": metrics.get("weight_bytes"),
        "explore": _against_stage1(found, name, [0], "explore") if 0 in seeds else None,
        "confirm": _against_stage1(found, name, seeds, "confirm"),
        # Seed 0 was looked at in choosing, if on other items; these were not.
        "confirm_fresh_seeds": _against_stage1(found, name, fresh, "confirm") if fresh else None,
    }  # fmt: skip


def _more_seeds(
    found: Outcomes, runs: Mapping[str, Run], known: Mapping[str, Any], seeds: Sequence[int]
) -> dict[str, Any]:
    """A known recipe with other seeds than 0, which is what it was chosen by."""
    new = _seconds({seed: runs[f"{known['name']}-seed{seed}"] for seed in seeds})
    return {
        **known,
        "seeds": sorted({0, *seeds}),
        "seconds": {**known["seconds"], **new["seconds"]},
        # What is known was measured with nothing else on the device, if new runs were not.
        "seconds_alone": new["seconds_alone"] or known["seconds_alone"],
        "confirm": None,
        **{
            f"{fold}_fresh_seeds": _against_stage1(found, known["name"], seeds, fold)
            for fold in ("explore", "confirm")
        },
    }


def _seconds(trained: Mapping[int, Run]) -> dict[str, dict[str, float | None]]:
    """Seconds of training by seed, and those measured with nothing else on the device."""
    seconds = {n: (run.metrics or {}).get("cost", {}).get("seconds") for n, run in trained.items()}
    return {
        "seconds": {str(seed): value for seed, value in seconds.items()},
        "seconds_alone": {str(n): seconds[n] for n, run in trained.items() if was_alone(run)},
    }


def _against_stage1(
    found: Outcomes, name: str, seeds: Sequence[int], fold: str
) -> dict[str, Any] | None:
    values = {
        regime: by_fold(
            found,
            [(1, [f"{name}-seed{seed}-{regime}" for seed in seeds]), (-1, [STAGE1])],
            [fold],
        )[fold]
        for regime in BASE
    }
    return {"seeds": list(seeds), **values} if all(values.values()) else None


def _passes(settings: Mapping[str, Any]) -> int:
    """Forward passes over each training token: the student's, its anchor's, the base model's."""
    anchor = (settings.get("causal_anchor") or 0) > 0
    return 1 + anchor + (anchor or OBJECTIVES[settings["objective"]].distils)


# --- whose seconds count -------------------------------------------------------------------------

ALONE = "alone.json"


def was_alone(run: Run) -> bool:
    """Whether the run was trained with nothing else on the device, as its maker said."""
    try:
        return json.loads((run.path / ALONE).read_text(encoding="utf-8"))["alone"] is True
    except (OSError, ValueError, KeyError):
        return False
