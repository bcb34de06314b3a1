"""Several processes of one command, as ``accelerate launch`` starts them, or each by itself."""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

# What several processes run on here, not told of a device: a Mac's GPU is one, and not shared.
AUTO = "cpu" if torch.backends.mps.is_available() else "auto"

# Forks processes from one that only loaded the libraries: this one may hold locks and threads,
# which a fork would not survive.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["tests.conftest", "bidir_core.evaluate.evaluate", "bidir_core.train.finetune", __name__]
)


def in_a_child(work: Callable[[], int | None], said: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.exit(work())


def start(work: Callable[[], int | None], said: Path, **environment: str) -> Any:
    """Work in a process of its own; what it prints is added to the file ``said``."""
    said.parent.mkdir(parents=True, exist_ok=True)
    process = SERVER.Process(target=in_a_child, args=(work, said, environment))
    process.start()
    return process


def start_several(n: int, work: Callable[[], int | None], folder: Path, *options: str) -> list[Any]:
    """``n`` processes as ``accelerate launch OPTIONS`` would have them, at a tenth of the cost; no
    launcher ends the others when one ends. What each prints is in ``folder/said<rank>.txt``."""
    words = ["--num_processes", str(n), *options, __file__]
    asked = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = prepare_multi_gpu_env(asked) | {"CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": str(n)}
    shared |= {"LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(
            work,
            folder / f"said{rank}.txt",
            **shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(n)
    ]


def launch(n: int, *command: str, **environment: str) -> subprocess.Popen[str]:
    launcher = "-m accelerate.commands.launch --multi_gpu --main_process_port 0 --num_processes"
    line = [sys.executable, *launcher.split(), str(n), "-m", "bidir_core", *command]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=env, stdout=pipe, stderr=pipe, text=True)
