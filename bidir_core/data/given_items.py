"""A file that names the items to evaluate: one a line, as `task<TAB>doc_id` or by its `doc_hash`."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged, read_bytes
from bidir_core.data.items import ItemSource

MOST_BYTES = 64 << 20
_HASH = re.compile(r"[0-9a-f]{64}")


def absolute_items(path: str) -> str:
    """The file by a name that means the same in every folder."""
    return os.path.abspath(os.path.expanduser(path))


class GivenItems:
    """The items that a file names. Raises `UserError`, with the line, for what names none."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            data = read_bytes(Path(path), MOST_BYTES)
            text = data.decode("utf-8-sig")
        except FileNotFoundError:
            raise UserError(f"--items-file {path}: there is no such file") from None
        except (Damaged, UnicodeDecodeError) as error:
            raise UserError(f"--items-file {path}: cannot be read as text ({error})") from error
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._rows: dict[str, dict[int, int]] = {}  # task -> doc_id -> the line that names it
        self._hashes: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            task, tab, doc_id = line.strip().partition("\t")
            if tab and re.fullmatch("[0-9]{1,12}", doc_id):
                self._rows.setdefault(task, {})[int(doc_id)] = number
            elif _HASH.fullmatch(task) and not tab:
                self._hashes[task] = number
            elif task:
                raise self._bad(
                    number, f"{line[:80]!r} is neither task<TAB>doc_id nor a doc_hash of 64 digits"
                )
        if not self._rows and not self._hashes:
            raise UserError(
                f"--items-file {path}: names no item; write one a line, task<TAB>doc_id"
            )

    def record(self) -> dict[str, Any]:
        """What a run says of it."""
        count = len(self._hashes) + sum(map(len, self._rows.values()))
        return {"sha256": self.sha256, "count": count}

    def choose(self, sources: Sequence[ItemSource]) -> list[list[int]]:
        """The rows of each source, ascending. `UserError` for an item that none of them has."""
        names = [source.name for source in sources]
        for task, rows in self._rows.items():
            if task not in names:
                first = min(rows.values())
                raise self._bad(first, f"{task!r} is not one of --tasks {','.join(names)}")
        chosen_rows, unseen = [], dict(self._hashes)
        for source in sources:
            lines = self._rows.get(source.name, {})
            if lines and max(lines) >= len(source):
                raise self._bad(
                    lines[max(lines)],
                    f"{source.name} has no item {max(lines)}; its ids are 0 to {len(source) - 1}",
                )
            chosen = set(lines)
            for item in source.take(range(len(source))) if self._hashes else ():
                if item.doc_hash in self._hashes:
                    chosen.add(item.doc_id)
                    unseen.pop(item.doc_hash, None)
            chosen_rows.append(sorted(chosen))
        for doc_hash, number in unseen.items():
            raise self._bad(number, f"no item of {','.join(names)} has the doc_hash {doc_hash}")
        return chosen_rows

    def _bad(self, number: int, message: str) -> UserError:
        return UserError(f"--items-file {self.path}, line {number}: {message}")
