"""Start, cancel, resume and forget jobs."""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged, write_json
from bidir_core.jobs.job import (
    COMMANDS,
    GRACE_SECONDS,
    SHAPE,
    Job,
    command_text,
    ensure_worker,
    jobs_folder,
    queue_device,
    worker_lives,
)
from bidir_core.runs.layout import refuse_if_read_only
from bidir_core.runs.read import read_object, tail

START_SECONDS = 15.0  # a worker may take so long to appear on a busy machine


def submit(
    words: Sequence[str],
    key: str | None = None,
    *,
    title: str = "",
    estimate: Mapping[str, Any] | None = None,
) -> Job:
    """Queue ``python -m bidir_core WORDS`` and return its job, without waiting for it.

    The same ``key`` returns the job it started before, and a line that is queued or running
    already is not started twice. Raises UserError when read-only or for an unknown command.
    """
    words = tuple(str(word) for word in words)
    if not words or words[0] not in COMMANDS:
        raise UserError(f"cannot start '{' '.join(words)[:80]}'; jobs are {', '.join(COMMANDS)}")
    with _changing("start a job") as root:
        for job in list_jobs(root):
            if (key and job.key == key) or (job.words == words and job.is_active):
                return job
        now = time.time()
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d-%H%M%S")
        job = Job(
            id=f"{stamp}-{uuid.uuid4().hex[:6]}",
            words=words,
            device=queue_device(words),
            key=key or "",
            title=title or words[0],
            cwd=os.getcwd(),
            created=now,
            queued=now,
            estimate=dict(estimate or {}),
            root=str(root),
        )
        # The worker first, so that a reader without the lock never sees a queue without one.
        ensure_worker(job.device, root)
        save(job)
    return job


def idempotency_key(words: Sequence[str], jobs: Sequence[Job]) -> str:
    """A key for starting ``words`` from a form drawn while ``jobs`` existed.

    Two clicks and two tabs that show the same history get the same key; the next deliberate
    start of the same line gets another.
    """
    n_started = sum(job.words == tuple(words) for job in jobs)
    return f"{command_text(words)} #{n_started}"


def cancel(job_id: str, *, grace_seconds: float = GRACE_SECONDS) -> Job:
    """Stop a job: a queued one leaves the queue, a running one may write its checkpoint first.

    After ``grace_seconds`` it is killed. Calling it again with fewer shortens the wait.
    """
    with _changing("cancel a job") as root:
        job = find_job(job_id, root)
        if job.stored_state == "queued":
            return update(job, stored_state="cancelled", finished=time.time())
        if job.state != "running":
            return job
        job = update(
            job,
            cancel_at=job.cancel_at or time.time(),
            grace_seconds=min(grace_seconds, job.grace_seconds),
        )
        ensure_worker(job.device, root)  # a new worker adopts the job of one that was killed
    return job


def resume(job_id: str) -> Job:
    """Queue an unfinished job again; it goes on with its run. Nothing happens if it is under way."""
    with _changing("resume a job") as root:
        job = find_job(job_id, root)
        if not job.can_resume:
            return job
        job = update(
            job,
            stored_state="queued",
            attempt=job.attempt + 1,
            resume_run=_run_to_resume(job),
            queued=time.time(),
            started=None,
            finished=None,
            process={},
            cancel_at=None,
            grace_seconds=GRACE_SECONDS,
            error=None,
        )
        ensure_worker(job.device, root)
    return job


def _run_to_resume(job: Job) -> str | None:
    """What ``--resume`` takes: the unfinished run of a command that has the flag."""
    path = job.run_path
    if path is None or job.words[0] not in ("eval", "finetune", "lab", "attend"):
        return None  # the same line: a pipeline finds its runs itself, the others start over
    if "--resume" in job.words or not job.made(path):
        return None
    return str(path)


def forget(job_id: str) -> None:
    """Remove an ended job from the history. Its runs stay."""
    with _changing("remove a job") as root:
        job = _read(root, job_id)
        if job is None or not job.is_damaged:
            job = find_job(job_id, root)
        if job.is_active:
            raise UserError(f"the job '{job.id}' is {job.state}; cancel it first")
        shutil.rmtree(job.folder, ignore_errors=True)


def go_on(device: str) -> None:
    """Start a worker for a queue that stands still."""
    with _changing("start a job") as root:
        ensure_worker(device, root)


def stalled(jobs: Sequence[Job]) -> list[str]:
    """Devices with queued jobs and no worker: after a crash or a restart of the machine.

    A worker that was just started has START_SECONDS to appear.
    """
    deadline = time.time() - START_SECONDS
    waiting = {
        (job.device, job.root)
        for job in jobs
        if job.stored_state == "queued" and job.queued < deadline
    }
    return sorted(device for device, root in waiting if not worker_lives(device, Path(root)))


# Jobs on disk: list them, find one, change one, and read what its command printed.

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


def list_jobs(root: Path | None = None) -> list[Job]:
    """Every readable job, newest first."""
    folder = root or jobs_folder()
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    jobs = [job for name in names if (job := _read(folder, name)) is not None]
    return sorted(jobs, key=lambda job: (job.created, job.id), reverse=True)


def find_job(job_id: str, root: Path | None = None) -> Job:
    """The job of this id; UserError if there is none."""
    job = _read(root or jobs_folder(), job_id)
    if job is None:
        raise UserError(f"there is no job '{job_id[:80]}'")
    if job.is_damaged:
        raise UserError(f"the job '{job_id}' cannot be used: {job.error}")
    return job


def _read(folder: Path, job_id: str) -> Job | None:
    """The job, one that is damaged and says how, or None if there is none."""
    if not _ID.fullmatch(job_id):
        return None
    try:
        values = read_object(folder / job_id, "job.json", SHAPE)
        if values["id"] != job_id:
            raise Damaged("job.json is that of another job")
    except FileNotFoundError:
        return None
    except Damaged as error:
        return Job(
            id=job_id,
            words=("damaged",),
            device="unknown device",
            title="Damaged job",
            stored_state="failed",
            error=str(error),
            root=str(folder),
            is_damaged=True,
        )
    known = set(SHAPE.shapes)
    kept = {name: value for name, value in values.items() if name in known and value is not None}
    return Job(**kept | {"words": tuple(kept["words"])}, root=str(folder))


def log_tail(job: Job, lines: int = 20, n_bytes: int = 16_000) -> str:
    """The end of what the command printed; of a progress bar only its newest state."""
    text = tail(job.log, n_bytes)
    shown = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join([line for line in shown if line.strip()][-lines:])


def changing(root: Path) -> filelock.BaseFileLock:
    """The lock under which jobs change; hold it for moments only."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot keep jobs in '{root}' ({error.strerror or error}); name a writable folder "
            "in BIDIR_RUNS_DIR"
        ) from error
    return filelock.FileLock(root / ".lock", timeout=30)


@contextmanager
def _changing(action: str) -> Iterator[Path]:
    """The jobs folder, locked; refused where nothing may be changed."""
    refuse_if_read_only(action)
    root = jobs_folder()
    with changing(root):
        yield root


def update(job: Job, **changes: Any) -> Job:
    """Change some of a job's fields on disk, keeping what others changed meanwhile."""
    changed = replace(find_job(job.id, Path(job.root)), **changes)
    save(changed)
    return changed


def save(job: Job) -> None:
    job.folder.mkdir(exist_ok=True)
    values = {name: value for name, value in asdict(job).items() if name in SHAPE.shapes}
    write_json(job.folder / "job.json", {"schema": 1, **values})
