"""From which layer on may the prompt look ahead: a sweep of ``layers=A-`` read as one answer.

The answer is the smallest A that keeps accuracy on the explore half of the items: its difference to
causal is within the margin, and so is that of every larger A that was swept. What is claimed of it is
measured on the confirm half, where it has to be shown equivalent, and on all items. Labels decide
here; :mod:`bidir_core.explain.recommend` predicts the same layer without any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from bidir_core.analyse import stats
from bidir_core.analyse.verdict import Judgement, interval_text, phrase, size
from bidir_core.common.errors import UserError
from bidir_core.common.formatting import count, points
from bidir_core.explain.sweep_outcomes import Sweep
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL
from bidir_core.runs.run import Run

_OPEN_FROM = re.compile(r"bidirectional:layers=(\d+)-")


@dataclass(frozen=True)
class Opened:
    """``bidirectional:layers=A-`` against causal: by half, and on all items. Shares, not points."""

    first_layer: int
    explore: stats.Estimate
    confirm: stats.Estimate
    whole: stats.Estimate


@dataclass(frozen=True)
class Law:
    """What a sweep says. ``first_layer`` is None where no swept A keeps accuracy on explore.

    ``confirm`` and ``whole`` judge it against causal; ``regained`` against plain bidirectional, on
    the confirm half: what leaving the layers below A causal gives back.
    """

    model: str
    n_layers: int
    curve: tuple[Opened, ...]
    first_layer: int | None = None
    confirm: Judgement | None = None
    whole: Judgement | None = None
    regained: Judgement | None = None


def law_of(run: Run) -> Law:
    """Read a sweep. UserError if it has no causal point or no ``layers=A-``."""
    return law_in(Sweep(run), "acc")


def law_in(sweep: Sweep, metric: str) -> Law:
    """:func:`law_of` of a sweep that is read already, by one measure."""
    run = sweep.run
    outcomes = sweep.outcomes(sweep.usual, metric)
    causal = sweep.slug_of(str(CAUSAL), sweep.usual)
    slugs = {
        int(match[1]): slug
        for slug, point in sweep.points.items()
        if point.condition == sweep.usual
        and point.patch is None
        and (match := _OPEN_FROM.fullmatch(point.regime))
    }
    if plain := sweep.slug_of(str(BIDIRECTIONAL), sweep.usual):
        slugs[0] = plain
    if outcomes is None or causal is None or len(slugs) < 2:
        raise UserError(
            f"run '{run.id}' has no sweep of layers=A- with its causal run; make one with "
            "lab --preset law, or --sweep layers=1-,2-,3-"
        )
    curve = []
    for first_layer, slug in sorted(slugs.items()):
        deltas = [outcomes.delta(causal, slug, half) for half in ("explore", "confirm", None)]
        if any(delta is None for delta in deltas):
            raise UserError(f"run '{run.id}': layers={first_layer}- has no items in one half")
        curve.append(Opened(first_layer, *deltas))  # type: ignore[arg-type]
    law = Law(run.model, int(run.config.get("n_layers") or 0), tuple(curve))
    smallest = choose(curve, stats.MARGIN)
    if smallest is None:
        return law
    chosen = slugs[smallest.first_layer]
    return replace(
        law,
        first_layer=smallest.first_layer,
        confirm=outcomes.judged(causal, chosen, "confirm"),
        whole=outcomes.judged(causal, chosen),
        regained=outcomes.judged(plain, chosen, "confirm") if plain and plain != chosen else None,
    )


def choose(curve: list[Opened], margin: float) -> Opened | None:
    """The smallest A from which on every swept one stays within the margin on explore."""
    chosen = None
    for opened in reversed(curve):
        if abs(opened.explore.value) > margin:
            break
        chosen = opened
    return chosen


def hits(law: Law, recommendation: Mapping[str, Any]) -> dict[str, bool | None]:
    """Which of the stored predictions name the layer that labels chose. None: not predicted.

    ``recommendation``: ``metrics.json`` of a ``recommend`` run of the same model.
    """
    predictions = recommendation.get("predictions") or {}
    return {
        name: None if layer is None else layer == law.first_layer
        for name, layer in predictions.items()
    }


def summary(sweep: Sweep, metric: str) -> dict[str, Any] | None:
    """What a sweep's ``metrics.json`` says of its law, beside the prediction that it recorded.

    None for a sweep without several ``layers=A-`` or without causal, or with no item in one half.
    """
    try:
        law = law_in(sweep, metric)
    except UserError:
        return None
    if len(law.curve) < 3:
        return None  # plain bidirectional and one A beside it are no sweep of A
    predicted = sweep.run.config.get("predicted")
    return {
        "first_layer": law.first_layer,
        "n_layers": law.n_layers,
        "curve": [asdict(opened) for opened in law.curve],
        "predicted": predicted,
        "hits": hits(law, predicted) if predicted else {},
        "sentence": sentence(law, predicted),
    }


def sentence(law: Law, predicted: Mapping[str, Any] | None = None) -> str:
    """The law in words, and who had predicted it."""
    if law.first_layer is None:
        text = f"No swept layers=A- keeps accuracy within {size(stats.MARGIN)} on the explore half."
    else:
        assert law.confirm is not None
        assert law.confirm.estimate is not None
        kept = f"the first {law.first_layer} of" if law.first_layer else "none of the"
        regime = f"layers={law.first_layer}-" if law.first_layer else str(BIDIRECTIONAL)
        change = points(law.confirm.estimate.value, signed=True)
        text = (
            f"With {kept} {law.n_layers} layers causal ({regime}), accuracy stays within "
            f"{size(stats.MARGIN)} of causal on the half of the items that chose how many; on the "
            f"other half it differs by {change} points ({interval_text(law.confirm.estimate)}, "
            f"n = {count(law.confirm.estimate.n)}): {phrase(law.confirm)}."
        )
    if predicted:
        predictions = ", ".join(
            f"{name} {'none' if layer is None else layer}"
            for name, layer in predicted["predictions"].items()
        )
        text += f" Unlabelled prompts had predicted, by {predictions}."
    return text
