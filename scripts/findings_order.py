"""The tables on order tasks: the passage before the question, and after it.

From the committed ``order-*`` runs, one a model and arm; arms are paired with causal's answers to the
same documents (:mod:`bidir_core.analyse.order_effects`).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.order_effects import (
    ARM_HEADER,
    OrderArm,
    arm_row,
    gap_recovered,
    order_answers,
    order_arms,
)
from bidir_core.runs.run import Run
from scripts import order_generation
from scripts.findings_law import NAMES, named
from scripts.pages import Blocks, delta, table

MODELS = ("qwen-0.5b", "qwen-1.5b")
STUDY = "qwen-1.5b"  # of which the page has a table
FAMILIES = ("sciq", "sciq_letters", "boolq", "sciq_medium", "sciq_long")
BASE = "causal"
ARMS = {  # of a run's name, and the words for it
    BASE: "causal",
    "bidirectional": "bidirectional",
    "sink1": "`sink=1`",
    "opened": "`layers=A-`",
    "kl": "`layers=A-`, A by `kl`",
    **{f"from{layer}": f"`layers={layer}-`" for layer in range(4, 28, 4)},
    "twice": "causal, prompt twice",
    "3C-causal": "3C, causal",
    "3B-causal": "3B, causal",
    "3B-bidirectional": "3B, bidirectional",
    "3B-opened-causal": "3B trained with `layers=A-`, causal",
    "3B-opened-opened": "3B trained with `layers=A-`, `layers=A-`",
}
SHOWN = (
    *("bidirectional", "sink1", "opened", "from16", "twice"),
    *("3B-bidirectional", "3B-opened-opened"),
)
AGAINST = (
    ("opened", "twice"),
    ("3B-opened-opened", "3B-opened-causal"),
    ("3B-opened-opened", "3C-causal"),
)


def runs(model: str) -> dict[str, Run]:
    """Arm -> its run, of the arms that this model has."""
    by_name = named("order-")
    return {arm: by_name[f"{arm}-{model}"] for arm in ARMS if f"{arm}-{model}" in by_name}


@cache
def arms(model: str) -> dict[str, list[OrderArm]]:
    """By family, what each arm answers beside causal."""
    base, *others = runs(model).values()
    return order_arms(base, others)


def effects_table() -> str:
    """What each arm changes with the passage last, on the larger model, and which arm beats which."""
    by_arm = runs(STUDY)
    index_of = {arm: number for number, arm in enumerate(by_arm)}
    causal = [arms(STUDY)[family][index_of[BASE]] for family in FAMILIES]
    orders = ((base.effect.first, base.effect.last) for base in causal)
    levels = [" / ".join(f"{100 * level.value:.1f}" for level in pair) for pair in orders]
    rows = [["causal, passage first / last, %", *levels]]
    for arm in SHOWN:
        recovered = [arms(STUDY)[family][index_of[arm]].recovered for family in FAMILIES]
        rows.append([ARMS[arm], *(delta(r.last_change) for r in recovered if r)])
    for arm, other in AGAINST:
        first, second = order_answers(by_arm[other]), order_answers(by_arm[arm])
        changes = (gap_recovered(first[family], second[family]).last_change for family in FAMILIES)
        rows.append([f"{ARMS[arm]} minus {ARMS[other]}", *map(delta, changes)])
    lengths = (f"`{f}`, {base.prompt_tokens:,.0f} tokens" for f, base in zip(FAMILIES, causal))
    run = by_arm[BASE]
    sciq, boolq = (arms(STUDY)[family][0].effect.n for family in ("sciq", "boolq"))
    return (
        f"{NAMES[STUDY]}, {sciq:,} documents of SciQ in four forms and {boolq:,} of BoolQ, "
        f"bfloat16, {(run.metrics or {})['cost']['device']}, {run.config['created'][:10]}. "
        "Points of accuracy with the passage last, minus causal or what a row names, 95 % CI.\n\n"
        + table(" | ".join(["", *lengths]), rows)
    )


def order_table() -> str:
    """Everything about every arm."""
    rows = [
        [model, family, *arm_row(arm)]
        for model in MODELS
        for family in FAMILIES
        for arm in arms(model)[family]
    ]
    note = "Seconds and GB are of the whole run, with all families, beside other work.\n\n"
    return note + table(" | ".join(["model", "family", *ARM_HEADER]), rows)


def generated_table() -> str:
    """Greedy answers: how many are right, and what an arm changes against causal on the same documents."""
    rows, cells = [], order_generation.read()
    rights: dict[tuple[str, ...], list[np.ndarray]] = {}
    for cell in cells:
        answers = map(order_generation.ended, cell["answers"])
        pairs = list(zip(answers, cell["right"], strict=True))
        rights[order_generation.cell_of(cell)] = [
            np.array([check(answer, right) for answer, right in pairs])
            for check in (order_generation.matches, order_generation.begins_with)
        ]
    for cell in cells:
        key = cell["model"], cell["family"], cell["order"]
        exact, begins = rights[order_generation.cell_of(cell)]
        base = rights.get((cell["model"], BASE, cell["family"], cell["order"]))
        compared = base if cell["arm"] != BASE else None
        change = delta(stats.paired_delta(compared[1], begins)) if compared else ""
        shares = [f"{100 * right.mean():.1f}" for right in (exact, begins)]
        regime = f"{cell['regime']}, prompt twice" if cell["arm"] == "twice" else cell["regime"]
        rows.append([*key, regime, str(len(begins)), *shares, change])
    header = "model | family | passage | regime | n | exact match, % | begins with the answer, %"
    return table(f"{header} | minus causal, points (95 % CI)", rows)


BLOCKS: Blocks = {"effects": effects_table}
TABLES: Blocks = {"order": order_table, "order_generation": generated_table}
