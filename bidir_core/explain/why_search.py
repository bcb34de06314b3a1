"""The three questions asked of one item: which masks are scored, and what their scores say.

A *variant* says for every layer which rule its attention follows; all variants of an item are
scored together (see ``variants``). What they found comes back as plain JSON values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.common.progress import Progress
from bidir_core.data.encoding import EncodedItem, Encoder, check_lengths
from bidir_core.data.items import Item, choice_lengths
from bidir_core.evaluate.scoring import score_one
from bidir_core.explain.configs import MAX_TOKEN_SPANS
from bidir_core.explain.observe import pieces
from bidir_core.explain.variants import Rule, Variant, VariantScorer
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import CAUSAL, Regime

LAMBDA_GRID = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
LAMBDA_ROUNDS, LAMBDA_INSIDE = 2, 5  # each round narrows the bracket to a sixth, in logarithms
# Variants and scoring compute the same thing, but float32 on several CPU threads is not always the
# same from one call to the next: the embedded model was seen to move by 4e-3 nats in 180.
AGREES_NATS = 1e-2


class Measure:
    """Turns log-likelihoods into a choice, as lm-eval's acc or acc_norm does."""

    def __init__(self, encoded: EncodedItem, metric: str):
        texts = encoded.item.continuations
        lengths = choice_lengths(texts) if metric == "acc_norm" else None
        self.weights = [1.0 / length for length in lengths or [1] * len(texts)]

    def scores(self, ll: Sequence[float]) -> list[float]:
        return [value * weight for value, weight in zip(ll, self.weights, strict=True)]

    def choice(self, ll: Sequence[float]) -> int:
        scores = self.scores(ll)
        return scores.index(max(scores))

    def lead(self, ll: Sequence[float], choice: int) -> float:
        """How far ``choice`` is ahead of the best other one; negative where it is behind."""
        scores = self.scores(ll)
        return scores[choice] - max(s for c, s in enumerate(scores) if c != choice)


def investigate(
    loaded: LoadedModel,
    encoded: EncodedItem,
    regime: Regime,
    metric: str,
    report: Callable[..., None],
) -> tuple[dict[str, Any], int]:
    """All three questions. Returns the result as plain JSON values, and the tokens computed.

    ``report`` hears of progress, in masks, as :class:`Progress` tells it.
    """
    scorer = VariantScorer(loaded, encoded)
    measure = Measure(encoded, metric)
    n_layers = loaded.n_layers
    opened: Variant = tuple(Rule(regime.at_layer(layer)) for layer in range(n_layers))
    causal = Rule(CAUSAL)
    spans = _spans(scorer, encoded, opened)
    families: dict[str, list[Variant]] = {
        "ends": [(causal,) * n_layers, opened],
        "single": [(*opened[:i], causal, *opened[i + 1 :]) for i in range(n_layers)],
        "from_first": [(causal,) * (i + 1) + opened[i + 1 :] for i in range(n_layers)],
        "from_last": [opened[:i] + (causal,) * (n_layers - i) for i in range(n_layers)],
        "tokens": [
            tuple(rule._replace(restored=(span,)) for rule in opened)
            for span, looks_ahead in spans
            if looks_ahead
        ],
        "lambda": [_at_strength(opened, strength) for strength in LAMBDA_GRID],
    }
    variants = [variant for family in families.values() for variant in family]
    total = len(variants) + LAMBDA_ROUNDS * LAMBDA_INSIDE
    progress = Progress(total, unit="mask", report=report)
    in_order = iter(scorer.score(variants, progress.advance))
    ll = {name: list(islice(in_order, len(family))) for name, family in families.items()}
    _check_against_scoring(loaded, encoded, regime, ll["ends"])
    before, after = map(measure.choice, ll["ends"])

    def point(ll: Sequence[float]) -> dict[str, Any]:
        """``lead``: of the causal answer over the best other one."""
        lead = round(measure.lead(ll, before), 4)
        return {"choice": measure.choice(ll), "lead": lead, "ll": short(ll)}

    restored = iter(ll["tokens"])
    tokens = []
    for (first, last), looks_ahead in spans:
        answer = point(next(restored) if looks_ahead else ll["ends"][1])
        tokens.append({"first": first, "last": last, **answer, "looks_ahead": looks_ahead})
    grid = dict(zip(LAMBDA_GRID, map(point, ll["lambda"]), strict=True))
    grid[1.0] = point(ll["ends"][1])
    strengths = _find_lambda(scorer, opened, regime, before, grid, point, progress.advance)
    progress.advance(total - progress.done)  # rounds that were not needed count as done
    progress.close()
    context = encoded.item.gold if len(encoded.prefixes) > 1 else 0
    result = {
        "task": encoded.item.task,
        "doc_id": encoded.item.doc_id,
        "doc_hash": encoded.item.doc_hash,
        "gold": encoded.item.gold,
        "regime": str(regime),
        "metric": metric,
        "n_layers": n_layers,
        "n_prefix": len(encoded.prefixes[context]),
        "pieces": pieces(encoded.contexts[context], encoded.prefixes[context]),
        "choices": [text.strip() for text in encoded.item.continuations],
        "flips": before != after,
        "causal": point(ll["ends"][0]),
        "opened": point(ll["ends"][1]),
        "layers": {
            name: list(map(point, ll[name])) for name in ("single", "from_first", "from_last")
        },
        "tokens": tokens,
        "lambda": strengths,
    }
    return result, scorer.computed_tokens


