"""The real commands as processes of their own: one, or several of one ``accelerate launch``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0")
FSDP = ("--use_fsdp", "--fsdp_version", "2")
_GRACE_SECONDS = 40  # a launcher gives its processes 30 to end


@dataclass(frozen=True)
class Ended:
    """How a command ended. ``code`` is None if its time was over before."""

    code: int | None
    wall_seconds: float
    out: str
    err: str

    @property
    def trouble(self) -> str | None:
        """Why it failed, with the last of what it said; None if it did not."""
        if self.code == 0:
            return None
        why = "its time was over" if self.code is None else f"exit code {self.code}"
        own = self.err.split("failed (exitcode")[0]  # what a launcher adds is about itself
        lines = [line.strip() for line in own.splitlines() if line.strip()]
        return f"{why}: {' / '.join(lines[-12:])[-1500:]}"


def run(
    words: Sequence[str],
    *,
    processes: int = 1,
    fsdp: bool = False,
    on_gpu: bool = True,
    seconds: float | None = None,
) -> Ended:
    """``python -m bidir_core WORDS`` to its end, in so many processes, one GPU each."""
    command = [sys.executable]
    if processes > 1:
        how = FSDP if fsdp else ("--multi_gpu",)
        command = [*LAUNCH, *how, "--num_processes", str(processes)]
    command += ["-m", "bidir_core", *words]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpus(processes) if on_gpu else ""}
    started = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        code: int | None
        try:
            out, err = process.communicate(timeout=seconds)
            code = process.returncode
        except subprocess.TimeoutExpired as late:
            _end(process)
            code, out, err = None, _text(late.stdout), _text(late.stderr)
    return Ended(code, time.monotonic() - started, out, err)


def gpus(n: int) -> str:
    """The first ``n`` of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(n)]
    return ",".join(names[:n])


def _end(process: subprocess.Popen[str]) -> None:
    """End a command with all that it has started."""
    import psutil

    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
    for one in family:
        if one.is_running():
            one.kill()


def _text(said: str | bytes | None) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else said or ""
