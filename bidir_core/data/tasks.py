"""The one call that turns task names into items.

A name is a built-in task's (see `builtin_tasks` and `order_tasks`), or the path of a user's own
JSONL file (see `custom`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.data import sampling
from bidir_core.data.builtin_tasks import TASKS as BENCHMARKS
from bidir_core.data.builtin_tasks import Task
from bidir_core.data.custom import is_custom_task, read_custom_task
from bidir_core.data.given_items import GivenItems
from bidir_core.data.items import Item, ItemList, ItemSource
from bidir_core.data.order_tasks import ORDER_TASKS
from bidir_core.data.sampling import Context, Fold, Sample, fewshot_prefixes
from bidir_core.data.source import Rows

TASKS: dict[str, Task] = {**BENCHMARKS, **ORDER_TASKS}


@dataclass(frozen=True)
class _TaskRows:
    """A built-in task on one split: an `ItemSource`."""

    task: Task
    rows: Rows

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def family(self) -> str:
        return self.task.family or self.task.name

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, doc_ids: Sequence[int]) -> list[Item]:
        return [self.task.item(i, doc) for i, doc in zip(doc_ids, self.rows.take(doc_ids))]


def task_names(tasks: Sequence[str]) -> list[str]:
    """The names under which these tasks are recorded: a user's file by its stem.

    Needs no data, so that a typo is told before anything is fetched. `UserError` on an unknown
    task, a task given twice, a missing file, and a file named like a built-in task.
    """
    if not tasks:
        raise UserError(
            f"no task was given; tasks are {', '.join(TASKS)} or a path to a .jsonl file"
        )
    names: list[str] = []
    for task in tasks:
        name = task
        if is_custom_task(task) and task not in TASKS:
            name = Path(task).stem
            if not Path(task).is_file():
                raise UserError(
                    f"task file {task!r} does not exist or is not a file; give the path of a .jsonl "
                    "file with items"
                )
            if name in TASKS:
                raise UserError(
                    f"task file {task!r} is named like the built-in task {name!r}; rename the file"
                )
        elif task not in TASKS:
            close = get_close_matches(task, TASKS, n=1)
            raise UserError(
                f"unknown task {task!r}{f', did you mean {close[0]!r}' if close else ''}; use one "
                f"of {', '.join(TASKS)}, or the path of a .jsonl file"
            )
        if name in names:
            raise UserError(f"task {name!r} is given twice; name each task once")
        names.append(name)
    return names


def check_selection(
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    sample: str = "first",
    fold: str = "all",
    context: str = "full",
    num_fewshot: int = 0,
    repeat_prompt: int = 1,
) -> None:
    """Every check of the arguments that needs no data; `UserError` with the remedy."""
    task_names(tasks)
    sampling.check_options(limit, sample, fold, context)
    if num_fewshot < 0:
        raise UserError(f"num_fewshot is {num_fewshot}; it is a count of examples, 0 or more")
    if repeat_prompt < 1:
        raise UserError(
            f"repeat_prompt is {repeat_prompt}; it is how often the context is given, 1 or more"
        )


def _open(task: str, split: str, data_source: str) -> ItemSource:
    if task in TASKS:
        return _TaskRows(TASKS[task], TASKS[task].rows(split, data_source))
    return ItemList(Path(task).stem, read_custom_task(Path(task)))


def _fewshot_pool(source: ItemSource, data_source: str) -> ItemSource:
    """Where few-shot examples come from: the training split, as in lm-eval; a user's own file."""
    if not isinstance(source, _TaskRows):
        return source
    try:
        return _open(source.name, "train", data_source)
    except UserError as error:
        raise UserError(
            f"{source.name}: few-shot examples come from the 'train' split, which this data source "
            f"does not have; use --data-source hub, a folder that has it, or --num-fewshot 0 "
            f"({error})"
        ) from error


