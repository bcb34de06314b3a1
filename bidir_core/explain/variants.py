"""Many variants of one item's attention, computed together.

A variant says for every layer which rule its attention follows. Variants that agree up to some
layer have the same hidden states up to there, so the batch grows as it goes through the model, a
row for every distinct beginning:

    layer   0   1   2   3        B: as the regime says, C: causal
    a       B   B   B   B        row 0 ---+-----+--- a
    b       B   B   C   B                 |     +--- b      two rows enter layer 2,
    c       B   B   C   C                 |     +--- c      three enter layer 3
    d       C   B   B   B        row 1 ---- d               (c leaves b there)

It is the tree of choices of :mod:`bidir_core.evaluate.packing`, over layers instead of tokens, and just as
exact: what is shared is what would have been computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import EncodedItem
from bidir_core.evaluate.packing import Collated, build_segments, collate, split_scores
from bidir_core.evaluate.scoring import log_sum
from bidir_core.models.attention import Plan
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import CAUSAL, Regime
from bidir_core.train.student import Student

# Most tokens in one batch at the last layer. A larger batch shares more of the computation, until
# its hidden states no longer fit the cache.
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536, "mps": 8192}

# Most tokens that run through a layer at once: so few stay in a CPU's cache between operations.
PIECE_TOKENS = {"cpu": 512}

# About so many rows of logits at a time: a large vocabulary's take much memory.
HEAD_ROWS = 256


class Rule(NamedTuple):
    """One layer's attention: ``regime`` (without ``layers``), and ranges of prefix positions
    (inclusive) whose tokens see only what precedes them, as if the regime were causal."""

    regime: Regime
    restored: tuple[tuple[int, int], ...] = ()


Variant = tuple[Rule, ...]  # one rule a layer


class _RulePlan(Plan):
    """Hands out a mask for each batch row: the rules of the layer that asks."""

    def __init__(self, rules: Sequence[Sequence[Rule]], collated: Collated):
        super().__init__(CAUSAL, collated.layout)
        self.rules = rules
        self.rows = slice(None)  # the rows that are in the layer now
        self._plans: dict[Regime, Plan] = {}

    def mask(
        self, layer: int, window: int | None, dtype: torch.dtype, span: Any = None, last: Any = None
    ) -> torch.Tensor:
        rules = tuple(self.rules[layer][self.rows])
        distinct = dict.fromkeys(rules)
        for rule in distinct:
            if (rule, window, dtype) not in self._masks:
                self._masks[rule, window, dtype] = self.rule_mask(rule, window, dtype)
        # A single rule for all rows broadcasts.
        return torch.cat(
            [
                self._masks[rule, window, dtype]
                for rule in (rules if len(distinct) > 1 else distinct)
            ]
        )

    def rule_mask(self, rule: Rule, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """``[1, 1, query, key]``: the regime's mask, restored rows taken from the causal one."""
        mask = self._of(rule.regime).mask(0, window, dtype)
        if not rule.restored:
            return mask
        position, n_prefix = self.layout.position, self.layout.n_prefix
        within = [(position >= first) & (position <= last) for first, last in rule.restored]
        rows = torch.stack(within).any(0) & (position < n_prefix)
        return torch.where(rows[:, None, :, None], self._of(CAUSAL).mask(0, window, dtype), mask)

    def _of(self, regime: Regime) -> Plan:
        return self._plans.setdefault(regime, Plan(regime, self.layout))


