"""The whole experiment on a tiny model: complete, idempotent, resumable, honest about mismatch."""

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bidir_core.cli import estimate_command, main
from bidir_core.common.errors import UserError
from bidir_core.common.settings import to_json
from bidir_core.evaluate import evaluate
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.processes import PARTS
from bidir_core.jobs import pipeline
from bidir_core.jobs.pipeline import dry_run, look, run_pipeline
from bidir_core.jobs.pipeline_config import PRESETS, PipelineConfig, from_preset, plan
from bidir_core.runs.find import list_runs
from bidir_core.runs.run import Run
from bidir_core.train import finetune
from bidir_core.train.config import FinetuneConfig
from tests.factory import training_file
from tests.launching import AUTO, start_several
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="session")
def samples(tmp_path_factory) -> str:
    return training_file(tmp_path_factory.mktemp("data") / "samples.jsonl", 30)


@pytest.fixture
def settings(tiny_folder, own_items, samples, runs_dir) -> dict:
    evaluation = {"model": str(tiny_folder), "tasks": (str(own_items),), "limit": 12}
    tuning = {"data": samples, "steps": 3, "batch_samples": 4, "max_tokens": 64, "warmup_steps": 1}
    tuning |= {"lr": 1e-3, "eval_every": 0, "decontaminate": False}  # that reads the benchmarks
    return evaluation | tuning | {"device": "cpu", "runs_dir": str(runs_dir)}


@pytest.fixture
def config(settings) -> PipelineConfig:
    return PipelineConfig(**settings)


def runs_of(runs_dir: Path) -> dict[str, list[Run]]:
    by_stage: dict[str, list[Run]] = {}
    for run in list_runs([runs_dir]):
        by_stage.setdefault(run.stage, []).append(run)
    return by_stage


def snapshot(runs_dir: Path) -> dict[str, int]:
    return {
        str(p): p.stat().st_mtime_ns
        for p in runs_dir.rglob("*")
        if p.is_file() and p.parent.name != "reports"
    }


def words(settings: dict) -> list[str]:
    flags = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else "--no-" + flag[2:])
        else:
            flags += [flag, ",".join(value) if isinstance(value, tuple) else str(value)]
    return ["pipeline", *flags]


def test_the_whole_experiment_then_nothing_more_to_do(config, runs_dir, monkeypatch, capsys):
    config = replace(config, distill=True, leaky=True)
    loaded, load = [], pipeline.loading.load
    monkeypatch.setattr(
        pipeline.loading, "load", lambda *a, **b: loaded.append(b["checkpoint"]) or load(*a, **b)
    )
    path = run_pipeline(config, csv=True)
    assert len(loaded) == len(set(loaded)) == 5  # each model once
    by_stage = runs_of(runs_dir)
    assert {stage.split("_")[0]: len(runs) for stage, runs in by_stage.items()} == {
        "stage1": 2,  # with and without contexts
        **dict.fromkeys(("stage2", "stage3", "stage3a", "stage3c", "stage3d"), 1),
        **dict.fromkeys(("stage4", "nonprefill"), 4),
    }
    assert all(run.state == "done" for runs in by_stage.values() for run in runs)
    (b,), (c,) = by_stage["stage3_finetune_prefill_bidir"], by_stage["stage3c_finetune_causal"]
    assert b.config["data_fingerprint"] == c.config["data_fingerprint"]
    differing = {k for k in b.settings if b.settings[k] != c.settings[k]}
    assert differing == {"objective", "regime"}
    text = path.read_text()
    assert "3B and 3C share data, order, steps and seeds" in text
    assert "LEAKY" in text
    assert (path.parent / f"{path.stem}.interaction.csv").exists()
    # Both regimes of one checkpoint, and no cell left out of the 2x2.
    table = text.split("The Complete 2x2")[1].split("## ")[0]
    assert "not run" not in table
    before = snapshot(runs_dir)
    capsys.readouterr()
    assert run_pipeline(config) == path
    assert snapshot(runs_dir) == before
    shown = capsys.readouterr().err
    assert shown.count(": done, ") == len(plan(config)) == 15


def test_several_seeds(config, runs_dir):
    path = run_pipeline(replace(config, seeds=2, seed=5, floor=False))
    by_stage = runs_of(runs_dir)
    for stage in ("stage3_finetune_prefill_bidir", "stage3c_finetune_causal"):
        assert sorted(run.settings["seed"] for run in by_stage[stage]) == [5, 6]
    assert len(by_stage["stage1_vanilla_eval"]) == 1
    assert "By seed:" in path.read_text()
    # One seed of the two alone is a subset: nothing is computed again.
    before = snapshot(runs_dir)
    run_pipeline(replace(config, seeds=1, seed=6, floor=False))
    assert snapshot(runs_dir) == before


