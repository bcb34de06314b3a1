"""Where a task's right answers stand among the choices, and what a constant guess would score.

A task whose right answer is nearly always, say, its last choice measures a liking for the last
choice: a model that never reads the question may be right every time. Chance, 1 / n_choices, says
nothing of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from bidir_core.data.items import Item

NEARLY_ALL = 0.9
"""From this share of right answers in one position on, a task is said to be one-sided."""
_BY_ACCIDENT = 0.01
ONE_SIDED = "One position is nearly always right"


def answer_positions(items: Iterable[Item]) -> dict[str, dict[str, Any]]:
    """Per task: `n`, `right` (how often each position holds the right answer), and the share that
    the `best_constant_guess` scores, the position that is right most often picked every time.

    `one_sided` where that share is `NEARLY_ALL` or more and too large for an accident: fewer than
    1 in 100 sets of as many items, their answers placed at random, have such a share.
    """
    from scipy.special import bdtrc

    golds: dict[str, Counter[int]] = defaultdict(Counter)
    choices: dict[str, list[int]] = defaultdict(list)
    for item in items:
        golds[item.task][item.gold] += 1
        choices[item.task].append(item.n_choices)
    positions = {}
    for task, counts in golds.items():
        n, most = counts.total(), max(counts.values())
        chance = sum(1 / number for number in choices[task]) / n
        # The binomial probability of so many right answers or more in one position.
        accident = max(choices[task]) * float(bdtrc(most - 1, n, chance))
        positions[task] = {
            "n": n,
            "right": [counts[position] for position in range(max(choices[task]))],
            "best_constant_guess": most / n,
            "one_sided": most / n >= NEARLY_ALL and accident < _BY_ACCIDENT,
        }
    return positions


def one_sided_sentences(positions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence for each task that is one-sided; `positions` as `answer_positions` gives them."""
    return [
        f"{task}: choice {facts['right'].index(max(facts['right'])) + 1} of {len(facts['right'])} "
        f"is right in {max(facts['right']):,} of {facts['n']:,} items, so a constant guess scores "
        f"{facts['best_constant_guess']:.1%}: shuffle the choices before believing a score"
        for task, facts in positions.items()
        if facts.get("one_sided")
    ]
