"""Records and metrics: lm-eval's conventions, and numbers worked out by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidir_core.runs import records
from bidir_core.runs.records import make_record
from bidir_core.runs.run import compute_metrics, outcomes
from tests.factory import make_run

pytestmark = pytest.mark.usefixtures("own_runs")


def record(**changes):
    item = {"task": "t", "doc_id": 0, "doc_hash": "h", "gold": 1, "contexts": ["c"]}
    item["continuations"] = [" a much longer choice", " bb"]
    scored = {"n_prefix_tokens": [1], "n_continuation_tokens": [4, 1], "ll": [-8.0, -4.0]}
    return make_record(**{**item, **scored, **changes})


def test_predictions_follow_lm_eval():
    row = record()
    # acc: argmax of ll. acc_norm: per character without the leading space: -8/20 against -4/2.
    assert (row["pred"], row["correct"], row["margin"]) == (1, True, 4.0)
    assert (row["pred_norm"], row["correct_norm"]) == (0, False)
    three = record(
        continuations=[" a", " b", " c"], ll=[-3.0, -2.0, -2.0], n_continuation_tokens=[1, 1, 1]
    )
    assert three["pred"] == 1  # the first of equals, as numpy's argmax
    assert three["margin"] == 0.0
    same = record(contexts=["c one", "c two"], continuations=[" same"] * 2)  # as winogrande's
    assert (same["pred_norm"], same["correct_norm"]) == (None, None)


@pytest.mark.parametrize("ll", [[math.nan, -4.0], [math.inf, -4.0], [-math.inf, -math.inf]])
def test_nan_is_an_item_error_never_an_argmax(ll):
    row = record(ll=ll)
    assert row["ll"] is None
    assert row["pred"] is None
    assert row["correct"] is False
    assert "choice 0" in row["error"]
    records.to_line(row)
    alone = compute_metrics([row])["tasks"]["t"]
    assert (alone["acc"], alone["gold_prob"]) == (0, None)


@pytest.mark.parametrize("gold", [0, 1])
def test_a_choice_of_no_probability_loses_and_the_item_stays(gold, tmp_path):
    row = record(ll=[-math.inf, -4.0], gold=gold)
    assert row["error"] is None
    assert (row["pred"], row["pred_norm"]) == (1, 1)
    assert (row["correct"], row["correct_norm"]) == (gold == 1, gold == 1)
    assert row["margin"] == (math.inf if gold else -math.inf)
    (tmp_path / "items.jsonl").write_bytes(records.to_line(row))
    (read,), _ = records.read_jsonl(tmp_path / "items.jsonl")
    assert read == row
    metrics = compute_metrics([row])["tasks"]["t"]
    assert (metrics["acc"], metrics["acc_norm"], metrics["gold_prob"]) == (gold, gold, gold)
    json.dumps(metrics, allow_nan=False)
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.to_line({**record(), "margin": math.nan})


def test_a_task_of_both_kinds_of_items_counts_each_by_its_own_rule():
    """Where an item has no acc_norm its acc counts, in the task's row as in comparisons."""
    rows = [
        record(doc_id=0),  # right by acc, wrong by acc_norm
        record(doc_id=1, ll=[-8.0, -0.1]),  # right by both
        record(doc_id=2, contexts=["one", "two"], continuations=[" same"] * 2),  # acc only, right
    ]
    row = compute_metrics(rows)["tasks"]["t"]
    assert row["acc"] == 1.0
    assert row["acc_norm"] == pytest.approx(2 / 3)
    assert row["acc_norm_stderr"] == pytest.approx(math.sqrt(2 / 9 / 2))
    right, chosen = outcomes(records.to_table(rows), "acc_norm")
    assert right.tolist() == [False, True, True]
    assert chosen.tolist() == [0, 1, 1]


