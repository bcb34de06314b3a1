"""Log-likelihoods of choices under a regime: the one place where evaluation runs the model."""

from __future__ import annotations

import contextlib
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import EncodedItem
from bidir_core.evaluate.config import AUTO_BATCH_TOKENS
from bidir_core.evaluate.packing import (
    Batch,
    Collated,
    Segment,
    build_segments,
    collate,
    plan_batches,
    split_scores,
)
from bidir_core.evaluate.patching import Patch, RandomAhead
from bidir_core.models import fused
from bidir_core.models.attention import SPLIT_FROM_TOKENS, Handle, rope_switch, without_plans
from bidir_core.models.layout import send
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import Regime

# Normalising the logits makes float32 copies; small pieces stay in a CPU's cache.
HEAD_CHUNK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 30}
# Batches that a GPU holds while the scores of one are recorded. Fewer left it idle behind the probe.
MOST_WAITING = 8


class ItemScore(NamedTuple):
    """``token_ll[choice]``: float64 ``[n_continuation_tokens]``, natural log, per token."""

    index: int  # type: ignore[assignment]  # tuple has a method of this name
    token_ll: tuple[np.ndarray, ...]

    @property
    def ll(self) -> list[float]:
        """Summed over the continuation's tokens, per choice."""
        return [float(tokens.sum()) for tokens in self.token_ll]


@dataclass
class Cost:
    """Tokens: in prefixes and continuations as lm-eval counts them, and really computed."""

    prefix_tokens: int = 0
    continuation_tokens: int = 0
    computed_tokens: int = 0
    out_of_memory: int = 0


@dataclass(frozen=True)
class ScoringPlan:
    """Everything decided before the model runs; depends on items and settings alone.

    ``patch``: an edit beside the regime while scoring (see patching). ``padded``: a
    batch is rows of one width, padded at their ends, but for items with a prefix of ``pack_from``
    tokens or more.
    """

    regime: Regime
    encoded: Sequence[EncodedItem]
    segments: Sequence[Sequence[Segment]]
    batches: Sequence[Batch]
    padded: bool
    patch: Patch | RandomAhead | None = None
    pack_from: int | None = None

    def pads(self, items: Sequence[int]) -> bool:
        """Whether these items, of one batch, are padded rows; else they are one packed row."""
        return self.padded and not any(is_long(self.segments[i], self.pack_from) for i in items)

    def under(self, regime: Regime, patch: Patch | RandomAhead | None = None) -> ScoringPlan:
        """The same plan for another regime. Causal ones share more tokens: not to be mixed."""
        if regime.is_causal != self.regime.is_causal:
            raise ValueError(f"a plan for {self.regime} does not fit {regime}")
        return replace(self, regime=regime, patch=patch)


def plan_scoring(
    encoded: Sequence[EncodedItem],
    *,
    regime: Regime,
    device: torch.device,
    batch_tokens: int | None = None,
    implementation: str = "sdpa",
) -> ScoringPlan:
    """Build the token trees and the batches. ``batch_tokens`` None chooses by device.

    On a CPU a batch is one packed row without padding, with attention item by item; elsewhere
    it is rows of one width, under a dense mask, since many small kernels would leave a GPU idle. There
    ``implementation`` split takes packed rows for the items that it splits.
    """
    padded = device.type != "cpu"
    pack_from = SPLIT_FROM_TOKENS if padded and implementation == "split" else None
    causal = regime.is_causal
    segments = [build_segments(item, causal=causal) if not item.error else [] for item in encoded]
    tokens = batch_tokens or auto_batch_tokens(device)
    ramp = device.type == "cuda"  # it computes the first while the next are built
    long = [trees if is_long(trees, pack_from) else [] for trees in segments]
    short = [[] if packed else trees for packed, trees in zip(long, segments)]
    return ScoringPlan(
        regime,
        encoded,
        segments,
        [*plan_batches(long, tokens, ramp=ramp), *plan_batches(short, tokens, ramp=ramp)],
        padded,
        pack_from=pack_from,
    )


def is_long(segments: Sequence[Segment], tokens: int | None) -> bool:
    """Whether one of an item's segments has a prefix of so many tokens."""
    return tokens is not None and any(segment.n_prefix >= tokens for segment in segments)


