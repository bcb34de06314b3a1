"""Import and export against lm-eval itself: its real output read, and its files written.

lm-eval 0.4.13 scores a tiny model on documents we hand it and saves its samples as its command
line does; our own run of the same model and the import must agree item by item.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from lm_eval_reference import lm_eval_task

from bidir_core import interop, report
from bidir_core.cli import main
from bidir_core.compare import compare, flips, mismatch_report
from bidir_core.config import EvalConfig
from bidir_core.errors import UserError
from bidir_core.evaluate import evaluate
from bidir_core.interop.lm_eval_import import import_results
from bidir_core.interop.lm_eval_write import export_run
from bidir_core.pairing import pair
from bidir_core.records import HEAVY_FIELDS, RECORD_FIELDS, make_record
from bidir_core.run_writer import RunWriter
from bidir_core.store import Run, list_runs

N = 12
TASKS = ("hellaswag", "winogrande", "piqa")
DOCS: dict[str, list[dict[str, Any]]] = {
    "hellaswag": [
        {
            "ind": i,
            "activity_label": "Baking",
            "ctx_a": f"A cook “opens” oven {i}.",
            "ctx_b": "the Cook",
            "ctx": f"A cook opens oven {i}. the Cook",
            "endings": [
                f"eats [step] it {i}.",
                "[header] Cake [title] Bake.",
                "runs.",
                "sings on.",
            ],
            "source_id": ("wikihow~1", "activitynet~v_x")[i % 2],
            "split": "val",
            "split_type": "indomain",
            "label": str(i % 4),
        }
        for i in range(N)
    ],
    "piqa": [
        {"goal": f"Open jar {i}", "sol1": "turn the lid " * (i % 3 + 1), "sol2": "blow at it"}
        | {"label": i % 2}
        for i in range(N)
    ],
    "winogrande": [
        {"sentence": f"Ann paid Bea {i} times, so _ was “broke”.", "option1": "Ann"}
        | {"option2": "Bea", "answer": str(1 + i % 2)}
        for i in range(N)
    ],
}
LIMIT = 10
# What an lm-eval run cannot know, or knows only of a tokenizer that it has itself.
TOKENIZER_KEYS = {
    "tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id", "max_length"
}  # fmt: skip
TOKEN_FIELDS = (
    "n_prefix_tokens", "n_continuation_tokens", *(f for f in HEAVY_FIELDS if "token" in f)
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for task, docs in DOCS.items():
        (folder / task).mkdir()
        lines = "".join(json.dumps(doc) + "\n" for doc in docs)
        (folder / task / "validation.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def theirs(tiny_folder, tmp_path_factory) -> Path:
    """lm-eval's own output folder, written by its own tracker."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    out = tmp_path_factory.mktemp("lm-eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        tracker = EvaluationTracker(output_path=str(out))
        results = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(tiny_folder), "dtype": "float32"},
            tasks=[lm_eval_task(name, datasets.Dataset.from_list(DOCS[name])) for name in TASKS],
            task_manager=TaskManager(include_defaults=False),  # else it reads 13,000 files
            device="cpu",
            batch_size=4,
            limit=LIMIT,
            bootstrap_iters=1,
            log_samples=True,
            evaluation_tracker=tracker,
        )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    return out


@pytest.fixture(scope="module")
def config(tiny_folder, data, tmp_path_factory) -> EvalConfig:
    return EvalConfig(
        model=str(tiny_folder),
        tasks=TASKS,
        limit=LIMIT,
        device="cpu",
        dtype="float32",
        data_source=str(data),
        runs_dir=str(tmp_path_factory.mktemp("ours")),
    )


@pytest.fixture(scope="module")
def ours(config) -> Run:
    return Run(evaluate(config))


@pytest.fixture(scope="module")
def imported(theirs, tmp_path_factory) -> Run:
    return Run(import_results(theirs, runs_dir=tmp_path_factory.mktemp("imported")).path)


