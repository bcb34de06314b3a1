"""Damaged, foreign and unsupported input: one sentence, and nothing written."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from bidir_core.runs.find import list_runs
from bidir_core.runs.lm_eval_import import import_results
from bidir_core.runs.writer import RunWriter
from tests.interop_files import edit_lines, edit_results


def drop(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def tear(folder: Path) -> None:
    (path,) = folder.glob("samples_piqa_*")
    path.write_bytes(path.read_bytes()[:-60])


def generated(lines) -> None:
    for line in lines:
        line["arguments"] = {"gen_args_0": {"arg_0": "Q", "arg_1": {"until": ["\n"]}}}


def piqa(change: Any) -> Any:
    """Damage to the samples of piqa, given as a list of lines."""
    return lambda folder: edit_lines(folder, "piqa", change)


def results(change: Any) -> Any:
    """Damage to the results file, given as its JSON."""
    return lambda folder: edit_results(folder, change)


BAD: dict[str, tuple[Any, str]] = {
    "not lm-eval's": (lambda d: drop(d, "*"), "holds no lm-eval output"),
    "an older layout": (
        lambda d: (drop(d, "*"), (d / "results.json").write_text("{}")),
        "since lm-eval 0.4.3",
    ),
    "samples without results": (lambda d: drop(d, "results*"), "has no results_"),
    "results without samples": (lambda d: drop(d, "samples*"), "--log_samples"),
    "a task's samples are missing": (
        lambda d: drop(d, "samples_piqa*"),
        "--tasks hellaswag,winogrande",
    ),
    "a torn line": (tear, "line 10: not JSON ("),
    "a line of something else": (
        piqa(lambda x: x.insert(3, {"a": 1})),
        "line 4: 'doc_id' is missing",
    ),
    "a lost line": (piqa(lambda x: x.pop(2)), "has 9 samples"),
    "an empty file": (piqa(lambda x: x.clear()), "is empty"),
    "a document twice": (piqa(lambda x: x.append(x[1])), "document 1 again; line 2 has"),
    "generated text": (
        results(lambda r: r["configs"]["piqa"].update(output_type="generate_until")),
        "of type generate_until; only multiple_choice",
    ),
    "generated text, not declared": (piqa(generated), "line 1: 'arguments' are not a context"),
    "one request": (piqa(lambda x: x[0]["arguments"].pop("gen_args_1")), "line 1: has one choice"),
    "a response too few": (
        piqa(lambda x: x[2]["filtered_resps"].pop()),
        "line 3: has 2 requests and 1 responses",
    ),
    "a response that is a text": (
        piqa(lambda x: x[2].update(filtered_resps=["a", "b"])),
        "line 3: the response of choice 0 is 'a'",
    ),
    "a changed score": (
        piqa(lambda x: x[0].update(acc=1 - x[0]["acc"])),
        "line 1: lm-eval counted acc",
    ),
    "results of another run": (
        results(lambda r: r["results"]["piqa"].update({"acc,none": 0.123})),
        "says 0.123; these files are not of one run",
    ),
    "results that are something else": (
        results(lambda r: r.pop("configs")),
        "is not lm-eval's results file",
    ),
    "an old version": (results(lambda r: r.update(lm_eval_version="0.3.0")), "lm-eval 0.3.0"),
    "tasks of different shots": (
        results(lambda r: r["n-shot"].update(piqa=5)),
        "differ in few-shot",
    ),
    "a gold out of range": (
        piqa(lambda x: (x[0]["doc"].pop("label"), x[0].update(target="7"))),
        "line 1: its right answer is number 7 of 2",
    ),
    "an edited origin": (results(lambda r: r.update(bidir_core={"regime": 3})), "damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_writes_nothing(case, copy, runs_dir, refused):
    damage, expected = BAD[case]
    damage(copy)
    line = refused(["import", str(copy)], beside=True)
    assert expected in line
    assert str(copy) in line
    assert not list(runs_dir.rglob("*"))


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
        (["--runs-dir", __file__], "test_interop_damage.py"),
    ],
)
def test_bad_arguments(words, expected, copy, runs_dir, refused):
    assert expected in refused(["import", str(copy), *words], beside=True)
    assert not list(runs_dir.rglob("*"))


def test_paths_that_are_not_its_own(theirs, tmp_path, runs_dir, monkeypatch, refused):
    (tmp_path / "notes.txt").write_text("x")
    for name in ("one", "two"):
        shutil.copytree(next(theirs.iterdir()), tmp_path / "out" / name)
    for path, expected in (
        ("none", "does not exist"),
        ("notes.txt", "is not named like"),
        ("out", "results of 2 models (one, two)"),
    ):
        assert expected in refused(["import", str(tmp_path / path)], beside=True)
    monkeypatch.setenv("BIDIR_READ_ONLY", "1")
    assert "read-only" in refused(["import", str(theirs)], beside=True)


def test_a_crash_while_writing_leaves_nothing(copy, runs_dir, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunWriter, "finish", full)
    with pytest.raises(OSError, match="No space"):
        import_results(copy)
    assert not [path for path in runs_dir.rglob("*") if path.is_file()]
    assert not list_runs([runs_dir])
