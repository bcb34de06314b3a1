"""The end of a sweep for the terminal: its points, its controls, and the verdict last."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from bidir_core import words
from bidir_core.lab.control_answers import OUTCOME_WORDS, STORY
from bidir_core.lab.points import SINK
from bidir_core.lab.verdicts import percent, removed_sentence

FINDING_WIDTH = 72  # characters of a control's finding in a line
NO_BREAK = "\N{NO-BREAK SPACE}"


def lines(found: Mapping[str, Any]) -> list[str]:
    """A finished sweep's ``metrics.json`` in words; what an earlier version lacks is left out."""
    out = _points(found.get("points") or [])
    for kind, one in ((found.get("best_of_dials") or {}).get("acc") or {}).items():
        out.append(f"of {kind}: {one['sentence']}")
    out += _controls(found.get("controls") or [])
    said = verdict(found)
    return [*out, f"verdict: {said}"] if said else out


def verdict(found: Mapping[str, Any]) -> str | None:
    """What the sweep's best point does to the damage; where none was chosen, what sink=1 does."""
    if chosen := (found.get("best") or {}).get("acc"):
        return str(chosen["sentence"])
    usual = next((point["condition"] for point in found.get("points") or []), None)
    for point in found.get("points") or []:
        if (point["regime"], point["patch"], point["condition"]) == (str(SINK), None, usual):
            return removed_sentence(point["regime"], point["acc"]) + "."
    return None


def _points(points: list[dict[str, Any]]) -> list[str]:
    rows = []
    for point in points:
        numbers = point["acc"]
        delta, share = numbers["delta"], numbers["removed"]
        name = " · ".join(filter(None, (point["regime"], point["patch"], point["condition_words"])))
        rows.append(
            [
                name,
                "-" if numbers["value"] is None else f"{numbers['value']:.4f}",
                words.points(delta["value"], signed=True) if delta else "",
                f"{words.points(delta['low'], signed=True)} to "
                f"{words.points(delta['high'], signed=True)}"
                if delta
                else "",
                f"{percent(share['value'])} %" if share and share["value"] is not None else "",
            ]
        )
    header = ("point", "acc", "to causal, points", "95 % CI", "damage removed")
    return words.table(header, rows).splitlines()


def _tied(text: str) -> str:
    """No line ends between a number and its sign or unit."""
    return text.replace(" %", f"{NO_BREAK}%").replace("n = ", f"n{NO_BREAK}={NO_BREAK}")


def _controls(controls: list[dict[str, Any]]) -> list[str]:
    """What each control says of the story, wrapped to a table."""
    rows = []
    for one in controls:
        title, outcome = one["title"], OUTCOME_WORDS[one["outcome"]]
        for part in textwrap.wrap(_tied(one["finding"]), FINDING_WIDTH):
            rows.append((title, outcome, part.replace(NO_BREAK, " ")))
            title = outcome = ""
    if not rows:
        return []
    table = words.table(("control", "the story is", "what was found"), rows, left=2)
    return ["", f"controls of the story that {STORY}:", *table.splitlines(), ""]
