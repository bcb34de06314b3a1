"""Rename and delete runs; never while they are written, never in read-only mode."""

from __future__ import annotations

import shutil

from bidir_core.errors import UserError
from bidir_core.run_layout import check_name, refuse_if_read_only, split_folder_name
from bidir_core.store.find import find_run
from bidir_core.store.folder import one_line
from bidir_core.store.run import Run


def delete_run(run: Run | str) -> None:
    """Remove a run folder. Refused in read-only mode and while the run is being written."""
    found = _changeable(run, "delete")
    # Renamed away first: a half-deleted folder must never look like a run.
    doomed = found.path.with_name(f".deleted-{found.path.name}")
    try:
        found.path.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise UserError(f"cannot delete the run '{found.id}': {one_line(error)}") from error


def rename_run(run: Run | str, name: str | None) -> Run:
    """Change the name after the time stamp (None or empty removes it); return the renamed run."""
    found = _changeable(run, "rename")
    stamp = split_folder_name(found.path.name)[0]
    target = found.path.with_name(f"{stamp}_{check_name(name)}" if name else stamp)
    if target == found.path:
        return found
    if target.exists():
        raise UserError(f"cannot rename: the run '{Run(target).id}' exists already")
    try:
        found.path.rename(target)
    except OSError as error:
        raise UserError(f"cannot rename the run '{found.id}': {one_line(error)}") from error
    return Run(target)


def _changeable(run: Run | str, action: str) -> Run:
    refuse_if_read_only(f"{action} a run")
    found = Run(find_run(run).path)  # a fresh look at its state
    if found.state in ("running", "queued"):
        raise UserError(f"cannot {action} '{found.id}': it is {found.state}; cancel it first")
    return found
