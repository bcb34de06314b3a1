"""Leakage safety and the training probe, on the real training step with packed batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bidir_core.common.errors import UserError
from bidir_core.models.attention import Plan, install
from bidir_core.models.families import tiny_loaded, tiny_model
from bidir_core.regimes import CAUSAL, parse_regime
from bidir_core.train.config import OBJECTIVES
from bidir_core.train.losses import loss_terms, passes
from bidir_core.train.packing import Packer
from bidir_core.train.probe import run_training_probe
from bidir_core.train.student import Student, add_lora, frozen_copy
from tests.train.conftest import encoded_samples


def student_of(family="llama", **changes) -> Student:
    loaded = tiny_loaded(family, **changes)
    loaded.model.train()
    return Student(loaded.model, loaded.handle)


def batch_for(code, n=6):
    packer = Packer(
        encoded_samples(),
        batch_samples=n,
        row_tokens=80,
        micro_tokens=10_000,
        seed=0,
        prefix=OBJECTIVES[code].prefix,
    )
    (batch,) = packer.step(0).batches
    assert len(batch.ids) < n  # samples do share rows
    return batch


def terms_of(student, batch, code, base=None, anchor=0.0, regime=None):
    objective = OBJECTIVES[code]
    plan = passes(objective, objective.regime(regime), anchor)
    return [losses.detach() for _, losses in loss_terms(student, batch, plan, base)]


def leaks(student, batch, code, **more):
    """Loss terms that move though they are at or before the perturbed token's own prediction.

    Each response token that is an input is changed in turn, with all labels held.
    """
    before = terms_of(student, batch, code, **more)
    moved = []
    flat = batch.layout.item.reshape(-1)
    behind = batch.layout.position.reshape(-1)
    n_moved = 0
    for term in range(len(batch.target)):
        own = batch.head[term] + 1  # where the predicted token is an input
        same_sample = batch.owner == batch.owner[term]
        if own >= len(flat) or flat[own] != flat[batch.head[term]]:
            continue
        ids = batch.ids.clone()
        ids.view(-1)[own] = (ids.view(-1)[own] + 1) % 256
        after = terms_of(student, batch._replace(ids=ids), code, **more)
        up_to = same_sample & (behind[batch.head] < behind[own])
        for a, b in zip(before, after):
            difference = (a - b).abs() > 0
            n_moved += int((difference & ~up_to).sum())
            moved.append(bool(difference[up_to | ~same_sample].any()))
    assert n_moved  # the perturbation does something, behind itself
    return sum(moved)


@pytest.mark.parametrize("code", ["3B", "3C"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_no_loss_term_up_to_its_own_prediction_sees_a_response_token(code, family):
    assert leaks(student_of(family), batch_for(code), code) == 0


def test_dials_do_not_leak_either():
    student, batch = student_of(), batch_for("3B")
    assert leaks(student, batch, "3B", regime="bidirectional:sink=1,lambda=0.3") == 0


def test_the_leaky_objective_fails_the_same_check():
    assert leaks(student_of(), batch_for("3A"), "3A") > 0


def test_distillation_and_its_anchor_do_not_leak():
    student = student_of()
    base = frozen_copy(student)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    assert leaks(student, batch_for("distill"), "distill", base=base, anchor=0.5) == 0


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize(
    "regime",
    [
        "causal",
        "bidirectional",
        "bidirectional:sink=1",
        "bidirectional:tail=1",
        "bidirectional:layers=1-2",
        "bidirectional:lambda=0.003",
        "bidirectional:rows=1-2",
        "bidirectional:self=0",
        "bidirectional:hide=0",
        "bidirectional:hide=1,layers=2-",
    ],
)
def test_the_probe_passes_what_is_in_force(family, regime):
    parsed = parse_regime(regime)
    code = "3C" if parsed.is_causal else "3B"
    probe = run_training_probe(student_of(family), batch_for(code), parsed, leaky=False)
    assert probe.passed, probe
    assert probe.checks[0].name == ("stays causal" if parsed.is_causal else "looks ahead")


def test_the_probe_passes_with_lora_and_gradient_checkpointing():
    model = tiny_model("llama")
    wrapped = add_lora(model, rank=2, alpha=4, dropout=0.1)
    wrapped.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped.enable_input_require_grads()
    student = Student(wrapped, install(wrapped, "sdpa"))
    wrapped.train()
    probe = run_training_probe(student, batch_for("3B"), parse_regime("bidirectional"), leaky=False)
    assert probe.passed, probe


def test_the_probe_knows_the_leaky_objective():
    probe = run_training_probe(
        student_of(), batch_for("3A"), parse_regime("bidirectional"), leaky=True
    )
    assert probe.passed, probe
    assert [check.name for check in probe.checks] == ["looks ahead", "samples apart"]


class MaskDroppedInTraining(Plan):
    """The mutant: whatever is asked for, training attends causally."""

    def __init__(self, regime, layout, edit=None):
        super().__init__(CAUSAL, layout, edit)


def test_a_mask_that_is_dropped_in_training_fails_the_probe(monkeypatch):
    student, batch = student_of(), batch_for("3B")
    monkeypatch.setattr("bidir_core.models.attention.Plan", MaskDroppedInTraining)
    probe = run_training_probe(student, batch, parse_regime("bidirectional"), leaky=False)
    assert not probe.passed
    with pytest.raises(UserError, match="looks ahead"):
        probe.require()


def test_a_control_that_looks_ahead_fails_the_probe(monkeypatch):
    class NeverCausal(Plan):
        def __init__(self, regime, layout, edit=None):
            super().__init__(parse_regime("bidirectional"), layout, edit)

    student, batch = student_of(), batch_for("3C")
    monkeypatch.setattr("bidir_core.models.attention.Plan", NeverCausal)
    probe = run_training_probe(student, batch, CAUSAL, leaky=False)
    assert not probe.passed
    assert probe.checks[0].name == "stays causal"


def test_samples_that_see_each_other_fail_the_probe(monkeypatch):
    class OneBigItem(Plan):
        def __init__(self, regime, layout, edit=None):
            row = torch.zeros_like(layout.item)
            time = torch.full_like(layout.exit, layout.item.shape[1])
            one = type(layout)(row, layout.position, layout.n_prefix, time)
            super().__init__(regime, one, edit)

    student, batch = student_of(), batch_for("3B")
    monkeypatch.setattr("bidir_core.models.attention.Plan", OneBigItem)
    probe = run_training_probe(student, batch, parse_regime("bidirectional"), leaky=False)
    assert "samples apart" in [check.name for check in probe.checks if not check.passed]


@pytest.mark.parametrize("regime", ["bidirectional:hide=0", "bidirectional:hide=1,layers=2-"])
def test_a_token_that_is_not_hidden_in_training_fails_the_probe(monkeypatch, regime):
    class NothingHidden(Plan):
        def __init__(self, regime, layout, edit=None):
            super().__init__(replace(regime, hide=None), layout, edit)

    student, batch = student_of(), batch_for("3B")
    monkeypatch.setattr("bidir_core.models.attention.Plan", NothingHidden)
    probe = run_training_probe(student, batch, parse_regime(regime), leaky=False)
    assert [check.name for check in probe.checks if not check.passed] == ["hides the token"]


def test_nothing_trains_under_a_causal_ablation():
    for code in OBJECTIVES:
        with pytest.raises(UserError, match="causal"):
            OBJECTIVES[code].regime("causal:hide=0")


def test_the_probe_refuses_a_regime_that_changes_nothing():
    with pytest.raises(UserError, match="this would be causal training"):
        run_training_probe(
            student_of(), batch_for("3B"), parse_regime("bidirectional:sink=500"), leaky=False
        )
