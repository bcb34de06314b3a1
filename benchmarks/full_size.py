"""The published experiment's shape at full size, random weights: every number in one command.

    python -m benchmarks.full_size                                  # all parts, the model of 3.43 B
    python -m benchmarks.full_size --parts prefill,eval --part-seconds 240
    python -m benchmarks.full_size --shape tiny --limit 4 --prefill-tokens 256 --steps 3 --warm-up 1

Parts: ``eval`` (five tasks, everything after model load, beside lm-eval), ``prefill`` (a long prefix
against the model's own plain kernels), ``lora`` and ``train`` (tokens/s and the share of the matrix
rate measured in the same run, beside HF Trainer). Each part ends soon after its time is over, and
``OUT.json`` and ``OUT.md`` are written anew after every row, so a killed run keeps what it measured.
A later run with the same ``--out`` replaces the rows of the parts it measures and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.full_eval import measure_eval, measure_prefill
from benchmarks.full_shape import SHAPES, Clock, build, clear, matmul_tflops, read_tokenizer
from benchmarks.full_train import measure_full, measure_lora
from bidir_core.atomic import replacing, write_json
from bidir_core.config import PUBLISHED_TASKS
from bidir_core.devices import choose_device, choose_dtype, device_name
from bidir_core.provenance import git_commit, package_versions

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
    print(book.markdown())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, with device, dtype and the measured matrix rate filled in."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words = lambda text: [word for word in text.split(",") if word]  # noqa: E731
    numbers = lambda text: [int(word) for word in words(text)]  # noqa: E731
    add = parser.add_argument
    add("--shape", default="ministral3-3b", choices=list(SHAPES))
    add("--parts", type=words, default=list(PARTS), help=",".join(PARTS))
    add("--part-seconds", type=float, default=300, help="when a part's time is over")
    add("--out", default="full_size", help="path of the two files, without .json and .md")
    add("--device", default="auto")
    add("--dtype", default="auto", help="auto: bfloat16 on a GPU, float32 on a CPU")
    add("--tokenizer", help="a folder with a tokenizer (default: the embedded model's)")
    add("--attn", type=words, default=["sdpa", "flex", "split"], help="ours, one row each")
    add("--tasks", type=lambda t: tuple(words(t)), default=PUBLISHED_TASKS)
    add("--limit", type=int, default=500, help="items per task")
    add("--repeats", type=int, default=3, help="evaluations after the first; the median counts")
    add("--batch-tokens", type=int, help="of an evaluation (default: by device)")
    add("--peer-batch-sizes", type=numbers, default=[32, 64, 128], help="lm-eval's")
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


class Book:
    """The rows so far, on disk after each."""

    def __init__(self, out: Path, options: argparse.Namespace):
        self.json, self.text = out.with_suffix(".json"), out.with_suffix(".md")
        self.rows: list[dict[str, Any]] = []
        if self.json.is_file():
            self.rows = json.loads(self.json.read_text())["rows"]
        with torch.device("meta"):
            parameters = sum(p.numel() for p in self._model(options).parameters())
        self.facts = {
            "shape": options.shape,
            "parameters": parameters,
            "device": device_name(options.on),
            "dtype": str(options.dtype).removeprefix("torch."),
            "matmul_tflops": round(options.tflops, 3),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "commit": git_commit(),
            "versions": package_versions(),
            "settings": {
                name: value
                for name, value in vars(options).items()
                if isinstance(value, int | float | str | list | tuple)
            },
        }
        self.json.parent.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def _model(options: argparse.Namespace) -> Any:
        class NoTokenizer:
            def __len__(self) -> int:
                return 0

        return build(options.shape, NoTokenizer(), torch.device("meta"), options.dtype).model

    def begin(self, part: str) -> None:
        """Forget what an earlier run measured of this part."""
        self.rows = [row for row in self.rows if row["part"] != part]

    def add(self, part: str, what: str, **values: Any) -> None:
        """One more row, written at once."""
        row = {"part": part, "what": what, **{k: v for k, v in values.items() if v is not None}}
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        write_json(self.json, {**self.facts, "rows": self.rows})
        with replacing(self.text) as temporary:
            temporary.write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """One table a part: what was measured down, values across."""
        facts, versions = self.facts, self.facts["versions"]
        lines = [
            f"{facts['shape']}, {facts['parameters'] / 1e6:,.1f} M parameters, random weights, "
            f"{facts['dtype']} on {facts['device']}; matrix products at "
            f"{facts['matmul_tflops']:g} TFLOP/s in this run; torch {versions['torch']}, "
            f"transformers {versions['transformers']}, {facts['date']}.",
        ]
        for part in dict.fromkeys(row["part"] for row in self.rows):
            rows = [row for row in self.rows if row["part"] == part]
            names = [n for n in dict.fromkeys(n for r in rows for n in r) if n != "part"]
            lines += [
                "",
                f"| {' | '.join([part, *names[1:]])} |",
                "|---" + "|---:" * len(names[1:]) + "|",
            ]
            for row in rows:
                lines.append(f"| {' | '.join(str(row.get(name, '')) for name in names)} |")
        return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
