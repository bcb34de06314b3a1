"""A user's own task: a JSONL file, one multiple-choice item a line.

```
{"contexts": ["The capital of France is"], "continuations": [" Paris", " Rome"], "gold": 0}
{"contexts": ["The cup was full, so Ann", "The cup was full, so Bob"], "continuations": [" drank."], "gold": 1}
```

`contexts` has one text, or one per choice; `continuations` one per choice, or (beside contexts
per choice) one shared by all. They are scored exactly as written, so a continuation carries its
leading space. Other keys are ignored, but for `pair_id`, a text: two files named `mine_first.jsonl`
and `mine_last.jsonl` that ask about the same documents in two orders give the two items of a
document the same one. The task is named by the file's stem.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.data.items import Item, hash_doc
from bidir_core.data.reading import json_lines

MAX_LINE_BYTES = 4_000_000
"""A longer line is no item but a file in another format; no model's window holds a tenth of it."""


def is_custom_task(task: str) -> bool:
    """Whether a `--tasks` entry names a file rather than a built-in task."""
    return task.endswith(".jsonl") or "/" in task or "\\" in task


def absolute_task(task: str) -> str:
    """A `--tasks` entry that means the same in every folder: a file by its absolute path."""
    return os.path.abspath(os.path.expanduser(task)) if is_custom_task(task) else task


def name_of(task: str) -> str:
    """The name under which a task's items are recorded: a file by its stem."""
    return Path(task).stem if is_custom_task(task) else task


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
