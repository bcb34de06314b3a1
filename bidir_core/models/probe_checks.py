"""The questions the probe asks: each compares a measurement with what the regime allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bidir_core.common.errors import UserError
from bidir_core.models.attention import SPLIT_FROM_TOKENS
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe_measure import (
    NEAR_PREFIX,
    Placed,
    Sample,
    Watch,
    Windows,
    alone_sample,
    choices,
    hidden_states,
    moved,
    moved_queries,
    packed_sample,
    padded,
    rerun,
    rerun_layer,
    watch,
    watch_averages,
)
from bidir_core.regimes import CAUSAL, Regime

TEXT = (
    "The river rose in the night, so Jack Quimby (the miller) moved 7 sacks of grain, 30 jugs & "
    'one box to the upper floor; "why", cried Zoe at 4:58, did he not leave by Exit 12/F? Go! '
)
HIDDEN_WEIGHT = 1e-20  # an exponential of the lowest number may be flushed to this, not to zero
CLEAR_WEIGHT = 0.05  # a key that weighs this much must show in the output, even in bf16
SOME_WEIGHT = 0.01  # and one that weighs this much in the logits
N_TOKENS = 48  # different ones, as many as a packed row with far items may take
N_LONG = 64  # of the sequence of real length: a question and its answer
PLAIN = Layout.pack([(NEAR_PREFIX, NEAR_PREFIX + 2)])  # the first choice, alone
LAST_PREFIX = NEAR_PREFIX - 1
# Which token of each row is changed in the end-to-end checks: the prefix's last one, the last
# continuation token, the first continuation token; in the last row none.
CHANGED = (LAST_PREFIX, NEAR_PREFIX + 1, NEAR_PREFIX)
Outcome = tuple[bool, str]


@dataclass(frozen=True)
class Measured:
    """What the checks work from. ``windows``: each layer's sliding window, None for none.

    ``packed`` and ``alone`` (the same choices, each by itself) are the sequences, ``packed_seen``
    and ``alone_seen`` the attention they caused under the regime, ``native`` what a plain sequence
    causes with no regime installed. ``logits_moved``: where the changes to ``alone`` moved the
    logits, bool ``[row, time]``. ``long_errors``: see
    :func:`watch_averages`, over one sequence of real length.
    """

    loaded: LoadedModel
    regime: Regime
    seed: int
    eps: float
    tiny: float
    windows: Windows
    packed: Sample
    packed_seen: Watch
    alone: Sample
    alone_seen: Watch
    native: Watch
    logits_moved: np.ndarray
    long_errors: dict[int, torch.Tensor]

    def expected(self, sample: Sample, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """``(allowed, ahead)`` of one layer by the rule, bool ``[batch, query, key]``."""
        return sample.expected(self.regime.at_layer(layer), self.windows[layer])

    def must_move(self, sample: Sample, watched: Watch, layer: int, least: float) -> np.ndarray:
        """Pairs where a changed key has to show in what the query gives: bool ``[batch, query, key]``.

        All that the rule allows, but for keys which the mask lets through and the model itself
        gives less than ``least`` of its attention: they may drown in rounding.
        """
        allowed, ahead = self.expected(sample, layer)
        weights = watched.weights[layer]
        real, flat = weights.real.amax(1).numpy(), weights.flat.amin(1).numpy()
        unmeasurable = ahead & (not self.shows(self.regime.at_layer(layer).lam))
        return allowed & ~(real < least) | allowed & ~unmeasurable & ~(flat > HIDDEN_WEIGHT)

    @cached_property
    def rounding(self) -> float:
        """The largest relative difference of two attention outputs that counts as rounding."""
        # Layers in 8 bits round their inputs, so they make much of little in every precision.
        narrow = any(weight.element_size() == 1 for weight in self.loaded.model.parameters())
        return 1e-3 if self.eps < 1e-5 and not narrow else 0.1

    def shows(self, lam: float) -> bool:
        """Whether a key at strength ``lam`` has a weight that this precision can hold."""
        return lam > 1e4 * self.tiny


def measure(loaded: LoadedModel, regime: Regime, seed: int) -> Measured:
    """Run the probe's sequences through the model.

    Raises UserError, naming the cause, for a model whose masks cannot be tested.
    """
    regime.check_layers(loaded.n_layers)
    handle = loaded.handle
    windows = layer_windows(loaded.model.config, loaded.n_layers)
    dtype = torch.finfo(next(loaded.model.parameters()).dtype)
    tokens = _tokens(loaded).roll(-seed)
    distinct = sorted({window for window in windows if window is not None})
    packed = packed_sample(tokens, regime, distinct, loaded.max_length)
    with watch(handle) as packed_seen:
        _run(loaded, handle.decoder, regime, packed.layout, packed.ids)
    alone = alone_sample(packed)
    with watch(handle) as alone_seen:
        unchanged = _run(loaded, loaded.model, regime, alone.layout, alone.ids).logits
    if unchanged.isnan().any():
        raise UserError(why_nan(loaded.model))
    changed_ids = alone.ids.clone()
    for row, index in enumerate(CHANGED):
        changed_ids[row, index] = tokens[-1 - row]
    changed = _run(loaded, loaded.model, regime, alone.layout, changed_ids).logits
    n_total = min(N_LONG, loaded.max_length)
    long_sequence = Placed(0, 0, n_total - n_total // 8, n_total)
    # Under attention ``split`` the short sequences go both ways; this one, as any of its length does.
    split = handle.splitting_from(SPLIT_FROM_TOKENS)
    with split, watch_averages(handle, regime, windows, [long_sequence]) as errors:
        layout = Layout.pack([(long_sequence.n_prefix, n_total)])
        _run(
            loaded,
            handle.decoder,
            regime,
            layout,
            tokens[torch.arange(n_total) % len(tokens)][None],
        )
    # One plain sequence, so that the model takes the fastest path it has.
    with watch(handle) as native, handle.native():
        _run(loaded, handle.decoder, CAUSAL, PLAIN, alone.ids[:1])
    return Measured(
        loaded=loaded,
        regime=regime,
        seed=seed,
        eps=dtype.eps,
        tiny=dtype.tiny,
        windows=windows,
        packed=packed,
        packed_seen=packed_seen,
        alone=alone,
        alone_seen=alone_seen,
        native=native,
        logits_moved=moved(unchanged, changed),
        long_errors=errors,
    )


def _run(loaded: LoadedModel, model: Any, regime: Regime, layout: Layout, ids: torch.Tensor) -> Any:
    layout, ids = layout.to(loaded.device), ids.to(loaded.device)
    with loaded.handle.use(regime, layout):
        return model(input_ids=ids, position_ids=layout.position, use_cache=False)


def _tokens(loaded: LoadedModel) -> torch.Tensor:
    """Ordinary text, so that the scores are those of ordinary use; but no token twice, since one
    that takes the attention of its changed twin would leave the output as it was.

    A tokenizer that knows little of the text gives few tokens: others make up for them.
    """
    n_rows = loaded.model.get_input_embeddings().weight.shape[0]
    ids = list(dict.fromkeys(loaded.tokenizer(TEXT, add_special_tokens=False)["input_ids"]))
    if ids and max(ids) >= n_rows:
        raise UserError(
            f"its tokenizer makes tokens up to {max(ids)} of plain English, but its embedding has "
            f"{n_rows} rows: the tokenizer belongs to another model"
        )
    used = set(ids)
    ids += [i for i in range(min(n_rows, N_TOKENS)) if i not in used][: N_TOKENS - len(ids)]
    return torch.tensor(ids)


def why_nan(model: torch.nn.Module) -> str:
    """Why a model computes NaN, as a sentence without its subject (the model)."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.float().isfinite().all():
            return f"its weights hold numbers that are NaN or infinite, such as in {name}"
    return (
        "it computes NaN, though its weights are finite: numbers overflow; use --dtype float32 or "
        "--dtype bfloat16"
    )


