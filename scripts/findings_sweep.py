"""A sweep's points as tables: what each does, how it compares with the prototype, which layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.effects import Retention
from bidir_core.analyse.pairing import METRICS
from bidir_core.common import formatting
from bidir_core.explain.sweep_summary import Outcomes, Sweep
from bidir_core.regimes import Regime, parse_regime, visibility
from bidir_core.report.plots_lab import layer_ranges
from bidir_core.runs.run import Run
from scripts import findings_text as text
from scripts.blocks import table

CAUSAL, PLAIN = "causal", "bidirectional"
TOLERANCE = 0.7  # points: how near to the prototype counts as reproduced
COSTLIEST = 6  # windows shown
FAMILY = 3  # so many ranges of one width are windows, fewer are ranges of one's own


class Reference(NamedTuple):
    """Macro accuracies that the prototype measured, and its number format."""

    acc: float
    acc_norm: float
    dtype: str


# Measured once, on one H100, by a throwaway program written before this one: the first 500 items
# of each task. Kept to be reproduced; nothing else is computed from them.
PROTOTYPE = {
    "causal": Reference(0.4532, 0.4650, "fp32"),
    "bidirectional": Reference(0.4067, 0.4043, "fp32"),
    "bidirectional:sink=1": Reference(0.4671, 0.4723, "fp32"),
    "bidirectional:lambda=0.003": Reference(0.4402, 0.4366, "bf16"),
    "bidirectional:lambda=0.03": Reference(0.4156, 0.4267, "bf16"),
    "bidirectional:lambda=0.3": Reference(0.4023, 0.4080, "bf16"),
    "bidirectional:layers=0-0": Reference(0.4502, 0.4517, "bf16"),
    "bidirectional:layers=0-4": Reference(0.4264, 0.4239, "bf16"),
    "bidirectional:layers=10-29": Reference(0.4510, 0.4567, "bf16"),
    "bidirectional:layers=20-29": Reference(0.4591, 0.4663, "bf16"),
}
PROTOTYPE_MODEL = "smollm2-135m-instruct"


def points(run: Run) -> str:
    """Every swept point but layer windows; beside the prototype's, where those are the same items."""
    view = Sweep(run)
    numbers = _outcomes(view, "acc")
    references = PROTOTYPE if _same_items(run) else {}
    hidden = {slug for family in _windows(view) for slug, _, _ in family}
    rows, off = [], []
    for slug, point in view.points.items():
        reference = references.get(point.regime)
        if not _swept(view, slug) or (slug in hidden and reference is None):
            continue
        row = [
            short(point.regime),
            f"{100 * ahead_left(view, point.regime):.0f} %",
            f"{100 * numbers.accuracy(slug):.1f}",
            "" if slug == CAUSAL else text.delta(numbers.delta(CAUSAL, slug)),
            "" if slug in (CAUSAL, PLAIN) else text.share(numbers.removed(CAUSAL, PLAIN, slug)),
        ]
        if reference is not None:
            apart = [
                100 * (_outcomes(view, metric).accuracy(slug) - getattr(reference, metric))
                for metric in METRICS
            ]
            off += [
                (distance, f"{row[0]}, `{metric}`", reference.dtype)
                for distance, metric in zip(apart, METRICS, strict=True)
            ]
            row += [f"{100 * reference.acc:.1f} ({reference.dtype})", *(f"{x:+.2f}" for x in apart)]
        elif references:
            row += ["", "", ""]
        rows.append(row)
    header = ["point", "ahead left", "accuracy", "to causal, points", "damage removed"]
    if references:
        header += ["prototype", "difference to it", "by `acc_norm`"]
    return table(header, rows) + (_reproduced(off) if off else "")


def ahead_left(view: Sweep, regime: str) -> float:
    """How much of looking ahead a regime leaves open: of the pairs of a prompt token and a later
    one, over layers and items, with tasks alike. A weakened pair (lambda) is open."""
    point = view.runs[view.slug_of(CAUSAL, view.usual) or CAUSAL]
    table = point.items_table(("task", "n_prefix_tokens")).to_pandas()
    parsed, n_layers = parse_regime(regime), int(view.run.config["n_layers"])
    by_layer = Counter(parsed.at_layer(layer) for layer in range(n_layers))
    shares: dict[str, list[float]] = {}
    for task, lengths in zip(table["task"], table["n_prefix_tokens"], strict=True):
        n = int(lengths[0])
        if n > 1:
            left = sum(often * _open_pairs(one, n) for one, often in by_layer.items())
            shares.setdefault(task, []).append(left / n_layers / (n * (n - 1) / 2))
    return float(np.mean([np.mean(found) for found in shares.values()]))


