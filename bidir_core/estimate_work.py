"""How much there is to compute: counted from a configuration, before any item is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bidir_core.config import EvalConfig
from bidir_core.estimate_cost import Work

if TYPE_CHECKING:
    from bidir_core.training.config import FinetuneConfig

# Validation items of each built-in task, and what one takes to compute on average with SmolLM2's
# tokenizer: tokens of its context, and of all its continuations together.
TASK_SIZES: dict[str, tuple[int, float, float]] = {
    "hellaswag": (10_042, 50, 118),
    "piqa": (1_838, 13, 46),
    "arc_easy": (570, 27, 17),
    "arc_challenge": (299, 31, 23),
    "winogrande": (1_267, 34, 11),
}
CHARACTERS_PER_TOKEN = 4.0
# Of the embedded training mixtures at 512 tokens at most: prompt and response, and its response.
SAMPLE_TOKENS, RESPONSE_SHARE = 147.0, 0.31


def workload(config: EvalConfig) -> tuple[int, float, tuple[str, ...]]:
    """Items, tokens to compute, and remarks about what had to be guessed."""
    work, remarks = evaluation_work(config)
    return work.items, work.tokens, remarks


def evaluation_work(config: EvalConfig) -> tuple[Work, tuple[str, ...]]:
    """The same, with how many of the tokens predict something."""
    n_items, n_tokens, predicted, remarks = 0, 0.0, 0.0, []
    for task in config.tasks:
        size = TASK_SIZES.get(task) or _own_lines(task)
        if size is None:
            remarks.append(f"{task}: unknown size, left out")
            continue
        count, prefix, continuation = size
        count = count // 2 if config.fold != "all" else count
        count = min(count, config.limit) if config.limit else count
        prefix = 1 if config.context == "none" else prefix * (1 + config.num_fewshot)
        n_items += count
        n_tokens += count * (prefix + continuation)
        predicted += count * (continuation or prefix / 3)
    if config.split != "validation":
        remarks.append(f"the size of '{config.split}' is taken to be validation's")
    return Work(n_items, n_tokens, predicted), tuple(remarks)


def _own_lines(task: str) -> tuple[int, float, float] | None:
    """Items and mean tokens of a JSONL file, from its length in bytes."""
    try:
        with open(Path(task).expanduser(), "rb") as file:
            sizes = [len(line) for line in file if line.strip()]
    except OSError:
        return None
    return (len(sizes), sum(sizes) / len(sizes) / CHARACTERS_PER_TOKEN, 0.0) if sizes else None


def training_work(config: FinetuneConfig) -> Work:
    """Samples, tokens and steps of a fine-tune."""
    n_samples = config.steps * config.batch_samples
    own = _own_lines(config.data)
    length = min(own[1] if own else SAMPLE_TOKENS, config.max_tokens * 0.6)
    return Work(
        n_samples, n_samples * length, n_samples * length * RESPONSE_SHARE, config.steps
    )  # fmt: skip
