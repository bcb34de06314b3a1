"""The two ready-made sweeps: one command, and the answer with what predicted it."""

import json
from pathlib import Path

import numpy as np
import pytest

from bidir_core.analyse import stats
from bidir_core.analyse.order_effects import OrderArm, order_arms
from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.explain.sweep_outcomes import Opened, hits, law_of, smallest_kept
from bidir_core.explain.sweep_points import LabConfig, planned_points, predicted_regime
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.run import Run
from scripts.findings_law import named


@pytest.fixture
def orders(tmp_path) -> list[str]:
    """Forty documents in two files, their passage before the question and after it."""
    paths = []
    for order in ("first", "last"):
        lines = [
            {
                "contexts": [f"p{i} {i * 7 % 11} q{i}" if order == "first" else f"q{i} p{i} {i}"],
                "continuations": [" a", " b"],
                "gold": i // 2 % 2,
                "pair_id": f"doc {i}",
            }
            for i in range(40)
        ]
        path = tmp_path / f"mine_{order}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        paths.append(str(path))
    return paths


def lab(tiny_folder: Path, *words: str) -> int:
    return main(["lab", "--model", str(tiny_folder), "--device", "cpu", *words])


def runs_of(runs_dir: Path, kind: str) -> list[Run]:
    return [run for run in list_runs([runs_dir]) if run.config.get("kind") == kind]


def test_order_asks_both_orders_of_every_arm_and_the_prompt_twice(
    tiny_folder, runs_dir, orders, capsys
) -> None:
    assert lab(tiny_folder, "--preset", "order", "--tasks", ",".join(orders)) == 0
    report = capsys.readouterr().err
    (sweep,), (prediction,) = runs_of(runs_dir, "lab"), runs_of(runs_dir, "recommend")
    opened = predicted_regime(prediction.metrics)
    assert sweep.config["predicted"]["run"] == prediction.id
    assert sweep.config["predicted"]["regime"] == opened
    assert prediction.created <= Run(sweep.path / "points" / "causal").created
    arms = [OrderArm.from_json(arm) for arm in sweep.metrics["orders"]["acc"]["mine"]]
    asked = ["causal", "bidirectional", "bidirectional:sink=1", opened, "causal, prompt 2 times"]
    assert [arm.words for arm in arms] == list(dict.fromkeys(asked))
    causal, twice = (sweep.path / "points" / name for name in ("causal", "causal_prompt-x2"))
    # As the runs alone would say it, and with the cost of a prompt that is twice as long.
    (_, from_runs), doubled = order_arms(Run(causal), [Run(twice)])["mine"], arms[-1]
    assert (from_runs.effect, from_runs.recovered) == (doubled.effect, doubled.recovered)
    items = Run(causal).items(("n_prefix_tokens",))["n_prefix_tokens"]
    assert arms[0].prompt_tokens == pytest.approx(np.mean([row[0] for row in items]))
    assert doubled.prompt_tokens == pytest.approx(2 * arms[0].prompt_tokens + 2)  # a blank line
    assert "prompt order, mine" in report
    assert sweep.metrics["law"]["acc"] is None  # one A is no sweep of A
    # compare has the same, since it is the baseline of the order question
    assert main(["compare", str(causal), str(twice), "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)
    assert comparison["orders"]["mine"][1]["recovered"]["n"] == 40
    assert any("repeating" in note for note in comparison["notes"])


def test_law_asks_every_first_layer_after_a_prediction_and_uses_a_stored_one(
    tiny_folder, runs_dir, own_items, capsys
) -> None:
    for name in ("one", "two"):
        words = ["--preset", "law", "--tasks", str(own_items), "--name", name]
        assert lab(tiny_folder, *words) == 0
    (prediction,) = runs_of(runs_dir, "recommend")
    for sweep in runs_of(runs_dir, "lab"):
        n_layers = sweep.config["n_layers"]
        regimes = [point["regime"] for point in sweep.metrics["points"]]
        wanted = [f"bidirectional:layers={a}-" for a in range(1, n_layers - 1)]
        references, last = ["causal", "bidirectional"], ["bidirectional:layers=0-0"]
        sinks = ["bidirectional:sink=1", "bidirectional:sink=4"]
        assert regimes == [*references, *wanted, *last, *sinks]
        law = sweep.metrics["law"]["acc"]
        assert law["predicted"]["run"] == prediction.id
        assert set(law["hits"]) == set(law["predicted"]["predictions"])
    assert "law: " in capsys.readouterr().err


def test_what_a_preset_will_run_is_known_before_the_model_is() -> None:
    order, law = (LabConfig(model="m", preset=name) for name in ("order", "law"))
    assert len(planned_points(order, None)) == 5
    assert planned_points(law, None) is None
    assert len(planned_points(law, 30)) == 2 + 14 + 1 + 2
    with pytest.raises(UserError, match="law, order"):
        LabConfig(model="m", preset="everything")


# The law of the first layers: which A is chosen, and that it was predicted first


def opened(first_layer: int, value: float) -> Opened:
    estimate = stats.Estimate(value, value - 0.01, value + 0.01, 100)
    return Opened(first_layer, estimate, estimate, estimate)


def test_every_larger_a_has_to_keep_accuracy_too():
    curve = [opened(a, value) for a, value in enumerate((-0.05, -0.004, -0.02, 0.003, -0.009))]
    chosen = smallest_kept(curve, 0.01)
    assert chosen is not None
    assert chosen.first_layer == 3  # A = 1 is within the margin, A = 2 is not
    assert smallest_kept([opened(0, -0.05)], 0.01) is None


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