def auto_batch_tokens(device: torch.device) -> int:
    """Tokens per batch where none are asked for."""
    return AUTO_BATCH_TOKENS.get(device.type, 8192)


def score_one(loaded: LoadedModel, encoded: EncodedItem, regime: Regime) -> ItemScore:
    """What an evaluation gives for one item."""
    plan = plan_scoring([encoded], regime=regime, device=loaded.device)
    (score,) = Scorer(loaded.model, loaded.handle, plan).score([0])
    return score


class Scorer:
    """Runs planned batches through a model under the plan's regime."""

    def __init__(self, model: Any, handle: Handle, plan: ScoringPlan):
        self.model, self.handle, self.regime, self.plan = model, handle, plan.regime, plan
        self.device = next(model.parameters()).device
        self.switch = rope_switch(model.config)
        self.cost = Cost()

    def score(self, items: Sequence[int]) -> list[ItemScore]:
        """Score some items of one batch together, halving the batch when memory runs out."""
        return self.begin(items)()

    def score_all(
        self, batches: Iterable[Sequence[int]], meanwhile: Callable[[], None] | None = None
    ) -> Iterator[tuple[Sequence[int], list[ItemScore]]]:
        """Batch by batch, its items and their scores.

        A GPU is given the next batches before the scores of one are yielded, so that it computes
        while scores are recorded and batches are built. ``meanwhile`` is called once, before any
        score is yielded; a GPU computes its first batches at the same time. What it raises ends all.
        """
        if self.device.type != "cuda":
            if meanwhile is not None:
                meanwhile()
            yield from ((items, self.score(items)) for items in batches)
            return
        side_stream = Beside(self.device)
        waiting: deque[tuple[Sequence[int], Callable[[], list[ItemScore]]]] = deque()
        failed: BaseException | None = None
        upcoming = iter(batches)
        while True:
            while failed is None and len(waiting) <= MOST_WAITING:
                if (items := next(upcoming, None)) is None:
                    break
                try:
                    waiting.append((items, self.begin(items)))
                except BaseException as error:
                    failed = error
            if meanwhile is not None:
                if failed is not None and (not waiting or not isinstance(failed, Exception)):
                    raise failed  # nothing to probe beside, or interrupted
                with side_stream.stream():
                    meanwhile()
                meanwhile = None
            if not waiting:
                break
            items, scores = waiting.popleft()
            yield items, scores()
        if failed is not None:  # raised last, when what was begun before is recorded
            raise failed

    def begin(self, items: Sequence[int]) -> Callable[[], list[ItemScore]]:
        """Give a batch, or some items of one, to the device; the result is called to wait for scores.

        Some models use other rotary frequencies for a whole pass if one sequence in it is long, so
        long and short items are run apart. An item's longest choice decides which it is.
        """
        long = [i for i in items if self._switches(i)]
        if long and self.plan.patch is not None and self.plan.patch.takes_tokens:
            raise UserError(
                f"'{self.plan.patch}' is taken from the first tokens of a prompt, which this model "
                f"reads with other rotary frequencies than all of a prompt beyond {self.switch} "
                "tokens; use shorter prompts"
            )
        if 0 < len(long) < len(items):
            parts = [self.begin(long), self.begin([i for i in items if i not in long])]
            return lambda: [score for part in parts for score in part()]
        try:
            return self._begin(items)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            self.cost.out_of_memory += 1
            if len(items) == 1:
                traceback.clear_frames(error.__traceback__)  # they hold what was computed so far
                item = self.plan.encoded[items[0]]
                raise UserError(
                    f"out of memory on item {item.item.item_id} alone ({item.longest} tokens); use "
                    "a smaller --dtype, another --device or a smaller model"
                ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(items) // 2
        scores = [*self.score(items[:middle]), *self.score(items[middle:])]
        return lambda: scores

    def _switches(self, item: int) -> bool:
        return self.switch is not None and self.plan.encoded[item].longest > self.switch

    def _begin(self, items: Sequence[int]) -> Callable[[], list[ItemScore]]:
        owners = [(i, segment) for i in items for segment in self.plan.segments[i]]
        segments = [segment for _, segment in owners]
        batch = collate(segments, padded=self.plan.pads(items))
        read = _reader(self._token_ll(batch))

        def finish() -> list[ItemScore]:
            token_lls: dict[int, list[Any]] = {
                i: [None] * len(self.plan.encoded[i].continuations) for i in items
            }
            for index, choice, token_ll in split_scores(segments, read()):
                token_lls[owners[index][0]][choice] = token_ll
            self._count(items, batch.ids.numel())
            return [ItemScore(i, tuple(token_lls[i])) for i in items]

        return finish

    @torch.inference_mode()
    def _token_ll(self, batch: Collated) -> torch.Tensor:
        """On the device, maybe still being computed: float32 ``[n_scored]``."""
        layout = batch.layout.to(self.device)
        longest = max((end - start for start, end in layout.spans or ()), default=layout.shape[1])
        ids, head, source, target = (
            send(tensor, self.device)
            for tensor in (batch.ids, batch.head, batch.source, batch.target)
        )
        patch = self.plan.patch
        self.cost.computed_tokens += patch.n_captured(layout) if patch else 0
        attending: contextlib.AbstractContextManager[Any] = (
            patch.use(self.model, self.handle, self.regime, ids, layout)
            if patch
            else self.handle.use(self.regime, layout)
        )
        plans = without_plans(self.device, longest)
        with plans, attending, gather_before_head(self.model, head):
            logits = self.model(
                input_ids=ids, position_ids=layout.position, use_cache=False
            ).logits[0]
        return logits[source, target].float() - log_sum(logits)[source]

    def _count(self, items: Sequence[int], computed: int) -> None:
        for i in items:
            item = self.plan.encoded[i]
            self.cost.prefix_tokens += sum(
                len(item.prefix(choice)) for choice in range(len(item.continuations))
            )
            self.cost.continuation_tokens += sum(len(tokens) for tokens in item.continuations)
        self.cost.computed_tokens += computed


@contextlib.contextmanager
def gather_before_head(model: Any, head: torch.Tensor) -> Iterator[None]:
    """Run the output head only on the flat token indices ``head``: logits ``[1, n_head, vocab]``.

    The gather sits in front of the head module, so that whatever the model does to its logits
    afterwards (soft caps, scaling) stays in place.
    """

    def gather(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        hidden = arguments[0]
        return (hidden.reshape(-1, hidden.shape[-1])[head][None],)

    hook = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


def log_sum(logits: torch.Tensor) -> torch.Tensor:
    """The logarithm of each row's sum of exponentials: float32 ``[n]``."""
    if logits.is_cuda and logits.dtype != torch.float32:
        fused_sum = fused.log_sum(logits)
        if fused_sum is not None:
            return fused_sum
    rows = max(1, HEAD_CHUNK_BYTES.get(logits.device.type, 1 << 28) // (4 * logits.shape[-1]))
    return torch.cat([chunk.float().logsumexp(-1) for chunk in logits.split(rows)])


def _reader(scores: torch.Tensor) -> Callable[[], np.ndarray]:
    """Starts to copy scores to the host; the function waits for them: float64 ``[n_scored]``."""
    if scores.device.type != "cuda":
        return lambda: scores.cpu().double().numpy()  # Apple's GPUs have no float64
    host_copy = torch.empty(scores.shape, dtype=scores.dtype, pin_memory=True)
    host_copy.copy_(scores, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(scores.device))

    def read() -> np.ndarray:
        copied.synchronize()
        return host_copy.double().numpy()

    return read


@cache
def _priority_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream per device, shared: a stream keeps the memory that it used."""
    return torch.cuda.Stream(device, priority=-1)


class Beside:
    """A stream on which a GPU works beside, and ahead of, what it is given from now on."""

    def __init__(self, device: torch.device):
        self.device, self.now = device, torch.cuda.Event()
        self.now.record(torch.cuda.current_stream(device))

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Work given to the GPU inside waits only for what came before; it is done at the end."""
        stream = _priority_stream(self.device)
        stream.wait_event(self.now)
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "out of memory" in text.lower()
