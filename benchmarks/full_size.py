"""The published experiment's shape at full size, random weights: every number in one command.

    python -m benchmarks.full_size                                  # all parts, the model of 3.43 B
    python -m benchmarks.full_size --parts prefill,eval --part-seconds 240
    python -m benchmarks.full_size --shape tiny --limit 4 --prefill-tokens 256 --steps 3 --warm-up 1

Parts: ``eval`` (five tasks, everything after model load, beside lm-eval), ``prefill`` (a long prefix
against the model's own plain kernels), ``lora`` and ``train`` (tokens/s and the share of the matrix
rate measured in the same run, beside HF Trainer). Each part ends soon after its time is over.
Each row is printed, and ``OUT.json`` is written anew after it, so a killed run keeps what it measured.
A later run with the same ``--out`` replaces the rows of the parts it measures and keeps the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.full_eval import measure_eval, measure_prefill
from benchmarks.full_shape import SHAPES, Book, Clock, clear, matmul_tflops, read_tokenizer
from benchmarks.full_train import measure_full, measure_lora
from bidir_core.data.tasks import PUBLISHED_TASKS
from bidir_core.models.devices import choose_device, choose_dtype

PARTS = {
    "prefill": measure_prefill,
    "eval": measure_eval,
    "lora": measure_lora,
    "train": measure_full,
}


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts asked for, writing after every row."""
    options = parse(arguments)
    book = Book(Path(options.out), options)
    tokenizer = read_tokenizer(options.tokenizer)
    for part in options.parts:
        clear(options.on)
        book.begin(part)
        PARTS[part](options, tokenizer, book.add, Clock(options.part_seconds))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, with device, dtype and the measured matrix rate filled in."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words = lambda text: [word for word in text.split(",") if word]  # noqa: E731
    numbers = lambda text: [int(word) for word in words(text)]  # noqa: E731
    add = parser.add_argument
    add("--shape", default="ministral3-3b", choices=list(SHAPES))
    add("--parts", type=words, default=list(PARTS), help=",".join(PARTS))
    add("--part-seconds", type=float, default=300, help="when a part's time is over")
    add("--out", default="full_size", help="path of the file, without .json")
    add("--device", default="auto")
    add("--dtype", default="auto", help="auto: bfloat16 on a GPU, float32 on a CPU")
    add("--tokenizer", help="a folder with a tokenizer (default: the embedded model's)")
    add("--attn", type=words, default=["sdpa", "flex", "split"], help="ours, one row each")
    add("--tasks", type=lambda t: tuple(words(t)), default=PUBLISHED_TASKS)
    add("--limit", type=int, default=500, help="items per task")
    add("--repeats", type=int, default=3, help="rounds after the first; medians count")
    add("--batch-tokens", type=int, help="of an evaluation (default: by device)")
    add(
        "--peer-batch-sizes",
        type=numbers,
        default=[64, 128, 256, 512, 1024, 2048],
        help="lm-eval's",
    )
    add("--prefill-tokens", type=int, default=16384)
    add("--data", default="far", help="what to train on")
    add("--steps", type=int, default=8)
    add("--warm-up", type=int, default=3, help="of the steps, not timed")
    add("--batch-samples", type=int, default=64)
    add("--micro-tokens", type=int, default=8192, help="tokens at once, ours")
    add("--peer-micro-samples", type=int, default=8, help="samples at once, HF Trainer's")
    add("--compile", type=words, default=["none"], help="none,default,reduce-overhead")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"--parts {unknown[0]}: choose from {', '.join(PARTS)}")
    if not 0 <= options.warm_up < options.steps:
        parser.error(f"--warm-up {options.warm_up}: give less than --steps {options.steps}")
    options.on = choose_device(options.device)
    options.dtype = choose_dtype(options.dtype, options.on)
    options.tflops = matmul_tflops(options.on, options.dtype)
    return options


if __name__ == "__main__":
    main()