@given(
    st.lists(
        st.floats(-500, 0, width=32) | st.sampled_from([-1.0, -2.0, -3.0]), min_size=2, max_size=6
    ).flatmap(lambda ll: st.tuples(st.just(ll), st.integers(0, len(ll) - 1))),
    st.lists(st.integers(0, 9), min_size=6, max_size=6),
)
def test_predictions_are_those_of_arrays(scored, letters):
    """Ties included: the first of equals; margins and lengths in double precision."""
    ll, gold = scored
    texts = [" " + "x" * n for n in letters[: len(ll)]]
    row = record(ll=ll, gold=gold, continuations=texts)
    values = np.array(ll, dtype=np.float32).astype(np.float64)
    assert row["ll"] == values.tolist()
    assert row["pred"] == int(np.argmax(values))
    assert row["margin"] == float(values[gold] - np.delete(values, gold).max())
    if len(set(texts)) > 1:
        lengths = np.array([max(n, 1) for n in letters[: len(ll)]])
        assert row["pred_norm"] == int(np.argmax(values / lengths))


def test_a_line_is_dense_json():
    row = record(contexts=["caf\u00e9 \u2028 \ud800"], ll=[-8.1, -4.2])
    dense = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    assert records.to_line(row) == dense.encode("utf-8", errors="surrogatepass") + b"\n"


def test_metrics_by_hand():
    four = {"continuations": [" a", " b", " c", " d"], "n_continuation_tokens": [1] * 4}
    rows = [
        record(task="a", doc_id=0),
        record(task="a", doc_id=1, ll=[-1.0, -4.0]),
        record(task="a", doc_id=2, ll=[math.nan, -4.0]),
        record(task="a", doc_id=3, ll=[-2.0, -1.0, -2.0, -2.0], **four),
        record(task="winogrande", contexts=["x", "y"], continuations=[" same"] * 2),
    ]
    metrics = compute_metrics(rows)
    assert (metrics["n_items"], metrics["n_scored"], metrics["n_errors"]) == (5, 4, 1)
    a = metrics["tasks"]["a"]
    assert a["n"] == 4
    assert a["acc"] == 0.5  # the error item counts as wrong
    assert a["acc_stderr"] == pytest.approx(math.sqrt(0.25 / 3))
    assert a["chance"] == pytest.approx((3 * 0.5 + 0.25) / 4)
    soft = [1 / (1 + math.exp(-4)), 1 / (1 + math.exp(3)), 1 / (1 + 3 * math.exp(-1))]
    assert a["gold_prob"] == pytest.approx(np.mean(soft))
    wino = metrics["tasks"]["winogrande"]
    assert wino["acc_norm"] is None
    assert wino["acc_norm_stderr"] is None
    assert wino["acc_stderr"] is None  # one item
    assert metrics["macro"]["acc"] == pytest.approx(0.75)
    assert metrics["macro"]["acc_norm"] == pytest.approx((a["acc_norm"] + 1.0) / 2)
    assert metrics["macro"]["chance"] == pytest.approx((a["chance"] + 0.5) / 2)


@pytest.mark.parametrize("texts", [True, False])
def test_the_file_says_to_others_what_was_written(tmp_path, texts):
    """The encodings that make it small are read by pandas too, nulls and errors among them."""
    run = make_run(tmp_path, n_items=60, texts=texts, n_errors=3)
    table = records.read_parquet(run.path / "items.parquet")
    records.write_parquet(table, tmp_path / "again.parquet")
    assert records.read_parquet(tmp_path / "again.parquet").equals(table)
    frame = pd.read_parquet(tmp_path / "again.parquet")
    for name in ("doc_hash", "doc_id", "margin", "task"):
        wanted = table.column(name).to_pandas()
        pd.testing.assert_series_equal(frame[name], wanted, check_names=False)
    for ours, theirs in zip(table.column("ll").to_pylist(), frame["ll"]):
        assert (ours is None) == (theirs is None)
        assert ours is None or ours == theirs.tolist()


def test_compact_runs_are_small(tmp_path):
    run = make_run(tmp_path, n_items=2000, texts=False)
    records.write_parquet(records.read_parquet(run.path / "items.parquet"), tmp_path / "kept")
    assert (tmp_path / "kept").stat().st_size < 145_000
