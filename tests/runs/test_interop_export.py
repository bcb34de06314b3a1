"""Our runs written as lm-eval writes its own, and read back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bidir_core.analyse.compare import compare
from bidir_core.analyse.pairing import pair
from bidir_core.common.errors import UserError
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.runs.lm_eval_export import export_run
from bidir_core.runs.lm_eval_import import import_results
from bidir_core.runs.records import RECORD_FIELDS
from bidir_core.runs.run import Run
from tests.factory import unsealed
from tests.interop_files import (
    TASKS,
    TOKEN_FIELDS,
    TOKENIZER_KEYS,
    edit_results,
    lines_of,
    results_of,
)


def shape(value: Any) -> Any:
    """Keys in order, lengths and types; numbers are numbers."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return float if type(value) in (int, float) else type(value)


def test_an_export_has_lm_evals_files_keys_and_values(ours, theirs, tmp_path):
    files, notes = export_run(ours, tmp_path)
    assert not notes
    stamp = results_stamp(files[-1])
    assert sorted(path.name.replace(stamp, "T") for path in files) == sorted(
        path.name.replace(results_stamp(path), "T") for path in next(theirs.iterdir()).iterdir()
    )
    assert files[0].parent.name == next(theirs.iterdir()).name
    for task in TASKS:
        lines = zip(lines_of(tmp_path, task), lines_of(theirs, task), strict=True)
        for our_line, their_line in lines:
            assert shape(our_line) == shape(their_line)
            assert list(our_line) == list(their_line)
            for key in our_line:  # documents, prompts, hashes, targets and scores: all the same
                if key not in ("resps", "filtered_resps"):
                    assert our_line[key] == their_line[key], key
            for a, b in zip(our_line["filtered_resps"], their_line["filtered_resps"]):
                assert float(a[0]) == pytest.approx(float(b[0]), abs=1e-3)
            assert our_line["resps"] == [[answer] for answer in our_line["filtered_resps"]]


def results_stamp(path: Path) -> str:
    return path.name.rpartition("_")[2].rpartition(".")[0]


def test_an_exports_results_file_is_lm_evals(ours, theirs, tmp_path):
    export_run(ours, tmp_path)
    mine, their = results_of(tmp_path), results_of(theirs)
    assert their.keys() - TOKENIZER_KEYS == mine.keys() - {"bidir_core"}
    for key in ("results", "n-shot", "versions", "higher_is_better", "n-samples", "task_hashes"):
        assert list(mine[key]) == list(their[key]), key
        for task in TASKS:
            assert mine[key][task] == pytest.approx(their[key][task]), key
    assert mine["config"].keys() == their["config"].keys()
    for task in TASKS:
        own, other = mine["configs"][task], their["configs"][task]
        assert set(own) <= set(other)
        assert {key: type(value) for key, value in own.items()} == {
            key: type(other[key]) for key in own
        }


def test_there_and_back_gives_the_same_records(ours, tmp_path):
    export_run(ours, tmp_path / "out")
    done = import_results(tmp_path / "out", runs_dir=tmp_path / "runs")
    back = Run(done.path)
    kept = [name for name in RECORD_FIELDS if name not in TOKEN_FIELDS]
    a, b = (run.items_table(kept) for run in (ours, back))
    assert a.equals(b)
    assert not done.notes
    told = {
        task: {name: value for name, value in row.items() if name != "acc_tokens"}
        for task, row in ours.metrics["tasks"].items()
    }
    assert back.metrics["tasks"] == told  # a log does not say how many tokens a choice has
    assert back.config["source"].startswith(f"imported from an export of '{ours.id}'")
    for name in ("tokenizer_fingerprint", "bos_added", "model_fingerprint", "data_fingerprint"):
        assert back.config[name] == ours.config[name], name
    (note,) = (note for note in compare(ours, back).notes if "imported" in note)
    assert "not checked" not in note
    again, _ = export_run(back, tmp_path / "again")  # and once more, without its documents
    assert len(again) == len(TASKS) + 1


def test_an_import_goes_out_again_with_its_hashes(imported, theirs, tmp_path):
    _, notes = export_run(imported, tmp_path)
    assert all("documents" in note for note in notes)
    for task in TASKS:
        mine, their = lines_of(tmp_path, task), lines_of(theirs, task)
        for key in ("doc_id", "target", "arguments", "doc_hash", "prompt_hash", "acc"):
            assert [line[key] for line in mine] == [line[key] for line in their], key


