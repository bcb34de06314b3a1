"""``scripts/slurm.sbatch``: what it would start on each node, with SLURM's commands stubbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from bidir_core.cli import build_parser

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm.sbatch"
TRAIN = ["finetune", "--model", "a folder/model", "--prompt-bidir-response-causal-train"]
TRAIN += ["--gradient-checkpointing"]
GPUS = {"SLURM_GPUS_ON_NODE": "8"}
# Say what they were called with. srun leaves out its own options and runs one task a node.
STUBS = {
    # More names than a pipe holds, were it closed after the first.
    "bin/scontrol": 'echo "scontrol $*" >> calls; echo node-a; seq -f node-b%g 30000',
    "bin/srun": (
        'echo "srun $1" >> calls; shift\n'
        'for ((i = 0; i < SLURM_NNODES; i++)); do SLURM_NODEID=$i "$@" || exit; done'
    ),
    ".venv/bin/python": 'echo "python $*" >> calls',
    ".venv/bin/accelerate": (
        f"exec {sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\""
    ),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in STUBS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    return tmp_path


def submit(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """What SLURM does on the first of two nodes."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    given = {"PATH": path, "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", **more}
    line = ["bash", str(SCRIPT), *words]
    return subprocess.run(line, cwd=folder, env=given, capture_output=True, text=True)


def launches(done: subprocess.CompletedProcess[str]) -> list:
    """Each node's launch, as accelerate itself reads it; the rest is the program's."""
    assert done.returncode == 0, done.stderr
    parsed = []
    for line in done.stdout.splitlines():
        command, *words = json.loads(line)
        assert command == "launch"
        parsed.append(launch_command_parser().parse_args(words))
    return parsed


@pytest.mark.parametrize(
    ("more", "processes"),
    [(GPUS, 16), ({}, 8), (GPUS | {"GPUS_PER_NODE": "3"}, 6), (GPUS | {"FSDP": "1"}, 16)],
)
def test_one_launch_a_node_and_a_process_a_gpu(checkout, more, processes):
    nodes = launches(submit(checkout, *TRAIN, **more))
    assert [node.machine_rank for node in nodes] == [0, 1]
    for node in nodes:
        assert (node.num_machines, node.num_processes) == (2, processes)
        assert (node.main_process_ip, node.main_process_port) == ("node-a", 29500)
        assert node.use_fsdp == ("FSDP" in more) != node.multi_gpu
        assert str(node.fsdp_version) == "2" or not node.use_fsdp
        assert (node.mixed_precision, node.dynamo_backend) == ("no", "no")
        assert node.module
        assert [node.training_script, *node.training_script_args] == ["bidir_core", *TRAIN]
    build_parser().parse_args(nodes[0].training_script_args)
    assert (checkout / "calls").read_text().splitlines() == [
        "scontrol show hostnames node-[a-b]",
        "python -m bidir_core assets fetch",
        "srun --kill-on-bad-exit=1",
    ]


@pytest.mark.parametrize(
    ("more", "error"), [({"FSDP": "yes"}, "FSDP=yes"), ({}, "repository root")]
)
def test_refusals_come_before_anything_is_started(checkout, more, error):
    folder = checkout
    if not more:
        folder = checkout / "elsewhere"
        folder.mkdir()
    done = submit(folder, *TRAIN, **more)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert error in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (checkout / "calls").exists()


def test_a_node_that_fails_fails_the_job(checkout):
    (checkout / ".venv/bin/accelerate").write_text("#!/bin/bash\nexit 7\n")
    assert submit(checkout, *TRAIN).returncode == 7
