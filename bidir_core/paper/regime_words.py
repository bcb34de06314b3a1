"""A regime in words, with its dials' numbers from the ledger."""

from __future__ import annotations

from bidir_core.paper.ledger import Entry
from bidir_core.paper.quantities import Quantities
from bidir_core.regimes import Regime, parse_regime


def regime_words(quantities: Quantities, text: str) -> str:
    """The end of the sentence "Under <regime> ..."."""
    regime = parse_regime(text)
    if regime.is_causal:
        return "every token sees itself and what precedes it"
    words = (
        "every prefix token sees the whole prefix, and a continuation token sees the prefix and "
        "the continuation up to itself"
    )
    exceptions = [phrase for phrase in _exceptions(quantities, text, regime) if phrase]
    return f"{words}, except that {'; '.join(exceptions)}" if exceptions else words


def _exceptions(quantities: Quantities, text: str, regime: Regime) -> list[str]:
    runs = [run.id for run in quantities.study.all_runs if run.regime == text]

    def dial(name: str, value: float) -> Entry:
        return quantities.ledger.add(
            f"regime/{text}/{name}", value, f"{value:g}", runs,
            statistic="dial", file="config.json", field="config.regime", dial=name,
        )  # fmt: skip

    found = []
    if regime.sink == 1:
        found.append(f"the first {dial('sink', 1)} prefix token stays causal")
    elif regime.sink:
        found.append(f"the first {dial('sink', regime.sink)} prefix tokens stay causal")
    if regime.rows is not None:
        first, last = dial("rows-first", regime.rows[0]), dial("rows-last", regime.rows[1])
        found.append(f"only prefix tokens at positions {first} to {last}, from zero, look ahead")
    if regime.skip is not None:
        found.append(
            f"the prefix token at position {dial('skip', regime.skip)}, from zero, stays causal"
        )
    if regime.self_token is not None:
        found.append(
            f"the prefix token at position {dial('self', regime.self_token)}, from zero, sees only "
            "itself"
        )
    if regime.tail:
        found.append(
            f"the last {dial('tail', regime.tail)} prefix tokens are causal and no earlier token "
            "sees them"
        )
    if regime.layers is not None:
        first, last = dial("layers-first", regime.layers[0]), dial("layers-last", regime.layers[1])
        found.append(f"layers other than {first} to {last}, from zero, are causal")
    if regime.lam != 1:
        found.append(f"look-ahead scores get the logarithm of {dial('lambda', regime.lam)} added")
    return found
