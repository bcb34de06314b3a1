"""The document is well-formed, and text from outside is inert in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidir_core.report import paper_latex
from bidir_core.report.paper import write_paper
from tests.paper_tex import tex_files
from tests.report_runs import evaluation, report


def check_structure(folder: Path) -> None:
    """Braces and environments balance, and what is referred to exists."""
    texts = tex_files(folder)
    labels = set(re.findall(r"\\label\{(.*?)\}", "".join(texts.values())))
    works = set(re.findall(r"@\w+\{(\w+),", (folder / "references.bib").read_text()))
    for name, text in texts.items():
        plain = re.sub(r"\\[\\{}%]", "", text)
        plain = re.sub(r"(?<!\\)%.*", "", plain)
        depth = 0
        for letter in plain:
            depth += (letter == "{") - (letter == "}")
            assert depth >= 0, name
        assert depth == 0, name
        stack = []
        for kind, environment in re.findall(r"\\(begin|end)\{(\w+)\}", text):
            if kind == "begin":
                stack.append(environment)
            else:
                assert stack.pop() == environment, name
        assert not stack, name
        for table in re.findall(r"\\begin\{tabular\}\{(.*)\}\n(.*?)\\end", text, re.S):
            columns = len(re.findall(r"[lr]|p\{", re.sub(r"@\{\}|>\{.*?\}p\{.*?\}", "l", table[0])))
            for row in re.findall(r"^(?!\\).*\\\\$", table[1], re.M):
                assert len(re.findall(r"(?<!\\)&", row)) == columns - 3, row
        for part in re.findall(r"\\input\{(.*?)\}", text):
            assert (folder / f"{part}.tex").exists(), part
        for figure in re.findall(r"\\includegraphics\[.*?\]\{(.*?)\}", text):
            assert (folder / figure).read_bytes().startswith(b"%PDF"), figure
        assert set(re.findall(r"\\ref\{(.*?)\}", text)) <= labels, name
        cited = {key for group in re.findall(r"\\cite\{(.*?)\}", text) for key in group.split(",")}
        assert cited <= works, name


def test_the_document_is_well_formed(paper, seeded):
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
    for name, text in tex_files(hostile).items():
        assert r"\input{/etc" not in text, name
        assert "中" not in text
    assert r"\textbackslash{}input\{" in (hostile / "main.tex").read_text()


@given(st.text())
def test_escaped_text_has_no_command_of_its_own(text):
    for shown in (paper_latex.escape(text), paper_latex.code(text)):
        commands = set(re.findall(r"\\([A-Za-z]+)", shown))
        assert commands <= {
            "textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater",
            "textbar", "textasciigrave", "texttt", "allowbreak",
        }  # fmt: skip
        rest = re.sub(r"\\[{}$&#_%]|\\[A-Za-z]+", "", shown)
        assert rest.count("{") == rest.count("}")
        assert not re.search(r"[$&#^~%\\]", rest)
        assert all(32 <= ord(letter) < 256 for letter in rest)


def test_numbers_read_as_numbers():
    assert paper_latex.number("-4.7") == "$-$4.7"
    assert paper_latex.number("<0.0001") == "$<$0.0001"
    assert paper_latex.number("95 %") == r"95\,\%"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_it_compiles(seeded, hostile, tmp_path):
    for name, folder in (("seeded", seeded[1]), ("hostile", hostile)):
        copy = shutil.copytree(folder, tmp_path / name)
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main"],
            cwd=copy, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]


def test_the_bibliography_holds_whole_entries():
    assert {key for _, key in paper_latex.TASKS.values()} <= set(paper_latex.WORKS)
    for key, entry in paper_latex.WORKS.items():
        assert entry.count("{") == entry.count("}"), key
        for field in ("author", "title", "year"):
            assert re.search(rf"^  {field} = \{{", entry, re.M), (key, field)
