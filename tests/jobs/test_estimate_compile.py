"""Estimates of compiled fine-tunes: what compiling adds, and which runs speak for which."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.evaluate.config import EvalConfig
from bidir_core.explain.sweep_points import LabConfig
from bidir_core.jobs.cost_model import (
    ASSUMED,
    FLEX_ALONE,
    FLEX_AND_MORE,
    Measured,
    measured,
    mode_of,
    paced,
)
from bidir_core.jobs.estimate import estimate, estimate_sweep
from bidir_core.jobs.pipeline_config import PipelineConfig
from bidir_core.runs.curve import append_curve
from bidir_core.runs.find import list_runs
from bidir_core.train.config import FinetuneConfig
from tests.report_runs import make_finetune

ROOT = Path(__file__).parents[2]
PLAIN = FinetuneConfig(model=EMBEDDED_MODEL, objective="3B", steps=25)
COMPILED = replace(PLAIN, compile="default")
REPLAYED = replace(PLAIN, compile="reduce-overhead")


def test_the_assumed_seconds_are_those_of_the_compiled_runs_kept():
    """The eleven that they were fitted to."""
    kept = list_runs([ROOT / "benchmarks" / "timed_runs"])
    found = [paced(run) for run in kept if mode_of(run.settings) != "none"]
    before = [one.before for one in found if one is not None]
    assert len(before) == len(found) == 11
    assert statistics.median(before) == pytest.approx(ASSUMED.usual, abs=0.5)
    assert min(before) == pytest.approx(ASSUMED.low, abs=0.05)
    assert "compiling and warm-up took 44 s" in (ROOT / "docs/PERFORMANCE.md").read_text()
    assert max(before) < ASSUMED.high == 44


def test_a_short_compiled_fine_tune_is_mostly_compiling():
    plain, compiled = (estimate(config, "cpu", start=0) for config in (PLAIN, COMPILED))
    assert compiled.seconds - plain.seconds == pytest.approx(ASSUMED.usual)
    assert compiled.high_seconds - plain.high_seconds == pytest.approx(ASSUMED.high)
    assert any(reason.startswith("compiling: 7 s assumed") for reason in compiled.basis)
    assert not any("compiling" in reason for reason in plain.basis)
    # A recorded step saves launches, which a long run on a GPU mostly waits for.
    long = [estimate(replace(c, steps=5000), "cuda:0", start=0) for c in (COMPILED, REPLAYED)]
    assert long[1].seconds < long[0].seconds / 2


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (EvalConfig(model=EMBEDDED_MODEL, limit=5), FLEX_ALONE),
        (PLAIN, FLEX_ALONE),
        (COMPILED, FLEX_AND_MORE),
        (LabConfig(model=EMBEDDED_MODEL, limit=5, sweep=("sink=1",)), FLEX_ALONE),
        (PipelineConfig(model=EMBEDDED_MODEL, limit=5), FLEX_ALONE),
    ],
)
def test_what_flex_compiles_is_said_where_it_compiles(config, told):
    """On a GPU only: elsewhere it stays uncompiled."""
    make = estimate_sweep if isinstance(config, LabConfig) else estimate
    flex = replace(config, attn="flex")
    assert make(flex, "cuda:0").basis.count(told) == 1
    unknown = replace(config, model="owner/mystery")
    for other, device in ((flex, "cpu"), (flex, "mps"), (config, "cuda:0"), (unknown, "cpu")):
        basis = make(other, device).basis
        assert all(basis)
        assert not any("flex" in reason for reason in basis)


def test_the_seconds_said_of_flex_are_those_of_the_documentation():
    text = " ".join((ROOT / "docs/PERFORMANCE.md").read_text().split())
    assert "builds the 3.43 B text model" in text
    assert "compiling and warm-up took 44 s" in text
    assert "44 s in all were seen at 3.43 B" in FLEX_AND_MORE


def run_of(mode: str, ratio: float, **more) -> Measured:
    facts = {"compile": mode, "weight": "full 3B", "memory_bytes": int(ratio * 1e9), **more}
    return Measured(f"a/{mode}", "finetune", EMBEDDED_MODEL, "cpu", ratio, **facts)


def test_compiled_and_plain_runs_do_not_correct_each_other():
    plain, compiled = run_of("none", 3.0), run_of("default", 0.5, compile_seconds=4.0)
    both = [compiled, plain, compiled]
    bare = estimate(PLAIN, "cpu", start=0).seconds
    found = estimate(PLAIN, "cpu", both, start=0)
    assert (found.seconds, found.memory_bytes) == (pytest.approx(3 * bare), 3_000_000_000)
    found = estimate(COMPILED, "cpu", both, start=0)
    assert (found.seconds, found.memory_bytes) == (pytest.approx(0.5 * bare + 4), 500_000_000)
    assert "compiling: 4.0 s, measured here, 2 runs" in found.basis
    # The other kind alone corrects nothing, and neither does the other way of compiling.
    for config, known in (
        (PLAIN, compiled),
        (COMPILED, plain),
        (COMPILED, run_of("reduce-overhead", 9.0)),
    ):
        alone = estimate(config, "cpu", [known], start=0)
        assert alone == estimate(config, "cpu", start=0)
        assert not alone.measured


@pytest.mark.parametrize("compile", ["default", True])
def test_a_finished_compiled_run_is_measured_by_the_pace_of_its_later_steps(tmp_path, compile):
    """As older runs recorded it, too: 30 s up to step 10, then 0.1 s a step; 40 s in all."""
    run = make_finetune(tmp_path, compile=compile)
    for step in (10, 20, 100):
        line = {"step": step, "seconds": 31 + 0.1 * (step - 10), "loss": 1.0}
        append_curve(run.path, line)
    plain = measured(make_finetune(tmp_path, seed=1))
    found = measured(run)
    assert (found.compile, plain.compile, plain.compile_seconds) == ("default", "none", None)
    assert found.compile_seconds == pytest.approx(30)
    assert found.ratio / plain.ratio == pytest.approx(400 * 0.1 / 40)
    # Without a curve its seconds say nothing of a rate: they may all be compiling.
    bare = measured(make_finetune(tmp_path, seed=2, evals=False, compile=compile))
    assert (bare.ratio, bare.compile_seconds) == (None, None)
