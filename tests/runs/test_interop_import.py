"""What lm-eval logged, read as a run: it equals our own, and says what was not checked."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from bidir_core.analyse.compare import compare
from bidir_core.analyse.flips import flips
from bidir_core.analyse.pairing import mismatch_report, pair
from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.evaluate.config import EvalConfig
from bidir_core.report import report
from bidir_core.runs import lm_eval_read
from bidir_core.runs.lm_eval_export import export_run
from bidir_core.runs.lm_eval_import import import_results
from bidir_core.runs.records import RECORD_FIELDS
from bidir_core.runs.run import Run
from tests.interop_files import LIMIT, TASKS, TOKEN_FIELDS, edit_lines, edit_results, results_of


def test_an_import_equals_our_own_run(imported, ours, theirs):
    scores = results_of(theirs)["results"]
    assert (imported.state, imported.stage, imported.regime) == ("done", ours.stage, "causal")
    for task in TASKS:
        row, own = imported.metrics["tasks"][task], dict(ours.metrics["tasks"][task])
        del own["acc_tokens"]  # a log does not say how many tokens a choice has
        assert row == {**own, "gold_prob": pytest.approx(own["gold_prob"], abs=1e-4)}
        for metric in ("acc", "acc_stderr", "acc_norm"):
            assert row[metric] == pytest.approx(scores[task].get(f"{metric},none", None)), metric
    a, b = imported.items(RECORD_FIELDS), ours.items(RECORD_FIELDS)
    same = [f for f in RECORD_FIELDS if f not in (*TOKEN_FIELDS, "ll", "margin")]
    assert json.loads(a[same].to_json()) == json.loads(b[same].to_json())
    for left, right in zip(a["ll"], b["ll"]):
        np.testing.assert_allclose(left, right, atol=1e-3)
    assert imported.config["data_fingerprint"] == ours.config["data_fingerprint"]


def test_what_lm_eval_did_not_log_is_null_and_what_it_did_is_kept(imported, tiny_folder):
    record = imported.item("winogrande", 3)
    assert record["n_prefix_tokens"] == record["n_continuation_tokens"] == [None, None]
    assert all(record[f] is None for f in TOKEN_FIELDS if f.endswith(("ids", "offsets", "ll")))
    assert imported.config["kind"] == "imported"
    assert imported.config["source"].startswith("imported from lm-eval 0.4.13, 20")
    assert imported.config["imported"]["model_args"]["pretrained"] == str(tiny_folder)
    assert imported.config["packages"]["lm-eval"] == "0.4.13"
    assert imported.config["tokenizer_fingerprint"] is None
    assert imported.config["dtype"] == "float32"
    for name, value in {
        "limit": LIMIT,
        "split": "validation",
        "num_fewshot": 0,
        "attn": None,
    }.items():
        assert imported.settings[name] == value, name


@pytest.mark.parametrize("swap", [False, True])
def test_it_pairs_with_our_run_and_says_what_was_not_checked(imported, ours, swap):
    a, b = (ours, imported) if swap else (imported, ours)
    result = compare(a, b)
    assert result.macro.n == LIMIT * len(TASKS)
    assert result.macro.broken == result.macro.fixed == result.n_unpaired == 0
    assert {row.task: row.chance for row in result.tasks} == {
        "hellaswag": 0.25,
        "winogrande": 0.5,
        "piqa": 0.5,
    }
    (note,) = (note for note in result.notes if "imported" in note)
    assert "not checked: tokenizer, BOS token; prompts and choices are the same text" in note
    frame = flips(a, b)
    lengths = ours.items(["n_prefix_tokens"])["n_prefix_tokens"].map(max)
    assert frame["n_prefix_tokens"].tolist() == lengths.tolist()
    assert frame["context_short"].str.len().gt(0).all()
    assert not flips(imported, imported)["n_prefix_tokens"].any()  # nobody counted them


def test_another_prompt_with_the_same_document_is_refused(copy, ours, tmp_path):
    def reword(lines):
        for request in lines[2]["arguments"].values():
            request["arg_0"] = request["arg_0"].replace("Question", "Q")

    edit_lines(copy, "piqa", reword)
    other = Run(import_results(copy, runs_dir=tmp_path / "runs").path)
    with pytest.raises(UserError, match="the prompt of piqa/2 and perhaps others differ"):
        pair(other, ours)
    (mismatch,) = mismatch_report(other, ours)
    assert mismatch.what == "texts"
    assert mismatch.value_a.startswith("Q: Open jar 2")


def test_other_documents_and_other_settings_are_refused(copy, ours, tmp_path):
    edit_results(copy, lambda r: r["n-shot"].update(dict.fromkeys(TASKS, 5)))
    other = Run(import_results(copy, runs_dir=tmp_path / "a").path)
    with pytest.raises(UserError, match="shows '5' solved examples"):
        pair(other, ours)
    edit_results(copy, lambda r: r["n-shot"].update(dict.fromkeys(TASKS, 0)))
    edit_lines(copy, "piqa", lambda lines: lines[4].update(doc_hash="0" * 64))
    other = Run(import_results(copy, runs_dir=tmp_path / "b").path)
    with pytest.raises(UserError, match=r"hold different documents .*first piqa/4"):
        pair(other, ours)
    assert pair(other, ours, intersect=True).n == LIMIT * len(TASKS) - 1


def test_the_command_reads_the_newest_set_renames_and_chooses_tasks(copy, runs_dir, capsys):
    old = [path for path in copy.iterdir() if "hellaswag" not in path.name]
    for path in old:  # a set of last year
        stem, _, ending = path.name.rpartition("_")
        (copy / f"{stem}_2001{ending[4:]}").write_text(path.read_text())
    words = ["import", str(copy), "--tasks", "piqa,winogrande", "--task-map", "piqa=my_piqa"]
    assert main([*words, "--name", "theirs", "--model", "ours"]) == 0
    out, err = capsys.readouterr()
    run = Run(Path(out.strip()))
    assert (run.name, run.model, run.tasks) == ("theirs", "ours", ["my_piqa", "winogrande"])
    assert "the newest of 2 sets of files was read" in err
    assert run.config["imported"]["task_names"] == {"piqa": "my_piqa"}
    assert run.items(["gold"])["gold"].tolist() == [i % 2 for i in range(LIMIT)] * 2


def test_a_results_file_or_the_folder_above_names_the_same(theirs, tmp_path):
    (results,) = theirs.rglob("results_*.json")
    one, other = (Run(import_results(path, runs_dir=tmp_path).path) for path in (results, theirs))
    assert one.config["data_fingerprint"] == other.config["data_fingerprint"]


def test_gold_of_an_unknown_task_follows_from_what_was_counted(copy, ours, tmp_path):
    """winogrande under another name: its ``target`` is a text, and so is piqa's here."""

    def as_text(lines):
        for line in lines:
            line["target"] = line["arguments"][f"gen_args_{line['target']}"]["arg_1"].strip()

    edit_lines(copy, "piqa", as_text)
    names = {"winogrande": "wino_like", "piqa": "piqa_like"}
    run = Run(import_results(copy, tasks=list(names), task_map=names, runs_dir=tmp_path).path)
    assert run.items(["gold"])["gold"].tolist() == [i % 2 for i in range(LIMIT)] * 2


