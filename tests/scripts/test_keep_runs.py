"""Runs made small enough to be committed say what the runs they came from say."""

from pathlib import Path

import numpy as np
import pytest

from bidir_core.analyse.compare import compare
from bidir_core.cli import main
from bidir_core.common.files import write_json
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.records import LIGHT_FIELDS, SHARED_FOLDER
from scripts import keep_runs
from scripts.keep_runs import STEPS_A_NAT
from tests.factory import make_run
from tests.lab_factory import SINKS, make_sweep
from tests.report_runs import make_finetune


@pytest.fixture
def kept(tmp_path):
    """Made runs, and what is kept of them: items of one, metrics of the other."""
    source = tmp_path / "made"
    common = {"n_items": 60, "texts": False, "n_errors": 2}
    first = make_run(source, name="with-items", **common)
    make_run(source, "stage2_prefill_bidir_eval", name="bare", regime="bidirectional", **common)
    make_run(source, name="unfinished", state="failed", **common)
    make_run(source, name="other", **common)
    make_finetune(source, seed=0, evals=False)
    (first.path / "log.txt").write_text(f"wrote {source}/stage1_vanilla_eval/x, read /elsewhere\n")
    words = ["--names", "with-items", "bare", "3B-*", "--items", "with-*", "--shared-device"]
    keep_runs.main([str(source), *words, "--to", str(tmp_path / "runs")])
    return [{run.name: run for run in list_runs([root])} for root in (source, tmp_path / "runs")]


def test_only_what_was_asked_for_is_kept_and_paths_lead_into_runs(kept):
    originals, small = kept
    assert set(small) == {"with-items", "bare", "3B-0"}
    assert small["with-items"].has_items
    assert not small["bare"].has_items
    assert (small["with-items"].path / "log.txt").read_text() == (
        "wrote runs/stage1_vanilla_eval/x, read /elsewhere\n"
    )
    for name, run in small.items():
        assert run.id == originals[name].id
        assert run.state == "done"


def test_log_likelihoods_are_rounded_and_nothing_else_changes(kept):
    original, small = (runs["with-items"] for runs in kept)
    exact, rounded = original.items(), small.items()
    for name in exact.columns.difference(["ll", "margin"]):
        assert exact[name].map(repr).equals(rounded[name].map(repr)), name
    moved = 0
    for before, after, gold, margin in zip(exact.ll, rounded.ll, rounded.gold, rounded.margin):
        if before is None:
            assert after is None
            continue
        before, after = np.asarray(before), np.asarray(after)
        assert np.abs(before - after).max() <= 0.5 / STEPS_A_NAT + 1e-6
        assert np.array_equal(after * STEPS_A_NAT, np.round(after * STEPS_A_NAT))
        assert margin == pytest.approx(after[gold] - np.delete(after, gold).max())
        moved += not np.array_equal(before, after)
    assert moved
    assert exact.ll.isna().sum() == rounded.ll.isna().sum() > 0
    assert compare(original, small).macro.delta == 0


@pytest.mark.parametrize("items", [True, False])
def test_a_sweep_is_kept_with_its_points_rounded_once(tmp_path, items):
    """The product rounds nothing; what is kept says the same of every point."""
    original = make_sweep(tmp_path / "made", SINKS[:1], n_items=40, config={"compact": True})
    write_json(original.path / "attention.json", {"regimes": {}})
    words = ["--items", "*"] if items else []
    keep_runs.main([str(tmp_path / "made"), "--to", str(tmp_path / "runs"), *words])
    (kept,) = list_runs([tmp_path / "runs"])
    assert kept.state == "done"
    assert kept.metrics is not None
    assert original.metrics is not None
    assert {**kept.metrics, "checksums": original.metrics["checksums"]} == original.metrics
    assert (kept.path / "attention.json").exists()
    assert len(kept.points()) == len(original.points()) == 3
    for before, after in zip(original.points(), kept.points()):
        assert before.metrics is not None
        assert after.metrics is not None
        sums = {"checksums": before.metrics["checksums"]}  # those are of what was kept
        assert {**after.metrics, **sums} == before.metrics
        assert after.has_items is items
        if not items:
            continue
        exact, rounded = before.items(), after.items()
        for name in exact.columns.difference(["ll", "margin"]):
            assert exact[name].map(repr).equals(rounded[name].map(repr)), name
        for column in ("ll", "margin"):
            full, short = (np.hstack(frame[column].tolist()) for frame in (exact, rounded))
            steps = short * STEPS_A_NAT
            assert np.array_equal(steps, np.round(steps))
            assert not np.array_equal(full * STEPS_A_NAT, steps)
            np.testing.assert_allclose(full, short, atol=1.01 / STEPS_A_NAT)
        for folder, field in ((before, exact), (after, rounded)):
            record = folder.item(field.task[3], int(field.doc_id[3]))
            assert record["margin"] == pytest.approx(field.margin[3])
    if items:
        first, second = (run.points()[0] for run in (original, kept))
        assert compare(first, second).macro.delta == 0


# What compact records share stands once beside the runs, and readers see whole records


def test_sharing_changes_no_record(tiny_folder, own_items, runs_dir, tmp_path):
    words = ["--model", str(tiny_folder), "--tasks", str(own_items), "--compact"]
    for more in ([], ["--prefill-bidirectional"], ["--bos", "add"]):
        assert main(["eval", *words, *more]) == 0
    before = {run.id: run for run in list_runs([runs_dir])}
    some, *others = before
    kept_dir = tmp_path / "kept"
    keep_runs.main([str(runs_dir), "--items", "*", "--answers", some, "--to", str(kept_dir)])
    kept = {run.id: run for run in list_runs([kept_dir])}
    assert (
        len({run.config["texts"] for run in kept.values()}) == 2
    )  # a BOS changes the token counts
    exact = [name for name in LIGHT_FIELDS if name not in ("ll", "margin")]
    for name, run in kept.items():
        assert run.items_table(exact).equals(before[name].items_table(exact))
        assert run.item("mine", 1)["gold"] == before[name].item("mine", 1)["gold"]
    scored = {name: run.items_table(["ll"]).column("ll").null_count for name, run in kept.items()}
    assert scored == {some: kept[some].metrics["n_items"], **dict.fromkeys(others, 0)}


def test_lists_of_numbers_are_shortened_and_single_ones_are_not():
    kept = keep_runs.shorter({"off": 1.93e-05, "layers": {"mean": [0.123456, 0.0]}, "n": [20]})
    assert kept == {"off": 1.93e-05, "layers": {"mean": [0.1235, 0.0]}, "n": [20]}


def test_committed_runs_stay_small():
    files = [path for path in Path(COMMITTED_RUNS).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 14_000_000
    assert (Path(COMMITTED_RUNS) / SHARED_FOLDER).is_dir()
