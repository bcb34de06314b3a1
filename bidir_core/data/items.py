"""One scored question, the hash by which runs and tools pair it, and which ones a run takes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol, get_args

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged, read_bytes


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


def choice_lengths(continuations: Sequence[str]) -> list[int] | None:
    """What `acc_norm` divides the choices' scores by: characters, without the leading space.

    None where all choices share one continuation; lm-eval reports no `acc_norm` for winogrande for
    this reason. There `acc` stands in (`runs.run.outcomes`).
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


# Which items of a split are scored, and with which context. This depends on the item and the seed
# alone: an item keeps its fold, its place in the random order and its shuffled context when other
# items come or go, so runs made with other limits still pair.

BLANK_LINE = "\n\n"  # between a repeated prompt's copies
Sample = Literal["first", "stratified", "random"]
Fold = Literal["all", "explore", "confirm"]
Context = Literal["full", "none", "shuffled"]


def check_options(
    limit: int | None, sample: str, fold: str, context: str, num_fewshot: int, repeat_prompt: int
) -> None:
    """`UserError` unless the counts are large enough and the modes are known."""
    if limit is not None and limit < 1:
        raise UserError(
            f"limit is {limit}; it is the number of items per task, 1 or more (leave it out for all)"
        )
    if num_fewshot < 0:
        raise UserError(f"num_fewshot is {num_fewshot}; it is a count of examples, 0 or more")
    if repeat_prompt < 1:
        raise UserError(
            f"repeat_prompt is {repeat_prompt}; it is how often the context is given, 1 or more"
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

    `identity` is its `pair_id` (both orders of a document are in one half), else its `doc_hash`.
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
            solved = [e.context(e.gold) + e.continuations[e.gold] for e in drawn]
            prefixes.append("".join(f"{text}\n\n" for text in solved))
    except ValueError as error:
        raise UserError(
            f"{pool.name}: {n} few-shot examples besides the item itself cannot be drawn from "
            f"{len(candidates)} items; lower --num-fewshot"
        ) from error
    return prefixes


# A file that names the items to evaluate: one a line, as `task<TAB>doc_id` or by its `doc_hash`.

MOST_BYTES = 64 << 20
_HASH = re.compile(r"[0-9a-f]{64}")


def absolute_items(path: str) -> str:
    """The file by a name that means the same in every folder."""
    return os.path.abspath(os.path.expanduser(path))


class GivenItems:
    """The items that a file names. Raises `UserError`, with the line, for what names none."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            data = read_bytes(Path(path), MOST_BYTES)
            text = data.decode("utf-8-sig")
        except FileNotFoundError:
            raise UserError(f"--items-file {path}: there is no such file") from None
        except (Damaged, UnicodeDecodeError) as error:
            raise UserError(f"--items-file {path}: cannot be read as text ({error})") from error
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._rows: dict[str, dict[int, int]] = {}  # task -> doc_id -> the line that names it
        self._hashes: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            task, tab, doc_id = line.strip().partition("\t")
            if tab and re.fullmatch("[0-9]{1,12}", doc_id):
                self._rows.setdefault(task, {})[int(doc_id)] = number
            elif _HASH.fullmatch(task) and not tab:
                self._hashes[task] = number
            elif task:
                raise self._bad(
                    number, f"{line[:80]!r} is neither task<TAB>doc_id nor a doc_hash of 64 digits"
                )
        if not self._rows and not self._hashes:
            raise UserError(
                f"--items-file {path}: names no item; write one a line, task<TAB>doc_id"
            )

    def record(self) -> dict[str, Any]:
        count = len(self._hashes) + sum(map(len, self._rows.values()))
        return {"sha256": self.sha256, "count": count}

    def choose(self, sources: Sequence[ItemSource]) -> list[list[int]]:
        """The rows of each source, ascending. `UserError` for an item that none of them has."""
        names = [source.name for source in sources]
        for task, rows in self._rows.items():
            if task not in names:
                first = min(rows.values())
                raise self._bad(first, f"{task!r} is not one of --tasks {','.join(names)}")
        chosen_rows, unseen = [], dict(self._hashes)
        for source in sources:
            lines = self._rows.get(source.name, {})
            if lines and max(lines) >= len(source):
                raise self._bad(
                    lines[max(lines)],
                    f"{source.name} has no item {max(lines)}; its ids are 0 to {len(source) - 1}",
                )
            chosen = set(lines)
            for item in source.take(range(len(source))) if self._hashes else ():
                if item.doc_hash in self._hashes:
                    chosen.add(item.doc_id)
                    unseen.pop(item.doc_hash, None)
            chosen_rows.append(sorted(chosen))
        for doc_hash, number in unseen.items():
            raise self._bad(number, f"no item of {','.join(names)} has the doc_hash {doc_hash}")
        return chosen_rows

    def _bad(self, number: int, message: str) -> UserError:
        return UserError(f"--items-file {self.path}, line {number}: {message}")


def is_custom_task(task: str) -> bool:
    """Whether a `--tasks` entry names a file rather than a built-in task."""
    return task.endswith(".jsonl") or "/" in task or "\\" in task


def name_of(task: str) -> str:
    """The name under which a task's items are recorded: a file by its stem."""
    return Path(task).stem if is_custom_task(task) else task
