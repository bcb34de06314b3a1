"""What the probe measures: short sequences that show a regime, and attention as it really flows.

Two measurements, both taken in the loaded model:

*Weights.* Every attention call is repeated with one-hot values in place of the real ones. The
output is then the attention weight of each key, exactly: a hidden key weighs exactly nothing.
With the queries set to zero as well, all scores are equal and the weights show what the mask
adds to them, in any precision, whatever the model has learned.

*Outputs.* Every attention module is run again on its real inputs with one token's hidden state
replaced. This believes nothing but the module's output, so no way around the mask goes unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bidir_core.models.attention import Handle
from bidir_core.models.layout import Layout
from bidir_core.regimes import Regime, visible

NEAR_PREFIX = 8  # length of the prefix whose positions are all there


@dataclass(frozen=True)
class Sample:
    """Tokens ``[batch, time]`` with their layout.

    ``paths``: ``(row, indices)`` of each way from an item's first token to the end of one of its
    choices. Along a path tokens stand in plain causal order, so the visibility rule applies
    without any knowledge of packing: a second opinion on the layout.
    """

    ids: torch.Tensor
    layout: Layout
    paths: tuple[tuple[int, tuple[int, ...]], ...]
    _known: dict[Any, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def expected(self, regime: Regime, window: int | None) -> tuple[np.ndarray, np.ndarray]:
        """``(allowed, ahead)`` of one layer, bool ``[batch, query, key]``."""
        if (regime, window) not in self._known:  # most layers are alike
            self._known[regime, window] = self._work_out(regime, window)
        return self._known[regime, window]

    def _work_out(self, regime: Regime, window: int | None) -> tuple[np.ndarray, np.ndarray]:
        batch, time = self.layout.shape
        allowed = np.tile(np.eye(time, dtype=bool), (batch, 1, 1))
        ahead = np.zeros_like(allowed)
        positions, prefixes = self.layout.position.cpu().numpy(), self.layout.n_prefix.cpu().numpy()
        for row, path in self.paths:
            place = np.array(path)
            position, n_prefix = positions[row, place], int(prefixes[row, place[0]])
            query, key = position[:, None], position[None, :]
            sees, looks = visible(
                regime,
                query,
                key,
                query_prefix=query < n_prefix,
                key_prefix=key < n_prefix,
                same_item=np.ones((len(path), len(path)), dtype=bool),
                descends=key <= query,
                n_prefix=n_prefix,
            )
            within = np.ones_like(sees) if window is None else abs(query - key) < window
            allowed[row][np.ix_(place, place)] = sees & within
            ahead[row][np.ix_(place, place)] = looks & within
        return allowed, ahead


def packed_sample(
    tokens: torch.Tensor, regime: Regime, windows: Sequence[int | None], max_length: int
) -> Sample:
    """A packed row as scoring makes it: a tree of choices, a neighbour, and far positions.

    The first item has a prefix of 8 tokens and two choices, ``a b`` and ``a c``, then ``d``; the
    second is there to be left alone. Where a window or a dial lies further out than 8 tokens, a
    third one has tokens on both sides of each such border, and gaps in its positions in between.
    """
    tree = [*range(NEAR_PREFIX), 8, 9, 9, 8]  # a at 8, b and c both at 9, d at 8
    exits = [12] * NEAR_PREFIX + [11, 10, 11, 12]
    prefix = tuple(range(NEAR_PREFIX))
    items = [(NEAR_PREFIX, tree, exits), (2, [0, 1, 2], [3, 3, 3])]
    paths = [(*prefix, 8, 9), (*prefix, 8, 10), (*prefix, 11), (12, 13, 14)]
    n_far, far = _far_positions(regime, windows, max_length)
    if far:
        items.append((n_far, far, [len(far)] * len(far)))
        paths.append(tuple(range(15, 15 + len(far))))
    rows: tuple[list[int], ...] = ([], [], [], [])
    spans, start = [], 0
    for index, (n_prefix, position, exit_) in enumerate(items):
        n = len(position)
        added = ([index] * n, position, [n_prefix] * n, [start + end for end in exit_])
        for row, values in zip(rows, added):
            row.extend(values)
        spans.append((start, start + n))
        start += n
    item_ids, position_row, n_prefix_row, exit_row = (torch.tensor([row]) for row in rows)
    layout = Layout(item_ids, position_row, n_prefix_row, exit_row, spans=tuple(spans))
    return Sample(_take(tokens, start)[None], layout, tuple((0, path) for path in paths))


def _far_positions(
    regime: Regime, windows: Sequence[int | None], max_length: int
) -> tuple[int, list[int]]:
    """``(prefix length, positions)`` around borders beyond the near item; none if there are none."""
    marks = {regime.sink, *(window for window in windows if window is not None)}
    if regime.rows is not None:
        marks |= {regime.rows[0], regime.rows[1] + 1}
    if regime.skip is not None:
        marks |= {regime.skip, regime.skip + 1}
    if regime.self_token is not None:
        marks |= {regime.self_token, regime.self_token + 1}
    if regime.hide is not None:
        marks |= {regime.hide, regime.hide + 1}
    room = max_length - regime.tail - 4  # beyond it no real sequence gets
    marks = {mark for mark in marks if mark < room}
    if max((*marks, regime.tail)) < NEAR_PREFIX or room < NEAR_PREFIX:
        return 0, []
    n_prefix = max(marks) + 2 + regime.tail
    borders = {mark + step for mark in marks for step in (-1, 0, 1)} | {0, 1, 2}
    borders |= {n_prefix - regime.tail + step for step in (-1, 0)} | {n_prefix - 1}
    borders |= {n_prefix - w + step for w in windows if w is not None for step in (0, 1)}
    prefix = sorted(border for border in borders if 0 <= border < n_prefix)
    return n_prefix, [*prefix, n_prefix, n_prefix + 1]


def row_sample(tokens: torch.Tensor, n_prefix: int, n_total: int, changes: Sequence[int]) -> Sample:
    """A padded batch of one sequence, unchanged in row 0, and with one token changed in the others.

    ``changes``: the index of the changed token, row by row.
    """
    rows = len(changes) + 1
    layout = Layout.pad([(n_prefix, n_total)] * rows, time=n_total + 1)
    ids = _take(tokens, n_total + 1).repeat(rows, 1)
    for row, index in enumerate(changes, start=1):
        other = tokens[tokens != ids[0, index]]
        ids[row, index] = other[index % len(other)]
    path = tuple(range(n_total))
    return Sample(ids, layout, tuple((row, path) for row in range(rows)))


def _take(tokens: torch.Tensor, n: int) -> torch.Tensor:
    return tokens.repeat(n // len(tokens) + 1)[:n]


class Weights(NamedTuple):
    """One layer's attention weights, ``[batch, head, query, key]`` float32 on the CPU.

    ``real``: as the model attends. ``full``: the same at lambda=1. ``flat``: with zero queries.
    """

    real: torch.Tensor
    full: torch.Tensor
    flat: torch.Tensor


class Call(NamedTuple):
    """One run of a module: its arguments and its first output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor


