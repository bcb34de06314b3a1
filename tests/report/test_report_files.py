"""A report's files: hostile texts stay text, tables are tables, the command says what is wrong."""

import csv
import io
import re
from pathlib import Path

import pytest

from bidir_core.cli import main
from bidir_core.report.markdown import Column, Interval, Table, code
from bidir_core.runs.find import list_runs
from tests.factory import make_item, make_run, spread_items
from tests.report_runs import FOLDERS, report

HOSTILE = "<img src=x onerror=alert(1)> | ![x](http://evil/x.png) `code` **b**\n# heading"


def test_hostile_names_stay_text(tmp_path):
    items = [*spread_items(40, (HOSTILE,)), make_item(HOSTILE, 99, 0)]
    names = {"tasks": (HOSTILE,), "model": HOSTILE, "facts": {"source": HOSTILE}}
    for regime in ("causal", "bidirectional"):
        folder = FOLDERS[False, regime != "causal"]
        make_run(tmp_path, folder, regime=regime, items=items, seed=len(regime), **names)
    text = report(tmp_path).markdown()
    assert "<img" not in text
    assert "![" not in text
    assert not re.search(r"(?<!\\)\]\(", text)
    assert "http://" not in text
    assert not [line for line in text.splitlines() if line.startswith("# heading")]
    markdown_it = pytest.importorskip("markdown_it")
    page = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert not re.search(r"<(img|a|strong>b|script)\b", page)
    assert page.count("<h1") == 1
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = {re.sub(r"\\\|", "", line).count("|") for line in tables if "onerror" in line}
    headers = {line.count("|") for line in tables if line.startswith(("| Task", "| What"))}
    assert widths <= headers | {line.count("|") for line in tables if set(line) <= set("|-:")}


@pytest.mark.parametrize("text", ["a`b", "``", "`", "plain", "a b\nc"])
def test_code_spans_hold_their_text(text):
    shown = code(text)
    fence = re.match(r"`+", shown)[0]
    inside = shown[len(fence) : -len(fence)]
    assert fence not in re.findall(r"`+", inside)
    assert inside.strip() == " ".join(text.split())


def test_csv_is_plain_and_runs_no_formula():
    table = Table("t", [Column("name"), Column("value", "points"), Column("ci", "interval")])
    table.rows.append(["=HYPERLINK(1)", -0.0123456789, Interval(-0.02, 0.01)])
    header, row = csv.reader(io.StringIO(table.csv()))
    assert header == ["name", "value", "ci low", "ci high"]
    assert row == ["'=HYPERLINK(1)", "-0.0123456789", "-0.02", "0.01"]


def test_the_command_writes_markdown_and_tables(repaired, tmp_path, capsys):
    out = tmp_path / "deep" / "result.md"
    line = ["report", "--runs-dir", str(repaired), "--out", str(out), "--csv"]
    assert main(line) == 0
    written = capsys.readouterr().out.split()
    assert written[0] == str(out)
    assert {Path(path).name for path in written} >= {"result.macro.csv", "result.contrasts.csv"}
    text = out.read_text()
    assert main(line) == 0
    assert out.read_text() == text  # the same runs, the same report
    evaluations = [r for r in list_runs([repaired]) if r.settings.get("context") != "none"]
    run = next(r for r in evaluations if r.stage.startswith("stage1"))
    assert main(["report", run.id, "--runs-dir", str(repaired), "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "--out FILE.md"),
        ("--out x.pdf", ".md (Markdown) or .html (one self-contained page)"),
        ("--out x", ".md (Markdown) or .html"),
        ("--out x.md --html y.md", "--html y.md: give a name that ends in .html"),
        ("--out x.html --sections macro,nonsense", "no section 'nonsense'; choose from"),
        ("--out x.md --model nobody", "nobody"),
        ("--out /proc/nowhere/x.md", "/proc/nowhere"),
        ("--paper p --csv", "go with --out"),
        ("--paper RUNS", "not made by this command"),
        ("stage9/none --paper p", "there is no run"),
        ("nosuchrun --out x.md", "there is no run"),
        ("--paper p --runs-dir .", "no finished runs"),
    ],
)
def test_bad_input_is_one_line(words, says, repaired, refused, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = words.replace("RUNS", str(repaired)).split()
    assert says in refused(["report", "--runs-dir", repaired, *line])
    assert not list(tmp_path.iterdir())
