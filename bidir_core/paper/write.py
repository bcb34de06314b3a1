"""Putting the folder in its place: built beside it, then moved there in one rename."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bidir_core.atomic import sync_folder
from bidir_core.errors import UserError
from bidir_core.paper.document import Tell, fill
from bidir_core.report import Report

MANIFEST = "manifest.json"
MADE_BY = "bidir_core report --paper"
# What LaTeX leaves behind when a reader compiles main.tex: made again by compiling again.
_LATEX_LEFTOVERS = {
    f"main.{end}"
    for end in ("aux", "bbl", "blg", "fdb_latexmk", "fls", "log", "out", "pdf", "synctex.gz", "toc")
}


def write_paper(report: Report, folder: Path | str, *, command: str = "") -> Path:
    """Write the folder of a paper and return it.

    ``command`` is the line that asked for it, for the README. Raises UserError if the folder
    holds anything that this command did not write, or cannot be written.
    """
    target = Path(folder).expanduser().absolute()
    try:
        check_paper_folder(target)
        with _beside(target) as temporary:
            fill(report, temporary, command)
            _sign(temporary)
            _replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"--paper {folder}: cannot be written ({error.strerror or error}); give another folder"
        ) from error
    return target


def zip_paper(report: Report, name: str, tell: Tell, *, command: str = "") -> bytes:
    """The same folder as one ZIP file, in which it is called ``name``; the same runs give the same
    bytes. ``tell`` hears how far it is. Nothing stays on disk.
    """
    out = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="bidir-paper-") as temporary:
        folder = Path(temporary)
        fill(report, folder, command, tell)
        _sign(folder)
        with zipfile.ZipFile(out, "w") as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    entry = zipfile.ZipInfo(f"{name}/{path.relative_to(folder).as_posix()}")
                    entry.external_attr = 0o644 << 16
                    archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def check_paper_folder(folder: Path | str) -> None:
    """UserError for a place that holds something else: what others wrote is never lost."""
    target = Path(folder).expanduser().absolute()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"--paper {target}: this is not a folder; give a new or an empty one")
    if not target.exists() or not any(target.iterdir()):
        return
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        ours = manifest["files"] if manifest["made_by"] == MADE_BY else None
    except (OSError, ValueError, KeyError, TypeError):
        ours = None
    if not isinstance(ours, dict):
        raise UserError(
            f"--paper {target}: the folder is not empty and was not made by this command; give a "
            "new or an empty one"
        )
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if path.is_dir() or name == MANIFEST or name in _LATEX_LEFTOVERS:
            continue
        if ours.get(name) != _sha256(path):
            raise UserError(
                f"--paper {target}: '{name}' was added or changed after this command made the "
                "folder, and would be lost; move it away, or give another folder"
            )


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A temporary folder next to the target, so that a rename suffices; gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp's own are for one's eyes only
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sign(folder: Path) -> None:
    """The list of what was written, by which the next run knows the folder as its own."""
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    manifest = {"made_by": MADE_BY, "files": {name: _sha256(folder / name) for name in files}}
    text = json.dumps(manifest, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
    for name in (*files, MANIFEST):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
