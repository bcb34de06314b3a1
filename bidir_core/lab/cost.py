"""What a sweep will take, before it is started: how many points, and how long each.

Nothing here loads a model. Which controls there are, and how far ``layers=windows:5`` reaches,
follow from the model; of one that is not on this machine yet that may stay unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, cast

from bidir_core import estimate
from bidir_core.estimate import Estimate, Measured
from bidir_core.estimate_shape import shape_of
from bidir_core.lab.config import LabConfig
from bidir_core.lab.points import Condition, Point, condition_of, lay_out
from bidir_core.lab.sweep import Sweep, expand

_FAMILIES = ("windows:", "prefixes", "suffixes")
_ANY = 10_000  # layers of a model whose number does not matter
POINT_SECONDS = 2.0  # the mask probe and the files of each point


@dataclass(frozen=True)
class SweepEstimate(Estimate):
    """The whole sweep's estimate, and what one point of it takes. None where unknown."""

    n_points: int | None = None
    point_seconds: float | None = None


def layers_of(model: str) -> int | None:
    """How many layers a model has, from its name or its files on this machine; None without them."""
    shape = shape_of(model)
    return None if shape is None or shape.guessed else shape.layers


def planned_points(config: LabConfig, n_layers: int | None) -> list[Point] | None:
    """The points that :func:`bidir_core.lab.run.run_lab` would run, at most: controls with a BOS
    token or a chat template fall away for a model that has none. None if the layers are needed
    and not known. UserError for layers the model does not have."""
    if n_layers is None:
        if any(map(_asks_for_layers, config.sweeps)):
            return None
        n_layers = _ANY
    usual = condition_of(config)
    return lay_out(usual, expand(config.sweeps, n_layers), _controls(usual, config.controls))


def _asks_for_layers(sweep: Sweep) -> bool:
    axes = (axis for product in sweep.products for axis in product if axis.dial == "layers")
    return any(value.startswith(_FAMILIES) for axis in axes for value in axis.values)


def _controls(usual: Condition, wanted: bool) -> list[Point]:
    if not wanted:
        return []
    from bidir_core.lab import controls

    tokenizer = SimpleNamespace(bos_token_id=0, chat_template="supposed")
    supposed = SimpleNamespace(
        usual=usual, of=lambda condition: ([], [], False), loaded=SimpleNamespace(tokenizer=tokenizer)
    )  # fmt: skip
    return controls.plan(cast(Any, supposed))[0]


def estimate_sweep(
    config: LabConfig, device: str, known: Sequence[Measured] = (), *, start: float | None = None
) -> SweepEstimate:
    """The sum over the points; the model is loaded once, and probed at each of them.

    UserError for layers the model does not have.
    """

    def point(begin: float | None = 0.0, **changes: Any) -> Estimate:
        return estimate.estimate(config.evaluation(**changes), device, known, start=begin)

    points = planned_points(config, layers_of(config.model))
    full, bare, first = point(), point(context="none"), point(start)
    each = None if full.seconds is None else full.seconds + POINT_SECONDS
    if points is None:
        why = (
            "how many points there are follows from the model's number of layers, which is known "
            "once the model is on this machine"
        )
        unknown = replace(full, seconds=None, low_seconds=None, high_seconds=None)
        return _sweep(replace(unknown, basis=(why, *full.basis)), None, each)
    n_bare = sum(point.condition.context == "none" != config.context for point in points)
    n_full = len(points) - n_bare

    def total(name: str, share: float) -> float | None:
        """The start, each point's items, and each point's probe, as wide as its own guess."""
        ends = [getattr(one, name) for one in (first, full, bare)]
        if None in ends:
            return None
        begun, items, few = ends
        return begun - items + n_full * items + n_bare * few + len(points) * POINT_SECONDS * share

    whole = replace(
        first,
        seconds=total("seconds", 1),
        low_seconds=total("low_seconds", 0.5),
        high_seconds=total("high_seconds", 2),
        n_items=n_full * full.n_items + n_bare * bare.n_items,
        n_tokens=n_full * full.n_tokens + n_bare * bare.n_tokens,
    )
    return _sweep(whole, len(points), each)


def _sweep(made: Estimate, n_points: int | None, point_seconds: float | None) -> SweepEstimate:
    values = {spec.name: getattr(made, spec.name) for spec in fields(Estimate)}
    return SweepEstimate(**values, n_points=n_points, point_seconds=point_seconds)
