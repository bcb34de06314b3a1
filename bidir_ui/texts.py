"""Texts of items whose run kept none (``--compact``): joined back from the data, if it is here.

Nothing is ever fetched for this; without the data the caller says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from bidir_core import assets, tasks
from bidir_core.errors import UserError

Texts = tuple[tuple[str, ...], tuple[str, ...]]  # contexts, continuations
DATA = "eval-data"
MISSING = (
    "This run kept no texts (--compact), and the evaluation data are not in this machine's cache. "
    "`python -m bidir_core assets fetch eval-data` brings them; nothing is fetched from here."
)


def data_are_here() -> bool:
    """Whether the evaluation data are in the cache, ready to read."""
    return assets.state(DATA) == "ready"


@st.cache_resource(max_entries=12, show_spinner=False)
def _by_row(task: str, rows: tuple[int, ...], split: str) -> dict[int, tuple[str, Texts]]:
    found = tasks.load_items_by_id(task, rows, split=split)
    return {item.doc_id: (item.doc_hash, (item.contexts, item.continuations)) for item in found}


def texts(
    task: str, rows: Sequence[int], split: str = "validation"
) -> dict[int, tuple[str, Texts]]:
    """doc_id -> (doc_hash, texts) of built-in tasks; empty where the data are not here."""
    if task not in tasks.TASKS or not len(rows) or not data_are_here():
        return {}
    try:
        return _by_row(task, tuple(int(row) for row in rows), split)
    except (UserError, OSError):
        return {}


def fill(record: dict[str, Any], split: str = "validation") -> bool:
    """Put the texts into a record that has none; False if they cannot be had or do not match."""
    if record["contexts"] is not None and record["continuations"] is not None:
        return True
    found = texts(record["task"], [record["doc_id"]], split).get(record["doc_id"])
    if found is None or found[0] != record["doc_hash"]:
        return False
    record["contexts"], record["continuations"] = list(found[1][0]), list(found[1][1])
    return True
