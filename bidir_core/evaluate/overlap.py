"""Whether a checkpoint was trained on a task: then its score there says nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.data.custom import is_custom_task
from bidir_core.data.order_tasks import ORDER_TASKS

# How data sets that hold an evaluation task are called, wherever they come from.
_NAMES = {
    "hellaswag": r"hella_?swag",
    "piqa": r"piqa",
    "arc_easy": r"^(?!.*challenge).*(?<![a-z])arc(?![a-z])",
    "arc_challenge": r"^(?!.*easy).*(?<![a-z])arc(?![a-z])",
    "winogrande": r"winogrande",
    # the order tasks, by the folder of their documents
    "sciq": r"(?<![a-z])sci_?q(?![a-z])",
    "boolq": r"bool_?q",
}


def refuse_trained_tasks(tasks: Sequence[str], record: Mapping[str, Any] | None) -> None:
    """Raise UserError if one of ``tasks`` was training data, by a checkpoint's ``bidir.json``.

    Names are compared, not texts: that a sample resembles an evaluation item is what
    decontamination looks for when the data is read.
    """
    for source in (record or {}).get("trained_tasks") or ():
        for task in tasks:
            if _same(task, str(source)) and not _another_file(task, record or {}):
                raise UserError(
                    f"the checkpoint was trained on '{source}', so its score on '{task}' would "
                    "say nothing; evaluate it on other tasks"
                )


def _another_file(task: str, record: Mapping[str, Any]) -> bool:
    """Whether a user's own task lies elsewhere than the file of that name that was trained on."""
    data = record.get("data")
    return is_custom_task(task) and isinstance(data, str) and os.path.isabs(data) and data != task


def same_name_sentences(tasks: Sequence[str], record: Mapping[str, Any] | None) -> list[str]:
    """What to say of a user's own task named as the training data was: a name shows no overlap."""
    record = record or {}
    return [
        f"warning: the checkpoint was trained on another file of the name of '{task}' "
        f"({record['data']}); whether they share items was not checked"
        for source in record.get("trained_tasks") or ()
        for task in tasks
        if _same(task, str(source)) and _another_file(task, record)
    ]


def _same(task: str, source: str) -> bool:
    name = source.lower().replace("-", "_")
    documents = ORDER_TASKS[task].data.folder if task in ORDER_TASKS else task
    if documents in _NAMES:
        return re.search(_NAMES[documents], name) is not None
    return PurePath(task).stem.lower().replace("-", "_") == PurePath(name).stem
