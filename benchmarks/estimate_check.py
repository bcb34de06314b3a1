"""How good is the cost model? What it says of finished runs beside what they took.

    python -m benchmarks.estimate_check            # the committed runs, and timed_runs beside this
    python -m benchmarks.estimate_check my_runs

``timed_runs`` holds what older runs took that had a device to themselves, without their results.
Two predictions for each run's seconds from the creation of its folder to its end (loading is over
by then): from the model's shape and the assumed rates alone, and corrected by the other runs on
the same kind of device, as on a machine with a history. How much an evaluation computed is taken from
the run: older versions computed again what choices share. Nothing is loaded.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bidir_core.common.settings import from_json
from bidir_core.evaluate.config import EvalConfig
from bidir_core.jobs.cost_model import Measured, Work, kind_of, measured, peak_of, work_of
from bidir_core.jobs.estimate import Estimate, estimate
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.run import Run
from bidir_core.train.config import FinetuneConfig

TIMED_RUNS = [COMMITTED_RUNS, Path(__file__).parent / "timed_runs"]
PROBE_SECONDS = 1.0  # the mask probe on the loaded model


@dataclass(frozen=True)
class Row:
    """One run: what it took, and what was and would have been said of it."""

    run: str
    what: str
    device: str
    seconds: float
    cold_seconds: float
    known_seconds: float | None  # None where there is no other run on such a device
    memory_bytes: float | None  # None where the process had held more before
    cold_bytes: float | None

    @property
    def cold_ratio(self) -> float:
        return self.cold_seconds / self.seconds

    @property
    def known_ratio(self) -> float | None:
        return None if self.known_seconds is None else self.known_seconds / self.seconds

    @property
    def memory_ratio(self) -> float | None:
        if not self.memory_bytes or not self.cold_bytes:
            return None
        return self.cold_bytes / self.memory_bytes


def check(runs: Sequence[Run], cores: int) -> Iterator[Row]:
    """Predict every run that says what it took, in the order they were made.

    ``cores``: of the CPU that CPU runs were made on.
    """
    every = (measured(run, cores=cores) for run in runs)
    facts = {one.run: one for one in every if one is not None}
    held: dict[str, int] = defaultdict(int)  # the most a device had held before, in one process
    for run in sorted(runs, key=lambda run: str(run.status.get("started"))):
        if run.id not in facts:
            continue
        if run.settings.get("compile") not in (None, False, "none"):
            continue  # compiling takes most of the short ones here: no model knows what is cached
        trained = facts[run.id].kind == "finetune"
        kind: type[EvalConfig | FinetuneConfig] = FinetuneConfig if trained else EvalConfig
        config = from_json(kind, run.settings)
        cost = run.metrics["cost"]  # type: ignore[index]
        device = kind_of(str(cost["device"]))
        others = [one for one in facts.values() if one.run != run.id]
        work = None if trained else work_of(run)
        cold = _told(config, device, (), cores, work)
        known = _told(config, device, others, cores, work)
        peak = peak_of(cost)
        fresh = peak is not None and (device == "cpu" or peak > held[device])
        held[device] = max(held[device], peak or 0)
        yield Row(
            run=f"{run.path.parent.name}/{run.path.name}",
            what=f"{facts[run.id].kind} {facts[run.id].weight}".strip()
            + f", {facts[run.id].dtype}",
            device="CPU" if device == "cpu" else str(cost["device"]),
            seconds=run.status["finished"] - run.status["started"],
            cold_seconds=(cold.seconds or 0.0),
            known_seconds=known.seconds if any(m.device == device for m in others) else None,
            memory_bytes=peak if fresh else None,
            cold_bytes=cold.memory_bytes,
        )


def _told(
    config: EvalConfig | FinetuneConfig,
    device: str,
    known: Sequence[Measured],
    cores: int,
    work: Work | None,
) -> Estimate:
    named = "cuda:0" if device == "gpu" else device
    return estimate(config, named, known, start=PROBE_SECONDS, cores=cores, work=work)


def table(rows: Sequence[Row]) -> str:
    """One line a run."""
    head = ("run", "took, s", "assumed rates", "ratio", "other runs", "ratio", "GB", "estimate", "ratio")  # fmt: skip
    lines = []
    for row in rows:
        known, memory = ("-", "-"), ("-", "-", "-")
        if row.known_seconds is not None:
            known = (f"{row.known_seconds:.1f}", f"{row.known_ratio:.2f}")
        if row.memory_ratio is not None:
            memory = (
                f"{(row.memory_bytes or 0) / 1e9:.1f}",
                f"{(row.cold_bytes or 0) / 1e9:.1f}",
                f"{row.memory_ratio:.2f}",
            )
        cold = (f"{row.cold_seconds:.1f}", f"{row.cold_ratio:.2f}")
        lines.append((row.run, f"{row.seconds:.1f}", *cold, *known, *memory))
    return _markdown(head, lines)


def summary(rows: Sequence[Row]) -> str:
    """One line for each kind of work on each kind of device: the ratios' range."""
    head = ("device", "work", "runs", "took, s", "assumed rates / took", "by other runs / took", "memory estimate / peak")  # fmt: skip
    kinds: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        kinds[row.device, row.what].append(row)
    lines = [
        (
            device,
            what,
            str(len(mine)),
            _span([row.seconds for row in mine], ".0f"),
            _span([row.cold_ratio for row in mine], ".2f"),
            _span([row.known_ratio for row in mine], ".2f"),
            _span([row.memory_ratio for row in mine], ".2f"),
        )
        for (device, what), mine in kinds.items()
    ]
    return _markdown(head, lines)


def _span(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    ends = [format(end(known), form) for end in (min, max)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---" if index < 1 else "---:" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, default=TIMED_RUNS)
    parser.add_argument("--each", action="store_true", help="one line a run")
    parser.add_argument("--cores", type=int, default=2, help="of the CPU of CPU runs (default: 2)")
    options = parser.parse_args()
    rows = list(check(list_runs(options.runs, points=True), options.cores))
    if not rows:
        raise SystemExit("no finished run here says what it took")
    print(table(rows) if options.each else summary(rows))


if __name__ == "__main__":
    main()