@cache
def _open_pairs(regime: Regime, n_prefix: int) -> int:
    return int(np.triu(visibility(regime, n_prefix, n_prefix), k=1).sum())


def _reproduced(off: Sequence[tuple[float, str, str]]) -> str:
    """How near the prototype's points are met, and where they are not."""
    far = [one for one in off if abs(one[0]) > TOLERANCE]
    distance, where, _ = max(off, key=lambda one: abs(one[0]))
    n_points = len(off) // len(METRICS)
    said = f"\nOf the {n_points} points that the prototype has, by both measures, "
    if not far:
        return said + (
            f"all lie within {TOLERANCE} points of it; farthest is {where}, {distance:+.2f}.\n"
        )
    listed = "; ".join(f"{name} {x:+.2f} (prototype in {dtype})" for x, name, dtype in far)
    return said + (
        f"{len(off) - len(far)} of {len(off)} numbers lie within {TOLERANCE} points of it. "
        f"These do not: {listed}.\n"
    )


def windows(run: Run) -> str:
    """The costliest windows of each width, with intervals that hold for all of them together."""
    view = Sweep(run)
    return "\n".join(_of_width(view, family) for family in _windows(view))


def _of_width(view: Sweep, family: Sequence[tuple[str, int, int]]) -> str:
    numbers, n = _outcomes(view, "acc"), len(family)
    width = family[0][2]
    confidence = 1 - (1 - stats.CONFIDENCE) / n
    found = []
    for slug, first, _ in family:
        delta = numbers.delta(CAUSAL, slug, confidence=confidence)
        assert delta is not None
        found.append((delta, f"{first}-{first + width - 1}", slug))
    found.sort(key=lambda one: one[0].value)
    rows = [
        [
            f"`layers={name}`",
            text.delta(delta),
            text.share(_there(numbers.removed(CAUSAL, PLAIN, slug, confidence=confidence))),
        ]
        for delta, name, slug in found[:COSTLIEST]
    ]
    rest = found[COSTLIEST:]
    costly = [name for delta, name, _ in found if delta.high < 0]
    said = (
        f"Bidirectional in {width} {'layer' if width == 1 else 'layers'} only, at each of {n} "
        f"places; intervals hold for all {n} together (each {100 * confidence:.1f} %). "
        + (f"Of layers {', '.join(costly)} it leaves out 0." if costly else "None leaves out 0.")
    )
    if rest:
        ends = [formatting.points(rest[place][0].value, signed=True) for place in (0, -1)]
        said += f" The {COSTLIEST} costliest; the other {len(rest)} lie between {ends[0]} and {ends[1]}."
    return f"{said}\n\n" + table(["point", "to causal, points", "share of the damage there"], rows)


def _there(removed: Retention | None) -> Retention | None:
    """The share of the damage that a point has, from the share it is without."""
    if removed is None or removed.value is None or removed.low is None or removed.high is None:
        return removed
    return replace(removed, value=1 - removed.value, low=1 - removed.high, high=1 - removed.low)


def _windows(view: Sweep) -> list[list[tuple[str, int, int]]]:
    """(slug, first layer, width) of the families of windows, by width."""
    mine = [one.to_json(view.usual) for slug, one in view.points.items() if _swept(view, slug)]
    n_layers = int(view.run.config["n_layers"])
    ranges = layer_ranges(mine, view.usual._asdict(), n_layers).get("", [])
    widths = sorted({width for _, _, width in ranges})
    families = [[one for one in ranges if one[2] == width] for width in widths]
    return [family for family in families if len(family) >= FAMILY]


def _swept(view: Sweep, slug: str) -> bool:
    point = view.points[slug]
    return point.part != "control" and point.condition == view.usual and point.patch is None


def _same_items(run: Run) -> bool:
    """Whether these are the prototype's items: the first 500 of each of the five tasks."""
    settings = run.settings
    return (
        run.model == PROTOTYPE_MODEL
        and settings.get("limit") == text.FIRST
        and settings.get("sample", "first") == "first"
        and len(settings.get("tasks") or []) == 5
    )


def _outcomes(view: Sweep, metric: str) -> Outcomes:
    found = view.outcomes(view.usual, metric)
    assert found is not None
    return found


def short(regime: str) -> str:
    """A regime's name in a table."""
    name = regime.removeprefix("bidirectional:")
    return name if name in (CAUSAL, PLAIN) else f"`{name}`"
