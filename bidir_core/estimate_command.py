"""``--estimate``: what a command would take, printed instead of being done."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bidir_core import jobs
from bidir_core.errors import UserError
from bidir_core.estimate import Estimate, estimate, history, start_seconds
from bidir_core.launched import is_helper, launched
from bidir_core.run_layout import runs_roots
from bidir_core.store import list_runs

if TYPE_CHECKING:
    from bidir_core.pipeline_config import Stage

NEWEST_RUNS = 200  # older ones say little about this machine now


def estimate_command(config: Any, n_devices: int = 0) -> int:
    """Print the estimate of a command's configuration, on so many devices; always returns 0."""
    found = estimated(config, n_devices)
    if found.seconds is None:
        raise UserError(
            f"{found.basis[0]}: name it with its size (such as owner/name-3B), or give its folder"
        )
    if not is_helper():
        print(to_text(found, config))
    return 0


def estimated(config: Any, n_devices: int = 0, stages: Sequence[Stage] | None = None) -> Estimate:
    """The estimate on this machine, by what its finished runs and jobs say.

    0 devices: as many as there are processes in this launch. ``stages``: of a pipeline, those left.
    """
    n_devices = n_devices or launched()
    if n_devices < 1:
        raise UserError(f"--estimate {n_devices}: give a number of devices from 1 up")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        raise UserError(f"device '{config.device}' is not one; use auto, cpu, cuda, cuda:1 or mps")
    roots = [config.runs_dir] if config.runs_dir else runs_roots()
    return estimate(
        config,
        jobs.queue_device(["--device", config.device]),
        history([run for run in list_runs(roots) if run.state == "done"][:NEWEST_RUNS]),
        start=start_seconds(jobs.list_jobs()),
        n_devices=n_devices,
        sharded=wants_sharding(),
        stages=stages,
    )


def wants_sharding() -> bool:
    """Whether ``accelerate launch`` was asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def to_text(found: Estimate, config: Any) -> str:
    """The estimate as lines for a terminal; one line where nothing is known."""
    if found.seconds is None:
        return f"time and memory are not known: {found.basis[0]}"
    unit = "samples" if hasattr(config, "objective") else "items"
    place = found.device if found.n_devices == 1 else f"{found.n_devices} x {found.device[:4]}"
    place = place.removesuffix(":")
    each = "" if found.n_devices == 1 else " on each"
    lines = [
        f"{config.model}: {found.n_items:,} {unit}, {tokens(found.n_tokens)} tokens, {place}",
        f"time    about {duration(found.seconds)} "
        f"({duration(found.low_seconds)} to {duration(found.high_seconds)})",
        f"memory  about {(found.memory_bytes or 0) / 1e9:.1f} GB{each}",
        "from",
        *(f"  {reason}" for reason in found.basis),
    ]
    return "\n".join(lines)


def duration(seconds: float | None) -> str:
    """Without false precision: seconds, minutes or hours."""
    seconds = seconds or 0.0
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def tokens(n: float) -> str:
    return f"{n / 1e6:.1f} million" if n >= 1e6 else f"{round(n, -3 if n > 5000 else 0):,.0f}"