def test_a_bidirectional_run_says_so_and_comes_back_as_one(config, theirs, tmp_path, refused):
    path = evaluate(replace(config, regime="bidirectional:sink=1", tasks=("piqa",)))
    files, _ = export_run(Run(path), tmp_path / "out")
    results = json.loads(files[-1].read_text())
    assert results["model_name"].endswith("@bidirectional:sink=1")
    assert results["config"]["model_args"]["regime"] == "bidirectional:sink=1"
    back = Run(import_results(tmp_path / "out", runs_dir=tmp_path / "runs").path)
    assert (back.stage, back.regime) == ("stage2_prefill_bidir_eval", "bidirectional:sink=1")
    words = ["import", str(tmp_path / "out"), "--runs-dir", str(tmp_path / "runs")]
    assert "was made under bidirectional:sink=1" in refused(
        [*words, "--regime", "causal"], beside=True
    )
    stage2 = import_results(theirs, regime="bidirectional", runs_dir=tmp_path / "runs")
    assert Run(stage2.path).stage == "stage2_prefill_bidir_eval"


@pytest.mark.parametrize(
    "changes", [{"tasks": TASKS}, {"repeat_prompt": 2}, {"context": "none"}], ids=str
)
def test_a_compact_run_is_joined_with_its_data_and_comes_back(config, ours, changes, tmp_path):
    asked = replace(config, **{"tasks": ("piqa",), **changes})
    full, compact = (Run(evaluate(replace(asked, compact=c))) for c in (False, True))
    files, _ = export_run(compact, tmp_path / "compact")
    export_run(full, tmp_path / "full")
    for task in asked.tasks:
        assert lines_of(tmp_path / "compact", task) == lines_of(tmp_path / "full", task)
    ((name, value),) = changes.items()
    shown = json.loads(files[-1].read_text())["model_name"]
    assert shown == config.model + (f"@{name}={value}" if name != "tasks" else "")
    back = Run(import_results(tmp_path / "full", runs_dir=tmp_path / "runs").path)
    assert back.settings[name] == (list(value) if name == "tasks" else value)
    if name == "context":  # as any log of lm-eval without contexts
        edit_results(tmp_path / "full", lambda results: results.pop("bidir_core"))
        back = Run(import_results(tmp_path / "full", runs_dir=tmp_path / "runs").path)
        with pytest.raises(UserError, match="scored with context"):
            pair(back, ours)


def test_a_compact_run_without_its_data_is_refused(config, tmp_path, refused):
    run = unsealed(Run(evaluate(replace(config, compact=True, tasks=("piqa",)))))
    moved = json.loads((run.path / "config.json").read_text())
    moved["config"]["data_source"] = str(tmp_path / "gone")
    (run.path / "config.json").write_text(json.dumps(moved))
    assert "kept no texts (--compact) and they cannot be joined back" in refused(
        ["export", str(run.path), "--out", str(tmp_path / "none")], beside=True
    )
    assert not (tmp_path / "none").exists()


def test_a_users_own_task_keeps_its_document(tiny_folder, own_items, tmp_path):
    model, tasks, runs_dir = str(tiny_folder), (str(own_items),), str(tmp_path)
    config = EvalConfig(model=model, tasks=tasks, limit=6, device="cpu", runs_dir=runs_dir)
    run = Run(evaluate(config))
    _, notes = export_run(run, tmp_path / "out")
    assert not notes
    line = lines_of(tmp_path / "out", "mine")[0]
    assert line["doc"]["gold"] == 0
    back = Run(import_results(tmp_path / "out", runs_dir=tmp_path / "b").path)
    assert back.items(["doc_hash", "gold"]).equals(run.items(["doc_hash", "gold"]))


def test_exports_that_cannot_be(ours, tmp_path, refused):
    from tests.factory import make_reference, make_run

    partial = make_run(tmp_path / "runs", n_items=10, state="failed")
    published = make_reference(tmp_path / "runs", tasks={"piqa": 0.6})
    words = ["--out", str(tmp_path / "out")]
    for run, expected in ((partial, "is failed: CUDA"), (published, "has no scored items")):
        assert expected in refused(["export", str(run.path), *words], beside=True)
    assert not (tmp_path / "out").exists()
    export_run(ours, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json*")}
    assert "exists already" in refused(["export", str(ours.path), *words], beside=True)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(
        ["export", str(ours.path), "--out", str(tmp_path / "file")], beside=True
    )
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json*")}


def test_an_item_error_goes_out_as_nan_and_comes_back(tmp_path):
    from tests.factory import make_run

    run = make_run(tmp_path / "runs", n_items=12, tasks=("piqa",), n_errors=2)
    export_run(run, tmp_path / "out")
    assert lines_of(tmp_path / "out", "piqa")[0]["filtered_resps"][0][0] == "nan"
    back = Run(import_results(tmp_path / "out", runs_dir=tmp_path / "b").path)
    assert back.metrics["n_errors"] == 2
    assert back.items_table(["pred", "ll"]).equals(run.items_table(["pred", "ll"]))
