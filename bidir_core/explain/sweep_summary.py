"""A sweep's summary: its points, its best one and what that verdict is worth, law and controls.

The best point, of the sweep and of each dial, is chosen on one half of the items and judged on the
other. For any point that a reader picks, numbers are exploratory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.order_effects import order_arms
from bidir_core.analyse.pairing import METRICS
from bidir_core.explain import law
from bidir_core.explain.controls import judge
from bidir_core.explain.sweep_outcomes import CI, Outcomes, Sweep, removes
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
        "best_of_dials": {metric: best_of_dials(sweep, metric) for metric in METRICS},
        "law": {metric: law.summary(sweep, metric) for metric in METRICS},
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


def candidates(sweep: Sweep) -> dict[str, list[str]]:
    """The swept points by the dials they turn, e.g. ``sink`` or ``sink, lambda``."""
    by_dials: dict[str, list[str]] = {}
    for slug, point in sweep.points.items():
        is_swept = point.condition == sweep.usual and point.patch is None and point.part == "sweep"
        dials = re.findall(r"([a-z]+)=", point.regime)
        if is_swept and dials:
            by_dials.setdefault(", ".join(dials), []).append(slug)
    return by_dials


def best(sweep: Sweep, metric: str, among: Sequence[str] | None = None) -> dict[str, Any] | None:
    """The point with the highest accuracy on ``explore`` and what ``confirm`` says of it."""
    slugs = among or [slug for slugs in candidates(sweep).values() for slug in slugs]
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
        "chosen_on": sweep.numbers(slug, metric, chosen_on),
        "confirm" if halved else "same_items": numbers,
        "sentence": best_sentence(sweep.points[slug].regime, numbers, len(slugs), halved),
    }


def best_of_dials(sweep: Sweep, metric: str) -> dict[str, dict[str, Any]]:
    """The best point of each kind of point, where there are several kinds, judged as a family.

    Beside what :func:`best` says of each: ``simultaneous``, its numbers with intervals that hold
    for all of the family together (Bonferroni's), and ``family``: how many it has, and each
    interval's confidence.
    """
    kinds = candidates(sweep)
    if len(kinds) < 2:
        return {}
    by_kind = {kind: best(sweep, metric, slugs) for kind, slugs in kinds.items()}
    choices = {kind: choice for kind, choice in by_kind.items() if choice is not None}
    outcomes = sweep.outcomes(sweep.usual, metric)
    if not choices or outcomes is None:
        return {}
    _, half = halves(sweep, outcomes)
    confidence = 1 - stats.ALPHA / len(choices)
    for choice in choices.values():
        choice["family"] = {"n": len(choices), "confidence": confidence}
        numbers = sweep.numbers(choice["slug"], metric, half, confidence=confidence)
        choice["simultaneous"] = numbers
        choice["sentence"] = best_sentence(
            choice["regime"], numbers, choice["n_candidates"], half is not None, len(choices)
        )
    return choices


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
    n_dials: int = 1,
) -> str:
    """The verdict on the best point, and on which items and how many questions it rests."""
    if halved:
        basis = (
            f"Chosen as the best of {n_candidates} on the explore half, judged on the confirm half"
        )
        if n_candidates == 1:
            basis = "Judged on the confirm half"
    else:
        basis = f"Exploratory: the best of {n_candidates} on these same items"
    if n_dials > 1:
        basis += f"; the interval holds for all {n_dials} dials together"
    return f"{removed_sentence(regime, numbers, simultaneous=n_dials > 1)}. {basis}."


def removed_sentence(name: str, numbers: Mapping[str, Any], *, simultaneous: bool = False) -> str:
    """``sink=1 removes 103 % of the damage (95 % CI 71 to 140 %, n = 1,150)``, and what the interval
    leaves open."""
    share = numbers["removed"]
    interval = f"simultaneous {CI}" if simultaneous else CI
    text = f"{name.removeprefix('bidirectional:')} {removes(numbers, interval=interval)}"
    if not share or share["value"] is None:
        return text
    if share["low"] <= 0 <= share["high"]:
        return f"{text}; not separable from removing nothing"
    if share["high"] < 0:
        return f"{text}; it adds damage"
    return f"{text}; part of it stays" if share["high"] < 1 else text
