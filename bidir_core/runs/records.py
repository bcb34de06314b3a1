"""One scored item: the record's fields, its arrow schema, and reading and writing many of them.

While a run goes on its records are lines of ``items.jsonl``; when it is done they are one table,
``items.parquet``. A record of a ``compact`` run has null texts, token ids, offsets and token_ll.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged, one_line, replacing
from bidir_core.data.items import choice_lengths
from bidir_core.runs.read import checked_table, opened_parquet, read_lines

_INTS = pa.list_(pa.int32())
_INT_LISTS = pa.list_(_INTS)
_OFFSETS = pa.list_(pa.list_(_INTS))  # [context or choice][token] -> [start, end) in characters

# float32 holds log-likelihoods to about 1e-5 nats, far below what batch composition moves.
SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("doc_id", pa.int32()),
        ("doc_hash", pa.string()),
        ("gold", pa.int16()),
        ("contexts", pa.list_(pa.string())),
        ("continuations", pa.list_(pa.string())),
        ("ll", pa.list_(pa.float32())),
        ("n_prefix_tokens", _INTS),
        ("n_continuation_tokens", _INTS),
        ("prefix_token_ids", _INT_LISTS),
        ("prefix_token_offsets", _OFFSETS),
        ("continuation_token_ids", _INT_LISTS),
        ("continuation_token_offsets", _OFFSETS),
        ("token_ll", pa.list_(pa.list_(pa.float32()))),
        ("pred", pa.int16()),
        ("pred_norm", pa.int16()),
        ("correct", pa.bool_()),
        ("correct_norm", pa.bool_()),
        ("margin", pa.float32()),
        ("error", pa.string()),
        ("prompt_group", pa.string()),
        ("pair_id", pa.string()),
    ]
)

RECORD_FIELDS: tuple[str, ...] = tuple(SCHEMA.names)

HEAVY_FIELDS: tuple[str, ...] = (
    "contexts",
    "continuations",
    "prefix_token_ids",
    "prefix_token_offsets",
    "continuation_token_ids",
    "continuation_token_offsets",
    "token_ll",
)

LIGHT_FIELDS: tuple[str, ...] = tuple(name for name in RECORD_FIELDS if name not in HEAVY_FIELDS)
Key = tuple[str, int]  # (task, doc_id)


def _leaf(field: pa.Field) -> str:
    """What Parquet calls the values of a field."""
    path, field_type = field.name, field.type
    while pa.types.is_list(field_type):
        path, field_type = f"{path}.list.element", field_type.value_type
    return path


_LEAVES = tuple(_leaf(field) for field in SCHEMA)
_KNOWN = frozenset(RECORD_FIELDS)
_LINES = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_INFINITE_LINES = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def unusable(ll: Sequence[float]) -> int | None:
    """The choice whose log-likelihood leaves an item without a prediction; None if it has one.

    -inf is a choice of no probability, which another can beat; NaN and inf are no log-likelihoods.
    """
    for choice, value in enumerate(ll):
        if math.isnan(value) or value == math.inf:
            return choice
    return 0 if max(ll) == -math.inf else None


def make_record(
    *,
    task: str,
    doc_id: int,
    doc_hash: str,
    gold: int,
    contexts: Sequence[str],
    continuations: Sequence[str],
    n_prefix_tokens: Sequence[int],
    n_continuation_tokens: Sequence[int],
    ll: Sequence[float] | None,
    token_ll: Sequence[Sequence[float]] | None = None,
    prefix_token_ids: Sequence[Sequence[int]] | None = None,
    prefix_token_offsets: Sequence[Sequence[Sequence[int]]] | None = None,
    continuation_token_ids: Sequence[Sequence[int]] | None = None,
    continuation_token_offsets: Sequence[Sequence[Sequence[int]]] | None = None,
    error: str | None = None,
    prompt_group: str = "",
    pair_id: str | None = None,
    compact: bool = False,
) -> dict[str, Any]:
    """Build a record from an item and its log-likelihoods; predictions follow lm-eval.

    ``pred`` is the argmax of ``ll``; ``pred_norm`` of ``ll`` divided by the choice's characters
    without the leading space (lm-eval ``acc_norm``), null where all choices share one
    continuation (winogrande: lm-eval has no acc_norm there). ``prompt_group`` is what kind of
    document it is within its task, ``pair_id`` the document that it shares with other items. An
    ``ll`` that is :func:`unusable` becomes an item error; a choice at -inf merely loses.
    """
    if error is None and ll is None:
        raise ValueError(f"{task}/{doc_id}: a record needs ll or an error")
    if error is None and ll is not None and (bad := unusable(ll)) is not None:
        error = f"the log-likelihood of choice {bad} is {ll[bad]}"
    pred = pred_norm = margin = None
    scores: list[float] | None = None
    lengths = choice_lengths(continuations)
    if error is None and ll is not None:
        # Rounded first, so that the stored numbers and the stored prediction cannot disagree.
        scores = np.asarray(ll, dtype=np.float32).tolist()
        pred = scores.index(max(scores))
        margin = _margin(scores, gold)
        if lengths:
            normed = [score / length for score, length in zip(scores, lengths, strict=True)]
            pred_norm = normed.index(max(normed))
    heavy: dict[str, Any] = {
        "contexts": list(contexts),
        "continuations": list(continuations),
        "prefix_token_ids": prefix_token_ids,
        "prefix_token_offsets": prefix_token_offsets,
        "continuation_token_ids": continuation_token_ids,
        "continuation_token_offsets": continuation_token_offsets,
        "token_ll": token_ll if error is None else None,
    }
    return {
        "task": task,
        "doc_id": int(doc_id),
        "doc_hash": doc_hash,
        "gold": int(gold),
        "ll": scores,
        "n_prefix_tokens": [int(n) for n in n_prefix_tokens],
        "n_continuation_tokens": [int(n) for n in n_continuation_tokens],
        **(dict.fromkeys(HEAVY_FIELDS) if compact else heavy),
        "pred": pred,
        "pred_norm": pred_norm,
        "correct": pred == gold,
        "correct_norm": pred_norm == gold if lengths else None,
        "margin": margin,
        "error": error,
        "prompt_group": prompt_group,
        "pair_id": pair_id,
    }


def to_line(record: Mapping[str, Any]) -> bytes:
    """One line of ``items.jsonl``. Unknown fields and NaN raise ValueError: they are bugs."""
    if unknown := record.keys() - _KNOWN:
        raise ValueError(f"not fields of a record: {sorted(unknown)}")
    # A choice at -inf makes its margin infinite too; strict JSON has no name for either.
    infinite = record.get("ll") is not None and -math.inf in record["ll"]
    lines = _INFINITE_LINES if infinite else _LINES
    return lines.encode(record).encode("utf-8", errors="surrogatepass") + b"\n"


def read_jsonl(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The readable records from the start of ``items.jsonl``, and how many bytes they take.

    Reading stops at the first torn line, which is where a resumed run cuts the file and goes on.
    A record written twice counts once (the first).
    """
    lines, n_bytes = read_lines(path)
    records: dict[Key, dict[str, Any]] = {}
    for record in lines:
        task, doc_id = record.get("task"), record.get("doc_id")
        if not isinstance(task, str) or not isinstance(doc_id, int) or not 0 <= doc_id < 2**31:
            raise Damaged(f"{path.name} holds a line that is no record")
        records.setdefault((task, doc_id), record)
    return list(records.values()), n_bytes