@pytest.fixture
def copy(theirs, tmp_path) -> Path:
    """lm-eval's files in a folder of one's own, to damage."""
    return Path(shutil.copytree(next(theirs.iterdir()), tmp_path / "copy"))


def lines_of(folder: Path, task: str) -> list[dict[str, Any]]:
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def results_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("results_*.json")
    return json.loads(path.read_text())


def edit_results(folder: Path, change) -> None:
    (path,) = folder.rglob("results_*.json")
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_lines(folder: Path, task: str, change) -> None:
    """``change`` gets the list of samples."""
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    lines = lines_of(folder, task)
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


# --- import ----------------------------------------------------------------------------------


def test_an_import_equals_our_own_run(imported, ours, theirs):
    said = results_of(theirs)["results"]
    assert (imported.state, imported.stage, imported.regime) == ("done", ours.stage, "causal")
    for task in TASKS:
        row, own = imported.metrics["tasks"][task], ours.metrics["tasks"][task]
        assert row == {**own, "gold_prob": pytest.approx(own["gold_prob"], abs=1e-4)}
        for metric in ("acc", "acc_stderr", "acc_norm"):
            assert row[metric] == pytest.approx(said[task].get(f"{metric},none", None)), metric
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
    for name, value in {"limit": LIMIT, "split": "validation", "num_fewshot": 0, "attn": None}.items():  # fmt: skip
        assert imported.settings[name] == value, name


@pytest.mark.parametrize("swap", [False, True])
def test_it_pairs_with_our_run_and_says_what_was_not_checked(imported, ours, swap):
    a, b = (ours, imported) if swap else (imported, ours)
    result = compare(a, b)
    assert result.macro.n == LIMIT * len(TASKS)
    assert result.macro.broken == result.macro.fixed == result.n_unpaired == 0
    assert {row.task: row.chance for row in result.tasks} == {
        "hellaswag": 0.25, "winogrande": 0.5, "piqa": 0.5,
    }  # fmt: skip
    (note,) = (note for note in result.notes if "imported" in note)
    assert "not checked: tokenizer, BOS token; prompts and choices are the same text" in note
    frame = flips(a, b)
    lengths = ours.items(["n_prefix_tokens"])["n_prefix_tokens"].map(max)
    assert frame["n_prefix_tokens"].tolist() == lengths.tolist()
    assert frame["context_short"].str.len().gt(0).all()


def test_two_imports_pair_without_token_counts(imported):
    assert not flips(imported, imported)["n_prefix_tokens"].any()


def test_another_prompt_with_the_same_document_is_refused(copy, ours, tmp_path):
    def reword(lines):
        for request in lines[2]["arguments"].values():
            request["arg_0"] = request["arg_0"].replace("Question", "Q")

    edit_lines(copy, "piqa", reword)
    other = Run(import_results(copy, runs_dir=tmp_path / "runs").path)
    with pytest.raises(UserError, match="the prompt of piqa/2 and perhaps others differ"):
        pair(other, ours)
    (found,) = mismatch_report(other, ours)
    assert found.what == "texts"
    assert found.value_a.startswith("Q: Open jar 2")


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
    run = Run(import_results(copy, runs_dir=tmp_path).path)
    assert run.metrics["n_errors"] == 1
    assert "log-likelihood of choice 0 is nan" in run.item("piqa", 1)["error"]
    assert compare(run, ours).n_errors == 1


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


# --- bad input -------------------------------------------------------------------------------


