"""``weights``: four evaluations of a model in 8 bits, and how much of the damage is the 8 bits'.

Run on a CPU by torch's own kernel, as in :mod:`tests.test_native_weights`.
"""

from __future__ import annotations

import gc
import json
import re
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from benchmarks.eight_bits import save_model
from bidir_core.analyse import stats
from bidir_core.analyse.compare import compare
from bidir_core.analyse.effects import stratified_mean
from bidir_core.cli import main
from bidir_core.evaluate import evaluate
from bidir_core.evaluate.config import EvalConfig
from bidir_core.jobs import pipeline
from bidir_core.jobs import weights as weights_effect_weights
from bidir_core.jobs.weights import WeightsConfig, plan, sentence
from bidir_core.models import devices, loading, quantised
from bidir_core.runs.find import list_runs
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter

KINDS = [
    (weights, regime)
    for weights in ("native", "dequantise")
    for regime in ("causal", "bidirectional")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Scores that rounding moves far enough to change some answers."""
    return save_model(tmp_path_factory.mktemp("both") / "eight", initializer_range=0.5)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[str]:
    """Two tasks of different length, so that a macro is not a mean over all items.

    Choices of about one length, so that a little rounding can change which is best.
    """
    parent = tmp_path_factory.mktemp("items")
    numbers = np.random.default_rng(0)
    paths = []
    for name, n in (("short", 20), ("long", 45)):
        lines = [
            {
                "contexts": [f"{name} {i}: {'so what then? ' * (i % 3 + 1)}Say"],
                "continuations": [f" {one}" for one in numbers.integers(1000, 40_000, 5)],
                "gold": i % 3,
            }
            for i in range(n)
        ]
        (parent / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        paths.append(str(parent / f"{name}.jsonl"))
    return paths


@pytest.fixture
def able(monkeypatch) -> None:
    """As on a GPU that multiplies 8-bit numbers, where transformers' own kernel is not installed."""
    monkeypatch.setattr(quantised, "can_multiply", lambda device: True)
    monkeypatch.setattr(quantised, "_has_kernels", lambda: False)
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """Which weights were loaded; no model may be left in memory when the next one comes."""
    found: list[str] = []
    alive: list[weakref.ref] = []
    real = loading.load_weights

    def load(checked, **more):
        assert not [model for model in alive if model() is not None]
        loaded = real(checked, **more)
        alive.append(weakref.ref(loaded.model))
        found.append(checked.weights)
        return loaded

    monkeypatch.setattr(loading, "load_weights", load)
    gc.disable()  # what is let go of must not depend on when garbage happens to be collected
    yield found
    gc.enable()


def line(folder: Path, tasks: list[str], *more: str) -> list[str]:
    words = ["weights", "--model", str(folder), "--device", "cpu", "--tasks", ",".join(tasks)]
    return [*words, *more]


def four(runs_dir: Path) -> dict[tuple[str, str], Run]:
    runs = list_runs([runs_dir])
    found = {(run.settings["weights"], run.regime): run for run in runs}
    assert len(runs) == 4
    assert set(found) == set(KINDS)
    return found


def stamps(runs_dir: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in runs_dir.rglob("*") if p.is_file()}


def by_hand(runs: dict[tuple[str, str], Run], column: str):
    """(bidirectional - causal), native minus dequantised, item by item, from the files alone."""
    right = {}
    for kind, run in runs.items():
        frame = run.items(("task", "doc_id", column)).sort_values(["task", "doc_id"])
        right[kind] = frame[column].to_numpy().astype(float)
        task = frame["task"].to_numpy()
    each = (
        right["native", "bidirectional"]
        - right["native", "causal"]
        - right["dequantise", "bidirectional"]
        + right["dequantise", "causal"]
    )
    return {name: each[task == name] for name in dict.fromkeys(task)}


def test_one_line_makes_the_four_runs_and_the_three_numbers(
    able, folder, tasks, runs_dir, loads, capsys
):
    assert main(line(folder, tasks, "--name", "both")) == 0
    printed = capsys.readouterr().out
    assert loads == ["native", "dequantise"]
    runs = four(runs_dir)
    assert all(run.state == "done" and run.name == "both" for run in runs.values())
    for (weights, regime), run in runs.items():
        assert f"{weights}, {regime}: {run.path}" in printed

    def shown(estimate: stats.Estimate) -> str:
        value, low, high = (
            f"{round(100 * one, 1) + 0.0:+.1f}"
            for one in (estimate.value, estimate.low, estimate.high)
        )
        return f"{value}  {low} to {high}"

    acc, acc_norm = (re.sub(r" {2,}", "  ", part) for part in printed.split("macro acc_norm,"))
    for metric, column, table in (
        ("acc", "correct", acc), ("acc_norm", "correct_norm", acc_norm),
    ):  # fmt: skip
        for weights, title in (
            ("native", "8-bit weights as they are"), ("dequantise", "dequantised weights"),
        ):  # fmt: skip
            a, b = runs[weights, "causal"], runs[weights, "bidirectional"]
            macro = compare(a, b, metric=metric).macro
            assert macro.acc_b == pytest.approx(b.metrics["macro"][metric])
            expected = f"{title}  {macro.acc_a:.4f}  {macro.acc_b:.4f}  {shown(macro.estimate)}"
            assert expected in table
        difference = stratified_mean(by_hand(runs, column)).estimate
        assert f"difference of the damage  {shown(difference)}" in table
    # Rounding changed some answers, or the numbers above would all be of nothing.
    assert any(values.any() for values in by_hand(runs, column).values())

    before = stamps(runs_dir)
    assert main(line(folder, tasks, "--name", "both")) == 0
    again = capsys.readouterr()
    assert (again.out, again.err.count(": done, ")) == (printed, 4)
    assert stamps(runs_dir) == before
    assert len(loads) == 2
    # Without a name they are the same runs; under another one they are not.
    for name, n_found in ((None, 4), ("other", 0)):
        stages = plan(WeightsConfig(
            model=str(folder), device="cpu", tasks=tuple(tasks), name=name
        ))  # fmt: skip
        known = weights_effect_weights.preflight(stages)
        found = [
            pipeline.find_run_of(one, stages, {}, known, one.config, named=name) for one in stages
        ]
        assert sum(run is not None for run in found) == n_found


def test_it_goes_on_where_it_was_stopped_and_takes_what_eval_made(
    able, folder, tasks, runs_dir, loads, monkeypatch, capsys
):
    given = {"model": str(folder), "device": "cpu", "tasks": tuple(tasks), "limit": 5}
    made = Run(evaluate.evaluate(EvalConfig(**given)))
    devices.sweep()
    finished = []

    def finish(writer, **more):
        if len(finished) == 1:
            raise KeyboardInterrupt
        finished.append(writer.id)
        return real(writer, **more)

    real = RunWriter.finish
    with monkeypatch.context() as patched:
        patched.setattr(RunWriter, "finish", finish)
        assert main(line(folder, tasks, "--limit", "5")) == 130
    devices.sweep()
    states = {run.id: run.state for run in list_runs([runs_dir])}
    assert sorted(states.values()) == ["cancelled", "done", "done"]
    capsys.readouterr()
    assert main(line(folder, tasks, "--limit", "5")) == 0
    said = capsys.readouterr().err
    (stopped,) = (run for run, state in states.items() if state == "cancelled")
    assert (
        f"evaluation 2 of 4: 8-bit weights as they are, bidirectional: resuming {stopped}" in said
    )
    assert f"evaluation 3 of 4: dequantised weights, causal: done, {made.id}" in said
    runs = four(runs_dir)
    assert all(run.state == "done" for run in runs.values())
    assert {made.id, stopped, *finished} < {run.id for run in runs.values()}
    assert loads == ["dequantise", "native", "native", "dequantise"]


def test_other_weights_in_the_same_place_are_evaluated_anew(able, tmp_path, tasks, runs_dir):
    where = save_model(tmp_path / "model")
    words = line(where, tasks[:1], "--limit", "3")
    assert main(words) == 0
    shutil.rmtree(where)
    save_model(where, initializer_range=0.5)
    assert main(words) == 0
    assert len(list_runs([runs_dir])) == 8


@pytest.mark.parametrize(
    ("what", "more", "said"),
    [
        ("plain", (), "cannot be run both ways: '.*' has no 8-bit weights; evaluate .* with eval"),
        ("eight", (), "cannot be run both ways: cpu cannot multiply 8-bit weights"),
        ("eight", ("--regime", "causal"), "--regime causal: causal is evaluated anyway"),
        ("eight", ("--limit", "0"), "--limit 0"),
        ("eight", ("--name", "a/b"), "run name 'a/b'"),
        ("eight", ("--regime", "bidirectional:layers=0-99"), "layers"),
        ("none", (), "--model is missing"),
    ],
)
def test_refusals_are_one_sentence_before_anything_is_written(
    what, more, said, folder, tiny_folder, tasks, runs_dir, capsys, request
):
    if "layers" in said:
        request.getfixturevalue("able")
    words = line(tiny_folder if what == "plain" else folder, tasks, *more)
    if what == "none":
        del words[1:3]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert re.search(said, err)
    assert "--weights" not in err
    assert not runs_dir.exists()


def test_what_only_loading_can_tell_is_refused_before_any_run(
    able, tmp_path, tasks, runs_dir, capsys
):
    odd = save_model(tmp_path / "odd", intermediate_size=40)
    assert main(line(odd, tasks)) == 2
    err = capsys.readouterr().err
    assert "evaluation 1 of 4" in err
    assert "cannot be run both ways: torch's own kernel is not for the layer" in err
    assert not runs_dir.exists()


def test_the_sentence_takes_a_side_only_where_the_interval_does():
    def say(value: float, half: float) -> str:
        return sentence("acc", stats.Estimate(value, value - half, value + half, 500))

    assert say(-0.031, 0.02) == (
        "Run in 8 bits, the model loses 3.1 points more acc to the regime (95 % CI -5.1 to -1.1)."
    )
    assert "loses 3.1 points less acc" in say(0.031, 0.02)
    for open_end in (say(-0.031, 0.04), say(0.031, 0.04), say(0.0, 0.001)):
        assert "more" not in open_end
        assert "less" not in open_end
    assert "by -3.1 points (95 % CI -7.1 to +0.9): undecided" in say(-0.031, 0.04)
    assert "no difference within 1 point" in say(0.0, 0.001)
