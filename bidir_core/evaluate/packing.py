"""Items to rows of tokens: one copy of the prefix, then the choices as a tree.

Continuations are causal in every regime, so choices that begin alike may share those tokens, and
the last token of a choice need not be run at all (nothing is predicted from it). Sharing is exact.

    prefix P0 P1 P2, choices "a b", "a c", "d"

    row        P0 P1 P2 a           <- "b", "c" and "d" end their choices: predicted, never run
    head             P2 a           from P2 are predicted a, a, d; from a: b, c

Under the plain causal regime the prefix is as causal as the rest, so contexts that begin alike
(winogrande has one per choice) share their beginning too. Under any other regime, also one that
only hides a prefix token, each context is a prefix of its own.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch

from bidir_core.data.encoding import EncodedItem
from bidir_core.models.layout import PADDING, Layout

# Rows are as wide as a multiple of it: attention kernels want aligned masks.
ROW_MULTIPLE = 8
# Row width at which attention's masked pairs cost as much as everything else. A round number between
# models: where heads are few and layers wide it lies higher, in small models lower.
ATTENTION_EVENS_AT = 2048


@dataclass(frozen=True, eq=False)
class Segment:
    """One prefix with the choices behind it; the trees of a batch are built together (:func:`grow`).

    ``choices``: which choices of the item these are, in depth-first order; ``texts``: per choice what
    follows the prefix; ``scored``: how many of its last tokens are scored; ``shared``: how many of
    its first ones stand in the tree already, put there by the choice before it.
    """

    prefix: np.ndarray
    choices: tuple[int, ...]
    texts: tuple[np.ndarray, ...]
    scored: tuple[int, ...]
    shared: tuple[int, ...]

    @cached_property
    def _length(self) -> int:
        return len(self.prefix) + sum(len(t) - 1 - n for t, n in zip(self.texts, self.shared))

    def __len__(self) -> int:
        """All tokens that are run: the last one of a choice is not."""
        return self._length

    @property
    def n_prefix(self) -> int:
        """Tokens of the prefix."""
        return len(self.prefix)

    @property
    def targets(self) -> tuple[np.ndarray, ...]:
        """Per choice, the tokens that are scored."""
        return tuple(text[-n:] for text, n in zip(self.texts, self.scored))


class Forest(NamedTuple):
    """The trees of segments side by side; int64 arrays, indices from the first one's start.

    ``ids``, ``position``, ``exit``: ``[n_tokens]`` as in :class:`~bidir_core.models.layout.Layout`.
    ``heads``: of all choices one after another, the token that predicts each of their tokens.
    """

    ids: np.ndarray
    position: np.ndarray
    exit: np.ndarray
    heads: np.ndarray


def grow(segments: Sequence[Segment]) -> Forest:
    """Build segments' trees. Slower than planning with sizes alone, so it is done batch by batch."""
    # Per choice, over all segments; ``shared`` has one more behind the last, which shares nothing.
    shared = np.array([n for s in segments for n in s.shared] + [0])
    scored = np.array([n for s in segments for n in s.scored])
    length = np.array([len(text) - 1 for s in segments for text in s.texts])
    n_choices = np.array([len(s.choices) for s in segments])
    n_prefix = np.array([len(s.prefix) for s in segments])
    end = np.cumsum([len(s) for s in segments])
    begin = end - [len(s) for s in segments]
    first = np.cumsum(n_choices) - n_choices

    # Tokens that a choice adds to the tree, and the index of the first of them.
    n_added = length - shared[:-1]
    start = np.repeat(n_prefix, n_choices) + np.cumsum(n_added) - n_added
    start += np.repeat(np.cumsum(n_prefix) - n_prefix, n_choices)
    # Where the subtrees end that a choice leaves: at its own first token, or, for a segment's first
    # choice, at the end of the tree before.
    subtree_end = np.append(start, end[-1])
    subtree_end[first[1:]] = begin[1:]

    ids, position, exit_ = (np.empty(end[-1], dtype=np.int64) for _ in range(3))
    ids[:] = np.concatenate(
        [
            part
            for s in segments
            for part in (s.prefix, *(text[n:-1] for text, n in zip(s.texts, s.shared)))
        ]
    )
    position[:] = np.arange(end[-1]) - np.repeat(begin, end - begin)
    exit_[:] = np.repeat(end, end - begin)
    depth = ranges(shared[:-1], n_added)
    index = ranges(start, n_added)
    position[index] = np.repeat(np.repeat(n_prefix, n_choices), n_added) + depth
    # A token's subtree ends where a later choice leaves the path at or above its depth.
    later = np.repeat(np.arange(len(n_added)), n_added) + 1
    while (moving := np.flatnonzero(shared[later] > depth)).size:
        later[moving] += 1
    exit_[index] = subtree_end[later]

    # A choice's tokens are its own or, above, those of choices before it; none is of the prefix.
    depth = ranges(length - scored, scored)
    owner = np.repeat(np.arange(len(n_added)), scored)
    while (moving := np.flatnonzero((depth >= 0) & (shared[owner] > depth))).size:
        owner[moving] -= 1
    root = np.repeat(begin + n_prefix - 1, n_choices)
    heads = np.where(depth < 0, root[owner], start[owner] + depth - shared[owner])
    return Forest(ids, position, exit_, heads)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Whole numbers upwards from each start, as many as its length says, one after another."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def build_segments(encoded: EncodedItem, *, causal: bool = False) -> list[Segment]:
    """The segments of an item: one for each distinct tokenised prefix among its choices.

    Choices of one context share a segment; winogrande has a context per choice, hence two, unless
    ``causal`` says that the regime is plainly causal: then they share what their contexts share.
    """
    choices = range(len(encoded.continuations))
    if causal and len(encoded.prefixes) > 1:
        first, *others = (prefix.ids.tolist() for prefix in encoded.prefixes)
        common = min(_common_length(first, other) for other in others)
        if common > 0:
            tails = [
                np.concatenate([encoded.prefix(c).ids[common:], encoded.continuations[c].ids])
                for c in choices
            ]
            scored = [len(encoded.continuations[c]) for c in choices]
            return [_build_segment(encoded.prefixes[0].ids[:common], choices, tails, scored)]
    groups: dict[bytes, list[int]] = {}
    for choice in choices:
        groups.setdefault(encoded.prefix(choice).ids.tobytes(), []).append(choice)
    texts = [tokens.ids for tokens in encoded.continuations]
    return [
        _build_segment(encoded.prefix(group[0]).ids, group, texts, [len(ids) for ids in texts])
        for group in groups.values()
    ]


