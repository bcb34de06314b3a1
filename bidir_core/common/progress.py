"""Progress for people and for the app: a bar in the terminal, a heartbeat in the run folder."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from bidir_core.common.errors import UserError
from bidir_core.common.files import visible

LOG = logging.getLogger("bidir_core")
_HEARTBEAT_SECONDS = 1.0
TERMINATED = "terminated"  # the message of a KeyboardInterrupt that stands for a SIGTERM

JOB_DIR = "BIDIR_JOB_DIR"  # the environment's name for a job's folder, and two files in it
PHASES, RUNS = "phases.txt", "runs.txt"


def tell_job(file: str, line: str) -> None:
    """Add a line to a file of the job that this process runs in, if it runs in one."""
    if job := os.environ.get(JOB_DIR):
        # A job's folder that is gone must not stop the work.
        with suppress(OSError), open(Path(job) / file, "a", encoding="utf-8") as out:
            out.write(f"{line}\n")


def phase(title: str) -> None:
    """Say what begins now, before there is a run folder to report in."""
    tell_job(PHASES, title)


def say(line: str) -> None:
    """Tell whoever waits what is being done: on standard error, like the bars."""
    print(visible(line), file=sys.stderr, flush=True)


class Progress:
    """A tqdm bar that also reports ``(done, total, rate, eta_seconds)`` about once a second.

    ``rate`` counts what *this* process did: a resumed run's ETA is not flattered by earlier work.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        unit: str = "item",
        title: str = "",
        report: Callable[..., None] | None = None,
        shown: bool = True,
    ):
        self.total, self.done, self._first = total, done, done
        self._report = report
        self._started = time.monotonic()
        self._reported = -_HEARTBEAT_SECONDS
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=unit,
            desc=title,
            dynamic_ncols=True,
            file=sys.stderr,
            disable=not shown,
        )
        self._tell()

    def advance(self, n: int) -> None:
        self.done += n
        self._bar.update(n)
        if time.monotonic() - self._reported >= _HEARTBEAT_SECONDS:
            self._tell()

    def _tell(self) -> None:
        self._reported = time.monotonic()
        if self._report is None:
            return
        fresh = self.done - self._first
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = fresh / seconds if fresh else None
        eta = (self.total - self.done) / rate if rate else None
        self._report(self.done, self.total, rate=rate, eta_seconds=eta)

    def close(self) -> None:
        self._tell()
        self._bar.close()


class _Visible(logging.Formatter):
    """Ids, names and texts of data may hold what a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@contextmanager
def logging_to(path: Path) -> Iterator[logging.Logger]:
    """Log lines go to the terminal and are appended to ``path`` (the run's ``log.txt``)."""
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(_Visible("%(asctime)s %(levelname)s %(message)s"))
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(_Visible("%(message)s"))
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    previous, LOG.handlers = LOG.handlers, [to_file, to_terminal]
    try:
        yield LOG
    finally:
        LOG.handlers = previous
        to_file.close()


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does, so that the run is left cancelled and resumable."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt(TERMINATED)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


TEMPLATE_SECONDS = 10.0  # for one chat template, or all patterns of an adapter


@contextmanager
def time_limit(seconds: float, subject: str) -> Iterator[None]:
    """UserError if the work inside takes longer: for templates and patterns of unknown origin.

    Only in the main thread, where the signal that interrupts it arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise UserError(f"{subject} took longer than {seconds:g} seconds, so it was given up")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
