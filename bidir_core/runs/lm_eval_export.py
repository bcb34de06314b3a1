"""A run as lm-eval's own files: same names, same keys, so that its tools can read our scores.

DIR/<model>/results_<time>.json
DIR/<model>/samples_<task>_<time>.jsonl       one for each task
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.common.files import replacing
from bidir_core.common.version import __version__
from bidir_core.data import item_texts
from bidir_core.data.items import hash_doc
from bidir_core.data.source import Doc
from bidir_core.data.tasks import TASKS, load_selected
from bidir_core.runs.lm_eval_import import KEY, origin_of
from bidir_core.runs.lm_eval_read import READ_VERSION
from bidir_core.runs.run import NO_NORM_TASKS, Run, standard_error

_COLUMNS = ["task", "doc_id", "doc_hash", "gold", "contexts", "continuations", "ll"]
_COLUMNS += ["correct", "correct_norm", "error"]


def export_run(run: Run, out: Path | str) -> tuple[list[Path], list[str]]:
    """Write a finished evaluation into ``out``; return the files, and notes on what they lack.

    Raises `UserError` for a run without items or not finished, texts that cannot be had, and
    files that are there already.
    """
    if run.is_reference or run.config.get("kind") == "finetune" or not run.has_items:
        raise UserError(f"the run '{run.id}' has no scored items to export")
    if run.state != "done":
        state = f"{run.state}: {run.error}" if run.error else run.state
        raise UserError(f"the run '{run.id}' is {state}; only a finished one is exported")
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
    created = run.created or datetime.fromtimestamp(run.modified, UTC)  # the same at every export
    model = model_name(run)
    stamp = created.strftime("%Y-%m-%dT%H-%M-%S.%f")
    folder = Path(out).expanduser() / sanitised(model)
    texts = {
        folder / f"samples_{task}_{stamp}.jsonl": "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in rows
        )
        for task, rows in samples.items()
    }
    results = results_of(run, samples, originals, created, model)
    # Last, so that samples without results never look like a whole export.
    texts[folder / f"results_{stamp}.json"] = json.dumps(results, indent=2, ensure_ascii=False)
    _write(folder, texts)
    return list(texts), notes


def _write(folder: Path, texts: Mapping[Path, str]) -> None:
    """Samples without the results, which a kill or a full disk leaves, are written again."""
    results = list(texts)[-1]
    if results.exists():
        raise UserError(f"{results} exists already; give another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8", errors="surrogatepass")
    except OSError as error:
        raise UserError(
            f"--out {folder.parent}: cannot be written ({error.strerror or error}); give another "
            "folder"
        ) from error


# A run's samples and results under lm-eval's keys, in lm-eval's order.

# Whether a choice would also be generated greedily: lm-eval logs it, a run does not record it.
_GREEDY_UNKNOWN = "None"
# What lm-eval's results file and its settings say of a run, and a run here does not.
_UNKNOWN = ["upper_git_hash", "system_instruction", "system_instruction_sha", "chat_template_sha"]
_UNKNOWN_SETTINGS = ["model_num_parameters", "batch_size", "use_cache", "gen_kwargs"]
_UNKNOWN_SETTINGS += ["random_seed", "numpy_seed", "torch_seed", "fewshot_seed"]
Record = Mapping[str, Any]


def sample_of(run: Run, record: Record, doc: Doc, norm: bool) -> dict[str, Any]:
    """One line of the sample log, its keys in lm-eval's order; ``norm``: the task has acc_norm."""
    contexts, continuations = record["contexts"], record["continuations"]
    per_choice = len(contexts) > 1
    if run.settings.get("chat_template"):  # it ends the turn, so choices follow without a space
        continuations = [text.removeprefix(" ") for text in continuations]
    requests = [(contexts[i if per_choice else 0], text) for i, text in enumerate(continuations)]
    # An item that could not be scored has no number; nan is read back as an item error.
    ll = record["ll"] or [math.nan] * len(requests)
    # A float32 in the fewest digits that are read back as the same one.
    answers = [[str(np.float32(value)), _GREEDY_UNKNOWN] for value in ll]
    # Where choices differ in their contexts lm-eval's target is the text behind them.
    target = continuations[0].removeprefix(" ") if per_choice else str(record["gold"])
    scores = {"acc": float(bool(record["correct"]))}
    if norm:
        has_norm = record["correct_norm"] is not None  # equal choices have equal lengths: it is acc
        scores["acc_norm"] = float(record["correct_norm"]) if has_norm else scores["acc"]
    return {
        "doc_id": record["doc_id"],
        "doc": doc,
        "target": target,
        "arguments": {
            f"gen_args_{i}": {"arg_0": context, "arg_1": text}
            for i, (context, text) in enumerate(requests)
        },
        "resps": [[answer] for answer in answers],
        "filtered_resps": answers,
        "filter": "none",
        "metrics": list(scores),
        "doc_hash": record["doc_hash"],
        "prompt_hash": _hash(requests[0][0]),
        "target_hash": _hash(target),
        **scores,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def results_of(
    run: Run,
    samples: Mapping[str, Sequence[dict[str, Any]]],
    originals: Mapping[str, int | None],
    created: datetime,
    model: str,
) -> dict[str, Any]:
    """The results file with lm-eval's keys; what nobody recorded is null."""
    settings, config = run.settings, run.config
    metrics = {task: list(samples[task][0]["metrics"]) for task in samples}
    names, packages = sorted(samples), config.get("packages") or {}
    dtype = config.get("dtype")
    return {
        **dict.fromkeys(_UNKNOWN),
        "results": {task: _row(task, samples[task], metrics[task]) for task in samples},
        "group_subtasks": {},
        "configs": {task: _task_config(run, task, metrics[task]) for task in names},
        "versions": {task: 1.0 if task in TASKS else None for task in names},
        "n-shot": dict.fromkeys(names, settings.get("num_fewshot")),
        "higher_is_better": {task: dict.fromkeys(metrics[task], True) for task in names},
        "n-samples": {
            task: {"original": originals[task], "effective": len(samples[task])} for task in samples
        },
        "config": {
            **dict.fromkeys(_UNKNOWN_SETTINGS),
            "model": KEY,
            "model_args": _model_args(run),
            "model_dtype": f"torch.{dtype}" if dtype else None,
            "model_revision": settings.get("revision") or "main",
            "model_sha": "",
            "batch_sizes": [],
            "device": config.get("device") or settings.get("device"),
            "limit": settings.get("limit"),
            "bootstrap_iters": 0,
        },
        "git_hash": config.get("git_commit"),
        "date": created.timestamp(),
        "pretty_env_info": f"scored by bidir_core {__version__}, not by lm-eval; "
        + ", ".join(f"{name} {version}" for name, version in packages.items()),
        "transformers_version": str(packages.get("transformers", "N/A")),
        "lm_eval_version": READ_VERSION,
        "task_hashes": {
            task: _hash("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in rows))
            for task, rows in samples.items()
        },
        "model_source": KEY,
        "model_name": model,
        "model_name_sanitized": sanitised(model),
        "fewshot_as_multiturn": False,
        "chat_template": "the model's own" if settings.get("chat_template") else None,
        "total_evaluation_time_seconds": str((run.metrics or {}).get("cost", {}).get("seconds")),
        KEY: origin_of(run) | {"version": __version__},
    }


def sanitised(name: str) -> str:
    """A model's name as lm-eval names its folder."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)


def _row(task: str, samples: Sequence[Record], metrics: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": task, "alias": task, "sample_len": len(samples)}
    for metric in metrics:
        mean = math.fsum(sample[metric] for sample in samples) / len(samples)
        error = standard_error(mean, len(samples))
        row[f"{metric},none"] = mean
        row[f"{metric}_stderr,none"] = "N/A" if error is None else error
    return row


def _task_config(run: Run, task: str, metrics: Sequence[str]) -> dict[str, Any]:
    """What a reader of lm-eval's task configuration looks for; prompts are in the samples."""
    data = TASKS[task].data if task in TASKS else None
    named = {"dataset_path": data.hub_id} if data else {}
    if data and data.hub_config:
        named["dataset_name"] = data.hub_config
    return {
        "task": task,
        **named,
        "validation_split": run.settings.get("split"),
        "target_delimiter": "" if run.settings.get("chat_template") else " ",
        "num_fewshot": run.settings.get("num_fewshot"),
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics
        ],
        "output_type": "multiple_choice",
        "metadata": {"version": 1.0 if task in TASKS else None},
    }


def _model_args(run: Run) -> dict[str, Any]:
    arguments = {
        "pretrained": run.model,
        "revision": run.settings.get("revision"),
        "checkpoint": run.settings.get("checkpoint"),
        "dtype": run.config.get("dtype") or run.settings.get("dtype"),
        "regime": run.regime,
        "patch": run.settings.get("patch"),
    }
    return {name: value for name, value in arguments.items() if value is not None}


def model_name(run: Run) -> str:
    """The model's name with whatever else its scores depend on: checkpoint, regime, edits."""
    settings = run.settings
    regime = None if run.regime == "causal" else run.regime
    parts = [run.model, settings.get("checkpoint"), regime, settings.get("patch")]
    if settings.get("context") not in (None, "full"):
        parts.append(f"context={settings['context']}")
    if (repeat := settings.get("repeat_prompt") or 1) != 1:
        parts.append(f"repeat_prompt={repeat}")
    return "@".join(str(part) for part in parts if part)


# The texts and documents that lm-eval's sample log holds, where a run kept none of them.


def join_texts(run: Run, records: Sequence[dict[str, Any]]) -> None:
    """Put the texts into records that have none, by building the run's items again."""
    if all(r["contexts"] is not None and r["continuations"] is not None for r in records):
        return
    lacking = f"the run '{run.id}' kept no texts (--compact)"
    if run.settings.get("chat_template"):
        raise UserError(
            f"{lacking} and was made with a chat template, which cannot be joined back; run it "
            "again without --compact to export it"
        )
    if not _data_are_here(run, run.settings.get("tasks") or []):
        raise UserError(
            f"{lacking} and the evaluation data are not in this machine's cache; `python -m "
            "bidir_core assets fetch eval-data` brings them"
        )
    try:
        items = load_selected({**run.settings, "items_file": None})  # unscored items do no harm
    except UserError as error:
        raise UserError(f"{lacking} and they cannot be joined back: {error}") from error
    item_of = {(item.task, item.doc_id): item for item in items}
    for record in records:
        item = item_of.get((record["task"], record["doc_id"]))
        if item is None or item.doc_hash != record["doc_hash"]:
            raise UserError(
                f"{lacking} and the data here are others than it was made with (first at "
                f"{record['task']}/{record['doc_id']})"
            )
        record["contexts"], record["continuations"] = list(item.contexts), list(item.continuations)


def documents(run: Run, task: str, records: Sequence[Record]) -> tuple[dict[int, Doc], int | None]:
    """doc_id -> the dataset's document, and how many the split has (None if unknown).

    Where the data are missing or differ, the document is made of the record, as the document of a
    user's own task always is.
    """
    names = ("contexts", "continuations", "gold")
    docs = {record["doc_id"]: {name: record[name] for name in names} for record in records}
    chosen = [run.settings.get(name) for name in ("limit", "items_file")]
    complete = chosen == [None, None] and run.settings.get("fold", "all") == "all"
    total = len(docs) if complete else None
    if task not in TASKS or not _data_are_here(run, [task]):
        return docs, total
    source = str(run.settings.get("data_source") or "auto")
    split = str(run.settings.get("split") or "validation")
    try:
        rows = TASKS[task].rows(split, source)
        if max(docs) >= len(rows):
            return docs, total
        split_docs = rows.take(list(docs))
    except UserError:
        return docs, total
    derived = TASKS[task].derived
    hashes = {record["doc_id"]: record["doc_hash"] for record in records}
    for doc_id, doc in zip(list(docs), split_docs):
        real = doc | derived(doc) if derived else doc
        if hash_doc(real) == hashes[doc_id]:
            docs[doc_id] = real
    return docs, len(rows)


def _data_are_here(run: Run, tasks: Sequence[str]) -> bool:
    """Nothing is fetched for an export."""
    fetched = (run.settings.get("data_source") or "auto") in ("auto", "wheel")
    built_in = any(task in TASKS for task in tasks)
    return not (fetched and built_in) or item_texts.data_are_here()
