"""Blocks of a page that a script writes, between hand-written words.

What stands between ``<!-- KIND: NAME -->`` and ``<!-- end -->`` is computed; ``--check`` says
whether a page has what would be written.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Blocks = Mapping[str, Callable[[], str]]


def pattern(kind: str) -> re.Pattern[str]:
    """Matches a block: its opening line, its name, its closing mark."""
    return re.compile(rf"(<!-- {kind}: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, kind: str, blocks: Blocks) -> str:
    """The page's text with every block computed anew."""
    return pattern(kind).sub(lambda found: found[1] + blocks[found[2]]() + found[3], text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 unless the page is as computed"
    )


def write_or_check(page: Path, kind: str, blocks: Blocks, *, check: bool, source: str) -> int:
    """Fill the page's blocks, or say whether they are filled already; an exit code."""
    text = page.read_text(encoding="utf-8")
    new = filled(text, kind, blocks)
    if check:
        print("as computed" if new == text else f"docs/{page.name} does not say what {source} say")
        return int(new != text)
    page.write_text(new, encoding="utf-8")
    return 0
