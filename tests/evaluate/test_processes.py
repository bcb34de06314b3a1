"""Several processes of one launch: the same run as one process makes, and no loss when one dies."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands import launch as accelerate_launch
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from hypothesis import given
from hypothesis import strategies as st

from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.common.process import ProcessLost, told_when_lost
from bidir_core.common.progress import TERMINATED
from bidir_core.evaluate import processes, run_scoring
from bidir_core.evaluate.processes import PARTS, Part, Parts, Team, share
from bidir_core.models import devices
from bidir_core.runs.run import Run
from tests.launching import launch

# Every batch takes a moment longer, so that there is something left to be killed.
SLOW = """
import os
if "LOCAL_RANK" in os.environ:
    import time
    from bidir_core.evaluate.scoring import Scorer
    begin = Scorer.begin
    Scorer.begin = lambda self, items: (time.sleep(0.3), begin(self, items))[1]
"""


def words(tiny_folder, own_items, *more: str) -> list[str]:
    line = ["eval", "--model", str(tiny_folder), "--tasks", str(own_items), "--device", "cpu"]
    return [*line, "--batch-tokens", "300", "--prefill-bidirectional", *more]


@pytest.fixture(scope="module")
def alone(tiny_folder, own_items, tmp_path_factory) -> Run:
    """The run that one process makes."""
    root = tmp_path_factory.mktemp("alone")
    assert main([*words(tiny_folder, own_items), "--runs-dir", str(root)]) == 0
    (folder,) = (root / "stage2_prefill_bidir_eval").iterdir()
    return Run(folder)


def same_run(run_a: Run, run_b: Run) -> None:
    items_a, items_b = run_a.items(), run_b.items()
    assert items_a[["task", "doc_id", "pred", "correct"]].equals(
        items_b[["task", "doc_id", "pred", "correct"]]
    )
    assert np.allclose(np.concatenate(items_a["ll"]), np.concatenate(items_b["ll"]), atol=1e-4)


def test_a_killed_process_ends_all_and_another_number_resumes_the_run(
    tiny_folder, own_items, runs_dir, alone
):
    """The main one: the other's part stays. Two that live make a run in tests/jobs/test_pipeline.py."""
    site = runs_dir.parent / "site"
    site.mkdir(parents=True)
    (site / "sitecustomize.py").write_text(SLOW)
    command = words(tiny_folder, own_items)
    started = launch(2, *command, PYTHONPATH=f"{site}:{Path(__file__).parents[2]}")
    part_file = wait_for(runs_dir, "*/*/.parts/rank1.jsonl", started)
    killed = json.loads((part_file.parents[1] / "status.json").read_text())["pid"]
    os.kill(killed, signal.SIGKILL)
    _, err = started.communicate(timeout=300)
    assert f"error: process 0 of 2 (pid {killed} on " in err
    assert started.returncode != 0
    (folder,) = (runs_dir / "stage2_prefill_bidir_eval").iterdir()
    run = Run(folder)
    assert run.state == "lost"
    recorded = {line for path in folder.rglob("*.jsonl") for line in path.read_bytes().splitlines()}
    assert 0 < len(recorded) < 60
    assert main(["eval", "--resume", run.id]) == 0  # one process now
    same_run(alone, Run(folder))


def wait_for(root: Path, pattern: str, process: subprocess.Popen[str]) -> Path:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if paths := [path for path in root.glob(pattern) if path.stat().st_size]:
            return paths[0]
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"no {pattern} appeared: {process.communicate()[1][-3000:]}")


def test_a_command_that_is_not_shared_out_says_so(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["probe", "--model", "m"]) == 2
    assert "runs in one process, not 2" in capsys.readouterr().err


