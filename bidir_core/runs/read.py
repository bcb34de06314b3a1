"""The only place where the files of a run folder are read.

A run folder may come from anywhere and be damaged in any way. What is returned came from a plain
file of bounded size, whole, and has the types that readers expect; anything else raises
:class:`Damaged`, which makes the run ``corrupt``. FileNotFoundError where there is no such file.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bidir_core.common.files import (
    Damaged,
    one_line,
    open_plain,
    read_bytes,
    read_json,
)
from bidir_core.runs.shapes import BY_FILE, Fields, problem

MOST_LINES_BYTES = 4 << 30  # items.jsonl of a long run with its texts
MOST_TABLE_BYTES = 4 << 30
MOST_ROWS = 4_000_000
MOST_ARRAY_BYTES = 1 << 30  # unpacked, of one .npz

# What the libraries raise on damaged files.
_BAD_FILE = (OSError, ValueError, TypeError, KeyError, MemoryError)
_BAD_ARCHIVE = (EOFError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_object(folder: Path, name: str, shape: Fields | None = None) -> dict[str, Any]:
    """A JSON file that holds an object of ``shape`` (None: what is known of files of this name)."""
    try:
        value = read_json(folder / name)
    except Damaged as error:
        raise Damaged(f"{name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise Damaged(f"{name} does not hold a JSON object")
    shape = shape or BY_FILE.get(name)
    if shape is not None and (fault := problem(value, shape)):
        raise Damaged(f"{name}: {fault}")
    return value


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects from the start of a file of lines, and how many bytes they take.

    Reading stops at the first line that is torn or holds something else.
    """
    try:
        data = read_bytes(path, MOST_LINES_BYTES)
    except FileNotFoundError:
        return [], 0
    except Damaged as error:
        raise Damaged(f"{path.name} cannot be read: {error}") from error
    values, position = [], 0
    while (end := data.find(b"\n", position)) >= 0:
        try:
            value = json.loads(data[position:end])
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict):
            break
        values.append(value)
        position = end + 1
    return values, position


def tail(path: Path, n_bytes: int) -> str:
    """The end of a text file, whole lines; empty if there is none that can be read."""
    try:
        with open_plain(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - n_bytes))
            data = file.read(n_bytes)
    except (OSError, Damaged):
        return ""
    text = data.decode("utf-8", errors="replace")
    return text if size <= n_bytes else text.partition("\n")[2]


# Tables

_REPETITIVE = ["task", "error", "prompt_group"]  # stored, and so read, as dictionaries


@contextmanager
def opened_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose footer promises no more than fits into memory.

    What goes wrong while it is read is Damaged, too.
    """
    with open_plain(path, MOST_TABLE_BYTES) as stream:
        try:
            footer = pq.read_metadata(stream)
            _check_footer(footer)
            names = footer.schema.to_arrow_schema().names
            repetitive = [name for name in _REPETITIVE if name in names]
            with pq.ParquetFile(stream, metadata=footer, read_dictionary=repetitive) as file:
                yield file
        except Damaged:
            raise
        except (pa.ArrowException, OverflowError, *_BAD_FILE) as error:
            raise Damaged(one_line(error)) from error


def _check_footer(footer: pq.FileMetaData) -> None:
    # The columns' descriptions are not read: a damaged one crashes the whole process.
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if min(rows, default=0) < 0 or sum(rows) != footer.num_rows or footer.num_rows > MOST_ROWS:
        raise Damaged(f"it claims {footer.num_rows} rows")
    sizes = [group.total_byte_size for group in groups]
    if min(sizes, default=0) < 0 or sum(sizes) > MOST_TABLE_BYTES:
        raise Damaged(f"it claims {sum(sizes)} bytes")


def _check_expanded(table: pa.Table) -> None:
    """Damaged if it is too large unpacked: a dictionary's entry may stand for many values."""
    total = 0
    for column in table.columns:
        if pa.types.is_dictionary(column.type):
            lengths = [
                pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks
            ]
            total += sum(pc.sum(chunk).as_py() or 0 for chunk in lengths)
    if total > MOST_TABLE_BYTES:
        raise Damaged(f"it unpacks to {total} bytes")


