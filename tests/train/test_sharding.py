"""FSDP: a model spread over two processes trains, checkpoints and ends as one process does."""

import contextlib
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bidir_core.common.errors import UserError
from bidir_core.runs.curve import read_curve
from bidir_core.runs.run import Run
from bidir_core.train import checkpoints, student
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.finetune import resume_finetune, run_finetune
from bidir_core.train.loop import Trainer
from bidir_core.train.packing import IGNORED, Packer
from tests.launching import start_several
from tests.tiny_models import save_tiny_model
from tests.train.conftest import encoded_samples, write_samples
from tests.train.test_resume import config

LORA: dict[str, Any] = {"method": "lora", "gradient_checkpointing": True}
# What is trained, beside the defaults: each in two processes and in one.
KINDS: dict[str, dict[str, Any]] = {
    "full": {"micro_tokens": 64},
    # One row: the other process has nothing of its own to do.
    "lora": LORA | {"batch_samples": 1, "dtype": "bfloat16"},
    "distil": {"objective": "distill", "causal_anchor": 0.5, "steps": 4},
}


def train_each(folder: Path, settings: dict[str, dict[str, Any]]) -> None:
    """In one of two processes: each kind; then one more that is stopped after its checkpoint, as by
    a kill, and resumed. Prints which share of the weights it held."""
    train, share = Trainer.train_step, {}

    def watched(self, step):
        weights = list(self.student.model.parameters())
        held = sum(student.own(p).numel() for p in weights)
        share["held"] = held / sum(p.numel() for p in weights)
        if self.counters.step == share.get("kill"):
            raise KeyboardInterrupt
        train(self, step)

    Trainer.train_step = watched
    for name, fields in settings.items():
        run_finetune(FinetuneConfig(**fields), folder=folder / name)
        print("\nheld", name, share["held"])
    share["kill"] = 5
    with contextlib.suppress(KeyboardInterrupt):
        run_finetune(FinetuneConfig(**settings["full"]), folder=folder / "killed")
    del share["kill"]
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        shutil.copytree(folder / "killed", folder / "left")
    torch.distributed.barrier()
    resume_finetune(folder / "killed", {})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by name: of one process, and of two that share the model."""
    root = tmp_path_factory.mktemp("sharded")
    model, data = save_tiny_model(root / "model"), write_samples(root / "samples.jsonl")
    settings = {
        name: vars(config(model, data, root, **{"steps": 6, **more}))
        for name, more in KINDS.items()
    }
    for name, fields in settings.items():
        run_finetune(FinetuneConfig(**fields), folder=root / "one" / name)
    (root / "two").mkdir()
    work = partial(train_each, root / "two", settings)
    started = start_several(2, work, root, "--use_fsdp", "--fsdp_version", "2")
    for process in started:
        process.join(600)
    said = (root / "said0.txt").read_text()
    assert [process.exitcode for process in started] == [0, 0], said[-3000:]
    held = [line.rsplit(" ", 1) for line in said.splitlines() if line.startswith("held")]
    return root, {name.removeprefix("held "): float(share) for name, share in held}


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_that_share_a_model_train_what_one_does(name, runs):
    root, held = runs
    single, shared = root / "one" / name, root / "two" / name
    assert Run(shared).state == "done"
    assert held[name] < 0.6  # each process really has only its half
    narrow = "dtype" in KINDS[name]
    losses = [[line["loss"] for line in read_curve(run)] for run in (single, shared)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-3 if narrow else 2e-5)
    (file,) = [path.name for path in (single / "final").glob("*.safetensors")]
    a, b = (load_file(run / "final" / file) for run in (single, shared))
    assert a.keys() == b.keys()
    for key in a:
        assert torch.allclose(a[key].float(), b[key].float(), atol=1e-2 if narrow else 2e-5), key
    assert Run(single).metrics["trained_parameters"] == Run(shared).metrics["trained_parameters"]


def test_killed_and_resumed_in_two_processes_or_in_one(runs):
    root, _ = runs
    assert checkpoints.newest(root / "two" / "left")[0] == 4
    resume_finetune(root / "two" / "left", {})  # here, without FSDP
    whole = load_file(root / "one" / "full" / "final" / "model.safetensors")
    for resumed in ("killed", "left"):
        assert Run(root / "two" / resumed).state == "done"
        weights = load_file(root / "two" / resumed / "final" / "model.safetensors")
        assert all(torch.allclose(whole[key], weights[key], atol=2e-5) for key in whole)


def test_every_process_gets_as_many_micro_batches():
    samples = encoded_samples()

    def steps(n: int, even: bool):
        size = {"batch_samples": 7, "row_tokens": 64, "micro_tokens": 64, "seed": 0}
        return [
            Packer(samples, **size, process=process, n_processes=n, even=even).step(0)
            for process in range(n)
        ]

    (alone,) = steps(1, even=True)
    uneven, even = steps(3, even=False), steps(3, even=True)
    counts = [len(step.batches) for step in even]
    assert len(set(counts)) == 1
    assert sum(counts) > sum(len(step.batches) for step in uneven) == len(alone.batches)

    def targets(made):
        kept = [b.target[b.target != IGNORED] for step in made for b in step.batches]
        return sorted(torch.cat(kept).tolist())

    assert targets(even) == targets(uneven) == targets([alone])


@pytest.mark.parametrize(
    ("variables", "more", "told"),
    [
        ({"FSDP_VERSION": "1"}, {}, "--fsdp_version 1: give 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "--fsdp_offload_params true"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "--gradient-checkpointing does that"),
        ({}, {"compile": "default"}, "--compile does not go with FSDP"),
    ],
)
def test_what_fsdp_cannot_have_is_said_first(
    variables, more, told, tiny_folder, jsonl, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in {"FSDP_VERSION": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told):
        run_finetune(config(tiny_folder, jsonl, tmp_path, **more))
    assert not (tmp_path / "runs").exists()


def test_one_process_has_nothing_to_spread(tiny_folder, jsonl, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not student.wanted(config(tiny_folder, jsonl, tmp_path))
