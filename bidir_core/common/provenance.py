"""What a run was made with: package versions and the git commit of this repository."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

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
