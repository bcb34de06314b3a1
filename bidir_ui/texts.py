"""Texts of items whose run kept none (``--compact``), remembered while the app runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from bidir_core import item_texts, tasks

MISSING = (
    "This run kept no texts (--compact), and the evaluation data are not in this machine's cache. "
    "`python -m bidir_core assets fetch eval-data` brings them; nothing is fetched from here."
)


# Asked before the cache, so that "not here" is not remembered.
def texts(task: str, rows: Sequence[int], split: str = "validation") -> item_texts.Found:
    """doc_id -> (doc_hash, texts) of built-in tasks; empty where the data are not here."""
    if task not in tasks.TASKS or not len(rows) or not item_texts.data_are_here():
        return {}
    return _by_row(task, tuple(int(row) for row in rows), split)


@st.cache_resource(max_entries=12, show_spinner=False)
def _by_row(task: str, rows: tuple[int, ...], split: str) -> item_texts.Found:
    return item_texts.load(task, rows, split)


def fill(record: dict[str, Any], split: str = "validation") -> bool:
    """Put the texts into a record that has none; False if they cannot be had or do not match."""
    if record["contexts"] is not None and record["continuations"] is not None:
        return True
    return item_texts.fill(record, texts(record["task"], [record["doc_id"]], split))
