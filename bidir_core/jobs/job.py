"""One job: a command line, where it runs, and what became of it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged, write_json
from bidir_core.common.process import is_alive, process_identity
from bidir_core.common.progress import PHASES, RUNS
from bidir_core.regimes import parse_regimes
from bidir_core.runs import shapes
from bidir_core.runs.layout import runs_roots
from bidir_core.runs.read import read_object, tail

JobState = Literal["queued", "running", "done", "failed", "cancelled", "lost"]

COMMANDS = ("eval", "finetune", "pipeline", "probe", "lab", "attend", "why", "recommend")

# What a job.json may hold; see bidir_core.runs.shapes.
SHAPE = shapes.fields(
    text="id device key title cwd resume_run error",
    seconds="created queued started finished cancel_at grace_seconds",
    count="attempt",
    words=shapes.Kind(
        f"a list of texts that begins with one of {', '.join(COMMANDS)}",
        lambda v: shapes.problem(v, shapes.TEXTS) is None and v[:1] and v[0] in COMMANDS,
    ),
    stored_state=shapes.Kind("a job's state", lambda v: v in get_args(JobState)),
    process=shapes.PROCESS,
    estimate=shapes.fields(number="seconds memory_bytes"),
    needs="id words device",
)
MOST_RUNS_BYTES = 1 << 20

# A cancelled job gets this long to write its checkpoint before it is killed.
GRACE_SECONDS = 60.0


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
    process: dict[str, Any] = field(default_factory=dict)  # as common.process.process_identity
    cancel_at: float | None = None
    grace_seconds: float = GRACE_SECONDS
    error: str | None = None
    estimate: dict[str, Any] = field(default_factory=dict)
    root: str = ""  # the jobs folder it lies in; not written
    is_damaged: bool = False  # its job.json cannot be used, as ``error`` says; not written

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.id

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def line(self) -> str:
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
        return not self.is_damaged and self.state in ("cancelled", "failed", "lost")

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
        from bidir_core.runs.run import Run

        path = self.run_path
        state = Run(path).state if path is not None else None
        if state == "done" and self.made(path) and len(self.run_paths) >= self.n_runs:
            return "done"
        if self.cancel_at is not None:
            return "cancelled"
        return "failed" if state == "failed" else "lost"

    @property
    def phase(self) -> str:
        """What its process is doing before its run reports progress; empty if unknown."""
        lines = tail(self.folder / PHASES, MOST_RUNS_BYTES).splitlines()
        return lines[-1] if lines else ""

    def made(self, path: Path | None) -> bool:
        """Whether this run is what the job was started for, not one that it makes on the way, such as a
        sweep's stored prediction or a run of a pipeline."""
        from bidir_core.runs.run import Run

        return path is not None and (Run(path).config.get("kind") or "eval") == self.words[0]

    @property
    def n_runs(self) -> int:
        """How many runs its line makes: an evaluation's is one for each regime."""
        regime = _value_of(self.words, "--regime", "causal")
        try:
            return len(parse_regimes(regime)) if self.words[0] == "eval" else 1
        except UserError:
            return 1

    @property
    def run_paths(self) -> list[Path]:
        """The run folders it wrote to, in order, those that still exist."""
        text = tail(self.folder / RUNS, MOST_RUNS_BYTES).replace("\0", "")
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


def _value_of(words: Sequence[str], flag: str, default: str) -> str:
    """What a command line gives a flag, in either way of writing it; the last one counts."""
    value = default
    for index, word in enumerate(words):
        if word == flag and index + 1 < len(words):
            value = words[index + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


# The queues: one a device, in one folder, each with a worker while there is something to run.

_ROOT = Path(__file__).resolve().parents[2]

_started: list[subprocess.Popen[bytes]] = []  # kept so that ended workers are reaped, not zombies


def jobs_folder() -> Path:
    return runs_roots()[0] / ".jobs"


def queue_device(words: Sequence[str]) -> str:
    """The device whose queue a command belongs to, found without importing torch.

    ``auto`` and ``cuda`` mean the first GPU, as they do to the command itself.
    """
    named = _value_of(words, "--device", "auto")
    if named == "auto":
        if os.environ.get("CUDA_VISIBLE_DEVICES", "0") != "" and Path("/dev/nvidia0").exists():
            return "cuda:0"
        mac = sys.platform == "darwin" and os.uname().machine == "arm64"
        return "mps" if mac else "cpu"
    return "cuda:0" if named == "cuda" else named


def worker_file(root: Path, device: str, suffix: str = ".json") -> Path:
    return root / f"worker-{re.sub(r'[^A-Za-z0-9]', '-', device)}{suffix}"


def worker_lives(device: str, root: Path | None = None) -> bool:
    try:
        path = worker_file(root or jobs_folder(), device)
        return is_alive(read_object(path.parent, path.name, shapes.PROCESS))
    except (FileNotFoundError, Damaged):
        return False


def ensure_worker(device: str, root: Path) -> None:
    """Start the device's worker unless it lives. The caller holds the lock, which a worker needs to
    end: one that lives now will look at the queue again. The new worker is marked as living at once,
    since the queue would seem to stand still until it marks itself."""
    if worker_lives(device, root):
        return
    _started[:] = [process for process in _started if process.poll() is None]
    with open(root / "workers.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bidir_core.jobs.worker", device, str(root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=child_environment(),
            cwd=_ROOT,
        )
    _started.append(process)
    write_json(worker_file(root, device), process_identity(process.pid))


def child_environment(**more: str) -> dict[str, str]:
    """This environment, in which ``python -m bidir_core`` works from any folder."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **more}
