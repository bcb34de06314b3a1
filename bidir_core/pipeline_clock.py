"""How much longer a pipeline takes, told from what its stages took so far."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bidir_core.pipeline_config import Stage
from bidir_core.store import Run


class Clock:
    """How much longer: what evaluations and fine-tunes took so far, for those that are left."""

    def __init__(self, stages: Sequence[Stage], device: str):
        self._stages, self._device = stages, device
        self._started = time.monotonic()
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self._done: set[str] = set()

    def took(self, stage: Stage, seconds: float) -> None:
        self._done.add(stage.key)
        self._seconds[stage.trains].append(seconds)

    def reused(self, stage: Stage, run: Run) -> None:
        """A finished run on the same kind of device tells how long its kind takes."""
        self._done.add(stage.key)
        status = run.status
        try:
            seconds = float(status["finished"]) - float(status.get("resumed") or status["started"])
        except (KeyError, TypeError, ValueError):
            return
        cost = (run.metrics or {}).get("cost") or {}
        if cost.get("device") == self._device and seconds > 0:
            self._seconds[stage.trains].append(seconds)

    def left(self) -> str:
        left = [stage for stage in self._stages if stage.key not in self._done]
        spent = f" | {_minutes(time.monotonic() - self._started)} so far"
        total, unknown = 0.0, False
        for stage in left:
            known = self._seconds[stage.trains]
            unknown |= not known
            total += sum(known) / len(known) if known else 0.0
        if unknown:
            return spent
        return f"{spent}, about {_minutes(total)} left"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
