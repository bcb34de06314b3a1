"""Edits beside a regime: activation patching, and random look-ahead.

Activation patching puts one prefix token's causal keys or values into a run of another regime.

Keeping the first token causal (``sink=1``) changes its hidden states at every layer, and with them
the keys by which the others find it and the values they read from it. Patching only one of the two
tells which of them matters. Patching both at every layer is ``sink=1`` exactly, since nothing but
keys and values passes from one token to the others.

Clipping asks for the other thing that sets a first token apart, its outlying norm: where a layer
begins, its hidden state is scaled down to the median norm of the prompt's other tokens, while its
causal keys stay patched in, so that it is attended to as before. Keys and values are computed from
normalised states, so clipping removes only the norm's own effect: updates small relative to it.

Random look-ahead opens as many (token, later token) pairs as a regime does, but draws them. A regime
may help because *less* is seen ahead, or because of *who* no longer looks. Under ``random=S`` all the
pairs that the regime opens, summed over the layers, are drawn anew among all such pairs of all
layers: spread evenly over the layers, at random within one. The draw depends on the seed S, the layer
and the prompt's length alone, so it is the same however items are batched; prompts of one length
share it. A sliding window cuts both alike.

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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from bidir_core.common.errors import UserError
from bidir_core.models.attention import Edit, Handle, Plan, Span
from bidir_core.models.layout import PADDING, Layout, allowed_and_ahead
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, Regime, visibility


@dataclass(frozen=True)
class RandomAhead:
    """The edit written ``random=S``; see above."""

    seed: int
    takes_tokens: ClassVar = False

    def __str__(self) -> str:
        return f"random={self.seed}"

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


# Activation patching.


def parse_patch(text: str) -> Patch | RandomAhead:
    """An edit beside a regime, read as it prints. UserError for anything else."""
    match = re.fullmatch(r"(keys|values|both|clip|random)=([0-9]{1,6})", text)
    if match is None:
        raise UserError(
            f"unknown patch '{text}'; write keys=J, values=J, both=J, clip=J or random=S"
        )
    what, number = match[1], int(match[2])
    return RandomAhead(number) if what == "random" else Patch(what, number)


@dataclass(frozen=True)
class Patch:
    """Which prefix token's causal keys and values replace its own, at every layer.

    Written ``keys=0``, ``values=0`` or ``both=0``, the number being the token's position; and
    ``clip=0``, where its keys are patched and its norm is clipped.
    """

    what: str
    token: int
    takes_tokens: ClassVar = True  # what it puts in comes from a pass over a prompt's first ones

    def __str__(self) -> str:
        return f"{self.what}={self.token}"

    @contextmanager
    def use(
        self, model: Any, handle: Handle, regime: Regime, ids: torch.Tensor, layout: Layout
    ) -> Iterator[None]:
        """Forward passes of this batch inside attend as ``regime`` says, with the edit in force."""
        with ExitStack() as stack:
            stack.enter_context(
                handle.use(regime, layout, self.capture(model, handle, ids, layout))
            )
            if self.what == "clip":
                clip = self._clipping(layout)
                for layer in handle.layers():
                    stack.callback(layer.register_forward_pre_hook(clip).remove)
            yield

    def _clipping(self, layout: Layout) -> Any:
        """A hook before a layer: scales the token's state to at most its prompt's median norm."""
        rows, columns = self._places(layout)
        item, position = layout.item[rows], layout.position[rows]
        others = (item == layout.item[rows, columns][:, None]) & (position != self.token)
        others &= position < layout.n_prefix[rows]

        def clip(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = arguments[0] if arguments else None
            if not isinstance(hidden, torch.Tensor) or hidden.shape[:2] != layout.shape:
                raise UserError(
                    "this model's layers do not take plain hidden states; clip=J cannot"
                )
            norm = hidden.float().norm(dim=-1)[rows]
            median = torch.where(others, norm, torch.nan).nanmedian(dim=-1).values
            state = hidden[rows, columns].float()
            # A prompt of one token has no others, and its own norm stays.
            scale = (median / state.norm(dim=-1)).nan_to_num(1.0).clamp(max=1.0)
            hidden = hidden.clone()
            hidden[rows, columns] = (state * scale[:, None]).to(hidden.dtype)
            return (hidden, *arguments[1:])

        return clip

    def capture(self, model: Any, handle: Handle, ids: torch.Tensor, layout: Layout) -> Edit:
        """The edit that patches a batch of tokens ``ids`` ``[batch, time]`` laid out as ``layout``.

        A causal token depends only on those up to itself, so only these are run.
        """
        rows, columns = self._places(layout)
        if not len(rows):
            return lambda _, key, value: (key, value)
        first = columns - self.token  # the column of the prefix's position 0
        steps = torch.arange(self.token + 1, device=ids.device)
        opening = ids[rows[:, None], first[:, None] + steps]
        kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def record(
            layer: int, key: torch.Tensor, value: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            kept[layer] = key[:, :, self.token], value[:, :, self.token]
            return key, value

        n = self.token + 1
        plain = Layout.pad([(n, n)] * len(rows)).to(ids.device)
        with handle.use(CAUSAL, plain, record):
            handle.decoder(input_ids=opening, position_ids=plain.position, use_cache=False)

        def replace(
            layer: int, key: torch.Tensor, value: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            causal_key, causal_value = kept[layer]
            if self.what != "values":
                key = key.clone()
                key[rows, :, columns] = causal_key
            if self.what in ("values", "both"):
                value = value.clone()
                value[rows, :, columns] = causal_value
            return key, value

        return replace

    def n_captured(self, layout: Layout) -> int:
        """How many tokens :meth:`capture` computes for a batch laid out so."""
        return len(self._places(layout)[0]) * (self.token + 1)

    def _places(self, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of the token in each item that has it in its prefix."""
        is_token = (layout.position == self.token) & (layout.n_prefix > self.token)
        rows, columns = torch.nonzero(is_token & (layout.item != PADDING), as_tuple=True)
        return rows, columns
