"""Estimates: from counts and assumptions first, from this machine's own runs as soon as it can."""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.estimate_check import TIMED_RUNS, check
from bidir_core.cli import main
from bidir_core.common.files import write_json
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.evaluate.config import EvalConfig
from bidir_core.jobs import Job
from bidir_core.jobs import cost_model as estimates
from bidir_core.jobs.cost_model import Measured, shape_of
from bidir_core.jobs.estimate import estimate
from bidir_core.jobs.pipeline_config import PipelineConfig, plan
from bidir_core.runs.find import list_runs
from bidir_core.runs.run import Run
from bidir_core.train.config import FinetuneConfig
from tests.factory import make_run

ROOT = Path(__file__).parents[2]
EVAL = EvalConfig(model=EMBEDDED_MODEL, limit=500)


def test_items_are_counted_as_the_evaluation_will(own_items):
    assert estimates.workload(EVAL)[0] == 2299
    assert estimates.workload(replace(EVAL, limit=None))[0] == 14016
    assert estimates.workload(replace(EVAL, tasks=(str(own_items),), limit=None))[0] == 60
    full, without = (estimates.workload(replace(EVAL, context=c))[1] for c in ("full", "none"))
    assert without < full
    twice = estimates.workload(replace(EVAL, repeat_prompt=2))[1]
    assert twice == pytest.approx(2 * full - without, rel=0.05)  # a context more for each item
    assert estimates.workload(replace(EVAL, fold="explore", limit=None))[0] < 14016 // 2 + 5


def test_tokens_agree_with_what_a_real_run_computed():
    """The committed runs say how many tokens the standard evaluations are."""
    checked = set()
    for run in list_runs([ROOT / "runs"]):
        computed = ((run.metrics or {}).get("cost") or {}).get("computed_tokens")
        # The ones of the day before computed again what choices share.
        evaluated = run.config.get("kind") == "eval" and run.model == EMBEDDED_MODEL
        if computed and evaluated and not run.path.name.startswith("20261122"):
            limit, context = run.settings["limit"], run.settings["context"]
            config = EvalConfig(model=run.model, limit=limit, context=context)
            assert estimates.workload(config)[1] == pytest.approx(computed, rel=0.1)
            checked.add((limit, context))
    assert checked == {(None, "full"), (500, "full"), (None, "none")}


def finished(root: Path, **cost) -> Run:
    """A finished run of this machine, with that cost."""
    run = make_run(root, n_items=20)
    for name, more in (("metrics.json", {"cost": cost}), ("status.json", {"host": socket.gethostname()})):  # fmt: skip
        values = json.loads((run.path / name).read_text())
        write_json(run.path / name, {**values, **more})
    return Run(run.path)


def test_the_cost_model_is_within_a_factor_of_two_of_every_committed_run():
    """Time and memory, from assumed rates alone and corrected by the other runs."""
    rows = list(check(list_runs(TIMED_RUNS, points=True), cores=2))
    assert {row.device for row in rows} >= {"CPU", "NVIDIA H100 80GB HBM3"}
    assert sum(row.memory_ratio is not None for row in rows) > 10
    assert {row.what.split(",")[0] for row in rows} >= {"eval", "finetune full 3B"}
    for row in rows:
        for ratio in (row.cold_ratio, row.known_ratio, row.memory_ratio):
            assert ratio is None or 0.5 < ratio < 2, row


def test_a_measured_speed_corrects_the_assumption(tmp_path):
    guess = estimate(EVAL, "cpu")
    assert not guess.measured
    assert guess.low_seconds < guess.seconds < guess.high_seconds
    assert any("assumed" in reason for reason in guess.basis)
    run = finished(
        tmp_path, seconds=10.0, computed_tokens=20_000, device="cpu",
        peak_memory_bytes={"host": 3_000_000_000},
    )  # fmt: skip
    (known,) = estimates.history([run])
    assert known.memory_bytes == 3_000_000_000
    assert (known.model, known.kind) == (EMBEDDED_MODEL, "eval")
    known = replace(known, ratio=1.5)
    better = estimate(EVAL, "cpu", [known], start=5)
    assert better.measured
    assert better.seconds - 5 == pytest.approx(1.5 * estimate(EVAL, "cpu", start=0).seconds)
    assert better.memory_bytes == 3_000_000_000
    assert better.high_seconds / better.low_seconds < guess.high_seconds / guess.low_seconds
    # Another device's speed says nothing about this one.
    assert not estimate(EVAL, "cuda:0", [known]).measured


def test_runs_of_another_machine_or_unfinished_ones_do_not_count(tmp_path):
    run = finished(tmp_path, seconds=10.0, computed_tokens=20_000, device="cpu")
    status = json.loads((run.path / "status.json").read_text())
    write_json(run.path / "status.json", {**status, "host": "elsewhere"})
    assert estimates.history([Run(run.path)]) == []
    assert estimates.history([make_run(tmp_path, n_items=5, state="failed")]) == []
    cost = {"seconds": 10.0, "computed_tokens": 20_000, "device": "cpu"}
    assert estimates.history([finished(tmp_path, **cost)])
    assert estimates.history([finished(tmp_path, **cost, shared_device=True)]) == []


def test_bigger_models_take_longer_and_an_unknown_size_is_said():
    small = Measured("r", "eval", EMBEDDED_MODEL, "cpu", 1.2)
    big = estimate(replace(EVAL, model="mistralai/Ministral-3-3B-Instruct-2512"), "cpu", [small])
    assert big.seconds > 15 * estimate(EVAL, "cpu", [small]).seconds
    unknown = estimate(replace(EVAL, model="someone/mystery"), "cpu")
    assert unknown.seconds is None
    assert "mystery" in unknown.basis[0]


