"""Which points of a sweep make a curve, and where they stand on its axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bidir_core.regimes import CAUSAL, Regime, parse_regime

# dial -> (field of a regime, the value at which it changes nothing, what the axis says)
DIALS: dict[str, tuple[str, Any, str]] = {
    "sink": ("sink", 0, "first tokens kept causal (sink)"),
    "lambda": ("lam", 1.0, "strength of looking ahead (lambda, log scale)"),
    "tail": ("tail", 0, "last prompt tokens kept causal (tail)"),
    "rows": ("rows", None, "prompt positions that look ahead (rows)"),
    "skip": ("skip", None, "the one token kept causal (skip)"),
    "self": ("self_token", None, "the token that sees only itself (self)"),
}


@dataclass(frozen=True)
class Curve:
    """One dial, all else equal. ``others``: the regime without the dial; ``places``: slug and
    position of each point, in order; ``ticks``: position and label of each value."""

    dial: str
    others: Regime
    places: tuple[tuple[str, float], ...]
    ticks: tuple[tuple[float, str], ...]

    @property
    def name(self) -> str:
        """What else is set, or an empty string."""
        return str(self.others).partition(":")[2]

    @property
    def axis(self) -> str:
        return DIALS[self.dial][2]


def curves(points: Iterable[Mapping[str, Any]], usual: Mapping[str, Any]) -> list[Curve]:
    """The dose-response curves among a summary's points of the sweep's own prompt condition."""
    mine = [p for p in points if p["condition"] == usual and not p.get("patch")]
    regimes = {p["slug"]: parse_regime(p["regime"]) for p in mine}
    swept = {p["slug"] for p in mine if p["part"] == "sweep"}
    found = []
    for dial, (name, neutral, _) in DIALS.items():
        groups: dict[Regime, dict[Any, str]] = {}
        for slug, regime in regimes.items():
            if not regime.is_causal:
                value = getattr(regime, name)
                groups.setdefault(replace(regime, **{name: neutral}), {})[value] = slug
        asked_for: list[tuple[Regime, dict[Any, str]]] = []
        for others, values in groups.items():
            causal = next((slug for slug, regime in regimes.items() if regime == CAUSAL), None)
            asked = any(s in swept for value, s in values.items() if value != neutral)
            if dial == "lambda" and causal is not None:
                values[0.0] = causal
            if neutral is None:
                values.pop(None, None)  # without the dial there is no place on its axis
            if asked and len(values) > 1:
                asked_for.append((others, values))
        at = _places(dial, {value for _, values in asked_for for value in values})
        found += [_curve(dial, others, values, at) for others, values in asked_for]
    return found


def _places(dial: str, values: Iterable[Any]) -> dict[Any, float]:
    """Where each value stands; the same for all curves of a dial, which share an axis."""
    order = sorted(values)
    if dial == "lambda":
        return dict(zip(order, symlog(order), strict=True))
    # Evenly spaced: these are counts and positions, often doubling.
    return {value: float(number) for number, value in enumerate(order)}


def _curve(dial: str, others: Regime, values: Mapping[Any, str], at: Mapping[Any, float]) -> Curve:
    order = sorted(values)
    label = {value: f"{value[0]}-{value[1]}" if dial == "rows" else f"{value:g}" for value in order}
    return Curve(
        dial,
        others,
        tuple((values[value], at[value]) for value in order),
        tuple((at[value], label[value]) for value in order),
    )


def symlog(values: Iterable[float]) -> list[float]:
    """Logarithms base 10, with 0 one decade below the smallest value above it."""
    numbers = list(values)
    least = min((math.log10(v) for v in numbers if v > 0), default=0.0)
    return [math.log10(value) if value > 0 else least - 1 for value in numbers]


def layer_ranges(
    points: Iterable[Mapping[str, Any]], usual: Mapping[str, Any]
) -> dict[str, list[tuple[str, int, int]]]:
    """(slug, first layer, number of layers) of points with a layer range, by what else is set."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    for point in points:
        regime = parse_regime(point["regime"])
        if regime.layers is None or point["condition"] != usual or point.get("patch"):
            continue
        others = str(replace(regime, layers=None)).partition(":")[2]
        first, last = regime.layers
        found.setdefault(others, []).append((point["slug"], first, last - first + 1))
    return found
