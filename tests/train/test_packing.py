"""Rows hold every token once, keep samples apart, and don't depend on the number of processes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bidir_core.models.layout import allowed_and_ahead
from bidir_core.regimes import parse_regime, visibility
from bidir_core.train.packing import Packer, pack_rows
from tests.train.conftest import encoded_samples


def packer(**changes):
    given_settings = {"batch_samples": 8, "row_tokens": 80, "micro_tokens": 10_000, "seed": 3}
    return Packer(encoded_samples(), **{**given_settings, **changes})


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(100, 300))
def test_rows_hold_every_sample_once_and_fit(lengths, row_tokens):
    rows = pack_rows(np.array(lengths, dtype=np.int64), row_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= row_tokens for row in rows)


def test_a_batch_holds_the_samples_and_predicts_each_response_token_from_the_one_before():
    made = packer()
    step = made.step(1)
    (batch,) = step.batches
    chosen = made.chosen(1)
    for number, sample in enumerate(chosen):
        ids, n_prompt = made.samples.sample(sample), int(made.samples.n_prompt[sample])
        here = batch.layout.item == number
        assert batch.ids[here].tolist() == ids.tolist()
        assert batch.layout.position[here].tolist() == list(range(len(ids)))
        assert set(batch.layout.n_prefix[here].tolist()) == {n_prompt}
        is_own = batch.owner == number
        assert batch.target[is_own].tolist() == ids[n_prompt:].tolist()
        flat_ids = batch.ids.reshape(-1)
        assert flat_ids[batch.head[is_own]].tolist() == ids[n_prompt - 1 : -1].tolist()
    assert step.n_loss == len(batch.target)
    assert step.n_tokens == int((batch.layout.item >= 0).sum())


@pytest.mark.parametrize("regime", ["causal", "bidirectional", "bidirectional:sink=1,tail=2"])
def test_inside_a_packed_row_everyone_sees_what_the_regime_says_and_nobody_else(regime):
    made, parsed = packer(), parse_regime(regime)
    (batch,) = made.step(0).batches
    allowed, _ = allowed_and_ahead(batch.layout, parsed, None)
    for row in range(len(batch.ids)):
        expected = torch.eye(batch.ids.shape[1], dtype=torch.bool)  # padding sees itself
        for number in batch.layout.item[row].unique().tolist():
            if number < 0:
                continue
            places = (batch.layout.item[row] == number).nonzero()[:, 0]
            n_prefix = int(batch.layout.n_prefix[row, places[0]])
            sees = torch.from_numpy(visibility(parsed, n_prefix, len(places)))
            expected[places[:, None], places[None, :]] = sees
        assert torch.equal(allowed[row], expected)


def test_steps_are_shuffled_epochs_and_the_same_wherever_they_start():
    made = packer()
    seen = np.concatenate([made.chosen(step) for step in range(6)])
    assert sorted(seen[:24]) == list(range(24))
    assert sorted(seen[24:]) == list(range(24))
    assert list(seen[:24]) != list(seen[24:])
    assert list(packer().chosen(4)) == list(seen[32:40])
    assert list(packer(seed=4).chosen(0)) != list(seen[:8])


@pytest.mark.parametrize("prefix", ["prompt", "split"])
def test_processes_and_micro_batches_share_out_the_same_step(prefix):
    def terms(step):
        return sorted((int(o), int(t)) for b in step.batches for o, t in zip(b.owner, b.target))

    whole = packer(prefix=prefix).step(2)
    parts = [packer(prefix=prefix, process=p, n_processes=3).step(2) for p in range(3)]
    small = packer(prefix=prefix, micro_tokens=80).step(2)
    assert len(small.batches) > 1
    assert terms(whole) == terms(small) == sorted(t for part in parts for t in terms(part))
    assert {part.n_loss for part in [*parts, small]} == {whole.n_loss}


def test_prefixes_of_each_kind():
    made = packer(prefix="sample")
    (batch,) = made.step(0).batches
    inside = batch.layout.item >= 0
    assert torch.equal(batch.layout.n_prefix[inside], batch.layout.exit[inside] - _begin(batch))
    cuts = packer(prefix="split")
    chosen = cuts.chosen(0)
    n_prefix = cuts.n_prefix(0, chosen)
    total, prompt = cuts.samples.n_total[chosen], cuts.samples.n_prompt[chosen]
    assert ((n_prefix >= 1) & (n_prefix < total)).all()
    assert 0 < (n_prefix == prompt).sum() < len(chosen)
    assert (cuts.n_prefix(1, chosen) != n_prefix).any()


def _begin(batch):
    index = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    return (index - batch.layout.position)[batch.layout.item >= 0]


def test_little_padding_at_a_real_batch_size():
    made = packer(batch_samples=24, row_tokens=256)
    step = made.step(0)
    assert step.n_tokens / step.n_slots > 0.75  # one row may be left half empty
