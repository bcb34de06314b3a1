"""Jobs: command lines that run detached, one after another on each device.

A job is exactly what the terminal takes (``python -m bidir_core eval ...``) and a folder:

    <first runs root>/.jobs/<id>/job.json   what, where, state, process; replaced atomically
                                 log.txt    everything the command printed
                                 runs.txt   the run folders it writes, one a line, newest last
    <first runs root>/.jobs/worker-<device>.json    the worker, while there is one

:func:`submit` queues a job and starts the device's worker (:mod:`bidir_core.job_worker`) if none
lives. The worker is a small detached process that runs the queue and ends when it is empty;
nothing here needs a server, and everything is read back from files. Only the worker sends signals
to a job, once each, so that a checkpoint being written is never interrupted a second time.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import filelock

from bidir_core.atomic import write_json
from bidir_core.errors import UserError
from bidir_core.run_layout import refuse_if_read_only, runs_roots
from bidir_core.status import is_alive

JobState = Literal["queued", "running", "done", "failed", "cancelled", "lost"]
COMMANDS = ("eval", "finetune", "pipeline", "probe", "lab", "attend", "why")
# A cancelled job gets this long to write its checkpoint before it is killed.
GRACE_SECONDS = 60.0
JOB_DIR_VARIABLE = "BIDIR_JOB_DIR"
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
_ROOT = Path(__file__).resolve().parent.parent
_started: list[subprocess.Popen[bytes]] = []  # kept so that ended workers are reaped, not zombies


@dataclass(frozen=True)
class Job:
    """One job as its ``job.json`` says. Times are Unix seconds."""

    id: str
    words: tuple[str, ...]  # what follows ``python -m bidir_core``
    device: str
    key: str = ""
    title: str = ""
    cwd: str = ""
    stored_state: JobState = "queued"
    attempt: int = 1
    resume_run: str | None = None
    created: float = 0.0
    queued: float = 0.0
    started: float | None = None
    finished: float | None = None
    process: dict[str, Any] = field(default_factory=dict)  # host, pid, pid_started
    cancel_at: float | None = None
    grace_seconds: float = GRACE_SECONDS
    error: str | None = None
    estimate: dict[str, Any] = field(default_factory=dict)
    root: str = ""  # the jobs folder it lies in; not written

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.id

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def line(self) -> str:
        """The command as one types it."""
        return command_text(self.words)

    @property
    def words_to_run(self) -> tuple[str, ...]:
        """The command, with ``--resume`` when it goes on with a run."""
        return (*self.words, "--resume", self.resume_run) if self.resume_run else self.words

    @property
    def is_active(self) -> bool:
        return self.state in ("queued", "running")

    @property
    def is_cancelling(self) -> bool:
        return self.cancel_at is not None and self.state == "running"

    @property
    def can_resume(self) -> bool:
        return self.state in ("cancelled", "failed", "lost")

    @property
    def state(self) -> JobState:
        """The stored state or, where neither its process nor its worker lives, what became of it."""
        if self.stored_state != "running":
            return self.stored_state
        if is_alive(self.process) or worker_lives(self.device, Path(self.root)):
            return "running"
        return self.fate()

    def fate(self) -> JobState:
        """What became of a job whose process ended unseen: judged by its run folder."""
        from bidir_core.store import Run

        path = self.run_path
        state = Run(path).state if path is not None else None
        if state == "done" and self.words[0] != "pipeline":
            return "done"
        if self.cancel_at is not None:
            return "cancelled"
        return "failed" if state == "failed" else "lost"

    @property
    def run_paths(self) -> list[Path]:
        """The run folders it wrote to, in order, those that still exist."""
        try:
            text = (self.folder / "runs.txt").read_text(encoding="utf-8")
        except OSError:
            return []
        paths = (Path(line) for line in dict.fromkeys(text.splitlines()) if line)
        return [path for path in paths if path.is_dir()]

    @property
    def run_path(self) -> Path | None:
        """The run folder it writes now, or wrote last."""
        paths = self.run_paths
        return paths[-1] if paths else None

    @property
    def seconds(self) -> float | None:
        """How long this attempt has taken so far or took."""
        if self.started is None:
            return None
        end = self.finished
        if end is None:
            end = time.time() if self.state == "running" else _changed(self.log)
        return max(0.0, (end or self.started) - self.started)


def command_text(words: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "bidir_core", *words])


def jobs_folder() -> Path:
    return runs_roots()[0] / ".jobs"


def queue_device(words: Sequence[str]) -> str:
    """The device whose queue a command belongs to, found without importing torch.

    ``auto`` and ``cuda`` mean the first GPU, as they do to the command itself.
    """
    named = "auto"
    for index, word in enumerate(words):
        if word == "--device" and index + 1 < len(words):
            named = words[index + 1]
        elif word.startswith("--device="):
            named = word.partition("=")[2]
    if named == "auto":
        if os.environ.get("CUDA_VISIBLE_DEVICES", "0") != "" and Path("/dev/nvidia0").exists():
            return "cuda:0"
        mac = sys.platform == "darwin" and os.uname().machine == "arm64"
        return "mps" if mac else "cpu"
    return "cuda:0" if named == "cuda" else named


# --- reading ---------------------------------------------------------------------------------


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


def worker_lives(device: str, root: Path | None = None) -> bool:
    try:
        text = worker_file(root or jobs_folder(), device).read_text(encoding="utf-8")
        return is_alive(json.loads(text))
    except (OSError, ValueError, AttributeError):
        return False


def worker_file(root: Path, device: str, suffix: str = ".json") -> Path:
    return root / f"worker-{re.sub(r'[^A-Za-z0-9]', '-', device)}{suffix}"


def stalled(jobs: Sequence[Job]) -> list[str]:
    """Devices with queued jobs and no worker: after a crash or a restart of the machine."""
    waiting = {(job.device, job.root) for job in jobs if job.stored_state == "queued"}
    return sorted(device for device, root in waiting if not worker_lives(device, Path(root)))


def idempotency_key(words: Sequence[str], jobs: Sequence[Job]) -> str:
    """A key for starting ``words`` from a form drawn while ``jobs`` existed.

    Two clicks and two tabs that show the same history get the same key; the next deliberate
    start of the same line gets another.
    """
    before = sum(job.words == tuple(words) for job in jobs)
    return f"{command_text(words)} #{before}"


# --- changing --------------------------------------------------------------------------------


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
    refuse_if_read_only("start a job")
    words = tuple(str(word) for word in words)
    if not words or words[0] not in COMMANDS:
        raise UserError(f"cannot start '{' '.join(words)[:80]}'; jobs are {', '.join(COMMANDS)}")
    root = jobs_folder()
    with changing(root):
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
        save(job)
        ensure_worker(job.device, root)
    return job


def cancel(job_id: str, *, grace_seconds: float = GRACE_SECONDS) -> Job:
    """Stop a job: a queued one leaves the queue, a running one may write its checkpoint first.

    After ``grace_seconds`` it is killed. Calling it again with fewer shortens the wait.
    """
    refuse_if_read_only("cancel a job")
    root = jobs_folder()
    with changing(root):
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
    """Queue an unfinished job again; it goes on with its run. Harmless when it is under way."""
    refuse_if_read_only("resume a job")
    root = jobs_folder()
    with changing(root):
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


def forget(job_id: str) -> None:
    """Remove an ended job from the history. Its runs stay."""
    refuse_if_read_only("remove a job")
    root = jobs_folder()
    with changing(root):
        job = find_job(job_id, root)
        if job.is_active:
            raise UserError(f"the job '{job.id}' is {job.state}; cancel it first")
        shutil.rmtree(job.folder, ignore_errors=True)


def go_on(device: str) -> None:
    """Start a worker for a queue that stands still."""
    refuse_if_read_only("start a job")
    root = jobs_folder()
    with changing(root):
        ensure_worker(device, root)


def _run_to_resume(job: Job) -> str | None:
    """What ``--resume`` takes: the unfinished run of a command that has the flag."""
    path = job.run_path
    if path is None or job.words[0] not in ("eval", "finetune", "lab"):
        return None  # the same line: a pipeline finds its runs itself, the others start over
    if "--resume" in job.words:
        return None
    return str(path)


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


def ensure_worker(device: str, root: Path) -> None:
    """Start the device's worker unless it lives. The caller holds the lock, without which no
    worker ends: one that is seen here still looks at the queue again."""
    if worker_lives(device, root):
        return
    _started[:] = [process for process in _started if process.poll() is None]
    with open(root / "workers.log", "ab") as log:
        _started.append(
            subprocess.Popen(
                [sys.executable, "-m", "bidir_core.job_worker", device, str(root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=child_environment(),
                cwd=_ROOT,
            )
        )


def child_environment(**more: str) -> dict[str, str]:
    """This environment, in which ``python -m bidir_core`` works from any folder."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