@pytest.mark.parametrize(
    ("name", "n"),
    [("Qwen/Qwen3-0.6B", 0.6e9), ("a/SmolLM2-135M-Instruct", 135e6), ("a/b-3B-x", 3e9), ("a/b2", None)],
)  # fmt: skip
def test_the_size_in_a_name(name, n):
    assert estimates.parameters_of(name) == n


def test_the_size_of_a_folder(tiny_folder):
    assert 1e4 < estimates.parameters_of(str(tiny_folder)) < 1e6


def test_training_costs_more_and_a_pipeline_is_the_sum_of_its_stages():
    tune = FinetuneConfig(model=EMBEDDED_MODEL, objective="3B", steps=100)
    distil = FinetuneConfig(model=EMBEDDED_MODEL, objective="distill", steps=100)
    assert estimate(distil, "cpu").seconds > estimate(tune, "cpu").seconds
    assert estimate(tune, "cpu").memory_bytes > estimate(EVAL, "cpu").memory_bytes
    lora = replace(tune, method="lora")
    assert estimate(lora, "cpu").memory_bytes < estimate(tune, "cpu").memory_bytes
    again = replace(tune, gradient_checkpointing=True)
    assert estimate(again, "cpu").memory_bytes < estimate(tune, "cpu").memory_bytes
    assert estimate(again, "cpu").seconds > estimate(tune, "cpu").seconds
    config = PipelineConfig(model=EMBEDDED_MODEL, limit=100, steps=10)
    parts = [estimate(stage.config, "cpu", start=0).seconds for stage in plan(config)]
    assert estimate(config, "cpu", start=0).seconds == pytest.approx(sum(parts))


def test_the_outcome_stands_beside_the_estimate(tmp_path):
    run = finished(
        tmp_path, seconds=10.0, computed_tokens=20_000, device="cpu",
        peak_memory_bytes={"host": 5_000_000},
    )  # fmt: skip
    now = time.time()
    job = Job(
        id="20260101-000000-abcdef", words=("eval",), device="cpu", stored_state="done",
        started=now - 14, finished=now, root=str(tmp_path),
        estimate={"seconds": 12.0, "memory_bytes": 4_000_000},
    )  # fmt: skip
    job.folder.mkdir()
    (job.folder / "runs.txt").write_text(f"{run.path}\n")
    found = estimates.outcome(job)
    assert (found.seconds, found.estimated_seconds) == (pytest.approx(14), 12.0)
    assert found.memory_bytes == 5_000_000
    assert estimates.start_seconds([job]) == pytest.approx(4)
    assert estimates.outcome(replace(job, attempt=2)) is None


def test_more_gpus_share_the_time_and_fsdp_the_weights():
    big = FinetuneConfig(model="a/b-14B", objective="3B", batch_samples=512)
    one, four = (estimate(big, "cuda:0", start=0, n_devices=n) for n in (1, 4))
    assert one.seconds / 4 < four.seconds < one.seconds / 2  # gradients have to be exchanged
    spread = estimate(big, "cuda:0", start=0, n_devices=4, sharded=True)
    assert spread.memory_bytes < four.memory_bytes < one.memory_bytes
    full = replace(EVAL, model="a/b-14B", limit=None)
    one, four = (estimate(full, "cuda:0", start=0, n_devices=n) for n in (1, 4))
    assert four.seconds == pytest.approx(one.seconds / 4, rel=0.1)
    # Processes on one CPU have its cores between them.
    assert estimate(EVAL, "cpu", n_devices=2).seconds == estimate(EVAL, "cpu").seconds


def test_a_shape_from_a_configuration_counts_its_weights(tiny_folder, tmp_path):
    counted = shape_of(str(tiny_folder))
    assert counted.source == "its files"
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    shape = shape_of(str(tmp_path))
    assert shape.parameters == counted.parameters
    assert (shape.layers, shape.vocabulary) == (counted.layers, counted.vocabulary)


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "--limit", "500"],
        ["finetune", "--prompt-bidir-response-causal-train", "--method", "lora"],
        ["pipeline", "--preset", "quick"],
    ],
)
def test_the_commands_print_an_estimate_and_do_nothing_else(words, runs_dir, capsys, monkeypatch):
    monkeypatch.setattr("bidir_core.models.loading.preflight", None)  # calling it would fail
    assert main([*words, "--model", "owner/name-3B", "--estimate", "4", "--device", "cuda"]) == 0
    out = capsys.readouterr().out
    assert "4 x cuda" in out
    assert re.search(r"time +about \d.*\nmemory +about \d+\.\d GB on each\n", out)
    assert not runs_dir.exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--model", "owner/mystery"], "name it with its size"),
        (["--model", "a/b-3B", "--device", "tpu"], "device 'tpu'"),
        (["--model", "a/b-3B", "--estimate", "-1"], "--estimate -1"),
        (["--resume", "x"], "leave --resume out"),
    ],
)
def test_what_cannot_be_estimated_is_said(more, told, runs_dir, capsys):
    assert main(["eval", "--estimate", *more]) == 2
    assert told in capsys.readouterr().err


def test_a_pipeline_of_unknown_size_is_said_not_a_traceback(runs_dir, capsys):
    assert main(["pipeline", "--estimate", "--model", "owner/mystery"]) == 2
    assert "the size of 'owner/mystery' is neither in its name" in capsys.readouterr().err
