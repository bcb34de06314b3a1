"""The seeded folders, kept in the temporary folder until what makes them changes.

Both parts of the browser tests, and all their workers, read one seed: it is made once, in a folder
that is named by a hash of the code that makes it, and that appears there only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import filelock

from tests.e2e.nursery import ROOT
from tests.e2e.seed import seed_all

MADE_BY = (
    "bidir_core/**/*.py",
    "tests/factory.py",
    "tests/lab_factory.py",
    "tests/tiny_models.py",
    "tests/e2e/seed.py",
    "tests/e2e/seed_cache.py",
)
WRITTEN_WITH = ("numpy", "pyarrow", "pandas", "torch", "transformers")
KEPT_DAYS = 3


@dataclass(frozen=True)
class Seeds:
    """Where they are: run folders and their ids, a sweep in a folder of its own, a tiny model."""

    folder: Path

    @property
    def ids(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / "ids.json").read_text())
        return found

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def sweep(self) -> Path:
        return self.folder / "sweep"

    @property
    def tiny(self) -> Path:
        return self.folder / "tiny"


def seeds(root: Path | None = None) -> Seeds:
    """The seeds as they would be made now; made if there are none. For reading only."""
    root = root or Path(tempfile.gettempdir()) / f"bidir-e2e-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    folder = root / key()
    with filelock.FileLock(root / "lock"):
        if not folder.exists():
            _forget_old(root)
            unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=root))
            (unfinished / "ids.json").write_text(json.dumps(seed_all(unfinished)))
            unfinished.rename(folder)
        os.utime(folder)
    return Seeds(folder)


def key() -> str:
    """A hash of the code that makes them and of what it writes with."""
    made = hashlib.sha256(repr([platform.python_version(), *map(version, WRITTEN_WITH)]).encode())
    for pattern in MADE_BY:
        for path in sorted(ROOT.glob(pattern)):
            made.update(f"\0{path.relative_to(ROOT)}\0".encode())
            made.update(path.read_bytes())
    return made.hexdigest()[:16]


def _forget_old(root: Path) -> None:
    """What no test run has used for days, or what one has left unfinished when it was killed."""
    for folder in root.iterdir():
        is_old = time.time() - folder.stat().st_mtime > 86400 * KEPT_DAYS
        if folder.is_dir() and (is_old or folder.name.startswith("unfinished-")):
            shutil.rmtree(folder, ignore_errors=True)
