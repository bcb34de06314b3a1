"""Several GPUs beside one, by the real commands: the published shape with random weights.

    python -m benchmarks.several_gpus --tokenizer DIR                       # two GPUs, all parts
    python -m benchmarks.several_gpus --parts eval --processes 4 --repeats 3
    python -m benchmarks.several_gpus --device cpu --shape tiny --limit 4 --steps 3 --warm-up 1

The model is written to a temporary folder (in TMPDIR) once, and each measurement is ``python -m bidir_core eval`` or
``finetune`` in processes of its own: alone, or under ``accelerate launch``, by turns. Seconds are
those that the run folders recorded: from the first batch on, and from the folder's creation on,
which is when the weights are loaded; ``wall`` is the whole process, its start included.

Parts: ``eval`` (five tasks, whole validation sets, bidirectional; the predictions are compared),
``finetune`` (3B, useful tokens a second behind a warm-up, for each of ``--methods``) and ``fsdp``
(a full fine-tune with the weights spread out). A command that fails is a row
with its last words, and the others go on. Its file is as that of ``benchmarks.full_size``.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks import full_shape
from benchmarks.full_shape import Add, Book, Clock, build, clear, parser_of, read_tokenizer, words
from bidir_core.common.settings import join_list
from bidir_core.data.assets import absolute_place
from bidir_core.runs.curve import read_curve
from bidir_core.runs.run import Run
from bidir_core.train.data import read_samples
from bidir_core.train.mixtures import MIXTURES
from bidir_core.train.rows import Columns

Read = Callable[[Run, int], dict[str, Any]]
Found = dict[int, list[dict[str, Any]]]


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts asked for, writing after every row."""
    options = parse(arguments)
    book = Book(Path(options.out), options)
    with tempfile.TemporaryDirectory(prefix="several-gpus-") as folder:
        options.work = Path(folder)
        book.begin("model")
        book.add("model", "written", **write_model(options, options.work / "model"))
        if options.data in MIXTURES and set(options.parts) & {"finetune", "fsdp"}:
            options.data = str(write_samples(options, options.work / "samples.jsonl"))
        for part in options.parts:
            book.begin(part)
            try:
                PARTS[part](Part(part, options, book.add, Clock(options.part_seconds)))
            except Exception as error:  # the other parts are worth having
                book.add(part, "stopped", failed=f"{type(error).__name__}: {error}")


def parse(arguments: list[str] | None) -> Namespace:
    """The command line, with device, dtype and the measured matrix rate filled in."""
    parser = parser_of(__doc__, PARTS, out="several_gpus", repeats=2)
    parser.set_defaults(steps=12, warm_up=4, batch_samples=256)
    add = parser.add_argument
    add("--processes", type=int, default=2, help="of an accelerate launch, one GPU each")
    add("--methods", type=words, default=["lora"], help="lora,full")
    add("--gradient-checkpointing", action="store_true")
    options = full_shape.parse(parser, arguments, PARTS, least_warm_up=1)
    if options.processes < 2:
        parser.error(f"--processes {options.processes}: give 2 or more")
    if options.on.type == "cuda" and torch.cuda.device_count() < options.processes:
        parser.error(f"--processes {options.processes}: there are {torch.cuda.device_count()} GPUs")
    options.data = absolute_place(options.data)
    return options


def write_model(options: Namespace, folder: Path) -> dict[str, Any]:
    """Make the model on the device, where that is fast, and write it like a hub's folder."""
    started = time.monotonic()
    tokenizer = read_tokenizer(options.tokenizer)
    model = build(options.shape, tokenizer, options.on, options.dtype).model
    made_seconds = time.monotonic() - started
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    clear(options.on)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {
        "weights_made_on": str(options.on),
        "made_seconds": round(made_seconds, 1),
        "written_seconds": round(time.monotonic() - started - made_seconds, 1),
        "gb": round(size / 1e9, 2),
    }


