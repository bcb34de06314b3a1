"""Texts of items whose run kept none (``--compact``), joined back from the data; and text made
safe to look at.

Nothing is ever fetched for this; without the data the caller says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.data import assets, tasks

Texts = tuple[tuple[str, ...], tuple[str, ...]]  # contexts, continuations
Found = Mapping[int, tuple[str, Texts]]  # doc_id -> (doc_hash, texts)
DATA = "eval-data"
# Controls, bidirectional overrides, zero-width and other invisible characters would let a text
# hide or reorder what the reader sees; they are shown by their code instead.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f\ud800-\udfff]"
)


def visible(text: object) -> str:
    """The text with its invisible characters spelled out, e.g. ``‹U+202E›``."""
    return _INVISIBLE.sub(lambda match: f"‹U+{ord(match[0]):04X}›", str(text))


def data_are_here() -> bool:
    """Whether the evaluation data are in the cache, ready to read."""
    return assets.state(DATA) == "ready"


def load(
    task: str, rows: Sequence[int], split: str = "validation", repeat_prompt: int = 1
) -> Found:
    """The texts of these rows of a built-in task; empty where the data are not here.

    ``repeat_prompt``: how often the run gave each context.
    """
    if task not in tasks.TASKS or not len(rows) or not data_are_here():
        return {}
    try:
        items = tasks.load_items_by_id(
            task, [int(row) for row in rows], split=split, repeat_prompt=repeat_prompt
        )
    except (UserError, OSError):
        return {}
    return {item.doc_id: (item.doc_hash, (item.contexts, item.continuations)) for item in items}


def fill(record: dict[str, Any], found: Found) -> bool:
    """Put the texts into a record that has none; False if they cannot be had or do not match."""
    if record["contexts"] is not None and record["continuations"] is not None:
        return True
    hit = found.get(record["doc_id"])
    if hit is None or hit[0] != record["doc_hash"]:
        return False
    record["contexts"], record["continuations"] = list(hit[1][0]), list(hit[1][1])
    return True


def distinct_ends(contexts: Sequence[str]) -> list[str]:
    """What tells contexts apart that differ in one place (winogrande's two names)."""
    start = 0
    shortest = min(map(len, contexts))
    while start < shortest and len({text[start] for text in contexts}) == 1:
        start += 1
    start = max(contexts[0].rfind(" ", 0, start + 1), 0)
    return ["… " + text[start:].strip() for text in contexts]