def to_table(records: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Records as an arrow table; missing fields are null. Damaged for values of other types."""
    rows = list(records)
    try:
        columns = [pa.array([r.get(field.name) for r in rows], type=field.type) for field in SCHEMA]
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise Damaged(f"a record does not hold what it should: {one_line(error)}") from error
    return checked_table(pa.Table.from_arrays(columns, schema=SCHEMA), SCHEMA)


def write_parquet(table: pa.Table, path: Path, *, store_schema: bool = True) -> None:
    """Write ``items.parquet`` atomically: small file, and one item is quick to read.

    ``store_schema``: also write arrow's schema, which repeats Parquet's own types.
    """
    heavy = [table.column(name) for name in HEAVY_FIELDS if name in table.column_names]
    compact = table.num_rows > 0 and all(column.null_count == table.num_rows for column in heavy)
    floats = ["ll.list.element", "margin", "token_ll.list.element.list.element"]
    with replacing(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            # Hashes are random digits: more effort does not compress them further.
            compression_level={
                **dict.fromkeys(_LEAVES, 15 if compact else 19),
                "doc_hash": 1,
            },
            # One item's texts cost one row group to read; without texts one group is smallest.
            row_group_size=65536 if compact else 2048,
            use_dictionary=["task", "error", "prompt_group", "pred", "pred_norm"],
            column_encoding={
                **dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
                # Lengths are stored apart, which leaves four bits a digit for a hash.
                "doc_hash": "DELTA_LENGTH_BYTE_ARRAY",
                "doc_id": "DELTA_BINARY_PACKED",
                "pair_id": "DELTA_BYTE_ARRAY",
            },
            write_statistics=["task", "doc_id"],
            store_schema=store_schema,
        )


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """``items.parquet`` as an arrow table, these columns only (None: all).

    A field that a run of an older version does not have is null.
    """
    names = list(RECORD_FIELDS if columns is None else columns)
    with opened_parquet(path) as file:
        stored = set(file.schema_arrow.names)
        table = file.read(columns=[name for name in names if name in stored])
    table = checked_table(table, SCHEMA)
    for name in names:
        if name not in stored:
            nulls = pa.nulls(table.num_rows, type=SCHEMA.field(name).type)
            table = table.append_column(SCHEMA.field(name), nulls)
    return table.select(names)


def read_one(path: Path, task: str, doc_id: int) -> dict[str, Any] | None:
    """One record of ``items.parquet``, reading only the row group that holds it."""
    with opened_parquet(path) as file:
        keys = checked_table(file.read(columns=["task", "doc_id"]), SCHEMA)
        rows = np.flatnonzero(
            (keys.column("doc_id").to_numpy() == doc_id)
            & (keys.column("task").to_numpy(zero_copy_only=False) == task)
        )
        if not len(rows):
            return None
        row = int(rows[0])
        for group in range(file.num_row_groups):
            n_rows = file.metadata.row_group(group).num_rows
            if row < n_rows:
                stored = [name for name in file.schema_arrow.names if name in _KNOWN]
                one_row = file.read_row_group(group, columns=stored).slice(row, 1)
                record = checked_table(one_row, SCHEMA).to_pylist()[0]
                return {name: record.get(name) for name in RECORD_FIELDS}
            row -= n_rows
    return None


# A sweep's texts, stored once: each point keeps its scores only, and readers join the two.

KEYS = ("task", "doc_id")
SLIM_FIELDS = (*KEYS, "ll", "pred", "pred_norm", "correct", "correct_norm", "error")
SCORES = (*SLIM_FIELDS, "token_ll")  # a point has none of the last, which is large
FIRST_TEXTS = "texts.parquet"
# The margin follows from ll and gold.
SHARED_FIELDS = tuple(n for n in RECORD_FIELDS if n in KEYS or n not in (*SCORES, "margin"))


# Beside the runs: what follows from data and tokenizer, once for all runs that share them.
#
#     runs/items/<data>.parquet               hashes, gold answers, groups, texts
#     runs/items/<data>.<tokenizer>.parquet   tokens and their counts; the rest is in the first
#
# <data> and <tokenizer> are the first digits of the two fingerprints. A run that uses them says
# "texts": "<data>.<tokenizer>.parquet" and "texts_in": "items" in its config.json.
SHARED_FOLDER = "items"
FINGERPRINT_DIGITS = 16
TOKEN_COUNTS = ("n_prefix_tokens", "n_continuation_tokens")
TOKENS = tuple(n for n in HEAVY_FIELDS if n.endswith(("_token_ids", "_token_offsets")))


def texts_file(run: Path, name: object, folder: object = None) -> Path | None:
    """Where what a run shares with others is; None for a run that has everything itself."""
    if not isinstance(name, str) or Path(name).name != name:
        return None
    is_point = run.parent.name == "points"
    if folder == SHARED_FOLDER:
        return run.parents[3 if is_point else 1] / SHARED_FOLDER / name
    return run.parent.parent / name if is_point else None


def shared_files(run: Path, name: object, folder: object = None) -> list[Path]:
    """All files outside of its folder that hold a part of a run's records."""
    texts = texts_file(run, name, folder)
    return [] if texts is None else sorted({texts, _first_texts_of(texts)})


def share(table: pa.Table, root: Path, data_fingerprint: str, tokenizer_fingerprint: str) -> str:
    """Put what these records share with others under ``root``; the file's name for config.json.

    A file that is there with other content (another prompt format, say) gets a number behind it.
    """
    kept = [n for n in SHARED_FIELDS if table.column(n).null_count < table.num_rows]
    data = table.select([n for n in kept if n not in (*TOKEN_COUNTS, *TOKENS)])
    tokens = table.select([*KEYS, *TOKEN_COUNTS, *(n for n in kept if n in TOKENS)])
    data_stem = _stored_stem(data, root / SHARED_FOLDER, data_fingerprint[:FINGERPRINT_DIGITS])
    stem = f"{data_stem}.{tokenizer_fingerprint[:FINGERPRINT_DIGITS]}"
    return _stored_stem(tokens, root / SHARED_FOLDER, stem) + ".parquet"


def _stored_stem(table: pa.Table, folder: Path, stem: str) -> str:
    """The stem, or the stem with a number, of the file that holds exactly this table."""
    folder.mkdir(exist_ok=True)
    for name in (stem, *(f"{stem}-{n}" for n in range(2, 100))):
        path = folder / f"{name}.parquet"
        if not path.exists():
            write_parquet(table, path)
            return name
        if read_parquet(path, table.column_names).equals(table):
            return name
    raise UserError(f"{folder}: a hundred files for {stem}; nothing was shared")


def _first_texts_of(texts: Path) -> Path:
    """The file that holds what ``texts`` leaves out; itself if it leaves nothing out."""
    if texts.parent.name == SHARED_FOLDER:
        return texts.with_name(texts.name.split(".")[0] + ".parquet")
    return texts.with_name(FIRST_TEXTS)


def write_texts(table: pa.Table, path: Path) -> None:
    """Keep the shared part of full records.

    Beside the sweep's ``texts.parquet``, another prompt's texts leave out what is the same there.
    """
    table = table.select(SHARED_FIELDS)
    first_path = path.with_name(FIRST_TEXTS)
    if path.name != FIRST_TEXTS and first_path.exists():
        first_table = read_parquet(first_path, SHARED_FIELDS)
        if all(table.column(key).equals(first_table.column(key)) for key in KEYS):
            repeated = [n for n in SHARED_FIELDS if table.column(n).equals(first_table.column(n))]
            table = table.drop_columns([name for name in repeated if name not in KEYS])
    write_parquet(table, path)


def write_slim(table: pa.Table, path: Path) -> None:
    """Write a point's ``items.parquet``: a few bytes an item beside its log-likelihoods."""
    write_parquet(table.select(SLIM_FIELDS), path, store_schema=False)


def joined(items: pa.Table, texts: Path, columns: Sequence[str]) -> pa.Table:
    """Records' ``columns`` from a point's own table and the sweep's texts."""
    shared = [name for name in columns if name in SHARED_FIELDS and name not in KEYS]
    if "margin" in columns and "gold" not in shared:
        shared.append("gold")
    if shared:
        text_table = _read_texts(texts, texts.stat().st_mtime_ns, (*KEYS, *shared))
        rows = _matching_rows(items, text_table)
        if rows is not None:
            text_table = text_table.take(rows)
        for name in shared:
            items = _set_column(items, name, text_table.column(name))
    if "margin" in columns:
        pairs = zip(items.column("ll").to_pylist(), items.column("gold").to_pylist(), strict=True)
        margins = pa.array([_margin(ll, gold) for ll, gold in pairs], type=pa.float32())
        items = _set_column(items, "margin", margins)
    for name in columns:
        if name not in items.column_names:
            items = _set_column(items, name, pa.nulls(items.num_rows, type=SCHEMA.field(name).type))
    return items.select(list(columns))


def joined_one(items: Path, texts: Path, task: str, doc_id: int) -> dict[str, Any] | None:
    """One whole record, reading only the parts of the files that hold it."""
    record, shared = read_one(items, task, doc_id), read_one(texts, task, doc_id)
    if record is None or shared is None:
        return None
    if left_out := _left_out(texts):
        first_record = read_one(_first_texts_of(texts), task, doc_id) or {}
        shared.update({name: first_record.get(name) for name in left_out})
    record.update({name: shared[name] for name in SHARED_FIELDS})
    record["margin"] = _margin(record["ll"], record["gold"])
    return record


def _left_out(texts: Path) -> list[str]:
    """The shared columns that ``texts`` omits because the sweep's first texts have them."""
    if texts == _first_texts_of(texts):
        return []
    with opened_parquet(texts) as file:
        stored = file.schema_arrow.names
    return [name for name in SHARED_FIELDS if name not in stored]


@lru_cache(maxsize=4)  # the points of a sweep, read one after the other, share them
def _read_texts(texts: Path, _modified: int, columns: tuple[str, ...]) -> pa.Table:
    """Shared columns, those that ``texts`` leaves out from the file that has them."""
    table = read_parquet(texts, columns)
    left_out = [name for name in _left_out(texts) if name in columns]
    if left_out:  # rows are the same too: nothing is left out otherwise
        first_table = read_parquet(_first_texts_of(texts), left_out)
        for name in left_out:
            table = _set_column(table, name, first_table.column(name))
    return table


def _set_column(table: pa.Table, name: str, column: Any) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def _matching_rows(items: pa.Table, texts: pa.Table) -> pa.Array | None:
    """Which row of ``texts`` each item has; None if they stand side by side already."""
    if items.num_rows == texts.num_rows and all(
        items.column(k).equals(texts.column(k)) for k in KEYS
    ):
        return None
    row_of = {key: row for row, key in enumerate(_keys(texts))}
    try:
        return pa.array([row_of[key] for key in _keys(items)], type=pa.int64())
    except KeyError as error:
        raise UserError(f"the sweep's texts lack the item {error.args[0]}") from None


def _keys(table: pa.Table) -> list[tuple[str, int]]:
    columns = [table.column(key).to_pylist() for key in KEYS]
    return list(zip(*columns, strict=True))


def _margin(ll: Sequence[float] | None, gold: int) -> float | None:
    """ll[gold] minus the best other."""
    if ll is None or len(ll) < 2:
        return None
    return ll[gold] - max(value for choice, value in enumerate(ll) if choice != gold)
