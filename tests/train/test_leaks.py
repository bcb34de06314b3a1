"""Leakage safety and the training probe, on the real training step with packed batches."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from bidir_core.common.errors import UserError
from bidir_core.models.attention import Plan, install
from bidir_core.models.families import tiny_loaded, tiny_model
from bidir_core.models.layout import Layout
from bidir_core.models.probe_measure import Placed, watch_averages
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
    assert probe.checks[1].name == ("stays causal" if parsed.is_causal else "looks ahead")


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
    assert [check.name for check in probe.checks] == ["every layer", "looks ahead", "samples apart"]


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


class OnlyTheFirstLayer(Plan):
    """Three of four layers stay causal; what the first one mixes moves all the others."""

    def mask(self, layer, *args, **kwargs):
        if layer == 0:
            return super().mask(layer, *args, **kwargs)
        return Plan(CAUSAL, self.layout).mask(layer, *args, **kwargs)


class CausalForSeveralRows(Plan):
    def __init__(self, regime, layout, edit=None):
        super().__init__(regime if layout.shape[0] == 1 else CAUSAL, layout, edit)


class LastRowCausal(Plan):
    def mask(self, layer, *args, **kwargs):
        mask = super().mask(layer, *args, **kwargs).clone()
        mask[-1] = Plan(CAUSAL, self.layout).mask(layer, *args, **kwargs)[-1]
        return mask


class LastRowLeaks(Plan):
    """One token of the last row sees one response token too many, in one layer."""

    def mask(self, layer, *args, **kwargs):
        mask = super().mask(layer, *args, **kwargs).clone()
        if layer == 3:
            last = int(self.layout.exit[-1, 0]) - 1  # of the row's first sample
            mask[-1, :, last - 1, last] = 0
        return mask


@pytest.mark.parametrize(
    ("mutant", "layer"),
    [(OnlyTheFirstLayer, 1), (CausalForSeveralRows, 0), (LastRowCausal, 0), (LastRowLeaks, 3)],
)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_every_layer_and_every_row_of_the_batch_is_asked(monkeypatch, family, mutant, layer):
    student, batch = student_of(family), batch_for("3B")
    assert len(batch.ids) > 2
    monkeypatch.setattr("bidir_core.models.attention.Plan", mutant)
    probe = run_training_probe(student, batch, parse_regime("bidirectional"), leaky=False)
    assert f"in layer {layer} token" in failure_of(probe, "every layer")


def failure_of(probe, name):
    (check,) = [check for check in probe.checks if check.name == name and not check.passed]
    return check.detail


def test_a_layer_that_goes_its_own_way_in_training_fails_the_probe():
    student = student_of()
    module = student.decoder.layers[2].self_attn
    module.config = copy.deepcopy(module.config)
    module.config._attn_implementation_internal = "sdpa"
    probe = run_training_probe(student, batch_for("3B"), parse_regime("bidirectional"), leaky=False)
    assert "layer 2 attended without asking" in failure_of(probe, "every layer")


def test_what_is_wrong_beside_the_mask_is_named():
    regime, batch = parse_regime("bidirectional"), batch_for("3B")
    student = student_of()
    student.decoder.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinite, such as in model\.layers\.1\.mlp"):
        run_training_probe(student, batch, regime, leaky=False)
    windows = student_of("mistral", layer_types=["full_attention"] * 4)
    with pytest.raises(UserError, match="configuration contradicts itself"):
        run_training_probe(windows, batch, regime, leaky=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_total", [40, 700])
def test_one_key_too_many_shows_and_rounding_does_not(dtype, n_total):
    """Also among hundreds of keys, and in half precision."""
    loaded = tiny_loaded(dtype=dtype, head_dim=64, max_position_embeddings=1024)
    regime, layout = parse_regime("bidirectional"), Layout.pad([(n_total - 5, n_total)])
    ids = torch.arange(n_total)[None] % 250

    def worst(edit):
        item = Placed(0, 0, n_total - 5, n_total)
        with (
            torch.no_grad(),
            watch_averages(loaded.handle, regime, [None] * 4, [item]) as errors,
            loaded.handle.use(regime, layout) as plan,
        ):
            edit(plan.mask(1, None, dtype, last=n_total))
            loaded.handle.decoder(input_ids=ids, position_ids=layout.position, use_cache=False)
        return max(float(error.max()) for error in errors.values())

    assert worst(lambda mask: None) < 0.6

    def leak(mask):
        mask[0, 0, n_total - 2, n_total - 1] = 0

    assert worst(leak) > 1.5


def test_a_control_that_looks_ahead_fails_the_probe(monkeypatch):
    class NeverCausal(Plan):
        def __init__(self, regime, layout, edit=None):
            super().__init__(parse_regime("bidirectional"), layout, edit)

    student, batch = student_of(), batch_for("3C")
    monkeypatch.setattr("bidir_core.models.attention.Plan", NeverCausal)
    probe = run_training_probe(student, batch, CAUSAL, leaky=False)
    assert not probe.passed
    assert probe.checks[1].name == "stays causal"


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
    assert [check.name for check in probe.checks if not check.passed] == ["every layer"]


def test_nothing_trains_under_a_causal_ablation():
    for code in OBJECTIVES:
        with pytest.raises(UserError, match="causal"):
            OBJECTIVES[code].regime("causal:hide=0")


def test_the_probe_refuses_a_regime_that_changes_nothing():
    with pytest.raises(UserError, match="this would be causal training"):
        run_training_probe(
            student_of(), batch_for("3B"), parse_regime("bidirectional:sink=500"), leaky=False
        )
