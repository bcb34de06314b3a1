"""Run folders, seen from the reader's side: find them, list them, read them.

Nothing here raises because one folder is broken: such a run has state ``corrupt`` and an
``error`` line. Writing is :class:`~bidir_core.run_writer.RunWriter`'s.

``config.json`` holds ``schema``, ``kind`` (eval, finetune, lab, reference), ``stage``,
``created``, ``config`` (the resolved settings), ``packages``, ``git_commit``,
``model_fingerprint``, ``tokenizer_fingerprint``, ``data_fingerprint`` and ``bos_added``.
"""

from bidir_core.store.change import delete_run, rename_run
from bidir_core.store.find import find_run, list_runs
from bidir_core.store.run import Run

__all__ = [
    "Run",
    "delete_run",
    "find_run",
    "list_runs",
    "rename_run",
]
