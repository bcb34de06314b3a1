"""A fine-tune that was killed and resumed ends bit-equal to one that was not."""

import errno
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.common.settings import command_line
from bidir_core.runs.curve import read_curve
from bidir_core.runs.run import Run
from bidir_core.train import checkpoints
from bidir_core.train.config import OBJECTIVES, FinetuneConfig
from bidir_core.train.finetune import resume_finetune, run_finetune
from bidir_core.train.loop import Stopped, Trainer
from tests.factory import until
from tests.launching import start_several


def config(tiny_folder, jsonl, tmp_path, **changes) -> FinetuneConfig:
    given: dict[str, Any] = {"model": str(tiny_folder), "objective": "3B", "data": str(jsonl)}
    given |= {"steps": 14, "batch_samples": 6, "max_tokens": 64, "lr": 1e-3, "warmup_steps": 3}
    given |= {"decontaminate": False, "checkpoint_every": 4, "log_every": 3, "device": "cpu"}
    return FinetuneConfig(**given | {"runs_dir": str(tmp_path / "runs"), **changes})


def weights(run: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in (run / "final").glob("*.safetensors")}


def curve(run: Path) -> list[dict]:
    """Without what depends on the clock."""
    clock = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_curve(run)]


class Killed(BaseException):
    """Nothing in the program catches it: the run is left as a kill would leave it."""


def killed_at(step: int, settings: FinetuneConfig, monkeypatch) -> Path:
    """The folder of a run that was killed in front of this step."""
    folder = Path(settings.runs_dir) / "stage" / "killed"
    train_step = Trainer.train_step

    def dying(self, made):
        if self.counters.step == step:
            raise Killed
        train_step(self, made)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", dying)
        with pytest.raises(Killed):
            run_finetune(settings, folder=folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "distill", "causal_anchor": 0.5, "over_long": "truncate", "max_tokens": 30},
        {"method": "lora", "lora_dropout": 0.3, "gradient_checkpointing": True},
        {"micro_tokens": 64, "weight_decay": 0.1},
    ],
    ids=["3B", "distil", "lora with dropout", "micro-batches"],
)
def test_resumed_is_bit_equal(changes, tiny_folder, jsonl, whole, tmp_path, monkeypatch):
    settings = config(tiny_folder, jsonl, tmp_path, **changes)
    whole = run_finetune(settings) if changes else whole
    kill_step = int(np.random.default_rng().integers(5, 14))
    killed = killed_at(kill_step, settings, monkeypatch)
    assert checkpoints.newest(killed)[0] == (kill_step // 4) * 4
    assert Run(killed).state != "done"
    assert resume_finetune(killed, {}) == killed
    assert Run(killed).state == "done"
    assert weights(killed) == weights(whole), f"killed before step {kill_step + 1}"
    assert curve(killed) == curve(whole)
    assert not (killed / "checkpoints").exists()


def test_when_the_main_process_of_two_dies_the_other_names_it(tiny_folder, jsonl, tmp_path):
    settings = config(tiny_folder, jsonl, tmp_path, steps=100_000, log_every=1)
    words = [*command_line("finetune", settings).split()[3:], OBJECTIVES["3B"].flag]
    first, other = start_several(2, partial(main, words), tmp_path, "--multi_gpu")
    (curve,) = until(lambda: list(tmp_path.glob("runs/*/*/curve.jsonl")))
    first.kill()
    other.join(300)
    said = (tmp_path / "said1.txt").read_text()
    assert other.exitcode == 1, said
    assert f"error: process 0 of 2 (pid {first.pid} on " in said
    assert Run(curve.parent).state == "lost"


def test_sigterm_leaves_a_checkpoint_and_says_cancelled(
    tiny_folder, jsonl, whole, tmp_path, monkeypatch
):
    settings = config(tiny_folder, jsonl, tmp_path, checkpoint_every=0)
    train_step = Trainer.train_step

    def signalled(self, made):
        if self.counters.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        train_step(self, made)

    folder = tmp_path / "runs" / whole.parent.name / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", signalled)
        with pytest.raises(Stopped, match="SIGTERM after step 7"):
            run_finetune(settings, folder=folder)
    assert Run(folder).state == "cancelled"
    assert "SIGTERM" in Run(folder).error
    assert checkpoints.newest(folder)[0] == 7
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resume_finetune(folder, {})
    assert weights(folder) == weights(whole)


def test_a_full_disk_is_said_and_the_run_goes_on_later(
    tiny_folder, jsonl, whole, tmp_path, monkeypatch
):
    settings = config(tiny_folder, jsonl, tmp_path)
    folder = tmp_path / "runs" / whole.parent.name / "full"
    save_file = checkpoints.save_file

    def full(tensors, path):
        if "000008" in str(path):
            path.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(UserError, match=r"No space left.*resume goes on from step 4"):
            run_finetune(settings, folder=folder)
    assert Run(folder).state == "failed"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000004"]
    resume_finetune(folder, {})
    assert weights(folder) == weights(whole)


def test_another_identity_is_refused_by_name_and_runtime_settings_are_not(
    tiny_folder, jsonl, tmp_path, monkeypatch
):
    settings = config(tiny_folder, jsonl, tmp_path)
    folder = killed_at(6, settings, monkeypatch)
    with pytest.raises(UserError, match=r"--steps 20 \(the run has 14\), --lr 0.1"):
        resume_finetune(folder, {"steps": 20, "lr": 0.1, "log_every": 1})
    with jsonl.open("a") as lines:
        lines.write('{"prompt": "one more", "response": "sample"}\n')
    with pytest.raises(UserError, match="the training data changed"):
        resume_finetune(folder, {})
    jsonl.write_text("".join(jsonl.read_text().splitlines(keepends=True)[:-1]))
    resume_finetune(folder, {"log_every": 1, "checkpoint_every": 2})
    assert resume_finetune(folder, {}) == folder  # done already: harmless


# --- checkpoints alone ---------------------------------------------------------------------------


def save(run, step):
    return checkpoints.save_checkpoint(run, step, {"w": torch.full((3,), float(step))}, {"a": step})


def test_the_previous_checkpoint_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def torn(tensors, path):
        assert checkpoints.newest(tmp_path)[0] == 1
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", torn)
        with pytest.raises(Killed):
            save(tmp_path, 2)
    assert checkpoints.load_newest(tmp_path).step == 1
    save(tmp_path, 2)
    checkpoint = checkpoints.load_newest(tmp_path)
    assert (checkpoint.step, checkpoint.state["a"]) == (2, 2)
    assert checkpoint.tensors["w"].tolist() == [2.0] * 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]


