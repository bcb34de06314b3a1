"""Several GPUs beside one, by the real commands: the published shape with random weights.

    python -m benchmarks.several_gpus --tokenizer DIR                       # two GPUs, all parts
    python -m benchmarks.several_gpus --parts eval --processes 4 --repeats 3
    python -m benchmarks.several_gpus --device cpu --shape tiny --limit 4 --steps 3 --warm-up 1

The model is written to a temporary folder (in TMPDIR) once, and each measurement is ``python -m bidir_core eval`` or
``finetune`` in processes of its own: alone, or under ``accelerate launch``, by turns. Seconds are
those that the run folders recorded: from the first batch on, and from the folder's creation on,
which is when the weights are loaded; ``wall`` is the whole process, its start included.

Parts: ``eval`` (five tasks, whole validation sets, bidirectional; the predictions are compared),
``finetune`` (3B with LoRA, useful tokens a second behind a warm-up) and ``fsdp`` (3B, all weights, each
layer computed twice; several processes spread the weights out). A command that fails is a row with its
last words, and the others go on. Its file is as that of ``benchmarks.full_size``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks import full_shape
from benchmarks.full_shape import Book, Clock, build, clear, parser_of, read_tokenizer
from bidir_core.common.settings import join_list
from bidir_core.data.assets import absolute_place
from bidir_core.runs.curve import read_curve
from bidir_core.runs.run import Run

# What is measured, and the speed that is compared.
PARTS = {"eval": "items_per_second", "finetune": "tokens_per_second", "fsdp": "tokens_per_second"}


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts asked for, writing after every row."""
    options = parse(arguments)
    book = Book(Path(options.out), options)
    with tempfile.TemporaryDirectory(prefix="several-gpus-") as folder:
        options.work = Path(folder)
        write_model(options)
        for part in options.parts:
            book.begin(part)
            try:
                measure(part, options, book, Clock(options.part_seconds))
            except Exception as error:  # the other parts are worth having
                book.add(part, "stopped", failed=f"{type(error).__name__}: {error}")


def parse(arguments: list[str] | None) -> Namespace:
    """The command line, with device, dtype and the measured matrix rate filled in."""
    parser = parser_of(__doc__, PARTS, out="several_gpus", repeats=2)
    parser.set_defaults(steps=12, warm_up=4, batch_samples=256)
    parser.add_argument("--processes", type=int, default=2, help="of an accelerate launch")
    options = full_shape.parse(parser, arguments, PARTS, least_warm_up=1)
    if options.processes < 2:
        parser.error(f"--processes {options.processes}: give 2 or more")
    if options.on.type == "cuda" and torch.cuda.device_count() < options.processes:
        parser.error(f"--processes {options.processes}: there are {torch.cuda.device_count()} GPUs")
    options.data = absolute_place(options.data)
    return options


def write_model(options: Namespace) -> None:
    """Make the model on the device, where that is fast, and write it like a hub's folder."""
    tokenizer = read_tokenizer(options.tokenizer)
    model = build(options.shape, tokenizer, options.on, options.dtype).model
    model.save_pretrained(options.work / "model")
    tokenizer.save_pretrained(options.work / "model")
    del model
    clear(options.on)


def measure(part: str, options: Namespace, book: Book, clock: Clock) -> None:
    """One process, several, one, several; then by how much several are faster, by medians."""
    rows: dict[int, list[dict[str, Any]]] = {1: [], options.processes: []}
    records: dict[int, pd.DataFrame] = {}
    for _ in range(options.repeats):
        for processes, measured in rows.items():
            title = f"{processes} process{'es' if processes > 1 else ''}"
            if measured and not clock.left():
                continue
            row, items = one_run(part, options, processes)
            book.add(part, title, **row)
            if "failed" not in row:
                measured.append(row)
                records[processes] = items
    single, several = rows.values()
    if not single or not several:
        return

    def median(measured: list[dict[str, Any]], name: str) -> float:
        return statistics.median(row[name] for row in measured)

    speed = PARTS[part]
    book.add(
        part,
        f"{options.processes} processes against one",
        times=round(median(several, speed) / median(single, speed), 2),
        **{
            f"times_{name.removesuffix('_seconds')}": round(
                median(single, name) / median(several, name), 2
            )
            for name in ("after_load_seconds", "wall_seconds")
        },
    )
    if part == "eval":
        book.add(part, "predictions", **differences(*records.values()))