@dataclass
class Watch:
    """What :func:`watch` saw: each layer's attention module and weights, each module's call."""

    modules: dict[int, nn.Module] = field(default_factory=dict)
    weights: dict[int, Weights] = field(default_factory=dict)
    calls: dict[nn.Module, Call] = field(default_factory=dict)


@contextmanager
def watch(handle: Handle) -> Iterator[Watch]:
    """Record every attention call of forward passes made inside, under a regime."""
    seen = Watch()
    name = f"bidir_{handle.implementation}"
    attend = ALL_ATTENTION_FUNCTIONS[name]

    def attend_and_measure(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if getattr(module, "_bidir_handle", None) is handle and handle.plan is not None:
            layer: int = module.layer_idx  # type: ignore[assignment]
            plan = handle.plan

            def weights(query: torch.Tensor) -> torch.Tensor:
                return _read_weights(attend, module, query, key, value, *args, **kwargs)

            real = full = weights(query)
            if plan.regime.lam != 1.0:
                with handle.use(replace(plan.regime, lam=1.0), plan.layout):
                    full = weights(query)
            seen.modules[layer] = module
            seen.weights[layer] = Weights(real, full, weights(torch.zeros_like(query)))
        return attend(module, query, key, value, *args, **kwargs)

    # An entry set on the instance hides the registered one, until it is deleted again.
    hidden = ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)
    ALL_ATTENTION_FUNCTIONS[name] = attend_and_measure
    try:
        with _keep_calls(handle, seen):
            yield seen
        # Only now: each copy waits for the device.
        for layer, found in seen.weights.items():
            seen.weights[layer] = Weights(*(weights.cpu() for weights in found))
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]
        if hidden is not None:
            ALL_ATTENTION_FUNCTIONS[name] = hidden


