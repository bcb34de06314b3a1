"""How much there is to compute: counted from a configuration, before any item is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bidir_core.config import EvalConfig
from bidir_core.estimate_cost import Work

if TYPE_CHECKING:
    from bidir_core.training.config import FinetuneConfig


class Size(NamedTuple):
    """Validation items in a row that are alike, and what one of them has on average, in tokens."""

    items: int
    context: float  # one of its contexts, or all of them where they differ
    continuations: float  # all together: what is predicted
    computed: float  # what goes through the model: what choices share goes once


# With SmolLM2's tokenizer, counted from evaluations; a limit takes the first items. HellaSwag's
# first ones are from one source, whose texts are short.
TASK_SIZES: dict[str, tuple[Size, ...]] = {
    "hellaswag": (Size(3_243, 29, 55, 79), Size(6_799, 59, 149, 203)),
    "piqa": (Size(1_838, 13, 46, 49),),
    "arc_easy": (Size(570, 27, 17, 39),),
    "arc_challenge": (Size(299, 31, 23, 47),),
    "winogrande": (Size(1_267, 34, 11, 43),),
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
        sizes = TASK_SIZES.get(task) or _own_lines(task)
        if sizes is None:
            remarks.append(f"{task}: unknown size, left out")
            continue
        left = config.limit or sum(size.items for size in sizes)
        for size in sizes:
            count = min(left, size.items // 2 if config.fold != "all" else size.items)
            left -= count
            more = (
                1 - size.context if config.context == "none" else size.context * config.num_fewshot
            )
            n_items += count
            n_tokens += count * (size.computed + more)
            predicted += count * size.continuations
    if config.split != "validation":
        remarks.append(f"the size of '{config.split}' is taken to be validation's")
    return Work(n_items, n_tokens, predicted), tuple(remarks)


def _own_lines(task: str) -> tuple[Size, ...] | None:
    """Items and mean tokens of a JSONL file, from its length in bytes."""
    try:
        with open(Path(task).expanduser(), "rb") as file:
            lengths = [len(line) for line in file if line.strip()]
    except OSError:
        return None
    if not lengths:
        return None
    tokens = sum(lengths) / len(lengths) / CHARACTERS_PER_TOKEN
    return (Size(len(lengths), tokens, tokens / 3, tokens),)


def training_work(config: FinetuneConfig) -> Work:
    """Samples, tokens and steps of a fine-tune."""
    n_samples = config.steps * config.batch_samples
    own = _own_lines(config.data)
    length = min(own[0].computed if own else SAMPLE_TOKENS, config.max_tokens * 0.6)
    return Work(
        n_samples, n_samples * length, n_samples * length * RESPONSE_SHARE, config.steps
    )  # fmt: skip
