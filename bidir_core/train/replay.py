"""Steps in few shapes, so that compiled layers fit the next batch and a GPU can replay a recording.

A small model leaves a GPU waiting for its launches: one step of 135 M parameters starts several
thousand kernels from Python, each shorter than its launch. Recorded once as a CUDA graph, forward
and backward pass of a micro-batch are one launch. A recording holds for one shape and for the very
tensors it was made with, so:

- batches are filled up with empty rows, and with places to predict from that carry no loss, to a
  few shapes (:func:`fill`);
- a batch is copied into tensors that stay where they are, and so is the number its loss is divided
  by; gradients are added to tensors that stay, too.

The first batches of a shape run as they are (kernels choose themselves then, layers are compiled),
then one is recorded, and every later one replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from bidir_core.models.layout import PADDING, Layout
from bidir_core.train.packing import IGNORED, TrainBatch

ROWS = 4  # rows of a batch come in multiples of it
TERMS = 1024  # and loss terms in multiples of this, four times as coarse where there are many
AS_THEY_ARE = 2  # batches of a shape that run before one is recorded
Work = Callable[[TrainBatch, "int | torch.Tensor"], None]


def fill(batch: TrainBatch, rows: int = ROWS, terms: int = TERMS) -> TrainBatch:
    """The batch with empty rows and ignored loss terms behind it, up to multiples."""
    layout, (n_rows, time) = batch.layout, batch.ids.shape
    if len(batch.target) > 8 * terms:
        terms *= 4
    row_padding = (0, 0, 0, -n_rows % rows)
    n_terms_added = -len(batch.target) % terms
    alone = torch.arange(1, time + 1).expand(row_padding[3], time)  # padding sees itself alone
    exit_ = torch.cat([layout.exit, alone.to(layout.exit)])
    return TrainBatch(
        ids=pad(batch.ids, row_padding),
        layout=Layout(
            item=pad(layout.item, row_padding, value=PADDING),
            position=pad(layout.position, row_padding),
            n_prefix=pad(layout.n_prefix, row_padding),
            exit=exit_,
        ),
        head=pad(batch.head, (0, n_terms_added)),
        target=pad(batch.target, (0, n_terms_added), value=IGNORED),
        owner=pad(batch.owner, (0, n_terms_added)),
    )


@dataclass
class _Slot:
    """One shape: the tensors that stay, batches seen, and the recording (None until made)."""

    batch: TrainBatch
    n_loss: torch.Tensor
    n_seen: int = 0
    graph: Any = None


class Replay:
    """Runs ``work(batch, n_loss)`` on filled batches; recorded and replayed on a GPU.

    Batches come filled, and from pinned memory, so that copying them waits for nothing. ``work``
    must wait for nothing, and leave its results in tensors that stay where they are.
    Elsewhere than on a GPU it runs each time, on the same tensors that stay.
    """

    def __init__(self, work: Work, device: torch.device):
        self.work, self.device = work, device
        self._slots: dict[Any, _Slot] = {}
        self._pool: Any = None
        # One for all: a stream keeps the memory that it used, so many would hold as many times it.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: TrainBatch, n_loss: int) -> None:
        """One micro-batch; ``n_loss`` is what its loss is divided by."""
        shape = (tuple(batch.ids.shape), len(batch.target))
        if shape not in self._slots:
            copy = batch.to(self.device).map(torch.clone)
            self._slots[shape] = _Slot(copy, torch.zeros((), device=self.device))
        slot = self._slots[shape]
        for target, source in zip(_tensors(slot.batch), _tensors(batch), strict=True):
            target.copy_(source, non_blocking=True)
        slot.n_loss.fill_(n_loss)
        slot.n_seen += 1
        if self.device.type != "cuda" or slot.n_seen <= AS_THEY_ARE:
            self._run_aside(slot)
            return
        if slot.graph is None:
            slot.graph = self._record(slot)
        slot.graph.replay()

    def _run_aside(self, slot: _Slot) -> None:
        """Run it on another stream, as a recording's warm-up has to be."""
        if self._stream is None:
            self.work(slot.batch, slot.n_loss)
            return
        stream, current = self._stream, torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self.work(slot.batch, slot.n_loss)
        current.wait_stream(stream)

    def _record(self, slot: _Slot) -> Any:
        """Recording computes nothing: the caller replays it for this batch as well."""
        graph = torch.cuda.CUDAGraph()
        # Packing goes on in another thread, which may pin memory meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            self.work(slot.batch, slot.n_loss)
        self._pool = graph.pool()  # recordings never run side by side: they can share memory
        return graph


def _tensors(batch: TrainBatch) -> list[torch.Tensor]:
    layout = batch.layout
    by_token = [batch.ids, layout.item, layout.position, layout.n_prefix, layout.exit]
    return [*by_token, batch.head, batch.target, batch.owner]
