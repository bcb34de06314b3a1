"""What the fine-tunes of a study show, from its runs: docs/claims.json and docs/recipes.json.

    python -m scripts.repair                              # the embedded model's committed study
    python -m scripts.repair --study qwen-1.5b            # docs/claims-qwen-1.5b.json, of a model's study
    python -m scripts.findings                            # then writes the pages

What is chosen (a learning rate, a recipe) is chosen on the ``explore`` half of the items with seed 0;
what is claimed is measured on ``confirm``. Only one seed's items are committed, so the two files keep
the numbers of all runs, and are not overwritten by fewer runs or seeds.
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

from bidir_core.analyse.verdict import JSON_WORDS, Aim, judge, reached
from bidir_core.common.errors import UserError
from bidir_core.common.files import write_json
from bidir_core.explain.sweep_outcomes import Outcomes
from bidir_core.runs.run import Run
from bidir_core.train.config import OBJECTIVES
from scripts.pages import DOCS
from scripts.study_runs import (
    FOLDS,
    REGIMES,
    SEEDS,
    STAGE1,
    B,
    C,
    Cell,
    Names,
    difference,
    each_name,
    each_run,
    estimate,
    tasks_of,
)

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
    fine_tunes = [name for by_seed in trained.values() for name in by_seed.values()]
    wanted = [f"{name}-{regime}" for name in fine_tunes for regime in REGIMES]
    outcomes = each_name(names, each_run(names, wanted), wanted)
    entries = [
        _recipe(names, outcomes, recipe, dict(sorted(by_seed.items())))
        for recipe, by_seed in trained.items()
    ]
    entries.sort(key=_cost)
    return {
        "schema": 1,
        "metric": "acc",
        "unit": "points of macro accuracy against stage 1 (the base model, causal)",
        "rule": RULE,
        "chosen": choose(entries),
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
    names: Names, outcomes: Outcomes, recipe: str, trained: Mapping[int, str]
) -> dict[str, Any]:
    runs = {seed: names.runs[name][0] for seed, name in trained.items()}
    first = next(iter(runs.values()))
    metrics = first.metrics or {}
    anchor = (first.settings.get("causal_anchor") or 0) > 0
    distils = OBJECTIVES[first.settings["objective"]].distils

    def against_stage1(fold: str, seeds: Sequence[int]) -> dict[str, Any] | None:
        stage1 = (-1, [names.stage1])
        values = {
            r: difference(outcomes, [(1, [f"{trained[n]}-{r}" for n in seeds]), stage1], fold)
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

    def seeds(document: Mapping[str, Any]) -> dict[str, int]:
        counted = {entry["name"]: len(entry["seeds"]) for entry in document.get("recipes", ())}
        counted |= {key: len(entry["seeds"]) for key, entry in document.get("claims", {}).items()}
        return counted | {name: len(ids) for name, ids in document.get("runs", {}).items()}

    new_counts = seeds(new)
    return [name for name, n in seeds(old).items() if new_counts.get(name, 0) < n]


def write(out: Path, new: Mapping[str, Any], *, fewer: bool) -> None:
    """Write a file. UserError if that would lose seeds or runs, unless ``fewer`` is wanted."""
    old = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    if (fewer_seeds := lost(old, new)) and not fewer:
        raise UserError(
            f"{out} has more seeds or runs than are here, of {', '.join(fewer_seeds)}; put the "
            "missing runs with their items into BIDIR_RUNS_DIR, or give --fewer"
        )
    write_json(out, new)
    print(f"written: {out}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--study", default="", help="short name of its model in its runs' names")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the files go")
    parser.add_argument("--fewer", action="store_true", help="also from fewer seeds or runs")
    options = parser.parse_args(arguments)
    suffix = f"-{options.study}" if options.study else ""
    try:
        names = Names.of(options.study)
        documents = {"claims": claims(names), "recipes": recipes(names)}
        for name, new in documents.items():
            if name == "claims" or new["recipes"]:
                write(options.docs / f"{name}{suffix}.json", new, fewer=options.fewer)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
