"""Jobs on disk: list them, find one, change one, and read what its command printed."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import filelock

from bidir_core.atomic import write_json
from bidir_core.errors import UserError
from bidir_core.jobs.job import Job
from bidir_core.jobs.queues import jobs_folder

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


def list_jobs(root: Path | None = None) -> list[Job]:
    """Every readable job, newest first."""
    folder = root or jobs_folder()
    try:
        names = [name for name in os.listdir(folder) if _ID.fullmatch(name)]
    except OSError:
        return []
    jobs = [job for name in names if (job := _read(folder, name)) is not None]
    return sorted(jobs, key=lambda job: (job.created, job.id), reverse=True)


def find_job(job_id: str, root: Path | None = None) -> Job:
    """The job of this id; UserError if there is none."""
    job = _read(root or jobs_folder(), job_id) if _ID.fullmatch(job_id) else None
    if job is None:
        raise UserError(f"there is no job '{job_id[:80]}'")
    return job


def _read(folder: Path, job_id: str) -> Job | None:
    known = {spec.name for spec in fields(Job)} - {"root"}
    try:
        values = json.loads((folder / job_id / "job.json").read_text(encoding="utf-8"))
        kept = {name: value for name, value in values.items() if name in known}
        kept["words"] = tuple(map(str, kept["words"]))
        return Job(**kept, root=str(folder)) if kept["words"] and kept["id"] == job_id else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def log_tail(job: Job, lines: int = 20, n_bytes: int = 16_000) -> str:
    """The end of what the command printed; of a progress bar only its newest state."""
    try:
        with open(job.log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - n_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
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


def update(job: Job, **changes: Any) -> Job:
    """Change some of a job's fields on disk, keeping what others changed meanwhile."""
    changed = replace(find_job(job.id, Path(job.root)), **changes)
    save(changed)
    return changed


def save(job: Job) -> None:
    job.folder.mkdir(exist_ok=True)
    values = {name: value for name, value in asdict(job).items() if name != "root"}
    write_json(job.folder / "job.json", {"schema": 1, **values})
