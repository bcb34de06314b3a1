"""Random look-ahead: as many (token, later token) pairs as under a regime, but drawn at random.

A regime may help because *less* is seen ahead, or because of *who* no longer looks. Under
``random=S`` all the pairs (token, later token) that the regime opens, summed over the layers, are
drawn anew among all such pairs of all layers: spread evenly over the layers, at random within one.
The draw depends on the seed S, the layer and the prompt's length alone, so it is the same however
items are batched; prompts of one length share it. A sliding window cuts both alike.

    sink=1            sink=1, random=0      (one layer, five prompt tokens: six pairs ahead)
    x . . . .         x . x . x             <- the first token looks ahead again, others less
    x x x x x         x x x . x
    x x x x x         x x x x .
    x x x x x         x x x x x
    x x x x x         x x x x x
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from bidir_core.common.errors import UserError
from bidir_core.models.attention import Handle, Plan, Span
from bidir_core.models.layout import Layout, allowed_and_ahead
from bidir_core.regimes import BIDIRECTIONAL, Regime, visibility

_RANDOM = re.compile(r"random=([0-9]{1,6})")


@dataclass(frozen=True)
class RandomAhead:
    """The edit written ``random=S``; see above."""

    seed: int

    def __str__(self) -> str:
        return f"random={self.seed}"

    @classmethod
    def parse(cls, text: str) -> RandomAhead | None:
        """Read what ``str`` prints; None for anything else."""
        match = _RANDOM.fullmatch(text)
        return None if match is None else cls(int(match[1]))

    @contextmanager
    def use(
        self, model: Any, handle: Handle, regime: Regime, ids: torch.Tensor, layout: Layout
    ) -> Iterator[None]:
        """Forward passes inside see as many tokens ahead as under ``regime``, at random."""
        n_layers = handle.decoder.config.get_text_config().num_hidden_layers
        with handle.use_plan(RandomPlan(regime, layout, n_layers, self.seed)):
            yield

    def n_captured(self, layout: Layout) -> int:
        """No token is computed besides those of the batch."""
        return 0


class RandomPlan(Plan):
    """Hands out each layer's random mask. UserError for look-ahead that is only weaker (lambda)."""

    prefixes = None  # every prefix needs its mask, also where the regime would need none

    def __init__(self, regime: Regime, layout: Layout, n_layers: int, seed: int):
        if regime.lam != 1.0:
            raise UserError(f"random look-ahead has no strength: '{regime}' has lambda")
        super().__init__(regime, layout)
        self.n_layers, self.seed = n_layers, seed

    def mask(
        self,
        layer: int,
        window: int | None,
        dtype: torch.dtype,
        span: Span | None = None,
        last: int | None = None,
    ) -> torch.Tensor:
        """As :meth:`Plan.mask`; nothing is remembered, since no two layers see alike."""
        allowed, ahead = allowed_and_ahead(self.layout, BIDIRECTIONAL, window, span, last)
        start, end = span if span is not None else (0, self.layout.shape[1])
        rows = slice(0 if last is None else end - start - last, None)
        key, n_prefix = self.layout.position[:, start:end], self.layout.n_prefix[:, start:end]
        query = key[:, rows]
        lengths, table_index = n_prefix.unique(return_inverse=True)
        longest = max(1, int(lengths.max()))  # without any prefix nothing is ahead
        tables = np.zeros((len(lengths), longest, longest), dtype=bool)
        for table, n in zip(tables, lengths.tolist()):
            if n > 1:
                table[:n, :n] = draw(self.regime, n, self.n_layers, layer, self.seed)
        seen = torch.from_numpy(tables).to(ahead.device)
        last_position = longest - 1  # beyond their prefix, tokens see nothing ahead
        query, key = query.clamp(max=last_position), key.clamp(max=last_position)
        drawn = seen[table_index[:, rows, None], query[:, :, None], key[:, None]]
        allowed = allowed & (~ahead | drawn)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def draw(regime: Regime, n_prefix: int, n_layers: int, layer: int, seed: int) -> np.ndarray:
    """Which later tokens are seen in one layer: bool ``[n_prefix, n_prefix]``, upper triangle."""
    bits = _drawn(regime, n_prefix, n_layers, layer, seed)
    return np.unpackbits(bits, count=n_prefix**2).reshape(n_prefix, n_prefix).astype(bool)


@lru_cache(maxsize=1 << 14)  # the next batch has the same lengths again
def _drawn(regime: Regime, n_prefix: int, n_layers: int, layer: int, seed: int) -> np.ndarray:
    total = n_ahead(regime, n_prefix, n_layers)
    n_here = total // n_layers + (layer < total % n_layers)
    query, key = np.triu_indices(n_prefix, 1)
    random = np.random.default_rng([seed, layer, n_prefix])
    chosen = random.permutation(len(query))[:n_here]
    seen = np.zeros((n_prefix, n_prefix), dtype=bool)
    seen[query[chosen], key[chosen]] = True
    return np.packbits(seen)


@lru_cache(maxsize=4096)
def n_ahead(regime: Regime, n_prefix: int, n_layers: int) -> int:
    """Pairs (token, later token) that a regime opens in a prompt, summed over all layers."""
    by_layer = [regime.at_layer(layer) for layer in range(n_layers)]
    count = {r: int(np.triu(visibility(r, n_prefix, n_prefix), 1).sum()) for r in set(by_layer)}
    return sum(count[r] for r in by_layer)
