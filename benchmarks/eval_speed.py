"""Evaluation speed beside lm-eval's, on the same items, in one run.

    python -m benchmarks.eval_speed                        # five tasks x 20 items, float32, CPU
    python -m benchmarks.eval_speed --limit 500 --device cuda --dtype bfloat16 --batch-sizes 64,256
    python -m benchmarks.eval_speed --command --limit 100 --before FOLDER

Times tokenising and scoring, model loading left out. Repeats of both are interleaved, since other
work on the machine can slow any one of them; medians are printed, with CPU seconds.

``--command`` times the whole ``eval`` instead, from the return key to ``metrics.json``, in a process of
its own, beside that of another version of this repository in the folder ``--before``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lm_eval_peer import LmEvalPeer, accuracy, differences, our_scores
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.data.encoding import Encoder
from bidir_core.data.fetch import ensure
from bidir_core.data.tasks import PUBLISHED_TASKS, load_items
from bidir_core.models import fused, loading
from bidir_core.runs.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, default=20, help="items per task")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-sizes", default="1,4,8,16", help="lm-eval's; the best is used")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--command", action="store_true", help="time the whole command")
    parser.add_argument("--before", type=Path, help="another checkout, for --command")
    parser.add_argument("--regime", default="causal", help="for --command")
    options = parser.parse_args()
    if options.command:
        whole_commands(options)
        return

    folder = ensure(EMBEDDED_MODEL)
    items = load_items(PUBLISHED_TASKS, limit=options.limit)
    loaded = loading.load(EMBEDDED_MODEL, dtype=options.dtype, device=options.device)
    peer = LmEvalPeer(str(folder), dtype=options.dtype, device=options.device)

    def ours() -> list[list[float]]:
        return our_scores(loaded, Encoder(loaded.tokenizer).encode(items))

    print(
        f"{len(items)} items of {len(PUBLISHED_TASKS)} tasks, {options.dtype} on {options.device}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    ours()  # warm up
    sizes = [int(size) for size in options.batch_sizes.split(",")]

    def theirs_at(size: int) -> list[list[float]]:
        with fused.plain(loaded.model):  # rotary embeddings are shared by a family's models
            return peer.score(items, size)

    first = {size: timed(lambda size=size: theirs_at(size)) for size in sizes}
    for size, trial in first.items():
        print(f"lm-eval, batch {size:4d}: {trial['wall']:7.2f} s")
    best = min(first, key=lambda size: first[size]["wall"])

    runs: dict[str, list[dict[str, Any]]] = {"bidir": [], "lm-eval": []}
    for _ in range(options.repeats):
        runs["bidir"].append(timed(ours))
        runs["lm-eval"].append(timed(lambda: theirs_at(best)))
    for name, trials in runs.items():
        print(
            f"{name:8s} wall {median(trials, 'wall'):7.2f} s   cpu {median(trials, 'cpu'):7.2f} s   "
            f"(wall of each: {', '.join(format(t['wall'], '.2f') for t in trials)})"
        )
    ratios = [b["wall"] / a["wall"] for a, b in zip(runs["bidir"], runs["lm-eval"])]
    cpu_ratio = median(runs["lm-eval"], "cpu") / median(runs["bidir"], "cpu")
    print(
        f"lm-eval at its best batch size ({best}) takes {statistics.median(ratios):.2f} times as "
        f"long (median of paired repeats); {cpu_ratio:.2f} times the CPU seconds"
    )

    our_result, peer_result = runs["bidir"][0]["result"], runs["lm-eval"][0]["result"]
    largest, changed = differences(items, our_result, peer_result)
    same = accuracy(items, our_result) == accuracy(items, peer_result)
    print(
        f"largest difference of a choice: {largest:.2e} nats; {changed} predictions differ; "
        f"acc and acc_norm {'equal' if same else 'DIFFER'}"
    )


def whole_commands(options: argparse.Namespace) -> None:
    """Print the seconds of a whole ``eval``, here and in the checkout before, interleaved."""
    checkouts = {"here": Path.cwd()}
    if options.before:
        checkouts["before"] = options.before
    print(
        f"{len(PUBLISHED_TASKS)} tasks x {options.limit} items, {options.regime}, {options.dtype} "
        f"on {options.device}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    trials: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for _ in range(options.repeats):
        for name, checkout in checkouts.items():
            trials[name].append(whole_command(checkout, options))
            shown = {key: f"{trials[name][-1][key]:.2f}" for key in COMMAND_COSTS}
            print(name, *(f"{key} {value}" for key, value in shown.items()), flush=True)
    for name, rows in trials.items():
        print(name, *(f"{key} {median(rows, key):.2f}" for key in COMMAND_COSTS), "(medians)")
    if options.before:
        for key in COMMAND_COSTS:
            ratios = [a[key] / b[key] for a, b in zip(trials["here"], trials["before"])]
            print(f"{key}: {statistics.median(ratios):.3f} of before (median of paired repeats)")
        equal = np.array_equal(trials["here"][0]["scores"], trials["before"][0]["scores"])
        print(f"log-likelihoods {'equal' if equal else 'DIFFER'}, bit for bit")


# ``system`` is part of ``cpu``; ``scoring`` is what the run itself records, wall time.
COMMAND_COSTS = ("wall", "cpu", "system", "scoring", "peak_gb")


def whole_command(checkout: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one ``eval`` from start to exit, its peak memory and its log-likelihoods."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "bidir_core", "eval", "--model", EMBEDDED_MODEL]
        for name in ("limit", "regime", "dtype", "device"):
            command += [f"--{name}", str(getattr(options, name))]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--runs-dir", runs],
            cwd=checkout,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or process.stdout is None:
            raise SystemExit(f"'{' '.join(command)}' in {checkout} ended with {process.returncode}")
        done = [Run(line) for line in process.stdout.read().decode().split()]
        costs = [(run.metrics or {})["cost"] for run in done]
        return {
            "wall": wall,
            "cpu": used.ru_utime + used.ru_stime,
            "system": used.ru_stime,
            "scoring": sum(cost["seconds"] for cost in costs),
            "peak_gb": max(cost["peak_memory_bytes"]["host"] for cost in costs) / 1e9,
            "scores": np.concatenate([np.concatenate(run.items(["ll"])["ll"]) for run in done]),
        }


def timed(work: Any) -> dict[str, Any]:
    """Wall and CPU seconds of ``work()``, and what it gave."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "result": result,
    }


def median(trials: list[dict[str, Any]], key: str) -> float:
    return statistics.median(trial[key] for trial in trials)


if __name__ == "__main__":
    main()
