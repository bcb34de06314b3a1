"""One scored question: its prompt, its choices, and the hash by which runs and tools pair it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

ITEM_FIELDS = ("task", "doc_id", "doc_hash", "gold", "contexts", "continuations")
"""The fields of a record that come from the item; scoring adds the rest."""


@dataclass(frozen=True)
class Item:
    """A multiple-choice item, ready to be tokenised.

    `contexts` has one text, or one per choice (winogrande). `continuations` always has one text
    per choice, each with its leading space; where lm-eval shares one continuation it is repeated.
    `doc_id` is the index in the split, whatever the sample; `prompt_group` is what kind of
    document it is within its task (HellaSwag: `activitynet` or `wikihow`), or empty. Items of
    other tasks that ask about the same document share its `pair_id` (see `builtin_tasks`).
    """

    task: str
    doc_id: int
    doc_hash: str
    gold: int
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    prompt_group: str = ""
    pair_id: str | None = None

    @property
    def n_choices(self) -> int:
        return len(self.continuations)

    @property
    def item_id(self) -> str:
        """`<task>/<doc_id>`, the id in URLs and tables."""
        return f"{self.task}/{self.doc_id}"

    def context(self, choice: int) -> str:
        return self.contexts[choice] if len(self.contexts) > 1 else self.contexts[0]

    def record(self) -> dict[str, Any]:
        """The item's part of a run's record: `ITEM_FIELDS`, tuples as lists."""
        fields = {name: getattr(self, name) for name in ITEM_FIELDS}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def choice_lengths(continuations: Sequence[str]) -> list[int] | None:
    """What `acc_norm` divides the choices' scores by: characters, without the leading space.

    None where all choices share one continuation; lm-eval reports no `acc_norm` for winogrande for
    this reason. There `acc` stands in (`runs.metrics.outcomes`).
    """
    if len(set(continuations)) == 1:
        return None
    return [max(len(text.removeprefix(" ")), 1) for text in continuations]


def family_of(task: str) -> str:
    """What the two orders of an order task are called together: `sciq` for `sciq_last`."""
    return task.removesuffix("_first").removesuffix("_last")


def has_orders(tasks: Sequence[str]) -> bool:
    """Whether both orders of some family are among the tasks."""
    return any({f"{f}_first", f"{f}_last"} <= set(tasks) for f in map(family_of, tasks))


def hash_doc(doc: dict[str, Any]) -> str:
    """lm-eval's `doc_hash`: SHA-256 of the document as two-space indented JSON, keys in order."""
    return hashlib.sha256(json.dumps(doc, indent=2, ensure_ascii=False).encode()).hexdigest()


def data_fingerprint(items: Iterable[Item]) -> str:
    """SHA-256 over (task, doc_hash) of the items in order: two runs saw the same questions."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.task}\0{item.doc_hash}\n".encode())
    return digest.hexdigest()


def chance(items: Sequence[Item]) -> float:
    """Expected accuracy of guessing: the mean of 1/n_choices over the items; NaN without items."""
    if not items:
        return float("nan")
    return sum(1.0 / item.n_choices for item in items) / len(items)


class ItemSource(Protocol):
    """All items of one task's split, built when asked for."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...

    def __len__(self) -> int: ...

    def take(self, doc_ids: Sequence[int]) -> list[Item]: ...


@dataclass(frozen=True)
class ItemList:
    name: str
    items: tuple[Item, ...]

    @property
    def family(self) -> str:
        paired = any(item.pair_id is not None for item in self.items)
        return family_of(self.name) if paired else self.name

    def __len__(self) -> int:
        return len(self.items)

    def take(self, doc_ids: Sequence[int]) -> list[Item]:
        return [self.items[i] for i in doc_ids]


# Where a task's right answers stand among the choices, and what a constant guess would score.

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
