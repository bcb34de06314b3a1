"""The one call that turns task names into items.

A name is a built-in task's (see `builtin_tasks`), or the path of a user's own JSONL file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.data.builtin_tasks import TASKS, Task
from bidir_core.data.items import (
    Context,
    Fold,
    GivenItems,
    Item,
    ItemList,
    ItemSource,
    Sample,
    check_options,
    choose,
    fewshot_prefixes,
    fold_items,
    hash_doc,
    is_custom_task,
    repeat_contexts,
    with_context,
)
from bidir_core.data.source import Rows, json_lines


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
    task_names(tasks)
    check_options(limit, sample, fold, context, num_fewshot, repeat_prompt)
    items: list[Item] = []
    sources = [_open(task, split, data_source) for task in tasks]
    if items_file is not None:
        rows = GivenItems(items_file).choose(sources)
    else:
        rows = [choose(s, limit=limit, sample=sample, seed=seed) for s in sources]
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
        selected = with_context(selected, context, seed=seed)
        chosen_ids = set(chosen)
        selected = fold_items((i for i in selected if i.doc_id in chosen_ids), fold)
        if not selected:
            raise UserError(
                f"{source.name}: fold {fold!r} holds none of the {len(chosen)} chosen items; "
                f"raise the limit"
            )
        items += repeat_contexts(selected, repeat_prompt)
    return items


# What selects an evaluation's items, by the names of its settings.
SELECTION = [
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
]


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
    return repeat_contexts(source.take(doc_ids), repeat_prompt)


PUBLISHED_TASKS = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande")


# A user's own task: a JSONL file, one multiple-choice item a line.
#
#     {"contexts": ["The capital of France is"], "continuations": [" Paris", " Rome"], "gold": 0}
#     {"contexts": ["The cup was full, so Ann", "The cup was full, so Bob"],
#      "continuations": [" drank."], "gold": 1}
#
# `contexts` has one text, or one per choice; `continuations` one per choice, or (beside contexts per
# choice) one shared by all. They are scored exactly as written, so a continuation carries its leading
# space. Other keys are ignored, but for `pair_id`, a text: two files named `mine_first.jsonl` and
# `mine_last.jsonl` that ask about the same documents in two orders give the two items of a document
# the same one. The task is named by the file's stem.

MAX_LINE_BYTES = 4_000_000
"""A longer line is no item but a file in another format; no model's window holds a tenth of it."""


def absolute_task(task: str) -> str:
    """A `--tasks` entry that means the same in every folder: a file by its absolute path."""
    return os.path.abspath(os.path.expanduser(task)) if is_custom_task(task) else task


def read_custom_task(path: Path) -> tuple[Item, ...]:
    """The items of a user's file. Raises `UserError` naming the file and the line."""
    items: list[Item] = []
    for where, record in json_lines(path, MAX_LINE_BYTES):
        try:
            if not isinstance(record, dict):
                raise ValueError(f"is {_describe(record)}, not a JSON object")
            items.append(_item(path.stem, len(items), record))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
    if not items:
        raise UserError(f"{path} holds no item; it needs one JSON object a line")
    return tuple(items)


def _item(task: str, doc_id: int, record: dict[str, Any]) -> Item:
    """The item of one record; `ValueError` says what is wrong with it."""
    contexts = _texts(record, "contexts")
    continuations = _texts(record, "continuations")
    n_choices = max(len(contexts), len(continuations))
    if n_choices < 2:
        raise ValueError("has one choice; give at least two continuations, or two contexts")
    for name, texts in (("contexts", contexts), ("continuations", continuations)):
        if len(texts) not in (1, n_choices):
            raise ValueError(
                f"has {len(texts)} {name} for {n_choices} choices; give 1 or {n_choices}"
            )
    for i, text in enumerate(continuations):
        if not text.strip():  # no token to score, and nothing for acc_norm to divide by
            raise ValueError(f"continuation {i} is {text!r}; it needs some text")
    if len(continuations) == 1:
        continuations *= n_choices
    if len(set(zip(contexts * (n_choices // len(contexts)), continuations))) == 1:
        raise ValueError("all its choices are the same text")
    gold = _gold(record, n_choices)
    # The hash is of what is scored, so a reordered or annotated file keeps its hashes.
    doc = {"contexts": contexts, "continuations": continuations, "gold": gold}
    pair_id = None
    if record.get("pair_id") is not None:
        (pair_id,) = _texts({"pair_id": [record["pair_id"]]}, "pair_id")
    return Item(
        task, doc_id, hash_doc(doc), gold, tuple(contexts), tuple(continuations), pair_id=pair_id
    )


def _texts(record: dict[str, Any], key: str) -> list[str]:
    if key not in record:
        raise ValueError(f"has no {key!r}; needed are 'contexts', 'continuations' and 'gold'")
    texts = record[key]
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"{key!r} is {_describe(texts)}; it must be a non-empty list of texts")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{key}[{i}] is {_describe(text)}; it must be a text")
    return texts


def _gold(record: dict[str, Any], n_choices: int) -> int:
    if "gold" not in record:
        raise ValueError("has no 'gold'; needed are 'contexts', 'continuations' and 'gold'")
    gold = record["gold"]
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < n_choices:
        raise ValueError(
            f"'gold' is {json.dumps(gold)[:40]}; it must be the index of the right choice, "
            f"0 to {n_choices - 1}"
        )
    return gold


def _describe(value: Any) -> str:
    """What a JSON value is, in words, cut short."""
    if value == []:
        return "an empty list"
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return names.get(type(value), f"{json.dumps(value):.40}")
