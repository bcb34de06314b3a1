"""Losses against plain formulas, and objectives against the wrong regime."""

import pytest
import torch

from bidir_core.common.errors import UserError
from bidir_core.models.families import FAMILIES, tiny_loaded
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL
from bidir_core.train import losses
from bidir_core.train.config import OBJECTIVES
from bidir_core.train.losses import cross_entropy, in_chunks, kl_from_base, loss_terms, passes
from bidir_core.train.packing import IGNORED
from bidir_core.train.student import Student, frozen_copy
from tests.train.test_leaks import batch_for, student_of


def test_cross_entropy_is_the_log_probability_and_skips_what_is_ignored():
    logits, target = torch.randn(5, 11), torch.tensor([3, 0, IGNORED, 10, 7])
    losses = cross_entropy(logits, target)
    expected = -torch.stack([logits[i].log_softmax(0)[t] for i, t in enumerate(target.clamp(0))])
    assert torch.allclose(losses[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])
    assert losses[2] == 0


def test_kl_is_the_sum_over_the_vocabulary_with_no_gradient_into_the_base():
    base = torch.randn(4, 9, requires_grad=True)
    student = torch.randn(4, 9, requires_grad=True)
    p, q = base.softmax(-1), student.softmax(-1)
    losses = kl_from_base(base, student)
    assert torch.allclose(losses, (p * (p / q).log()).sum(-1), atol=1e-6)
    assert (losses > 0).all()
    assert kl_from_base(base, base.detach()).abs().max() < 1e-6
    losses.sum().backward()
    assert base.grad is None
    # d KL / d student logits = q - p
    assert torch.allclose(student.grad, (q - p).detach(), atol=1e-6)


def test_chunks_change_neither_losses_nor_gradients(monkeypatch):
    head = torch.nn.Linear(6, 50)
    hidden, target = torch.randn(23, 6, requires_grad=True), torch.randint(0, 50, (23,))

    def loss(h, t):
        return cross_entropy(head(h), t)

    whole = loss(hidden, target)
    whole.sum().backward()
    expected = [hidden.grad.clone(), head.weight.grad.clone()]
    hidden.grad = head.weight.grad = None
    monkeypatch.setitem(losses.HEAD_CHUNK_BYTES, "cpu", 4 * 50 * 7)  # 7 positions a chunk
    parts = in_chunks(loss, 50, hidden, target)
    parts.sum().backward()
    torch.testing.assert_close(whole, parts)
    assert torch.allclose(hidden.grad, expected[0], atol=1e-6)
    assert torch.allclose(head.weight.grad, expected[1], atol=1e-5)


def test_3b_is_the_models_own_cross_entropy_sample_by_sample():
    """Packed and gathered, the loss equals one sample at a time through the whole model."""
    student, batch = student_of(), batch_for("3B")
    plan = passes(OBJECTIVES["3B"], BIDIRECTIONAL, 0.0)
    ((_, losses),) = loss_terms(student, batch, plan)
    for number in batch.owner.unique().tolist():
        here = batch.layout.item == number
        ids = batch.ids[here][None]
        n_prefix = int(batch.layout.n_prefix[here][0])
        layout = type(batch.layout).pad([(n_prefix, ids.shape[1])])
        with student.handle.use(BIDIRECTIONAL, layout):
            logits = student.model(input_ids=ids, position_ids=layout.position).logits[0]
        expected = cross_entropy(logits[n_prefix - 1 : -1], ids[0, n_prefix:])
        assert torch.allclose(losses[batch.owner == number], expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_gives_the_models_own_logits(family):
    loaded = tiny_loaded(family)
    student = Student(loaded.model, loaded.handle)
    assert student.check_head(batch_for("3B"), BIDIRECTIONAL) < 1e-4


def test_an_unknown_change_behind_the_head_is_refused():
    loaded = tiny_loaded("llama")
    student = Student(loaded.model, loaded.handle)
    student._scale = 2.0
    with pytest.raises(UserError, match="cannot be fine-tuned"):
        student.check_head(batch_for("3B"), BIDIRECTIONAL)


def test_distillation_is_zero_under_causal_and_positive_under_the_regime():
    student = student_of()
    base = frozen_copy(student)
    batch = batch_for("distill")
    plan = passes(OBJECTIVES["distill"], BIDIRECTIONAL, 0.5)
    (main, losses), (anchor, anchored) = loss_terms(student, batch, plan, base)
    assert (main.name, anchor.name, anchor.weight) == ("loss", "anchor", 0.5)
    assert losses.mean() > 1e-3
    assert anchored.abs().max() < 1e-5
    assert anchor.regime == CAUSAL


def test_the_base_stays_as_it_was():
    student = student_of()
    base = frozen_copy(student)
    before = base.model.state_dict()["lm_head.weight"].clone()
    with torch.no_grad():
        student.head.weight += 1
    assert torch.equal(base.model.state_dict()["lm_head.weight"], before)
    assert not any(p.requires_grad for p in base.model.parameters())


@pytest.mark.parametrize(
    ("code", "regime", "words"),
    [
        ("3C", "bidirectional", "trains causally"),
        ("3B", "causal", "use --causal-train"),
        ("3A", "causal", "nothing would look ahead"),
        ("distill", "causal", "nothing would look ahead"),
    ],
)
def test_regimes_that_contradict_the_objective(code, regime, words):
    with pytest.raises(UserError, match=words):
        OBJECTIVES[code].regime(regime)


def test_every_objective_takes_dials():
    assert str(OBJECTIVES["3B"].regime("bidirectional:sink=1")) == "bidirectional:sink=1"
    assert str(OBJECTIVES["3B"].regime(None)) == "bidirectional"
    assert OBJECTIVES["3C"].regime(None).is_causal