def test_a_score_that_is_no_number_is_an_item_error(copy, ours, tmp_path):
    def break_one(lines):
        lines[1]["filtered_resps"][0][0] = "nan"

    edit_lines(copy, "piqa", break_one)
    done = import_results(copy, runs_dir=tmp_path)
    (note,) = [note for note in done.notes if note.startswith("piqa: ")]
    assert "1 items have a log-likelihood that is no number" in note
    assert note.endswith("lm-eval counted 1 of them as right")
    run = Run(done.path)
    assert note in run.config["imported"]["notes"]
    assert run.metrics["n_errors"] == 1
    assert "log-likelihood of choice 0 is nan" in run.item("piqa", 1)["error"]
    assert compare(run, ours).n_errors == 1


def test_a_choice_at_minus_infinity_loses_as_it_does_in_lm_eval(copy, imported, tmp_path):
    def break_one(lines):
        answers = [float(one[0]) for one in lines[1]["filtered_resps"]]
        lines[1]["filtered_resps"][int(np.argmin(answers))][0] = "-inf"

    edit_lines(copy, "piqa", break_one)
    done = import_results(copy, runs_dir=tmp_path)
    assert not [note for note in done.notes if "no number" in note]
    run = Run(done.path)
    assert run.metrics["n_errors"] == 0
    assert run.metrics["tasks"]["piqa"]["acc"] == imported.metrics["tasks"]["piqa"]["acc"]
    assert run.item("piqa", 1)["ll"].count(-np.inf) == 1
    assert compare(run, imported).macro.delta == 0.0
    assert len(flips(run, imported)) == run.metrics["n_items"]


