"""Items to rows of tokens: one copy of the prefix, then the choices as a tree.

Continuations are causal in every regime, so choices that begin alike may share those tokens, and
the last token of a choice need not be run at all (nothing is predicted from it). Sharing is exact.

    prefix P0 P1 P2, choices "a b", "a c", "d"

    row        P0 P1 P2 a           <- "b", "c" and "d" end their choices: predicted, never run
    head             P2 a           from P2 are predicted a, a, d; from a: b, c

Under the causal regime the prefix is as causal as the rest, so contexts that begin alike
(winogrande has one per choice) share their beginning too. Under any other regime each context is
a prefix of its own.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from bidir_core.encoding import EncodedItem
from bidir_core.layout import PADDING, Layout

# Rows are as wide as a multiple of it: attention kernels want aligned masks.
ROW_MULTIPLE = 8
# Row width at which attention's masked pairs cost as much as everything else. A round number between
# models: where heads are few and layers wide it lies higher, in small models lower.
ATTENTION_EVENS_AT = 2048


class Tree(NamedTuple):
    """A segment's tokens; int64 arrays, indices from its start.

    ``ids``, ``position``, ``exit``: ``[n_tokens]`` as in :class:`~bidir_core.layout.Layout`.
    ``heads``: per choice, the index of the token that predicts each of its tokens.
    ``predicting``: those indices, each once.
    """

    ids: np.ndarray
    position: np.ndarray
    exit: np.ndarray
    heads: tuple[np.ndarray, ...]
    predicting: np.ndarray


@dataclass(frozen=True, eq=False)
class Segment:
    """One prefix with the choices behind it, whose tree is built when it is asked for.

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
    def n_tokens(self) -> int:
        """All tokens that are run: the last one of a choice is not."""
        return len(self.prefix) + sum(len(t) - 1 - n for t, n in zip(self.texts, self.shared))

    def __len__(self) -> int:
        return self.n_tokens

    @property
    def n_prefix(self) -> int:
        """Tokens of the prefix."""
        return len(self.prefix)

    @property
    def targets(self) -> tuple[np.ndarray, ...]:
        """Per choice, the tokens that are scored."""
        return tuple(text[-n:] for text, n in zip(self.texts, self.scored))

    @cached_property
    def tree(self) -> Tree:
        """Building trees takes longer than planning with their sizes: a batch's are built with it."""
        n_prefix, total = len(self.prefix), len(self)
        added = [text[n:-1] for text, n in zip(self.texts, self.shared)]
        starts = n_prefix + np.cumsum([0] + [len(ids) for ids in added])
        position = np.arange(total)
        exit_ = np.full(total, total)
        heads: list[np.ndarray] = []
        path = np.empty(0, dtype=np.int64)  # index of each input token of the current choice
        for rank, depth in enumerate(self.shared):
            begin, end = starts[rank], starts[rank + 1]
            path = np.concatenate([path[:depth], np.arange(begin, end)])
            position[begin:end] = n_prefix + np.arange(depth, depth + end - begin)
            # A token's subtree ends where a later choice leaves the path at or above its depth.
            for later in range(len(self.shared) - 1, rank, -1):
                exit_[begin + max(self.shared[later] - depth, 0) : end] = starts[later]
            heads.append(np.concatenate([[n_prefix - 1], path])[-self.scored[rank] :])
        return Tree(
            ids=np.concatenate([self.prefix, *added]),
            position=position,
            exit=exit_,
            heads=tuple(heads),
            predicting=np.unique(np.concatenate(heads)),
        )


def build_segments(encoded: EncodedItem, *, causal: bool = False) -> list[Segment]:
    """The segments of an item: one for each distinct tokenised prefix among its choices.

    Choices of one context share a segment; winogrande has a context per choice, hence two, unless
    ``causal`` says that the regime is causal: then they share what their contexts share.
    """
    everyone = range(len(encoded.continuations))
    if causal and len(encoded.prefixes) > 1:
        common = min(_common(encoded.prefixes[0].ids, other.ids) for other in encoded.prefixes[1:])
        if common > 0:
            rest = [
                np.concatenate([encoded.prefix(c).ids[common:], encoded.continuations[c].ids])
                for c in everyone
            ]
            scored = [len(encoded.continuations[c]) for c in everyone]
            return [_build_segment(encoded.prefixes[0].ids[:common], everyone, rest, scored)]
    groups: dict[bytes, list[int]] = {}
    for choice in everyone:
        groups.setdefault(encoded.prefix(choice).ids.tobytes(), []).append(choice)
    texts = [tokens.ids for tokens in encoded.continuations]
    return [
        _build_segment(encoded.prefix(own[0]).ids, own, texts, [len(ids) for ids in texts])
        for own in groups.values()
    ]


