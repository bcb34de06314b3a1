"""What is known about an imported run, and what could not be checked when it is paired.

Between our own runs, equal fingerprints show that items were cut into the same tokens. An imported
run recorded none; its texts are there, though, and they must be the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from bidir_core.store import Run

IMPORTED = "imported"
_TEXTS = ("task", "doc_id", "contexts", "continuations")


def is_imported(run: Run) -> bool:
    """Its scores were computed by another program."""
    return run.config.get("kind") == IMPORTED


def not_recorded(run: Run) -> list[str]:
    """What pairing would check and this run does not say."""
    known = {
        "tokenizer": run.config.get("tokenizer_fingerprint"),
        "BOS token": run.config.get("bos_added"),
        "split": run.settings.get("split"),
        "few-shot examples": run.settings.get("num_fewshot"),
    }
    return [name for name, value in known.items() if value is None]


def unchecked_notes(run_a: Run, run_b: Run) -> list[str]:
    """One sentence per imported run: what was taken on trust, and what the texts showed."""
    notes = []
    for run in (run_a, run_b):
        if not is_imported(run):
            continue
        source = str(run.config.get("source") or IMPORTED)
        missing = not_recorded(run)
        what = f"not recorded there, so not checked: {', '.join(missing)}; " if missing else ""
        texts = (
            "prompts and choices were not compared, since a run kept no texts"
            if not (_keeps_texts(run_a) and _keeps_texts(run_b))
            else "prompts and choices are the same text in both runs"
        )
        notes.append(f"'{run.id}' is {source}; {what}{texts}")
    return notes


def text_difference(
    run_a: Run, run_b: Run, rows_a: np.ndarray, rows_b: np.ndarray
) -> tuple[str, str, str] | None:
    """(text in a, text in b, sentence) of the first of these items that was asked otherwise.

    None if all are the same, if neither run is imported (their settings say it), and where a run
    kept no texts. The floors of a run, scored without its contexts, are compared by choices only.
    """
    if not (is_imported(run_a) or is_imported(run_b)):
        return None
    a, b = (run.items_table(_TEXTS).take(rows) for run, rows in ((run_a, rows_a), (run_b, rows_b)))
    same_context = run_a.settings.get("context") == run_b.settings.get("context")
    for name in ("contexts", "continuations") if same_context else ("continuations",):
        found = _first_difference(a.column(name), b.column(name))
        if found is None:
            continue
        row, text_a, text_b = found
        item = f"{a.column('task')[row]}/{a.column('doc_id')[row]}"
        what = "prompt" if name == "contexts" else "choices"
        return text_a, text_b, f"the {what} of {item} and perhaps others differ between the runs"
    return None


def _keeps_texts(run: Run) -> bool:
    if run.is_compact:
        return False
    contexts = run.items_table(("contexts",)).column("contexts")
    return contexts.null_count < len(contexts)


def _first_difference(a: pa.ChunkedArray, b: pa.ChunkedArray) -> tuple[int, str, str] | None:
    if a.combine_chunks().equals(b.combine_chunks()):
        return None
    for row, (one, other) in enumerate(zip(a.to_pylist(), b.to_pylist(), strict=True)):
        if one is None or other is None:
            continue
        length = max(len(one), len(other))  # a context shared by all choices may be written once
        left, right = (_bare(texts, length) for texts in (one, other))
        if left != right:
            at = next((i for i, (x, y) in enumerate(zip(left, right)) if x != y), 0)
            text_a, text_b = (texts[at] if at < len(texts) else "" for texts in (left, right))
            return row, text_a, text_b
    return None


def _bare(texts: list[Any], length: int) -> list[str]:
    """Without the space in front: under a chat template one records it and the other does not."""
    repeated = texts * length if len(texts) == 1 else texts
    return [str(text).removeprefix(" ") for text in repeated]