def test_unknown_limit_split_and_versions_are_noted(copy, tmp_path):
    def forget(results):
        del results["n-samples"], results["config"]["limit"]
        results["configs"]["piqa"]["test_split"] = "test"
        results["versions"]["piqa"] = 0.0
        results["lm_eval_version"] = "0.6.0"

    edit_results(copy, forget)
    done = import_results(copy, runs_dir=tmp_path)
    notes = "\n".join(done.notes)
    for part in (
        "the limit is not recorded; the largest task has 10 items",
        "different splits: hellaswag validation, winogrande validation, piqa test",
        "piqa: version 0.0 of lm-eval's task; ours is 1.0",
        "lm-eval 0.6.0 is newer than what is tested",
    ):
        assert part in notes
    run = Run(done.path)
    assert (run.settings["limit"], run.settings["split"]) == (LIMIT, None)
    assert run.config["imported"]["notes"] == list(done.notes)


def test_a_peft_adapter_is_a_fine_tuned_model(copy, tmp_path):
    args = "pretrained=base-model,peft=/adapters/x,dtype=float32"
    edit_results(copy, lambda r: r["config"].update(model_args=args))
    run = Run(import_results(copy, runs_dir=tmp_path).path)
    assert (run.stage, run.model) == ("nonprefill_compare", "base-model")
    assert run.settings["checkpoint"] == "/adapters/x"


def test_a_report_takes_an_imported_run_only_when_named(ours, imported):
    study = report.choose_study(ours.model, [imported, ours])
    assert [run.id for run in study.all_runs] == [ours.id]
    named = report.build_report([imported])
    assert imported.config["source"] in named.markdown()


def test_the_pipeline_does_not_take_an_imported_run_for_its_own(ours, tmp_path):
    from bidir_core.common.settings import from_json
    from bidir_core.jobs.pipeline import Known, is_run_of
    from bidir_core.jobs.pipeline_config import Stage

    export_run(ours, tmp_path / "out")
    back = Run(import_results(tmp_path / "out", runs_dir=tmp_path / "runs").path)
    known = Known(ours.config["model_fingerprint"], ours.config["data_fingerprint"], "float32")
    stage = Stage("stage1", "", from_json(EvalConfig, ours.settings))
    assert is_run_of(ours, stage, None, known)
    assert not is_run_of(back, stage, None, known)


def older(folder: Path) -> None:
    """As lm-eval wrote samples before 0.4.4: one list, in a file that ends in .json."""
    for path in folder.glob("samples_*.jsonl"):
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        path.with_suffix(".json").write_text(json.dumps(samples, indent=2))
        path.unlink()


def compressed(folder: Path) -> None:
    for path in [*folder.glob("*.json"), *folder.glob("*.jsonl")]:
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def deeper(folder: Path) -> None:
    inner = folder / "2026" / "a model"
    inner.mkdir(parents=True)
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(inner / path.name)


def filtered(folder: Path) -> None:
    """Every sample twice, by another filter, which counted all as wrong."""
    for path in folder.glob("samples_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        others = [line | {"filter": "other", "acc": 0.0} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *others]))


@pytest.mark.parametrize("change", [older, compressed, deeper, filtered])
def test_other_ways_in_which_its_files_lie(change, copy, imported, tmp_path):
    change(copy)
    done = import_results(copy, runs_dir=tmp_path)
    again = Run(done.path)
    mine, theirs = (np.concatenate(run.items(["ll"])["ll"].tolist()) for run in (again, imported))
    assert mine.tolist() == theirs.tolist()
    assert any("of the filters none, other the first" in n for n in done.notes) == (
        change is filtered
    )


def test_a_compressed_file_that_is_cut_short_or_unpacks_to_too_much(copy, tmp_path, monkeypatch):
    compressed(copy)
    path = next(copy.glob("samples_piqa*"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="is not whole gzip"):
        import_results(copy, runs_dir=tmp_path)
    path.write_bytes(gzip.compress(b" " * (1 << 20)))
    assert path.stat().st_size < 2000
    monkeypatch.setattr(lm_eval_read, "MOST_UNPACKED_BYTES", (1 << 20) - 1)
    with pytest.raises(UserError, match="unpacks to more than 1,048,575 bytes"):
        import_results(copy, runs_dir=tmp_path)
