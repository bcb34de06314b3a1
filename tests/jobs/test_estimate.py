"""Estimates: counted from a model's shape and the items, told by this machine's own finished runs."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.common.files import write_json
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.evaluate import evaluate
from bidir_core.evaluate.config import EvalConfig
from bidir_core.explain.sweep_points import LabConfig
from bidir_core.jobs import Job
from bidir_core.jobs.cost_model import shape_of, work_of
from bidir_core.jobs.estimate import (
    Measured,
    duration,
    estimate,
    history,
    measured,
    peak_bytes,
    start_seconds,
)
from bidir_core.jobs.pipeline_config import PipelineConfig, plan
from bidir_core.runs.run import Run
from bidir_core.train.config import FinetuneConfig
from tests.factory import make_run, timed_run, write_lines
from tests.report_runs import make_finetune

MINISTRAL = "mistralai/Ministral-3-3B-Instruct-2512"


@pytest.fixture
def config(tiny_folder, own_items) -> EvalConfig:
    return EvalConfig(model=str(tiny_folder), tasks=(str(own_items),), device="cpu")


@pytest.fixture
def tune(tiny_folder, tmp_path) -> FinetuneConfig:
    row = {"prompt": "Say it again", "response": " it again"}
    data = write_lines(tmp_path / "data.jsonl", [row] * 5)
    return FinetuneConfig(model=str(tiny_folder), data=data, objective="3B", steps=100)


def runs_of(config, *rates: float, work: str = "eval", **more) -> list[Measured]:
    facts = {"work": work, "model": config.model, "device": "cpu", **more}
    return [Measured(rate=rate, **facts) for rate in rates]


# --- what is counted -----------------------------------------------------------------------------


@pytest.mark.parametrize("regime", ["causal", "bidirectional"])
def test_tokens_are_those_that_a_run_computes(config, runs_dir, tmp_path, regime):
    """Contexts that begin alike share their beginning under the causal regime only."""
    line = {"continuations": [" first of all", " first of all"], "gold": 0}
    contexts = [[f"Number {i} is one of them: {end}" for end in ("the", "no")] for i in range(10)]
    task = write_lines(tmp_path / "two.jsonl", (line | {"contexts": two} for two in contexts))
    both_tasks = replace(config, tasks=(*config.tasks, task), regime=regime)
    counted = work_of(both_tasks)
    cost = Run(evaluate.evaluate(both_tasks)).metrics["cost"]
    assert (counted.items, counted.tokens) == (70, pytest.approx(cost["computed_tokens"]))
    assert counted.predicted == pytest.approx(cost["continuation_tokens"])
    assert work_of(replace(both_tasks, limit=5)).items == 10
    assert work_of(replace(both_tasks, context="none")).tokens < counted.tokens
    assert work_of(replace(both_tasks, repeat_prompt=2)).tokens > 1.5 * counted.tokens


def test_samples_are_counted_as_they_are_trained(tune):
    work = work_of(tune)
    assert (work.items, work.steps) == (6400, 100)
    assert work.length == pytest.approx(len("Say it again it again") + 1, abs=1.5)  # bytes, and EOS
    assert 0.3 < work.predicted / work.tokens < 0.6
    with pytest.raises(UserError, match="no sample of it can be used"):
        work_of(replace(tune, max_tokens=3))
    assert work_of(replace(tune, max_tokens=3, over_long="truncate")).length == 3


def test_what_is_not_here_is_said_and_memory_is_told_all_the_same(config, tmp_path, monkeypatch):
    monkeypatch.setenv("BIDIR_CACHE_DIR", str(tmp_path / "empty"))
    known = runs_of(config, 1e9, 2e9)
    for case, why in (
        (EvalConfig(model=EMBEDDED_MODEL), "the benchmarks are not on this machine"),
        (replace(config, tasks=("no such file",)), "no such file"),
        (FinetuneConfig(model=EMBEDDED_MODEL, objective="3C"), "no tokenizer is on this machine"),
    ):
        result = estimate(case, "cpu", known)
        assert result.seconds is None
        assert result.memory_bytes > 1e6
        assert any(why in reason for reason in result.basis)


def test_bigger_models_and_more_training_take_more(config, tune):
    def rate(shape, device, dtype):
        return 1e10

    def told(asked):
        return estimate(asked, "cpu", start=0, layer_rate=rate)

    big = told(replace(config, model=MINISTRAL))
    assert big.seconds > 1000 * told(config).seconds
    assert told(replace(tune, objective="distill")).seconds > told(tune).seconds
    assert told(tune).memory_bytes > told(config).memory_bytes
    assert told(replace(tune, method="lora")).memory_bytes < told(tune).memory_bytes
    again = told(replace(tune, gradient_checkpointing=True))
    assert again.memory_bytes < told(tune).memory_bytes
    assert again.seconds > told(tune).seconds
    assert told(replace(tune, compile="default")).basis != told(tune).basis  # on top, it says
    short = {"data": tune.data, "steps": 10, "eval_every": 0}
    pipeline = PipelineConfig(model=tune.model, tasks=config.tasks, **short)
    parts = [told(stage.config).seconds for stage in plan(pipeline)]
    assert told(pipeline).seconds == pytest.approx(sum(parts))


# --- how fast it goes ----------------------------------------------------------------------------


def test_finished_runs_say_how_fast_it_goes_and_how_far_off_that_is(config):
    def told(*rates: float, **more):
        return estimate(config, "cpu", runs_of(config, *rates, **more), start=0)

    assert told().seconds is None
    single, three = told(1e9), told(1e9, 2e9, 0.8e9)
    assert single.seconds == pytest.approx(three.seconds)
    assert (single.low_seconds, single.high_seconds) == (None, None)
    # The run at 2e9 took 0.9 / 2 of what the others say of it, that at 0.8e9 1.5 / 0.8.
    assert three.low_seconds == pytest.approx(three.seconds * 0.9 / 2)
    assert three.high_seconds == pytest.approx(three.seconds * 1.5 / 0.8)
    assert any("3 runs of this model" in reason for reason in three.basis)
    assert estimate(config, "cpu", runs_of(config, 1e9), start=7).seconds == single.seconds + 7
    # Another device's or dtype's speed says nothing about this one; other work's only roughly.
    for other in ({"device": "gpu"}, {"dtype": "bfloat16"}):
        assert told(1e9, 2e9, **other).seconds is None
    assert told(1e9, 2e9, work="full 3B").low_seconds is None
    assert any("of other models" in reason for reason in told(1e9, model="another").basis)
    assert told(1e9, memory_bytes=3_000_000_000).memory_bytes == 3_000_000_000


def test_runs_of_another_machine_or_unfinished_ones_do_not_count(tmp_path):
    cost = {"seconds": 10.0, "computed_tokens": 20_000, "device": "cpu"}
    run = timed_run(tmp_path, **cost)
    (known,) = history([run])
    n_operations = known.rate * 10
    assert 20_000 * 2 * 106e6 < n_operations < 20_000 * 3 * 135e6
    status = json.loads((run.path / "status.json").read_text())
    write_json(run.path / "status.json", {**status, "host": "elsewhere"})
    assert history([Run(run.path)]) == []
    assert history([make_run(tmp_path, n_items=5, state="failed")]) == []
    assert history([timed_run(tmp_path, **cost, shared_device=True)]) == []
    modes = enumerate(("none", False, "default", True))  # a compiled fine-tune is work of its own
    tunes = [make_finetune(tmp_path, seed=seed, compile=mode) for seed, mode in modes]
    works = [measured(run).work for run in tunes]
    assert works == ["full 3B"] * 2 + ["full 3B compiled default"] * 2


def test_more_gpus_share_the_time(config):
    known = runs_of(config, 1e9, device="gpu", dtype="bfloat16")
    single, four = (estimate(config, "cuda:0", known, start=0, n_devices=n) for n in (1, 4))
    assert four.seconds == pytest.approx(single.seconds / 4)
    assert any("what they exchange is not counted" in reason for reason in four.basis)
    # Processes on one CPU have its cores between them.
    known = runs_of(config, 1e9)
    single, four = (estimate(config, "cpu", known, start=0, n_devices=n) for n in (1, 4))
    assert four.seconds == single.seconds


def test_a_sweep_takes_its_points_and_one_start(config):
    known = runs_of(config, 1e9, 2e9)
    asked = LabConfig(model=config.model, tasks=config.tasks, sweep=("sink=1,2",), controls=True)
    alone = replace(asked, controls=False)
    few = estimate(alone, "cpu", known, start=100.0)
    assert few.n_points == 4
    assert few.seconds == pytest.approx(100 + 4 * few.point_seconds)
    assert few.low_seconds < few.seconds < few.high_seconds
    assert few.n_items == 4 * 60
    # One point of the controls has no contexts, and so fewer tokens.
    many = estimate(asked, "cpu", known, start=100.0)
    assert few.seconds < many.seconds < 100 + many.n_points * many.point_seconds
    elsewhere = replace(asked, model="someone/model-3B", sweep=("layers=prefixes",))
    unknown = estimate(elsewhere, "cpu")
    assert (unknown.seconds, unknown.n_points) == (None, None)


def test_finished_jobs_say_what_they_took_besides_computing(tmp_path):
    cost = {"seconds": 10.0, "computed_tokens": 20_000, "device": "cpu"}
    run = timed_run(tmp_path, **cost, peak_memory_bytes={"host": 5_000_000})
    facts: dict[str, Any] = {"id": "20260101-000000-abcdef", "words": ("eval",), "device": "cpu"}
    facts |= {"stored_state": "done", "started": 1000.0, "finished": 1014.0, "root": str(tmp_path)}
    job = Job(**facts)
    job.folder.mkdir()
    (job.folder / "runs.txt").write_text(f"{run.path}\n")
    assert peak_bytes(job) == 5_000_000
    assert start_seconds([job]) == pytest.approx(4)
    assert start_seconds([replace(job, attempt=2)]) is None


# --- the model's size ----------------------------------------------------------------------------


def test_the_shape_of_a_name_a_folder_and_a_configuration(tiny_folder, tmp_path):
    for name, n in (("Qwen/Qwen3-0.6B", 0.6e9), ("a/SmolLM2-135M", 135e6), ("a/b-3B-x", 3e9)):
        assert shape_of(name).parameters == n
    assert shape_of("a/b2") is None
    counted = shape_of(str(tiny_folder))
    assert counted.source == "its files"
    assert 1e4 < counted.parameters < 1e6
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    shape = shape_of(str(tmp_path))
    assert shape.parameters == counted.parameters
    assert (shape.layers, shape.vocabulary) == (counted.layers, counted.vocabulary)


@pytest.mark.parametrize("name", ["org/m-1.5b", "org/m-0.6B", "org/m-100k-7b", "org/m-1m"])
def test_the_width_guessed_from_a_name_is_one_that_heads_divide(name):
    """A layer of that width is timed; 1.5 billion once made it 2,431 wide, which no head could rotate."""
    shape = shape_of(name)
    assert shape is not None
    assert shape.hidden % 64 == 0 < shape.hidden


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["eval"],
        ["finetune", "--prompt-bidir-response-causal-train", "--method", "lora"],
        ["pipeline", "--preset", "quick"],
    ],
)
def test_the_commands_print_an_estimate_and_do_nothing_else(
    words, tune, config, runs_dir, capsys, monkeypatch
):
    monkeypatch.setattr("bidir_core.models.loading.preflight", None)  # calling it would fail
    more = ["--tasks", ",".join(config.tasks)] * (words[0] != "finetune")
    more += ["--data", tune.data] * (words[0] != "eval")
    assert main([*words, *more, "--model", config.model, "--estimate", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"time +about \d.*\nmemory +about \d+\.\d GB\n", out)
    assert "one layer of this width timed here just now" in out
    assert not runs_dir.exists()
    # On GPUs that are not here there is a number of bytes, and none of seconds.
    assert main([*words, *more, "--model", "a/b-3B", "--estimate", "4", "--device", "cuda:9"]) == 0
    out = capsys.readouterr().out
    assert "4 x cuda" in out
    assert re.search(
        r"time +not measured yet on this machine\nmemory +about \d+\.\d GB on each\n", out
    )


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
    assert main(["pipeline", "--estimate", "--model", "owner/mystery"]) == 2
    assert "the size of 'owner/mystery' is neither in its name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (600, "10 min"), (7200, "2.0 h"), (40 * 86_400, "40 days")]
)
def test_durations_are_round(seconds, text):
    assert duration(seconds) == text
