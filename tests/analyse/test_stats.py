"""Paired statistics: published examples, coverage by simulation, invariants."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from bidir_core.analyse import stats, verdict
from bidir_core.analyse.stats import Estimate, Table2x2, above_floor_retention
from bidir_core.analyse.verdict import judge, n_to_decide

counts = st.integers(0, 200)
tables = st.builds(Table2x2, counts, counts, counts, counts).filter(lambda t: t.n > 0)


def draw(rng, n, p_both, p_broken, p_fixed):
    """n pairs of right/wrong with these cell probabilities."""
    cell = rng.choice(4, size=n, p=[p_both, p_broken, p_fixed, 1 - p_both - p_broken - p_fixed])
    return (cell == 0) | (cell == 1), (cell == 0) | (cell == 2)


# --- a share ---------------------------------------------------------------------------------


def test_wilson_interval_of_the_textbook_example():
    # Newcombe 1998, Statistics in Medicine 17:857-872, table I: 81 of 263 and 0 of 20.
    share = stats.proportion(81, 263)
    assert (share.value, share.n) == (81 / 263, 263)
    assert (share.low, share.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    no_share = stats.proportion(0, 20)
    assert (no_share.value, no_share.low, no_share.high) == (0, 0, pytest.approx(0.1611, abs=5e-5))


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_share_stays_within_bounds_and_mirrors(counted):
    right, n = counted
    share, mirrored = stats.proportion(right, n), stats.proportion(n - right, n)
    assert 0 <= share.low <= share.value <= share.high <= 1
    assert share.high - share.low > 0.005
    assert mirrored.low == pytest.approx(1 - share.high, abs=1e-9)


# --- the paired interval ---------------------------------------------------------------------


def test_tango_interval_of_the_textbook_example():
    # Bentur et al. as in Fagerland, Lydersen and Laake 2014: Tango -0.517 to -0.026.
    delta = stats.paired_interval(Table2x2(both_right=1, broken=7, fixed=1, both_wrong=12))
    assert delta.value == pytest.approx(-6 / 21)
    assert (delta.low, delta.high) == pytest.approx((-0.517, -0.026), abs=6e-4)


@given(tables)
def test_interval_is_ordered_symmetric_and_within_bounds(table):
    delta = stats.paired_interval(table)
    assert -1 <= delta.low <= delta.value <= delta.high <= 1
    assert delta.high > delta.low
    mirrored = stats.paired_interval(
        Table2x2(table.both_right, table.fixed, table.broken, table.both_wrong)
    )
    assert mirrored.low == pytest.approx(-delta.high, abs=1e-9)
    assert mirrored.high == pytest.approx(-delta.low, abs=1e-9)


@given(tables)
def test_interval_excludes_zero_exactly_when_the_score_test_rejects(table):
    # At zero Tango's statistic is McNemar's: (fixed - broken) / sqrt(fixed + broken).
    if table.churn:
        z = abs(table.fixed - table.broken) / math.sqrt(table.churn)
        if abs(z - 1.96) > 1e-3:
            assert stats.paired_interval(table).excludes_zero == (z > 1.96)


@pytest.mark.parametrize(
    ("n", "p_broken", "p_fixed", "at_most"),
    [
        (60, 0.10, 0.02, 0.97),
        (60, 0.02, 0.01, 1.0),  # with one or two discordant pairs it is conservative
        (300, 0.12, 0.08, 0.97),
        (500, 0.3, 0.05, 0.97),
    ],
)
def test_paired_interval_covers_the_truth_95_percent_of_the_time(n, p_broken, p_fixed, at_most):
    rng = np.random.default_rng(7)
    rounds = 1500
    cells = rng.multinomial(n, [0.4, p_broken, p_fixed, 0.6 - p_broken - p_fixed], size=rounds)
    hits = 0
    for row in cells:
        delta = stats.paired_interval(Table2x2(*(int(x) for x in row)))
        hits += delta.low <= p_fixed - p_broken <= delta.high
    assert 0.93 <= hits / rounds <= at_most


def test_macro_interval_covers_and_is_no_wider_than_needed():
    rng = np.random.default_rng(3)
    sizes = (100, 100, 60, 40, 80)
    rates = [(0.15, 0.05), (0.08, 0.08), (0.2, 0.1), (0.05, 0.1), (0.3, 0.1)]
    truth = np.mean([fixed - broken for broken, fixed in rates])
    hits, widths, values = 0, [], []
    for _ in range(1000):
        parts = [
            stats.paired_interval(Table2x2(*map(int, rng.multinomial(n, [0.3, b, f, 0.7 - b - f]))))
            for n, (b, f) in zip(sizes, rates, strict=True)
        ]
        macro = stats.macro_delta(parts)
        hits += macro.low <= truth <= macro.high
        widths.append(macro.high - macro.low)
        values.append(macro.value)
    assert 0.93 <= hits / 1000 <= 0.985
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(values), rel=0.08)


# --- tests -----------------------------------------------------------------------------------


def test_exact_mcnemar_by_hand():
    # Two-sided binomial: 2 * (C(12,0) + C(12,1) + C(12,2)) / 2**12
    assert stats.mcnemar_exact(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert stats.mcnemar_exact(2, 10) == stats.mcnemar_exact(10, 2)
    assert stats.mcnemar_exact(0, 0) == 1.0
    assert stats.mcnemar_exact(4, 4) == 1.0
    assert stats.mcnemar_exact(0, 6) == pytest.approx(2 / 64)


def test_wilson_mcnemar_and_holm_are_those_of_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import proportion_confint

    for right, n in [(0, 20), (20, 20), (1, 3), (81, 263), (7_000, 14_016)]:
        ours, theirs = stats.proportion(right, n), proportion_confint(right, n, method="wilson")
        assert (ours.low, ours.high) == pytest.approx(theirs, abs=1e-12)
    for broken, fixed in [(1, 0), (3, 3), (5, 0), (40, 61), (900, 1_100)]:
        known = mcnemar([[0, broken], [fixed, 0]], exact=True).pvalue
        assert stats.mcnemar_exact(broken, fixed) == pytest.approx(min(known, 1), rel=1e-9)

    # One call: statsmodels collects garbage at each.
    p_values = [0.01, 0.04, 0.03, 0.005, 0.04, 0.9, 0.0, 1.0, 0.2]
    assert stats.holm([]) == []
    assert stats.holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


def test_smallest_detectable_difference_has_the_power_it_states():
    n, discordance = 500, 0.15
    delta = stats.smallest_detectable(n, discordance)
    assert delta is not None
    rng = np.random.default_rng(11)
    p_fixed, p_broken = (discordance + delta) / 2, (discordance - delta) / 2
    cells = rng.multinomial(n, [p_fixed, p_broken, 1 - discordance], size=4000)
    z = (cells[:, 0] - cells[:, 1]) / np.sqrt(np.maximum(cells[:, 0] + cells[:, 1], 1))
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.80, abs=0.03)


# --- retention -------------------------------------------------------------------------------


def test_retention_interval_agrees_with_scipys_paired_bootstrap():
    rng = np.random.default_rng(5)
    a, b = draw(rng, 400, 0.35, 0.25, 0.1)
    share = above_floor_retention({"t": a}, {"t": b}, {"t": 0.25})

    def retention(x, y, axis):
        return (y.mean(axis=axis) - 0.25) / (x.mean(axis=axis) - 0.25)

    options = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 4000}
    resampled = bootstrap((a.astype(float), b.astype(float)), retention, **options, rng=2)
    expected = resampled.confidence_interval
    assert share.value == pytest.approx((b.mean() - 0.25) / (a.mean() - 0.25))
    assert share.low == pytest.approx(expected.low, abs=0.03)
    assert share.high == pytest.approx(expected.high, abs=0.03)
    again = above_floor_retention({"t": a}, {"t": b}, {"t": 0.25})
    assert again == share  # seeded


# --- contrasts and seeds -----------------------------------------------------------------------


def test_contrast_covers_the_truth():
    rng = np.random.default_rng(9)
    hits = 0
    for _ in range(1000):
        values = {
            "x": rng.choice([-1, 0, 1], size=150, p=[0.1, 0.7, 0.2]),
            "y": rng.choice([-2, 0, 1], size=60, p=[0.05, 0.75, 0.2]),
        }
        estimate = stats.stratified_mean(values).estimate
        hits += estimate.low <= 0.1 <= estimate.high
    assert 0.93 <= hits / 1000 <= 0.985


# --- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.054, -0.039, "worse"),
        (0.02, 0.06, "better"),
        (-0.006, 0.009, "equivalent"),
        (0.001, 0.008, "equivalent"),  # measurable, and inside the margin
        (-0.006, 0.011, "undecided"),
        (-0.011, 0.005, "undecided"),
        (-0.01, 0.005, "undecided"),  # touching the margin is not inside it
        (0.0, 0.03, "undecided"),
    ],
)
def test_verdict(low, high, expected):
    estimate = Estimate((low + high) / 2, low, high, 1000)
    assert judge(estimate).verdict == expected


def test_n_to_decide_would_settle_it():
    estimate = Estimate(0.004, -0.010, 0.018, 2299)
    needed = n_to_decide(estimate)
    assert needed > 2299
    half = 0.014 * math.sqrt(2299 / needed)
    shrunk = Estimate(0.004, 0.004 - half, 0.004 + half, needed)
    assert judge(shrunk).verdict != "undecided"
    # and not by going far beyond what is needed
    half = 0.014 * math.sqrt(2299 / (needed * 0.85))
    assert judge(Estimate(0.004, 0.004 - half, 0.004 + half, 1)).verdict == "undecided"


@given(st.floats(-0.2, 0.2), st.floats(0.0005, 0.2), st.integers(10, 20_000))
def test_sentences_never_claim_a_direction_inside_the_interval(value, half, n):
    estimate = Estimate(value, value - half, value + half, n)
    judgement = judge(estimate)
    text = verdict.sentence("It", judgement, tasks=["a", "b"])
    assert ("raises" in text) == (estimate.low > 0)
    assert ("lowers" in text) == (estimate.high < 0)
    assert ("no difference" in text) == (judgement.verdict == "equivalent")
    assert ("undecided" in text) == (judgement.verdict == "undecided")


# --- at the border ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_seeds", "noise", "least"),
    [(2, 0.01, 0.93), (3, 0.01, 0.93), (2, 0.03, 0.86), (3, 0.03, 0.91)],
)
def test_intervals_over_few_seeds_cover_the_truth(n_seeds, noise, least):
    rng = np.random.default_rng(n_seeds)
    covered = normal = 0
    repetitions = 800
    for _ in range(repetitions):
        seed_effect = rng.normal(0, noise, (n_seeds, 1))
        item_effect = rng.choice([-1.0, 0.0, 1.0], size=3000, p=[0.1, 0.8, 0.1])
        effect = stats.stratified_mean({"t": item_effect + seed_effect})
        covered += not effect.estimate.excludes_zero
        items = 0.2 / 3000  # the items' variance
        seeds = np.var(effect.per_seed, ddof=1) / n_seeds
        normal += abs(effect.estimate.value) < stats.Z_95 * math.sqrt(items + seeds)
    assert covered / repetitions > least
    if noise == 0.03:  # nearly four times the items' part
        assert normal / repetitions < min(0.88, covered / repetitions - 0.03)


def bools(right: int, n: int) -> np.ndarray:
    return np.arange(n) < right


@pytest.mark.parametrize(
    ("base", "other", "n", "why"),
    [
        (400, 400, 500, "no item tells the runs apart"),
        (90, 60, 500, "the baseline is below the floor"),
        (130, 60, 500, "the baseline is not separable from the floor"),
        (1, 0, 1, "the baseline is not separable from the floor"),
        (5, 4, 5, "bound no share"),
        (0, 0, 500, "the baseline is below the floor"),
    ],
)
def test_no_share_is_stated_where_there_is_none_to_bound(base, other, n, why):
    kept = above_floor_retention({"t": bools(base, n)}, {"t": bools(other, n)}, {"t": 0.25})
    assert (kept.value, kept.low, kept.high) == (None, None, None)
    assert why in kept.why_suppressed


def test_no_share_of_the_damage_either() -> None:
    causal, bidirectional = {"t": bools(400, 500)}, {"t": bools(300, 500)}
    assert above_floor_retention(causal, causal, bidirectional).value is None
    assert above_floor_retention(causal, bidirectional, bidirectional).value is None
    assert above_floor_retention(bidirectional, causal, causal).value is None  # there is none
    found = above_floor_retention(causal, {"t": bools(350, 500)}, bidirectional)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "accuracy", "broken"), [(500, 0.8, 0.002), (100, 0.6, 0.02)])
def test_a_share_that_is_stated_covers_the_truth_at_the_border(n, accuracy, broken):
    """With so few discordant items that many worlds have none."""
    rng = np.random.default_rng(1)
    truth = 1 - broken / (accuracy - 0.25)
    stated = []
    for _ in range(120):
        a, b = draw(rng, n, accuracy - broken, broken, 0.0)
        stated.append(above_floor_retention({"t": a}, {"t": b}, {"t": 0.25}))
    held = [s.low <= truth <= s.high for s in stated if s.value is not None]
    assert len(held) > 60
    assert np.mean(held) > 0.93


@pytest.mark.parametrize(("first", "second"), [(1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (1.0, 0.98)])
def test_unpaired_intervals_keep_a_width_at_the_border(first, second):
    for n in (1, 20, 500):
        a, b = stats.accuracy(first, n), stats.accuracy(second, n)
        delta = stats.unpaired_delta(a, b)
        assert delta.low < delta.value < delta.high or abs(delta.value) == 1
        assert delta.high - delta.low > 0
        if first == second:
            assert judge(delta).verdict == ("equivalent" if n == 500 else "undecided")


def test_newcombes_interval_of_his_example():
    # Newcombe 1998, table II, method 10: 56/70 against 48/80.
    a, b = stats.proportion(48, 80), stats.proportion(56, 70)
    delta = stats.unpaired_delta(a, b)
    assert (delta.low, delta.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_what_so_few_items_can_show_is_not_overstated():
    table = Table2x2(3, 1, 0, 1)
    assert stats.smallest_detectable_macro([table] * 2) is None
    assert n_to_decide(stats.paired_interval(table)) is None
    assert "too few" in verdict.phrase(judge(stats.paired_interval(table)))
