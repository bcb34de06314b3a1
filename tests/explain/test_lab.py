"""Sweeps: what their text means, what they write, what survives a kill, what they conclude."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bidir_core.analyse.compare import compare
from bidir_core.analyse.flips import flips
from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.common.settings import from_json
from bidir_core.evaluate import evaluate, scoring
from bidir_core.evaluate.config import EvalConfig
from bidir_core.explain import sweep as lab_run_sweep
from bidir_core.explain.controls import OUTCOME_WORDS
from bidir_core.explain.sweep_points import LabConfig, expand
from bidir_core.explain.sweep_summary import summarise_sweep
from bidir_core.runs.find import find_run, list_runs
from bidir_core.runs.records import RECORD_FIELDS
from bidir_core.runs.run import Run
from tests.lab_factory import make_sweep


def dials(text: str, n_layers: int = 6) -> list[str]:
    """Its regimes, without "bidirectional" in front."""
    regimes = map(str, expand([text], n_layers))
    return [regime.removeprefix("bidirectional").lstrip(":") for regime in regimes]


# What a sweep's text means


def test_values_products_and_lists() -> None:
    assert dials("sink=0,1,2") == ["", "sink=1", "sink=2"]
    assert dials("sink=0,1*lambda=0.01,1") == ["lambda=0.01", "", "sink=1,lambda=0.01", "sink=1"]
    assert dials("tail=1|rows=0-0,8-8") == ["tail=1", "rows=0-0", "rows=8-8"]
    # Equal regimes are one point: lambda=0 is causal whatever the sink, lambda=1 is no dial.
    assert dials("sink=0,1*lambda=0,1") == ["causal", "", "sink=1"]


def test_layer_families() -> None:
    assert dials("layers=windows:5") == ["layers=0-4", "layers=1-5"]
    assert len(dials("layers=windows:1,5")) == 6 + 2
    assert dials("layers=prefixes", 3) == ["layers=0-0", "layers=0-1", ""]
    assert dials("layers=suffixes", 3)[-1] == "layers=2-2"
    assert dials("layers=windows:5,0-0,3-4", 6)[-2:] == ["layers=0-0", "layers=3-4"]
    assert len(expand(["layers=windows:1", "layers=0-0|sink=0"], 4)) == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sink", "not a dial with its values"),
        ("speed=3", "dials are sink, rows"),
        ("sink=", "not a dial with its values"),
        ("sink=one", "sink takes an integer"),
        ("lambda=0,2", "lambda takes a number from 0 to 1"),
        ("sink=0,1*sink=2", "given twice"),
        ("layers=5", "one layer is written 5-5"),
        ("layers=windows:0", "at least one layer"),
        ("layers=middle", "layers takes A-B, A-, windows:W"),
        ("rows=3-1", "runs backwards"),
        ("", "not a dial"),
    ],
)
def test_a_wrong_sweep_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        LabConfig(model="m", sweep=(text,))


def test_layers_the_model_lacks_are_refused_before_anything_is_written(
    tiny_folder, own_items, runs_dir, capsys
) -> None:
    for text in ("layers=2-9", "layers=windows:9"):
        assert main(["lab", *words(tiny_folder, own_items), "--sweep", text]) == 2
        assert "this model has" in capsys.readouterr().err
    assert main(["lab", *words(tiny_folder, own_items)]) == 2
    assert "say what to vary" in capsys.readouterr().err
    assert not runs_dir.exists()


# What a sweep writes


def words(tiny_folder, own_items, *more: str) -> list[str]:
    return ["--model", str(tiny_folder), "--tasks", str(own_items), "--device", "cpu", *more]


@pytest.fixture(scope="module")
def sweep(tiny_folder, own_items, tmp_path_factory) -> Run:
    root = tmp_path_factory.mktemp("lab") / "runs"
    line = words(tiny_folder, own_items, "--sweep", "sink=0,1,500", "--sweep", "lambda=0.1")
    assert main(["lab", *line, "--runs-dir", str(root)]) == 0
    (folder,) = (root / "lab").iterdir()
    return Run(folder)


def test_every_point_is_a_run_and_texts_are_stored_once(sweep, own_items) -> None:
    assert sweep.state == "done"
    assert [point.state for point in sweep.points()] == ["done"] * 5
    slugs = {path.name.replace("bidirectional", "b") for path in (sweep.path / "points").iterdir()}
    assert slugs == {"causal", "b", "b_sink-1", "b_sink-500", "b_lambda-0.1"}
    assert not (sweep.path / "items.parquet").exists()
    point = find_run(f"{sweep.id}/points/bidirectional_sink-1", roots=[sweep.path.parents[1]])
    assert point.regime == "bidirectional:sink=1"
    assert point.probe["passed"] is True
    assert point.id in {run.id for run in list_runs([sweep.path.parents[1]], points=True)}
    size = (point.path / "items.parquet").stat().st_size
    assert size < 60 * 40 + 2500  # bytes an item, and the file's own frame


def test_a_point_reads_like_an_evaluation_of_its_own(sweep, tmp_path):
    config = from_json(EvalConfig, sweep.settings | {"regime": "bidirectional:sink=1"})
    evaluation = Run(evaluate.evaluate(replace(config, runs_dir=str(tmp_path))))
    point = Run(sweep.path / "points" / "bidirectional_sink-1")
    point_items, eval_items = point.items(RECORD_FIELDS), evaluation.items(RECORD_FIELDS)
    for name in RECORD_FIELDS:
        if name in ("ll", "margin"):
            ll, expected = (np.hstack(frame[name].tolist()) for frame in (point_items, eval_items))
            np.testing.assert_allclose(ll, expected, atol=1e-4)
        elif name != "token_ll":  # which points do not keep
            assert point_items[name].map(repr).tolist() == eval_items[name].map(repr).tolist(), name
    record = point.item("mine", 7)
    assert record["contexts"] == evaluation.item("mine", 7)["contexts"]
    assert record["margin"] == pytest.approx(evaluation.item("mine", 7)["margin"], abs=1e-4)
    assert point.item("mine", 99) is None
    # Against each other, and against a run of its own, points pair.
    causal = Run(sweep.path / "points" / "causal")
    assert compare(evaluation, point).macro.delta == 0
    frame = flips(causal, point)
    assert len(frame) == 60
    assert frame["context_short"].str.startswith("Question").all()


def test_a_sink_longer_than_every_prompt_is_causal(sweep) -> None:
    points = {point["slug"]: point for point in sweep.metrics["points"]}
    assert points["bidirectional_sink-500"]["acc"]["delta"]["value"] == 0
    assert points["causal"]["acc"]["delta"] is None
    assert sweep.metrics["n_points"] == sweep.metrics["n_planned"] == 5
    row = compare(
        *(Run(sweep.path / "points" / name) for name in ("causal", "bidirectional"))
    ).macro
    delta = points["bidirectional"]["acc"]["delta"]
    assert (delta["value"], delta["low"], delta["high"]) == pytest.approx(
        (row.delta, row.low, row.high)
    )


def test_compact_sweeps_and_conditions_keep_what_pairing_needs(tiny_folder, own_items, runs_dir):
    line = words(tiny_folder, own_items, "--sweep", "sink=1", "--compact", "--bos", "add")
    assert main(["lab", *line, "--limit", "5"]) == 0
    (run,) = list_runs([runs_dir])
    point = Run(run.path / "points" / "bidirectional_sink-1")
    assert point.is_compact
    assert point.config["bos_added"] is True
    row = point.item("mine", 2)
    assert row["contexts"] is None
    assert row["gold"] == 2
    assert row["doc_hash"]


# Stops


def test_a_finished_sweep_says_again_what_it_found(sweep, monkeypatch, capsys) -> None:
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(sweep.path.parents[1]))
    assert main(["lab", "--resume", sweep.id]) == 0
    output = capsys.readouterr()
    assert output.out == f"{sweep.path}\n"
    first, *again = output.err.splitlines()
    assert first == f"{sweep.id} is complete; nothing was run"
    assert again == lab_run_sweep.lines(sweep.metrics)
    assert again[-1] == f"verdict: {sweep.metrics['best']['acc']['sentence']}"


def test_a_sweep_without_controls_or_choice_has_no_empty_table(tmp_path) -> None:
    lines = lab_run_sweep.lines(make_sweep(tmp_path, (), n_items=30).metrics)
    assert [line.split()[0] for line in lines] == ["point", "causal", "bidirectional"]


def test_resume_refuses_runs_that_are_no_sweeps(sweep, monkeypatch, capsys) -> None:
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(sweep.path.parents[1]))
    point = f"{sweep.id}/points/causal"
    assert main(["lab", "--resume", point]) == 2
    assert "is not a sweep" in capsys.readouterr().err


def test_a_stopped_sweep_goes_on_and_scores_nothing_twice(
    tiny_folder, own_items, runs_dir, monkeypatch
) -> None:
    original, batches, stopping = scoring.Scorer.begin, [], True

    def begin(self, items):
        if stopping and [regime for regime, _ in batches].count("bidirectional") == 1:
            raise KeyboardInterrupt
        batches.append((str(self.regime), [self.plan.encoded[i].item.doc_id for i in items]))
        return original(self, items)

    monkeypatch.setattr(scoring.Scorer, "begin", begin)
    line = words(tiny_folder, own_items, "--sweep", "sink=1", "--limit", "20")
    assert main(["lab", *line]) == 130
    (run,) = list_runs([runs_dir])
    assert run.state == "cancelled"
    assert Run(run.path / "points" / "bidirectional").state == "cancelled"
    # A sweep that is not complete can be read: its finished points, and what is missing.
    assert summarise_sweep(run)["n_points"] == 1
    first = run.path / "points" / "causal" / "items.parquet"
    stamp, stopping = first.stat().st_mtime_ns, False
    # Another machine's "auto" would cut other batches; a sweep has one plan.
    monkeypatch.setitem(scoring.AUTO_BATCH_TOKENS, "cpu", 1)
    asked = []

    def planned(*arguments, **options):
        asked.append(options["batch_tokens"])
        return scoring.plan_scoring(*arguments, **options)

    monkeypatch.setattr(lab_run_sweep, "plan_scoring", planned)
    assert main(["lab", "--resume", run.id]) == 0
    assert set(asked) == {1024}
    scored = [(regime, doc_id) for regime, doc_ids in batches for doc_id in doc_ids]
    assert len(scored) == len(set(scored)) == 60
    assert first.stat().st_mtime_ns == stamp
    finished = Run(run.path)
    assert (finished.state, finished.metrics["n_points"]) == ("done", 3)
    assert finished.status["done"] == finished.status["total"] == 60
    assert main(["lab", "--resume", run.id, "--sweep", "sink=2"]) == 2
    assert main(["eval", "--resume", run.id]) == 2


def test_a_job_is_told_of_the_sweep_not_of_its_points(
    tiny_folder, own_items, runs_dir, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("BIDIR_JOB_DIR", str(tmp_path))
    line = words(tiny_folder, own_items, "--sweep", "sink=1", "--limit", "2")
    assert main(["lab", *line]) == 0
    (folder,) = (tmp_path / "runs.txt").read_text().split()
    assert Path(folder).parent.name == "lab"


def test_controls_are_one_command(tiny_folder, own_items, runs_dir, capsys) -> None:
    assert main(["lab", *words(tiny_folder, own_items, "--controls"), "--limit", "6"]) == 0
    report = capsys.readouterr().err
    (run,) = list_runs([runs_dir])
    slugs = {point["slug"].replace("bidirectional", "b") for point in run.metrics["points"]}
    (placebo,) = (slug for slug in slugs if "skip-" in slug)
    middle = int(placebo.rpartition("-")[2])
    prefixes = Run(run.path / "points" / "causal").items(["n_prefix_tokens"])["n_prefix_tokens"]
    assert 0 < middle < min(int(row[0]) for row in prefixes)
    assert run.config["middle_token"] == middle
    controls = f"sink-1 rows-0-0 skip-{middle} self-{middle} tail-1 patch-keys-0 patch-values-0"
    controls += " sink-1_patch-random-0 layers-2-_patch-random-0 rows-0-0_patch-random-0"
    controls += " bos-add sink-1_bos-add"
    references = {"causal", "b", "causal_bos-add", "causal_context-none", "causal_patch-clip-0"}
    assert slugs == references | {f"b_{control}" for control in controls.split()}
    names = {path.name for path in run.path.glob("texts*.parquet")}
    assert names == {"texts.parquet", "texts_bos-add.parquet", "texts_context-none.parquet"}
    # What another prompt shares with the usual one is stored once, and read as if it were there.
    stored = pq.read_schema(run.path / "texts_bos-add.parquet").names
    assert "n_prefix_tokens" in stored
    assert not {"doc_hash", "gold", "continuations"} & set(stored)
    usual, other = (Run(run.path / "points" / name) for name in ("causal", "causal_bos-add"))
    for fields in (["doc_hash", "gold"], ["doc_hash", "n_prefix_tokens", "margin"]):
        frame = other.items(fields)
        assert frame["doc_hash"].tolist() == usual.items(["doc_hash"])["doc_hash"].tolist()
    assert other.item("mine", 3)["continuations"] == usual.item("mine", 3)["continuations"]
    with_bos, without = (run.item("mine", 3)["n_prefix_tokens"][0] for run in (other, usual))
    assert with_bos == without + 1
    assert Run(run.path / "points" / "causal_bos-add").config["bos_added"] is True
    keys = Run(run.path / "points" / "bidirectional_patch-keys-0")
    assert keys.settings["patch"] == "keys=0"
    plain = Run(run.path / "points" / "bidirectional")
    assert not np.allclose(np.stack(keys.items(["ll"])["ll"]), np.stack(plain.items(["ll"])["ll"]))
    attention = json.loads((run.path / "attention.json").read_text())["regimes"]
    assert min(attention["bidirectional:sink=1"]["future"]) > 0
    named = "necessity sufficiency placebo relocated keys-values amount norm triviality"
    named += " prompts tail floor"
    assert {control["name"] for control in run.metrics["controls"]} == set(named.split())
    for control in run.metrics["controls"]:
        assert control["finding"].endswith(".")
        assert control["refuted_by"]
        row = rf"^{re.escape(control['title'])} +{OUTCOME_WORDS[control['outcome']]} +\w"
        assert re.search(row, report, re.M)