def load_items(
    tasks: Sequence[str],
    *,
    split: str = "validation",
    limit: int | None = None,
    sample: Sample = "first",
    seed: int = 0,
    fold: Fold = "all",
    num_fewshot: int = 0,
    context: Context = "full",
    repeat_prompt: int = 1,
    data_source: str = "auto",
    items_file: str | None = None,
) -> list[Item]:
    """The items to score, task by task in the order given, each task's in the order of its split.

    `limit` is per task and comes first (`sample` says how the limited items are drawn), `fold`
    then keeps a half of them. What an item looks like (its few-shot examples, its shuffled
    context) depends on the split and the seed alone, so two runs with other limits or folds still
    pair. A user's file is its own split: `split` does not apply to it.

    `items_file` names the items in place of a limit, and other tasks than theirs are left out.
    `repeat_prompt` gives each context so many times, joined by a blank line: all of what lm-eval
    calls the context, so with the few-shot examples in front, and another item's if shuffled. A
    chat template comes later and wraps the whole as one user's turn.

    Raises `UserError` on bad arguments, data that is not there, and a selection that is empty.
    """
    check_selection(
        tasks,
        limit=limit,
        sample=sample,
        fold=fold,
        context=context,
        num_fewshot=num_fewshot,
        repeat_prompt=repeat_prompt,
    )
    items: list[Item] = []
    sources = [_open(task, split, data_source) for task in tasks]
    if items_file is not None:
        rows = GivenItems(items_file).choose(sources)
    else:
        rows = [sampling.choose(s, limit=limit, sample=sample, seed=seed) for s in sources]
    for source, chosen in zip(sources, rows):
        if items_file is not None and not chosen:
            continue
        needed: Sequence[int] = chosen
        if context == "shuffled":  # an item's new context may come from anywhere in the split
            needed = range(len(source))
        elif num_fewshot:  # its examples come from a random stream over the rows before it
            needed = range(chosen[-1] + 1)
        selected = source.take(needed)
        if num_fewshot:
            pool = _fewshot_pool(source, data_source)
            headroom = not (isinstance(source, _TaskRows) and split == "test")
            prefixes = fewshot_prefixes(pool, selected, num_fewshot, seed=seed, headroom=headroom)
            selected = [
                replace(item, contexts=tuple(prefix + text for text in item.contexts))
                for item, prefix in zip(selected, prefixes)
            ]
        selected = sampling.with_context(selected, context, seed=seed)
        chosen_ids = set(chosen)
        selected = sampling.fold_items((i for i in selected if i.doc_id in chosen_ids), fold)
        if not selected:
            raise UserError(
                f"{source.name}: fold {fold!r} holds none of the {len(chosen)} chosen items; "
                f"raise the limit"
            )
        items += sampling.repeat_contexts(selected, repeat_prompt)
    return items


# What selects an evaluation's items, by the names of its settings.
SELECTION = (
    "tasks",
    "split",
    "limit",
    "sample",
    "seed",
    "fold",
    "num_fewshot",
    "context",
    "repeat_prompt",
    "data_source",
    "items_file",
)


def load_selected(settings: Mapping[str, Any]) -> list[Item]:
    """The items that settings, given or recorded, select; those that are null are the usual ones."""
    selection = {name: settings.get(name) for name in SELECTION}
    return load_items(**{name: value for name, value in selection.items() if value is not None})


def load_items_by_id(
    task: str,
    doc_ids: Sequence[int],
    *,
    split: str = "validation",
    repeat_prompt: int = 1,
    data_source: str = "auto",
) -> list[Item]:
    """The zero-shot items of these rows: how readers of a compact run get its texts back.

    `repeat_prompt` as in `load_items`.
    Compare each `doc_hash` with the record's: rows only say where to look.
    """
    task_names([task])
    source = _open(task, split, data_source)
    outside = [i for i in doc_ids if not 0 <= i < len(source)]
    if outside:
        raise UserError(
            f"{source.name}: row {outside[0]} is outside the {len(source)} rows of its split"
        )
    return sampling.repeat_contexts(source.take(doc_ids), repeat_prompt)


PUBLISHED_TASKS = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande")
