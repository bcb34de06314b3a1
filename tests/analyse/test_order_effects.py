"""Order gaps and what is won back, against slow references; and read from real run folders."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from scipy.stats import norm

from bidir_core.analyse.order_effects import (
    OrderAnswers,
    gap_recovered,
    order_answers,
    order_effect,
)
from bidir_core.analyse.stats import z_score
from bidir_core.common.errors import UserError
from bidir_core.runs.run import Run
from tests.factory import make_item, make_run, unsealed

ORDERS = ("first", "last")


def answers(first, last, ids=None) -> OrderAnswers:
    ids = list(range(len(first))) if ids is None else ids
    names = np.array([f"doc/{i:05}" for i in ids])
    first, last = np.array(first, dtype=bool), np.array(last, dtype=bool)
    return OrderAnswers("made_up", names, names, first, last, first * 0.8, last * 0.6)


def drawn(seed: int, n: int, chances: tuple[float, ...]) -> tuple[OrderAnswers, OrderAnswers]:
    """Causal and candidate with correlated answers: an easy document is easy in every order."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=n)
    right = [rng.normal(size=n) + ease < np.sqrt(2) * norm.ppf(p) for p in chances]
    return answers(right[0], right[1]), answers(right[2], right[3])


# --- the arithmetic ---------------------------------------------------------------------------


def test_by_hand() -> None:
    #          first      last
    causal = answers([1] * 60 + [0] * 40, [1] * 30 + [0] * 70)
    candidate = answers([1] * 50 + [0] * 50, [1] * 36 + [0] * 64)
    effect = order_effect(causal)
    levels = (effect.first.value, effect.last.value, effect.gap.value)
    assert levels == pytest.approx((0.6, 0.3, 0.3))
    assert (effect.first_prob, effect.last_prob) == pytest.approx((0.48, 0.18))
    recovered = gap_recovered(causal, candidate)
    assert recovered.share.value == pytest.approx(6 / 30)
    assert 0 < recovered.share.low < 0.2 < recovered.share.high < 1
    assert recovered.first_change.value == pytest.approx(-0.1)
    assert recovered.last_change.value == pytest.approx(0.06)


def test_the_interval_holds_every_ratio_that_is_not_refuted() -> None:
    """Slow reference: try each ratio, and test its remainder against 0."""
    for seed in range(6):
        causal, candidate = drawn(seed, 500, (0.75, 0.6, 0.7, 0.66))
        recovered = gap_recovered(causal, candidate)
        assert recovered.share is not None
        gain, gap = (right * 1.0 - causal.last for right in (candidate.last, causal.first))
        kept = []
        for ratio in np.arange(-3, 6, 0.001):
            remainder = gain - ratio * gap
            if remainder.mean() ** 2 <= z_score(0.95) ** 2 * remainder.var(ddof=1) / len(remainder):
                kept.append(ratio)
        assert recovered.share.low == pytest.approx(min(kept), abs=0.0011)
        assert recovered.share.high == pytest.approx(max(kept), abs=0.0011)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth = (0.66 - 0.6) / (0.75 - 0.6)
    held = [
        recovered.share.low <= truth <= recovered.share.high
        for seed in range(400)
        if (recovered := gap_recovered(*drawn(1000 + seed, 400, (0.75, 0.6, 0.7, 0.66)))).share
    ]
    assert len(held) > 390
    assert 0.92 <= np.mean(held) <= 0.98


@given(st.integers(0, 10_000), st.integers(2, 200), st.floats(0.3, 0.8), st.floats(-0.2, 0.19))
def test_a_share_is_stated_exactly_where_there_is_a_gap(seed, n, level, gap) -> None:
    causal, candidate = drawn(seed, n, (level + gap, level, level, level))
    recovered = gap_recovered(causal, candidate)
    if recovered.gap.low <= 0:
        assert recovered.share is None
        assert "order gap is not shown" in recovered.why_not_stated
    elif recovered.share is None:  # without spread, or at the very border of the two intervals
        assert recovered.why_not_stated
    else:
        assert recovered.share.low < recovered.share.value < recovered.share.high
        assert all(map(np.isfinite, (recovered.share.low, recovered.share.high)))


def test_documents_are_matched_by_pair_and_must_be_the_same() -> None:
    causal, candidate = drawn(5, 300, (0.8, 0.6, 0.75, 0.7))
    shuffled = candidate.take(np.random.default_rng(0).permutation(300)[:200])
    kept = np.isin(candidate.pair_id, shuffled.pair_id)
    assert gap_recovered(causal, shuffled) == gap_recovered(causal.take(kept), candidate.take(kept))
    with pytest.raises(UserError, match="share no document"):
        gap_recovered(causal, answers([1], [0], ids=[9_000]))
    other = OrderAnswers("made_up", causal.pair_id, causal.pair_id[::-1], *([causal.first] * 4))
    with pytest.raises(UserError, match="'doc/00000' is another document"):
        gap_recovered(causal, other)


# --- from run folders -------------------------------------------------------------------------


def order_run(root, *orders: str, n_pairs: int = 24, **more) -> Run:
    """Of the same 24 documents in these orders."""
    items = [
        make_item(f"mine_{order}", i, 0) | {"pair_id": f"doc {i % n_pairs}", "gold": i % 2}
        for order in orders
        for i in range(24)
    ]
    return make_run(root, items=items, tasks=[f"mine_{order}" for order in orders], **more)


def test_a_run_with_both_orders_has_its_documents_paired(root) -> None:
    both, compact = order_run(root, *ORDERS), order_run(root, *ORDERS, texts=False)
    answers = order_answers(both)["mine"]
    assert answers.n == 24
    items = both.items(("task", "pair_id", "correct"))
    for name, values in (("first", answers.first), ("last", answers.last)):
        slow = {
            row.pair_id: row.correct for row in items.itertuples() if row.task == f"mine_{name}"
        }
        assert dict(zip(answers.pair_id, values)) == slow
    same = order_answers(compact)["mine"]
    np.testing.assert_array_equal(same.first, answers.first)
    np.testing.assert_array_equal(same.last, answers.last)
    assert order_answers(order_run(root, "first")) == {}
    with pytest.raises(UserError, match="stands twice in mine_first"):
        order_answers(order_run(root, *ORDERS, n_pairs=12))


def test_a_run_from_before_there_were_pairs_has_none(root) -> None:
    run = unsealed(order_run(root, *ORDERS))
    path = run.path / "items.parquet"
    parquet.write_table(parquet.read_table(path).drop_columns(["pair_id"]), path)
    assert run.items(("pair_id",))["pair_id"].isna().all()
    assert order_answers(run) == {}
