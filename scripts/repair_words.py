"""One claim about repair in words; each sentence is computed and can come out either way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bidir_core.analyse import stats
from bidir_core.analyse import verdict as library
from bidir_core.analyse.phrases import JSON_WORDS
from bidir_core.analyse.verdict import Aim, judge
from bidir_core.common import formatting
from scripts.repair_pairs import estimate

_WORDS = JSON_WORDS | {"equivalent": "equivalent"}


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
    return _WORDS[judge(one, margin=margin / 100).verdict]


def reached(aim: Aim, margin: float, one: stats.Estimate) -> str:
    """``yes`` and ``no`` only where the whole interval says so."""
    return library.reached(aim, one, margin / 100)


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
    found = verdict(claim)
    decided = claim["aim"] != "none" and reached(claim["aim"], claim["margin"], one) != "undecided"
    if found == "undecided" and decided:  # of its size, not of the aim
        found = f"neither different nor equivalent {aim_text('within', claim['margin'])}"
    text = f"{what}: {value} points (95 % CI {low} to {high}; {base}): {found}."
    return f"{text} Aim: {aim(claim)}." if claim["aim"] != "none" else text


def verdict(claim: Mapping[str, Any]) -> str:
    """The word for the difference on the confirm half, with its direction or its margin."""
    found = word(estimate(claim["confirm"]), claim["margin"])
    if found == "different":
        return f"{found}, {'higher' if claim['confirm']['value'] > 0 else 'lower'}"
    if found == "equivalent":
        return f"{found} {aim_text('within', claim['margin'])}"
    return found


def aim(claim: Mapping[str, Any]) -> str:
    """What was aimed at, and whether the confirm half shows it; empty where nothing was."""
    if claim["aim"] == "none":
        return ""
    answer = {"yes": "reached", "no": "not reached", "undecided": "undecided"}[
        reached(claim["aim"], claim["margin"], estimate(claim["confirm"]))
    ]
    return f"{aim_text(claim['aim'], claim['margin'])}: **{answer}**"