def checked_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table cast to ``schema``; Damaged for values that contradict one another."""
    try:
        _check_expanded(table)
        target = pa.schema([schema.field(name) for name in table.column_names])
        if not table.schema.equals(target):
            table = table.cast(target)
        table.validate(full=True)
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise Damaged(one_line(error)) from error
    names = set(table.column_names)
    for key in {"task", "doc_id"} & names:
        if table.column(key).null_count:
            raise Damaged(f"'{key}' is not given in every row")
    if "doc_id" in names and pc.any(pc.less(table.column("doc_id"), 0)).as_py():
        raise Damaged("a doc_id is below 0")
    if "ll" in names:
        scores = table.column("ll")
        values = pc.list_flatten(scores)
        # A choice of no probability is at -inf; NaN and inf are no log-likelihoods.
        if values.null_count or pc.all(pc.less(values, math.inf)).as_py() is False:
            raise Damaged("a log-likelihood is not a number")
        n_choices = pc.list_value_length(scores)
        for name in {"pred", "pred_norm", "gold"} & names:
            chosen = table.column(name)
            outside = pc.or_(pc.less(chosen, 0), pc.greater_equal(chosen, n_choices))
            if pc.any(outside).as_py():
                raise Damaged(f"'{name}' names a choice that is not there")
    return table


# Arrays


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz``; nothing in it is run, and it unpacks to a bounded size."""
    with _archive(path) as stored:
        return {name: stored[name] for name in stored.files}


def read_array(path: Path, name: str) -> np.ndarray:
    """One array of an ``.npz``, reading no other. Damaged if it is not there."""
    with _archive(path) as stored:
        if name not in stored.files:
            raise Damaged(f"it holds no '{name}'")
        return stored[name]


@contextmanager
def _archive(path: Path) -> Iterator[Any]:
    with open_plain(path, MOST_ARRAY_BYTES) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                if sum(member.file_size for member in archive.infolist()) > MOST_ARRAY_BYTES:
                    raise Damaged("it unpacks to too much")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as stored:
                yield stored
        except Damaged:
            raise
        except (*_BAD_FILE, *_BAD_ARCHIVE) as error:
            raise Damaged(one_line(error)) from error


# Checksums: what a complete run holds, so that bit rot does not pass for a result

_METRICS = "metrics.json"
_CHANGING = ("status.json", "items.jsonl", _METRICS)
_CHECKED = (".json", ".jsonl", ".npz", ".parquet")


def sealed(metrics: Mapping[str, Any], folder: Path, shared: Sequence[Path] = ()) -> dict[str, Any]:
    """The metrics with ``checksums``: SHA-256 of a run's data files by name, and of the metrics.

    ``shared``: the files outside of its folder that hold a part of its records.
    """
    files = [p for p in folder.iterdir() if p.suffix in _CHECKED and p.name not in _CHANGING]
    files += [path for path in shared if path.exists()]
    digests = {p.name: _digest_of(p) for p in sorted(files) if p.name[0] != "." and p.is_file()}
    result = json.loads(json.dumps({**metrics, "checksums": digests}))
    result["checksums"][_METRICS] = _digest_of_metrics(result)
    return result


def what_changed(
    folder: Path, metrics: Mapping[str, Any], shared: Sequence[Path] = ()
) -> str | None:
    """The first file that is no longer what was written, in a sentence, or None.

    Files that were taken away are no damage: a run may be kept for its numbers alone. Runs of
    earlier versions have no checksums.
    """
    elsewhere = {path.name: path for path in shared}
    for name, digest in (metrics.get("checksums") or {}).items():
        path = elsewhere.get(name, folder / name)
        if Path(name).name != name or not path.exists():
            continue
        try:
            current = _digest_of_metrics(metrics) if name == _METRICS else _digest_of(path)
        except (OSError, Damaged) as error:
            return f"{name} cannot be read: {one_line(error)}"
        if current != digest:
            return f"{name} is not what was written: its checksum differs"
    return None


def _digest_of_metrics(metrics: Mapping[str, Any]) -> str:
    """SHA-256 of all values but this digest itself; the file's layout does not matter."""
    checksums = {name: value for name, value in metrics["checksums"].items() if name != _METRICS}
    text = json.dumps({**metrics, "checksums": checksums}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_of(path: Path) -> str:
    info = path.stat()
    return _digest(str(path), info.st_mtime_ns, info.st_size, info.st_ino)


@lru_cache(maxsize=50_000)
def _digest(path: str, mtime_ns: int, size: int, inode: int) -> str:
    with open_plain(Path(path), MOST_TABLE_BYTES) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
