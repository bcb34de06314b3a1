"""Parts of docs/ that a script writes: blocks of a page, between hand-written words, and tables.

What stands between ``<!-- KIND: NAME -->`` and ``<!-- end -->`` on a page is computed, and so are
the files of ``docs/tables/``; ``--check`` says whether they are what would be written.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

Blocks = Mapping[str, Callable[[], str]]

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = (DOCS / "RESULTS.md", DOCS / "FINDINGS.md")
TABLES = DOCS / "tables"


def pattern(kind: str) -> re.Pattern[str]:
    """Matches a block: its opening line, its name, its closing mark."""
    return re.compile(rf"(<!-- {kind}: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, kind: str, blocks: Blocks) -> str:
    """The page's text with every block computed anew."""
    return pattern(kind).sub(lambda found: found[1] + blocks[found[2]]() + found[3], text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_text(block: str) -> str:
    """A block as CSV: the rows of its tables without Markdown's marks, then its sentences."""
    rows: list[list[str]] = []
    sentences = []
    for line in block.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.replace("`", "").strip("|").split(" | ")]
            if set(cells) != {"---"} and cells not in rows[:1]:
                rows.append(cells)
        elif line:
            sentences.append(line.replace("`", ""))
    width = len(rows[0]) if rows else 1
    rows += [[sentence, *[""] * (width - 1)] for sentence in sentences]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 unless all is as computed"
    )


def write_or_check(kind: str, blocks: Blocks, tables: Blocks, *, check: bool, source: str) -> int:
    """Write the blocks of a kind and the tables, or say which are not as computed; an exit code."""
    new = {page: filled(page.read_text(encoding="utf-8"), kind, blocks) for page in PAGES}
    new |= {TABLES / f"{name}.csv": csv_text(made()) for name, made in tables.items()}
    if not check:
        for path, text in new.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [
        path
        for path, text in new.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        print(f"docs/{path.relative_to(DOCS)} does not say what {source} say")
    return int(bool(stale))
