"""What the fine-tunes of a study show, from its runs: docs/claims.json and docs/recipes.json.

    python -m scripts.repair                              # the embedded model's committed study
    python -m scripts.repair --study qwen-1.5b            # docs/claims-qwen-1.5b.json, of a model's study
    python -m scripts.findings                            # then writes the pages

A difference is formed for each item, averaged over seeds and tasks. What is chosen (a learning rate, a
recipe) is chosen on the ``explore`` half of the items with seed 0; what is claimed is measured on
``confirm``. Runs of one name that were made alike all count: an item's outcome is their mean. Only one
seed's items are committed, so the two files keep the numbers of all runs, and are not overwritten by
fewer runs or seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.analyse import effects, stats
from bidir_core.analyse.phrases import JSON_WORDS
from bidir_core.analyse.study import arm_of, items_key
from bidir_core.analyse.verdict import Aim, judge, reached
from bidir_core.common.errors import UserError
from bidir_core.common.files import write_json
from bidir_core.data.sampling import fold_of
from bidir_core.explain.sweep_outcomes import Outcomes, outcomes
from bidir_core.runs.find import list_runs
from bidir_core.runs.run import Run
from bidir_core.train.config import OBJECTIVES
from scripts.pages import DOCS

FOLDS: dict[str, str | None] = {"explore": "explore", "confirm": "confirm", "all": None}
CLAIM_FOLDS = ("confirm", "all")  # claims are made on the first; the second is shown beside it
SEEDS = range(100)
B, C = "bidirectional", "causal"
REGIMES = (C, B)
COMMITTED_BASE = {C: "bf16-causal", B: "bf16-bidirectional"}
Cell = tuple[str, str]  # an arm ("base", "3B-full", ..), the regime that it is evaluated under
RunsByName = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class Claim:
    """A difference, ``plus`` minus ``minus``, and what is aimed at. ``margin`` in points."""

    key: str
    plus: Sequence[Cell]
    minus: Sequence[Cell]
    aim: Aim = "none"
    margin: float = 1.0

    @property
    def cells(self) -> tuple[tuple[int, Cell], ...]:
        return *((1, cell) for cell in self.plus), *((-1, cell) for cell in self.minus)


STAGE1: Cell = ("base", C)
WHAT = {
    "damage": "the base model under bidirectional prefill, minus stage 1",
    "3b_stage1": "3B under bidirectional prefill, minus stage 1",
    "3b_control": "3B under bidirectional prefill, minus its control 3C in causal mode",
    "3b_control_lora": "the same of their LoRA adapters: 3B under bidirectional prefill, minus 3C in "
    "causal mode",
    "3b_price": "3B in causal mode, minus stage 1",
    "3b_causal": "3B in causal mode, minus its control 3C in causal mode",
    "interaction": "the interaction, (3B - 3C under bidirectional) - (3B - 3C causal)",
    "distil_stage1": "the distilled model under bidirectional prefill, minus stage 1",
    "distil_causal": "the distilled model in causal mode, minus stage 1",
    "lora_3b_bidirectional": "3B, bidirectional prefill: LoRA minus all weights",
    "lora_3b_causal": "3B, causal mode: LoRA minus all weights",
    "lora_3c_causal": "3C, causal mode: LoRA minus all weights",
    "lora_distill_bidirectional": "distill, bidirectional prefill: LoRA minus all weights",
    "lora_distill_causal": "distill, causal mode: LoRA minus all weights",
}


def trained_claims(method: str) -> dict[str, Claim]:
    """What is claimed of a method's fine-tunes; keys of LoRA's end in ``_lora``."""
    three_b, control, distilled = (f"{arm}-{method}" for arm in ("3B", "3C", "distill"))
    tail = "" if method == "full" else f"_{method}"
    made = (
        Claim("3b_stage1", [(three_b, B)], [STAGE1], "at least"),
        Claim("3b_control", [(three_b, B)], [(control, C)], "within", 1.5),
        Claim("3b_price", [(three_b, C)], [STAGE1]),
        Claim("3b_causal", [(three_b, C)], [(control, C)], "within", 1.5),
        Claim("interaction", [(three_b, B), (control, C)], [(control, B), (three_b, C)], "above"),
        Claim("distil_stage1", [(distilled, B)], [STAGE1], "within or better", 1.5),
        Claim("distil_causal", [(distilled, C)], [STAGE1], "within"),
    )
    return {one.key: replace(one, key=f"{one.key}{tail}") for one in made}


DAMAGE = Claim("damage", [("base", B)], [STAGE1])
METHODS = tuple(
    Claim(f"lora_{arm.lower()}_{r}", [(f"{arm}-lora", r)], [(f"{arm}-full", r)], "within or better")
    for arm, r in (("3B", B), ("3B", C), ("3C", C), ("distill", B), ("distill", C))
)
FULL, LORA = (trained_claims(method) for method in ("full", "lora"))
COMMITTED = (
    "3b_stage1",
    "3b_control",
    "3b_causal",
    "interaction",
    "distil_stage1",
    "distil_causal",
)
CLAIMS = (
    DAMAGE,
    *(FULL[key] for key in COMMITTED[:2]),
    LORA["3b_control"],
    *(FULL[key] for key in COMMITTED[2:]),
    *METHODS,
)
STUDY_CLAIMS = (DAMAGE, *LORA.values(), *FULL.values(), *METHODS)  # of a model's study

# The runs of a study


def runs_by_name(roots: Sequence[Path | str] | None = None) -> dict[str, list[Run]]:
    """The finished runs of each name: the newest that has its items, and those made like it; of a
    name without items the newest alone."""
    found: dict[str, list[Run]] = {}
    done = [run for run in list_runs(roots) if run.name and run.state == "done"]  # newest first
    for run in sorted(done, key=lambda run: not run.has_items):
        mine = found.setdefault(str(run.name), [])
        if not mine or (run.has_items and _made_like(run) == _made_like(mine[0])):
            mine.append(run)
    return found


def _made_like(run: Run) -> tuple[object, ...]:
    trained = run.config.get("training_record") or {}
    same = run.regime, run.settings.get("context"), trained.get("data_fingerprint")
    return items_key(run, dtype=True), *arm_of(run), *same


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
    return max(tried, key=lambda one: explore_macro(one[1]), default=(None,))[0]


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
        right={name: np.mean([single.right[id] for id in mine], 0) for name, mine in ids.items()},
        known={name: np.all([single.known[id] for id in mine], 0) for name, mine in ids.items()},
    )


Side = tuple[int, Sequence[str]]  # a sign, and the runs by seed (one run is the same for all seeds)


def difference(
    found: Outcomes, sides: Sequence[Side], fold: str, tasks: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The signed sum of the sides in points, with its interval, over the items that all scored.

    Of these tasks, or of all. None where a task has no such item in this fold.
    """
    mask = found.mask(*(name for _, runs in sides for name in runs), half=FOLDS[fold])
    values = {}
    for task in tasks or tasks_of(found):
        mine = mask & (found.task == task)
        if not mine.any():
            return None
        parts = [
            sign * np.stack([1.0 * found.right[n][mine] for n in runs]) for sign, runs in sides
        ]
        values[task] = sum(parts[1:], parts[0])
    effect = effects.stratified_mean(values)
    ends = {end: _points(getattr(effect.estimate, end)) for end in ("value", "low", "high")}
    return {**ends, "n": effect.estimate.n, "by_seed": [_points(one) for one in effect.per_seed]}


