"""``status.json``: what a run is doing, and whether the process that says so still lives."""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Literal

import psutil

State = Literal[
    "queued", "running", "done", "failed", "cancelled", "lost", "partial", "corrupt", "reference"
]
STORED_STATES = ("queued", "running", "done", "failed", "cancelled")
# A heartbeat is written every few seconds; on another machine it is all we can go by.
STALE_HEARTBEAT_SECONDS = 120.0
# A start time is derived from the boot time, which clock corrections shift a little.
_START_TOLERANCE_SECONDS = 2.0


def this_process() -> dict[str, Any]:
    """The identity of this process: host, pid, and start time (a pid alone gets reused)."""
    return process_of(os.getpid())


def process_of(pid: int) -> dict[str, Any]:
    """The identity of a process of this machine; without a start time if it has ended."""
    try:
        started: float | None = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        started = None
    return {"host": socket.gethostname(), "pid": pid, "pid_started": started}


def is_alive(status: dict[str, Any]) -> bool:
    """Whether the process named in a status still runs; a zombie or a reused pid does not count."""
    pid, started = status.get("pid"), status.get("pid_started")
    if not isinstance(pid, int) or not isinstance(started, int | float):
        return False
    if status.get("host") not in (None, socket.gethostname()):
        heartbeat = status.get("heartbeat")
        if not isinstance(heartbeat, int | float):
            return False
        return time.time() - heartbeat < STALE_HEARTBEAT_SECONDS
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return False
        return abs(process.create_time() - started) <= _START_TOLERANCE_SECONDS
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True
