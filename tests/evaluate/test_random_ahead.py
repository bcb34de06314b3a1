"""Random look-ahead: as much of it as under a regime, and masks as a plain model would be given."""

import numpy as np
import pytest
import torch

from bidir_core.common.errors import UserError
from bidir_core.evaluate.patching import RandomAhead, RandomPlan, draw, n_ahead
from bidir_core.models.families import tiny_loaded, tiny_model
from bidir_core.models.layout import Layout
from bidir_core.regimes import BIDIRECTIONAL, parse_regime, visibility
from tests.evaluate.test_patching import score

LENGTHS = [(7, 10), (1, 3), (12, 13)]
REGIMES = ["bidirectional:sink=1", "bidirectional:layers=2-", "bidirectional:rows=0-0"]


@pytest.mark.parametrize("regime", map(parse_regime, REGIMES), ids=str)
def test_as_many_pairs_as_under_the_regime_evenly_over_the_layers(regime) -> None:
    n, n_layers = 9, 4
    seen = [draw(regime, n, n_layers, layer, seed=0) for layer in range(n_layers)]
    wanted = sum(
        np.triu(visibility(regime, n, n, layer=layer), 1).sum() for layer in range(n_layers)
    )
    assert sum(table.sum() for table in seen) == wanted == n_ahead(regime, n, n_layers)
    assert max(t.sum() for t in seen) - min(t.sum() for t in seen) <= 1
    assert not any(np.tril(table).any() for table in seen)
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], draw(regime, n, n_layers, 0, seed=1))


def by_hand(regime, ids: torch.Tensor, n_prefix: int, n_layers: int) -> torch.Tensor:
    """Logits of a plain Llama whose layers are handed their masks one by one."""
    model, n = tiny_model("llama"), ids.shape[1]
    for number, layer in enumerate(model.model.layers):
        seen = np.tril(np.ones((n, n), dtype=bool))
        seen[:n_prefix, :n_prefix] |= draw(regime, n_prefix, n_layers, number, 0)
        bias = torch.where(torch.from_numpy(seen), 0.0, torch.finfo(torch.float32).min)
        layer.self_attn.register_forward_pre_hook(
            lambda _, a, k, bias=bias: (a, k | {"attention_mask": bias[None, None]}),
            with_kwargs=True,
        )
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0]


@pytest.mark.parametrize("text", REGIMES)
def test_the_model_sees_exactly_what_was_drawn(text: str) -> None:
    regime, loaded = parse_regime(text), tiny_loaded("llama")
    random = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 250, (total,), generator=random) for _, total in LENGTHS]
    expected = [
        by_hand(regime, ids[None], n, loaded.n_layers) for ids, (n, _) in zip(rows, LENGTHS)
    ]

    def run(layout: Layout, ids: torch.Tensor) -> torch.Tensor:
        edit = RandomAhead(0)
        with torch.no_grad(), edit.use(loaded.model, loaded.handle, regime, ids, layout):
            return loaded.model(input_ids=ids, position_ids=layout.position, use_cache=False).logits

    packed = run(Layout.pack(LENGTHS), torch.cat(rows)[None])[0]
    torch.testing.assert_close(packed, torch.cat(expected), atol=1e-4, rtol=1e-4)
    padded = run(Layout.pad(LENGTHS), torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
    for row, logits in zip(padded, expected):
        torch.testing.assert_close(row[: len(logits)], logits, atol=1e-4, rtol=1e-4)


def test_all_that_there_is_drawn_is_the_regime_itself() -> None:
    loaded = tiny_loaded("gemma3")
    for drawn, plain in zip(
        score(loaded, BIDIRECTIONAL, "random=0"), score(loaded, BIDIRECTIONAL), strict=True
    ):
        np.testing.assert_allclose(drawn, plain, atol=1e-5)


def test_a_strength_cannot_be_drawn() -> None:
    layout = Layout.pack(LENGTHS)
    with pytest.raises(UserError, match="lambda"):
        RandomPlan(parse_regime("bidirectional:lambda=0.1"), layout, 4, 0)