def layer_windows(config: Any, n_layers: int) -> list[int | None]:
    """Each layer's sliding window in tokens, None for full attention, as the config states it.

    Raises UserError if it states sliding layers and no window.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if not getattr(text, "use_sliding_window", True):
        window = None
    types: Sequence[str] | None = getattr(text, "layer_types", None)
    if types is None:
        return [window] * n_layers
    if window is None and "sliding_attention" in types:
        raise UserError(
            "its configuration contradicts itself: layer_types names sliding_attention, and no "
            "sliding window is set; correct sliding_window or layer_types in config.json"
        )
    return [window if kind == "sliding_attention" else None for kind in types]


def layers_covered(m: Measured) -> Outcome:
    """Every layer's attention takes its mask from the regime."""
    n_layers = m.loaded.n_layers
    missing = [layer for layer in range(n_layers) if layer not in m.packed_seen.weights]
    if missing:
        return False, f"{_list(missing, 'layer')} attended without asking for the regime"
    return True, f"all {n_layers} layers attend through the regime"


def visible_keys(m: Measured) -> Outcome:
    """Hidden keys weigh nothing; visible ones weigh something."""
    faults, pairs = [], 0
    for sample, watched in ((m.packed, m.packed_seen), (m.alone, m.alone_seen)):
        for layer, weights in watched.weights.items():
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
        for layer in m.packed_seen.modules:
            allowed = m.expected(m.packed, layer)[0][0]
            must = m.must_move(m.packed, m.packed_seen, layer, CLEAR_WEIGHT)[0]
            sees = np.stack([allowed[:, group].any(1) for group in groups])
            must = np.stack([must[:, group].any(1) for group in groups])
            moves = moved_queries(m.packed_seen, layer, groups, m.seed)
            for wrong, verb, reason in (
                (moves & ~sees, "moves", "is hidden from it"),
                (must & ~moves, "does not move", "it should see"),
            ):
                for group, query in np.argwhere(wrong)[:1]:
                    changed = " or ".join(str(token) for token in groups[group])
                    faults.append(
                        f"layer {layer}: the output at token {query} {verb} with token {changed}, "
                        f"which {reason}"
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
        measured = _against_own(weights.flat[0])[:, allowed]
        configured = np.where(ahead, log_lam, 0.0)[allowed]
        error = np.abs(measured - configured)
        if not error.max() <= max(1e-4, 4 * m.eps) + m.eps * abs(log_lam):
            worst_pair = np.unravel_index(error.argmax(), error.shape)
            faults.append(
                f"layer {layer}: a key counts {math.exp(measured[worst_pair]):.4g} times the query's "
                f"own where it should count {math.exp(configured[worst_pair[1]]):.4g} times"
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


def real_length(m: Measured) -> Outcome:
    """In a sequence of real length, too, each query sees what it should."""
    fault = fault_in_averages(m.long_errors, m.loaded.n_layers)
    if fault:
        return False, f"in a sequence of {N_LONG} tokens, {fault}"
    return True, f"in a sequence of {N_LONG} tokens every token attends to what it should"


def fault_in_averages(errors: dict[int, torch.Tensor], n_layers: int) -> str | None:
    """The first layer that :func:`watch_averages` did not see, or in which a query sees wrongly."""
    for layer in range(n_layers):
        if layer not in errors:
            return f"layer {layer} attended without asking for the regime"
        # Negated, so that a NaN is a fault.
        wrong = ~(errors[layer] <= 1)
        if wrong.any():
            row, token = wrong.nonzero()[0].tolist()
            place = f"token {token}" + (f" of row {row}" if len(wrong) > 1 else "")
            return (
                f"in layer {layer} {place} does not attend to just what it should "
                f"({int(wrong.sum())} such tokens)"
            )
    return None


def packed_choices(m: Measured) -> Outcome:
    """A choice in a packed row computes what it computes alone: it stands at the right position."""
    paths = choices(m.packed)
    places = torch.tensor(padded(paths))
    real = torch.tensor([[i < len(path) for i in range(places.shape[1])] for path in paths])

    def packed_hidden(layer: int) -> torch.Tensor:
        return hidden_states(m.packed_seen.calls[m.packed_seen.modules[layer]])[0][places]

    def difference(packed: torch.Tensor, alone: torch.Tensor) -> float:
        return _relative_error(packed[real].float(), alone[real].float())

    first_layer = min(m.packed_seen.modules)
    outputs = hidden_states(m.alone_seen.calls[m.alone_seen.modules[first_layer]])
    # Positions that are embedded: nothing but rounding comes in between.
    error = difference(packed_hidden(first_layer), outputs)
    if not error <= max(1e-4, 4 * m.eps):
        return False, f"a packed choice enters layer {first_layer} {error:.1%} off what it is alone"
    with m.loaded.handle.use(m.regime, m.alone.layout.to(m.loaded.device)):
        for layer, module in m.packed_seen.modules.items():
            outputs = rerun_layer(m.alone_seen, layer, packed_hidden)
            error = difference(m.packed_seen.calls[module].output[0][places], outputs)
            if not error <= m.rounding:
                return False, (
                    f"layer {layer}: attention of a packed choice is {error:.1%} off that of the "
                    "same choice alone; its positions are wrong, or it sees something else"
                )
    return True, "choices in a packed row attend as each does alone"


def _relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    size = reference.norm(dim=-1).clamp_min(1e-12)
    return float(((result - reference).norm(dim=-1) / size).max())


def continuation_leak(m: Measured) -> Outcome:
    """Changing a later continuation token never moves an earlier logit."""
    for row, index in enumerate(CHANGED):
        earlier = np.flatnonzero(m.logits_moved[row, :index])
        if index >= NEAR_PREFIX and len(earlier):
            return False, f"changing continuation token {index} moves logits at {_list(earlier)}"
    return True, "changing a later continuation token moves no earlier logit by a single bit"


def look_ahead(m: Measured) -> Outcome:
    """End to end, changing the last prefix token moves the logits that it may reach, no others."""
    reach = np.eye(m.alone.ids.shape[1], dtype=bool)
    must = np.zeros(len(reach), dtype=bool)
    for layer in m.alone_seen.weights:
        reach = m.expected(m.alone, layer)[0][0] @ reach
        must |= m.must_move(m.alone, m.alone_seen, layer, SOME_WEIGHT)[0, :, LAST_PREFIX]
    may, moves = reach[:, LAST_PREFIX], m.logits_moved[0]
    changing = "changing the last prefix token"
    if (moves & ~may).any():
        return False, f"{changing} moves logits out of its reach, at {_list(moves & ~may)}"
    if (must & ~moves).any():
        return False, f"{changing} does not move the logits at {_list(must & ~moves)}, which see it"
    if moves[0]:
        return True, f"{changing} moves the first token's logits, as it should"
    if may[0]:
        return True, f"{changing} may move the first token's logits, but weighs too little to show"
    return True, f"{changing} leaves the first token's logits alone, as it should"


def causal_is_native(m: Measured) -> Outcome:
    """Under the regime 'causal' each layer attends as it does with nothing installed."""
    if m.native.weights:
        return False, "the native path goes through the regime"
    worst = 0.0
    with m.loaded.handle.use(CAUSAL, PLAIN.to(m.loaded.device)):
        for layer, module in m.packed_seen.modules.items():
            call = m.native.calls[module]
            # The model's own path may run another kernel, which rounds otherwise.
            native, causal = (output[0].float() for output in (call.output, rerun(module, call)))
            error = _relative_error(causal, native)
            if not error <= m.rounding:
                return False, f"layer {layer}: causal attention is {error:.1%} off the model's own"
            worst = max(worst, error)
    return True, f"causal attention is the model's own within {worst:.2g} of its size"


CHECKS: dict[str, Callable[[Measured], Outcome]] = {
    check.__name__: check
    for check in (
        layers_covered,
        visible_keys,
        module_outputs,
        real_length,
        packed_choices,
        lambda_strength,
        continuation_leak,
        look_ahead,
        causal_is_native,
    )
}


def _against_own(weights: torch.Tensor) -> np.ndarray:
    """Log of each key's weight over that of the query's own key: ``[head, query, key]``."""
    own_key = weights.diagonal(dim1=-2, dim2=-1)[..., None]
    return (weights.log() - own_key.log()).numpy()


def _faults(layer: int, sample: Sample, pairs: np.ndarray, verb: str, key_kind: str) -> list[str]:
    indices = np.argwhere(pairs)
    if not len(indices):
        return []
    row, query, key = indices[0]
    position = sample.layout.position[row]
    return [
        f"layer {layer}: token {query} (position {position[query]}) {verb} token {key} "
        f"(position {position[key]}), {key_kind} ({len(indices)} such pairs)"
    ]


def _summary(faults: list[str]) -> str:
    suffix = f"; {len(faults) - 1} more such findings" if len(faults) > 1 else ""
    return faults[0] + suffix


def _list(selection: Sequence[int] | np.ndarray, noun: str = "token") -> str:
    """``token 3`` or ``tokens 3, 4``, from numbers or from a bool array of where."""
    numbers = np.asarray(selection)
    numbers = np.flatnonzero(numbers) if numbers.dtype == bool else numbers
    plural = "s" if len(numbers) > 1 else ""
    return f"{noun}{plural} {', '.join(map(str, numbers))}"
