"""The queues: one a device, in one folder, each with a worker while there is something to run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bidir_core.run_layout import runs_roots
from bidir_core.status import is_alive

_ROOT = Path(__file__).resolve().parents[2]
_started: list[subprocess.Popen[bytes]] = []  # kept so that ended workers are reaped, not zombies


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


def worker_file(root: Path, device: str, suffix: str = ".json") -> Path:
    return root / f"worker-{re.sub(r'[^A-Za-z0-9]', '-', device)}{suffix}"


def worker_lives(device: str, root: Path | None = None) -> bool:
    try:
        text = worker_file(root or jobs_folder(), device).read_text(encoding="utf-8")
        return is_alive(json.loads(text))
    except (OSError, ValueError, AttributeError):
        return False


def ensure_worker(device: str, root: Path) -> None:
    """Start the device's worker unless it lives. The caller holds the lock, without which no
    worker ends: one that is seen here still looks at the queue again."""
    if worker_lives(device, root):
        return
    _started[:] = [process for process in _started if process.poll() is None]
    with open(root / "workers.log", "ab") as log:
        _started.append(
            subprocess.Popen(
                [sys.executable, "-m", "bidir_core.jobs.worker", device, str(root)],
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