def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu", "cuda", "cuda:0", "cuda:1"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert devices.choose_device("auto") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="'cuda:0' is one GPU, and each of 4 processes"):
        devices.choose_device("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="there are 2; give --num_processes 2"):
        devices.choose_device("cuda")


@given(
    batches=st.lists(st.lists(st.integers(0, 40), max_size=4), max_size=12),
    world=st.integers(1, 5),
)
def test_every_batch_goes_to_exactly_one_process(batches, world):
    weights = [1 + index % 7 for index in range(41)]
    shares = [share(batches, weights, Team(rank, world)) for rank in range(world)]
    assert sorted(map(tuple, batches)) == sorted(tuple(b) for assigned in shares for b in assigned)
    loads = [sum(weights[i] for batch in assigned for i in batch) for assigned in shares]
    heaviest = max((sum(weights[i] for i in batch) for batch in batches), default=0)
    assert max(loads) - min(loads) <= heaviest


def test_a_part_whose_process_failed_or_died_stops_the_main_one(tmp_path):
    parts = Parts(tmp_path, Team(0, 2))
    part = Part(tmp_path / PARTS, 1)
    assert parts.check()[1]["done"] == 0
    part.finish(error="out of memory")
    with pytest.raises(RuntimeError, match="process 1 of 2: out of memory"):
        parts.check()
    part._state |= {"state": "running", "pid": 2**22 + 1}
    part._write()
    with pytest.raises(RuntimeError, match="ended before its share"):
        parts.check()


def test_who_ends_one_process_is_told_from_who_ends_them_all(tmp_path):
    parts, part = Parts(tmp_path, Team(0, 2)), Part(tmp_path / PARTS, 1)

    def ended(reason: str, error: type[BaseException]) -> None:
        with pytest.raises(error), parts.asked_why():
            raise KeyboardInterrupt(reason)

    ended(TERMINATED, KeyboardInterrupt)  # the other one is still alive
    part.finish(error=TERMINATED)
    ended(TERMINATED, KeyboardInterrupt)
    part.finish(error="out of memory")
    ended(TERMINATED, ProcessLost)
    part._state |= {"state": "running", "pid": 2**22 + 1}
    part._write()
    ended(TERMINATED, ProcessLost)
    ended("", KeyboardInterrupt)  # Ctrl-C


def test_strangers_are_refused(monkeypatch):
    """Processes that were not connected would each make the whole run."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched, but accelerate connected 1"):
        processes.check_connected(1)
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu", "mps"])
    with pytest.raises(UserError, match=r"'mps' is one GPU.*say cpu"):
        processes.team("auto")


@pytest.mark.parametrize(("n", "warned"), [("1", 0), ("2", 1)])
@pytest.mark.parametrize("kind", [["--cpu"], []])
def test_processes_that_accelerate_did_not_start_are_missed(monkeypatch, capsys, kind, n, warned):
    """Several on CPUs it leaves to MPI, unless it is told --multi_gpu."""
    for name in ("MASTER_ADDR", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    line = f"--num_processes {n} --num_machines 1 --mixed_precision no --dynamo_backend no -m x"
    args = accelerate_launch.launch_command_parser().parse_args([*kind, *line.split()])
    args.use_cpu = args.cpu
    _, given = prepare_simple_launcher_cmd_env(args)
    monkeypatch.setattr(os, "environ", given)
    assert main(["eval", "--model", "m", "--limit", "0"]) == 2
    assert (
        capsys.readouterr().err.count("accelerate started one process only; --multi_gpu") == warned
    )


def test_a_part_that_ends_while_it_is_looked_at_has_not_died(tmp_path, monkeypatch):
    parts, part = Parts(tmp_path, Team(0, 2)), Part(tmp_path / PARTS, 1)

    def gone(_: dict) -> bool:
        part.finish()
        return False

    monkeypatch.setattr(processes, "is_alive", gone)
    assert parts.check()[1]["state"] == "done"


def test_a_run_is_not_complete_while_items_are_recorded_by_nobody(
    tiny_folder, own_items, runs_dir, monkeypatch, capsys
):
    """Whatever becomes of a part: its items are never silently missing from the numbers."""
    every = run_scoring._share
    monkeypatch.setattr(run_scoring, "_share", lambda *a: every(*a)[1:])  # as if a part vanished
    assert main(words(tiny_folder, own_items)) == 1
    assert "recorded by none of the processes; --resume" in capsys.readouterr().err
    (folder,) = (runs_dir / "stage2_prefill_bidir_eval").iterdir()
    assert Run(folder).state == "failed"
    monkeypatch.undo()
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(runs_dir))
    assert main(["eval", "--resume", Run(folder).id]) == 0
    assert Run(folder).metrics["n_items"] == 60


def test_a_lost_process_is_one_line_and_other_errors_stay(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ProcessLost, match="another of the 2 processes"), told_when_lost("resume"):
        raise RuntimeError("gloo/transport/tcp/pair.cc:537 Connection reset by peer")
    with pytest.raises(RuntimeError, match="shape"), told_when_lost("resume"):
        raise RuntimeError("shape mismatch")