class VariantScorer:
    """Scores one item's choices under many variants of a model's attention.

    Raises UserError for a model whose layers do not hand plain hidden states to one another.
    """

    def __init__(self, loaded: LoadedModel, encoded: EncodedItem):
        self.loaded, self.encoded = loaded, encoded
        # Contexts stay apart (as under a bidirectional regime), so that rows mean the same thing
        # in every variant.
        self.segments = build_segments(encoded)
        self.collated = _dense(collate(self.segments, padded=False), loaded.device)
        self.student = Student(loaded.model, loaded.handle)
        self.layers = loaded.handle.layers()
        self.computed_tokens = 0
        tokens = BATCH_TOKENS.get(loaded.device.type, 2048)
        self.rows = max(1, tokens // self.n_tokens)
        self.piece = max(1, PIECE_TOKENS.get(loaded.device.type, tokens) // self.n_tokens)

    @property
    def n_tokens(self) -> int:
        """Tokens in one row: the prefixes and the tree of choices behind each."""
        return self.collated.ids.shape[1]

    def score(
        self, variants: Sequence[Variant], advance: Callable[[int], None] = lambda n: None
    ) -> list[tuple[float, ...]]:
        """Every variant's log-likelihoods by choice: natural log, summed over the choice's tokens.

        Equal variants are computed once; ``advance`` hears how many are done more.
        """
        indices: dict[Variant, list[int]] = {}
        for index, variant in enumerate(variants):
            if len(variant) != self.loaded.n_layers:
                raise ValueError(f"a variant has {len(variant)} rules, not {self.loaded.n_layers}")
            indices.setdefault(variant, []).append(index)
        rank = {rule: i for i, rule in enumerate(dict.fromkeys(r for v in indices for r in v))}
        # Variants that differ only in late layers become neighbours, since they share most.
        ordered = sorted(indices, key=lambda variant: [rank[rule] for rule in variant])
        by_index: dict[int, tuple[float, ...]] = {}
        for start in range(0, len(ordered), self.rows):
            chunk = ordered[start : start + self.rows]
            for variant, ll in zip(chunk, self._run(chunk), strict=True):
                by_index |= dict.fromkeys(indices[variant], ll)
                advance(len(indices[variant]))
        return [by_index[index] for index in range(len(variants))]

    def sees_alike(self, first: Rule, second: Rule) -> bool:
        """Whether two rules let every token see the same."""
        plan = _RulePlan([], self.collated)
        masks = [plan.rule_mask(rule, None, torch.float32) for rule in (first, second)]
        return torch.equal(*masks)

    @torch.inference_mode()
    def _run(self, variants: Sequence[Variant]) -> list[tuple[float, ...]]:
        parents, rules, ends = _tree(variants)
        plan = _RulePlan(rules, self.collated)
        handle, ids = self.loaded.handle, self.collated.ids
        with (
            handle.use_plan(plan),
            _branching(self.layers, parents, ids.shape[1]),
            _in_pieces(self.layers, plan, self.piece),
        ):
            hidden = self.student.decoder(
                input_ids=ids, position_ids=self.collated.layout.position, use_cache=False
            ).last_hidden_state
        self.computed_tokens += sum(map(len, rules)) * ids.shape[1] // len(rules)
        return self._ll(hidden, ends)

    def _ll(self, hidden: torch.Tensor, ends: Sequence[int]) -> list[tuple[float, ...]]:
        """Per variant and choice, from the last hidden states ``[row, time, width]``."""
        batch = self.collated
        predicting = hidden[ends][:, batch.head]
        scores = torch.empty(len(ends), len(batch.target), device=hidden.device)
        step = max(1, HEAD_ROWS // len(batch.head))
        for start in range(0, len(ends), step):
            part = predicting[start : start + step]
            logits = self.student.logits(part.flatten(0, 1))
            norm = log_sum(logits).view(*part.shape[:2])[:, batch.source]
            picked = logits.view(*part.shape[:2], -1)[:, batch.source, batch.target]
            scores[start : start + step] = picked.float() - norm
        by_variant = []
        for row in scores.cpu().double().numpy():
            ll = {c: float(np.sum(part)) for _, c, part in split_scores(self.segments, row)}
            by_variant.append(tuple(ll[choice] for choice in sorted(ll)))
        return by_variant


def _dense(batch: Collated, device: torch.device) -> Collated:
    """On the device, and attending as one row: variants need masks of the same shape."""
    layout = replace(batch.layout.to(device), spans=None)
    tensors = (tensor.to(device) for tensor in (batch.head, batch.source, batch.target))
    return Collated(batch.ids.to(device), layout, *tensors)


def _tree(variants: Sequence[Variant]) -> tuple[list[list[int]], list[list[Rule]], list[int]]:
    """Per layer, which row of the layer before each row continues, and its rule; and for each
    variant the row it ends in."""
    parents: list[list[int]] = []
    rules: list[list[Rule]] = []
    row_of = [0] * len(variants)  # the row each variant is in
    for layer in range(len(variants[0])):
        rows: dict[tuple[int, Rule], int] = {}
        row_of = [
            rows.setdefault((row, variant[layer]), len(rows))
            for row, variant in zip(row_of, variants)
        ]
        parents.append([parent for parent, _ in rows])
        rules.append([rule for _, rule in rows])
    return parents, rules, row_of


@contextmanager
def _branching(
    layers: Sequence[nn.Module], parents: Sequence[Sequence[int]], time: int
) -> Iterator[None]:
    """In front of each layer, repeat the rows from which several variants go on."""

    def hook(rows: Sequence[int]) -> Any:
        def repeat(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = arguments[0] if arguments else None
            if not isinstance(hidden, torch.Tensor) or hidden.dim() != 3 or hidden.shape[1] != time:
                raise UserError("this model's layers cannot be run in variants of their attention")
            index = torch.tensor(rows, device=hidden.device)
            return (hidden[index], *arguments[1:])

        return repeat

    with ExitStack() as hooks:
        for before, layer, rows in zip([[0], *parents], layers, parents):
            if list(rows) != list(range(len(before))):
                hooks.callback(layer.register_forward_pre_hook(hook(rows)).remove)
        yield


@contextmanager
def _in_pieces(layers: Sequence[nn.Module], plan: _RulePlan, n_rows: int) -> Iterator[None]:
    """Run each layer on so many rows at a time; rows do not see each other."""

    def pieces_of(forward: Any) -> Any:
        def run(hidden: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            outputs = []
            for start in range(0, len(hidden), n_rows):
                plan.rows = slice(start, start + n_rows)
                outputs.append(forward(hidden[plan.rows], *arguments, **named))
            plan.rows = slice(None)
            if isinstance(outputs[0], tuple):
                return (torch.cat([output[0] for output in outputs]), *outputs[0][1:])
            return torch.cat(outputs)

        return run

    with replaced_forwards({layer: pieces_of(layer.forward) for layer in layers}):
        yield


@contextmanager
def replaced_forwards(by_layer: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Layers run these instead of their own ``forward`` for a while."""
    originals = {layer: vars(layer).get("forward") for layer in by_layer}
    try:
        for layer, forward in by_layer.items():
            layer.forward = forward  # type: ignore[method-assign]
        yield
    finally:
        for layer, original in originals.items():
            if original is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = original  # type: ignore[method-assign]
