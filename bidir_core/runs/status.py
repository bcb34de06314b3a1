"""``status.json``: what a run is doing, and whether the process that says so still lives."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import filelock
import psutil

State = Literal[
    "queued", "running", "done", "failed", "cancelled", "lost", "partial", "corrupt", "reference"
]
STORED_STATES = ("queued", "running", "done", "failed", "cancelled")
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


# Whoever writes a run holds its lock, whatever the clocks, hosts and process ids say.


def run_lock(folder: Path) -> filelock.BaseFileLock:
    """The lock of a run folder; ``filelock.Timeout`` on acquiring it while somebody holds it."""
    # Readers hold the lock for an instant to test it: then a short wait is enough.
    wait = 0 if is_locked(folder) else 0.5
    return filelock.FileLock(folder / ".lock", timeout=wait, poll_interval=0.01)


def is_locked(folder: Path) -> bool:
    """Whether somebody writes the run now. Creates nothing."""
    try:
        handle = os.open(folder / ".lock", os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
