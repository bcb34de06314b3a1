"""Checkpoints that a crash cannot tear.

    <run>/checkpoints/step-000200/
        state.safetensors   master weights, moments, random number generators
        state.json          step, token counts, seconds
        complete.json       written last: the size of each file; without it nothing counts

A checkpoint is written beside (``.step-000200.tmp``), synced, marked complete and renamed. Only
then is the one before it removed. Nothing is pickled: loading one cannot run anything.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged, sync_files, sync_folder
from bidir_core.runs.read import read_object

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{6,})")


class Checkpoint(NamedTuple):
    """A loaded checkpoint: tensors by name (on the CPU) and the JSON beside them."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def save_checkpoint(
    run: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of ``step`` (steps done), then remove older ones.

    Raises UserError if the disk takes no more; earlier checkpoints are then still there.
    """
    parent = run / FOLDER
    target, temporary = parent / f"step-{step:06d}", parent / f".step-{step:06d}.tmp"
    try:
        parent.mkdir(exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(dict(state, step=step)), "utf-8")
        sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        sync_files(temporary)
        (temporary / "complete.json").write_text(json.dumps(sizes), "utf-8")
        sync_files(temporary)
        if target.exists():  # of a run that was resumed from before it
            shutil.rmtree(target)
        temporary.rename(target)
        sync_folder(parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        last = newest(run)
        hint = f"resume goes on from step {last[0]}" if last else "there is none to resume from"
        raise UserError(
            f"the checkpoint of step {step} could not be written to {parent} "
            f"({getattr(error, 'strerror', None) or error}); free some room, then {hint}"
        ) from error
    for earlier_step, path in _checkpoints(run):
        if earlier_step < step:
            shutil.rmtree(path, ignore_errors=True)
    return target


def newest(run: Path) -> tuple[int, Path] | None:
    """The newest complete checkpoint of a run; torn and half-removed ones are passed over."""
    return next(_complete_ones(run), None)


def load_newest(run: Path) -> Checkpoint | None:
    """Load the newest checkpoint that is complete and readable, or None."""
    for step, path in _complete_ones(run):
        try:
            tensors = load_file(path / "state.safetensors")
            state = read_object(path, "state.json")
        except (OSError, ValueError, Damaged, SafetensorError):
            continue
        return Checkpoint(step, tensors, state)
    return None


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The generators that training draws from (dropout), as tensors."""
    states = {"random/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random/cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put back what :func:`random_states` gave."""
    torch.set_rng_state(tensors["random/cpu"])
    if device.type == "cuda" and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"], device)


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    try:
        paths = list((run / FOLDER).iterdir())
    except OSError:
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in paths)
    return [(int(match[1]), path) for match, path in matches if match]


def _complete_ones(run: Path) -> Iterator[tuple[int, Path]]:
    newest_first = sorted(_checkpoints(run), reverse=True)
    return ((step, path) for step, path in newest_first if _complete(path))


def _complete(path: Path) -> bool:
    try:
        sizes = read_object(path, "complete.json")
        return bool(sizes) and all(
            (path / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, Damaged):
        return False
