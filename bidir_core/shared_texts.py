"""A sweep's texts, stored once: each point keeps its scores only, and readers join the two.

    lab/<sweep>/texts.parquet             texts, tokens, hash, gold of every item
    lab/<sweep>/points/<slug>/items.parquet   what this regime made of them

A point's ``config.json`` names its texts under ``texts``. Rows belong together by (task, doc_id);
a finished point has them in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bidir_core.atomic import replacing
from bidir_core.errors import UserError
from bidir_core.records import RECORD_FIELDS, SCHEMA, read_one, read_parquet, write_parquet

SLIM_FIELDS = (
    "task", "doc_id", "ll", "pred", "pred_norm", "correct", "correct_norm", "error",
)  # fmt: skip
KEYS = ("task", "doc_id")
FIRST_TEXTS = "texts.parquet"
LEFT_OUT = ("token_ll", "margin")  # the first is large, the second follows from ll and gold
SHARED_FIELDS = tuple(n for n in RECORD_FIELDS if n not in (*SLIM_FIELDS[2:], *LEFT_OUT))


def texts_file(point: Path, name: object) -> Path | None:
    """Where the texts of a sweep's point are; None for a run that has its own."""
    if not isinstance(name, str) or Path(name).name != name or point.parent.name != "points":
        return None
    return point.parent.parent / name


def write_texts(table: pa.Table, path: Path) -> None:
    """Keep the shared part of full records.

    Beside the sweep's ``texts.parquet``, another prompt's texts leave out what is the same there.
    """
    table = table.select(SHARED_FIELDS)
    first = path.with_name(FIRST_TEXTS)
    if path.name != FIRST_TEXTS and first.exists():
        there = read_parquet(first, SHARED_FIELDS)
        if all(table.column(key).equals(there.column(key)) for key in KEYS):
            same = [n for n in SHARED_FIELDS if table.column(n).equals(there.column(n))]
            table = table.drop_columns([name for name in same if name not in KEYS])
    write_parquet(table, path)


def write_slim(table: pa.Table, path: Path) -> None:
    """Write a point's ``items.parquet``: a few bytes an item beside its log-likelihoods."""
    with replacing(path) as temporary:
        pq.write_table(
            table.select(SLIM_FIELDS),
            temporary,
            compression="zstd",
            compression_level=22,
            use_dictionary=["task", "error", "pred", "pred_norm"],
            column_encoding={
                "ll.list.element": "BYTE_STREAM_SPLIT",
                "doc_id": "DELTA_BINARY_PACKED",
            },
            store_schema=False,  # Parquet's own types say the same, in less
            write_statistics=["task", "doc_id"],
        )


def joined(items: pa.Table, texts: Path, columns: Sequence[str]) -> pa.Table:
    """Records' ``columns`` from a point's own table and the sweep's texts."""
    shared = [name for name in columns if name in SHARED_FIELDS and name not in KEYS]
    if "margin" in columns and "gold" not in shared:
        shared.append("gold")
    if shared:
        found = _read_texts(texts, (*KEYS, *shared))
        rows = _rows(items, found)
        if rows is not None:
            found = found.take(rows)
        for name in shared:
            items = _set(items, name, found.column(name))
    if "margin" in columns:
        items = _set(items, "margin", _margins(items))
    for name in columns:
        if name not in items.column_names:
            items = _set(items, name, pa.nulls(items.num_rows, type=SCHEMA.field(name).type))
    return items.select(list(columns))


def joined_one(items: Path, texts: Path, task: str, doc_id: int) -> dict[str, Any] | None:
    """One whole record, reading only the parts of the files that hold it."""
    record, shared = read_one(items, task, doc_id), read_one(texts, task, doc_id)
    if record is None or shared is None:
        return None
    if elsewhere := _left_out(texts):
        first = read_one(texts.with_name(FIRST_TEXTS), task, doc_id) or {}
        shared.update({name: first.get(name) for name in elsewhere})
    record.update({name: shared[name] for name in SHARED_FIELDS})
    record["margin"] = _margin(record["ll"], record["gold"])
    return record


def _left_out(texts: Path) -> list[str]:
    """What another prompt's texts leave to the sweep's first ones."""
    if texts.name == FIRST_TEXTS:
        return []
    there = pq.read_schema(texts).names
    return [name for name in SHARED_FIELDS if name not in there]


def _read_texts(texts: Path, columns: Sequence[str]) -> pa.Table:
    """Shared columns, and from the sweep's first texts those that are the same there."""
    found = read_parquet(texts, columns)
    elsewhere = [name for name in _left_out(texts) if name in columns]
    if elsewhere:  # rows are the same too: nothing is left out otherwise
        first = read_parquet(texts.with_name(FIRST_TEXTS), elsewhere)
        for name in elsewhere:
            found = _set(found, name, first.column(name))
    return found


def _set(table: pa.Table, name: str, column: Any) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def _rows(items: pa.Table, texts: pa.Table) -> pa.Array | None:
    """Which row of ``texts`` each item has; None if they stand side by side already."""
    if items.num_rows == texts.num_rows and all(
        items.column(k).equals(texts.column(k)) for k in KEYS
    ):
        return None
    place = {key: row for row, key in enumerate(_keys(texts))}
    try:
        return pa.array([place[key] for key in _keys(items)], type=pa.int64())
    except KeyError as error:
        raise UserError(f"the sweep's texts lack the item {error.args[0]}") from None


def _keys(table: pa.Table) -> list[tuple[str, int]]:
    columns = [table.column(key).to_pylist() for key in KEYS]
    return list(zip(*columns, strict=True))


def _margins(table: pa.Table) -> pa.Array:
    pairs = zip(table.column("ll").to_pylist(), table.column("gold").to_pylist(), strict=True)
    return pa.array([_margin(ll, gold) for ll, gold in pairs], type=pa.float32())


def _margin(ll: Sequence[float] | None, gold: int) -> float | None:
    """ll[gold] minus the best other."""
    if ll is None or len(ll) < 2:
        return None
    return ll[gold] - max(value for choice, value in enumerate(ll) if choice != gold)
