"""The questions the probe asks: each compares a measurement with what the regime allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bidir_core.models.layout import Layout
from bidir_core.models.probe_measure import (
    Sample,
    Watch,
    moved,
    moved_queries,
    packed_sample,
    rerun,
    row_sample,
    watch,
)
from bidir_core.regimes import CAUSAL, Regime

if TYPE_CHECKING:
    from bidir_core.models.loading import LoadedModel

TEXT = (
    "The river rose in the night, so Jack Quimby (the miller) moved 7 sacks of grain, 30 jugs & "
    'one box to the upper floor; "why", cried Zoe at 4:58, did he not leave by Exit 12/F? Go! '
)
HIDDEN_WEIGHT = 1e-20  # an exponential of the lowest number may be flushed to this, not to zero
CLEAR_WEIGHT = 0.05  # a key that weighs this much must show in the output, even in bf16
SOME_WEIGHT = 0.01  # and one that weighs this much in the logits
N_PREFIX, N_TOTAL = 5, 8  # of the sequences for the end-to-end checks
CHANGED = (
    7,
    5,
    4,
)  # in rows 1 to 3: the last, the first continuation token, the last of the prefix

Outcome = tuple[bool, str]


@dataclass(frozen=True)
class Measured:
    """What the checks work from. ``windows``: each layer's sliding window, None for none.

    ``packed`` and ``rows`` are the sequences, ``packed_seen`` and ``rows_seen`` the attention
    they caused under the regime. ``logits_moved``: where the changes in ``rows`` moved the logits,
    bool ``[row, time]``.
    """

    loaded: LoadedModel
    regime: Regime
    seed: int
    eps: float
    tiny: float
    windows: Sequence[int | None]
    packed: Sample
    packed_seen: Watch
    rows: Sample
    rows_seen: Watch
    logits_moved: np.ndarray

    def expected(self, sample: Sample, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """``(allowed, ahead)`` of one layer by the rule, bool ``[batch, query, key]``."""
        return sample.expected(self.regime.at_layer(layer), self.windows[layer])

    def must_move(self, sample: Sample, seen: Watch, layer: int, least: float) -> np.ndarray:
        """Pairs where a changed key has to show in what the query gives: bool ``[batch, query, key]``.

        All that the rule allows, but for keys which the mask lets through and the model itself
        gives less than ``least`` of its attention: they may drown in rounding.
        """
        allowed, ahead = self.expected(sample, layer)
        weights = seen.weights[layer]
        real, flat = weights.real.amax(1).numpy(), weights.flat.amin(1).numpy()
        unmeasurable = ahead & (not self.shows(self.regime.at_layer(layer).lam))
        return allowed & ~(real < least) | allowed & ~unmeasurable & ~(flat > HIDDEN_WEIGHT)

    def shows(self, lam: float) -> bool:
        """Whether a key at strength ``lam`` has a weight that this precision can hold."""
        return lam > 1e4 * self.tiny


def measure(loaded: LoadedModel, regime: Regime, seed: int) -> Measured:
    """Run the probe's sequences through the model."""
    regime.check_layers(loaded.n_layers)
    windows = layer_windows(loaded.model.config, loaded.n_layers)
    dtype = torch.finfo(next(loaded.model.parameters()).dtype)
    # Ordinary text, so that the scores are those of ordinary use; but no token twice, since one
    # that takes the attention of its changed twin would leave the output as it was.
    ids = list(dict.fromkeys(loaded.tokenizer(TEXT, add_special_tokens=False)["input_ids"]))
    tokens = torch.tensor(ids).roll(-seed % len(ids))
    distinct = sorted({window for window in windows if window is not None})
    packed = packed_sample(tokens, regime, distinct, loaded.max_length)
    rows = row_sample(tokens, N_PREFIX, N_TOTAL, changes=CHANGED)
    with watch(loaded.handle) as packed_seen:
        _logits(loaded, regime, packed.layout, packed.ids)
    with watch(loaded.handle) as rows_seen:
        changed = _logits(loaded, regime, rows.layout, rows.ids)
    unchanged = _logits(loaded, regime, rows.layout, rows.ids[:1].expand_as(rows.ids))
    return Measured(
        loaded=loaded,
        regime=regime,
        seed=seed,
        eps=dtype.eps,
        tiny=dtype.tiny,
        windows=windows,
        packed=packed,
        packed_seen=packed_seen,
        rows=rows,
        rows_seen=rows_seen,
        logits_moved=moved(unchanged, changed, still_row=0),
    )


def _logits(loaded: LoadedModel, regime: Regime, layout: Layout, ids: torch.Tensor) -> torch.Tensor:
    layout, ids = layout.to(loaded.device), ids.to(loaded.device)
    with loaded.handle.use(regime, layout):
        return loaded.model(input_ids=ids, position_ids=layout.position, use_cache=False).logits


