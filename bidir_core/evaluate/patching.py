"""Activation patching: one prefix token's causal keys or values, put into a run of another regime.

Keeping the first token causal (``sink=1``) changes its hidden states at every layer, and with them
the keys by which the others find it and the values they read from it. Patching only one of the two
tells which of them matters. Patching both at every layer is ``sink=1`` exactly, since nothing but
keys and values passes from one token to the others.

Clipping asks for the other thing that sets a first token apart, its outlying norm: where a layer
begins, its hidden state is scaled down to the median norm of the prompt's other tokens, while its
causal keys stay patched in, so that it is attended to as before. Keys and values are computed from
normalised states, so clipping removes only the norm's own effect: updates small relative to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bidir_core.common.errors import UserError
from bidir_core.evaluate.random_ahead import RandomAhead
from bidir_core.models.attention import Edit, Handle
from bidir_core.models.layout import PADDING, Layout
from bidir_core.regimes import CAUSAL, Regime

_PATCH = re.compile(r"(keys|values|both|clip)=([0-9]{1,6})")


def parse_patch(text: str) -> Patch | RandomAhead:
    """An edit beside a regime, read as it prints. UserError for anything else."""
    return RandomAhead.parse(text) or Patch.parse(text)


@dataclass(frozen=True)
class Patch:
    """Which prefix token's causal keys and values replace its own, at every layer.

    Written ``keys=0``, ``values=0`` or ``both=0``, the number being the token's position; and
    ``clip=0``, where its keys are patched and its norm is clipped.
    """

    what: str
    token: int

    def __str__(self) -> str:
        return f"{self.what}={self.token}"

    @classmethod
    def parse(cls, text: str) -> Patch:
        """Read what ``str`` prints. Raises UserError for anything else."""
        match = _PATCH.fullmatch(text)
        if match is None:
            raise UserError(
                f"unknown patch '{text}'; write keys=J, values=J, both=J, clip=J or random=S"
            )
        return cls(match[1], int(match[2]))

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
