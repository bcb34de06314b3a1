"""Variants of attention on one item: shared layers give what each variant gives by itself."""

from dataclasses import replace

import pytest

from bidir_core.data.encoding import Encoder
from bidir_core.data.items import Item
from bidir_core.evaluate.scoring import score_one
from bidir_core.explain.variants import Rule, VariantScorer
from bidir_core.models.families import FAMILIES, tiny_loaded
from bidir_core.regimes import CAUSAL, parse_regime

ONE = Item("mine", 3, "h", 1, ("Where does the water go?",), (" down", " down there", " up"))
TWO = Item("mine", 4, "h", 0, ("The cat because the cat", "The cat because the dog"), (" ran",) * 2)


def scored(loaded, item, regime) -> list[float]:
    """What an evaluation gives."""
    (encoded,) = Encoder(loaded.tokenizer).encode([item])
    return score_one(loaded, encoded, parse_regime(regime)).ll


def variants_of(loaded, item, variants) -> list[tuple[float, ...]]:
    return VariantScorer(loaded, Encoder(loaded.tokenizer).encode([item])[0]).score(variants)


def close(ll, expected):
    assert list(ll) == pytest.approx(list(expected), abs=1e-4)


@pytest.mark.parametrize("item", [ONE, TWO], ids=["one context", "two contexts"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_causal_again_are_the_layers_dial(family, item):
    loaded = tiny_loaded(family)
    n, opened = loaded.n_layers, parse_regime("bidirectional")
    causal, rule = Rule(CAUSAL), Rule(opened)
    variants = [(rule,) * n, (causal,) * n]
    variants += [(causal,) * k + (rule,) * (n - k) for k in range(1, n)]
    variants += [(rule,) * k + (causal,) * (n - k) for k in range(1, n)]
    variants += [(rule,) * k + (causal,) + (rule,) * (n - k - 1) for k in range(n)]
    lls = variants_of(loaded, item, variants)
    close(lls[0], scored(loaded, item, "bidirectional"))
    close(lls[1], scored(loaded, item, "causal"))
    for k in range(1, n):
        close(lls[1 + k], scored(loaded, item, f"bidirectional:layers={k}-{n - 1}"))
        close(lls[n + k], scored(loaded, item, f"bidirectional:layers=0-{k - 1}"))
    assert lls[2 * n] == lls[2], "the same variant twice is computed once"
    assert max(abs(a - b) for a, b in zip(lls[0], lls[1], strict=True)) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_a_restored_token_is_one_that_stays_causal(family):
    loaded = tiny_loaded(family)
    n, opened = loaded.n_layers, parse_regime("bidirectional")
    spans = [(0, 0), (3, 3), (0, 1), (0, 999)]
    lls = variants_of(loaded, ONE, [(Rule(opened, (span,)),) * n for span in spans])
    expected = ["bidirectional:sink=1", None, "bidirectional:sink=2", "causal"]
    for ll, regime in zip(lls, expected, strict=True):
        if regime is not None:
            close(ll, scored(loaded, ONE, regime))
    if hasattr(opened, "skip"):
        close(lls[1], scored(loaded, ONE, "bidirectional:skip=3"))
    # In a sliding window too, and beside another dial.
    strange = parse_regime("bidirectional:self=2,lambda=0.3")
    (both,) = variants_of(loaded, ONE, [(Rule(strange, ((0, 999),)),) * n])
    close(both, scored(loaded, ONE, "causal"))


def test_rows_with_rules_of_their_own_do_not_touch_each_other(monkeypatch):
    loaded = tiny_loaded("llama")
    n = loaded.n_layers
    weak = [(Rule(replace(parse_regime("bidirectional"), lam=lam)),) * n for lam in (0.1, 0.5, 0.9)]
    together = variants_of(loaded, ONE, weak)
    for lam, ll in zip((0.1, 0.5, 0.9), together, strict=True):
        close(ll, scored(loaded, ONE, f"bidirectional:lambda={lam}"))
    monkeypatch.setattr("bidir_core.explain.variants.BATCH_TOKENS", {"cpu": 1})
    for ll, expected in zip(together, variants_of(loaded, ONE, weak), strict=True):
        close(ll, expected)


def test_rules_that_let_everybody_see_the_same_are_told():
    loaded = tiny_loaded("llama")
    scorer = VariantScorer(loaded, Encoder(loaded.tokenizer).encode([ONE])[0])
    opened = parse_regime("bidirectional")
    last = len(ONE.contexts[0]) - 1
    assert scorer.sees_alike(Rule(opened, ((last, last),)), Rule(opened))
    assert not scorer.sees_alike(Rule(opened, ((0, 0),)), Rule(opened))