def _spans(
    scorer: VariantScorer, encoded: EncodedItem, opened: Variant
) -> list[tuple[tuple[int, int], bool]]:
    """Ranges of prompt tokens to put back, and whether any token in each looks ahead at all."""
    n = max(len(prefix) for prefix in encoded.prefixes)
    width = math.ceil((n - 1) / (MAX_TOKEN_SPANS - 1)) if n > MAX_TOKEN_SPANS else 1
    starts = [0, *range(1, n, width)]  # the first token, which matters most often, stays by itself
    ends = [*(start - 1 for start in starts[1:]), n - 1]
    open_rule = next(rule for rule in opened if rule.regime.bidirectional)
    return [
        (span, not scorer.sees_alike(open_rule, open_rule._replace(restored=(span,))))
        for span in zip(starts, ends, strict=True)
    ]


def _at_strength(opened: Variant, strength: float) -> Variant:
    """The same regime with its look-ahead scores at ``strength`` times their lambda."""
    return tuple(
        rule._replace(regime=replace(rule.regime, lam=rule.regime.lam * strength))
        if rule.regime.bidirectional
        else rule
        for rule in opened
    )


def _find_lambda(
    scorer: VariantScorer,
    opened: Variant,
    regime: Regime,
    before: int,
    grid: Mapping[float, dict[str, Any]],
    point: Callable[[Sequence[float]], dict[str, Any]],
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """The lowest lambda at which the choice leaves the causal one, narrowed down between two.

    ``low`` still has the causal choice, ``high`` has not. ``returns``: the grid crosses more than
    once, so there is no single threshold.
    """
    points = dict(grid)
    stays = [tried["choice"] == before for tried in points.values()]
    crossings = sum(a != b for a, b in zip([True, *stays], stays, strict=False))
    low = high = None
    if not all(stays):
        strengths = list(points)
        first = stays.index(False)
        high, low = strengths[first], strengths[first - 1] if first else 0.0
        for _ in range(LAMBDA_ROUNDS if low else 0):
            ratio = (high / low) ** (1 / (LAMBDA_INSIDE + 1))
            inside = [low * ratio**step for step in range(1, LAMBDA_INSIDE + 1)]
            ll = scorer.score([_at_strength(opened, strength) for strength in inside], advance)
            points |= zip(inside, map(point, ll), strict=True)
            bracket = [low, *inside, high]
            changed = [points[strength]["choice"] != before for strength in bracket]
            flipped = changed.index(True, 1)
            low, high = bracket[flipped - 1], bracket[flipped]

    def scaled(strength: float | None) -> float | None:
        return None if strength is None else float(f"{strength * regime.lam:.6g}")

    return {
        "points": [{"lambda": scaled(strength), **points[strength]} for strength in sorted(points)],
        "low": scaled(low),
        "high": scaled(high),
        "returns": crossings > 1,
    }


def _check_against_scoring(
    loaded: LoadedModel, encoded: EncodedItem, regime: Regime, ends: Sequence[Sequence[float]]
) -> None:
    """Refuse results that do not begin and end where an evaluation does."""
    if loaded.dtype != "float32":
        return  # in 16 bits the batch's shape alone moves the numbers
    for checked, ll in zip((CAUSAL, regime), ends, strict=True):
        scored = score_one(loaded, encoded, checked).ll
        off = max(abs(a - b) for a, b in zip(scored, ll, strict=True))
        if not off <= AGREES_NATS * max(1.0, max(map(abs, scored)) / 100):
            raise UserError(
                f"{type(loaded.model).__name__} under '{checked}' gives other log-likelihoods layer by "
                f"layer than at once ({off:.2g} nats apart); its items cannot be explained"
            )


def short(values: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in values]


# Trying things by hand, the prompt perhaps edited: causal, as a regime says, and as it says but for
# layers or tokens left causal.

MOST_CHARACTERS = 20_000  # of all texts together: this is for one item, answered at once


def rescore(
    loaded: LoadedModel,
    contexts: Sequence[str],
    continuations: Sequence[str],
    regime: Regime,
    *,
    causal_layers: Sequence[int] = (),
    causal_tokens: Sequence[int] = (),
    bos: str = "auto",
) -> dict[str, Any]:
    """``ll``: natural-log likelihoods per choice under ``causal``, ``regime`` and ``changed``, the
    regime with those layers and those prompt tokens (0-based) causal. ``pieces``: the first
    context's tokens as text.

    Raises UserError for a layer or token that does not exist, and for texts that cannot be scored.
    """
    n_layers = loaded.n_layers
    regime.check_layers(n_layers)
    if sum(map(len, (*contexts, *continuations))) > MOST_CHARACTERS:
        raise UserError(f"the texts are longer than {MOST_CHARACTERS:,} characters together")
    if not continuations or len(contexts) not in (1, len(continuations)):
        raise UserError("an item has choices, and one context or one for each choice")
    item = Item("tried", 0, "", 0, tuple(contexts), tuple(continuations))
    (encoded,) = Encoder.of(loaded, bos=bos).encode([item])
    if encoded.error:
        raise UserError(f"this cannot be scored: {encoded.error}")
    check_lengths([encoded], loaded.max_length)
    n_prefix = max(len(prefix) for prefix in encoded.prefixes)
    for unit, numbers, n in (
        ("layer", causal_layers, n_layers),
        ("token", causal_tokens, n_prefix),
    ):
        if wrong := [number for number in numbers if not 0 <= number < n]:
            raise UserError(f"{unit} {wrong[0]} does not exist; {unit}s here are 0-{n - 1}")
    causal: Variant = (Rule(CAUSAL),) * n_layers
    opened: Variant = tuple(Rule(regime.at_layer(layer)) for layer in range(n_layers))
    spans = tuple((token, token) for token in sorted(set(causal_tokens)))
    changed: Variant = tuple(
        causal[layer] if layer in causal_layers else rule._replace(restored=spans)
        for layer, rule in enumerate(opened)
    )
    scorer = VariantScorer(loaded, encoded)
    ll = scorer.score([causal, opened, changed])
    names = ("causal", "regime", "changed")
    return {
        "ll": {name: short(values) for name, values in zip(names, ll, strict=True)},
        "pieces": pieces(encoded.contexts[0], encoded.prefixes[0]),
        "n_prefix": n_prefix,
    }
