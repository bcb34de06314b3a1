"""Do processes or batch shapes change a bfloat16 evaluation? The same items, several ways.

    python -m benchmarks.bf16_differences --limit 100

Every way is the real command in processes of its own, and is compared with the first, item by item
and choice by choice. Two processes share the batches of one plan, so they should change nothing;
other batches let the same numbers be added in another order, which eight bits of precision show.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers

from benchmarks import real_commands as commands
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.runs.run import Run


@dataclass(frozen=True)
class Way:
    """One way to run the same evaluation."""

    name: str
    flags: tuple[str, ...] = ()
    processes: int = 1


WAYS = (
    Way("bfloat16, one process"),
    Way("the same again"),
    Way("two processes", processes=2),
    Way("batches of 256 tokens", ("--batch-tokens", "256")),
    Way("batches of 4,096 tokens", ("--batch-tokens", "4096")),
    Way("float32", ("--dtype", "float32")),
)


@dataclass(frozen=True)
class Difference:
    """How one run differs from another in the same items."""

    n_items: int
    n_predictions: int  # items whose most likely choice differs
    n_correct: int  # items that are right in one and wrong in the other
    n_items_ll: int  # items with a choice whose log-likelihood differs at all
    n_choices: int
    largest_nats: float
    median_nats: float  # of all choices
    acc_points: float  # of the mean over items, in percentage points


def compare(one: pd.DataFrame, other: pd.DataFrame) -> Difference:
    """``one`` and ``other``: records of the same items, in any order."""
    keys = ["task", "doc_id"]
    both = one.merge(other, on=keys, suffixes=("", "_other"), validate="one_to_one")
    if len(both) != len(one) or len(both) != len(other):
        raise ValueError(f"not the same items: {len(one)} and {len(other)}, {len(both)} shared")
    gaps = [
        np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))
        for a, b in zip(both["ll"], both["ll_other"])
    ]
    every = np.concatenate(gaps)
    correct, other_correct = both["correct"].astype(bool), both["correct_other"].astype(bool)
    return Difference(
        n_items=len(both),
        n_predictions=int((both["pred"] != both["pred_other"]).sum()),
        n_correct=int((correct != other_correct).sum()),
        n_items_ll=sum(bool(gap.any()) for gap in gaps),
        n_choices=len(every),
        largest_nats=float(every.max()),
        median_nats=float(np.median(every)),
        acc_points=100 * float(other_correct.mean() - correct.mean()),
    )


def run(way: Way, model: str, limit: int, folder: Path, more: list[str]) -> Run:
    """Evaluate in processes of their own and return the run."""
    dtype = () if "--dtype" in way.flags else ("--dtype", "bfloat16")
    words = ["eval", "--model", model, "--limit", str(limit), "--compact"]
    words += ["--runs-dir", str(folder), *dtype, *way.flags, *more]
    done = commands.run(words, processes=way.processes, on_gpu="cpu" not in more)
    if done.trouble:
        raise SystemExit(f"{way.name} failed: {done.trouble}")
    return Run(Path(done.out.split()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--limit", type=int, default=100, help="items per task")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--regime", default="bidirectional")
    parser.add_argument("--tasks", help="default: the five published ones")
    options = parser.parse_args()
    more = ["--device", options.device, "--regime", options.regime]
    more += ["--tasks", options.tasks] if options.tasks else []

    rows: list[str] = []
    first: pd.DataFrame | None = None
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            made = run(way, options.model, options.limit, Path(folder) / "runs", more)
            items = made.items()
            device = made.metrics["cost"]["device"] if made.metrics else options.device
            if first is None:
                first = items
                print(
                    f"{options.model}, {options.regime}, {len(items)} items; {device}, "
                    f"{torch.get_num_threads()} threads, Python {platform.python_version()}, "
                    f"torch {torch.__version__}, transformers {transformers.__version__}\n"
                )
                print(
                    f"| beside {way.name} | predictions differ | right or wrong differs | acc, "
                    "points | items with any other log-likelihood | largest, nats | median, nats |"
                )
                print("|---|---:|---:|---:|---:|---:|---:|")
                continue
            found = compare(first, items)
            rows.append(
                f"| {way.name} | {found.n_predictions} | {found.n_correct} | "
                f"{found.acc_points:+.2f} | {found.n_items_ll} of {found.n_items} | "
                f"{found.largest_nats:.3g} | {found.median_nats:.3g} |"
            )
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
