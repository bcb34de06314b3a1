"""LaTeX is well-formed, and text from outside is inert in it."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidir_core.report import paper
from bidir_core.report.paper import write_paper
from tests.report_runs import evaluation, report


def check_structure(folder: Path) -> None:
    """Braces balance, and every row of a table has as many cells as it has columns."""
    files = {path.name: path.read_text() for path in folder.rglob("*.tex")}
    assert {"numbers.tex", "macro.tex", "contrasts.tex", "claims.tex"} <= set(files)
    for name, text in files.items():
        depth = 0
        for letter in re.sub(r"(?<!\\)%.*", "", re.sub(r"\\[\\{}%]", "", text)):
            depth += {"{": 1, "}": -1}.get(letter, 0)
            assert depth >= 0, name
        assert depth == 0, name
        if name == "numbers.tex":
            continue
        opening, *rows, ending = text.strip().split("\n")
        environment = re.fullmatch(r"\\begin\{(tabular|longtable)\}\{@\{\}(.*)@\{\}\}", opening)
        assert environment is not None, name
        assert ending == f"\\end{{{environment[1]}}}"
        columns = re.sub(r">\{.*?\}p\{.*?\}", "l", environment[2])
        for row in (row for row in rows if row.endswith(r"\\")):
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1, row


def test_the_tables_are_well_formed(paper, seeded):
    check_structure(paper)
    check_structure(seeded[1])


HOSTILE = r"m\input{/etc/passwd} $x_1$ 50% & # ~ ^ } { -- 中\u202e<!-- -->"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    cost = {"tasks": ("piqa", "a&b_{$c$}.d"), "model": HOSTILE, "n_items": 200}
    evaluation(root, accuracy={"piqa": 0.7, "a&b_{$c$}.d": 0.6}, **cost)
    evaluation(root, "bidirectional", {"piqa": 0.5, "a&b_{$c$}.d": 0.4}, **cost)
    return write_paper(report(root, model=HOSTILE), tmp_path_factory.mktemp("out") / "paper")


def test_text_from_outside_is_inert(hostile):
    check_structure(hostile)
    texts = [path.read_text() for path in hostile.rglob("*.tex")]
    assert not any(re.search(r"\\input|(?<!\\)\$[a-z]|中", text) for text in texts)
    assert any(r"a\&b\_\{\$c\$\}.d" in text.replace(r"\allowbreak{}", "") for text in texts)


@given(st.text())
def test_escaped_text_has_no_command_of_its_own(text):
    for shown in (paper.escape(text), paper.code(text), paper.number(text)):
        commands = set(re.findall(r"\\([A-Za-z]+)", shown))
        assert all(
            re.match("text(backslash|ascii|less|greater|bar|tt)|allowbreak", c) for c in commands
        )
        plain = re.sub(r"\$[+<-]\$|\\[{}$&#_%,]|\\[A-Za-z]+", "", shown)
        assert plain.count("{") == plain.count("}")
        assert not re.search(r"[$&#^~%\\]", plain)
        assert all(32 <= ord(letter) < 256 for letter in plain)
