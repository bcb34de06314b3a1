"""Where a command will run, and what earlier runs there say of it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from bidir_core.estimate_cost import Rates, rates_of
from bidir_core.estimate_history import BYTES, Measured, kind_of

MEASURED_SPREAD, SCALED_SPREAD, ASSUMED_SPREAD = 1.3, 2.0, 3.0
NEWEST = 5  # runs that are asked


class Place(NamedTuple):
    """Where it will run, and what is known of that place."""

    device: str
    known: Sequence[Measured]
    n_devices: int = 1
    sharded: bool = False
    cores: int | None = None  # None: this machine's

    @property
    def kind(self) -> str:
        return kind_of(self.device)

    @property
    def rates(self) -> Rates:
        return rates_of(self.kind, self.cores or os.cpu_count() or 1)

    @property
    def sharing(self) -> int:
        """Among how many the computing is divided: processes on a CPU share its cores anyway."""
        return 1 if self.kind == "cpu" else self.n_devices

    def dtype(self, asked: str) -> str:
        return ("bfloat16" if self.kind == "gpu" else "float32") if asked == "auto" else asked

    def spent_compiling(self, mode: str) -> list[float]:
        """Seconds that compiled runs spent beside their steps, newest first."""
        mine = (m for m in self.known if m.device == self.kind and m.compile == mode)
        return [m.compile_seconds for m in mine if m.compile_seconds is not None][:NEWEST]


def correction(
    kind: str, model: str, place: Place, dtype: str, weight: str = "", compile: str = "none"
) -> tuple[float, float, str]:
    """By what to multiply the model's seconds, how far off it may be, and where it comes from.

    Runs that were compiled say nothing of plain ones, nor the other way round.
    """
    here = [m for m in place.known if m.device == place.kind and m.ratio]
    same = [m for m in here if (m.kind, m.dtype, m.compile) == (kind, dtype, compile)]
    wanted = [
        ([m for m in same if (m.model, m.weight) == (model, weight)], MEASURED_SPREAD, "this model"),
        ([m for m in same if m.model == model], SCALED_SPREAD, "another objective"),
        ([m for m in same if m.model != model], SCALED_SPREAD, "other models"),
        ([m for m in here if m.kind == "eval"], SCALED_SPREAD, "evaluations"),
    ]  # fmt: skip
    for found, spread, what in wanted:
        if found:
            ratio = statistics.median(m.ratio for m in found[:NEWEST] if m.ratio)
            n = len(found[:NEWEST])
            how = "" if compile == "none" or found[0].kind == "eval" else " compiled alike"
            return ratio, spread, f"speed: measured here, {n} run{'s'[: n > 1]} of {what}{how}"
    rate = place.rates.flops[BYTES.get(dtype, 4)]
    of = "" if place.kind == "cpu" else f" ({place.rates.what})"
    why = f"speed: assumed, {rate / 1e12:g} TFLOP/s{of}; no run on this machine has measured it yet"
    return 1.0, ASSUMED_SPREAD, why


def peak_before(
    kind: str, model: str, place: Place, dtype: str, weight: str, compile: str = "none"
) -> tuple[float | None, str]:
    """The most that earlier runs of the same work took; of one device only."""
    wanted = (kind, model, place.kind, weight, dtype, compile)
    peaks = [
        m.memory_bytes
        for m in place.known
        if (m.kind, m.model, m.device, m.weight, m.dtype, m.compile) == wanted and m.memory_bytes
    ]
    if not peaks or place.sharded:
        return None, ""
    return max(peaks), "memory: the most an earlier run of this model took"
