"""Steps in few shapes: the same training, on tensors that stay where they are."""

from typing import Any

import pytest
import torch

from bidir_core.common.errors import UserError
from bidir_core.models.families import tiny_loaded
from bidir_core.regimes import BIDIRECTIONAL
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.finetune import make_trainable
from bidir_core.train.loop import Trainer
from bidir_core.train.losses import passes
from bidir_core.train.packing import IGNORED, Packer, TrainBatch
from bidir_core.train.replay import Replay, fill
from bidir_core.train.student import Student, frozen_copy
from tests.train.conftest import encoded_samples


def one_batch() -> TrainBatch:
    size = {"batch_samples": 6, "row_tokens": 64, "micro_tokens": 1 << 20}
    return Packer(encoded_samples(), seed=0, **size).step(0).batches[0]


def trainer_of(compile: str, **settings: Any) -> Trainer:
    loaded = tiny_loaded()
    student = Student(loaded.model.requires_grad_(True), loaded.handle)
    settings = {"objective": "3B", "steps": 4, "batch_samples": 6, "lr": 1e-2, **settings}
    config = FinetuneConfig(model="tiny", compile=compile, **settings)
    base = frozen_copy(student) if config.needs_base else None
    packer = Packer(encoded_samples(), batch_samples=6, row_tokens=64, micro_tokens=128, seed=0)
    plan = passes(config.goal, BIDIRECTIONAL, config.causal_anchor)
    return Trainer(config, student, packer, plan, base=base)


def trained(trainer: Trainer) -> dict[str, torch.Tensor]:
    with trainer._packed(0) as steps:
        for step in steps:
            trainer.train_step(step)
    return trainer.student.model.state_dict() | {"sums": trainer.sums}


@pytest.mark.parametrize("settings", [{}, {"objective": "distill", "causal_anchor": 0.5}])
def test_few_shapes_train_the_same(settings: dict[str, Any]) -> None:
    """A KL counts wherever it is taken, so that of a filled place has to be dropped."""
    plain = trained(trainer_of("none", **settings))
    filled, replayed = (
        trained(trainer_of(mode, **settings)) for mode in ("default", "reduce-overhead")
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(filled[name], tensor, rtol=1e-4, atol=2e-5)
        assert torch.equal(replayed[name], filled[name])


@pytest.mark.parametrize("how", ["none", "default", "reduce-overhead"])
def test_all_layers_of_an_adapted_model_are_given_inputs_of_one_kind(how: str) -> None:
    """The first one, behind frozen embeddings, would be compiled by itself otherwise."""
    config = FinetuneConfig(model="tiny", objective="3B", method="lora", compile=how)
    student = make_trainable(config, tiny_loaded())
    batch = one_batch()
    kinds: list[bool] = []
    for layer in student.decoder.layers:
        layer.register_forward_pre_hook(lambda _, given: kinds.append(given[0].requires_grad))
    with student.handle.use(BIDIRECTIONAL, batch.layout):
        student.hidden(batch)
    assert kinds == [how != "none", *[True] * (len(student.decoder.layers) - 1)]


def test_a_filled_batch_says_nothing_new() -> None:
    batch = one_batch()
    filled = fill(batch, rows=7, terms=100)
    n, terms = len(batch.ids), len(batch.target)
    assert (len(filled.ids) % 7, len(filled.target) % 100) == (0, 0)
    few = (terms - 1) // 8  # of which there are more than eight times as many: four times as coarse
    coarse = 4 * few
    assert (
        len(fill(batch, terms=few).target) == coarse * -(-terms // coarse) != few * -(-terms // few)
    )
    assert len(filled.ids) > n
    for name in ("item", "position", "n_prefix", "exit"):
        assert torch.equal(getattr(filled.layout, name)[:n], getattr(batch.layout, name))
    assert torch.equal(filled.ids[:n], batch.ids)
    assert (filled.layout.item[n:] == -1).all()
    assert (filled.layout.exit[n:] == torch.arange(1, filled.ids.shape[1] + 1)).all()
    assert (filled.target[terms:] == IGNORED).all()
    assert torch.equal(filled.head[:terms], batch.head)


def test_work_is_always_done_on_the_same_tensors() -> None:
    """What a recording writes to and reads from must not move, in as many places as there are shapes."""
    trainer, seen = trainer_of("reduce-overhead", steps=6), []
    gradients = [master.grad.data_ptr() for master in trainer.optimizer.masters]
    work = trainer._backward
    trainer.replay = Replay(
        lambda batch, n: (seen.append((batch, n)), work(batch, n)), trainer.device
    )
    trained(trainer)
    assert [master.grad.data_ptr() for master in trainer.optimizer.masters] == gradients
    by_shape: dict[Any, set[Any]] = {}
    for batch, n_loss in seen:
        where = batch.ids.data_ptr(), batch.layout.exit.data_ptr(), n_loss.data_ptr()
        by_shape.setdefault((batch.ids.shape, batch.target.shape), set()).add(where)
    assert all(len(where) == 1 for where in by_shape.values())
    assert len(by_shape) < len(seen)


def test_a_recording_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(UserError, match="cannot record --gradient-checkpointing"):
        FinetuneConfig(
            model="tiny", objective="3B", compile="reduce-overhead", gradient_checkpointing=True
        )
    with pytest.raises(UserError, match="--compile fast: choose one of none, default"):
        FinetuneConfig(model="tiny", objective="3B", compile="fast")


def test_older_runs_said_yes_or_no() -> None:
    for was, now in ((True, "default"), (False, "none")):
        assert FinetuneConfig(model="tiny", objective="3B", compile=was).compile == now  # type: ignore[arg-type]
