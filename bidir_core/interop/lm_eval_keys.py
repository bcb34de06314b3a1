"""A run's samples and results under lm-eval's keys, in lm-eval's order.

A regime has no place in lm-eval's format. It stands in the model's name (unless causal), in
``config.model_args``, and with everything else under the key ``bidir_core`` of the results file.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from bidir_core import __version__
from bidir_core.datasource import Doc
from bidir_core.interop.lm_eval_files import READ_VERSION
from bidir_core.interop.origin import KEY, origin_of
from bidir_core.metrics import standard_error
from bidir_core.store import Run
from bidir_core.tasks import TASKS

# Whether a choice would also be generated greedily: lm-eval logs it, a run does not record it.
_GREEDY_UNKNOWN = "None"
Record = Mapping[str, Any]


def sample_of(run: Run, record: Record, doc: Doc, norm: bool) -> dict[str, Any]:
    """One line of the sample log, its keys in lm-eval's order; ``norm``: the task has acc_norm."""
    contexts, continuations = record["contexts"], record["continuations"]
    per_choice = len(contexts) > 1
    if run.settings.get("chat_template"):  # it ends the turn, so choices follow without a space
        continuations = [text.removeprefix(" ") for text in continuations]
    requests = [(contexts[i if per_choice else 0], text) for i, text in enumerate(continuations)]
    # An item that could not be scored has no number; nan is read back as an item error.
    ll = record["ll"] or ["nan"] * len(requests)
    answers = [[_number(value), _GREEDY_UNKNOWN] for value in ll]
    # Where choices differ in their contexts lm-eval's target is the text behind them.
    target = continuations[0].removeprefix(" ") if per_choice else str(record["gold"])
    scores = {"acc": float(bool(record["correct"]))}
    if norm:
        known = record["correct_norm"] is not None  # equal choices have equal lengths: it is acc
        scores["acc_norm"] = float(record["correct_norm"]) if known else scores["acc"]
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


def _number(value: float | str) -> str:
    """A float32 in the fewest digits that are read back as the same one."""
    return value if isinstance(value, str) else str(np.float32(value))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def results_of(
    run: Run,
    samples: Mapping[str, Sequence[dict[str, Any]]],
    originals: Mapping[str, int | None],
    created: datetime,
    model: str,
) -> dict[str, Any]:
    """The results file, its keys in lm-eval's order; what nobody recorded is null."""
    settings, cost = run.settings, (run.metrics or {}).get("cost") or {}
    names = sorted(samples)
    metrics = {task: list(samples[task][0]["metrics"]) for task in samples}
    versions = run.config.get("packages") or {}
    return {
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
            "model": KEY,
            "model_args": _model_args(run),
            "model_num_parameters": None,
            "model_dtype": f"torch.{dtype}" if (dtype := run.config.get("dtype")) else None,
            "model_revision": settings.get("revision") or "main",
            "model_sha": "",
            "batch_size": None,
            "batch_sizes": [],
            "device": run.config.get("device") or settings.get("device"),
            "use_cache": None,
            "limit": settings.get("limit"),
            "bootstrap_iters": 0,
            "gen_kwargs": None,
            "random_seed": None,
            "numpy_seed": None,
            "torch_seed": None,
            "fewshot_seed": None,
        },
        "git_hash": run.config.get("git_commit"),
        "date": created.timestamp(),
        "pretty_env_info": f"scored by bidir_core {__version__}, not by lm-eval; "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        "transformers_version": str(versions.get("transformers", "N/A")),
        "lm_eval_version": READ_VERSION,
        "upper_git_hash": None,
        "task_hashes": {
            task: _hash("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in rows))
            for task, rows in samples.items()
        },
        "model_source": KEY,
        "model_name": model,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": False,
        "chat_template": "the model's own" if settings.get("chat_template") else None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": str(cost.get("seconds")),
        KEY: origin_of(run) | {"version": __version__},
    }


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
        "unsafe_code": False,
        "description": "",
        "target_delimiter": "" if run.settings.get("chat_template") else " ",
        "fewshot_delimiter": "\n\n",
        "num_fewshot": run.settings.get("num_fewshot"),
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics
        ],
        "output_type": "multiple_choice",
        "repeats": 1,
        "should_decontaminate": False,
        "metadata": {"version": 1.0 if task in TASKS else None},
    }


def _model_args(run: Run) -> dict[str, Any]:
    found = {
        "pretrained": run.model,
        "revision": run.settings.get("revision"),
        "checkpoint": run.settings.get("checkpoint"),
        "dtype": run.config.get("dtype") or run.settings.get("dtype"),
        "regime": run.regime,
        "patch": run.settings.get("patch"),
    }
    return {name: value for name, value in found.items() if value is not None}


def model_name(run: Run) -> str:
    """The model and, for all to see, whatever makes it another: checkpoint, regime, edits."""
    settings = run.settings
    regime = None if run.regime == "causal" else run.regime
    parts = [run.model, settings.get("checkpoint"), regime, settings.get("patch")]
    if settings.get("context") not in (None, "full"):
        parts.append(f"context={settings['context']}")
    return "@".join(str(part) for part in parts if part)
