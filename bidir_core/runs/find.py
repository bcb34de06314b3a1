"""Find runs: all of them, or the one that somebody names."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import filelock

from bidir_core.common.errors import UserError
from bidir_core.common.files import one_line, remove_left_overs
from bidir_core.common.settings import flag_of, from_json
from bidir_core.runs.layout import (
    check_name,
    is_locked,
    refuse_if_read_only,
    run_lock,
    runs_roots,
    split_folder_name,
)
from bidir_core.runs.run import Run, is_run_folder

_ID = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(/points/[A-Za-z0-9._-]+)?")


def list_runs(roots: Sequence[Path | str] | None = None, *, points: bool = False) -> list[Run]:
    """Every run under the roots, newest first; never raises for a bad folder.

    ``points`` adds the points of lab sweeps. Where two roots hold the same id, the first counts.
    """
    return [Run(path) for path in run_folders(roots, points=points)]


def run_folders(
    roots: Sequence[Path | str] | None = None,
    *,
    points: bool = False,
    known: Container[str] = (),
) -> list[str]:
    """The folders of :func:`list_runs`, without a look into their files, and none at ``known`` ones."""
    found: dict[str, str] = {}  # by id
    for root in runs_roots() if roots is None else roots:
        absolute = str(Path(root).absolute())
        for stage in _folders(absolute, ()):
            runs = _runs_in(stage.path, known)
            if points and stage.name == "lab":
                runs += [point for run in runs for point in _runs_in(f"{run}/points", known)]
            for run in runs:
                found.setdefault(run[len(absolute) + 1 :], run)
    return [
        found[key] for key in sorted(found, key=lambda key: (key.rpartition("/")[2], key))[::-1]
    ]


def _runs_in(path: str, known: Container[str]) -> list[str]:
    folders = (folder.path for folder in _folders(path, known))
    return [folder for folder in folders if folder in known or is_run_folder(folder)]


def _folders(path: str, known: Container[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            return [e for e in visible if e.path in known or os.path.isdir(e.path)]
    except OSError:
        return []


def find_run(ref: str | Path | Run, roots: Sequence[Path | str] | None = None) -> Run:
    """The run that ``ref`` names: its id, a path to its folder, or a unique folder name.

    Raises UserError if there is none or if several match.
    """
    if isinstance(ref, Run):
        return ref
    text = str(ref).strip()
    searched = runs_roots() if roots is None else [Path(r) for r in roots]
    clean = text.strip("/").removeprefix("runs/")
    if _ID.fullmatch(clean) and not set(clean.split("/")) & {".", ".."}:
        for root in searched:
            if is_run_folder(root / clean):
                return Run(root / clean)
    folder = Path(text).expanduser().absolute()
    if text and is_run_folder(folder):
        return Run(folder)
    named = [run for run in list_runs(searched) if run.path.name == text]
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(run.id for run in named)
        raise UserError(f"'{text}' names {len(named)} runs; say which: {ids}")
    some = next((run.id for run in list_runs(searched)), "stage1_vanilla_eval/20260101-120000")
    raise UserError(
        f"there is no run '{text[:200]}'; give an id such as {some}, or a path to its folder"
    )


# Rename and delete runs; never while they are written, never in read-only mode.


def delete_run(run: Run | str) -> None:
    """Remove a run folder. Refused in read-only mode and while the run is being written."""
    with _locked(run, "delete") as found:
        # Renamed away first: a half-deleted folder must never look like a run.
        remove_left_overs(found.path.parent, ".deleted-*")
        doomed = found.path.with_name(f".deleted-{found.path.name}")
        found.path.rename(doomed)
        shutil.rmtree(doomed)


def rename_run(run: Run | str, name: str | None) -> Run:
    """Change the name after the time stamp (None or empty removes it); return the renamed run."""
    with _locked(run, "rename") as found:
        stamp = split_folder_name(found.path.name)[0]
        target = found.path.with_name(f"{stamp}_{check_name(name)}" if name else stamp)
        if target == found.path:
            return found
        if target.exists():
            raise UserError(f"cannot rename: the run '{Run(target).id}' exists already")
        found.path.rename(target)
        (target / ".lock").unlink(missing_ok=True)
        return Run(target)


@contextmanager
def _locked(run: Run | str, action: str) -> Iterator[Run]:
    """The run, while nobody else can write to it: its lock is held here."""
    refuse_if_read_only(f"{action} a run")
    path = find_run(run).path
    found = Run(path)
    busy = UserError(f"cannot {action} '{found.id}': it is running; cancel it first")
    if found.is_point and is_locked(path.parent.parent):
        raise busy
    if found.state in ("running", "queued"):  # asked first: whoever holds its lock makes it running
        raise UserError(f"cannot {action} '{found.id}': it is {found.state}; cancel it first")
    lock = run_lock(path)
    try:
        with lock:
            try:
                yield found
            finally:
                (path / ".lock").unlink(missing_ok=True)
    except filelock.Timeout:
        raise busy from None
    except OSError as error:
        raise UserError(f"cannot {action} the run '{found.id}': {one_line(error)}") from error


# Find the run that `--resume` names, and refuse what would make it another run.

ConfigT = TypeVar("ConfigT")

NAMES = {
    "eval": "an evaluation",
    "finetune": "a fine-tune",
    "lab": "a sweep",
    "attend": "an observation",
}


def resumable(
    reference: str | Path,
    kind: str,
    config_class: type[ConfigT],
    given: Mapping[str, Any],
    *,
    runs_dir: str | None = None,
) -> tuple[Run, ConfigT]:
    """The run and its recorded settings; a finished one too (then there is nothing left to do).

    ``given`` are the settings named on this command line, of which those take effect that decide
    only where and how the work is done. Raises UserError for a run that is not there, is damaged or
    of another kind, and, naming them, for identity fields that differ.
    """
    run = find_run(reference, roots=[runs_dir] if runs_dir else None)
    if run.state == "corrupt":
        raise UserError(f"the run '{run.id}' cannot be resumed: {run.error}; start a new one")
    if run.config.get("kind", "eval") != kind:
        raise UserError(f"the run '{run.id}' is not {NAMES[kind]}; resume it with its own command")
    if run.state == "done" and not is_locked(run.path):
        (run.path / ".lock").unlink(missing_ok=True)  # it was killed right behind its last write
    config = from_json(config_class, run.settings)
    changed = changed_identity(config, given)
    if changed:
        raise UserError(
            f"cannot resume '{run.id}' with {', '.join(changed)}: that is another run; leave the "
            "flag out, or start a new run without --resume"
        )
    runtime = {spec.name for spec in fields(config) if spec.metadata["role"] == "runtime"}  # type: ignore[arg-type]
    now = {name: value for name, value in given.items() if name in runtime - {"runs_dir", "name"}}
    return run, replace(config, **now)  # type: ignore[type-var]


def changed_identity(recorded: Any, given: Mapping[str, Any]) -> list[str]:
    """Which identity fields a resume asks to change, as sentences' parts: ``--limit 5 (was 9)``."""
    changed = []
    for spec in fields(recorded):
        if spec.metadata["role"] != "identity" or spec.name not in given:
            continue
        was, now = getattr(recorded, spec.name), given[spec.name]
        # As a config stores it: an absolute path, a regime as it prints.
        now = getattr(replace(recorded, **{spec.name: now}), spec.name)
        if was != now:
            changed.append(f"{flag_of(spec)} {now} (the run has {was})")
    return changed


def check_same(run: Run, key: str, current: str, subject: str, *, required: bool = False) -> None:
    """UserError if a run that is to be resumed was made with other data or another model.

    Also if it does not say, where that is ``required``.
    """
    recorded = run.config.get(key)
    if recorded != current and (required or recorded is not None):
        raise UserError(
            f"cannot resume '{run.id}': {subject} changed since it was started; start a new run "
            "without --resume"
        )
