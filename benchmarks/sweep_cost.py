"""What a sweep costs beside the same evaluations one by one.

    python -m benchmarks.sweep_cost --limit 5 --repeats 3
    python -m benchmarks.sweep_cost --limit 50 --repeats 1     # the whole sink sweep, in minutes

Each repeat runs every regime of the sweep as an evaluation of its own, and the sweep, every other
repeat the sweep first, in one process; both write complete runs (into a folder that is thrown
away). Finding and loading the model is left out of both, though a sweep does it once where P
evaluations do it P times. What is compared is wall and CPU seconds from there to finished folders.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import transformers

from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.evaluate import evaluate
from bidir_core.evaluate.config import EvalConfig
from bidir_core.explain.sweep import run_lab
from bidir_core.explain.sweep_points import LabConfig, expand
from bidir_core.models import loading
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL
from bidir_core.runs.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sweep", default="sink=0,1,2,4,8")
    parser.add_argument("--limit", type=int, default=5, help="items per task")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()

    common: dict[str, Any] = {
        "model": EMBEDDED_MODEL, "limit": options.limit, "device": options.device,
        "dtype": options.dtype,
    }  # fmt: skip
    found = evaluate.preflight(EvalConfig(**common), CAUSAL)
    loaded = loading.load_weights(found)
    sweep = LabConfig(**common, sweep=(options.sweep,))
    regimes = list(dict.fromkeys([CAUSAL, BIDIRECTIONAL, *expand(sweep.sweeps, loaded.n_layers)]))

    def one_by_one(folder: Path) -> None:
        for regime in regimes:
            evaluate.evaluate(
                EvalConfig(**common, regime=str(regime), runs_dir=str(folder)), loaded=loaded
            )

    def together(folder: Path) -> None:
        with already(found, loaded):
            path = run_lab(LabConfig(**common, sweep=(options.sweep,), runs_dir=str(folder)))
        assert len(Run(path).points()) == len(regimes)

    print(
        f"{len(regimes)} points, {options.limit} items a task, {options.dtype} on {options.device}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    evaluation = EvalConfig(**common)
    timed(
        lambda folder: evaluate.evaluate(replace(evaluation, runs_dir=str(folder)), loaded=loaded)
    )
    trials: dict[str, list[tuple[float, float]]] = {"one by one": [], "sweep": []}
    work = {"one by one": one_by_one, "sweep": together}
    for number in range(options.repeats):
        for name in sorted(work, reverse=bool(number % 2)):
            trials[name].append(timed(work[name]))
            print(f"  {name:10s} {trials[name][-1][0]:7.1f} s   cpu {trials[name][-1][1]:7.1f} s")
    for name, values in trials.items():
        wall, cpu = (statistics.median(one) for one in zip(*values, strict=True))
        print(f"{name:10s} median {wall:7.1f} s   cpu {cpu:7.1f} s")
    for which, unit in enumerate(("wall", "cpu")):
        pairs = zip(trials["one by one"], trials["sweep"], strict=True)
        ratios = [b[which] / a[which] for a, b in pairs]
        print(
            f"sweep / {len(regimes)} evaluations, {unit}: {statistics.median(ratios):.3f} "
            f"({', '.join(format(ratio, '.3f') for ratio in ratios)})"
        )


def timed(work: Callable[[Path], object]) -> tuple[float, float]:
    """Wall and CPU seconds; what it prints and writes is thrown away."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        wall, cpu = time.monotonic(), time.process_time()
        work(Path(folder) / "runs")
        return time.monotonic() - wall, time.process_time() - cpu


@contextmanager
def already(found: loading.Preflight, loaded: loading.LoadedModel) -> Any:
    """Inside, finding and loading the model gives these."""
    before = evaluate.preflight, loading.load_weights
    evaluate.preflight = lambda *_, **__: found  # type: ignore[assignment]
    loading.load_weights = lambda *_, **__: loaded  # type: ignore[assignment]
    try:
        yield
    finally:
        evaluate.preflight, loading.load_weights = before  # type: ignore[assignment]


if __name__ == "__main__":
    main()
