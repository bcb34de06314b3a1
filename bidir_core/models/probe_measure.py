"""What the probe measures: sequences that show a regime, and attention as it really flows.

Three measurements, all taken in the loaded model:

*Weights.* Every attention call is repeated with one-hot values in place of the real ones. The
output is then the attention weight of each key, exactly: a hidden key weighs exactly nothing.
With the queries set to zero as well, all scores are equal and the weights show what the mask
adds to them, in any precision, whatever the model has learned.

*Outputs.* Every attention module is run again on its real inputs with one token's hidden state
replaced. This believes nothing but the module's output, so no way around the mask goes unseen.

*Averages.* Every attention call is repeated with zero queries and random numbers as values. The
output is then the average of the values that a query sees. One call tells right from wrong for
sequences of any length, where one-hot values would take one call for each few keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bidir_core.common.errors import UserError
from bidir_core.models.attention import Handle
from bidir_core.models.layout import Layout
from bidir_core.regimes import Regime, visibility, visible

Windows = Sequence[int | None]  # each layer's sliding window in tokens, None for full attention
NEAR_PREFIX = 5  # length of the prefix whose positions are all there


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
    _cache: dict[Any, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def expected(self, regime: Regime, window: int | None) -> tuple[np.ndarray, np.ndarray]:
        """``(allowed, ahead)`` of one layer, bool ``[batch, query, key]``."""
        if (regime, window) in self._cache:  # most layers are alike
            return self._cache[regime, window]
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
        self._cache[regime, window] = allowed, ahead
        return allowed, ahead


def packed_sample(
    tokens: torch.Tensor, regime: Regime, windows: Sequence[int | None], max_length: int
) -> Sample:
    """A packed row as scoring makes it: a tree of choices, a neighbour, and far positions.

    The first item has a prefix of 5 tokens and three choices, ``a b``, ``a c`` and ``d``; the
    second is there to be left alone. Where a window or a dial lies further out than 5 tokens, a
    third one has tokens on both sides of each such border, and gaps in its positions in between.
    """
    a, b, c, d, end = range(NEAR_PREFIX, NEAR_PREFIX + 5)  # indices of the choices' tokens
    prefix = tuple(range(NEAR_PREFIX))
    positions = [*prefix, a, b, b, a]  # c stands where b does, d where a does
    items = [
        (NEAR_PREFIX, positions, [end] * NEAR_PREFIX + [d, c, d, end]),
        (2, [0, 1, 2], [3] * 3),
    ]
    paths = [(*prefix, a, b), (*prefix, a, c), (*prefix, d), (end, end + 1, end + 2)]
    n_far, far = _far_positions(regime, windows, max_length)
    if far:
        items.append((n_far, far, [len(far)] * len(far)))
        paths.append(tuple(range(end + 3, end + 3 + len(far))))
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
    ids = tokens[torch.arange(start) % len(tokens)][None]
    return Sample(ids, layout, tuple((0, path) for path in paths))


def _far_positions(
    regime: Regime, windows: Sequence[int | None], max_length: int
) -> tuple[int, list[int]]:
    """``(prefix length, positions)`` around borders beyond the near item; none if there are none."""
    marks = {regime.sink, *(window for window in windows if window is not None)}
    if regime.rows is not None:
        marks |= {regime.rows[0], regime.rows[1] + 1}
    for token in (regime.skip, regime.self_token, regime.hide):
        if token is not None:
            marks |= {token, token + 1}
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


def alone_sample(packed: Sample) -> Sample:
    """Each choice of a packed row alone in a row of a padded batch, and the first one once more.

    That last row is there to stay as it is, with tokens like those that are changed: in a mixture
    of experts each token's rounding depends on where the others go.
    """
    paths = choices(packed)
    n_prefix = packed.layout.n_prefix[0]
    layout = Layout.pad([(int(n_prefix[path[0]]), len(path)) for path in paths])
    places = torch.tensor(padded(paths))
    rows = tuple((row, tuple(range(len(path)))) for row, path in enumerate(paths))
    return Sample(packed.ids[0, places], layout, rows)


def choices(packed: Sample) -> list[tuple[int, ...]]:
    """The paths that :func:`alone_sample` takes apart."""
    return [path for _, path in (*packed.paths[:3], packed.paths[0])]


def padded(paths: Sequence[Sequence[int]]) -> list[list[int]]:
    """Paths of one length: the shorter ones repeat their last index."""
    longest = max(map(len, paths))
    return [[*path, *[path[-1]] * (longest - len(path))] for path in paths]


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
    """What :func:`watch` saw: each layer's attention module and weights, each module's call.

    ``keys_from``: for a layer that attends to another layer's keys and values, which layer's.
    """

    modules: dict[int, nn.Module] = field(default_factory=dict)
    weights: dict[int, Weights] = field(default_factory=dict)
    keys_from: dict[int, int] = field(default_factory=dict)
    calls: dict[nn.Module, Call] = field(default_factory=dict)


@contextmanager
def watch(handle: Handle) -> Iterator[Watch]:
    """Record every attention call of forward passes made inside, under a regime."""
    watched = Watch()
    keys: list[tuple[int, torch.Tensor]] = []

    def measure(
        attend: Any, module: nn.Module, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
    ) -> None:
        layer: int = module.layer_idx  # type: ignore[assignment]
        plan: Any = handle.plan

        def weights(query: torch.Tensor) -> torch.Tensor:
            """With value j = one-hot(j), the output at ``[query, j]`` is the weight of key j."""
            time, width = value.shape[2:]
            pieces = []
            for start in range(0, time, width):
                end = min(start + width, time)
                one_hot = torch.zeros_like(value)
                eye = torch.eye(end - start, device=value.device, dtype=value.dtype)
                one_hot[:, :, start:end, : end - start] = eye
                output = attend(module, query, key, one_hot, *args, **kwargs)[0]
                pieces.append(output[..., : end - start].transpose(1, 2))
            return torch.cat(pieces, dim=-1).float()

        real = full = weights(query)
        if plan.regime.lam != 1.0:
            with handle.use(replace(plan.regime, lam=1.0), plan.layout):
                full = weights(query)
        watched.modules[layer] = module
        watched.weights[layer] = Weights(real, full, weights(torch.zeros_like(query)))
        for other_layer, other_key in keys:
            if other_key is key:
                watched.keys_from[layer] = other_layer
        keys.append((layer, key))

    with _measuring(handle, measure), _keep_calls(handle, watched):
        yield watched
    # Only now: each copy waits for the device.
    for layer, layer_weights in watched.weights.items():
        watched.weights[layer] = Weights(*(weights.cpu() for weights in layer_weights))


class Placed(NamedTuple):
    """A plain sequence in a batch: its row, the index where it begins there, and its lengths."""

    row: int
    begin: int
    n_prefix: int
    n_total: int


@contextmanager
def watch_averages(
    handle: Handle, regime: Regime, windows: Windows, sequences: Sequence[Placed]
) -> Iterator[dict[int, torch.Tensor]]:
    """Layer -> how far each query's average is from that of what it should see: ``[batch, query]``.

    More than 1 is more than rounding: one key too many among n makes ``1 / sqrt(n)`` of an
    average's size, rounding at most 0.002 or two of the precision's last digits. Tokens of no
    sequence (padding) count as right. Raises UserError where a layer's attention asks for another
    sliding window than ``windows``, the configuration's.
    """
    errors: dict[int, torch.Tensor] = {}
    by_rule: dict[tuple[Regime, int | None], tuple[torch.Tensor, torch.Tensor]] = {}

    def measure(
        attend: Any, module: nn.Module, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
    ) -> None:
        layer: int = module.layer_idx  # type: ignore[assignment]
        _check_window(handle, layer, kwargs.get("sliding_window"), windows[layer])
        codes = _noise(value.shape[2], value.shape[3], 0, value.device).to(value.dtype)
        codes = torch.cat([torch.ones_like(codes[:, :1]), codes[:, 1:]], dim=1)
        if "dropout" in kwargs:
            kwargs["dropout"] = 0.0
        rule = regime.at_layer(layer), windows[layer]
        with torch.no_grad():
            coded = codes.expand_as(value).contiguous()
            output = attend(module, torch.zeros_like(query), key, coded, *args, **kwargs)[0].float()
            # Score sinks take a share of their own: what is left is made to sum to 1.
            average = output[..., 1:] / output[..., :1]
            if rule not in by_rule:
                by_rule[rule] = _averages(*rule, sequences, codes[:, 1:].float(), len(value))
            expected, size = by_rule[rule]
            eps = torch.finfo(value.dtype).eps
            rounding = max(2e-3, 2 * eps) - eps * math.log(regime.lam)  # log(lambda) is rounded too
            error = (average - expected[:, :, None]).norm(dim=-1).amax(-1)
            errors[layer] = error / (size * rounding)

    with _measuring(handle, measure):
        yield errors


def _averages(
    regime: Regime,
    window: int | None,
    sequences: Sequence[Placed],
    codes: torch.Tensor,
    batch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[batch, query, width]``: the average of the codes that each query sees, and its size."""
    time, width = codes.shape
    averages = codes.new_zeros(batch, time, width)
    size = codes.new_full((batch, time), math.inf)
    for row, begin, n_prefix, n_total in sequences:
        weights = torch.from_numpy(visibility(regime, n_prefix, n_total, window=window)).float()
        if regime.lam != 1.0:
            weights += (regime.lam - 1.0) * weights.triu(1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(codes.device)
        span = slice(begin, begin + n_total)
        averages[row, span] = weights @ codes[span]
        size[row, span] = (width * weights.square().sum(-1)).sqrt()
    return averages, size


def _check_window(handle: Handle, layer: int, actual: int | None, stated: int | None) -> None:
    longest = getattr(handle.decoder.config, "max_position_embeddings", None) or math.inf
    if min(actual or math.inf, longest) != min(stated or math.inf, longest):
        stated_text, actual_text = (
            f"a sliding window of {window}" if window else "no sliding window"
            for window in (stated, actual)
        )
        raise UserError(
            f"its configuration contradicts itself: by it layer {layer} has {stated_text}, but the "
            f"layer's attention asks for {actual_text}; correct sliding_window, "
            "use_sliding_window or layer_types in config.json"
        )


@contextmanager
def _measuring(handle: Handle, measure: Callable[..., None]) -> Iterator[None]:
    """Hand every attention call of this model, made under a regime, to ``measure`` as well.

    It gets the attention function and what that was called with.
    """
    name = f"bidir_{handle.implementation}"
    attend = ALL_ATTENTION_FUNCTIONS[name]

    def attend_and_measure(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if getattr(module, "_bidir_handle", None) is handle and handle.plan is not None:
            measure(attend, module, *args, **kwargs)
        return attend(module, *args, **kwargs)

    # An entry set on the instance hides the registered one, until it is deleted again.
    hidden = ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)
    ALL_ATTENTION_FUNCTIONS[name] = attend_and_measure
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]
        if hidden is not None:
            ALL_ATTENTION_FUNCTIONS[name] = hidden


