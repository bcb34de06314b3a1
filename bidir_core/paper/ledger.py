"""Every number that the paper prints: what it is, which runs it is from, and how it was got.

In the TeX files a number stands as ``\\fromrun{key}{text}``, which prints the text; the key leads
to its entry here and, through ``numbers.json``, to run folders and a field or a statistic of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from bidir_core.paper import latex

MACRO = r"\providecommand{\fromrun}[2]{#2}"
Style = Literal["number", "text", "code"]
End = Literal["value", "low", "high"]  # of a number with its interval
_PRINT = {"number": latex.number, "text": latex.escape, "code": latex.code}

# What a ``statistic`` in ``numbers.json`` means.
STATISTICS = {
    "field": "the mean of this field over the runs, each from this file of its folder",
    "sum": "the sum of this field over the runs, each from this file of its folder",
    "values": "the different values of this field in the runs, each from this file of its folder",
    "count": "in how many of the runs the field is true; or how many entries the field has",
    "dial": "this dial of the regime in this field of the runs",
    "level": "an end of the normal interval of the mean macro accuracy, from the tasks' accuracies "
    "and n in metrics.json; with several seeds their variance over their number is added",
    "paired": "second minus first in share of right answers over the items that both runs of a "
    "pair could score, by task; Tango's interval; macro: the mean over tasks, intervals combined "
    "by MOVER; with several pairs (seeds): their mean, normal interval over items and seeds",
    "unpaired": "second minus first in metrics.json's accuracy; macro: normal interval from the "
    "tasks' accuracies and n",
    "flips": "items of a pair whose answer was right and became wrong (broken) or the other way "
    "(fixed), mean over the pairs",
    "mcnemar": "exact McNemar p value of the pair's broken and fixed items",
    "holm": "the exact McNemar p value after Holm's adjustment over the tasks of the contrast",
    "detectable": "the smallest true difference found with 80 % power, at the pair's discordance",
    "retention": "(second - floor) / (first - floor) in macro accuracy over the pair's items; "
    "percentile bootstrap, 10,000 resamples, seed 0; several seeds: the mean and the widest ends",
    "interaction": "the mean over tasks of the mean over items of (arm - control) under the regime "
    "minus (arm - control) under causal attention, in right answers; normal interval",
    "items": "how many items stand behind the number",
    "curve": "this field of the line of curve.jsonl at this step, mean over the runs",
    "name": "a name for these runs or for what was done in them",
    "verdict": "the number's whole interval, read with the margin",
    "constant": "a constant of the analysis, applied to these runs",
}


@dataclass(frozen=True)
class Entry:
    """One printed number or name. ``value`` is the unrounded one; ``source`` says how to get it."""

    key: str
    value: Any
    text: str
    runs: tuple[str, ...]
    source: tuple[tuple[str, Any], ...]
    style: Style = "number"

    def __str__(self) -> str:
        """As it stands in a TeX file."""
        return f"\\fromrun{{{self.key}}}{{{_PRINT[self.style](self.text)}}}"

    def to_json(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "value": self.value,
            "runs": list(self.runs),
            "source": dict(self.source),
        }


class Ledger:
    """The entries by key, in the order in which they were first printed."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def add(
        self,
        key: str,
        value: Any,
        text: str,
        runs: Iterable[str],
        *,
        style: Style = "number",
        **source: Any,
    ) -> Entry:
        """The entry of this key; another number of the same name gets another key.

        Raises ValueError for a number of no run: nothing is printed that cannot be traced.
        """
        entry = Entry(
            slug(key), value, text, tuple(dict.fromkeys(runs)), tuple(source.items()), style
        )
        if not entry.runs:
            raise ValueError(f"'{key}' ({text}) comes from no run")
        if source.get("statistic") not in STATISTICS:
            raise ValueError(f"'{key}': unknown statistic {source.get('statistic')!r}")
        base, copy = entry.key, 2
        while (known := self.entries.get(entry.key)) is not None and known != entry:
            entry = Entry(f"{base}-{copy}", value, text, entry.runs, entry.source, style)
            copy += 1
        return self.entries.setdefault(entry.key, entry)


class Sentence:
    """Words and entries, to be read as LaTeX or as plain text."""

    def __init__(self, *parts: str | Entry):
        self.parts = parts

    @property
    def tex(self) -> str:
        return "".join(str(p) if isinstance(p, Entry) else latex.prose(p) for p in self.parts)

    @property
    def plain(self) -> str:
        return "".join(p.text if isinstance(p, Entry) else p for p in self.parts)

    @property
    def entries(self) -> list[Entry]:
        return [part for part in self.parts if isinstance(part, Entry)]


def slug(text: str) -> str:
    """A key: letters, digits, dots, dashes and slashes, which TeX reads as they are."""
    plain = re.sub(r"[^a-z0-9./+]+", "-", text.lower())
    return re.sub(r"-*(/|$)-*", r"\1", plain).lstrip("-") or "x"
