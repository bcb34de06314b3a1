"""How tokens lie in a batch: items, prefixes and token trees in rows of a tensor.

A row holds one or more items one behind the other. An item is its prefix followed by a *tree* of
continuation tokens in depth-first order, so that choices which begin alike share tokens:

    index     0   1   2   3   4   5   6        choices: "a b", "a c", "d"
    token     P0  P1  P2  a   b   c   d
    position  0   1   2   3   4   4   3        depth in the tree = the token's position id
    exit      7   7   7   6   5   6   7        first index past the token's subtree

In depth-first order, token ``k`` is an ancestor of ``q`` (or ``q`` itself) exactly when
``k <= q < exit[k]``. That one comparison is the causal order, for plain sequences and trees alike,
and it keeps items apart, since no subtree crosses an item's end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from bidir_core.regimes import Regime, visible

PADDING = -1


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on ``device``. To a GPU from page-locked memory: other copies wait for the GPU."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


@dataclass(frozen=True)
class Layout:
    """Token layout of a batch; every tensor is int64 ``[batch, time]``.

    ``item``: id of the token's item, unique within the row, -1 for padding. ``position``: position
    from the item's first token. ``n_prefix``: the item's prefix length. ``exit``: index past the
    token's subtree. ``spans``: for a single row of whole items, their ``(start, end)`` index
    ranges; attention then runs item by item and never builds a ``time x time`` mask.
    """

    item: torch.Tensor
    position: torch.Tensor
    n_prefix: torch.Tensor
    exit: torch.Tensor
    spans: tuple[tuple[int, int], ...] | None = field(default=None)

    @property
    def shape(self) -> torch.Size:
        """``[batch, time]``."""
        return self.item.shape

    def to(self, device: torch.device | str) -> Layout:
        """The same layout with its tensors on ``device``."""
        return self.map(lambda tensor: send(tensor, device))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Layout:
        """The layout with ``change`` made to each tensor, which keeps the rows' items in place."""
        item, position, n_prefix, exit_ = map(
            change, (self.item, self.position, self.n_prefix, self.exit)
        )
        return Layout(item, position, n_prefix, exit_, spans=self.spans)

    @classmethod
    def pack(cls, lengths: Sequence[tuple[int, int]]) -> Layout:
        """Plain sequences ``(n_prefix, n_total)`` in one row, without padding."""
        n_prefix, n_total = torch.tensor(lengths).T
        end = n_total.cumsum(0)
        begin = end - n_total
        by_item = torch.stack([torch.arange(len(lengths)), begin, n_prefix, end])
        item, first, prefix, exit_ = by_item.repeat_interleave(n_total, dim=1)[:, None]
        position = torch.arange(item.shape[1]) - first
        return cls(item, position, prefix, exit_, tuple(zip(begin.tolist(), end.tolist())))

    @classmethod
    def pad(cls, lengths: Sequence[tuple[int, int]], time: int | None = None) -> Layout:
        """Plain sequences ``(n_prefix, n_total)``, one a row, padded on the right."""
        time = max(n_total for _, n_total in lengths) if time is None else time
        index = torch.arange(time).expand(len(lengths), time)
        n_prefix = torch.tensor([[n] for n, _ in lengths])
        n_total = torch.tensor([[n] for _, n in lengths])
        inside = index < n_total
        return cls(
            item=torch.where(inside, torch.arange(len(lengths))[:, None], PADDING),
            position=torch.where(inside, index, 0),
            n_prefix=torch.where(inside, n_prefix, 0),
            exit=torch.where(inside, n_total, index + 1),  # padding sees itself alone: no NaN rows
        )


def allowed_and_ahead(
    layout: Layout,
    regime: Regime,
    window: int | None,
    span: tuple[int, int] | None = None,
    last: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Visibility of one layer over a layout: two bool tensors ``[batch, query, key]``.

    ``regime`` is the layer's (see ``Regime.at_layer``); ``window`` its sliding window, measured
    by position, since in a packed row neighbours in position may lie far apart. ``span`` restricts
    both axes to one index range, and ``last`` the queries to that many at its end.
    """
    start, end = span if span is not None else (0, layout.shape[1])
    item, position = layout.item[:, start:end], layout.position[:, start:end]
    n_prefix, exit_ = layout.n_prefix[:, start:end], layout.exit[:, start:end]
    index = torch.arange(start, end, device=item.device)
    rows = slice(0 if last is None else end - start - last, None)
    query, key = position[:, rows, None], position[:, None, :]
    allowed, ahead = visible(
        regime,
        query,
        key,
        query_prefix=query < n_prefix[:, rows, None],
        key_prefix=key < n_prefix[:, None, :],
        same_item=item[:, rows, None] == item[:, None, :],
        descends=(index[None, None, :] <= index[None, rows, None])
        & (index[None, rows, None] < exit_[:, None, :]),
        n_prefix=n_prefix[:, rows, None],
    )
    if window is not None:
        allowed = allowed & ((query - key).abs() < window)
    return allowed, ahead
