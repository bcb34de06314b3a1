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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import Encoder
from bidir_core.evaluate.packing import in_rows, ranges
from bidir_core.models.layout import PADDING, Layout, send
from bidir_core.train.config import Prefix
from bidir_core.train.mixtures import Sample

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
        return self.map(lambda tensor: send(tensor, device))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TrainBatch:
        """The batch with ``change`` made to each of its tensors."""
        ids, head, target, owner = map(change, (self.ids, self.head, self.target, self.owner))
        return TrainBatch(ids, self.layout.map(change), head, target, owner)


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
        self.row_tokens = math.ceil(max(row_tokens, longest) / 16) * 16
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
        chosen = self.chosen(step)
        n_prefix = self.n_prefix(step, chosen)
        # Loss begins behind the prompt, or behind the cut; for "sample" still behind the prompt.
        begin = self.samples.n_prompt[chosen] if self.prefix == "sample" else n_prefix
        total = self.samples.n_total[chosen]
        rows = pack_rows(total, self.row_tokens)
        own_rows = rows[self.process :: self.n_processes]
        batches = [
            self._collate(chosen, n_prefix, begin, own_rows[start : start + self.micro_rows])
            for start in range(0, len(own_rows), self.micro_rows)
        ]
        if self.even:
            n_batches = math.ceil(len(rows[:: self.n_processes]) / self.micro_rows)
            for _ in range(n_batches - len(batches)):
                filler = self._collate(chosen, n_prefix, begin, rows[-1:])
                batches.append(filler._replace(target=torch.full_like(filler.target, IGNORED)))
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
        flat = ranges(start, length)
        position = flat - np.repeat(start, length)
        shape = (len(rows), self.row_tokens)

        spread = partial(in_rows, shape, flat)
        source = ranges(self.samples.start[chosen[member]], length)
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
        target_position = ranges(begin[member], n_loss)
        head = np.repeat(start, n_loss) + target_position - 1
        sample_start = np.repeat(self.samples.start[chosen[member]], n_loss)
        target = self.samples.ids[sample_start + target_position]
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
        for row, free in enumerate(room):
            if length <= free:
                rows[row].append(index)
                room[row] -= length
                break
        else:
            rows.append([index])
            room.append(row_tokens - length)
    return rows


# Samples to token ids, cut into prompt and response exactly where evaluation would cut.

OverLong = Literal["drop", "truncate"]


@dataclass(frozen=True)
class EncodedSamples:
    """All samples as one flat array: sample ``i`` is ``ids[start[i] : start[i] + n_total[i]]``.

    The first ``n_prompt[i]`` of them are its prompt. ``source[i]`` is its index in the list that
    was encoded. The counts say what did not come through whole.
    """

    ids: np.ndarray  # int32
    start: np.ndarray  # int64
    n_prompt: np.ndarray  # int64
    n_total: np.ndarray  # int64
    source: np.ndarray  # int64
    n_dropped_long: int = 0
    n_truncated: int = 0
    n_dropped_empty: int = 0
    n_boundary_merges: int = 0
    bos_added: bool = False

    def __len__(self) -> int:
        return len(self.start)

    def sample(self, index: int) -> np.ndarray:
        """The token ids of one sample: prompt, then response."""
        return self.ids[self.start[index] : self.start[index] + self.n_total[index]]


def encode_samples(
    samples: Sequence[Sample],
    tokenizer: Any,
    *,
    max_tokens: int,
    over_long: OverLong = "drop",
    append_eos: bool = True,
) -> EncodedSamples:
    """Tokenise all samples.

    ``over_long``: what happens to samples of more than ``max_tokens`` tokens. ``truncate`` cuts
    the beginning of the prompt, since its end holds the question, and keeps a leading BOS; a
    response that fills the window by itself is dropped all the same. ``append_eos`` ends each
    response with the tokenizer's EOS token, unless it ends with it already.
    """
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if append_eos and eos is None:
        raise UserError("this tokenizer has no EOS token to end a response with; --no-append-eos")
    sample_ids: list[np.ndarray] = []
    n_prompt: list[int] = []
    source: list[int] = []
    n_long = n_truncated = n_empty = n_merges = 0
    # The very encoder of evaluation, so that prompts end where its contexts do.
    encoder = Encoder(tokenizer)
    stems = [sample.prompt.rstrip() for sample in samples]
    full_texts = [sample.prompt + sample.response for sample in samples]
    places = encoder.encode_texts(stems + full_texts)
    ids_of = {text: place.tokens().ids for text, place in places.items()}
    for index, (stem, text) in enumerate(zip(stems, full_texts)):
        prompt, full = ids_of[stem], ids_of[text]
        response = full[len(prompt) :]
        is_merged = not np.array_equal(full[: len(prompt)], prompt)
        if append_eos and not (len(response) and response[-1] == eos):
            response = np.append(response, eos)
        if not len(prompt) or len(response) <= int(append_eos):
            n_empty += 1
            continue
        room = max_tokens - len(response)
        if len(prompt) > room:
            head = prompt[:1] if prompt[0] == bos else prompt[:0]
            if over_long == "drop" or room <= len(head):
                n_long += 1
                continue
            prompt = np.concatenate([head, prompt[len(prompt) - room + len(head) :]])
            n_truncated += 1
        n_merges += is_merged
        sample_ids.append(np.concatenate([prompt, response]).astype(np.int32))
        n_prompt.append(len(prompt))
        source.append(index)
    if not sample_ids:
        raise UserError(
            f"none of the {len(samples)} samples can be used: {n_long} have more than {max_tokens} "
            f"tokens and {n_empty} have an empty side; raise --max-tokens, or --over-long truncate"
        )
    n_total = np.array([len(ids) for ids in sample_ids], dtype=np.int64)
    return EncodedSamples(
        ids=np.concatenate(sample_ids),
        start=np.cumsum(n_total) - n_total,
        n_prompt=np.array(n_prompt, dtype=np.int64),
        n_total=n_total,
        source=np.array(source, dtype=np.int64),
        n_dropped_long=n_long,
        n_truncated=n_truncated,
        n_dropped_empty=n_empty,
        n_boundary_merges=n_merges,
        bos_added=bos is not None and any(ids[0] == bos for ids in sample_ids),
    )
