"""Rescoring by hand: what is left causal, and that both ends are what an evaluation says."""

import pytest

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import Encoder
from bidir_core.data.items import Item
from bidir_core.evaluate.scoring import score_one
from bidir_core.explain.why_search import rescore
from bidir_core.models.families import tiny_loaded
from bidir_core.regimes import parse_regime

CONTEXT, CHOICES = ("Question: where does rain come from?\nAnswer:",), (" clouds", " the sea floor")


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded("llama")


def scored(loaded, regime: str) -> list[float]:
    (encoded,) = Encoder(loaded.tokenizer).encode([Item("t", 0, "", 0, CONTEXT, CHOICES)])
    return score_one(loaded, encoded, parse_regime(regime)).ll


def tried(loaded, regime="bidirectional", **causal_parts) -> dict:
    return rescore(loaded, CONTEXT, CHOICES, parse_regime(regime), **causal_parts)


def test_the_ends_are_what_an_evaluation_says(loaded):
    ll = tried(loaded)["ll"]
    assert ll["causal"] == pytest.approx(scored(loaded, "causal"), abs=1e-3)
    assert ll["regime"] == pytest.approx(scored(loaded, "bidirectional"), abs=1e-3)
    assert ll["changed"] == ll["regime"]
    assert ll["causal"] != pytest.approx(ll["regime"], abs=1e-3)


def test_what_is_left_causal_is_what_the_dials_say(loaded):
    first = tried(loaded, causal_tokens=[0])["ll"]["changed"]
    assert first == pytest.approx(scored(loaded, "bidirectional:sink=1"), abs=1e-3)
    late = tried(loaded, causal_layers=[0])["ll"]["changed"]
    assert late == pytest.approx(scored(loaded, "bidirectional:layers=1-"), abs=1e-3)
    result = tried(loaded)
    everything = tried(loaded, causal_tokens=range(result["n_prefix"]))["ll"]
    assert everything["changed"] == pytest.approx(everything["causal"], abs=1e-3)
    assert "".join(result["pieces"]) == CONTEXT[0]


@pytest.mark.parametrize(
    ("causal_parts", "says"),
    [
        ({"causal_layers": [99]}, "layer 99 does not exist"),
        ({"causal_tokens": [-1]}, "token -1 does not exist"),
    ],
)
def test_what_does_not_exist_is_said(loaded, causal_parts, says):
    with pytest.raises(UserError, match=says):
        tried(loaded, **causal_parts)


def test_texts_that_cannot_be_scored_are_said(loaded):
    regime = parse_regime("bidirectional")
    for contexts, choices in (((), (" a",)), (("x",), ()), (("x" * 30_000,), (" a",))):
        with pytest.raises(UserError):
            rescore(loaded, contexts, choices, regime)