def test_two_processes_make_the_same_experiment(config, settings, runs_dir, tmp_path):
    alone = replace(config, runs_dir=str(tmp_path / "alone"))
    run_pipeline(alone)
    work = partial(main, words(settings | {"device": AUTO}))
    started = start_several(2, work, tmp_path, "--multi_gpu")
    for process in started:
        process.join(600)
    said, said_by_the_other = ((tmp_path / f"said{n}.txt").read_text() for n in (0, 1))
    assert [process.exitcode for process in started] == [0, 0], said[-3000:]
    assert str(pipeline.report_path(config)) in said
    assert (said.count("stage 4 of 9"), said_by_the_other.count("stage 4 of 9")) == (1, 0)
    alone_runs, two_runs = runs_of(tmp_path / "alone"), runs_of(runs_dir)
    counts = [{stage: len(runs[stage]) for stage in runs} for runs in (alone_runs, two_runs)]
    assert counts[0] == counts[1]
    trained = "stage3_finetune_prefill_bidir"
    weights, other_weights = (
        load_file(by_stage[trained][0].path / "final" / "model.safetensors")
        for by_stage in (alone_runs, two_runs)
    )
    start = load_file(Path(settings["model"]) / "model.safetensors")
    for name, weight in weights.items():
        assert torch.allclose(weight, other_weights[name], atol=2e-6), name
    assert any((weight - start[name]).abs().max() > 1e-4 for name, weight in weights.items())
    for stage in (trained, "stage1_vanilla_eval", "stage2_prefill_bidir_eval"):
        cost, of_two = (by_stage[stage][0].metrics["cost"] for by_stage in (alone_runs, two_runs))
        for name in {"prefix_tokens", "continuation_tokens", "computed_tokens"} & {*cost}:
            assert cost[name] == of_two[name]
        assert stage == trained or of_two["processes"] == 2
    for stage in ("stage1_vanilla_eval", "stage2_prefill_bidir_eval", "stage4_postft_eval"):
        for run_a, run_b in zip(alone_runs[stage], two_runs[stage], strict=True):
            ours, theirs = (run.items(("task", "doc_id", "pred", "ll")) for run in (run_a, run_b))
            assert ours[["task", "doc_id", "pred"]].equals(theirs[["task", "doc_id", "pred"]])
            a, b = (np.concatenate(items["ll"].tolist()) for items in (ours, theirs))
            np.testing.assert_allclose(a, b, atol=1e-4)
            assert not (run_b.path / PARTS).exists()


def test_a_failed_stage_is_named_and_resumed(config, runs_dir, monkeypatch):
    real, calls = finetune.run_finetune, []

    def fails_late(tune):
        calls.append(tune)
        monkeypatch.setattr("bidir_core.train.finetune.save_final", full_disk)
        return real(tune)

    def full_disk(*_):
        raise UserError("the final weights could not be written; free some room")

    monkeypatch.setattr(pipeline, "run_finetune", fails_late)
    with pytest.raises(UserError, match=r"stage 4 of 9: fine-tune 3B, seed 0: .*free some room"):
        run_pipeline(config)
    (failed,) = runs_of(runs_dir)["stage3_finetune_prefill_bidir"]
    assert failed.state == "failed"
    monkeypatch.undo()
    run_pipeline(config)
    (resumed,) = runs_of(runs_dir)["stage3_finetune_prefill_bidir"]
    assert (resumed.id, resumed.state) == (failed.id, "done")


def test_what_is_taken_for_a_stage_of_these_settings(settings, own_items, tmp_path, runs_dir):
    task, folder = tmp_path / "items.jsonl", save_tiny_model(tmp_path / "model", seed=1)
    task.write_text(own_items.read_text())
    config = PipelineConfig(**settings | {"model": str(folder), "tasks": (str(task),)})

    def done(**changes) -> list[str]:
        return [planned.stage.key for planned in look(replace(config, **changes)) if planned.done]

    run_pipeline(config)
    trained = ["3B-seed0", "3C-seed0"]
    assert done(lr=2e-3) == ["stage1", "stage2", "floor"]
    assert done(limit=11) == trained
    # Texts in or out of the records, and where progress is logged, change no number.
    assert len(done(compact=True, log_every=1, checkpoint_every=7)) == 9
    task.write_text(own_items.read_text().replace("Question 3:", "Question three:"))
    assert done() == trained
    task.write_text(own_items.read_text())
    # Committed runs come without weights: their evaluations stand, new ones need a new training.
    for final in runs_dir.glob("stage3*/*/final"):
        shutil.rmtree(final)
    assert len(done()) == 9
    assert done(limit=11) == []
    save_tiny_model(folder, seed=2)  # other weights under the same path
    assert done() == []


