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

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from bidir_core.encoding import EncodedItem
from bidir_core.layout import PADDING, Layout


@dataclass(frozen=True)
class Segment:
    """One prefix with the tree of the choices behind it; int64 arrays, indices from its start.

    ``ids``, ``position``, ``exit``: ``[n_tokens]`` as in :class:`~bidir_core.layout.Layout`.
    ``choices``: which choices of the item these are. ``heads``: per choice, the index of the token
    that predicts each of its tokens; ``targets``: those tokens.
    """

    ids: np.ndarray
    position: np.ndarray
    exit: np.ndarray
    n_prefix: int
    choices: tuple[int, ...]
    heads: tuple[np.ndarray, ...]
    targets: tuple[np.ndarray, ...]
    predicting: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


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
    n_prefix = len(prefix)
    inputs = [texts[choice][:-1] for choice in order]
    shared = [0] + [_common(a, b) for a, b in itertools.pairwise(inputs)]
    starts = n_prefix + np.cumsum([0] + [len(i) - s for i, s in zip(inputs, shared)])
    total = int(starts[-1])
    position = np.arange(total)
    exit_ = np.full(total, total)
    heads: list[np.ndarray] = []
    path = np.empty(0, dtype=np.int64)  # index of each input token of the current choice
    for rank, choice in enumerate(order):
        begin, end, depth = starts[rank], starts[rank + 1], shared[rank]
        path = np.concatenate([path[:depth], np.arange(begin, end)])
        position[begin:end] = n_prefix + np.arange(depth, depth + end - begin)
        # A token's subtree ends where a later choice leaves the path at or above its depth.
        for later in range(len(order) - 1, rank, -1):
            exit_[begin + max(shared[later] - depth, 0) : end] = starts[later]
        heads.append(np.concatenate([[n_prefix - 1], path])[-scored[choice] :])
    return Segment(
        ids=np.concatenate([prefix] + [i[s:] for i, s in zip(inputs, shared)]),
        position=position,
        exit=exit_,
        n_prefix=n_prefix,
        choices=tuple(order),
        heads=tuple(heads),
        targets=tuple(texts[choice][-scored[choice] :] for choice in order),
        predicting=np.unique(np.concatenate(heads)),
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
    segments: Sequence[Sequence[Segment]], batch_tokens: int, *, padded: bool
) -> list[Batch]:
    """Fill batches by tokens, longest items first; a pure function of its arguments.

    ``padded`` counts what a padded batch costs, rows times its longest row; otherwise tokens are
    counted as they are. An item always fits, alone if need be. Items without segments (they
    carry an error) are left out.
    """
    longest = [max((len(s) for s in own), default=0) for own in segments]
    order = sorted((i for i, n in enumerate(longest) if n), key=lambda i: (-longest[i], i))
    batches: list[Batch] = []
    current: list[int] = []
    rows = width = tokens = 0
    for index in order:
        own_rows, own_tokens = len(segments[index]), sum(len(s) for s in segments[index])
        widest = width or longest[index]
        cost = (rows + own_rows) * widest if padded else tokens + own_tokens
        if current and cost > batch_tokens:
            batches.append(Batch(tuple(current)))
            current, rows, tokens, widest = [], 0, 0, longest[index]
        current.append(index)
        rows, tokens, width = rows + own_rows, tokens + own_tokens, widest
    if current:
        batches.append(Batch(tuple(current)))
    return batches


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
    """Lay segments out as one packed row, or one a row padded on the right."""
    lengths = np.array([len(s) for s in segments])
    n_prefix = np.array([s.n_prefix for s in segments])
    if padded:
        time = int(lengths.max())
        begin, columns = np.zeros_like(lengths), np.arange(time)
        flat = np.flatnonzero((columns[None, :] < lengths[:, None]).ravel())
        shape, start = (len(segments), time), np.arange(len(segments)) * time
    else:
        begin = np.cumsum(lengths) - lengths
        flat = np.arange(lengths.sum())
        shape, start = (1, int(lengths.sum())), begin

    def spread(values: np.ndarray, empty: np.ndarray | int) -> torch.Tensor:
        row = np.full(shape[0] * shape[1], 0, dtype=np.int64)
        row[:] = empty
        row[flat] = values
        return torch.from_numpy(row.reshape(shape))

    beyond = np.tile(np.arange(1, shape[1] + 1), shape[0])  # padding sees itself alone
    layout = Layout(
        item=spread(np.repeat(np.arange(len(segments)), lengths), PADDING),
        position=spread(np.concatenate([s.position for s in segments]), 0),
        n_prefix=spread(np.repeat(n_prefix, lengths), 0),
        exit=spread(np.concatenate([s.exit for s in segments]) + np.repeat(begin, lengths), beyond),
        spans=None if padded else tuple(zip(begin.tolist(), (begin + lengths).tolist())),
    )
    head = np.concatenate([s.predicting + begin for s, begin in zip(segments, start)])
    n_head = np.array([len(s.predicting) for s in segments])
    source = np.concatenate(
        [
            np.searchsorted(s.predicting, h) + first
            for s, first in zip(segments, np.cumsum(n_head) - n_head)
            for h in s.heads
        ]
    )
    target = np.concatenate([t for s in segments for t in s.targets])
    return Collated(
        spread(np.concatenate([s.ids for s in segments]), 0),
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
