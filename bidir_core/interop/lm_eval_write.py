"""A run as lm-eval's own files: same names, same keys, so that its tools can read our scores.

    DIR/<model>/results_<time>.json
    DIR/<model>/samples_<task>_<time>.jsonl       one for each task

All of an export's files are written, or none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bidir_core.atomic import replacing
from bidir_core.errors import UserError
from bidir_core.interop.lm_eval_keys import model_name, results_of, sample_of
from bidir_core.interop.lm_eval_texts import documents, join_texts
from bidir_core.items import hash_doc
from bidir_core.metrics import NO_NORM_TASKS
from bidir_core.store import Run

_COLUMNS = (
    "task", "doc_id", "doc_hash", "gold", "contexts", "continuations", "ll", "correct",
    "correct_norm", "error",
)  # fmt: skip


def export_run(run: Run, out: Path | str) -> tuple[list[Path], list[str]]:
    """Write a finished evaluation into ``out``; the files, and notes on what they lack.

    Raises `UserError` for a run without items or not finished, texts that cannot be had, and
    files that are there already.
    """
    if run.is_reference or run.config.get("kind") == "finetune" or not run.has_items:
        raise UserError(f"the run '{run.id}' has no scored items to export")
    if run.state != "done":
        why = f": {run.error}" if run.error else ""
        raise UserError(f"the run '{run.id}' is {run.state}{why}; only a finished one is exported")
    records = run.items_table(_COLUMNS).to_pylist()
    join_texts(run, records)
    by_task: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_task.setdefault(record["task"], []).append(record)
    samples, notes, originals = {}, [], {}
    for task, rows in by_task.items():
        docs, originals[task] = documents(run, task, rows)
        norm = task not in NO_NORM_TASKS and any(len(set(r["continuations"])) > 1 for r in rows)
        samples[task] = [sample_of(run, row, docs[row["doc_id"]], norm) for row in rows]
        made_up = sum(hash_doc(docs[row["doc_id"]]) != row["doc_hash"] for row in rows)
        if made_up:
            notes.append(
                f"{task}: the documents of {made_up:,} items are not here, so 'doc' holds their "
                "contexts, continuations and gold; doc_hash is that of the real document"
            )
    created = _created(run)
    model = model_name(run)
    stamp = created.strftime("%Y-%m-%dT%H-%M-%S.%f")
    folder = Path(out).expanduser() / re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model)
    texts = {
        folder / f"samples_{task}_{stamp}.jsonl": "".join(map(_line, rows))
        for task, rows in samples.items()
    }
    results = results_of(run, samples, originals, created, model)
    # Last, so that samples without results never look like a whole export.
    texts[folder / f"results_{stamp}.json"] = json.dumps(results, indent=2, ensure_ascii=False)
    _write(folder, texts)
    return list(texts), notes


def _write(folder: Path, texts: Mapping[Path, str]) -> None:
    """All files, or none."""
    there = [path for path in texts if path.exists()]
    if there:
        raise UserError(f"{there[0]} exists already; give another folder with --out")
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8", errors="surrogatepass")
            written.append(path)
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(
                f"--out {folder.parent}: cannot be written ({error.strerror or error}); give "
                "another folder"
            ) from error
        raise


def _line(sample: Mapping[str, Any]) -> str:
    return json.dumps(sample, ensure_ascii=False) + "\n"


def _created(run: Run) -> datetime:
    """When the run was started: the time in the files' names, the same at every export."""
    try:
        return datetime.fromisoformat(str(run.config.get("created"))).astimezone(UTC)
    except ValueError:
        return run.created or datetime.fromtimestamp(run.modified, UTC)
