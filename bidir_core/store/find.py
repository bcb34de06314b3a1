"""Find runs: all of them, or the one that somebody names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bidir_core.errors import UserError
from bidir_core.run_layout import runs_roots
from bidir_core.store.folder import is_run_folder
from bidir_core.store.run import Run

_ID = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(/points/[A-Za-z0-9._-]+)?")


def list_runs(roots: Sequence[Path | str] | None = None, *, points: bool = False) -> list[Run]:
    """Every run under the roots, newest first; never raises for a bad folder.

    ``points`` adds the points of lab sweeps. Where two roots hold the same id, the first counts.
    """
    found: dict[str, Run] = {}
    for root in runs_roots() if roots is None else [Path(r) for r in roots]:
        for stage in _folders(root):
            for folder in _folders(stage):
                if not is_run_folder(folder):
                    continue
                run = Run(folder)
                found.setdefault(run.id, run)
                if points and run.stage == "lab":
                    for point in run.points():
                        found.setdefault(point.id, point)
    return sorted(found.values(), key=lambda run: (run.path.name, run.id), reverse=True)


def _folders(path: Path) -> list[Path]:
    try:
        return [p for p in path.iterdir() if not p.name.startswith(".") and p.is_dir()]
    except OSError:
        return []


def find_run(
    ref: str | Path | Run,
    roots: Sequence[Path | str] | None = None,
    *,
    allow_path: bool = True,
) -> Run:
    """The run that ``ref`` names: its id, a path to its folder, or a unique folder name.

    ``allow_path=False`` for references that come from a URL. Raises UserError if there is none
    or if several match.
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
    if allow_path and text and is_run_folder(Path(text).expanduser()):
        return Run(Path(text).expanduser())
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
