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
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import full_shape
from benchmarks.full_eval import measure_eval, measure_prefill
from benchmarks.full_shape import Book, Clock, clear, parser_of, read_tokenizer, words
from benchmarks.full_train import measure_training

PARTS: dict[str, Callable[..., None]] = {
    "prefill": measure_prefill,
    "eval": measure_eval,
    "lora": partial(measure_training, "lora"),
    "train": partial(measure_training, "full"),
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
    parser = parser_of(__doc__, PARTS, out="full_size", limit=500, repeats=3)
    parser.set_defaults(steps=8, warm_up=3, batch_samples=64)
    numbers = lambda text: [int(word) for word in words(text)]  # noqa: E731
    add = parser.add_argument
    add("--attn", type=words, default=["sdpa", "split"], help="ours, one row each")
    add(
        "--peer-batch-sizes",
        type=numbers,
        default=[64, 128, 256, 512, 1024, 2048],
        help="lm-eval's",
    )
    add("--prefill-tokens", type=int, default=16384)
    add("--peer-micro-samples", type=int, default=8, help="samples at once, HF Trainer's")
    add("--peers", type=words, default=["trainer", "trainer grouped"], help="HF Trainer's ways")
    add(
        "--keep-activations",
        action="store_true",
        help="compute no layer twice in a full fine-tune, where memory allows",
    )
    add("--compile", type=words, default=["none"], help="none,default,reduce-overhead")
    return full_shape.parse(parser, arguments, PARTS)


if __name__ == "__main__":
    main()
