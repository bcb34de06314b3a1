"""Two models and the published study beside one another, from docs/claims*.json.

What RESULTS.md and docs/tables/ say of the embedded model's claims and recipes was written once, from
docs/claims.json and docs/recipes.json, as these are records too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from bidir_core.runs.layout import COMMITTED_RUNS, NONPREFILL, STAGE1, STAGE2, STAGE4
from bidir_core.runs.run import Run
from scripts.pages import DOCS, Blocks, delta, table
from scripts.repair import FOLDS, B, Names, difference, each_name, each_run, estimate

STUDY = "qwen-1.5b"  # the second model's, in docs/claims-qwen-1.5b.json
Json = Mapping[str, Any]


def read(name: str) -> Any:
    return json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))


def interval(entry: Json) -> str:
    return delta(estimate(entry))


def models() -> str:
    """What damages and repairs SmolLM2, the 1.5B and the published 3B, beside one another."""
    first, second = read("claims"), read(f"claims-{STUDY}")
    columns = (
        ("SmolLM2 135M, all weights", first, "full"),
        ("Qwen2.5-Coder 1.5B, LoRA", second, "lora"),
        ("Qwen2.5-Coder 1.5B, all weights", second, "full"),
    )
    rows = [
        [
            f"{arm}, causal / bidirectional, %",
            *(
                both(data, arm if arm == "base" else f"{arm}-{method}")
                for _, data, method in columns
            ),
            published_accuracy(arm),
        ]
        for arm in ("base", "3B", "3C", "distill")
    ]
    printed = {
        "damage": published_difference(STAGE2),
        "3b_stage1": published_difference(STAGE4),
        "3b_price": published_difference(NONPREFILL),
    }
    for key in ("damage", "interaction", "3b_stage1", "3b_price", "distil_stage1"):
        cells = [claim_cell(data, key, method) for _, data, method in columns]
        name = first["claims"].get(key, second["claims"][key])["what"]
        rows.append([name, *cells, printed.get(key, "no control")])
    costs = [training_cost(*study) for study in (("", "full"), (STUDY, "lora"), (STUDY, "full"))]
    rows.append(["3B: steps, useful tokens, seconds on a shared H200", *costs, "not recorded"])
    header = " | ".join(["", *(title for title, *_ in columns), "published 3B, all weights"])
    return table(header, rows)


def both(data: Json, arm: str) -> str:
    cells = data["accuracy"][arm].values()
    return " / ".join(f"{cell['all']:.1f}" for cell in cells) if all(cells) else "not run"


def claim_cell(data: Json, key: str, method: str) -> str:
    claim = data["claims"].get(key if method == "full" or key == "damage" else f"{key}_lora")
    if key == "3b_price" and claim is None:  # a study whose items were not all kept
        ours, base = (data["accuracy"][arm]["causal"] for arm in (f"3B-{method}", "base"))
        return f"{ours['confirm'] - base['confirm']:+.1f}; {ours['n_runs']} runs, no interval kept"
    if claim is None or not claim.get("confirm"):
        return "not run"
    n = len(claim["seeds"])
    seeds = f"; {n} seed{'s' if n > 1 else ''}" if n else ""
    return f"{interval(claim['confirm'])}{seeds}"


def training_cost(study: str, method: str) -> str:
    """What the seed-0 fine-tune of 3B took."""
    names = Names.of(study)
    metrics = names.runs[names.trained(f"3B-{method}", 0)][0].metrics or {}
    seconds = metrics["cost"]["seconds"]
    return f"{metrics['steps']}, {metrics['tokens'] / 1e6:.1f} M, {seconds:.0f}"


@cache
def published(stage: str) -> float:
    """The published study's macro accuracy, in percent: numbers only, no items."""
    (run,) = (COMMITTED_RUNS / stage).glob("*_published")
    return 100 * (Run(run).metrics or {})["macro"]["acc"]


def published_difference(stage: str) -> str:
    return f"{published(stage) - published(STAGE1):+.1f}"


def published_accuracy(arm: str) -> str:
    stages = {"base": (STAGE1, STAGE2), "3B": (NONPREFILL, STAGE4)}.get(arm)
    return " / ".join(f"{published(stage):.1f}" for stage in stages) if stages else "not run"


def by_steps() -> str:
    """What shorter and longer fine-tunes with LoRA, seed 0, leave of the 1.5B's damage, and what they
    cost in causal mode."""
    names, rows = Names.of(STUDY), []
    for objective in ("3B", "distill"):
        pattern = re.compile(rf"{STUDY}-{objective}-lora-steps\d+-seed0")
        trained = [name for name in names.runs if pattern.fullmatch(name)]
        trained.append(names.trained(f"{objective}-lora", 0))
        measured = {name: names.runs[name][0].metrics or {} for name in trained}
        for name in sorted(trained, key=lambda name: measured[name]["steps"]):
            metrics = measured[name]
            cells = []
            for regime, fold in [*((B, fold) for fold in FOLDS), ("causal", "all")]:
                after, effect = f"{name}-{regime}", None
                if any(run.has_items for run in names.runs.get(after, ())):
                    right = each_name(names, each_run(names, [after]), [after])
                    effect = difference(right, [(1, [after]), (-1, [names.stage1])], fold)
                cells.append(interval(effect) if effect else "not kept")
            seconds = f"{metrics['cost']['seconds']:.0f}"
            tokens = f"{metrics['tokens'] / 1e6:.1f} M"
            rows.append([objective, f"{metrics['steps']}", tokens, seconds, *cells])
    header = "objective | steps | useful tokens | seconds, shared H200"
    return table(f"{header} | {' | '.join(FOLDS)} | causal mode, all", rows)


def by_task() -> str:
    """Every difference of the 1.5B's study, task by task, on all items."""
    rows = [
        [
            claim["what"],
            task,
            *(f"{effect[end]:.2f}" for end in ("value", "low", "high")),
            str(effect["n"]),
            str(max(1, len(claim["seeds"]))),
        ]
        for claim in read(f"claims-{STUDY}")["claims"].values()
        for task, effect in claim.get("by_task", {}).items()
    ]
    return table("difference | task | points | 95 % from | to | n | seeds", rows)


BLOCKS: Blocks = {"models": models}
TABLES: Blocks = {f"repair_by_task_{STUDY}": by_task, f"repair_steps_{STUDY}": by_steps}