def _read_weights(
    attend: Any,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """With value j = one-hot(j), the output at ``[query, j]`` is the weight of key j."""
    time, width = value.shape[2:]
    parts = []
    for start in range(0, time, width):
        end = min(start + width, time)
        one_hot = torch.zeros_like(value)
        eye = torch.eye(end - start, device=value.device, dtype=value.dtype)
        one_hot[:, :, start:end, : end - start] = eye
        output = attend(module, query, key, one_hot, *args, **kwargs)[0]
        parts.append(output[..., : end - start].transpose(1, 2))
    return torch.cat(parts, dim=-1).float()


@contextmanager
def _keep_calls(handle: Handle, seen: Watch) -> Iterator[None]:
    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.calls[module] = Call(args, kwargs, output[0] if isinstance(output, tuple) else output)

    hooks = [
        module.register_forward_hook(keep, with_kwargs=True)
        for module in handle.decoder.modules()
        if getattr(module, "_bidir_handle", None) is handle
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rerun(module: nn.Module, call: Call, hidden: torch.Tensor | None = None) -> torch.Tensor:
    """An attention module's output ``[batch, time, width]`` on a recorded call's arguments.

    ``hidden`` takes the place of the hidden states, and may have more rows.
    """
    args, kwargs = call.args, call.kwargs
    if hidden is not None and "hidden_states" in kwargs:
        kwargs = {**kwargs, "hidden_states": hidden}
    elif hidden is not None:
        args = (hidden, *args[1:])
    return module(*args, **kwargs)[0]


def moved_queries(
    module: nn.Module, call: Call, groups: Sequence[Sequence[int]], seed: int
) -> np.ndarray:
    """Which queries' outputs move when the tokens of a group change: bool ``[group, query]``.

    All groups are one batch, run once unchanged and once changed. Since the two runs have the
    same shapes, an output that depends on nothing changed comes out the same to the last bit;
    a last row that never changes measures how far the device keeps to that.
    """
    hidden = call.kwargs["hidden_states"] if "hidden_states" in call.kwargs else call.args[0]
    still = hidden.expand(len(groups) + 1, -1, -1).contiguous()
    changed = still.clone()
    scale = hidden.float().std()  # of all tokens: a padding token's own may be zero
    sizes = torch.tensor([len(group) for group in groups])
    rows = torch.arange(len(groups)).repeat_interleave(sizes)
    tokens = torch.tensor([token for group in groups for token in group])
    noise = _noise(len(tokens), hidden.shape[-1], seed, scale.device)
    changed[rows, tokens] = (noise * scale).to(hidden)
    return moved(rerun(module, call, still), rerun(module, call, changed))[:-1]


@lru_cache(maxsize=2)
def _noise(n: int, width: int, seed: int, device: torch.device) -> torch.Tensor:
    """Random numbers from the CPU's generator, the same on every device; all layers share them."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).to(device)


def moved(before: torch.Tensor, after: torch.Tensor, still_row: int = -1) -> np.ndarray:
    """Where a ``[batch, time, width]`` tensor moved: bool ``[batch, time]``.

    Not a bit may differ, unless the device does not repeat itself even in ``still_row``, where
    nothing was changed; then only what moves by clearly more than that counts.
    """
    difference = (after.float() - before.float()).abs().amax(-1)
    noise = difference[still_row].max()
    return ((difference > 8 * noise) | difference.isnan()).cpu().numpy()