def layer_windows(config: Any, n_layers: int) -> list[int | None]:
    """Each layer's sliding window in tokens, None for full attention, as the config states it."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if not getattr(text, "use_sliding_window", True):
        window = None
    types: Sequence[str] | None = getattr(text, "layer_types", None)
    if types is None:
        return [window] * n_layers
    return [window if kind == "sliding_attention" else None for kind in types]


def layers_covered(m: Measured) -> Outcome:
    """Every layer's attention asks for the regime."""
    n_layers = m.loaded.n_layers
    missing = [layer for layer in range(n_layers) if layer not in m.packed_seen.weights]
    if missing:
        return False, f"{_name(missing, 'layer')} attended without asking for the regime"
    return True, f"all {n_layers} layers attend through the regime"


def visible_keys(m: Measured) -> Outcome:
    """Hidden keys weigh nothing; visible ones weigh something."""
    faults, pairs = [], 0
    for sample, seen in ((m.packed, m.packed_seen), (m.rows, m.rows_seen)):
        for layer, weights in seen.weights.items():
            allowed, ahead = m.expected(sample, layer)
            real, flat = weights.real.amax(1).numpy(), weights.flat.amin(1).numpy()
            must_show = allowed & (~ahead | m.shows(m.regime.at_layer(layer).lam))
            # Negated, so that a NaN is a fault.
            leaks = ~allowed & ~(np.maximum(real, flat) <= HIDDEN_WEIGHT)
            blind = must_show & ~(flat > HIDDEN_WEIGHT)
            faults += _faults(layer, sample, leaks, "reads", "a key that is hidden from it")
            faults += _faults(layer, sample, blind, "does not read", "a key it should see")
            pairs += allowed.size
    if faults:
        return False, _summary(faults)
    return True, f"attention flows for exactly the allowed of {pairs} query-key pairs"


def module_outputs(m: Measured) -> Outcome:
    """Changing a token moves the attention outputs of those who see it, and of no one else."""
    spans = m.packed.layout.spans or ()
    longest = max(end - start for start, end in spans)
    # One token of each item at a time: what crosses from item to item shows as well.
    groups = [[s + i for s, end in spans if s + i < end] for i in range(longest)]
    faults = []
    with m.loaded.handle.use(m.regime, m.packed.layout.to(m.loaded.device)):
        for layer, module in m.packed_seen.modules.items():
            allowed = m.expected(m.packed, layer)[0][0]
            must = m.must_move(m.packed, m.packed_seen, layer, CLEAR_WEIGHT)[0]
            sees = np.stack([allowed[:, group].any(1) for group in groups])
            must = np.stack([must[:, group].any(1) for group in groups])
            moves = moved_queries(module, m.packed_seen.calls[module], groups, m.seed)
            for wrong, verb, what in (
                (moves & ~sees, "moves", "is hidden from it"),
                (must & ~moves, "does not move", "it should see"),
            ):
                for group, query in np.argwhere(wrong)[:1]:
                    changed = " or ".join(str(token) for token in groups[group])
                    faults.append(
                        f"layer {layer}: the output at token {query} {verb} with token {changed}, "
                        f"which {what}"
                    )
    if faults:
        return False, _summary(faults)
    n_layers = len(m.packed_seen.modules)
    return True, f"{longest} changes in each of {n_layers} layers moved the outputs that see them"


def lambda_strength(m: Measured) -> Outcome:
    """A look-ahead key weighs lambda times what it would weigh, against the query's own key."""
    if not m.shows(m.regime.lam):
        return True, f"lambda={m.regime.lam:g} is too small for {m.loaded.dtype} to show at all"
    faults, worst = [], 0.0
    for layer, weights in m.packed_seen.weights.items():
        allowed, ahead = (mask[0] for mask in m.expected(m.packed, layer))
        log_lam = math.log(m.regime.at_layer(layer).lam)
        # With zero queries every score is the mask alone.
        found = _against_own(weights.flat[0])[:, allowed]
        stated = np.where(ahead, log_lam, 0.0)[allowed]
        error = np.abs(found - stated)
        if not error.max() <= max(1e-4, 4 * m.eps) + m.eps * abs(log_lam):
            at = np.unravel_index(error.argmax(), error.shape)
            faults.append(
                f"layer {layer}: a key counts {math.exp(found[at]):.4g} times the query's own "
                f"where it should count {math.exp(stated[at[1]]):.4g} times"
            )
        worst = max(worst, float(error.max()))
        if log_lam and ahead.any():
            # Scores are rounded to the model's precision before the softmax: take the median.
            now, before = _against_own(weights.real[0]), _against_own(weights.full[0])
            measurable = ahead & np.isfinite(now) & np.isfinite(before)
            change = now[measurable] - before[measurable]
            tolerance = max(1e-2, 16 * m.eps) + 4 * m.eps * abs(log_lam)
            if len(change) and not abs(np.median(change) - log_lam) <= tolerance:
                faults.append(
                    f"layer {layer}: look-ahead keys weigh {math.exp(np.median(change)):.4g} times "
                    f"what they weigh at lambda=1, where lambda is {m.regime.lam:g}"
                )
    if faults:
        return False, _summary(faults)
    if not m.regime.bidirectional:
        return True, "every visible key counts alike"
    return True, f"look-ahead keys count {m.regime.lam:g} times, within {worst:.1g} in logs"


