"""Several processes of one command, as ``accelerate launch`` starts them."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

# What several processes run on here, not told of a device: a Mac's GPU is one, and not shared.
AUTO = "cpu" if torch.backends.mps.is_available() else "auto"


def launch(n: int, *command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
            "--num_processes", str(n), "--main_process_port", "0", "-m", "bidir_core", *command,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
