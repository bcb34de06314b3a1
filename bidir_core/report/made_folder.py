"""A folder that a command writes as a whole: it appears complete or not at all, and it replaces
only a folder that the same command made."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged, read_json, remove_left_overs, sync_folder

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class MadeFolder:
    """``flag``: how a reader names the folder, for messages. ``made_by``: in the manifest, by which
    the next run knows the folder as its own."""

    flag: str
    made_by: str

    def check(self, folder: Path | str) -> None:
        """UserError for a place that holds something else: what others wrote is never lost."""
        target = Path(folder).expanduser().absolute()
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise UserError(
                f"{self.flag} {target}: this is not a folder; give a new or an empty one"
            )
        if not target.exists() or not any(target.iterdir()):
            return
        try:
            manifest = read_json(target / MANIFEST)
            written = manifest["files"] if manifest["made_by"] == self.made_by else None
        except (Damaged, OSError, KeyError, TypeError):
            written = None
        if not isinstance(written, dict):
            raise UserError(
                f"{self.flag} {target}: the folder is not empty and was not made by this command; "
                "give a new or an empty one"
            )
        for path in sorted(target.rglob("*")):
            name = path.relative_to(target).as_posix()
            if not path.is_dir() and name != MANIFEST and written.get(name) != _sha256(path):
                raise UserError(
                    f"{self.flag} {target}: '{name}' was added or changed after this command made "
                    "the folder, and would be lost; move it away, or give another folder"
                )

    def make(self, folder: Path | str, command: str, write: Callable[[Path], None]) -> Path:
        """``write`` into an empty folder, which takes the place of ``folder`` in one rename at the
        end; if anything fails, what stood there stands. UserError where it cannot be written."""
        target = Path(folder).expanduser().absolute()
        try:
            self.check(target)
            with _temporary_sibling(target) as temporary:
                write(temporary)
                self._sign(temporary, command)
                _replace(temporary, target)
        except OSError as error:
            raise UserError(
                f"{self.flag} {folder}: cannot be written ({error.strerror or error}); "
                "give another folder"
            ) from error
        return target

    def zipped(self, name: str, command: str, write: Callable[[Path], None]) -> bytes:
        """The same as one ZIP file, in which the folder is called ``name``; nothing stays on disk."""
        with tempfile.TemporaryDirectory(prefix="bidir-zip-") as temporary:
            folder = Path(temporary) / name
            folder.mkdir()
            write(folder)
            self._sign(folder, command)
            archive = shutil.make_archive(f"{temporary}/made", "zip", temporary, name)
            return Path(archive).read_bytes()

    def _sign(self, folder: Path, command: str) -> None:
        """Write down what was written, and flush all of it to disk."""
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        manifest = {
            "made_by": self.made_by,
            "command": command,
            "files": {name: _sha256(folder / name) for name in files},
        }
        text = json.dumps(manifest, indent=1) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8", newline="")
        for name in (*files, MANIFEST):
            with open(folder / name, "rb") as file:
                os.fsync(file.fileno())


@contextmanager
def _temporary_sibling(target: Path) -> Iterator[Path]:
    """A temporary folder next to the target, so that a rename suffices; gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.being-written-"  # nobody's own files are called that
    remove_left_overs(target.parent, f"{glob.escape(prefix)}*")
    temporary = target.with_name(f"{prefix}{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(new: Path, target: Path) -> None:
    """Move ``new`` to ``target``; an older folder of ours goes only once the new one stands."""
    old = new.with_name(new.name + ".old")
    replaced = target.exists()
    if replaced:
        os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        if replaced:
            os.rename(old, target)
        raise
    if replaced:
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(target.parent)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
