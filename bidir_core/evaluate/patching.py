"""Activation patching: one prefix token's causal keys or values, put into a run of another regime.

Keeping the first token causal (``sink=1``) changes its hidden states at every layer, and with them
the keys by which the others find it and the values they read from it. Patching only one of the two
tells which of them matters. Patching both at every layer is ``sink=1`` exactly, since nothing but
keys and values passes from one token to the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from bidir_core.common.errors import UserError
from bidir_core.models.attention import Edit, Handle
from bidir_core.models.layout import PADDING, Layout
from bidir_core.regimes import CAUSAL

_PATCH = re.compile(r"(keys|values|both)=([0-9]{1,6})")


@dataclass(frozen=True)
class Patch:
    """Which prefix token's causal keys and values replace its own, at every layer.

    Written ``keys=0``, ``values=0`` or ``both=0``, the number being the token's position.
    """

    token: int
    keys: bool
    values: bool

    def __str__(self) -> str:
        what = "both" if self.keys and self.values else "keys" if self.keys else "values"
        return f"{what}={self.token}"

    @classmethod
    def parse(cls, text: str) -> Patch:
        """Read what ``str`` prints. Raises UserError for anything else."""
        match = _PATCH.fullmatch(text)
        if match is None:
            raise UserError(f"unknown patch '{text}'; write keys=J, values=J or both=J")
        return cls(int(match[2]), match[1] != "values", match[1] != "keys")

    @property
    def words(self) -> str:
        which = "the first token's" if self.token == 0 else f"token {self.token}'s"
        what = "keys and values" if self.keys and self.values else "keys" if self.keys else "values"
        return f"{which} causal {what} patched in"

    def capture(self, model: Any, handle: Handle, ids: torch.Tensor, layout: Layout) -> Edit:
        """The edit that patches a batch of tokens ``ids`` ``[batch, time]`` laid out as ``layout``.

        Causally, a token depends on those up to itself alone, so only these are run.
        """
        rows, columns = self._places(layout)
        if not len(rows):
            return lambda _, key, value: (key, value)
        first = columns - self.token  # items stand whole in a row: a prefix from position 0 on
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
            if self.keys:
                key = key.clone()
                key[rows, :, columns] = causal_key
            if self.values:
                value = value.clone()
                value[rows, :, columns] = causal_value
            return key, value

        return replace

    def n_captured(self, layout: Layout) -> int:
        """How many tokens :meth:`capture` computes for a batch laid out so."""
        return len(self._places(layout)[0]) * (self.token + 1)

    def _places(self, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of the token in each item that has it in its prefix."""
        here = (layout.position == self.token) & (layout.n_prefix > self.token)
        rows, columns = torch.nonzero(here & (layout.item != PADDING), as_tuple=True)
        return rows, columns
