"""Every printed number leads to its runs, and comes out of them again."""

from __future__ import annotations

import json
import re

import pytest

from bidir_core.report.paper import write_paper
from bidir_core.report.paper_numbers import Ledger
from bidir_core.report.report import build_report
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from tests.paper_tex import check_numbers


def test_every_number_leads_to_its_runs_and_comes_out_again(repaired, paper):
    assert check_numbers(repaired, paper) > 300


def test_so_it_does_with_seeds_dials_errors_and_missing_items(seeded):
    root, folder = seeded
    assert check_numbers(root, folder) > 300
    text = (folder / "tables" / "per-task.tex").read_text()
    assert " / " in text  # one p value a seed
    assert "unpaired" in (folder / "tables" / "contrasts.tex").read_text()
    methods = (folder / "methods.tex").read_text()
    assert "except that the first" in methods
    assert "could not be scored" in methods


def test_the_committed_runs_make_a_paper_whose_numbers_come_out_again(tmp_path):
    runs = [run for run in list_runs([COMMITTED_RUNS]) if "published" not in run.id]
    folder = write_paper(build_report(roots=[COMMITTED_RUNS]), tmp_path / "paper")
    assert runs
    assert check_numbers(COMMITTED_RUNS, folder) > 800
    claims = {c["claim"]: c for c in json.loads((folder / "claims.json").read_text())["claims"]}
    one = claims["Without training, bidirectional prefill lowers macro accuracy."]
    assert one["status"] == "supported"
    assert one["fold"] == "all"
    untested = [c for c in claims.values() if c["reason"].startswith("not tested")]
    assert untested
    assert all(c["status"] == "undecided" for c in untested)


def test_numbers_written_into_figures_are_in_the_ledger(paper):
    ledger = json.loads((paper / "numbers.json").read_text())["numbers"]
    drawn = {e["text"] for e in ledger.values() if "figures/forest" in e["printed_in"]}
    words = re.findall(r"<!-- (.*?) -->", (paper / "figures" / "forest.svg").read_text())
    titles = [word for word in words if re.search(r"\d", word) and not _is_tick(word)]
    assert titles
    for title in titles:
        for number in re.findall(r"[+−]?\d+\.\d+", title):
            assert number.replace("−", "-") in drawn, title
    for name in ("ladder", "two_by_two", "curve"):
        for word in re.findall(r"<!-- (.*?) -->", (paper / "figures" / f"{name}.svg").read_text()):
            known = any(e["text"] == word for e in ledger.values())
            assert known or _is_tick(word) or not re.search(r"\d", word), word


def _is_tick(word: str) -> bool:
    return re.fullmatch(r"−?\d+(\.\d+)?", word) is not None


def test_a_number_of_no_run_cannot_be_printed():
    ledger = Ledger()
    with pytest.raises(ValueError, match="no run"):
        ledger.add("x", 1, "1", [], statistic="field")
    with pytest.raises(ValueError, match="unknown statistic"):
        ledger.add("x", 1, "1", ["stage1/a"], statistic="guess")
    first = ledger.add("a b", 1, "1", ["r"], statistic="name")
    other = ledger.add("a-b", 2, "2", ["r"], statistic="name")
    assert first.key != other.key  # two numbers never share a key
