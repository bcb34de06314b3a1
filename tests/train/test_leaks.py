"""Leakage safety and the training probe, on the real training step with packed batches."""

import copy
from dataclasses import replace

import pytest
import torch

from bidir_core.common.errors import UserError
from bidir_core.models.attention import Plan, install
from bidir_core.models.families import tiny_loaded, tiny_model
from bidir_core.models.layout import Layout
from bidir_core.models.probe_measure import Placed, watch_averages
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, parse_regime
from bidir_core.train.config import OBJECTIVES
from bidir_core.train.losses import loss_terms, passes
from bidir_core.train.packing import Packer
from bidir_core.train.probe import run_training_probe
from bidir_core.train.student import Student, add_lora, frozen_copy
from tests.models.test_probe import sharing
from tests.train.conftest import encoded_samples


def student_of(family="llama", **changes) -> Student:
    loaded = tiny_loaded(family, **changes)
    loaded.model.train()
    return Student(loaded.model, loaded.handle)


def probe_of(student=None, code="3B", regime="bidirectional", **more):
    """The training probe's report; ``more``: whether the objective is leaky."""
    given = parse_regime(regime)
    student = student or student_of()
    return run_training_probe(student, batch_for(code), given, **{"leaky": False, **more})


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
    causal = regime == "causal"
    probe = probe_of(student_of(family), "3C" if causal else "3B", regime)
    assert probe.passed, probe
    assert probe.checks[1].name == ("stays causal" if causal else "looks ahead")


def test_the_probe_passes_with_lora_and_gradient_checkpointing():
    model = tiny_model("llama")
    wrapped = add_lora(model, rank=2, alpha=4, dropout=0.1)
    wrapped.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped.enable_input_require_grads()
    student = Student(wrapped, install(wrapped, "sdpa"))
    wrapped.train()
    probe = probe_of(student)
    assert probe.passed, probe


@pytest.mark.parametrize("kind", ["gemma3n", "gemma4"])
def test_the_probe_passes_models_that_share_keys_between_layers(kind):
    loaded = sharing(kind)
    loaded.model.train()
    for code, regime in (("3B", "bidirectional"), ("3C", "causal")):
        probe = probe_of(Student(loaded.model, loaded.handle), code, regime)
        assert probe.passed, probe


def test_the_probe_knows_the_leaky_objective():
    probe = probe_of(code="3A", leaky=True)
    assert probe.passed, probe
    assert [check.name for check in probe.checks] == ["every layer", "looks ahead", "samples apart"]


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
    student = student_of(family)
    assert len(batch_for("3B").ids) > 2
    monkeypatch.setattr("bidir_core.models.attention.Plan", mutant)
    assert f"in layer {layer} token" in failure_of(probe_of(student), "every layer")


def failure_of(probe, name):
    (check,) = [check for check in probe.checks if check.name == name and not check.passed]
    return check.detail


def test_a_layer_that_goes_its_own_way_in_training_fails_the_probe():
    student = student_of()
    module = student.decoder.layers[2].self_attn
    module.config = copy.deepcopy(module.config)
    module.config._attn_implementation_internal = "sdpa"
    probe = probe_of(student)
    assert "layer 2 attended without asking" in failure_of(probe, "every layer")


def test_what_is_wrong_beside_the_mask_is_named():
    student = student_of()
    student.decoder.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinite, such as in model\.layers\.1\.mlp"):
        probe_of(student)
    windows = student_of("mistral", layer_types=["full_attention"] * 4)
    with pytest.raises(UserError, match="configuration contradicts itself"):
        probe_of(windows)


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


def under_another(change):
    """A mutant: attends under what ``change(regime, layout)`` makes of what is asked for."""

    class Other(Plan):
        def __init__(self, regime, layout, edit=None):
            regime, layout = change(regime, layout)
            super().__init__(regime, layout, edit)

    return Other


def one_big_item(regime, layout):
    time = torch.full_like(layout.exit, layout.item.shape[1])
    return regime, replace(layout, item=torch.zeros_like(layout.item), exit=time, spans=None)


@pytest.mark.parametrize(
    ("code", "regime", "change", "failed"),
    [
        ("3B", "bidirectional", lambda r, x: (CAUSAL, x), {"every layer", "looks ahead"}),
        ("3C", "causal", lambda r, x: (BIDIRECTIONAL, x), {"every layer", "stays causal"}),
        ("3B", "bidirectional", one_big_item, {"every layer", "samples apart"}),
        *(
            ("3B", regime, lambda r, x: (replace(r, hide=None), x), {"every layer"})
            for regime in ("bidirectional:hide=0", "bidirectional:hide=1,layers=2-")
        ),
    ],
    ids=["mask dropped", "control looks ahead", "samples see each other", "not hidden", "nor here"],
)
def test_another_regime_in_training_fails_the_probe(monkeypatch, code, regime, change, failed):
    monkeypatch.setattr("bidir_core.models.attention.Plan", under_another(change))
    probe = probe_of(code=code, regime=regime)
    assert failed <= {check.name for check in probe.checks if not check.passed}
    with pytest.raises(UserError, match="nothing was trained"):
        probe.require()


def test_nothing_trains_under_a_causal_ablation():
    for code in OBJECTIVES:
        with pytest.raises(UserError, match="causal"):
            OBJECTIVES[code].regime("causal:hide=0")


def test_the_probe_refuses_a_regime_that_changes_nothing():
    with pytest.raises(UserError, match="this would be causal training"):
        probe_of(regime="bidirectional:sink=500")
