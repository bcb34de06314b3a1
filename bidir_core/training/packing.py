"""Which samples an optimizer step sees, and how they lie in rows of tokens.

The plan is global: step ``s`` holds samples ``order[s * batch : (s + 1) * batch]`` of an endless
sequence of shuffled epochs, whatever the number of processes and wherever a run was resumed.
Within a step, samples are packed whole into rows of equal length, longest first:

    row 0   A A A A A A A B B .      A sample sees only itself (the layout's item ids), its
    row 1   C C C C D D D D D .      positions start at 0, and "." is padding: a few percent,
                                     where one sample a row would leave half of it empty.

Everything is numpy until a batch is made; nothing here loops over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from bidir_core.layout import PADDING, Layout, send
from bidir_core.training.encode import EncodedSamples

Prefix = Literal["prompt", "sample", "split"]
IGNORED = -100  # a target that carries no loss


class TrainBatch(NamedTuple):
    """Rows of packed samples as tensors.

    ``ids``: int64 ``[rows, time]``. ``head``: int64 ``[n_loss]``, flat indices of the tokens that
    a loss term is predicted from; ``target``: int64 ``[n_loss]``, the tokens to be predicted;
    ``owner``: int64 ``[n_loss]``, which sample of the step each term belongs to.
    """

    ids: torch.Tensor
    layout: Layout
    head: torch.Tensor
    target: torch.Tensor
    owner: torch.Tensor

    def to(self, device: torch.device | str) -> TrainBatch:
        """The batch on ``device``; copies from pinned memory don't wait."""
        ids, head, target, owner = (
            send(tensor, device) for tensor in (self.ids, self.head, self.target, self.owner)
        )
        return TrainBatch(ids, self.layout.to(device), head, target, owner)

    def pin(self) -> TrainBatch:
        """The batch in page-locked memory, from where copies to a GPU run beside the work."""
        ids, head, target, owner = (
            tensor.pin_memory() for tensor in (self.ids, self.head, self.target, self.owner)
        )
        return TrainBatch(ids, self.layout.pin(), head, target, owner)


class Step(NamedTuple):
    """One optimizer step: this process's micro-batches, and the whole step's token counts."""

    batches: list[TrainBatch]
    n_tokens: int  # of all samples of the step: useful ones, padding not counted
    n_loss: int  # loss terms of the whole step: what the loss is divided by
    n_slots: int  # rows times their length: what is computed, padding included