def continuation_leak(m: Measured) -> Outcome:
    """Changing a later continuation token never moves an earlier logit."""
    for row, index in enumerate(CHANGED[:2], start=1):
        earlier = np.flatnonzero(m.logits_moved[row, :index])
        if len(earlier):
            return False, f"changing continuation token {index} moves logits at {_name(earlier)}"
    return True, "changing a later continuation token moves no earlier logit by a single bit"


def look_ahead(m: Measured) -> Outcome:
    """End to end, changing the last prefix token moves the logits that it may reach, no others."""
    last = N_PREFIX - 1
    reach = np.eye(m.rows.ids.shape[1], dtype=bool)
    must = np.zeros(N_TOTAL, dtype=bool)
    for layer in m.rows_seen.weights:
        reach = m.expected(m.rows, layer)[0][0] @ reach
        must |= m.must_move(m.rows, m.rows_seen, layer, SOME_WEIGHT)[0, :N_TOTAL, last]
    may, moves = reach[:N_TOTAL, last], m.logits_moved[3, :N_TOTAL]
    changing = "changing the last prefix token"
    if (moves & ~may).any():
        return False, f"{changing} moves logits out of its reach, at {_name(moves & ~may)}"
    if (must & ~moves).any():
        return False, f"{changing} does not move the logits at {_name(must & ~moves)}, which see it"
    if moves[0]:
        return True, f"{changing} moves the first token's logits, as it should"
    if may[0]:
        return True, f"{changing} may move the first token's logits, but weighs too little to show"
    return True, f"{changing} leaves the first token's logits alone, as it should"


def causal_is_native(m: Measured) -> Outcome:
    """The regime 'causal' computes what the model computes with nothing installed."""
    # The model's own path may run another kernel, which rounds otherwise; layers add that up.
    # Layers in 8 bits round their inputs, so they make much of little in every precision.
    narrow = any(weight.element_size() == 1 for weight in m.loaded.model.parameters())
    tolerance, in_logits = (1e-3, 1e-3) if m.eps < 1e-5 and not narrow else (0.1, 0.25)
    handle = m.loaded.handle
    # One plain sequence, so that the model takes the fastest path it has.
    plain, ids = Layout.pack([(N_PREFIX, N_TOTAL)]), m.rows.ids[:1, :N_TOTAL]
    with watch(handle) as native, handle.native():
        theirs = _logits(m.loaded, CAUSAL, plain, ids)[0].float()
    if native.weights:
        return False, "the native path goes through the regime"
    with handle.use(CAUSAL, plain.to(m.loaded.device)):
        for layer, module in m.packed_seen.modules.items():
            call = native.calls[module]
            own, ours = (output[0].float() for output in (call.output, rerun(module, call)))
            error = ((ours - own).norm(dim=-1) / own.norm(dim=-1).clamp_min(1e-12)).max().item()
            if not error <= tolerance:
                return False, f"layer {layer}: causal attention is {error:.1%} off the model's own"
    ours = _logits(m.loaded, CAUSAL, plain, ids)[0].float()
    error = (ours - theirs).abs().max().item()
    if not error <= in_logits * theirs.abs().max().item():
        return False, f"causal logits differ from the model's own by up to {error:.3g}"
    return True, f"causal logits are the model's own within {error:.2g}"


CHECKS: dict[str, Callable[[Measured], Outcome]] = {
    check.__name__: check
    for check in (
        layers_covered,
        visible_keys,
        module_outputs,
        lambda_strength,
        continuation_leak,
        look_ahead,
        causal_is_native,
    )
}


def _against_own(weights: torch.Tensor) -> np.ndarray:
    """Log of each key's weight over that of the query's own key: ``[head, query, key]``."""
    own = weights.diagonal(dim1=-2, dim2=-1)[..., None]
    return (weights.log() - own.log()).numpy()


def _faults(layer: int, sample: Sample, pairs: np.ndarray, verb: str, what: str) -> list[str]:
    found = np.argwhere(pairs)
    if not len(found):
        return []
    row, query, key = found[0]
    position = sample.layout.position[row]
    return [
        f"layer {layer}: token {query} (position {position[query]}) {verb} token {key} "
        f"(position {position[key]}), {what} ({len(found)} such pairs)"
    ]


def _summary(faults: list[str]) -> str:
    more = f"; {len(faults) - 1} more such findings" if len(faults) > 1 else ""
    return faults[0] + more


def _name(which: Sequence[int] | np.ndarray, what: str = "token") -> str:
    """``token 3`` or ``tokens 3, 4``, from numbers or from a bool array of where."""
    numbers = np.asarray(which)
    numbers = np.flatnonzero(numbers) if numbers.dtype == bool else numbers
    return f"{what}{'s' * (len(numbers) > 1)} {', '.join(str(number) for number in numbers)}"
