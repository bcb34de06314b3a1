"""The law of the first layers: which A is chosen, and that it was predicted first."""

from __future__ import annotations

import pytest

from bidir_core.analyse import stats
from bidir_core.common.errors import UserError
from bidir_core.explain.law import Opened, choose, hits, law_of
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from scripts.findings_law import named


def opened(first_layer: int, value: float) -> Opened:
    estimate = stats.Estimate(value, value - 0.01, value + 0.01, 100)
    return Opened(first_layer, estimate, estimate, estimate)


def test_every_larger_a_has_to_keep_accuracy_too():
    curve = [opened(a, value) for a, value in enumerate((-0.05, -0.004, -0.02, 0.003, -0.009))]
    chosen = choose(curve, 0.01)
    assert chosen is not None
    assert chosen.first_layer == 3  # A = 1 is within the margin, A = 2 is not
    assert choose([opened(0, -0.05)], 0.01) is None


def test_a_sweep_without_open_layers_is_refused():
    run = next(r for r in list_runs([COMMITTED_RUNS]) if r.name == "sweep-gemma")
    with pytest.raises(UserError, match="--sweep layers=1-,2-,3-"):
        law_of(run)


def test_a_prediction_was_stored_before_the_labels_were_scored():
    laws, predicted = named("law-"), named("recommend-")
    assert laws.keys() == predicted.keys()
    for name, run in laws.items():
        assert predicted[name].model == run.model
        assert predicted[name].created < run.created
        assert predicted[name].config["model_fingerprint"] == run.config["model_fingerprint"]
    law = law_of(laws["qwen-1.5b"])
    assert law.first_layer == 2
    assert hits(law, predicted["qwen-1.5b"].metrics)["kl"] is False
