"""How the whole ``eval`` command grows: seconds and memory against items, prompt length and model size.

    python -m benchmarks.growth --out growth                                  # the embedded model
    python -m benchmarks.growth --parts items --items 100,1000 --device cpu
    python -m benchmarks.growth --parts size --models smollm2-135m-instruct,qwen2.5-coder-0.5b-instruct

Every point is a command of its own, from its start to its exit. Behind each series stands the exponent
with which seconds and memory grow over all of it, and from the last point but one to the last. A command
that fails is a row with its last words; so is a prompt beyond the model's window, which is not run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from benchmarks.several_gpus import run_command
from bidir_core.common.files import write_json
from bidir_core.common.process import git_commit, package_versions
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.data.fetch import ensure
from bidir_core.data.tasks import PUBLISHED_TASKS, load_items
from bidir_core.models.source import find_source
from bidir_core.models.weight_files import read_tensors, weight_files
from bidir_core.runs.find import list_runs

PARTS = ("items", "tokens", "size")
N_PROMPTS = 64  # of each length
Point = tuple[str, float, list[dict[str, Any]]]  # model, what grows, rows of a task


def main(arguments: list[str] | None = None) -> None:
    """Run every point, writing after each."""
    options = parse(arguments)
    results: dict[str, Any] = {"commit": git_commit(), "versions": package_versions(), "rows": []}
    for part in options.parts:
        rows = []
        for model, grows, task in points(part, options):
            row: dict[str, Any] = {"part": part, "model": model, "x": grows}
            if part == "tokens" and grows > window_of(model):
                row["skipped"] = f"beyond the model's window of {window_of(model)} tokens"
            else:
                row |= run(model, task, options)
            rows.append(row)
            print(json.dumps(rows[-1]), flush=True)
            results["rows"].append(rows[-1])
            write_json(Path(options.out).with_suffix(".json"), results)
        measured = [row for row in rows if "seconds" in row]
        if len(measured) > 1:
            results["rows"].append({"part": part, **exponents(measured)})
            print(json.dumps(results["rows"][-1]), flush=True)
    write_json(Path(options.out).with_suffix(".json"), results)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers = lambda text: [int(word) for word in text.split(",")]  # noqa: E731
    words = lambda text: text.split(",")  # noqa: E731
    add = parser.add_argument
    add("--parts", type=words, default=list(PARTS))
    add("--items", type=numbers, default=[100, 1000, 10_000, 100_000])
    add("--tokens", type=numbers, default=[100, 500, 2000, 8000, 16_000], help="of a prompt, about")
    add("--models", type=words, default=[EMBEDDED_MODEL], help="for size; the first for the others")
    add("--regime", default="bidirectional")
    add("--device", default="auto")
    add("--out", default="growth", help="path of the file, without .json")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts {unknown.pop()}: choose from {', '.join(PARTS)}")
    return options


def points(part: str, options: argparse.Namespace) -> Iterator[Point]:
    """The commands of one series."""
    items = load_items(PUBLISHED_TASKS, limit=2000)
    rows: list[dict[str, Any]] = [
        {"contexts": item.contexts, "continuations": item.continuations, "gold": item.gold}
        for item in items
        if len(item.contexts) == 1
    ]
    first = options.models[0]
    if part == "items":
        for n in options.items:
            yield first, n, list(itertools.islice(itertools.cycle(rows), n))
    elif part == "tokens":
        words = " ".join(row["contexts"][0] for row in rows).split()
        for n in options.tokens:
            prompt = " ".join(words[: round(0.7 * n)])  # some 1.4 tokens a word
            yield first, n, [rows[i] | {"contexts": [f"{i} {prompt}"]} for i in range(N_PROMPTS)]
    else:
        for model in options.models:
            tensors = [t for file in weight_files(ensure(model)) for t in read_tensors(file)]
            parameters = sum(int(np.prod(tensor.shape)) for tensor in tensors)
            yield model, parameters, rows[:1000]


def window_of(model: str) -> float:
    """The most tokens that a model reads at once, as its configuration says."""
    source, _ = find_source(model, None)
    text = AutoConfig.from_pretrained(source).get_text_config()
    return getattr(text, "max_position_embeddings", math.inf)


def run(model: str, task: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one command, in all and of scoring alone, and the most memory; or why it failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in task), encoding="utf-8")
        line = ["eval", "--model", model, "--tasks", str(file), "--regime", options.regime]
        line += ["--device", options.device, "--compact", "--runs-dir", folder]
        ended = run_command(line)
        if ended.trouble:
            return {"failed": ended.trouble}
        (finished,) = list_runs([folder])
        cost = (finished.metrics or {})["cost"]
    return {
        "n_items": len(task),
        "prefix_tokens": cost["prefix_tokens"],
        "seconds": round(ended.wall_seconds, 2),
        "scoring_seconds": cost["seconds"],
        "peak_gb": round(max(cost["peak_memory_bytes"].values()) / 1e9, 3),
        "device": cost["device"],
    }


def exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    """``e`` in ``y ~ x ** e``: by least squares of the logarithms, and between the last two points."""
    x, values = np.log([row["x"] for row in rows]), {}
    for name in ("seconds", "scoring_seconds", "peak_gb"):
        y = np.log([row[name] for row in rows])
        values[f"{name}_exponent"] = round(float(np.polyfit(x, y, 1)[0]), 2)
        values[f"{name}_exponent_at_the_end"] = round(float((y[-1] - y[-2]) / (x[-1] - x[-2])), 2)
    return values


if __name__ == "__main__":
    main()