def test_dry_run_writes_nothing_and_prints_lines_that_parse(config, runs_dir, capsys):
    text = dry_run(config)
    assert not runs_dir.exists()
    assert text.count("to do") == 9
    run_pipeline(config)
    before = snapshot(runs_dir)
    text = dry_run(config)
    assert snapshot(runs_dir) == before
    assert text.count(": done, ") == 9
    assert not re.search("^(time|memory) ", text, re.MULTILINE)
    lines = [line.split(" -m bidir_core ")[1] for line in text.splitlines() if "-m bidir" in line]
    assert len(lines) == 9
    for line in lines:
        assert main(line.split()) == 0
    # The printed lines make the very runs that the pipeline takes for its stages.
    for stage, runs in runs_of(runs_dir).items():
        assert len(runs) in (2, 4), stage
        kinds = [run.settings | {"checkpoint": None, "name": None} for run in runs]
        assert all(kinds.count(kind) % 2 == 0 for kind in kinds), stage


def test_dry_run_says_what_the_stages_that_are_left_take(config, capsys):
    """The lines of ``--estimate`` while nothing is done, then less."""
    estimate_command(config)
    assert dry_run(config).endswith("\n\n" + capsys.readouterr().out.rstrip())
    evaluate.evaluate(
        EvalConfig(model=config.model, tasks=config.tasks, limit=config.limit, dtype=config.dtype)
    )
    text = dry_run(config)
    assert "the sum of 8 stages left of 9" in text
    assert re.search(
        rf"^{re.escape(config.model)}: 72 items, .*\ntime +about \d.*\nmemory +about \d", text, re.M
    )


def test_stages_share_what_they_must():
    config = from_preset({"model": "smollm2-135m-instruct", "seeds": 2, "distill": True})
    stages = plan(config)
    trained = {s.key: s.config for s in stages if isinstance(s.config, FinetuneConfig)}
    for seed in (0, 1):
        b, c = to_json(trained[f"3B-seed{seed}"]), to_json(trained[f"3C-seed{seed}"])
        assert {k for k in b if b[k] != c[k]} == {"objective", "regime"}
        assert b["seed"] == seed
    assert trained["distill-seed0"].causal_anchor == 1.0
    evaluated = [s for s in stages if isinstance(s.config, EvalConfig)]
    alike = [to_json(replace(s.config, regime="causal", context="full")) for s in evaluated]
    assert all(settings == alike[0] for settings in alike)
    by_checkpoint: dict = {}
    for stage in evaluated:
        if stage.config.context == "full":
            by_checkpoint.setdefault(stage.trained_by, set()).add(stage.config.regime)
    assert set(map(frozenset, by_checkpoint.values())) == {frozenset({"causal", "bidirectional"})}


def test_flags_win_over_presets():
    for preset in PRESETS:
        config = from_preset({"model": "m", "limit": 7}, preset)
        assert config.limit == 7
    assert from_preset({"model": "m"}).limit == 500
    assert from_preset({"model": "m", "limit": None}).limit is None
    # How it is computed is not what it is: the same runs.
    compiled = from_preset({"model": "m", "compile": "default"})
    assert compiled.digest == from_preset({"model": "m"}).digest
    assert compiled.training.compile == "default"


BAD = {
    "a causal regime": ({"regime": "causal"}, "--regime causal"),
    "no seeds": ({"seeds": 0}, "--seeds 0"),
    "an unknown regime": ({"regime": "sideways"}, "sideways"),
    "an unknown preset": ({"preset": "fast"}, "--preset fast"),
    "missing data": ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
    "a missing task file": ({"tasks": ("nothing.jsonl",)}, "nothing.jsonl"),
    "a bad learning rate": ({"lr": 0}, "--lr"),
    "a report of another kind": ({"out": "report.pdf"}, "report.pdf"),
    "a layer that is not there": ({"regime": "bidirectional:layers=0-99"}, "99"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case, settings, runs_dir, refused):
    more, expected = BAD[case]
    assert expected in refused(words(settings | more))
    assert not runs_dir.exists()
