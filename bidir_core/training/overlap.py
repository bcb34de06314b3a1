"""Refuse to evaluate a checkpoint on a task that it was trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from bidir_core.errors import UserError

# How data sets that hold an evaluation task are called, wherever they come from.
_NAMES = {
    "hellaswag": r"hella_?swag",
    "piqa": r"piqa",
    "arc_easy": r"^(?!.*challenge).*(?<![a-z])arc(?![a-z])",
    "arc_challenge": r"^(?!.*easy).*(?<![a-z])arc(?![a-z])",
    "winogrande": r"winogrande",
}


def refuse_trained_tasks(tasks: Sequence[str], record: Mapping[str, Any] | None) -> None:
    """Raise UserError if one of ``tasks`` was training data, by a checkpoint's ``bidir.json``.

    Names are compared, not texts: that a sample resembles an evaluation item is what
    decontamination looks for when the data is read.
    """
    for source in (record or {}).get("trained_tasks") or ():
        for task in tasks:
            if _same(task, str(source)):
                raise UserError(
                    f"the checkpoint was trained on '{source}', so its score on '{task}' would "
                    "say nothing; evaluate it on other tasks"
                )


def _same(task: str, source: str) -> bool:
    name = source.lower().replace("-", "_")
    if task in _NAMES:
        return re.search(_NAMES[task], name) is not None
    return PurePath(task).stem.lower().replace("-", "_") == PurePath(name).stem