def drop(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def tear(folder: Path) -> None:
    (path,) = folder.glob("samples_piqa_*")
    path.write_bytes(path.read_bytes()[:-60])


def generated(lines) -> None:
    for line in lines:
        line["arguments"] = {"gen_args_0": {"arg_0": "Q", "arg_1": {"until": ["\n"]}}}


BAD: dict[str, tuple[Any, str]] = {
    "not lm-eval's": (lambda d: drop(d, "*"), "holds no lm-eval output"),
    "an older layout": (
        lambda d: (drop(d, "*"), (d / "results.json").write_text("{}")), "lm-eval before 0.4.3"
    ),
    "samples without results": (lambda d: drop(d, "results*"), "has no results_"),
    "results without samples": (lambda d: drop(d, "samples*"), "--log_samples"),
    "a task's samples are missing": (
        lambda d: drop(d, "samples_piqa*"), "--tasks hellaswag,winogrande"
    ),
    "a torn line": (tear, "line 10: not JSON in UTF-8"),
    "a line of something else": (
        lambda d: edit_lines(d, "piqa", lambda x: x.insert(3, {"a": 1})), "line 4: has no 'doc_id'"
    ),
    "a lost line": (lambda d: edit_lines(d, "piqa", lambda x: x.pop(2)), "has 9 samples"),
    "an empty file": (lambda d: edit_lines(d, "piqa", lambda x: x.clear()), "is empty"),
    "a document twice": (
        lambda d: edit_lines(d, "piqa", lambda x: x.append(x[1])), "document 1 again; line 2 has"
    ),
    "generated text": (
        lambda d: edit_results(
            d, lambda r: r["configs"]["piqa"].update(output_type="generate_until")
        ),
        "of type generate_until: it is scored on generated text",
    ),
    "generated text, not declared": (
        lambda d: edit_lines(d, "piqa", generated), "line 1: the task 'piqa' asks for generated"
    ),
    "perplexity": (
        lambda d: edit_results(
            d, lambda r: r["configs"]["piqa"].update(output_type="loglikelihood_rolling")
        ),
        "perplexity, without choices",
    ),
    "one request": (
        lambda d: edit_lines(d, "piqa", lambda x: x[0]["arguments"].pop("gen_args_1")),
        "line 1: has one choice",
    ),
    "a response too few": (
        lambda d: edit_lines(d, "piqa", lambda x: x[2]["filtered_resps"].pop()),
        "line 3: has 2 requests and 1 responses",
    ),
    "a response that is a text": (
        lambda d: edit_lines(d, "piqa", lambda x: x[2].update(filtered_resps=["a", "b"])),
        "line 3: the response of choice 0 is 'a'",
    ),
    "a changed score": (
        lambda d: edit_lines(d, "piqa", lambda x: x[0].update(acc=1 - x[0]["acc"])),
        "line 1: lm-eval counted acc",
    ),
    "results of another run": (
        lambda d: edit_results(d, lambda r: r["results"]["piqa"].update({"acc,none": 0.123})),
        "says 0.1230; these files are not of one run",
    ),
    "results that are something else": (
        lambda d: edit_results(d, lambda r: r.pop("configs")), "is not lm-eval's results file"
    ),
    "an old version": (
        lambda d: edit_results(d, lambda r: r.update(lm_eval_version="0.3.0")), "lm-eval 0.3.0"
    ),
    "tasks of different shots": (
        lambda d: edit_results(d, lambda r: r["n-shot"].update(piqa=5)), "differ in few-shot"
    ),
    "a gold out of range": (
        lambda d: edit_lines(
            d, "piqa", lambda x: (x[0]["doc"].pop("label"), x[0].update(target="7"))
        ),
        "line 1: its right answer is number 7 of 2",
    ),
    "an edited origin": (
        lambda d: edit_results(d, lambda r: r.update(bidir_core={"regime": 3})), "damaged"
    ),
}  # fmt: skip


def one_line(capsys) -> str:
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_writes_nothing(case, copy, runs_dir, capsys):
    damage, expected = BAD[case]
    damage(copy)
    assert main(["import", str(copy)]) == 2
    line = one_line(capsys)
    assert expected in line
    assert str(copy) in line
    assert not list(runs_dir.rglob("*"))


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value inside a JSON value."""
    if not isinstance(value, dict | list):
        return []
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in inside:
        found += [(*path, key), *places(inner, (*path, key))]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_damage_anywhere_is_refused_or_harmless(seed, copy, tmp_path):
    """Values replaced or removed at random: a whole run or one sentence, never anything else."""
    rng = random.Random(seed)
    odd = [None, True, -1, 1e308, float("nan"), "", "\ud800", [], [1], {}, {"a": 1}, "1e400", 2**70]

    def damage(value):
        *path, last = rng.choice(places(value))
        for key in path:
            value = value[key]
        value[last] = rng.choice(odd)

    for attempt in range(12):
        folder = Path(shutil.copytree(copy, tmp_path / str(attempt) / "in"))
        if attempt % 2:
            edit_lines(folder, rng.choice(TASKS), lambda lines: damage(rng.choice(lines)))
        else:
            edit_results(folder, damage)
        runs = tmp_path / str(attempt) / "runs"
        refused = ""
        try:
            run = Run(import_results(folder, runs_dir=runs).path)
        except UserError as error:
            refused = str(error)
        assert "\n" not in refused
        if refused:
            assert not [path for path in runs.rglob("*") if path.is_file()]
        else:
            assert run.state == "done"
            assert len(run.items()) == LIMIT * len(TASKS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--tasks", "gsm8k"], "--tasks gsm8k"),
        (["--task-map", "piqa"], "write THEIRS=OURS"),
        (["--task-map", "gsm8k=piqa"], "no task 'gsm8k'"),
        (["--task-map", "piqa=winogrande"], "two tasks would be called 'winogrande'"),
        (["--task-map", "piqa=a/b"], "cannot be called 'a/b'"),
        (["--regime", "sideways"], "sideways"),
        (["--name", "a/b"], "a/b"),
        (["--runs-dir", __file__], "test_interop.py"),
    ],
)
def test_bad_arguments(words, expected, copy, runs_dir, capsys):
    assert main(["import", str(copy), *words]) == 2
    assert expected in one_line(capsys)
    assert not list(runs_dir.rglob("*"))


def test_missing_and_foreign_paths(tmp_path, runs_dir, capsys):
    (tmp_path / "notes.txt").write_text("x")
    for path, expected in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "notes.txt", "named"),
    ):
        assert main(["import", str(path)]) == 2
        assert expected in one_line(capsys)


def test_a_folder_of_several_models_is_not_guessed_at(theirs, tmp_path, runs_dir, capsys):
    for name in ("one", "two"):
        shutil.copytree(next(theirs.iterdir()), tmp_path / "out" / name)
    assert main(["import", str(tmp_path / "out")]) == 2
    assert "results of 2 models (one, two)" in one_line(capsys)


def test_a_crash_while_writing_leaves_nothing(copy, runs_dir, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunWriter, "finish", full)
    with pytest.raises(OSError, match="No space"):
        import_results(copy)
    assert not [path for path in runs_dir.rglob("*") if path.is_file()]
    assert not list_runs([runs_dir])


def test_read_only_refuses_an_import(copy, runs_dir, monkeypatch, capsys):
    monkeypatch.setenv("BIDIR_READ_ONLY", "1")
    assert main(["import", str(copy)]) == 2
    assert "read-only" in one_line(capsys)


# --- export ----------------------------------------------------------------------------------


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
        for mine, their in zip(lines_of(tmp_path, task), lines_of(theirs, task), strict=True):
            assert shape(mine) == shape(their)
            assert list(mine) == list(their)
            for key in mine:  # documents, prompts, hashes, targets and scores: all the same
                if key not in ("resps", "filtered_resps"):
                    assert mine[key] == their[key], key
            for one, other in zip(mine["filtered_resps"], their["filtered_resps"]):
                assert float(one[0]) == pytest.approx(float(other[0]), abs=1e-3)
            assert mine["resps"] == [[answer] for answer in mine["filtered_resps"]]


def results_stamp(path: Path) -> str:
    return path.name.rpartition("_")[2].rpartition(".")[0]


def test_an_exports_results_file_is_lm_evals(ours, theirs, tmp_path):
    export_run(ours, tmp_path)
    mine, their = results_of(tmp_path), results_of(theirs)
    assert [key for key in their if key not in TOKENIZER_KEYS] == [
        key for key in mine if key != "bidir_core"
    ]
    for key in ("results", "n-shot", "versions", "higher_is_better", "n-samples", "task_hashes"):
        assert list(mine[key]) == list(their[key]), key
        for task in TASKS:
            assert mine[key][task] == pytest.approx(their[key][task]), key
    assert list(mine["config"]) == list(their["config"])
    for task in TASKS:
        own, other = mine["configs"][task], their["configs"][task]
        assert set(own) <= set(other)
        assert {key: type(value) for key, value in own.items()} == {
            key: type(other[key]) for key in own
        }


def test_tools_that_load_samples_as_a_dataset_see_the_same_columns(ours, theirs, tmp_path):
    export_run(ours, tmp_path)
    for task in TASKS:
        found = []
        for folder in (tmp_path, theirs):
            (path,) = folder.rglob(f"samples_{task}_*.jsonl")
            found.append(
                datasets.Dataset.from_json(str(path), cache_dir=str(tmp_path / "cache")).features
            )
        assert found[0] == found[1]


def test_there_and_back_gives_the_same_records(ours, tmp_path):
    export_run(ours, tmp_path / "out")
    done = import_results(tmp_path / "out", runs_dir=tmp_path / "runs")
    back = Run(done.path)
    kept = [name for name in RECORD_FIELDS if name not in TOKEN_FIELDS]
    a, b = (run.items_table(kept) for run in (ours, back))
    assert a.equals(b)
    assert not done.notes
    assert back.metrics["tasks"] == ours.metrics["tasks"]
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


def test_a_bidirectional_run_says_so_and_comes_back_as_one(config, theirs, tmp_path, capsys):
    path = evaluate(replace(config, regime="bidirectional:sink=1", tasks=("piqa",)))
    files, _ = export_run(Run(path), tmp_path / "out")
    results = json.loads(files[-1].read_text())
    assert results["model_name"].endswith("@bidirectional:sink=1")
    assert results["config"]["model_args"]["regime"] == "bidirectional:sink=1"
    back = Run(import_results(tmp_path / "out", runs_dir=tmp_path / "runs").path)
    assert (back.stage, back.regime) == ("stage2_prefill_bidir_eval", "bidirectional:sink=1")
    words = ["import", str(tmp_path / "out"), "--runs-dir", str(tmp_path / "runs")]
    assert main([*words, "--regime", "causal"]) == 2
    assert "was made under bidirectional:sink=1" in one_line(capsys)
    stage2 = import_results(theirs, regime="bidirectional", runs_dir=tmp_path / "runs")
    assert Run(stage2.path).stage == "stage2_prefill_bidir_eval"


def test_a_compact_run_is_joined_with_its_data(config, ours, tmp_path, capsys):
    path = evaluate(replace(config, compact=True))
    export_run(Run(path), tmp_path / "compact")
    export_run(ours, tmp_path / "full")
    for task in TASKS:
        assert lines_of(tmp_path / "compact", task) == lines_of(tmp_path / "full", task)
    moved = json.loads((path / "config.json").read_text())
    moved["config"]["data_source"] = str(tmp_path / "gone")
    (path / "config.json").write_text(json.dumps(moved))
    assert main(["export", str(path), "--out", str(tmp_path / "none")]) == 2
    assert "kept no texts (--compact) and they cannot be joined back" in one_line(capsys)
    assert not (tmp_path / "none").exists()


def test_a_floor_without_contexts_comes_back_as_one(config, ours, tmp_path):
    run = Run(evaluate(replace(config, context="none", compact=True)))
    files, _ = export_run(run, tmp_path / "out")
    assert "@context=none" in json.loads(files[-1].read_text())["model_name"]
    edit_results(tmp_path / "out", lambda results: results.pop("bidir_core"))
    back = Run(import_results(tmp_path / "out", runs_dir=tmp_path / "runs").path)
    assert back.settings["context"] == "none"
    with pytest.raises(UserError, match="scored with context"):
        pair(back, ours)


def test_a_users_own_task_keeps_its_document(tiny_folder, own_items, tmp_path):
    config = EvalConfig(
        model=str(tiny_folder), tasks=(str(own_items),), limit=6, device="cpu", runs_dir=str(tmp_path)
    )  # fmt: skip
    run = Run(evaluate(config))
    _, notes = export_run(run, tmp_path / "out")
    assert not notes
    assert interop.__doc__
    line = lines_of(tmp_path / "out", "mine")[0]
    assert line["doc"]["gold"] == 0
    back = Run(import_results(tmp_path / "out", runs_dir=tmp_path / "b").path)
    assert back.items(["doc_hash", "gold"]).equals(run.items(["doc_hash", "gold"]))


def test_exports_that_cannot_be(ours, tmp_path, capsys):
    from tests.factory import make_reference, make_run

    partial = make_run(tmp_path / "runs", n_items=10, state="failed")
    published = make_reference(tmp_path / "runs", tasks={"piqa": 0.6})
    words = ["--out", str(tmp_path / "out")]
    for run, expected in ((partial, "is failed: CUDA"), (published, "has no scored items")):
        assert main(["export", str(run.path), *words]) == 2
        assert expected in one_line(capsys)
    assert not (tmp_path / "out").exists()
    export_run(ours, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json*")}
    assert main(["export", str(ours.path), *words]) == 2
    assert "exists already" in one_line(capsys)
    (tmp_path / "file").write_text("")
    assert main(["export", str(ours.path), "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in one_line(capsys)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json*")}


def test_an_item_error_goes_out_as_nan_and_comes_back(tmp_path):
    from tests.factory import make_run

    run = make_run(tmp_path / "runs", n_items=12, tasks=("piqa",), n_errors=2)
    export_run(run, tmp_path / "out")
    assert lines_of(tmp_path / "out", "piqa")[0]["filtered_resps"][0][0] == "nan"
    back = Run(import_results(tmp_path / "out", runs_dir=tmp_path / "b").path)
    assert back.metrics["n_errors"] == 2
    assert back.items_table(["pred", "ll"]).equals(run.items_table(["pred", "ll"]))


# --- what an imported run does not do --------------------------------------------------------


def test_a_report_takes_an_imported_run_only_when_named(ours, imported):
    study = report.choose_study(ours.model, [imported, ours])
    assert [run.id for run in study.all_runs] == [ours.id]
    named = report.build_report([imported])
    assert imported.config["source"] in named.markdown()


def test_the_pipeline_does_not_take_an_imported_run_for_its_own(ours, tmp_path):
    from bidir_core.config import from_json
    from bidir_core.pipeline import Known, _is_run_of
    from bidir_core.pipeline_config import Stage

    export_run(ours, tmp_path / "out")
    back = Run(import_results(tmp_path / "out", runs_dir=tmp_path / "runs").path)
    known = Known(
        ours.config["model_fingerprint"], ours.config["data_fingerprint"], "float32", "cpu"
    )
    stage = Stage("stage1", "", from_json(EvalConfig, ours.settings))
    assert _is_run_of(ours, stage, None, known)
    assert not _is_run_of(back, stage, None, known)


def test_records_need_no_token_counts():
    record = make_record(
        task="t", doc_id=0, doc_hash="x", gold=0, contexts=["a"], continuations=[" b", " c"],
        n_prefix_tokens=(), n_continuation_tokens=(), ll=[-1.0, -2.0],
    )  # fmt: skip
    assert record["correct"]
