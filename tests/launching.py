"""Several processes of one command, as ``accelerate launch`` starts them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from bidir_core.runs.records import read_jsonl

# What several processes run on here, not told of a device: a Mac's GPU is one, and not shared.
AUTO = "cpu" if torch.backends.mps.is_available() else "auto"


def launch(n: int, *command: str, **environment: str) -> subprocess.Popen[str]:
    launcher = "-m accelerate.commands.launch --multi_gpu --main_process_port 0 --num_processes"
    line = [sys.executable, *launcher.split(), str(n), "-m", "bidir_core", *command]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=env, stdout=pipe, stderr=pipe, text=True)


def killed_after(n: int, runs: Path, place: str, *words: str) -> list[dict]:
    """SIGKILL this command once the run at ``place``, a glob, holds ``n`` records; returns them.

    It scores an item a batch, and after two more there it waits for the kill, however late that comes.
    """
    slowly = (
        "import sys, time; from bidir_core.runs.writer import RunWriter as W; write = W.append\n"
        "seen = []\n"
        "def append(self, records):\n"
        f"    write(self, records); seen.extend([1] * self.path.match({place!r}))\n"
        f"    time.sleep(600 if len(seen) == {n + 2} else 0)\n"
        "W.append = append; from bidir_core.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    line = [sys.executable, "-c", slowly, *words, "--batch-tokens", "1"]
    environment = {**os.environ, "BIDIR_RUNS_DIR": str(runs)}
    process = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL)
    records: list[dict] = []
    deadline = time.monotonic() + 300
    while len(records) < n and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
        for path in runs.glob(f"{place}/items.jsonl"):
            records = read_jsonl(path)[0]
    process.kill()
    process.wait()
    assert len(records) >= n
    return read_jsonl(path)[0]
