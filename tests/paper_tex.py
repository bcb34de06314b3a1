"""A paper's TeX: its printed numbers, and the check that each comes out of its runs again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bidir_core.report import paper_latex
from tests.paper_recompute import Recomputer

PRINTED = re.compile(r"\\fromrun\{([^}]*)\}\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")


def tex_files(folder: Path) -> dict[str, str]:
    found = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.tex")}
    assert found
    return found


def bare(text: str) -> str:
    """TeX without what the ledger answers for and without what is no text."""
    text = PRINTED.sub("", text)
    text = text.replace(r"\providecommand{\fromrun}[2]{#2}", "")
    text = re.sub(
        r"\\(cite|label|ref|input|includegraphics|bibliography)(\[.*?\])?\{.*?\}", "", text
    )
    text = re.sub(r"\\begin\{(tabular|longtable)\}\{@\{\}.*@\{\}\}", "", text)
    text = re.sub(r"\\multicolumn\{\d+\}|\\setlength\{\\\w+\}\{[\d.]+pt\}", "", text)
    return re.sub(r"\\(documentclass|usepackage)\[.*?\]\{.*?\}", "", text)


def check_numbers(root: Path, folder: Path) -> int:
    """Every printed number is in the ledger, with runs that exist, and comes out again."""
    ledger = json.loads((folder / "numbers.json").read_text())
    again = Recomputer(root)
    n = 0
    for name, text in tex_files(folder).items():
        assert not re.search(r"\d", bare(text)), (name, re.search(r".*\d.*", bare(text)))
        for key, shown in PRINTED.findall(text):
            entry = ledger["numbers"][key]
            assert name in entry["printed_in"]
            assert shown in (
                paper_latex.number(entry["text"]), paper_latex.escape(entry["text"]), paper_latex.code(entry["text"])
            ), (key, shown)  # fmt: skip
    for key, entry in (ledger["numbers"] | ledger["only_in_claims"]).items():
        assert entry["runs"], key
        assert all((root / run / "config.json").exists() for run in entry["runs"]), key
        assert entry["source"]["statistic"] in ledger["statistics"]
        expected = again.value(entry)
        if isinstance(expected, str | bool):
            assert entry["value"] == expected, key
            assert entry["text"] == str(expected)[: len(entry["text"])], key
        else:
            assert entry["value"] == pytest.approx(expected, rel=1e-9, abs=1e-12), key
            assert_reads_as(entry["text"], expected, key)
        n += 1
    return n


def assert_reads_as(text: str, value: float, key: str) -> None:
    """A printed number is the value, rounded to the digits that are printed."""
    if text.startswith("<"):
        assert value < float(text[1:]), key
        return
    number = text.replace(",", "").removesuffix(" %")
    if "e" in number or not re.fullmatch(r"[+-]?[\d.]+", number):
        assert float(number) == pytest.approx(value), key
        return
    digits = len(number.partition(".")[2])
    scales = [value, 100 * value]
    assert any(abs(float(number) - one) <= 0.5000001 * 10**-digits for one in scales), (key, value)