def _build_segment(
    prefix: np.ndarray, choices: Sequence[int], texts: Sequence[np.ndarray], scored: Sequence[int]
) -> Segment:
    """``texts``: per choice what follows ``prefix``; ``scored``: how much of its end is scored."""
    # Sorted, sequences with a common beginning stand side by side: the tree in depth-first order.
    order = sorted(choices, key=lambda choice: texts[choice].astype(">i8").tobytes())
    inputs = [texts[choice][:-1] for choice in order]
    return Segment(
        prefix=prefix,
        choices=tuple(order),
        texts=tuple(texts[choice] for choice in order),
        scored=tuple(scored[choice] for choice in order),
        shared=(0, *(_common(a, b) for a, b in itertools.pairwise(inputs))),
    )


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common beginning of two sequences."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


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
    longest = [max((len(s) for s in own), default=0) for own in segments]
    order = sorted((i for i, n in enumerate(longest) if n), key=lambda i: (-longest[i], i))
    sizes = {i: sum(map(len, segments[i])) for i in order}
    batches: list[Batch] = []
    left, quarter = sum(sizes.values()), batch_tokens // 4
    while order:
        limit = batch_tokens
        if ramp:
            limit = quarter << min(len(batches), 2)
            if 1.5 * quarter < left <= batch_tokens:
                limit = min(limit, left - quarter)
        tokens, n = sizes[order[0]], 1
        while n < len(order) and tokens + sizes[order[n]] <= limit:
            tokens, n = tokens + sizes[order[n]], n + 1
        batches.append(Batch(tuple(order[:n])))
        left, order = left - tokens, order[n:]
    return batches


def pack_rows(lengths: Sequence[int]) -> tuple[int, list[list[int]]]:
    """Rows of one width that hold all ``lengths``: the width, and the indices in each row.

    Of the widths between the longest and twice it, the one that costs least: its slots, each
    dearer the wider the row, since attention is paid by pairs.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    longest = -(-lengths[order[0]] // ROW_MULTIPLE) * ROW_MULTIPLE
    packed = (
        (width, _best_fit(lengths, order, width))
        for width in range(longest, 2 * longest + 1, ROW_MULTIPLE)
    )
    return min(packed, key=lambda one: len(one[1]) * one[0] * (ATTENTION_EVENS_AT + one[0]))


def _best_fit(lengths: Sequence[int], order: Sequence[int], width: int) -> list[list[int]]:
    """Each length, longest first, into the row with the least room that takes it."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is free, and in which row; sorted
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
    flat = np.repeat(start - before, lengths) + np.arange(lengths.sum())

    def spread(values: np.ndarray, empty: np.ndarray | int) -> torch.Tensor:
        row = np.full(shape[0] * shape[1], 0, dtype=np.int64)
        row[:] = empty
        row[flat] = values
        return torch.from_numpy(row.reshape(shape))

    beyond = np.tile(np.arange(1, shape[1] + 1), shape[0])  # padding sees itself alone
    layout = Layout(
        item=spread(np.repeat(np.arange(len(segments)), lengths), PADDING),
        position=spread(np.concatenate([s.tree.position for s in segments]), 0),
        n_prefix=spread(np.repeat(n_prefix, lengths), 0),
        exit=spread(
            np.concatenate([s.tree.exit for s in segments]) + np.repeat(begin, lengths), beyond
        ),
        spans=None if padded else tuple(zip(begin.tolist(), (begin + lengths).tolist())),
    )
    head = np.concatenate([s.tree.predicting + begin for s, begin in zip(segments, start)])
    n_head = np.array([len(s.tree.predicting) for s in segments])
    source = np.concatenate(
        [
            np.searchsorted(s.tree.predicting, h) + first
            for s, first in zip(segments, np.cumsum(n_head) - n_head)
            for h in s.tree.heads
        ]
    )
    target = np.concatenate([t for s in segments for t in s.targets])
    return Collated(
        spread(np.concatenate([s.tree.ids for s in segments]), 0),
        layout,
        torch.from_numpy(head),
        torch.from_numpy(source),
        torch.from_numpy(target),
    )


def split_scores(
    segments: Sequence[Segment], scores: np.ndarray
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Undo :func:`collate`: yields ``(segment index, choice, token scores)`` in layout order."""
    cursor = 0
    for index, segment in enumerate(segments):
        for choice, target in zip(segment.choices, segment.targets):
            yield index, choice, scores[cursor : cursor + len(target)]
            cursor += len(target)