def _build_segment(
    prefix: np.ndarray, choices: Sequence[int], texts: Sequence[np.ndarray], scored: Sequence[int]
) -> Segment:
    """``texts``: per choice what follows ``prefix``; ``scored``: how much of its end is scored."""
    # Sorted, sequences with a common beginning stand side by side: the tree in depth-first order.
    tokens = {choice: texts[choice].tolist() for choice in choices}
    order = sorted(choices, key=tokens.__getitem__)
    inputs = [tokens[choice][:-1] for choice in order]
    return Segment(
        prefix=prefix,
        choices=tuple(order),
        texts=tuple(texts[choice] for choice in order),
        scored=tuple(scored[choice] for choice in order),
        shared=(0, *(_common_length(a, b) for a, b in itertools.pairwise(inputs))),
    )


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning of two sequences."""
    pairs = enumerate(zip(a, b))  # they differ early, mostly
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))


class Batch(NamedTuple):
    """Which items (indices into the run's item list) are computed together."""

    items: tuple[int, ...]


def plan_batches(
    segments: Sequence[Sequence[Segment]], batch_tokens: int, *, ramp: bool = False
) -> list[Batch]:
    """Fill batches by tokens, longest items first; a pure function of its arguments.

    Tokens are counted as they are; rows add a few percent of padding (:func:`pack_rows`). An item
    always fits, alone if need be. Items without segments (they carry an error) are left out.
    ``ramp``: the first two and the last one are smaller, down to a quarter, since a device waits for
    the first to be put together, and a run for the last to be recorded.
    """
    longest = [max((len(s) for s in trees), default=0) for trees in segments]
    order = sorted((i for i, n in enumerate(longest) if n), key=lambda i: (-longest[i], i))
    sizes = {i: sum(map(len, segments[i])) for i in order}
    batches: list[Batch] = []
    tokens_left, quarter = sum(sizes.values()), batch_tokens // 4
    while order:
        limit = batch_tokens
        if ramp:
            limit = quarter << min(len(batches), 2)
            if 1.5 * quarter < tokens_left <= batch_tokens:
                limit = min(limit, tokens_left - quarter)
        tokens, n = sizes[order[0]], 1
        while n < len(order) and tokens + sizes[order[n]] <= limit:
            tokens, n = tokens + sizes[order[n]], n + 1
        batches.append(Batch(tuple(order[:n])))
        tokens_left, order = tokens_left - tokens, order[n:]
    return batches


def pack_rows(lengths: Sequence[int]) -> tuple[int, list[list[int]]]:
    """Rows of one width that hold all ``lengths``: the width, and the indices in each row.

    The cheapest width between the longest and twice that. A slot costs more the wider the row,
    since attention compares pairs.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    longest = math.ceil(lengths[order[0]] / ROW_MULTIPLE) * ROW_MULTIPLE
    total = sum(lengths)
    best, least = (0, list[list[int]]()), math.inf
    for width in range(longest, 2 * longest + 1, ROW_MULTIPLE):
        price = width * (ATTENTION_EVENS_AT + width)
        if math.ceil(total / width) * price >= least:  # not even full rows would be cheaper
            continue
        rows = _best_fit(lengths, order, width)
        if len(rows) * price < least:
            best, least = (width, rows), len(rows) * price
    return best


def _best_fit(lengths: Sequence[int], order: Sequence[int], width: int) -> list[list[int]]:
    """Each length, longest first, into the row with the least room that takes it."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in order:
        length = lengths[index]
        at = bisect.bisect_left(room, (length, 0))
        if at == len(room):
            free, row = width, len(rows)
            rows.append([])
        else:
            free, row = room.pop(at)
        rows[row].append(index)
        bisect.insort(room, (free - length, row))
    return rows


class Collated(NamedTuple):
    """A batch as tensors: ``ids`` int64 ``[batch, time]``, its layout, and what to read off.

    ``head``: int64 ``[n_head]``, flat indices (row * time + column) of the tokens from which
    something is predicted. ``source``: int64 ``[n_scored]``, for each scored token the index in
    ``head`` it is predicted from. ``target``: int64 ``[n_scored]``, the scored tokens. They run
    over segments in order, and over each segment's choices in order.
    """

    ids: torch.Tensor
    layout: Layout
    head: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor


def collate(segments: Sequence[Segment], *, padded: bool) -> Collated:
    """Lay segments out in one packed row, or ``padded`` in several of one width (``pack_rows``)."""
    lengths = np.array([len(s) for s in segments])
    n_prefix = np.array([s.n_prefix for s in segments])
    forest = grow(segments)
    if padded:
        width, rows = pack_rows(lengths.tolist())
        shape = (len(rows), width)
        begin = np.zeros_like(lengths)  # the column where each segment begins
        start = np.zeros_like(lengths)  # the same in the flattened rows
        for number, row in enumerate(rows):
            begin[row] = np.cumsum(lengths[row]) - lengths[row]
            start[row] = begin[row] + number * width
    else:
        shape = (1, int(lengths.sum()))
        begin = start = np.cumsum(lengths) - lengths
    before = np.cumsum(lengths) - lengths
    flat = ranges(start, lengths)

    spread = partial(in_rows, shape, flat)
    beyond = np.tile(np.arange(1, shape[1] + 1), shape[0])  # padding sees itself alone
    layout = Layout(
        item=spread(np.repeat(np.arange(len(segments)), lengths), PADDING),
        position=spread(forest.position, 0),
        n_prefix=spread(np.repeat(n_prefix, lengths), 0),
        exit=spread(forest.exit + np.repeat(begin - before, lengths), beyond),
        spans=None if padded else tuple(zip(begin.tolist(), (begin + lengths).tolist())),
    )
    predicting, source = np.unique(forest.heads, return_inverse=True)
    target = np.concatenate([t for s in segments for t in s.targets])
    return Collated(
        spread(forest.ids, 0),
        layout,
        torch.from_numpy(flat[predicting]),
        torch.from_numpy(source),
        torch.from_numpy(target),
    )


def in_rows(
    shape: tuple[int, int], flat: np.ndarray, values: np.ndarray, empty: np.ndarray | int
) -> torch.Tensor:
    """int64 of this shape: ``values`` at the flat indices ``flat``, elsewhere ``empty``."""
    rows = np.empty(shape[0] * shape[1], dtype=np.int64)
    rows[:] = empty
    rows[flat] = values
    return torch.from_numpy(rows.reshape(shape))


def split_scores(
    segments: Sequence[Segment], scores: np.ndarray
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Undo :func:`collate`: yields ``(segment index, choice, token scores)`` in layout order."""
    cursor = 0
    for index, segment in enumerate(segments):
        for choice, target in zip(segment.choices, segment.targets):
            yield index, choice, scores[cursor : cursor + len(target)]
            cursor += len(target)