@contextmanager
def _keep_calls(handle: Handle, watched: Watch) -> Iterator[None]:
    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        watched.calls[module] = Call(args, kwargs, first)

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


def hidden_states(call: Call) -> torch.Tensor:
    """What a recorded call's module was given: ``[batch, time, width]``."""
    return call.kwargs["hidden_states"] if "hidden_states" in call.kwargs else call.args[0]


def rerun_layer(watched: Watch, layer: int, hidden: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """A layer's attention output on other hidden states, ``hidden(layer)``.

    Where keys come from another layer, that one runs first, on its own other hidden states: it
    leaves them where this one finds them.
    """
    for number in (watched.keys_from.get(layer), layer):
        if number is not None:
            module = watched.modules[number]
            output = rerun(module, watched.calls[module], hidden(number))
    return output


def moved_queries(
    watched: Watch, layer: int, groups: Sequence[Sequence[int]], seed: int
) -> np.ndarray:
    """Which queries' outputs move when the tokens of a group change: bool ``[group, query]``.

    All groups are one batch, run once unchanged and once changed. Since the two runs have the
    same shapes, an output that depends on nothing changed comes out the same to the last bit;
    a last row that never changes measures how far the device keeps to that.
    """
    sizes = torch.tensor([len(group) for group in groups])
    rows = torch.arange(len(groups)).repeat_interleave(sizes)
    tokens = torch.tensor([token for group in groups for token in group])

    def unchanged(layer: int) -> torch.Tensor:
        hidden = hidden_states(watched.calls[watched.modules[layer]])
        return hidden.expand(len(groups) + 1, -1, -1).contiguous()

    def changed(layer: int) -> torch.Tensor:
        hidden = unchanged(layer)
        scale = hidden[0].float().std()  # of all tokens: a padding token's own may be zero
        noise = _noise(len(tokens), hidden.shape[-1], seed, scale.device)
        hidden[rows, tokens] = (noise * scale).to(hidden)
        return hidden

    return moved(rerun_layer(watched, layer, unchanged), rerun_layer(watched, layer, changed))[:-1]


@lru_cache(maxsize=4)
def _noise(n: int, width: int, seed: int, device: torch.device) -> torch.Tensor:
    """Random numbers from the CPU's generator, the same on every device; all layers share them."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).to(device)


def moved(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    """Where a ``[batch, time, width]`` tensor moved: bool ``[batch, time]``.

    Not a bit may differ, unless the device does not repeat itself even in the last row, where
    nothing was changed; then only what moves by clearly more than that counts.
    """
    difference = (after.float() - before.float()).abs().amax(-1)
    noise = difference[-1].max()
    return ((difference > 8 * noise) | difference.isnan()).cpu().numpy()
