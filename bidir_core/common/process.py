"""This process: how it was launched, what it runs with, and the memory that it frees."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

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

_PACKAGES = (
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
    "statsmodels",
)


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