def write_samples(options: Namespace, path: Path) -> Path:
    """As many of a mixture's samples as the steps take: no command need encode the others."""
    samples = read_samples(options.data, Columns(), None, False)
    n = min(len(samples), options.steps * options.batch_samples)
    lines = [
        json.dumps({"prompt": sample.prompt, "response": sample.response})
        for sample in random.Random(0).sample(samples, n)
    ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@dataclass
class Part:
    """One part of the measurements, with what all of its commands need."""

    name: str
    options: Namespace
    add: Add
    clock: Clock

    def by_turns(self, title: str, arguments: list[str], read: Read) -> Found:
        """One process, several, one, several: the rows of those that succeeded."""
        rows: Found = {1: [], self.options.processes: []}
        for repeat in range(self.options.repeats):
            for processes in rows:
                if repeat and not self.clock.left():
                    continue
                row = self.one_run(title, arguments, read, processes)
                rows[processes] += [row] if row else []
        return rows

    def one_run(
        self, title: str, arguments: list[str], read: Read, processes: int, fsdp: bool = False
    ) -> dict[str, Any] | None:
        """Run one command, and add its row."""
        options = self.options
        name = f"{title}, {processes} {'process' if processes == 1 else 'processes'}"
        if not self.clock.left():
            self.add(self.name, name, skipped="the part's time was over")
            return None
        with tempfile.TemporaryDirectory(dir=options.work, ignore_cleanup_errors=True) as runs:
            arguments = [*arguments, "--model", str(options.work / "model"), "--runs-dir", runs]
            dtype = str(options.dtype).removeprefix("torch.")
            arguments += ["--device", options.device, "--dtype", dtype]
            on_gpu = options.on.type == "cuda"
            ended = run_command(arguments, processes=processes, fsdp=fsdp, on_gpu=on_gpu)
            wall = round(ended.wall_seconds, 1)
            runs_made = [Run(path.parent) for path in Path(runs).glob("*/*/metrics.json")]
            if ended.trouble or not runs_made:
                failed = ended.trouble or "it made no run"
                self.add(self.name, name, wall_seconds=wall, failed=failed)
                return None
            status, cost = runs_made[0].status, (runs_made[0].metrics or {})["cost"]
            peak = cost["peak_memory_bytes"].get("device")
            row = {
                **read(runs_made[0], processes),
                "after_load_seconds": round(status["finished"] - status["started"], 2),
                "wall_seconds": wall,
                "peak_gb": round(peak / 1e9, 2) if peak else None,
                "attention": runs_made[0].config.get("attention"),
            }
        self.add(self.name, name, **row)
        return row

    def compare(self, prefix: str, rows_by_processes: Found, speed: str) -> None:
        """How many times as fast several processes are as one, by medians."""
        single, several = rows_by_processes[1], rows_by_processes[self.options.processes]
        if not single or not several:
            return

        def times(name: str) -> float:
            """Of a speed, or of seconds."""
            a, b = (statistics.median(row[name] for row in rows) for rows in (several, single))
            return round(a / b if name == speed else b / a, 2)

        self.add(
            self.name,
            f"{prefix}{self.options.processes} processes against one",
            times=times(speed),
            times_after_load=times("after_load_seconds"),
            times_wall=times("wall_seconds"),
        )


def measure_eval(part: Part) -> None:
    """All items under the bidirectional regime, and whether the predictions are the same."""
    options = part.options
    line = ["eval", "--regime", "bidirectional", "--compact", "--tasks", join_list(options.tasks)]
    for name in ("limit", "batch_tokens"):
        if (value := getattr(options, name)) is not None:
            line += [f"--{name.replace('_', '-')}", str(value)]
    records: dict[int, Any] = {}

    def read(run: Run, processes: int) -> dict[str, Any]:
        metrics = run.metrics or {}
        seconds = metrics["cost"]["seconds"]
        records[processes] = run.items()
        return {
            "items": metrics["n_items"],
            "scoring_seconds": seconds,
            "items_per_second": round(metrics["n_items"] / seconds, 1),
            "computed_tokens": metrics["cost"]["computed_tokens"],
            "acc": round(metrics["macro"]["acc"], 4),
        }

    rows = part.by_turns("eval", line, read)
    part.compare("", rows, "items_per_second")
    if len(records) == 2:
        differ = differences(records[1], records[options.processes])
        part.add("eval", "predictions", **differ)


def differences(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Any]:
    """How the records of two runs over the same items differ."""
    keys, suffixes = ["task", "doc_id"], ("", "_other")
    merged = first.merge(second, on=keys, suffixes=suffixes, validate="one_to_one")
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


def measure_finetune(part: Part) -> None:
    """3B, data-parallel: gradients are exchanged once a step."""
    for method in part.options.methods:
        rows = part.by_turns(method, finetune_words(part.options, method), read_training)
        part.compare(f"{method}: ", rows, "tokens_per_second")


def measure_fsdp(part: Part) -> None:
    """3B, all weights, spread over the processes."""
    arguments, processes = finetune_words(part.options, "full"), part.options.processes
    part.one_run("full", arguments, read_training, processes, fsdp=True)


PARTS = {"eval": measure_eval, "finetune": measure_finetune, "fsdp": measure_fsdp}


def finetune_words(options: Namespace, method: str) -> list[str]:
    """A short fine-tune that does nothing but train, and reports every ``--warm-up`` steps."""
    arguments = ["finetune", "--prompt-bidir-response-causal-train", "--method", method]
    arguments += ["--data", options.data, "--no-decontaminate", "--checkpoint-every", "0"]
    for name in ("steps", "batch_samples", "micro_tokens"):
        arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    arguments += ["--log-every", str(options.warm_up)]
    return arguments + (["--gradient-checkpointing"] if options.gradient_checkpointing else [])


def read_training(run: Run, processes: int) -> dict[str, Any]:
    """A fine-tune's speed off its curve, from the end of the warm-up to the last step."""
    lines = [line for line in read_curve(run.path) if "loss" in line]
    first, last = lines[0], lines[-1]
    seconds, steps = last["seconds"] - first["seconds"], last["step"] - first["step"]
    return {
        "tokens_per_second": round((last["tokens"] - first["tokens"]) / seconds),
        "ms_per_step": round(1e3 * seconds / steps, 1),
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