def one_run(part: str, options: Namespace, processes: int) -> tuple[dict[str, Any], Any]:
    """Run one command: its row, and the records of an evaluation."""
    with tempfile.TemporaryDirectory(dir=options.work, ignore_cleanup_errors=True) as runs:
        words = eval_words(options) if part == "eval" else finetune_words(options, part)
        words += ["--model", str(options.work / "model"), "--runs-dir", runs]
        words += ["--device", options.device, "--dtype", str(options.dtype).removeprefix("torch.")]
        on_gpu = options.on.type == "cuda"
        ended = run_command(words, processes=processes, fsdp=part == "fsdp", on_gpu=on_gpu)
        wall = round(ended.wall_seconds, 1)
        made = [Run(path.parent) for path in Path(runs).glob("*/*/metrics.json")]
        if ended.trouble or not made:
            return {"wall_seconds": wall, "failed": ended.trouble or "it made no run"}, None
        run, status = made[0], made[0].status
        metrics = run.metrics or {}
        peak = metrics["cost"]["peak_memory_bytes"].get("device")
        row = {
            **(evaluated(metrics) if part == "eval" else trained(run)),
            "after_load_seconds": round(status["finished"] - status["started"], 2),
            "wall_seconds": wall,
            "peak_gb": round(peak / 1e9, 2) if peak else None,
        }
        return row, run.items() if part == "eval" else None


def eval_words(options: Namespace) -> list[str]:
    words = ["eval", "--regime", "bidirectional", "--compact", "--tasks", join_list(options.tasks)]
    for name in ("limit", "batch_tokens"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def evaluated(metrics: dict[str, Any]) -> dict[str, Any]:
    seconds = metrics["cost"]["seconds"]
    return {
        "items": metrics["n_items"],
        "scoring_seconds": seconds,
        "items_per_second": round(metrics["n_items"] / seconds, 1),
        "acc": round(metrics["macro"]["acc"], 4),
    }


def differences(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Any]:
    """How the records of two runs over the same items differ."""
    merged = first.merge(
        second, on=["task", "doc_id"], suffixes=("", "_other"), validate="one_to_one"
    )
    if not len(merged) == len(first) == len(second):
        sizes = f"{len(first)} and {len(second)}, {len(merged)} shared"
        raise ValueError(f"not the same items: {sizes}")
    gaps = [
        float(np.abs(np.subtract(a, b, dtype=float)).max())
        for a, b in zip(merged["ll"], merged["ll_other"])
    ]
    return {
        "items": len(merged),
        "predictions_differ": int((merged["pred"] != merged["pred_other"]).sum()),
        "items_with_another_log_likelihood": int(np.count_nonzero(gaps)),
        "largest_nats": round(max(gaps), 4),
    }


def finetune_words(options: Namespace, part: str) -> list[str]:
    """A short fine-tune that does nothing but train, and reports every ``--warm-up`` steps."""
    words = ["finetune", "--prompt-bidir-response-causal-train"]
    words += ["--gradient-checkpointing"] if part == "fsdp" else ["--method", "lora"]
    words += ["--data", options.data, "--no-decontaminate", "--checkpoint-every", "0"]
    for name in ("steps", "batch_samples", "micro_tokens"):
        words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return [*words, "--log-every", str(options.warm_up)]


def trained(run: Run) -> dict[str, Any]:
    """A fine-tune's speed off its curve, from the end of the warm-up to the last step."""
    lines = [line for line in read_curve(run.path) if "loss" in line]
    first, last = lines[0], lines[-1]
    seconds, steps = last["seconds"] - first["seconds"], last["step"] - first["step"]
    return {
        "tokens_per_second": round((last["tokens"] - first["tokens"]) / seconds),
        "timed_steps": steps,
        "warm_up_seconds": first["seconds"],
        "loss": last["loss"],
    }


# The real commands, as processes of their own

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0")
FSDP = ("--use_fsdp", "--fsdp_version", "2")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    wall_seconds: float
    err: str

    @property
    def trouble(self) -> str | None:
        """Why it failed, with the end of its output; None if it did not."""
        if self.code == 0:
            return None
        output = self.err.split("failed (exitcode")[0]  # what a launcher adds is about itself
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        return f"exit code {self.code}: {' / '.join(lines[-12:])[-1500:]}"


def run_command(
    arguments: Sequence[str], *, processes: int = 1, fsdp: bool = False, on_gpu: bool = True
) -> Ended:
    """``python -m bidir_core WORDS`` to its end, in so many processes, one GPU each."""
    command = [sys.executable]
    if processes > 1:
        options = FSDP if fsdp else ("--multi_gpu",)
        command = [*LAUNCH, *options, "--num_processes", str(processes)]
    command += ["-m", "bidir_core", *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpus(processes) if on_gpu else ""}
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace"
    )
    return Ended(done.returncode, time.monotonic() - started, done.stderr)


def gpus(n: int) -> str:
    """The first ``n`` of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible is not None else [str(index) for index in range(n)]
    return ",".join(names[:n])


if __name__ == "__main__":
    main()