@pytest.mark.parametrize("damage", ["cut", "unmarked", "torn mark", "garbage"])
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path, monkeypatch):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", lambda *a, **k: None)
        newest = save(tmp_path, 2)
    weights_file = newest / "state.safetensors"
    size = weights_file.stat().st_size
    if damage == "cut":
        os.truncate(weights_file, size - 1)
    elif damage == "garbage":
        weights_file.write_bytes(b"\xff" * size)
    elif damage == "unmarked":
        (newest / "complete.json").unlink()
    else:
        (newest / "complete.json").write_text('{"state.safet')
    assert checkpoints.load_newest(tmp_path).step == 1


def test_nothing_to_resume_from_starts_over(tiny_folder, jsonl, whole, tmp_path, monkeypatch):
    settings = config(tiny_folder, jsonl, tmp_path, checkpoint_every=0)
    folder = killed_at(9, settings, monkeypatch)
    resume_finetune(folder, {})
    assert weights(folder) == weights(whole)
    assert curve(folder) == curve(whole)


def test_a_loss_that_blows_up_is_said_and_not_saved(tiny_folder, jsonl, tmp_path):
    settings = config(
        tiny_folder, jsonl, tmp_path, lr=1e30, clip=0.0, checkpoint_every=1, log_every=3
    )
    with pytest.raises(UserError, match=r"not finite at step \d+; .*lower --lr"):
        run_finetune(settings, folder=tmp_path / "runs" / "x" / "20260101-000000")
    assert Run(tmp_path / "runs" / "x" / "20260101-000000").state == "failed"


def test_a_relative_model_and_data_are_found_from_another_folder(
    tiny_folder, jsonl, whole, tmp_path, monkeypatch
):
    settings = config(tiny_folder, jsonl, tmp_path)
    monkeypatch.chdir(tiny_folder.parent)
    data = os.path.relpath(jsonl)
    relative = config(tiny_folder.name, data, tmp_path)
    assert (relative.model, relative.data) == (settings.model, settings.data)
    folder = killed_at(6, relative, monkeypatch)
    # As the same words, which name the same things.
    resume_finetune(folder, {"model": tiny_folder.name, "data": data, "steps": 14})
    assert weights(folder) == weights(whole)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--model {tiny_folder.name} "):  # nothing here
        resume_finetune(folder, {"model": tiny_folder.name})
