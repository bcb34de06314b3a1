"""Which items of two runs belong together, and why some runs must not be paired at all.

Two accuracies differ for many reasons; a paired difference means something only if the runs saw
the same documents, cut into the same tokens, in the same prompt. What cannot be paired is refused
with one sentence. Different *sets* of the same items can be intersected on request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from bidir_core.common.errors import UserError
from bidir_core.runs.layout import IMPORTED
from bidir_core.runs.run import METRICS, OUTCOME_COLUMNS, Metric, Run, outcomes

_KEYS = ("task", "doc_id", "doc_hash", "gold")  # of equal items in both runs
PAIR_COLUMNS = (*_KEYS, *OUTCOME_COLUMNS, "error", "n_continuation_tokens")


@dataclass(frozen=True)
class Mismatch:
    """One reason why two runs do not pair."""

    what: str
    value_a: str
    value_b: str
    sentence: str


@dataclass(frozen=True)
class PairedItems:
    """The aligned items of two runs, error items left out; arrays of shape ``[n_items]``.

    ``rows_a`` and ``rows_b`` index the runs' own tables, for columns loaded later.
    """

    run_a: Run
    run_b: Run
    metric: Metric
    task: np.ndarray
    doc_id: np.ndarray
    gold: np.ndarray
    n_choices: np.ndarray
    correct_a: np.ndarray
    correct_b: np.ndarray
    pred_a: np.ndarray
    pred_b: np.ndarray
    rows_a: np.ndarray
    rows_b: np.ndarray
    n_errors: int
    n_unpaired: int
    intersected: bool

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(self.task.tolist()))

    @property
    def n(self) -> int:
        return len(self.task)

    @property
    def flip(self) -> np.ndarray:
        """broken: right to wrong. fixed: wrong to right. changed_wrong: wrong to another wrong.
        Else same_right or same_wrong."""
        a, b, moved = self.correct_a, self.correct_b, self.pred_a != self.pred_b
        conditions = [a & ~b, ~a & b, ~a & ~b & moved, a & b]
        return np.select(
            conditions, ["broken", "fixed", "changed_wrong", "same_right"], "same_wrong"
        )

    def by_task(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Split an array ``[n_items]`` by task, in the runs' task order."""
        return {task: values[self.task == task] for task in self.tasks}

    def chance(self) -> dict[str, float]:
        """Mean of 1 / n_choices over the paired items, per task."""
        return {
            t: float((1 / np.maximum(c, 1)).mean()) for t, c in self.by_task(self.n_choices).items()
        }


def check_metric(metric: str) -> Metric:
    for known in METRICS:
        if metric == known:
            return known
    raise UserError(f"unknown metric '{metric}'; choose {' or '.join(METRICS)}")


def repeats(settings: Mapping[str, Any]) -> int:
    """How often a run's contexts were given; once where its settings do not say, as in older runs."""
    return int(settings.get("repeat_prompt") or 1)


def mismatches(run_a: Run, run_b: Run, *, check_context: bool = True) -> list[Mismatch]:
    """Every setting in which the runs differ so that their items must not be paired.

    A setting that a run did not record (an imported one may not) is no mismatch.
    """
    a, b = run_a.settings, run_b.settings

    def chosen(name: str) -> tuple[Any, Any]:
        return a.get(name), b.get(name)

    def recorded(name: str) -> tuple[Any, Any]:
        return run_a.config.get(name), run_b.config.get(name)

    prompts = "one run used the chat template and the other did not"
    tokens = "the runs use different tokenizers ({a} and {b}), so their tokens and prompts differ"
    checks = [
        ("split", chosen("split"), "one run used the split {a}, the other {b}"),
        ("tokenizer", recorded("tokenizer_fingerprint"), tokens),
        ("chat template", chosen("chat_template"), prompts),
    ]
    if all(chosen("chat_template")):
        dates = "the runs' chat templates were told the dates {a} and {b}"
        checks.append(("date in the chat template", recorded("chat_date"), dates))
    if "none" in chosen("context"):
        pass  # without a context there is nothing to put a BOS token in front of
    elif None in recorded("bos_added"):
        checks.append(("BOS", chosen("bos"), "the runs treat the BOS token as {a} and as {b}"))
    else:
        added = "one run put a BOS token in front and the other did not"
        checks.append(("BOS", recorded("bos_added"), added))
    shots = "one run shows {a} solved examples before each item, the other {b}"
    checks.append(("few-shot", chosen("num_fewshot"), shots))
    if check_context:
        contexts = "one run scored with context {a}, the other with context {b}"
        checks.append(("context", chosen("context"), contexts))
    shuffled = chosen("context") == ("shuffled", "shuffled")
    if shuffled or (a.get("num_fewshot") and a.get("num_fewshot") == b.get("num_fewshot")):
        seeds = "the runs drew their contexts or examples with the seeds {a} and {b}"
        checks.append(("seed", chosen("seed"), seeds))
    return [
        Mismatch(name, str(a), str(b), sentence.format(a=_show(a), b=_show(b)))
        for name, (a, b), sentence in checks
        if a is not None and b is not None and a != b
    ]


