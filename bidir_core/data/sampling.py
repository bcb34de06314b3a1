"""Which items of a split are scored, and with which context.

Everything here depends on the item and the seed alone: an item keeps its fold, its place in the
random order and its shuffled context when other items come or go, so runs made with other limits
still pair.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Literal, get_args

from bidir_core.common.errors import UserError
from bidir_core.data.items import Item, ItemSource

BLANK_LINE = "\n\n"  # between a repeated prompt's copies
Sample = Literal["first", "stratified", "random"]
Fold = Literal["all", "explore", "confirm"]
Context = Literal["full", "none", "shuffled"]


def check_options(limit: int | None, sample: str, fold: str, context: str) -> None:
    """`UserError` unless the limit is positive and the modes are known."""
    if limit is not None and limit < 1:
        raise UserError(
            f"limit is {limit}; it is the number of items per task, 1 or more (leave it out for all)"
        )
    for name, value, values in (
        ("sample", sample, Sample),
        ("fold", fold, Fold),
        ("context", context, Context),
    ):
        if value not in get_args(values):
            raise UserError(f"unknown {name} {value!r}; it is one of {', '.join(get_args(values))}")


def choose(
    source: ItemSource, *, limit: int | None, sample: Sample = "first", seed: int = 0
) -> list[int]:
    """The chosen rows of a split, ascending; all of them when `limit` is None or larger.

    `first`: the first ones. `stratified`: every prompt group gets its share of the limit, and
    within a group the rows are evenly spaced over the split; no randomness. `random`: by a
    seeded order in which a larger limit keeps everything a smaller one chose.
    """
    n = len(source)
    if limit is None or limit >= n:
        return list(range(n))
    if sample == "first":
        return list(range(limit))
    if sample == "random":
        return sorted(_seeded_order(range(n), seed, source.family)[:limit])
    groups: dict[str, list[int]] = defaultdict(list)
    for item in source.take(range(n)):
        groups[item.prompt_group].append(item.doc_id)
    shares = _shares([len(rows) for rows in groups.values()], limit)
    return sorted(
        rows[(2 * k + 1) * len(rows) // (2 * share)]  # the middles of `share` equal stretches
        for rows, share in zip(groups.values(), shares)
        for k in range(share)
    )


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """`total` split in proportion to `sizes`, whole numbers by largest remainder."""
    exact = [total * size / sum(sizes) for size in sizes]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def fold_of(identity: str) -> Fold:
    """The half an item belongs to, by a hash of its identity, so that it never changes.

    `identity` is its `pair_id`, so that both orders of a document are in one half, else its
    `doc_hash`.
    """
    odd = hashlib.sha256(f"fold\0{identity}".encode()).digest()[0] % 2 == 1
    return "confirm" if odd else "explore"


def fold_items(items: Iterable[Item], fold: Fold) -> list[Item]:
    """The items of this fold; `explore` and `confirm` part the items between them."""
    return [item for item in items if fold in ("all", fold_of(item.pair_id or item.doc_hash))]


def with_context(items: Sequence[Item], context: Context, *, seed: int = 0) -> list[Item]:
    """The items with their contexts kept (`full`), emptied (`none`) or exchanged (`shuffled`).

    The two floors that use of the context must beat. Emptied contexts are `""`, one for each
    there was; the scoring puts lm-eval's empty-context token there. For `shuffled` give the whole
    split: each item gets the contexts of exactly one other item with different contexts.
    """
    if context == "none":
        return [replace(item, contexts=("",) * len(item.contexts)) for item in items]
    if context == "shuffled":
        return _shuffle_contexts(items, seed)
    return list(items)


def repeat_contexts(items: Iterable[Item], times: int) -> list[Item]:
    """The items with each context given `times` times, joined by a blank line; empty ones stay."""
    if times == 1:
        return list(items)
    return [
        replace(
            item,
            contexts=tuple(
                BLANK_LINE.join([text] * times) if text else text for text in item.contexts
            ),
        )
        for item in items
    ]


def _shuffle_contexts(items: Sequence[Item], seed: int) -> list[Item]:
    """A seeded exchange of contexts in which nobody keeps their own text.

    Items are ordered at random with equal contexts side by side (PIQA asks many questions twice),
    then everybody takes the contexts of whoever is m places on, where m is the largest number of
    equal ones: a block of equals is at most m long, so nobody lands in their own.
    """
    exchanged: dict[int, Item] = {}
    # Contexts one per choice can only go to an item with as many choices.
    shapes: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        shapes[len(item.contexts)].append(item)
    for n_contexts, members in shapes.items():
        blocks: dict[tuple[str, ...], list[Item]] = defaultdict(list)
        for position in _seeded_order(range(len(members)), seed, f"shuffle\0{members[0].task}"):
            blocks[members[position].contexts].append(members[position])
        step = max(map(len, blocks.values()))
        if 2 * step > len(members):
            raise UserError(
                f"{members[0].task}: contexts cannot be shuffled, {step} of the {len(members)} items "
                f"with {n_contexts} context{'s' if n_contexts > 1 else ''} have the same one; "
                f"use context full or none"
            )
        order = [item for block in blocks.values() for item in block]
        for item, donor in zip(order, order[step:] + order[:step]):
            exchanged[item.doc_id] = replace(item, contexts=donor.contexts)
    return [exchanged[item.doc_id] for item in items]


def _seeded_order(rows: Iterable[int], seed: int, salt: str) -> list[int]:
    """The rows in an order that depends on seed and salt and on no library's random stream."""
    return sorted(rows, key=lambda row: hashlib.sha256(f"{seed}\0{salt}\0{row}".encode()).digest())


# Few-shot prefixes, drawn as lm-eval's default sampler draws them.

LM_EVAL_SEED = 1234
"""lm-eval's default `fewshot_random_seed`; our seed 0 is its default."""


def fewshot_prefixes(
    pool: ItemSource, items: Sequence[Item], n: int, *, seed: int = 0, headroom: bool = True
) -> list[str]:
    """For each item, `n` solved examples as text to put in front of its contexts.

    `items` must be the split's rows from the first on, without gaps: one random stream runs over
    them, as in lm-eval, so that an item's examples depend on its row and the seed and not on which
    other items are scored. With `headroom` one example more is drawn, so that the item itself can
    be left out (lm-eval does this unless it scores the split configured as the task's test split).
    """
    candidates = pool.take(range(len(pool)))
    random = Random(LM_EVAL_SEED + seed)
    prefixes = []
    try:
        for item in items:
            drawn = random.sample(candidates, n + int(headroom))
            if headroom:
                drawn = [e for e in drawn if e.doc_hash != item.doc_hash][:n]
                if len(drawn) < n:  # the pool holds copies of the item and several were drawn
                    others = [e for e in candidates if e.doc_hash != item.doc_hash]
                    drawn = random.sample(others, n)
            prefixes.append("".join(map(_solved_example, drawn)))
    except ValueError as error:
        raise UserError(
            f"{pool.name}: {n} few-shot examples besides the item itself cannot be drawn from "
            f"{len(candidates)} items; lower --num-fewshot"
        ) from error
    return prefixes


def _solved_example(item: Item) -> str:
    """The example with its right answer, and the blank line that parts it from the next."""
    return item.context(item.gold) + item.continuations[item.gold] + "\n\n"
