"""The worker of one device: runs its queued jobs one after another, and ends with the queue.

``python -m bidir_core.jobs.worker DEVICE JOBS_FOLDER``, started by :mod:`bidir_core.jobs.job`. It
outlives the server that started it, and a job outlives it: the next worker adopts that job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock

from bidir_core.common.files import write_json
from bidir_core.common.process import is_alive, process_identity, this_process
from bidir_core.common.progress import JOB_DIR, PHASES
from bidir_core.jobs.job import Job, child_environment, command_text, worker_file
from bidir_core.jobs.queue import changing, find_job, list_jobs, log_tail, update

LOOK_SECONDS = 0.1  # how often a job's process and its cancel mark are looked at


def work(device: str, root: Path) -> None:
    """Run the device's queue until it is empty. Returns at once if another worker does."""
    lock = filelock.FileLock(worker_file(root, device, ".lock"), timeout=0)
    mark = worker_file(root, device)
    try:
        lock.acquire()
    except filelock.Timeout:
        return
    try:
        write_json(mark, this_process())
        for orphan in _jobs_in(device, root, "running"):
            _adopt(orphan)
        while (job := _next(device, root, mark, lock)) is not None:
            _run(job)
    finally:
        lock.release()


def _jobs_in(device: str, root: Path, state: str) -> list[Job]:
    jobs = [j for j in list_jobs(root) if j.device == device and j.stored_state == state]
    return sorted(jobs, key=lambda job: (job.queued, job.id))


def _next(device: str, root: Path, mark: Path, lock: filelock.BaseFileLock) -> Job | None:
    """The first queued job, marked as running. With none, the worker gives up its lock before another
    job can be queued, so whoever queues the next one starts a new worker."""
    with changing(root):
        waiting = _jobs_in(device, root, "queued")
        if not waiting:
            mark.unlink(missing_ok=True)
            lock.release()
            return None
        return update(waiting[0], stored_state="running", started=time.time(), finished=None)


def _run(job: Job) -> None:
    try:
        with open(job.log, "ab") as log:
            log.write(f"$ {command_text(job.words_to_run)}\n".encode())
            log.flush()
            (job.folder / PHASES).write_text(
                "Starting Python and its libraries\n", encoding="utf-8"
            )
            process = subprocess.Popen(
                [sys.executable, "-m", "bidir_core", *job.words_to_run],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, so that a cancel reaches all of it
                cwd=job.cwd if os.path.isdir(job.cwd) else None,
                env=child_environment(
                    **{JOB_DIR: str(job.folder)},
                    PYTHONUNBUFFERED="1",
                    TQDM_MININTERVAL="1",
                ),
            )
    except OSError as error:
        _end(job, stored_state="failed", error=f"the command could not be started: {error}")
        return
    with changing(Path(job.root)):
        job = update(job, process=process_identity(process.pid))
    _watch(job, process.poll)
    code = process.wait()
    _end(job, **_outcome(job, code))


def _adopt(job: Job) -> None:
    """Watch a job whose worker died until it ends."""
    _watch(job, lambda: None if is_alive(job.process) else 0)
    fate = find_job(job.id, Path(job.root)).fate()
    _end(job, stored_state=fate, error=_last_error(job) if fate == "failed" else None)


def _watch(job: Job, ended: Callable[[], int | None]) -> None:
    """Wait for the job's process, and carry out a cancel: SIGTERM once, SIGKILL after the grace."""
    path, last_change, terminated, killed = job.folder / "job.json", 0, False, False
    current = job
    while ended() is None:
        changed = path.stat().st_mtime_ns if path.exists() else last_change
        if changed != last_change:
            last_change, current = changed, find_job(job.id, Path(job.root))
        if current.cancel_at is not None:
            if not terminated:
                terminated = True
                _signal(current, signal.SIGTERM)
            if not killed and time.time() > current.cancel_at + current.grace_seconds:
                killed = True
                _signal(current, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)
    if killed:  # and any other process of its group
        _signal_group(current.process["pid"], signal.SIGKILL)


def _signal(job: Job, number: int) -> None:
    if is_alive(job.process):
        _signal_group(job.process["pid"], number)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _outcome(job: Job, code: int) -> dict[str, Any]:
    cancelled = find_job(job.id, Path(job.root)).cancel_at is not None
    if code == 0:
        return {"stored_state": "done"}
    if cancelled or code in (130, -signal.SIGTERM, -signal.SIGINT):
        return {"stored_state": "cancelled"}
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; often the machine ran out of memory" if -code == signal.SIGKILL else ""
        return {"stored_state": "lost", "error": f"its process was killed ({name}{hint})"}
    return {
        "stored_state": "failed",
        "error": _last_error(job) or f"it ended with exit code {code}",
    }


def _last_error(job: Job) -> str | None:
    lines = log_tail(job, lines=40).splitlines()
    errors = [line for line in lines if line.startswith("error:")] or lines[-1:]
    return errors[-1].removeprefix("error:").strip()[:500] if errors else None


def _end(job: Job, **changes: Any) -> None:
    with changing(Path(job.root)):
        if (job.folder / "job.json").exists():
            update(job, finished=time.time(), **changes)


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
