"""Parts of docs/ that a script writes: blocks of a page, between hand-written words, and tables.

What stands between ``<!-- findings: NAME -->`` (or ``law``, ``order``, ``repair``) and ``<!-- end -->`` on a page is computed,
and so are the files of ``docs/tables/`` and the figures.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bidir_core.analyse import stats
from bidir_core.analyse.verdict import estimate_text

Blocks = Mapping[str, Callable[[], str]]
DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = (DOCS / "RESULTS.md", DOCS / "FINDINGS.md")
TABLES = DOCS / "tables"
# A block's opening line, its kind and name, what it holds, and its closing mark.
BLOCK = re.compile(
    r"(<!-- ((?:findings|law|order|repair): \w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL
)


def filled(text: str, blocks: Blocks) -> str:
    """The page's text with every block computed anew; one that nothing computes is a record."""

    def block(match: re.Match[str]) -> str:
        compute = blocks.get(match[2])
        return match[1] + (compute() if compute else match[3]) + match[4]

    return BLOCK.sub(block, text)


def table(header: str, rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the header's cells have ``|`` between them."""
    rule = "|---" * len(header.split("|")) + "|\n"
    return f"| {header} |\n{rule}" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def csv_text(block: str) -> str:
    """A block as CSV: the rows of its tables without Markdown's marks, then its sentences."""
    rows: list[list[str]] = []
    sentences = []
    for line in block.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.replace("`", "").strip("|").split(" | ")]
            if cells not in rows[:1]:
                rows.append(cells)
        elif line and not line.startswith("|---"):
            sentences.append(line.replace("`", ""))
    width = len(rows[0]) if rows else 1
    rows += [[sentence, *[""] * (width - 1)] for sentence in sentences]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def delta(estimate: stats.Estimate | None) -> str:
    """A difference in points, with its interval: ``+1.2 (+0.1 to +2.3)``."""
    assert estimate is not None
    return estimate_text(estimate)


def write(blocks: Blocks, tables: Blocks, figures: Blocks, *, check: bool) -> int:
    """Write blocks, tables and figures, or say which are not as computed; an exit code."""
    texts = {page: filled(page.read_text(encoding="utf-8"), blocks) for page in PAGES}
    texts |= {TABLES / f"{name}.csv": csv_text(build()) for name, build in tables.items()}
    texts |= {DOCS / f"{name}.svg": draw() for name, draw in figures.items()}
    stale = 0
    for path, text in texts.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"docs/{path.relative_to(DOCS)} does not say what the runs and JSON files say")
            stale = 1
    return stale