def mismatch_report(run_a: Run, run_b: Run) -> list[Mismatch]:
    """Everything that keeps two runs with items from pairing: settings, then the items."""
    a, b = run_a.items_table(PAIR_COLUMNS), run_b.items_table(PAIR_COLUMNS)
    rows_a, rows_b, _, why = _align(a, b)
    sizes = f"{a.num_rows:,} items", f"{b.num_rows:,} items"
    items = [] if why is None else [Mismatch("items", *sizes, why)]
    texts = text_difference(run_a, run_b, rows_a, rows_b)
    return [*mismatches(run_a, run_b), *items, *([texts] if texts is not None else [])]


def pair(
    run_a: Run,
    run_b: Run,
    metric: str = "acc",
    *,
    intersect: bool = False,
    check_context: bool = True,
) -> PairedItems:
    """Align the items of two runs by (task, doc_id), equal documents only.

    Raises UserError, with the reason, for runs that do not pair; ``intersect`` allows different
    item sets. ``check_context=False`` pairs a run with its no-context floor. Error items of
    either run are left out and counted. acc_norm uses ``correct_norm``, and ``correct`` in tasks
    without it, as the macro does.
    """
    checked = check_metric(metric)
    for run in (run_a, run_b):
        if run.is_reference:
            raise UserError(f"'{run.id}' holds published numbers only; there are no items to pair")
        run.refuse_if_corrupt()
        if not run.has_items:
            reason = (
                ": only its metrics were kept" if run.state == "done" else f" (it is {run.state})"
            )
            raise UserError(f"the run '{run.id}' has no items to pair{reason}")
    different = mismatches(run_a, run_b, check_context=check_context)
    if different:
        raise UserError(f"'{run_a.id}' and '{run_b.id}' do not pair: {different[0].sentence}")
    a, b = run_a.items_table(PAIR_COLUMNS), run_b.items_table(PAIR_COLUMNS)
    rows_a, rows_b, n_unpaired, why = _align(a, b)
    if why is not None and (not intersect or not len(rows_a)):
        remedy = "; --intersect compares only the items both hold" if len(rows_a) else ""
        raise UserError(f"'{run_a.id}' and '{run_b.id}' do not pair: {why}{remedy}")
    if (texts := text_difference(run_a, run_b, rows_a, rows_b)) is not None:
        raise UserError(f"'{run_a.id}' and '{run_b.id}' do not pair: {texts.sentence}")
    failed = (
        a.column("error").is_valid().to_numpy()[rows_a]
        | b.column("error").is_valid().to_numpy()[rows_b]
    )
    rows_a, rows_b = rows_a[~failed], rows_b[~failed]
    if not len(rows_a):
        raise UserError(f"'{run_a.id}' and '{run_b.id}' share no item that both could score")
    (correct_a, pred_a), (correct_b, pred_b) = outcomes(a, checked), outcomes(b, checked)
    lengths = a.column("n_continuation_tokens").combine_chunks().value_lengths()
    return PairedItems(
        run_a=run_a,
        run_b=run_b,
        metric=checked,
        task=a.column("task").to_numpy(zero_copy_only=False)[rows_a],
        doc_id=a.column("doc_id").to_numpy()[rows_a],
        gold=a.column("gold").to_numpy()[rows_a],
        n_choices=lengths.fill_null(0).to_numpy(zero_copy_only=False)[rows_a],
        correct_a=correct_a[rows_a],
        correct_b=correct_b[rows_b],
        pred_a=pred_a[rows_a],
        pred_b=pred_b[rows_b],
        rows_a=rows_a,
        rows_b=rows_b,
        n_errors=int(failed.sum()),
        n_unpaired=n_unpaired,
        intersected=why is not None,
    )


def _align(a: pa.Table, b: pa.Table) -> tuple[np.ndarray, np.ndarray, int, str | None]:
    """Row numbers of the common items in both tables, how many are left out, and why."""
    if a.num_rows == b.num_rows and all(a.column(k).equals(b.column(k)) for k in _KEYS):
        rows = np.arange(a.num_rows)
        return rows, rows, 0, None
    frame_a, frame_b = (
        table.select(_KEYS).to_pandas().assign(row=np.arange(table.num_rows)) for table in (a, b)
    )
    merged = frame_a.merge(frame_b, on=["task", "doc_id"], suffixes=("_a", "_b"), sort=False)
    equal = (merged["doc_hash_a"] == merged["doc_hash_b"]) & (merged["gold_a"] == merged["gold_b"])
    common = merged[equal].sort_values("row_a")
    rows_a, rows_b = common["row_a"].to_numpy(), common["row_b"].to_numpy()
    n_unpaired = a.num_rows + b.num_rows - 2 * len(common)
    if n_unpaired == 0:
        return rows_a, rows_b, 0, None
    return rows_a, rows_b, n_unpaired, _why_unpaired(frame_a, frame_b, merged[~equal], len(common))