def tasks_of(found: Outcomes) -> list[str]:
    return list(dict.fromkeys(found.task.tolist()))


def _points(fraction: float) -> float:
    return round(100 * fraction, 3) + 0.0  # no -0.0


def estimate(entry: Mapping[str, Any]) -> stats.Estimate:
    """What :func:`difference` wrote, as fractions again."""
    value, low, high = (entry[name] / 100 for name in ("value", "low", "high"))
    return stats.Estimate(value, low, high, entry["n"])


# Claims


def claims(names: Names) -> dict[str, Any]:
    """Every claim's numbers, and which runs they are from."""
    wanted_claims = STUDY_CLAIMS if names.study else CLAIMS
    arms = dict.fromkeys(arm for one in wanted_claims for _, (arm, _) in one.cells)
    cells = [(arm, regime) for arm in arms for regime in REGIMES]
    seeds = {cell: [n for n in SEEDS if names.usable(names.cell(cell, n))] for cell in cells}
    wanted = sorted({names.cell(cell, seed) for cell in cells for seed in seeds[cell]})
    single = each_run(names, wanted)
    found = each_name(names, single, wanted)
    adapters = {names.trained(arm, n) for arm in arms if arm.endswith("-lora") for n in SEEDS}
    return {
        "schema": 1,
        "metric": "acc",
        "unit": "points of macro accuracy",
        "claims": {claim.key: _claim(names, found, claim, seeds) for claim in wanted_claims},
        "accuracy": {
            arm: {regime: _accuracy(names, found, (arm, regime), seeds) for regime in REGIMES}
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
    names: Names, found: Outcomes, claim: Claim, seeds: Mapping[Cell, Sequence[int]]
) -> dict[str, Any]:
    trained = [cell for _, cell in claim.cells if cell[0] != "base"]
    common = [n for n in SEEDS if all(n in seeds[cell] for cell in trained)] if trained else [0]
    what = WHAT.get(claim.key) or f"{WHAT[claim.key.removesuffix('_lora')]}; LoRA adapters"
    head = {"what": what, "aim": claim.aim, "margin": claim.margin}
    if not common:
        missing = [names.cell(cell, 0) for cell in trained if not seeds[cell]]
        return {**head, "seeds": [], "missing": missing}
    sides = [
        (sign, [names.cell(cell, n) for n in (common if cell[0] != "base" else common[:1])])
        for sign, cell in claim.cells
    ]
    numbers = {fold: difference(found, sides, fold) for fold in CLAIM_FOLDS}
    one = {**head, "seeds": common if trained else [], **numbers}
    if names.study:
        one["by_task"] = {t: difference(found, sides, "all", [t]) for t in tasks_of(found)}
    return {**one, **judged(one)}


def judged(claim: Mapping[str, Any]) -> dict[str, str]:
    """The library's word for the difference on confirm, and whether the aim is reached."""
    if not claim.get("confirm"):
        return {}
    one, margin = estimate(claim["confirm"]), claim["margin"] / 100
    verdict = judge(one, margin=margin).verdict
    word = "equivalent" if verdict == "equivalent" else JSON_WORDS[verdict]
    return {"word": word, "reached": reached(claim["aim"], one, margin)}


def _accuracy(
    names: Names, found: Outcomes, cell: Cell, seeds: Mapping[Cell, Sequence[int]]
) -> dict[str, Any] | None:
    mine = list(dict.fromkeys(names.cell(cell, seed) for seed in seeds[cell]))
    if not mine:
        return None
    by_seed = [_accuracies(found, name) for name in mine]
    means = {fold: round(float(np.mean([one[fold] for one in by_seed])), 3) for fold in CLAIM_FOLDS}
    return means | {"n_runs": sum(len(names.runs[name]) for name in mine)}


def _accuracies(found: Outcomes, slug: str) -> dict[str, float]:
    """Macro accuracy in percent."""
    return {fold: round(100 * found.accuracy(slug, FOLDS[fold]), 3) for fold in CLAIM_FOLDS}


def _repeats(runs: Iterable[Sequence[Run]]) -> dict[str, Any] | None:
    """How far the same run made twice lies apart: macro accuracies of evaluations, in points."""
    macros = [
        [(run.metrics or {})["macro"]["acc"] for run in mine] for mine in runs if len(mine) == 2
    ]
    gaps = [100 * (again - first) for first, again in macros]
    if not gaps:
        return None
    return {
        "n": len(gaps),
        "largest": round(float(np.abs(gaps).max()), 2),
        "standard_deviation_of_one": round(float(np.sqrt(np.mean(np.square(gaps)) / 2)), 2),
    }


# Recipes: short fine-tunes, of which the cheapest that comes near stage 1 is chosen

WITHIN = 1.0  # points
RULE = (
    f"of the recipes that are at most {WITHIN:g} point below stage 1 under bidirectional prefill "
    "on the explore half with seed 0, the one with the fewest useful training tokens; of equal "
    "ones the one with fewer forward passes a token, then the one with the higher difference"
)
SETTINGS = ("objective", "method", "steps", "lr", "warmup_steps", "batch_samples", "causal_anchor")


def recipes(names: Names) -> dict[str, Any]:
    """Every recipe that was tried, with what its seeds reached, and the choice."""
    pattern = re.compile(rf"{re.escape(names.prefix)}recipe-.+-seed(\d+)")
    trained: dict[str, dict[int, str]] = {}
    for name in names.runs:
        match = pattern.fullmatch(name)
        if match and all(names.usable(f"{name}-{regime}") for regime in REGIMES):
            settings = names.runs[name][0].settings
            recipe = "recipe-{objective}-{method}-{steps}-{lr:g}".format_map(settings)
            trained.setdefault(recipe, {})[int(match[1])] = name
    wanted = [f"{name}-{r}" for mine in trained.values() for name in mine.values() for r in REGIMES]
    wanted += [names.cell(("base", regime), 0) for regime in REGIMES]
    found = each_name(names, each_run(names, wanted), wanted)
    entries = [
        _recipe(names, found, recipe, dict(sorted(mine.items())))
        for recipe, mine in trained.items()
    ]
    entries.sort(key=_cost)
    base = [(1, [names.cell(("base", B), 0)]), (-1, [names.stage1])]
    return {
        "schema": 1,
        "metric": "acc",
        "unit": "points of macro accuracy against stage 1 (the base model, causal)",
        "rule": RULE,
        "chosen": choose(entries),
        "chosen_by_objective": {
            objective: choose([one for one in entries if one["objective"] == objective])
            for objective in dict.fromkeys(one["objective"] for one in entries)
        },
        "base": {fold: difference(found, base, fold) for fold in ("explore", "confirm")},
        "recipes": entries,
    }


def choose(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """The name of the chosen one; None if none comes close enough."""
    near = [e for e in entries if e["explore"] and e["explore"][B]["value"] >= -WITHIN]
    return min(near, key=_cost)["name"] if near else None


def _cost(entry: Mapping[str, Any]) -> tuple[float, ...]:
    reached = entry["explore"][B]["value"] if entry["explore"] else 0.0
    return entry["tokens"], entry["passes_a_token"], -reached


def _recipe(
    names: Names, found: Outcomes, recipe: str, trained: Mapping[int, str]
) -> dict[str, Any]:
    runs = {seed: names.runs[name][0] for seed, name in trained.items()}
    first = next(iter(runs.values()))
    metrics = first.metrics or {}
    anchor = (first.settings.get("causal_anchor") or 0) > 0
    distils = OBJECTIVES[first.settings["objective"]].distils

    def against_stage1(fold: str, seeds: Sequence[int]) -> dict[str, Any] | None:
        stage1 = (-1, [names.stage1])
        values = {
            r: difference(found, [(1, [f"{trained[n]}-{r}" for n in seeds]), stage1], fold)
            for r in (REGIMES if seeds else ())
        }
        return {"seeds": list(seeds), **values} if seeds and all(values.values()) else None

    fresh = [seed for seed in trained if seed != 0]  # seed 0 was looked at in choosing
    return {
        "name": recipe,
        **{key: first.settings.get(key) for key in SETTINGS},
        "seeds": list(trained),
        "tokens": metrics.get("tokens"),
        "loss_tokens": metrics.get("loss_tokens"),
        # Forward passes over each training token: the student's, its anchor's, the base model's.
        "passes_a_token": 1 + anchor + (anchor or distils),
        "seconds": {
            str(seed): (run.metrics or {}).get("cost", {}).get("seconds")
            for seed, run in runs.items()
        },
        "seconds_alone": {},  # several workers share a device
        "device": metrics.get("cost", {}).get("device"),
        "weight_bytes": metrics.get("weight_bytes"),
        "explore": against_stage1("explore", [0] if 0 in trained else []),
        "explore_fresh_seeds": against_stage1("explore", fresh),
        "confirm": against_stage1("confirm", list(trained)),
        "confirm_fresh_seeds": against_stage1("confirm", fresh),
    }


# The files


def lost(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Claims and recipes that would rest on fewer seeds than before, evaluations on fewer runs."""

    def seeds(of: Mapping[str, Any]) -> dict[str, int]:
        counted = {one["name"]: len(one["seeds"]) for one in of.get("recipes", ())}
        counted |= {key: len(one["seeds"]) for key, one in of.get("claims", {}).items()}
        return counted | {name: len(ids) for name, ids in of.get("runs", {}).items()}

    left = seeds(new)
    return [name for name, n in seeds(old).items() if left.get(name, 0) < n]


def write(out: Path, new: Mapping[str, Any], *, fewer: bool) -> None:
    """Write a file. UserError if that would lose seeds or runs, unless ``fewer`` is wanted."""
    old = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    if (gone := lost(old, new)) and not fewer:
        raise UserError(
            f"{out} has more seeds or runs than are here, of {', '.join(gone)}; put the missing runs "
            "with their items into BIDIR_RUNS_DIR, or give --fewer"
        )
    write_json(out, new)
    print(f"written: {out}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--study", default="", help="short name of its model in its runs' names")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the files go")
    parser.add_argument("--fewer", action="store_true", help="also from fewer seeds or runs")
    options = parser.parse_args(arguments)
    end = f"-{options.study}" if options.study else ""
    try:
        names = Names.of(options.study)
        made = {"claims": claims(names), "recipes": recipes(names)}
        for name, new in made.items():
            if name == "claims" or new["recipes"]:
                write(options.docs / f"{name}{end}.json", new, fewer=options.fewer)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
