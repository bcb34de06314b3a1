"""Sweeps made of pretended answers: the damage and where it goes are decided by the regime."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bidir_core.explain.sweep_points import Condition, Point
from bidir_core.explain.sweep_summary import summarise_sweep
from bidir_core.regimes import parse_regime
from bidir_core.runs.records import to_table, write_texts
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter
from tests.factory import EVALUATION, TASKS, make_run, spread_items

USUAL = Condition()
N_LAYERS = 30
SINKS = [f"bidirectional:sink={n}" for n in (1, 2, 4)]
LAMBDAS = [f"bidirectional:lambda={x}" for x in ("0.001", "0.01", "0.03", "0.1", "0.3")]
WINDOWS = [f"bidirectional:layers={a}-{a + 4}" for a in range(26)]


def accuracy(point: Point, harm: float = 0.06) -> float:
    """0.46 causally, ``harm`` less when every token looks ahead through every layer."""
    regime = parse_regime(point.regime)
    harm = 0.0 if regime.is_causal else harm
    if regime.sink or (point.patch and point.patch.startswith(("keys", "both"))):
        harm *= 0.05
    if regime.lam < 1:
        harm *= 1 + math.log10(regime.lam) / 4
    if regime.layers is not None:
        first, last = regime.layers
        harm *= min(1.0, (last - first + 1) / (4 + first))
    return (0.36 if point.condition.context == "none" else 0.46) - harm


def make_sweep(
    root: Path,
    regimes: Sequence[str] = (*SINKS, *LAMBDAS, *WINDOWS),
    *,
    extra: Sequence[Point] = (),
    n_items: int = 1000,
    tasks: Sequence[str] = TASKS,
    state: str = "done",
    name: str | None = None,
    config: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    world: Callable[[Point], float] = accuracy,
) -> Run:
    """Write a sweep and return it. ``state`` other than done leaves the last half unfinished;
    ``world`` says how often each point is right."""
    points = [Point(r, USUAL, part="reference") for r in ("causal", "bidirectional")]
    points += [Point(r, USUAL) for r in regimes] + list(extra)
    settings = EVALUATION | {"model": "smollm2-135m-instruct", "checkpoint": None, "limit": 500}
    settings |= {"tasks": list(tasks), "regime": "causal", "compact": False}
    settings |= {"sweep": ["sink=1,2,4"], "controls": bool(extra), **(config or {})}
    recorded = {"dtype": "float32", "n_layers": N_LAYERS, "notes": [], **(facts or {})}
    recorded["points"] = [p.to_json(USUAL) for p in points]
    writer = RunWriter.create("lab", settings, root=root, name=name, kind="lab", **recorded)
    items = spread_items(n_items, tasks)
    write_texts(to_table(items), writer.path / "texts.parquet")
    written = points if state == "done" else points[: len(points) // 2]
    for number, point in enumerate(written):
        make_run(
            root,
            "lab",
            items=items,
            seed=number,
            regime=point.regime,
            accuracy=world(point),
            folder=writer.path / "points" / point.slug(USUAL),
            config={"limit": 500, "patch": point.patch, **point.condition._asdict()},
            facts={"texts": "texts.parquet"},
        )
    if state == "done":
        writer.finish(metrics=summarise_sweep(Run(writer.path)), cost={"seconds": 100.0})
    else:
        writer.heartbeat(len(written) * n_items, len(points) * n_items, rate=20.0, eta_seconds=60.0)
        writer.fail("out of memory", state=state)
    return Run(writer.path)
