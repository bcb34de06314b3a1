"""Does the model really do what the regime says? Asked of the loaded model, not of the mask.

A bidirectional switch that silently stays causal, or is ignored by one layer, or leaks answers
into prompts, still gives plausible numbers. So before every stage this runs a few short sequences
through the very model, regime, precision and attention implementation that the stage will use,
and compares what flows, layer by layer and token by token, with what the regime allows. A failed
check stops the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bidir_core.probe_measure import (
    Sample,
    Watch,
    moved,
    moved_queries,
    packed_sample,
    rerun,
    row_sample,
    watch,
)
from bidir_core.regimes import CAUSAL, Regime, parse_regime

if TYPE_CHECKING:
    from bidir_core.models import LoadedModel

TEXT = (
    "The river rose in the night, so the miller moved his seven sacks of grain to the upper floor "
    "and waited by the window for the rain to stop. Why did he not leave?"
)
HIDDEN_WEIGHT = 1e-20  # an exponential of the lowest number may be flushed to this, not to zero
CLEAR_WEIGHT = 0.05  # what weighs as much as this must show in the output, even in bf16
SOME_WEIGHT = 0.01  # and this in the logits


@dataclass(frozen=True)
class Check:
    """One question asked of the model; ``detail`` is a sentence for people."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class ProbeReport:
    """The outcome of :func:`run_probe`, written to a run's ``probe.json``."""

    model: str
    fingerprint: str
    regime: str
    dtype: str
    implementation: str
    device: str
    n_layers: int
    seconds: float
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> str:
        """The failed checks in one line, empty if there are none."""
        return "; ".join(f"{c.name}: {c.detail}" for c in self.checks if not c.passed)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``probe.json``."""
        return {"schema": 1, "passed": self.passed, **asdict(self)}


def run_probe(loaded: LoadedModel, regime: Regime | str, *, seed: int = 0) -> ProbeReport:
    """Run every check on a loaded model. Raises nothing itself: an exception is a failed check.

    ``seed`` chooses where in the probe's text the tokens start, and the perturbations.
    """
    regime = parse_regime(regime)
    start = time.perf_counter()
    with torch.no_grad(), _evaluation_mode(loaded.model):
        checks = _Probe(loaded, regime, seed).checks()
    return ProbeReport(
        model=loaded.name,
        fingerprint=loaded.fingerprint,
        regime=str(regime),
        dtype=loaded.dtype,
        implementation=loaded.implementation,
        device=str(loaded.device),
        n_layers=loaded.n_layers,
        seconds=round(time.perf_counter() - start, 3),
        checks=checks,
    )


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Probe:
    """The measurements, shared by the checks."""

    def __init__(self, loaded: LoadedModel, regime: Regime, seed: int):
        self.loaded, self.regime, self.seed = loaded, regime, seed
        self.dtype = next(loaded.model.parameters()).dtype
        self.eps = torch.finfo(self.dtype).eps
        self.layers = range(loaded.n_layers)

    def checks(self) -> tuple[Check, ...]:
        """Measure, then ask; what cannot be measured has failed."""
        try:
            self._measure()
        except Exception as error:
            return (Check("runs", False, f"the model failed: {type(error).__name__}: {error}"),)
        asked: list[tuple[str, Callable[[], tuple[bool, str]]]] = [
            ("layers_covered", self._layers_covered),
            ("visible_keys", self._visible_keys),
            ("module_outputs", self._module_outputs),
            ("lambda_strength", self._lambda_strength),
            ("continuation_leak", self._continuation_leak),
            ("look_ahead", self._look_ahead),
            ("causal_is_native", self._causal_is_native),
        ]
        checks = []
        for name, ask in asked:
            try:
                checks.append(Check(name, *ask()))
            except Exception as error:
                checks.append(Check(name, False, f"failed with {type(error).__name__}: {error}"))
        return tuple(checks)

    def _measure(self) -> None:
        loaded = self.loaded
        self.regime.check_layers(loaded.n_layers)
        self.windows = layer_windows(loaded.model.config, loaded.n_layers)
        tokens = self._tokens()
        distinct = sorted({window for window in self.windows if window is not None})
        self.packed = packed_sample(tokens, self.regime, distinct, loaded.max_length)
        # Changed: the last token of all, the middle continuation token, the last prefix token.
        self.rows = row_sample(tokens, n_prefix=5, n_total=8, changes=(7, 6, 4))
        self.packed_seen, _ = self._forward(self.packed, self.regime)
        self.rows_seen, self.logits = self._forward(self.rows, self.regime)

    def _tokens(self) -> torch.Tensor:
        """Ordinary text, so that the scores are those of ordinary use; int64 ``[n]``."""
        ids = list(self.loaded.tokenizer(TEXT, add_special_tokens=False)["input_ids"])
        return torch.tensor(ids).roll(-self.seed % len(ids))

    def _forward(self, sample: Sample, regime: Regime) -> tuple[Watch, torch.Tensor]:
        layout = sample.layout.to(self.loaded.device)
        with self.loaded.handle.use(regime, layout), watch(self.loaded.handle) as seen:
            return seen, self._logits(sample.ids)

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        layout = self.rows.layout if ids.shape == self.rows.ids.shape else self.packed.layout
        position = layout.position.to(self.loaded.device)
        ids = ids.to(self.loaded.device)
        return self.loaded.model(input_ids=ids, position_ids=position, use_cache=False).logits

    def _expected(self, sample: Sample, layer: int) -> tuple[np.ndarray, np.ndarray]:
        return sample.expected(self.regime.at_layer(layer), self.windows[layer])

    def _layers_covered(self) -> tuple[bool, str]:
        missing = [layer for layer in self.layers if layer not in self.packed_seen.weights]
        if missing:
            return False, f"{_name(missing)} attended without asking for the regime"
        return True, f"all {len(self.layers)} layers attend through the regime"

    def _visible_keys(self) -> tuple[bool, str]:
        """Hidden keys weigh nothing; visible ones weigh something."""
        faults, pairs = [], 0
        for sample, seen in ((self.packed, self.packed_seen), (self.rows, self.rows_seen)):
            for layer, weights in seen.weights.items():
                allowed, ahead = self._expected(sample, layer)
                real = weights.real.amax(1).numpy()
                flat = weights.flat.amin(1).numpy()
                pairs += allowed.size
                lam = self.regime.at_layer(layer).lam
                must_show = allowed & (~ahead | self._measurable(lam))
                leaks = ~allowed & ~(np.maximum(real, flat) <= HIDDEN_WEIGHT)
                blind = must_show & ~(flat > HIDDEN_WEIGHT)
                faults += _faults(layer, sample, leaks, "reads", "a key that is hidden from it")
                faults += _faults(layer, sample, blind, "does not read", "a key it should see")
        if faults:
            return False, _summary(faults)
        return True, f"each of {pairs} query-key pairs flows exactly where the regime allows it"

    def _measurable(self, lam: float) -> bool:
        """Whether a key at strength ``lam`` has a weight that this precision can hold."""
        return lam / 100 > torch.finfo(self.dtype).tiny * 100

    def _module_outputs(self) -> tuple[bool, str]:
        """Changing a token moves the attention outputs of those who see it, and of no one else."""
        sample, seen, faults = self.packed, self.packed_seen, []
        spans = sample.layout.spans or ()
        longest = max(end - start for start, end in spans)
        groups = [[s + i for s, end in spans if s + i < end] for i in range(longest)]
        with self.loaded.handle.use(self.regime, sample.layout.to(self.loaded.device)):
            for layer, module in seen.modules.items():
                allowed, _ = self._expected(sample, layer)
                sees = np.stack([allowed[0][:, group].any(1) for group in groups])
                weights = seen.weights[layer].real.amax(1)[0].numpy()
                clearly = np.stack([(weights[:, g] >= CLEAR_WEIGHT).any(1) for g in groups]) & sees
                moves = moved_queries(module, seen.calls[module], groups, self.seed)
                if (moves & ~sees).any():
                    group, query = np.argwhere(moves & ~sees)[0]
                    faults.append(
                        f"layer {layer}: the output at token {query} moves with "
                        f"{_name(groups[group], 'token')}, which is hidden from it"
                    )
                elif (clearly & ~moves).any():
                    group, query = np.argwhere(clearly & ~moves)[0]
                    faults.append(
                        f"layer {layer}: the output at token {query} does not move with "
                        f"{_name(groups[group], 'token')}, which it should see"
                    )
        if faults:
            return False, _summary(faults)
        return (
            True,
            f"{longest} perturbations in each of {len(seen.modules)} layers moved what sees them",
        )

    def _lambda_strength(self) -> tuple[bool, str]:
        """A look-ahead key's weight is lambda times what it would be, relative to the query's own."""
        faults, worst = [], 0.0
        lam = self.regime.lam
        for layer, weights in self.packed_seen.weights.items():
            allowed, ahead = (mask[0] for mask in self._expected(self.packed, layer))
            here = self.regime.at_layer(layer).lam
            if not self._measurable(here):
                continue
            flat = _relative_to_own(weights.flat[0])[:, allowed].numpy()
            bias = np.where(ahead, math.log(here), 0.0)[allowed]
            error = float(np.abs(flat - bias).max())
            tolerance = max(1e-4, 4 * self.eps) + self.eps * abs(math.log(here))
            if not error <= tolerance:
                worst_at = np.unravel_index(np.abs(flat - bias).argmax(), flat.shape)
                faults.append(
                    f"layer {layer}: a key counts {math.exp(flat[worst_at]):.4g} times the "
                    f"query's own where it should count {math.exp(bias[worst_at[1]]):.4g} times"
                )
            worst = max(worst, error)
            if here != 1.0 and ahead.any():
                real = _relative_to_own(weights.real[0]) - _relative_to_own(weights.full[0])
                real = real[:, ahead]
                real = real[real.isfinite()]
                # Scores are rounded to the precision before the softmax; the median evens it out.
                if len(real) and not abs(real.median().item() - math.log(here)) <= max(
                    1e-2, 16 * self.eps, 4 * self.eps * abs(math.log(here))
                ):
                    faults.append(
                        f"layer {layer}: look-ahead keys have {math.exp(real.median()):.4g} times "
                        f"their weight at lambda=1 where lambda is {here:g}"
                    )
        if faults:
            return False, _summary(faults)
        if not self._measurable(lam):
            return True, f"lambda={lam:g} is too small for {self.loaded.dtype} to show at all"
        if self.regime.is_causal:
            return True, "every visible key counts alike"
        return True, f"look-ahead keys count {lam:g} times; worst log error {worst:.1g}"

    def _logits_moved(self) -> np.ndarray:
        """Where the logits differ from those of the same batch without changes: ``[row, time]``."""
        base = self.rows.ids[:1].expand_as(self.rows.ids)
        with self.loaded.handle.use(self.regime, self.rows.layout.to(self.loaded.device)):
            unchanged = self._logits(base)
        return moved(unchanged, self.logits, still_row=0)

    def _reach(self) -> np.ndarray:
        """Whether a token's information can reach another through all layers: ``[query, key]``."""
        reach = np.eye(self.rows.ids.shape[1], dtype=bool)
        for layer in self.layers:
            reach = self._expected(self.rows, layer)[0][0] @ reach
        return reach

    def _continuation_leak(self) -> tuple[bool, str]:
        moves = self._logits_moved()
        for row, index in ((1, 7), (2, 6)):
            early = np.flatnonzero(moves[row, :index])
            if len(early):
                return False, (
                    f"changing continuation token {index} moves the logits of earlier "
                    f"{_name(early, 'token')}"
                )
        return True, "changing a later continuation token moves no earlier logit, to the last bit"

    def _look_ahead(self) -> tuple[bool, str]:
        """End to end: changing the last prefix token moves exactly the logits that it may reach."""
        moves, reach = self._logits_moved()[3, :8], self._reach()[:8, 4]
        wrong = np.flatnonzero(moves & ~reach)
        if len(wrong):
            return (
                False,
                f"the last prefix token moves the logits of {_name(wrong, 'token')}, which it should not reach",
            )
        weight = np.stack(
            [w.real.amax(1)[0, :8, 4].numpy() for w in self.rows_seen.weights.values()]
        )
        still = np.flatnonzero(~moves & reach & (weight.max(0) >= SOME_WEIGHT))
        if len(still):
            return (
                False,
                f"the last prefix token does not move the logits of {_name(still, 'token')}, which it should reach",
            )
        if moves[0]:
            return (
                True,
                "changing the last prefix token moves the first token's logits, as it should",
            )
        if reach[0]:
            return (
                True,
                "the last prefix token may reach the first one, but weighs too little to show",
            )
        return (
            True,
            "changing the last prefix token leaves the first token's logits alone, as it should",
        )

    def _causal_is_native(self) -> tuple[bool, str]:
        """The regime 'causal' computes what the model computes without any of this installed."""
        loose = 1e-3 if self.eps < 1e-5 else 0.1
        layout = self.rows.layout.to(self.loaded.device)
        real = (self.rows.layout.item >= 0).to(self.loaded.device)
        with watch(self.loaded.handle) as native, self.loaded.handle.native():
            native_logits = self._logits(self.rows.ids)
        if native.weights:
            return False, "the native path goes through the regime"
        with self.loaded.handle.use(CAUSAL, layout):
            for layer, module in self.packed_seen.modules.items():
                theirs = native.calls[module].output.float()[real]
                ours = rerun(module, native.calls[module]).float()[real]
                error = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-12)).max()
                if not error <= loose:
                    return False, (
                        f"layer {layer}: causal attention differs from the model's own by {error:.1%}"
                    )
            logits = self.logits if self.regime.is_causal else self._logits(self.rows.ids)
        error = (logits.float() - native_logits.float())[real].abs().max()
        if not error <= loose * native_logits.float()[real].abs().max():
            return False, f"causal logits differ from the model's own by up to {error:.3g}"
        return True, f"causal logits are the model's own within {error:.2g}"


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


def _relative_to_own(weights: torch.Tensor) -> torch.Tensor:
    """Log of each key's weight over that of the query itself: ``[head, query, key]``."""
    own = weights.diagonal(dim1=-2, dim2=-1)[..., None]
    return weights.log() - own.log()


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


def _name(numbers: Sequence[int] | np.ndarray, what: str = "layer") -> str:
    listed = ", ".join(str(number) for number in numbers)
    return f"{what} {listed}" if len(numbers) == 1 else f"{what}s {listed}"