def _why_unpaired(a: pd.DataFrame, b: pd.DataFrame, different: pd.DataFrame, n_common: int) -> str:
    if len(different):
        first = f"{different['task'].iloc[0]}/{different['doc_id'].iloc[0]}"
        return (
            f"{len(different):,} item ids hold different documents in the two runs (first {first}); "
            f"{n_common:,} items are the same"
        )
    tasks_a, tasks_b = set(a["task"]), set(b["task"])
    if tasks_a != tasks_b:
        lone = ", ".join(sorted(tasks_a ^ tasks_b))
        return f"only one of the runs has the task {lone}; {n_common:,} items are in both"
    return (
        f"they hold different items, {len(a):,} and {len(b):,}, of which {n_common:,} are in both"
    )


def _show(value: Any) -> str:
    return f"'{str(value)[:60]}'"


# What is known about an imported run, and what could not be checked when it is paired.

_TEXTS = ("task", "doc_id", "contexts", "continuations")


def is_imported(run: Run) -> bool:
    """Its scores were computed by another program."""
    return run.config.get("kind") == IMPORTED


def unchecked_notes(run_a: Run, run_b: Run) -> list[str]:
    """One sentence per imported run: what was taken on trust, and what the texts showed."""
    notes = []
    for run in (run_a, run_b):
        if not is_imported(run):
            continue
        source = str(run.config.get("source") or IMPORTED)
        checked = {
            "tokenizer": run.config.get("tokenizer_fingerprint"),
            "BOS token": run.config.get("bos_added"),
            "split": run.settings.get("split"),
            "few-shot examples": run.settings.get("num_fewshot"),
        }
        missing = [name for name, value in checked.items() if value is None]
        unchecked = f"not recorded there, so not checked: {', '.join(missing)}; " if missing else ""
        texts = (
            "prompts and choices were not compared, since a run kept no texts"
            if not (_keeps_texts(run_a) and _keeps_texts(run_b))
            else "prompts and choices are the same text in both runs"
        )
        notes.append(f"'{run.id}' is {source}; {unchecked}{texts}")
    return notes


def text_difference(
    run_a: Run, run_b: Run, rows_a: np.ndarray, rows_b: np.ndarray
) -> Mismatch | None:
    """The first of these items that was asked otherwise.

    None if all are the same, and where a run kept no texts. The floors of a run, scored without its
    contexts, are compared by choices only.
    """
    if run_a.texts_path is not None and run_a.texts_path == run_b.texts_path:
        return None  # points of a sweep that share their texts
    a, b = (run.items_table(_TEXTS).take(rows) for run, rows in ((run_a, rows_a), (run_b, rows_b)))
    same_context = run_a.settings.get("context") == run_b.settings.get("context")
    repeated = repeats(run_a.settings) != repeats(run_b.settings)
    for name in ("contexts", "continuations") if same_context else ("continuations",):
        is_longer = repeated and name == "contexts"
        difference = _first_difference(a.column(name), b.column(name), is_longer)
        if difference is None:
            continue
        row, text_a, text_b = difference
        item = f"{a.column('task')[row]}/{a.column('doc_id')[row]}"
        part = "prompt" if name == "contexts" else "choices"
        sentence = f"the {part} of {item} and perhaps others differ between the runs"
        return Mismatch("texts", text_a, text_b, sentence)
    return None


def _keeps_texts(run: Run) -> bool:
    if run.is_compact:
        return False
    contexts = run.items_table(("contexts",)).column("contexts")
    return contexts.null_count < len(contexts)


def _first_difference(
    a: pa.ChunkedArray, b: pa.ChunkedArray, is_longer: bool
) -> tuple[int, str, str] | None:
    """``is_longer``: one of the texts is the other given several times, so it begins with it."""
    if a.combine_chunks().equals(b.combine_chunks()):
        return None
    for row, (texts_a, texts_b) in enumerate(zip(a.to_pylist(), b.to_pylist(), strict=True)):
        if texts_a is None or texts_b is None:
            continue
        # A context shared by all choices may be written once.
        length = max(len(texts_a), len(texts_b))
        bare_a, bare_b = (_bare(texts, length) for texts in (texts_a, texts_b))
        if is_longer:
            pairs = list(zip(bare_a, bare_b, strict=True))
            bare_a, bare_b = [x[: len(y)] for x, y in pairs], [y[: len(x)] for x, y in pairs]
        if bare_a != bare_b:
            index = next((i for i, (x, y) in enumerate(zip(bare_a, bare_b)) if x != y), 0)
            text_a, text_b = (
                texts[index] if index < len(texts) else "" for texts in (bare_a, bare_b)
            )
            return row, text_a, text_b
    return None


def _bare(texts: list[Any], length: int) -> list[str]:
    """Without the space in front: under a chat template one records it and the other does not."""
    repeated = texts * length if len(texts) == 1 else texts
    return [str(text).removeprefix(" ") for text in repeated]
