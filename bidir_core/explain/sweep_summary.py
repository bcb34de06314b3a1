"""A sweep's summary: its points, its best one and what that verdict is worth, law and controls.

The best point is chosen on one half of the items and judged on the
other. For any point that a reader picks, numbers are exploratory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bidir_core.analyse.order_effects import order_arms
from bidir_core.analyse.pairing import METRICS
from bidir_core.explain.controls import judge
from bidir_core.explain.sweep_outcomes import Outcomes, Sweep, law_summary, removes
from bidir_core.regimes import CAUSAL
from bidir_core.runs.run import Run


def summarise_sweep(run: Run) -> dict[str, Any]:
    """The part of a sweep's ``metrics.json`` that its finished points decide."""
    sweep = Sweep(run)
    points = [
        {
            **point.to_json(sweep.usual),
            "condition_words": point.condition.words(sweep.usual),
            "n": int((sweep.runs[slug].metrics or {}).get("n_items") or 0),
            "seconds": (sweep.runs[slug].metrics or {}).get("cost", {}).get("seconds"),
            **{metric: sweep.numbers(slug, metric) for metric in METRICS},
        }
        for slug, point in sweep.points.items()
    ]
    return {
        "n_points": len(points),
        "n_planned": len(sweep.planned),
        "n_items": max((point["n"] for point in points), default=0),
        "points": points,
        "best": {metric: best(sweep, metric) for metric in METRICS},
        "law": {metric: law_summary(sweep, metric) for metric in METRICS},
        "orders": {metric: orders(sweep, metric) for metric in METRICS},
        "controls": judge(sweep) if run.settings.get("controls") else [],
    }


def orders(sweep: Sweep, metric: str) -> dict[str, list[dict[str, Any]]]:
    """By order family what each point answers in both orders; empty without order tasks.

    Causal is the baseline; the prompt may be given more often, and is else the sweep's own.
    """
    causal = sweep.slug_of(str(CAUSAL), sweep.usual)
    if causal is None:
        return {}
    runs = [
        sweep.runs[slug]
        for slug, point in sweep.points.items()
        if slug != causal
        and point.patch is None
        and point.condition._replace(repeat_prompt=sweep.usual.repeat_prompt) == sweep.usual
    ]
    arms = order_arms(sweep.runs[causal], runs, metric=metric)
    return {family: list(map(asdict, family_arms)) for family, family_arms in arms.items()}


def best(sweep: Sweep, metric: str) -> dict[str, Any] | None:
    """The swept point with the highest accuracy on ``explore`` and what ``confirm`` says of it."""
    slugs = [
        slug
        for slug, point in sweep.points.items()
        if (point.condition, point.patch, point.part) == (sweep.usual, None, "sweep")
        and "=" in point.regime
    ]
    outcomes = sweep.outcomes(sweep.usual, metric)
    if outcomes is None or not slugs:
        return None
    chosen_on, judged_on = halves(sweep, outcomes)
    slug = choose(outcomes, slugs, chosen_on)
    if slug is None:
        return None
    numbers = sweep.numbers(slug, metric, judged_on)
    halved = judged_on is not None
    return {
        "slug": slug,
        "regime": sweep.points[slug].regime,
        "n_candidates": len(slugs),
        "exploratory": not halved,
        "confirm" if halved else "same_items": numbers,
        "sentence": best_sentence(sweep.points[slug].regime, numbers, len(slugs), halved),
    }


def halves(sweep: Sweep, outcomes: Outcomes) -> tuple[str | None, str | None]:
    """The folds to choose and to judge on; None, all items, where they cannot be kept apart."""
    separable = sweep.fold == "all" and all(
        len(set(outcomes.task[outcomes.halves == half])) == len(set(outcomes.task))
        for half in ("explore", "confirm")
    )
    return ("explore", "confirm") if separable else (None, None)


def choose(outcomes: Outcomes, slugs: Sequence[str], half: str | None) -> str | None:
    """The point with the highest accuracy on these items; of equal ones the first."""
    scores = [outcomes.accuracy(slug, half) for slug in slugs]
    return None if all(map(math.isnan, scores)) else slugs[int(np.nanargmax(scores))]


# --- in words ----------------------------------------------------------------------------------


def best_sentence(
    regime: str,
    numbers: Mapping[str, Any],
    n_candidates: int,
    halved: bool,
) -> str:
    """The verdict on the best point, and on which items it rests."""
    if halved:
        basis = (
            f"Chosen as the best of {n_candidates} on the explore half, judged on the confirm half"
        )
        if n_candidates == 1:
            basis = "Judged on the confirm half"
    else:
        basis = f"Exploratory: the best of {n_candidates} on these same items"
    return f"{removed_sentence(regime, numbers)}. {basis}."


def removed_sentence(name: str, numbers: Mapping[str, Any]) -> str:
    """``sink=1 removes 103 % of the damage (95 % CI ..)``, and what the interval leaves open."""
    share = numbers["removed"]
    text = f"{name.removeprefix('bidirectional:')} {removes(numbers)}"
    if not share or share["value"] is None:
        return text
    if share["low"] <= 0 <= share["high"]:
        return f"{text}; not separable from removing nothing"
    if share["high"] < 0:
        return f"{text}; it adds damage"
    return f"{text}; part of it stays" if share["high"] < 1 else text
