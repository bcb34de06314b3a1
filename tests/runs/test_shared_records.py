"""What compact records share stands once beside the runs, and readers see whole records."""

from __future__ import annotations

from pathlib import Path

from bidir_core.cli import main
from bidir_core.runs.find import find_run, list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.records import LIGHT_FIELDS, SHARED_FOLDER
from bidir_core.runs.run import Run
from scripts import keep_runs


def test_sharing_changes_no_record(tiny_folder, own_items, runs_dir):
    words = ["--model", str(tiny_folder), "--tasks", str(own_items), "--compact"]
    for more in ([], ["--prefill-bidirectional"], ["--bos", "add"]):
        assert main(["eval", *words, *more]) == 0
    before = {run.id: run.items_table(LIGHT_FIELDS) for run in list_runs([runs_dir])}
    one = {run.id: run.item("mine", 1) for run in list_runs([runs_dir])}
    keep_runs.main([str(runs_dir), "--share"])
    names = {Run(run.path).config["texts"] for run in list_runs([runs_dir])}
    assert len(names) == 2  # a BOS token changes the token counts
    for run in list_runs([runs_dir]):
        assert run.items_table(LIGHT_FIELDS).equals(before[run.id])
        assert run.item("mine", 1) == one[run.id]
    keep_runs.main([str(runs_dir), "--share"])  # again: nothing left to do
    some = next(iter(before))
    keep_runs.main([str(runs_dir), "--share", "--answers", some])
    fewer = find_run(some, [runs_dir]).items_table(LIGHT_FIELDS)
    assert fewer.column("ll").null_count == fewer.num_rows
    assert fewer.column("correct").equals(before[some].column("correct"))


def test_committed_runs_stay_small():
    files = [path for path in Path(COMMITTED_RUNS).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 14_000_000
    assert (Path(COMMITTED_RUNS) / SHARED_FOLDER).is_dir()
