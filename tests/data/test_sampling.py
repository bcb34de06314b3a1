"""Which items are chosen, halved and shuffled: invariants over random tasks."""

from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidir_core.common.errors import UserError
from bidir_core.data.items import Item, ItemList, choose, fold_items, fold_of, with_context
from bidir_core.data.tasks import load_items
from tests.factory import write_lines


def item(i: int, contexts: tuple[str, ...] | None = None, group: str = "", n: int = 2) -> Item:
    contexts = contexts or (f"context {i}",)
    n = len(contexts) if len(contexts) > 1 else n
    return Item("t", i, f"hash {i}", i % n, contexts, tuple(f" {k}" for k in range(n)), group)


def source(groups: list[str], name: str = "t") -> ItemList:
    return ItemList(name, tuple(item(i, group=g) for i, g in enumerate(groups)))


groups = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=60)
limits = st.integers(min_value=1, max_value=70)
seeds = st.integers(min_value=0, max_value=5)


# --- limit and sample -------------------------------------------------------------------------


@given(groups, limits, st.sampled_from(["first", "stratified", "random"]), seeds)
def test_a_sample_has_the_size_asked_for_ascending_and_without_repeats(groups, limit, how, seed):
    rows = choose(source(groups), limit=limit, sample=how, seed=seed)
    assert len(rows) == min(limit, len(groups))
    assert rows == sorted(set(rows))
    assert set(rows) <= set(range(len(groups)))
    assert rows == choose(source(groups), limit=limit, sample=how, seed=seed)


@given(groups, limits)
def test_stratified_gives_each_group_its_share_spread_over_the_split(groups, limit):
    rows = choose(source(groups), limit=limit, sample="stratified")
    sizes, taken = Counter(groups), Counter(groups[row] for row in rows)
    wanted = min(limit, len(groups))
    for group, size in sizes.items():
        exact = wanted * size / len(groups)
        assert int(exact) <= taken[group] <= int(exact) + 1
        # Spread: any two neighbours are less than two equal stretches apart.
        places = [i for i, g in enumerate(groups) if g == group]
        chosen = [places.index(row) for row in rows if groups[row] == group]
        for a, b in pairwise(chosen):
            assert b - a < 2 * size / taken[group]


@given(st.integers(min_value=1, max_value=60), limits, limits, seeds)
def test_a_larger_random_sample_keeps_the_smaller_one(size, a, b, seed):
    smaller, larger = (
        set(choose(source([""] * size), limit=limit, sample="random", seed=seed))
        for limit in sorted((a, b))
    )
    assert smaller <= larger


def test_random_depends_on_seed_and_task():
    def draw(seed: int, name: str) -> list[int]:
        return choose(source([""] * 100, name), limit=10, sample="random", seed=seed)

    assert draw(0, "t") == draw(0, "t")
    assert len({tuple(draw(seed, name)) for seed in (0, 1) for name in ("t", "u")}) == 4
    assert draw(0, "t") != list(range(10))


# --- folds ------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=4), unique=True, max_size=20))
def test_folds_part_the_items_and_keep_their_order(hashes):
    items = [Item("t", i, h, 0, ("c",), (" a", " b")) for i, h in enumerate(hashes)]
    halves = {fold: fold_items(items, fold) for fold in ("explore", "confirm")}
    assert sorted(chain(*halves.values()), key=lambda i: i.doc_id) == items
    for fold, half in halves.items():
        assert half == [i for i in items if fold_of(i.doc_hash) == fold]
    assert fold_items(items, "all") == items


def test_folds_are_halves_and_an_items_fold_is_its_own():
    items = [item(i) for i in range(4000)]
    explore = fold_items(items, "explore")
    assert 0.46 < len(explore) / len(items) < 0.54  # 5 standard deviations
    assert set(fold_items(items[:7], "explore")) == set(explore) & set(items[:7])
    assert fold_of("hash 0") == "explore"  # pinned: a changed fold would mix old runs with new


# --- context floors ---------------------------------------------------------------------------

context_lists = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("abcdefgh")),
        st.tuples(st.sampled_from("ab"), st.sampled_from("cd")),
        st.tuples(st.sampled_from("ab"), st.sampled_from("cd"), st.sampled_from("ef")),
    ),
    max_size=40,
)


@given(context_lists, seeds)
def test_shuffled_contexts_are_other_items_and_never_the_own(contexts, seed):
    items = [item(i, c) for i, c in enumerate(contexts)]
    shapes = {n: [c for c in contexts if len(c) == n] for n in map(len, contexts)}
    impossible = any(2 * max(Counter(shape).values()) > len(shape) for shape in shapes.values())
    if impossible:
        with pytest.raises(UserError, match="contexts cannot be shuffled"):
            with_context(items, "shuffled", seed=seed)
        return
    shuffled = with_context(items, "shuffled", seed=seed)
    for before, after in zip(items, shuffled, strict=True):
        assert after.contexts != before.contexts
        assert len(after.contexts) == len(before.contexts)
        assert after.doc_hash == before.doc_hash
        assert (after.gold, after.continuations) == (before.gold, before.continuations)
    # Every context is used exactly as often as before: an exchange, not a draw.
    assert Counter(i.contexts for i in shuffled) == Counter(contexts)


def test_shuffling_depends_on_the_seed():
    items = [item(i) for i in range(50)]
    a, b = (with_context(items, "shuffled", seed=seed) for seed in (0, 1))
    assert a == with_context(items, "shuffled", seed=0)
    assert sum(x.contexts == y.contexts for x, y in zip(a, b)) < 10


def test_no_context_keeps_one_empty_text_per_context():
    none = with_context([item(0), item(1, ("a", "b"))], "none")
    assert [i.contexts for i in none] == [("",), ("", "")]
    assert none[0].continuations == item(0).continuations


# --- together ---------------------------------------------------------------------------------


@pytest.fixture
def user_task(tmp_path: Path) -> str:
    line = {"continuations": [" a", " b"]}
    lines = (line | {"contexts": [f"context {i}"], "gold": i % 2} for i in range(24))
    return write_lines(tmp_path / "mine.jsonl", lines)


def test_limit_comes_before_the_fold(user_task):
    limited = load_items([user_task], limit=10)
    halves = [load_items([user_task], limit=10, fold=fold) for fold in ("explore", "confirm")]
    assert all(halves)
    assert sorted(chain(*halves), key=lambda i: i.doc_id) == limited


def test_an_item_is_the_same_under_every_limit_and_fold(user_task):
    everything = {i.doc_id: i for i in load_items([user_task], context="shuffled", seed=3)}
    for options in (
        {"limit": 5},
        {"limit": 5, "sample": "random"},
        {"limit": 7, "sample": "stratified"},
        {"fold": "explore"},
    ):
        for item in load_items([user_task], context="shuffled", seed=3, **options):
            assert item == everything[item.doc_id]


def test_an_empty_fold_is_said_not_scored(user_task):
    only = load_items([user_task], limit=1)[0]
    empty = "explore" if fold_of(only.doc_hash) == "confirm" else "confirm"
    with pytest.raises(UserError, match=f"fold '{empty}' holds none of the 1 chosen items"):
        load_items([user_task], limit=1, fold=empty)
