"""Finding the run that ``--resume`` names, and refusing what would make it another run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from bidir_core.common.errors import UserError
from bidir_core.common.settings import flag_of, from_json
from bidir_core.data.assets import absolute_place
from bidir_core.data.custom import absolute_task
from bidir_core.data.given_items import absolute_items
from bidir_core.regimes import parse_regime
from bidir_core.runs.find import find_run
from bidir_core.runs.run import Run

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

    ``given`` are the settings named on this command line. Raises UserError for a run that is not
    there, is damaged or of another kind, and, naming them, for identity fields that differ.
    """
    run = find_run(reference, roots=[runs_dir] if runs_dir else None)
    if run.state == "corrupt":
        raise UserError(f"the run '{run.id}' cannot be resumed: {run.error}; start a new one")
    if run.config.get("kind", "eval") != kind:
        raise UserError(f"the run '{run.id}' is not {NAMES[kind]}; resume it with its own command")
    config = from_json(config_class, run.settings)
    changed = changed_identity(config, given)
    if changed:
        raise UserError(
            f"cannot resume '{run.id}' with {', '.join(changed)}: that is another run; leave the "
            "flag out, or start a new run without --resume"
        )
    return run, config


def changed_identity(recorded: Any, given: Mapping[str, Any]) -> list[str]:
    """Which identity fields a resume asks to change, as sentences' parts: ``--limit 5 (was 9)``."""
    changed = []
    for spec in fields(recorded):
        if spec.metadata["role"] != "identity" or spec.name not in given:
            continue
        was, now = getattr(recorded, spec.name), given[spec.name]
        if spec.name == "regime":
            now = str(parse_regime(now))
        if spec.name == "tasks":
            now = tuple(absolute_task(task) for task in now)
        if spec.name == "items_file":
            now = absolute_items(now)
        if spec.name in ("model", "data") and was != now:
            now = absolute_place(now)
        if was != now:
            changed.append(f"{flag_of(spec)} {now} (the run has {was})")
    return changed
