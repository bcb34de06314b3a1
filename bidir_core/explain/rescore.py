"""Score an item again, its prompt perhaps edited, with some layers or prompt tokens left causal.

For trying things by hand: three readings at once, causal, as a regime says, and as the regime says
but for what is left causal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import Encoder, check_lengths
from bidir_core.data.items import Item
from bidir_core.explain.variants import Rule, Variant, VariantScorer
from bidir_core.explain.why_search import pieces, short
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import CAUSAL, Regime

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
    by_variant = {scored.variant: scored.ll for scored in scorer.score([causal, opened, changed])}
    names = ("causal", "regime", "changed")
    return {
        "ll": {name: short(by_variant[number]) for number, name in enumerate(names)},
        "pieces": pieces(encoded.contexts[0], encoded.prefixes[0]),
        "n_prefix": n_prefix,
    }
