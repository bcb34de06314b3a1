"""One claim about repair in words; each sentence is computed and can come out either way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bidir_core.analyse import stats
from bidir_core.common import formatting
from scripts.repair_pairs import estimate

MOST_SEEDS = 100
_WORDS = {"no difference": "equivalent", "different": "different", "undecided": "undecided"}


def judged(claim: Mapping[str, Any]) -> dict[str, str]:
    """The contract's word for the difference on confirm, and whether the aim is reached."""
    if not claim.get("confirm"):
        return {}
    one = estimate(claim["confirm"])
    return {
        "word": word(one, claim["margin"]),
        "reached": reached(claim["aim"], claim["margin"], one),
    }


def word(one: stats.Estimate, margin: float) -> str:
    """equivalent: the whole interval within the margin; different: it excludes 0; or undecided."""
    return _WORDS[stats.verdict(one, margin=margin / 100)]


def reached(aim: str, margin: float, one: stats.Estimate) -> str:
    """``yes`` and ``no`` only where the whole interval says so."""
    edge = margin / 100
    met, failed = {
        "at least": (one.low >= 0, one.high < 0),
        "above": (one.low > 0, one.high < 0),
        "within": (-edge < one.low and one.high < edge, one.low >= edge or one.high <= -edge),
        "within or better": (one.low > -edge, one.high <= -edge),
        "none": (False, False),
    }[aim]
    if aim == "none":
        return ""
    return "yes" if met else "no" if failed else "undecided"


def aim_text(aim: str, margin: float) -> str:
    size = f"{margin:g} point{'' if margin == 1 else 's'}"
    return {
        "at least": "0 or above",
        "above": "above 0",
        "within": f"within {size}",
        "within or better": f"within {size}, or better",
        "none": "",
    }[aim]


def interval(entry: Mapping[str, Any]) -> str:
    value, low, high = (
        formatting.points(entry[end] / 100, signed=True) for end in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def seeds_text(seeds: list[int], entry: Mapping[str, Any]) -> str:
    """How many seeds, and how far single ones lie apart."""
    if not seeds:
        return ""
    if len(seeds) == 1:
        return "1 seed"
    low, high = (formatting.points(end(entry["by_seed"]) / 100, signed=True) for end in (min, max))
    return f"{len(seeds)} seeds, {low} to {high}"


def sentence(claim: Mapping[str, Any]) -> str:
    """One claim, said from its numbers on the confirm half; it can come out either way."""
    what = claim["what"][0].upper() + claim["what"][1:]
    entry = claim.get("confirm")
    if not entry:
        lacking = ", ".join(f"`{name}`" for name in claim.get("missing", []))
        return f"{what}: not run yet{f' (lacks {lacking})' if lacking else ''}."
    one = estimate(entry)
    seeds = seeds_text(claim["seeds"], entry)
    base = f"n = {formatting.count(one.n)}{f'; {seeds}' if seeds else ''}"
    value, low, high = (
        formatting.points(getattr(one, end), signed=True) for end in ("value", "low", "high")
    )
    found = word(one, claim["margin"])
    if found == "different":
        found += ", higher" if one.value > 0 else ", lower"
    elif found == "equivalent":
        found += f" {aim_text('within', claim['margin'])}"
    decided = claim["aim"] != "none" and reached(claim["aim"], claim["margin"], one) != "undecided"
    if found == "undecided" and decided:  # of its size, not of the aim
        found = f"neither different nor equivalent {aim_text('within', claim['margin'])}"
    text = f"{what}: {value} points (95 % CI {low} to {high}; {base}): {found}."
    if claim["aim"] != "none":
        answer = {
            "yes": "reached",
            "no": "not reached",
            "undecided": "neither shown to be reached nor to be missed",
        }[reached(claim["aim"], claim["margin"], one)]
        text += f" Aim: {aim_text(claim['aim'], claim['margin'])}: **{answer}**."
    return text


# --- an aim that is not shown ---------------------------------------------------------------------


def on_all(claim: Mapping[str, Any]) -> str:
    """What all items say of an aim that is not shown on the confirm half; else empty."""
    entry = claim.get("all")
    if not entry or judged(claim).get("reached") not in ("no", "undecided"):
        return ""
    answer = {"yes": "reached", "no": "not reached", "undecided": "undecided"}[
        reached(claim["aim"], claim["margin"], estimate(entry))
    ]
    return f" On all {formatting.count(entry['n'])} items, explore among them: {interval(entry)}, {answer}."


def counted_once(claim: Mapping[str, Any]) -> str:
    """Whether an undecided aim hangs on the interval's being a little too wide; else empty."""
    entry = claim.get("confirm") or {}
    half = entry.get("half_width_counted_once")
    if half is None or judged(claim).get("reached") != "undecided":
        return ""
    answer = _with_half_width(claim, half)
    if answer == "undecided":
        return ""
    low, high = entry["value"] - half, entry["value"] + half
    shown = "reached" if answer == "yes" else "not reached"
    return (
        f" With what item and seed make together counted once: {low:+.2f} to {high:+.2f}, which "
        f"would be {shown}."
    )


def outlook(claim: Mapping[str, Any]) -> str:
    """Whether more seeds could decide an undecided aim; else empty.

    They could if the interval that the items alone make, around the estimate as it is, is decided.
    """
    if judged(claim).get("reached") != "undecided":
        return ""
    if len(claim["seeds"]) < 2:
        return " One seed does not tell whether more could decide it."
    entry = claim["confirm"]
    if (half := entry.get("half_width_any_seeds")) is None:
        return " Whether more seeds could decide it is not known: that takes the runs' items."
    value = formatting.points(entry["value"] / 100, signed=True)
    keeps = (
        f" With any number of seeds the interval would keep about ±{half:.1f} points, from the items "
        f"alone: around {value} "
    )
    answer = _with_half_width(claim, half)
    if answer == "undecided":
        return f"{keeps}that cannot decide it; only more items could, or an estimate that moves."
    needed = seeds_needed(claim)
    how_many = f"over {MOST_SEEDS}" if needed is None else f"about {needed}"
    shown = "reached" if answer == "yes" else "not to be reached"
    return (
        f"{keeps}that would show it {shown}, so more seeds could decide it ({how_many} in all, if "
        "estimate and spread stay as they are)."
    )


def seeds_needed(claim: Mapping[str, Any]) -> int | None:
    """How many seeds in all decide the aim, if only the interval shrinks; None above MOST_SEEDS.

    What the interval has beyond its limit goes with one over the number of seeds, as a variance.
    """
    entry, seeds = claim["confirm"], len(claim["seeds"])
    limit = entry["half_width_any_seeds"] ** 2
    beyond = max(0.0, ((entry["high"] - entry["low"]) / 2) ** 2 - limit) * seeds
    for n in range(seeds + 1, MOST_SEEDS + 1):
        if _with_half_width(claim, math.sqrt(limit + beyond / n)) != "undecided":
            return n
    return None


def _with_half_width(claim: Mapping[str, Any], half: float) -> str:
    """Whether the aim would be reached with an interval of this half width, in points."""
    entry = claim["confirm"]
    ends = {"low": entry["value"] - half, "high": entry["value"] + half}
    return reached(claim["aim"], claim["margin"], estimate({**entry, **ends}))
