"""Processes: how this one was launched, what it runs with, its memory; and whether another still lives."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from bidir_core.common.errors import UserError

# Alone, or one of several started by ``accelerate launch``.


class ProcessLost(RuntimeError):
    """Another process of this launch failed or died; a resumed run continues from what was recorded."""


@contextmanager
def told_when_lost(advice: str) -> Iterator[None]:
    """ProcessLost, one clear line, where working together failed because another process is gone."""
    try:
        yield
    except RuntimeError as error:
        # What the communication libraries say when the other end of a connection has died.
        match = re.search("gloo|nccl|connection (reset|closed)", str(error), re.IGNORECASE)
        if launched() == 1 or match is None:
            raise
        raise ProcessLost(
            f"another of the {launched()} processes failed or died; {advice}"
        ) from error


def launched() -> int:
    """How many processes this one was launched with, itself included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_helper() -> bool:
    """Whether this is not the main process of its launch (which alone prints)."""
    return launched() > 1 and os.environ.get("RANK", "0") != "0"


def asked_for_several() -> bool:
    """Whether ``accelerate launch`` was asked for several processes and started this one alone.

    It does so without ``--multi_gpu``, and with ``--cpu``: there it leaves several to MPI. Only
    this way of starting sets ACCELERATE_USE_CPU, and an address to meet at for more than one.
    """
    by_mpi = any(f"{kind}_SIZE" in os.environ for kind in ("PMI", "OMPI_COMM_WORLD"))
    asked = {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys()
    return asked and "WORLD_SIZE" not in os.environ and not by_mpi


def refuse_several(command: str) -> None:
    """UserError where a command that is not shared out was launched in several processes."""
    if launched() > 1:
        raise UserError(
            f"'{command}' runs in one process, not {launched()}: start it without accelerate "
            "launch, or with --num_processes 1"
        )


# What a run is made with: package versions and the git commit of this repository.

_PACKAGES = [
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "safetensors",
    "datasets",
    "gguf",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
]


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a number, and Python's; absent ones left out."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """The commit this code is at, with ``+changes`` if files differ from it; None outside git.

    ``BIDIR_COMMIT`` names it for a copy of the code without its git folder.
    """
    if recorded := os.environ.get("BIDIR_COMMIT"):
        return recorded
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def give_back() -> None:
    """Give memory that was freed back to the system: Arrow and the C library (glibc) would keep it."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


# Whether a process that a file names still lives.

# A heartbeat is written every few seconds; on another machine it is all we can go by.
STALE_HEARTBEAT_SECONDS = 120.0
# A clock's start time is derived from the boot time, which clock corrections shift a little.
_START_TOLERANCE_SECONDS = 2.0


def process_identity(pid: int) -> dict[str, Any]:
    """Host, pid, and when the process started (a pid alone gets reused).

    ``pid_started`` is a time of the clock, which is set forward and back; ``pid_ticks`` counts from
    the machine's start, where the system tells it, and is exact.
    """
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        started = None
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "pid_started": started,
        "pid_ticks": _start_ticks(pid),
    }


def this_process() -> dict[str, Any]:
    return process_identity(os.getpid())


def _start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine's start; None off Linux."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def is_alive(status: Mapping[str, Any]) -> bool:
    """Whether the process named in a status still runs; a zombie or a reused pid does not count."""
    pid, started, ticks = (status.get(name) for name in ("pid", "pid_started", "pid_ticks"))
    if not isinstance(pid, int) or not isinstance(started, int | float):
        return False
    if status.get("host") not in (None, socket.gethostname()):
        heartbeat = status.get("heartbeat")
        if not isinstance(heartbeat, int | float):
            return False
        return abs(time.time() - heartbeat) < STALE_HEARTBEAT_SECONDS
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return False
        current_ticks = _start_ticks(pid)
        if isinstance(ticks, int) and current_ticks is not None:
            return current_ticks == ticks
        return abs(process.create_time() - started) <= _START_TOLERANCE_SECONDS
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
    except psutil.AccessDenied:
        return True
