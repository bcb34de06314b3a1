"""Rows as people keep them: JSON, one value a line, or a dataset on the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError


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


def parse_json(data: bytes, where: str) -> Any:
    """The value of some JSON; UserError for what is none in UTF-8, or holds half a character."""
    try:
        value = json.loads(data.decode("utf-8-sig"))  # some editors put a byte order mark in front
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