class Packer:
    """Makes the steps of a run. A pure function of its arguments and the step's number."""

    def __init__(
        self,
        samples: EncodedSamples,
        *,
        batch_samples: int,
        row_tokens: int,
        micro_tokens: int,
        seed: int,
        prefix: Prefix = "prompt",
        process: int = 0,
        n_processes: int = 1,
        even: bool = False,
    ):
        """``even``: every process gets equally many micro-batches, since they compute each together;
        who has too few gets some that carry no loss."""
        longest = int(samples.n_total.max())
        self.samples = samples
        self.batch_samples = batch_samples
        # A multiple of 16: attention kernels want aligned masks.
        self.row_tokens = -(-max(row_tokens, longest) // 16) * 16
        self.micro_rows = max(1, micro_tokens // self.row_tokens)
        self.seed = seed
        self.prefix: Prefix = prefix
        self.process, self.n_processes, self.even = process, n_processes, even
        self._orders: dict[int, np.ndarray] = {}

    def chosen(self, step: int) -> np.ndarray:
        """Indices of the samples of one step (0-based)."""
        n = len(self.samples)
        places = np.arange(step * self.batch_samples, (step + 1) * self.batch_samples)
        return np.array([self._order(place // n)[place % n] for place in places.tolist()])

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = np.random.default_rng([self.seed, 0, epoch])
            self._orders = {epoch: rng.permutation(len(self.samples))}
        return self._orders[epoch]

    def n_prefix(self, step: int, chosen: np.ndarray) -> np.ndarray:
        """Where each sample's prefix ends: at the prompt's end, at the sample's, or in between.

        ``split`` draws, for half of the samples, a random cut anywhere in the text, so that
        prefixes of every length and kind are seen; the other half ends at the prompt.
        """
        prompt, total = self.samples.n_prompt[chosen], self.samples.n_total[chosen]
        if self.prefix == "prompt":
            return prompt
        if self.prefix == "sample":
            return total
        rng = np.random.default_rng([self.seed, 1, step])
        anywhere = 1 + np.floor(rng.random(len(chosen)) * (total - 1)).astype(np.int64)
        return np.where(rng.random(len(chosen)) < 0.5, anywhere, prompt)

    def step(self, step: int) -> Step:
        """The step's micro-batches for this process."""
        chosen = self.chosen(step)
        n_prefix = self.n_prefix(step, chosen)
        # Loss begins behind the prompt, or behind the cut; for "sample" still behind the prompt.
        begin = self.samples.n_prompt[chosen] if self.prefix == "sample" else n_prefix
        total = self.samples.n_total[chosen]
        rows = pack_rows(total, self.row_tokens)
        mine = rows[self.process :: self.n_processes]
        batches = [
            self._collate(chosen, n_prefix, begin, mine[first : first + self.micro_rows])
            for first in range(0, len(mine), self.micro_rows)
        ]
        if self.even:
            most = -(-len(rows[:: self.n_processes]) // self.micro_rows)
            for _ in range(most - len(batches)):
                spare = self._collate(chosen, n_prefix, begin, rows[-1:])
                batches.append(spare._replace(target=torch.full_like(spare.target, IGNORED)))
        return Step(
            batches=batches,
            n_tokens=int(total.sum()),
            n_loss=int((total - begin).sum()),
            n_slots=len(rows) * self.row_tokens,
        )

    def _collate(
        self, chosen: np.ndarray, n_prefix: np.ndarray, begin: np.ndarray, rows: list[list[int]]
    ) -> TrainBatch:
        """Rows of sample numbers (into ``chosen``) to tensors."""
        member = np.concatenate([np.array(row) for row in rows])
        length = self.samples.n_total[chosen[member]]
        row = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        # where each sample starts in the flattened rows: its row, plus what lies before it there
        running = np.cumsum(length) - length
        in_row = running - np.repeat(
            running[np.cumsum([0] + [len(r) for r in rows[:-1]])], [len(r) for r in rows]
        )
        start = row * self.row_tokens + in_row
        position = _ranges(length)
        flat = np.repeat(start, length) + position
        shape = (len(rows), self.row_tokens)

        def spread(values: np.ndarray, empty: np.ndarray | int) -> torch.Tensor:
            full = np.empty(shape[0] * shape[1], dtype=np.int64)
            full[:] = empty
            full[flat] = values
            return torch.from_numpy(full.reshape(shape))

        source = np.repeat(self.samples.start[chosen[member]], length) + position
        after = np.tile(np.arange(1, shape[1] + 1), shape[0])  # padding sees itself alone
        layout = Layout(
            item=spread(np.repeat(member, length), PADDING),
            position=spread(position, 0),
            n_prefix=spread(np.repeat(n_prefix[member], length), 0),
            exit=spread(np.repeat(in_row + length, length), after),
        )
        n_loss = length - begin[member]
        # Token t is predicted from the token before it:
        #     index   start .. start+begin-1 | start+begin .. start+length-1
        #     head            ^----------------------------^   (one shorter on the right)
        target_at = np.repeat(begin[member], n_loss) + _ranges(n_loss)
        head = np.repeat(start, n_loss) + target_at - 1
        target = self.samples.ids[np.repeat(self.samples.start[chosen[member]], n_loss) + target_at]
        return TrainBatch(
            ids=spread(self.samples.ids[source], 0),
            layout=layout,
            head=torch.from_numpy(head),
            target=torch.from_numpy(target.astype(np.int64)),
            owner=torch.from_numpy(np.repeat(member, n_loss)),
        )


def pack_rows(lengths: np.ndarray, row_tokens: int) -> list[list[int]]:
    """First fit, longest first: rows of indices whose lengths sum to at most ``row_tokens``."""
    if len(lengths) and lengths.max() > row_tokens:
        raise ValueError(f"a sample of {lengths.max()} tokens in rows of {row_tokens}")
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = int(lengths[index])
        for row, left in enumerate(room):
            if length <= left:
                rows[row].append(index)
                room[row] -= length
                break
        else:
            rows.append([index])
            room.append(row_tokens - length)
    return rows


def _ranges(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """``[0..a-1, 0..b-1, ..]`` for lengths ``[a, b, ..]``."""
    lengths = np.asarray(lengths)
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
