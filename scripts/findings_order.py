"""The tables on order tasks: the passage before the question, and after it.

From the committed ``order-*`` runs, one a model and arm; arms are paired with causal's answers to the
same documents (:mod:`bidir_core.analyse.order_effects`).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from bidir_core.analyse.order_effects import (
    GapRecovered,
    OrderAnswers,
    OrderEffect,
    gap_recovered,
    order_answers,
    order_effect,
)
from bidir_core.runs.run import Run
from scripts.findings_law import NAMES, named
from scripts.pages import Blocks, delta, table

BASE = "causal"
MODELS = ("qwen-0.5b", "qwen-1.5b")
STUDY = "qwen-1.5b"  # of which the page has a table
FAMILIES = ("sciq", "sciq_letters", "boolq", "sciq_medium", "sciq_long")
ARMS = {  # of a run's name, and the words for it
    "causal": "causal",
    "bidirectional": "bidirectional",
    "sink1": "`sink=1`",
    "opened": "`layers=A-`, A recommended",
    "twice": "causal, prompt twice",
    "3C-causal": "3C, causal",
    "3B-causal": "3B, causal",
    "3B-bidirectional": "3B, bidirectional",
    "3B-opened-causal": "3B trained with `layers=A-`, causal",
    "3B-opened-opened": "3B trained with `layers=A-`, `layers=A-`",
}


@cache
def arms(model: str) -> dict[str, tuple[Run, dict[str, OrderAnswers]]]:
    """Arm -> its run and its answers by family, of the arms that this model has."""
    ends = f"-{model}"
    found = {
        name.removesuffix(ends): run for name, run in named("order-").items() if name.endswith(ends)
    }
    return {arm: (found[arm], order_answers(found[arm])) for arm in ARMS if arm in found}


@cache
def effects(model: str, arm: str, family: str) -> tuple[OrderEffect, GapRecovered]:
    """An arm's accuracies, and its differences to causal."""
    answers = arms(model)
    return order_effect(answers[arm][1][family]), gap_recovered(
        answers[BASE][1][family], answers[arm][1][family]
    )


@cache
def prompt_tokens(model: str, family: str) -> float:
    """The mean length of the family's prompts in both orders, as causal reads them."""
    items = arms(model)[BASE][0].items(["task", "n_prefix_tokens"])
    mine = items[items["task"].isin([f"{family}_first", f"{family}_last"])]
    return float(np.mean([row[0] for row in mine["n_prefix_tokens"]]))


SHOWN = (
    "bidirectional",
    "sink1",
    "opened",
    "twice",
    "3C-causal",
    *("3B-opened-causal", "3B-opened-opened"),
)
AGAINST = (
    ("opened", "twice"),
    ("3B-opened-opened", "3B-opened-causal"),
    ("3B-opened-opened", "3C-causal"),
)


def effects_table() -> str:
    """What each arm changes with the passage last, on the larger model, and which arm beats which."""
    answers = arms(STUDY)
    rows = []
    gaps = ["causal, passage first / last, %"]
    for family in FAMILIES:
        effect, _ = effects(STUDY, BASE, family)
        gaps.append(" / ".join(f"{100 * one.value:.1f}" for one in (effect.first, effect.last)))
    rows.append(gaps)
    for arm in SHOWN:
        changes = [delta(effects(STUDY, arm, family)[1].last_change) for family in FAMILIES]
        rows.append([f"{ARMS[arm]}, minus causal", *changes])
    for arm, other in AGAINST:
        pairs = [(answers[other][1][family], answers[arm][1][family]) for family in FAMILIES]
        changes = [delta(gap_recovered(*pair).last_change) for pair in pairs]
        rows.append([f"{ARMS[arm]}, minus: {ARMS[other]}", *changes])
    lengths = (f"`{f}`, {prompt_tokens(STUDY, f):,.0f} tokens" for f in FAMILIES)
    run, mine = answers[BASE]
    return (
        f"{NAMES[STUDY]}, {mine['sciq'].n:,} documents of SciQ in four forms and {mine['boolq'].n:,} of BoolQ, "
        f"bfloat16, {(run.metrics or {})['cost']['device']}, {run.config['created'][:10]}. "
        "Differences in points of accuracy with the passage last, 95 % CI.\n\n"
        + table(" | ".join(["", *lengths]), rows)
    )


def order_table() -> str:
    """Everything about every arm."""
    rows = []
    for model in MODELS:
        for arm, (run, answers) in arms(model).items():
            cost = (run.metrics or {})["cost"]
            for family in FAMILIES:
                effect, recovered = effects(model, arm, family)
                share = "not stated"
                if arm == BASE:
                    share = ""
                elif recovered.share is not None:
                    ends = (recovered.share.value, recovered.share.low, recovered.share.high)
                    share = "{:.0f} % ({:.0f} to {:.0f})".format(*(100 * end for end in ends))
                tasks = (run.metrics or {})["tasks"]
                rows.append(
                    [
                        model,
                        arm,
                        run.regime,
                        family,
                        str(answers[family].n),
                        *(f"{100 * one.value:.1f}" for one in (effect.first, effect.last)),
                        delta(effect.gap),
                        *(
                            "" if arm == BASE else delta(one)
                            for one in (recovered.first_change, recovered.last_change)
                        ),
                        share,
                        *(
                            f"{100 * tasks[f'{family}_{order}']['gold_prob']:.1f}"
                            for order in ("first", "last")
                        ),
                        f"{prompt_tokens(model, family) * (2 if arm == 'twice' else 1):.0f}",
                        f"{cost['computed_tokens'] / 1e6:.1f}",
                        f"{cost['seconds']:.0f}",
                        f"{cost['peak_memory_bytes']['device'] / 1e9:.1f}",
                    ]
                )
    header = (
        "model | arm | regime | family | n | passage first, % | passage last, % | order gap, points | "
        "first, to causal | last, to causal | gap recovered | gold probability first, % | "
        "gold probability last, % | prompt tokens | computed tokens of the run, millions | "
        "seconds of the run, beside other work | GPU memory of the run, GB"
    )
    return table(header, rows)


BLOCKS: Blocks = {"effects": effects_table}
TABLES: Blocks = {"order": order_table}
