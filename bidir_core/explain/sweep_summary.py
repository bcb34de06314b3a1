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
from bidir_core.common import formatting
from bidir_core.explain import law
from bidir_core.explain.controls import judge
from bidir_core.explain.sweep_outcomes import CI, Outcomes, Sweep, removes
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL
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
    for all of the family together, and ``family``: how many it has, each interval's confidence, and
    the p value of removing nothing, by itself and after Holm's adjustment.
    """
    kinds = candidates(sweep)
    if len(kinds) < 2:
        return {}
    by_kind = {kind: best(sweep, metric, slugs) for kind, slugs in kinds.items()}
    choices = {kind: choice for kind, choice in by_kind.items() if choice is not None}
    outcomes = sweep.outcomes(sweep.usual, metric)
    plain = sweep.slug_of(str(BIDIRECTIONAL), sweep.usual)
    if not choices or outcomes is None:
        return {}
    _, half = halves(sweep, outcomes)
    confidence = 1 - stats.ALPHA / len(choices)
    p_values: list[float | None] = []
    for choice in choices.values():
        tables = [] if plain is None else outcomes.tables(plain, choice["slug"], half)
        p_values.append(p_of_no_difference(tables) if tables else None)
    adjusted = stats.holm([1.0 if p is None else p for p in p_values])
    for choice, p, p_holm in zip(choices.values(), p_values, adjusted, strict=True):
        choice["family"] = {
            "n": len(choices),
            "confidence": confidence,
            "p": p,
            "p_holm": None if p is None else p_holm,
        }
        numbers = sweep.numbers(choice["slug"], metric, half, confidence=confidence)
        choice["simultaneous"] = numbers
        regime, n_candidates, family = choice["regime"], choice["n_candidates"], choice["family"]
        choice["sentence"] = best_sentence(regime, numbers, n_candidates, half is not None, family)
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


def p_of_no_difference(tables: Sequence[stats.Table2x2]) -> float:
    """Two-sided p value of the macro difference of two runs over the same items, by task.

    It inverts the difference's interval: it is below alpha exactly where the interval of confidence
    1 - alpha leaves out 0.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    def zero_inside(z: float) -> float:
        """How far inside the interval of ``z`` standard errors 0 lies; negative where outside."""
        confidence = 1 - 2 * float(norm.sf(z))
        delta = stats.macro_delta([stats.paired_interval(t, confidence=confidence) for t in tables])
        return -delta.low if delta.value > 0 else delta.high

    least = 1e-6
    if zero_inside(least) >= 0:
        return 1.0  # no difference at all, but for rounding
    farthest = next((z for z in (4.0, 7.0) if zero_inside(z) >= 0), None)
    if farthest is None:
        return 2 * float(norm.sf(7.0))  # p values below 3e-12 are not told apart
    return 2 * float(norm.sf(brentq(zero_inside, least, farthest, xtol=1e-3)))


# --- in words ----------------------------------------------------------------------------------


def best_sentence(
    regime: str,
    numbers: Mapping[str, Any],
    n_candidates: int,
    halved: bool,
    family: Mapping[str, Any] | None = None,
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
    if family is not None:
        basis += f"; the interval holds for all {family['n']} dials together"
        if family["p_holm"] is not None:
            basis += (
                f", p of removing nothing {_equals(family['p_holm'])} after Holm over the dials"
            )
    return f"{removed_sentence(regime, numbers, family)}. {basis}."


def removed_sentence(
    name: str, numbers: Mapping[str, Any], family: Mapping[str, Any] | None = None
) -> str:
    """``sink=1 removes 103 % of the damage (95 % CI 71 to 140 %, n = 1,150)``.

    In a ``family`` of several questions the intervals are simultaneous and Holm's adjusted p value
    decides whether anything is removed at all.
    """
    share = numbers["removed"]
    short = name.removeprefix("bidirectional:")
    text = f"{short} {removes(numbers, interval=CI if family is None else f'simultaneous {CI}')}"
    if share and share["value"] is not None:
        p_holm = None if family is None else family["p_holm"]
        text += _meaning(share["low"], share["high"], p_holm)
    return text


def _meaning(low: float, high: float, p_holm: float | None = None) -> str:
    """What the interval leaves open; the adjusted p value, if any, has the stricter word."""
    if low <= 0 <= high or (p_holm is not None and p_holm >= stats.ALPHA):
        return "; not separable from removing nothing"
    if high < 0:
        return "; it adds damage"
    return "; part of it stays" if high < 1 else ""


def _equals(p: float) -> str:
    text = formatting.p_text(p)
    return text.replace("<", "< ") if text.startswith("<") else f"= {text}"
