"""Few-shot prefixes, drawn as lm-eval's default sampler draws them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from bidir_core.errors import UserError
from bidir_core.items import Item, ItemSource

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
            drawn = random.sample(candidates, n + headroom)
            if headroom:
                drawn = [e for e in drawn if e.doc_hash != item.doc_hash][:n]
                if len(drawn) < n:  # the pool holds copies of the item and several were drawn
                    others = [e for e in candidates if e.doc_hash != item.doc_hash]
                    drawn = random.sample(others, n)
            prefixes.append("".join(map(_solved, drawn)))
    except ValueError as error:
        raise UserError(
            f"{pool.name}: {n} few-shot examples besides the item itself cannot be drawn from "
            f"{len(candidates)} items; lower --num-fewshot"
        ) from error
    return prefixes


def _solved(item: Item) -> str:
    """The example with its right answer, and the blank line that parts it from the next."""
    return item.context(item.gold) + item.continuations[item.gold] + "\n\n"
