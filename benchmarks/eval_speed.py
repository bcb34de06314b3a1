"""Evaluation speed beside lm-eval's, on the same items, in one run.

    python -m benchmarks.eval_speed                        # five tasks x 20 items, float32, CPU
    python -m benchmarks.eval_speed --limit 500 --device cuda --dtype bfloat16 --batch-sizes 64,256

Times tokenising and scoring, model loading left out. Repeats of both are interleaved, since other
work on the machine can slow any one of them; medians are printed, with CPU seconds and the
matrix-product rate measured around each repeat, so that a disturbed repeat can be told.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from benchmarks.full_shape import now
from benchmarks.lm_eval_peer import LmEvalPeer, accuracy, differences
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.data.encoding import Encoder
from bidir_core.data.recipes import ensure
from bidir_core.data.tasks import PUBLISHED_TASKS, load_items
from bidir_core.evaluate.scoring import Scorer, plan_scoring
from bidir_core.models import fused, loading
from bidir_core.regimes import CAUSAL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, default=20, help="items per task")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-sizes", default="1,4,8,16", help="lm-eval's; the best is used")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()

    folder = ensure(EMBEDDED_MODEL)
    items = load_items(PUBLISHED_TASKS, limit=options.limit)
    loaded = loading.load(EMBEDDED_MODEL, dtype=options.dtype, device=options.device)
    peer = LmEvalPeer(str(folder), dtype=options.dtype, device=options.device)
    device = torch.device(options.device)

    def ours() -> list[list[float]]:
        encoded = Encoder(loaded.tokenizer).encode(items)
        plan = plan_scoring(encoded, regime=CAUSAL, device=device)
        scorer = Scorer(loaded.model, loaded.handle, plan)
        found = {s.index: s.ll for batch in plan.batches for s in scorer.score(batch.items)}
        return [found[i] for i in range(len(items))]

    print(
        f"{len(items)} items of {len(PUBLISHED_TASKS)} tasks, {options.dtype} on {options.device}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    ours()  # warm up
    sizes = [int(size) for size in options.batch_sizes.split(",")]

    def theirs_at(size: int) -> list[list[float]]:
        with fused.plain(loaded.model):  # rotary embeddings are shared by a family's models
            return peer.score(items, size)

    first = {size: timed(lambda size=size: theirs_at(size), device) for size in sizes}
    for size, trial in first.items():
        print(f"lm-eval, batch {size:4d}: {trial['wall']:7.2f} s")
    best = min(first, key=lambda size: first[size]["wall"])

    runs: dict[str, list[dict[str, Any]]] = {"bidir": [], "lm-eval": []}
    for _ in range(options.repeats):
        runs["bidir"].append(timed(ours, device))
        runs["lm-eval"].append(timed(lambda: theirs_at(best), device))
    for name, trials in runs.items():
        print(
            f"{name:8s} wall {median(trials, 'wall'):7.2f} s   cpu {median(trials, 'cpu'):7.2f} s   "
            f"around it {median(trials, 'gflops'):6.0f} GFLOP/s   "
            f"(wall of each: {', '.join(format(t['wall'], '.2f') for t in trials)})"
        )
    ratios = [b["wall"] / a["wall"] for a, b in zip(runs["bidir"], runs["lm-eval"])]
    cpu_ratio = median(runs["lm-eval"], "cpu") / median(runs["bidir"], "cpu")
    print(
        f"lm-eval at its best batch size ({best}) takes {statistics.median(ratios):.2f} times as "
        f"long (median of paired repeats); {cpu_ratio:.2f} times the CPU seconds"
    )

    mine, theirs = runs["bidir"][0]["result"], runs["lm-eval"][0]["result"]
    largest, changed = differences(items, mine, theirs)
    same = accuracy(items, mine) == accuracy(items, theirs)
    print(
        f"largest difference of a choice: {largest:.2e} nats; {changed} predictions differ; "
        f"acc and acc_norm {'equal' if same else 'DIFFER'}"
    )


def timed(work: Any, device: torch.device) -> dict[str, Any]:
    """Wall and CPU seconds of ``work()``, and the GFLOP/s measured just before and after it."""
    before = gflops(device)
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return {**spent, "gflops": (before + gflops(device)) / 2, "result": result}


def gflops(device: torch.device) -> float:
    """The rate of a float32 matrix product of the model's own kind of size."""
    a, b = torch.randn(1536, 576, device=device), torch.randn(576, 1536, device=device)
    a @ b
    start = now(device)
    for _ in range(20):
        a @ b
    return 20 * 2 * 1536 * 576 * 1536 / (now(device) - start) / 1e9


def median(trials: list[dict[str, Any]], key: str) -> float:
    return statistics.median(trial[key] for trial in trials)


if __name__ == "__main__":
    main()
