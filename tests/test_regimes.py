"""Regimes: the string form, and visibility against a slow reference written from the contract."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bidir_core.common.errors import UserError
from bidir_core.models.layout import Layout, allowed_and_ahead
from bidir_core.regimes import (
    BIDIRECTIONAL,
    CAUSAL,
    Regime,
    in_words,
    parse_regime,
    parse_regimes,
    visibility,
)
from tests.regime_bias import score_bias

spans = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted).map(tuple)
layer_ranges = spans | st.tuples(st.integers(0, 9), st.none())
regimes = st.one_of(
    st.just(CAUSAL),
    st.builds(Regime, hide=st.integers(0, 9), layers=st.none() | layer_ranges),
    st.builds(
        Regime,
        bidirectional=st.just(True),
        sink=st.integers(0, 9),
        rows=st.none() | spans,
        self_token=st.none() | st.integers(0, 9),
        tail=st.integers(0, 9),
        layers=st.none() | layer_ranges,
        hide=st.none() | st.integers(0, 9),
        lam=st.just(1.0) | st.floats(0, 1, exclude_min=True),
        skip=st.none() | st.integers(0, 9),
    ),
)
lengths = st.integers(0, 9).flatmap(
    lambda prefix: st.tuples(st.just(prefix), st.integers(prefix, prefix + 4))
)
windows = st.none() | st.integers(1, 10)


# The string form


@given(regimes)
def test_print_then_parse_gives_the_same_regime(regime: Regime) -> None:
    assert parse_regime(str(regime)) == regime
    assert str(parse_regime(str(regime))) == str(regime)


@given(
    st.permutations(
        ["sink=3", "rows=1-4", "skip=9", "self=2", "hide=6", "tail=5", "layers=0-7", "lambda=0.25"]
    )
)
def test_dials_come_in_any_order_and_print_in_one(dials: list[str]) -> None:
    regime = parse_regime("bidirectional:" + ",".join(dials))
    printed = "bidirectional:sink=3,rows=1-4,skip=9,self=2,hide=6,tail=5,layers=0-7,lambda=0.25"
    assert str(regime) == printed
    assert regime == Regime(True, 3, (1, 4), 2, 5, (0, 7), 0.25, 9, 6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bidirectional", ""),
        ("bidirectional:self=2", "token 2 sees only itself"),
        (
            "bidirectional:sink=4,layers=3-",
            "the first 4 tokens stay causal; in layers 3 to the last only",
        ),
        (
            "bidirectional:rows=0-0,lambda=0.1",
            "only tokens 0 to 0 look ahead; look-ahead at strength 0.1",
        ),
        ("causal:hide=0", "no other token sees token 0"),
    ],
)
def test_dials_have_words(text: str, words: str) -> None:
    assert in_words(parse_regime(text)) == words


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("causal", "causal"),
        ("bidirectional", "bidirectional"),
        ("bidirectional:sink=0,tail=0,lambda=1", "bidirectional"),
        ("bidirectional:lambda=1.000", "bidirectional"),
        ("bidirectional:lambda=0", "causal"),
        ("bidirectional:lambda=0.0,sink=3,self=1", "causal"),
        ("bidirectional:skip=0", "bidirectional:sink=1"),
        ("bidirectional:sink=2,skip=2", "bidirectional:sink=3"),
        ("bidirectional:sink=2,skip=1", "bidirectional:sink=2"),
        ("bidirectional:sink=999999999,skip=999999999", "bidirectional:sink=999999999"),
        ("bidirectional:sink=007", "bidirectional:sink=7"),
        ("bidirectional:self=0", "bidirectional:self=0"),
        ("bidirectional:rows=0-0,layers=4-4", "bidirectional:rows=0-0,layers=4-4"),
        ("bidirectional:lambda=0.030", "bidirectional:lambda=0.03"),
        ("bidirectional:lambda=3e-5", "bidirectional:lambda=0.00003"),
        ("bidirectional:lambda=.5", "bidirectional:lambda=0.5"),
        ("bidirectional:layers=2-", "bidirectional:layers=2-"),
        ("bidirectional:layers=0-", "bidirectional"),
        ("bidirectional:sink=1,layers=00-", "bidirectional:sink=1"),
        ("bidirectional:hide=00", "bidirectional:hide=0"),
        ("causal:hide=0", "causal:hide=0"),
        ("causal:layers=2-5,hide=3", "causal:hide=3,layers=2-5"),
        ("causal:hide=3,layers=0-", "causal:hide=3"),
        ("bidirectional:hide=3,self=1,layers=4-,lambda=0", "causal:hide=3,layers=4-"),
        ("bidirectional:layers=4-,lambda=0", "causal"),
    ],
)
def test_canonical_print(written: str, printed: str) -> None:
    assert str(parse_regime(written)) == printed


@given(st.lists(regimes, min_size=1, max_size=4, unique=True))
def test_a_list_of_regimes_is_taken_apart_at_the_right_commas(several: list[Regime]) -> None:
    assert parse_regimes(",".join(map(str, several))) == tuple(several)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "unknown regime"),
        ("Causal", "unknown regime"),
        ("bidirectional:", "unknown regime"),
        ("prefix", "unknown regime"),
        ("causal:sink=1", "causal takes only 'hide'"),
        ("causal:hide=1,sink=0", "causal takes only 'hide'"),
        ("causal:layers=2-", "causal takes only 'hide'"),
        ("causal:", "unknown regime"),
        ("causal:hide", "'hide' is not a dial"),
        ("causal:hide=-1", "hide takes an integer"),
        ("bidirectional:sink", "'sink' is not a dial"),
        ("bidirectional:speed=3", "'speed=3' is not a dial"),
        ("bidirectional:sink=1,", "'' is not a dial"),
        ("bidirectional: sink=1", "' sink=1' is not a dial"),
        ("bidirectional:sink=1,sink=1", "'sink' is given twice"),
        *(
            (f"bidirectional:{dial}={value}", f"{dial} takes an integer")
            for dial, value in (
                ("sink", "-1"),
                ("sink", "1.5"),
                ("tail", "two"),
                ("self", "9" * 20),
            )
        ),
        ("bidirectional:layers=3", "layers takes A-B"),
        ("bidirectional:layers=-3", "layers takes A-B"),
        ("bidirectional:layers=-", "layers takes an integer"),
        ("bidirectional:layers=3--", "layers takes an integer"),
        ("bidirectional:rows=3-", "rows takes A-B"),
        ("bidirectional:layers=5-3", "write 3-5"),
        ("bidirectional:rows=-1-3", "rows takes A-B"),
        ("bidirectional:rows=9-0", "write 0-9"),
        *(
            (f"bidirectional:lambda={value}", "lambda takes a number from 0 to 1")
            for value in ("1.01", "-0.1", "nan", "inf", "0_1", " 0.5", "", "1/2")
        ),
    ],
)
def test_anything_else_is_one_clear_sentence(text: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_regime(text)
    message = str(caught.value)
    assert named in message
    assert repr(text)[1:-1] in message
    assert "\n" not in message


@given(
    st.text(max_size=30)
    | st.text("bidirectional:snkrowslfty=,-.0123456789", max_size=40)
    | st.text("hide=layrs,-019", max_size=20).map("causal:".__add__)
)
def test_arbitrary_text_parses_or_is_refused(text: str) -> None:
    try:
        regime = parse_regime(text)
    except UserError:
        return
    assert parse_regime(str(regime)) == regime


def test_a_layer_that_the_model_lacks_is_refused() -> None:
    regime = parse_regime("bidirectional:layers=2-30")
    regime.check_layers(31)
    with pytest.raises(UserError, match=r"layer 30 does not exist.*layers 0-29"):
        regime.check_layers(30)
    for text in ("bidirectional:layers=30-", "causal:hide=0,layers=30-"):
        parse_regime(text).check_layers(31)
        with pytest.raises(UserError, match=r"layer 30 does not exist.*layers 0-29"):
            parse_regime(text).check_layers(30)


@given(regimes, st.integers(1, 12))
def test_a_range_without_an_end_is_the_range_to_the_last_layer(regime, n_layers):
    if regime.layers is None or regime.layers[0] >= n_layers:
        return
    first = regime.layers[0]
    there = replace(regime, layers=(first, n_layers - 1))
    for layer in range(n_layers):
        assert replace(regime, layers=(first, None)).at_layer(layer) == there.at_layer(layer)


def test_only_plain_causal_is_the_baseline() -> None:
    """Whatever asks for the baseline asks ``is_causal``: an ablation is never taken for it."""
    assert CAUSAL.is_causal
    for text in ("causal:hide=0", "causal:hide=0,layers=1-", "bidirectional:hide=0"):
        assert not parse_regime(text).is_causal
    assert not parse_regime("causal:hide=0").bidirectional


@given(regimes, regimes)
def test_slugs_are_folder_names_and_tell_regimes_apart(first: Regime, second: Regime) -> None:
    assert set(first.slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_")
    assert (first.slug == second.slug) == (first == second)


def test_a_regime_built_by_hand_is_canonical_too() -> None:
    assert Regime(bidirectional=True, sink=2, lam=0.0) == CAUSAL
    assert Regime(sink=2, self_token=1, layers=(1, 2)) == CAUSAL
    assert replace(BIDIRECTIONAL, lam=0.0) == CAUSAL
    assert parse_regime(BIDIRECTIONAL) is BIDIRECTIONAL
    for wrong in ({"lam": 1.5}, {"lam": -0.5}, {"lam": math.nan}, {"sink": -1}, {"rows": (3, 2)}):
        with pytest.raises(ValueError):
            Regime(bidirectional=True, **wrong)


# Who sees whom


def sees_by_the_contract(
    regime: Regime, query: int, key: int, n_prefix: int, layer: int | None, window: int | None
) -> tuple[bool, bool]:
    """``(sees, with lambda)``, sentence by sentence.

    "Prefix tokens see the whole prefix; a continuation token sees the prefix and the
    continuation up to itself."
    """
    sees = key <= query
    bidirectional, hides = regime.bidirectional, regime.hide is not None
    if layer is not None and regime.layers is not None:
        # "bidirectional in these layers only, causal elsewhere"; "no end: to the model's last"
        first, last = regime.layers
        if not first <= layer <= (10**9 if last is None else last):
            bidirectional = hides = False
    look_ahead = False
    if bidirectional and query < n_prefix and key < n_prefix:
        if key > query:
            look_ahead = True
            # "the first K prefix tokens stay causal (they see only what precedes them)"
            if query < regime.sink:
                look_ahead = False
            # "only the prefix queries at positions A..B look ahead"
            if regime.rows is not None and query not in range(regime.rows[0], regime.rows[1] + 1):
                look_ahead = False
            # "prefix token J stays causal, whichever others look ahead"
            if query == regime.skip:
                look_ahead = False
            # "the last K prompt tokens join the causal side (they see everything before them,
            # no earlier token sees them)"
            if regime.tail > 0 and key in range(n_prefix)[-regime.tail :]:
                look_ahead = False
        # "prefix token J sees only itself"
        if regime.self_token is not None and query == regime.self_token:
            look_ahead = False
            sees = key == query
    # "no other token attends to prefix token J (it still sees what it would see)"
    if hides and key == regime.hide and key < n_prefix and query != key:
        return False, False
    # A sliding window reaches equally far on both sides.
    if window is not None and not -window < query - key < window:
        return False, False
    return sees or look_ahead, look_ahead


@settings(max_examples=300)
@given(regimes, lengths, st.none() | st.integers(0, 9), windows)
def test_visibility_is_what_the_contract_says(regime, length, layer, window):
    n_prefix, n_total = length
    allowed = visibility(regime, n_prefix, n_total, layer=layer, window=window)
    bias = score_bias(regime, n_prefix, n_total, layer=layer, window=window)
    assert allowed.shape == bias.shape == (n_total, n_total)
    assert allowed.dtype == bool
    for query in range(n_total):
        for key in range(n_total):
            sees, weakened = sees_by_the_contract(regime, query, key, n_prefix, layer, window)
            assert allowed[query, key] == sees, (query, key)
            expected = (math.log(regime.lam) if weakened else 0.0) if sees else -math.inf
            assert bias[query, key] == expected, (query, key)


@given(regimes, lengths, windows)
def test_the_continuation_never_leaks_and_every_token_sees_itself(regime, length, window):
    n_prefix, n_total = length
    allowed = visibility(regime, n_prefix, n_total, window=window)
    assert not allowed[:n_prefix, n_prefix:].any()
    assert not np.triu(allowed[n_prefix:, n_prefix:], 1).any()
    assert allowed.diagonal().all()
    if window is None:
        hidden = np.arange(n_prefix) == regime.hide
        assert (allowed[n_prefix:, :n_prefix] == ~hidden).all()


def same(first: Regime, second: Regime, n_prefix: int, n_total: int) -> bool:
    return bool(
        np.array_equal(score_bias(first, n_prefix, n_total), score_bias(second, n_prefix, n_total))
    )


@given(regimes, lengths)
def test_equal_regimes(regime: Regime, length: tuple[int, int]) -> None:
    n_prefix, n_total = length
    lower_triangle = np.tri(n_total, dtype=bool)
    assert np.array_equal(visibility(CAUSAL, n_prefix, n_total), lower_triangle)
    assert same(BIDIRECTIONAL, CAUSAL, min(1, n_total), n_total)
    assert same(Regime(True, sink=n_prefix), CAUSAL, n_prefix, n_total)
    assert same(Regime(True, tail=n_prefix), CAUSAL, n_prefix, n_total)
    held = visibility(Regime(True, skip=2), n_prefix, n_total)
    row = np.arange(n_total)[:, None] == 2
    assert np.array_equal(
        held, np.where(row, lower_triangle, visibility(BIDIRECTIONAL, n_prefix, n_total))
    )
    assert same(Regime(True, lam=1.0), BIDIRECTIONAL, n_prefix, n_total)
    assert same(Regime(True, rows=(0, n_prefix)), BIDIRECTIONAL, n_prefix, n_total)
    assert same(replace(regime, lam=0.0, hide=None), CAUSAL, n_prefix, n_total)
    assert same(replace(regime, hide=n_prefix), replace(regime, hide=None), n_prefix, n_total)
    full = visibility(BIDIRECTIONAL, n_prefix, n_total)
    assert full[:n_prefix, :n_prefix].all()
    # What a layer outside the span does is causal; inside it, as if there were no span.
    if regime.layers is not None:
        first, last = regime.layers
        outside = [first - 1] if first else []
        for layer in outside if last is None else [*outside, last + 1]:
            allowed = visibility(regime, n_prefix, n_total, layer=layer)
            assert np.array_equal(allowed, lower_triangle)
        inside = visibility(regime, n_prefix, n_total, layer=first)
        assert np.array_equal(inside, visibility(replace(regime, layers=None), n_prefix, n_total))


@given(regimes, lengths, windows)
def test_dials_only_take_away_and_a_window_as_long_as_the_text_takes_nothing(
    regime: Regime, length: tuple[int, int], window: int | None
) -> None:
    n_prefix, n_total = length
    allowed = visibility(regime, n_prefix, n_total, window=window)
    assert not (allowed & ~visibility(BIDIRECTIONAL, n_prefix, n_total)).any()
    assert np.array_equal(
        visibility(regime, n_prefix, n_total),
        visibility(regime, n_prefix, n_total, window=max(n_total, 1)),
    )


def test_impossible_lengths_are_a_programming_error() -> None:
    for n_prefix, n_total in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="n_prefix"):
            visibility(CAUSAL, n_prefix, n_total)


# Layouts: the same rule over packed rows, padded batches and trees


@given(st.lists(lengths, min_size=1, max_size=4), regimes, windows)
def test_packed_and_padded_layouts_hold_the_plain_mask_of_each_item(items, regime, window):
    regime = replace(regime, layers=None)
    packed, padded = Layout.pack(items), Layout.pad(items)
    in_row, ahead_in_row = (t[0].numpy() for t in allowed_and_ahead(packed, regime, window))
    in_batch, ahead_in_batch = (t.numpy() for t in allowed_and_ahead(padded, regime, window))
    assert packed.spans is not None
    apart = np.ones_like(in_row)
    for row, ((n_prefix, n_total), (start, end)) in enumerate(zip(items, packed.spans)):
        assert end - start == n_total
        plain = visibility(regime, n_prefix, n_total, window=window)
        assert np.array_equal(in_row[start:end, start:end], plain)
        apart[start:end, start:end] = False
        assert np.array_equal(in_batch[row, :n_total, :n_total], plain)
        padding = np.eye(in_batch.shape[1], dtype=bool)
        assert np.array_equal(in_batch[row, n_total:], padding[n_total:])
        assert not in_batch[row, :n_total, n_total:].any()
        lower = np.tri(n_total, dtype=bool)
        assert np.array_equal(ahead_in_row[start:end, start:end] & plain, plain & ~lower)
        assert np.array_equal(ahead_in_batch[row, :n_total, :n_total] & plain, plain & ~lower)
        span = allowed_and_ahead(packed, regime, window, (start, end))[0][0].numpy()
        assert np.array_equal(span, plain)
    assert not in_row[apart].any()


@st.composite
def trees(draw: Any) -> tuple[int, list[int | None]]:
    """``(prefix length, parent of each continuation token)``, in depth-first order.

    The parent is an index among the continuation tokens, None for a child of the prefix.
    """
    parents: list[int | None] = []
    path: list[int] = []  # from the prefix to the last token
    for index in range(draw(st.integers(0, 8))):
        path = path[: draw(st.integers(0, len(path)))]
        parents.append(path[-1] if path else None)
        path.append(index)
    return draw(st.integers(1, 6)), parents


def tree_layout(n_prefix: int, parents: list[int | None]) -> Layout:
    n_total = n_prefix + len(parents)
    depth: list[int] = []
    exits = [n_total] * n_total
    for index, parent in enumerate(parents):
        depth.append(0 if parent is None else depth[parent] + 1)
        for earlier in range(index):
            if depth[earlier] >= depth[index] and exits[n_prefix + earlier] == n_total:
                exits[n_prefix + earlier] = n_prefix + index
    row = torch.tensor([exits])
    position = [*range(n_prefix), *(n_prefix + d for d in depth)]
    return Layout(
        torch.zeros_like(row), torch.tensor([position]), torch.full_like(row, n_prefix), row
    )


@settings(max_examples=200)
@given(trees(), regimes, windows)
def test_along_each_path_of_a_tree_the_mask_is_the_plain_one(tree, regime, window):
    n_prefix, parents = tree
    regime = replace(regime, layers=None)
    layout = tree_layout(n_prefix, parents)
    allowed = allowed_and_ahead(layout, regime, window)[0][0].numpy()
    related = np.zeros_like(allowed)
    for leaf in range(len(parents)):
        path: list[int] = []
        token: int | None = leaf
        while token is not None:
            path.insert(0, n_prefix + token)
            token = parents[token]
        path = [*range(n_prefix), *path]
        plain = visibility(regime, n_prefix, len(path), window=window)
        assert np.array_equal(allowed[np.ix_(path, path)], plain)
        related[np.ix_(path, path)] = True
    assert not allowed[n_prefix:][~related[n_prefix:]].any()  # siblings do not see each other


def test_moving_a_layout_keeps_it() -> None:
    layout = Layout.pack([(2, 3), (1, 4)])
    moved = layout.to("cpu")
    assert moved.spans == layout.spans == ((0, 3), (3, 7))
    assert torch.equal(moved.exit, layout.exit)
    assert layout.shape == (1, 7)
