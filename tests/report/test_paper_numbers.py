"""Every number that a paper prints comes out of its runs again.

Items are paired here by hand, from the run folders alone; what is shared with the product is the
arithmetic of ``analyse.stats``, which has its own tests.
"""

import csv
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from bidir_core.analyse import stats
from bidir_core.analyse.contrasts import cell_title, interaction
from bidir_core.report.paper import write_paper
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.run import Run

Rows = dict[str, np.ndarray]  # task -> [run, item], was it right


class FromFolders:
    """The statistics of runs, by their ids, from the files in ``root``."""

    def __init__(self, root: Path):
        self.root = root
        self.right = cache(self._right)

    def metrics(self, run: str) -> dict:
        return json.loads((self.root / run / "metrics.json").read_text())

    def _right(self, run: str) -> dict[tuple[str, int], bool]:
        columns = ["task", "doc_id", "correct", "error"]
        rows = Run(self.root / run).items_table(columns).to_pylist()
        return {(r["task"], r["doc_id"]): r["correct"] for r in rows if r["error"] is None}

    def common(self, runs: list[str]) -> Rows:
        right = [self.right(run) for run in runs]
        keys = [key for key in right[0] if all(key in other for other in right)]
        tasks = list(dict.fromkeys(task for task, _ in keys))
        return {
            t: np.array([[items[k] for k in keys if k[0] == t] for items in right]) for t in tasks
        }

    def has_items(self, runs: list[str]) -> bool:
        return all((self.root / run / "items.parquet").exists() for run in runs)

    def differences(self, pairs: list[list[str]]) -> dict[str, stats.Estimate]:
        both = [self.common(pair) for pair in pairs]
        if len(pairs) == 1:
            tables = {task: table_of(a, b) for task, (a, b) in both[0].items()}
            by_task = {task: stats.paired_interval(table) for task, table in tables.items()}
            return {"macro": stats.macro_delta(list(by_task.values())), **by_task}
        stacked = {t: np.stack([rows[t][1] * 1.0 - rows[t][0] for rows in both]) for t in both[0]}
        effect = stats.stratified_mean(stacked)
        return {"macro": effect.estimate, **effect.per_task}

    def interaction(self, lists: list[list[str]]) -> dict[str, stats.Estimate]:
        rows, k = self.common([run for runs in lists for run in runs]), len(lists[0])
        values = {
            task: r[:k] * 1.0 - r[k : 2 * k] - r[2 * k : 3 * k] + r[3 * k :]
            for task, r in rows.items()
        }
        effect = stats.stratified_mean(values)
        return {"macro": effect.estimate, **effect.per_task}


def table_of(a: np.ndarray, b: np.ndarray) -> stats.Table2x2:
    return stats.Table2x2(*(int(x.sum()) for x in (a & b, a & ~b, ~a & b, ~a & ~b)))


def recomputed(root: Path, report) -> dict[str, list[float]]:
    """Key to the values that stand under it; several are one for each seed."""
    again, study = FromFolders(root), report.study
    out: dict[str, list[float]] = {"margin": [1.0]}

    def put(key: str, estimate: stats.Estimate) -> None:
        for name, value in (("difference", "value"), ("low", "low"), ("high", "high")):
            out[f"{key}/{name}"] = [100 * getattr(estimate, value)]
        out[f"{key}/n"] = [estimate.n]

    for (arm, regime), by_seed in study.cells.items():
        if not arm.leaky:
            macros = [again.metrics(run.id)["macro"]["acc"] for run in by_seed.values()]
            out[f"{cell_title(study, (arm, regime))}/macro/acc"] = [float(np.mean(macros))]
    for contrast in report.numbers.contrasts(leaky=False):
        key, pairs = contrast.title, [list(pair) for pair in contrast.runs]
        if again.has_items([run for pair in pairs for run in pair]):
            for task, estimate in again.differences(pairs).items():
                put(f"{key}/{task}", estimate)
    for arm in study.trained("3B", "distill"):
        chosen = interaction(study, arm)
        lists = [] if isinstance(chosen, str) else [list(ids) for ids in chosen.runs]
        if lists and again.has_items([run for runs in lists for run in runs]):
            for task, estimate in again.interaction(lists).items():
                put(f"interaction {arm.title}/{task}", estimate)
    return {slug(key): values for key, values in out.items()}


def slug(key: str) -> str:
    return re.sub(r"-*(/|$)-*", r"\1", re.sub(r"[^a-z0-9./+]+", "-", key.lower()))


def check_numbers(root: Path, folder: Path, report) -> int:
    """What can be computed by hand is the same number as printed; how many numbers those are."""
    text = (folder / "numbers.tex").read_text()
    printed = dict(re.findall(r"\\@namedef\{run:(.*?)\}\{(.*)\}$", text, re.M))
    expected = recomputed(root, report)
    assert set(expected) <= set(printed)
    for key, values in expected.items():
        (value,) = values
        assert_reads_as(printed[key].replace("$", "").replace(",", ""), value, key)
    for row in csv.DictReader((folder / "tables" / "contrasts.csv").open()):
        if row["Interval"] == "paired item by item":
            (low,) = expected[slug(f"{row['Contrast']}/macro/low")]
            assert float(row["95 % CI low"]) == pytest.approx(low / 100, rel=1e-9, abs=1e-12)
    return len(expected)


def assert_reads_as(text: str, value: float, key: str) -> None:
    """A printed number is the value, rounded to the digits that are printed."""
    digits = len(text.partition(".")[2])
    assert float(text) == pytest.approx(value, abs=0.5001 * 10**-digits), key


def test_every_number_comes_out_of_the_runs_again(repaired, repaired_report, paper):
    assert check_numbers(repaired, paper, repaired_report) > 100


def test_so_it_does_with_seeds_dials_errors_and_missing_items(seeded):
    root, folder, report = seeded
    assert check_numbers(root, folder, report) > 100
    assert "unpaired" in (folder / "tables" / "contrasts.tex").read_text()


def test_the_committed_runs_make_a_paper_whose_numbers_come_out_again(committed_report, tmp_path):
    folder = write_paper(committed_report, tmp_path / "paper")
    assert check_numbers(COMMITTED_RUNS, folder, committed_report) > 300
    claims = {c["claim"]: c for c in json.loads((folder / "claims.json").read_text())["claims"]}
    damage = claims["Without training, bidirectional prefill lowers macro accuracy."]
    assert damage["status"] == "supported"
    untested = [c for c in claims.values() if c["reason"].startswith("not tested")]
    assert untested
    assert all(claim["status"] == "undecided" for claim in untested)
