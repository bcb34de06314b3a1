"""What lm-eval's files say of a run, as the settings and facts of our ``config.json``.

What lm-eval does not log (token ids, the tokenizer, whether a BOS was added, the attention
implementation) stays null: readers say "not recorded" instead of guessing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from bidir_core.fewshot import LM_EVAL_SEED
from bidir_core.interop.evidence import IMPORTED
from bidir_core.interop.lm_eval_files import READ_VERSION, LmEvalOutput
from bidir_core.interop.lm_eval_read import Sample, TaskSamples
from bidir_core.items import data_fingerprint
from bidir_core.tasks import TASKS

# Where lm-eval's model arguments name the weights, in the order in which lm-eval looks.
_MODEL_KEYS = ("pretrained", "model", "path", "engine")
_TASK_VERSION = 1.0  # of lm-eval's tasks that ours equal


def settings_of(
    output: LmEvalOutput,
    names: Mapping[str, str],
    read: Mapping[str, TaskSamples],
    shots: int | None,
) -> tuple[dict[str, Any], list[str]]:
    """The settings of our evaluations as far as lm-eval recorded them, and notes on the rest."""
    config = output.section("config")
    given = _model_args(config.get("model_args"))
    notes = [note for one in read.values() for note in one.notes]
    splits = {task: _split(output.row("configs", task)) for task in names}
    if len(set(splits.values())) > 1:
        said = ", ".join(f"{names[task]} {split}" for task, split in splits.items())
        notes.append(f"the tasks are of different splits: {said}")
    limit, limit_note = _limit(output, names, read)
    notes += limit_note
    for theirs, ours in names.items():
        version = output.section("versions").get(theirs)
        if ours in TASKS and version not in (None, _TASK_VERSION):
            notes.append(f"{ours}: version {version} of lm-eval's task; ours is {_TASK_VERSION}")
    if output.others:
        notes.append(f"the newest of {output.others + 1} sets of files was read: {output.time}")
    if output.version and not output.version.startswith("0.4."):
        notes.append(f"lm-eval {output.version} is newer than what is tested ({READ_VERSION})")
    seed = config.get("fewshot_seed")
    first = all(one.samples[-1].item.doc_id == len(one.samples) - 1 for one in read.values())
    revision = config.get("model_revision") or given.get("revision")
    empty = all(not any(s.item.contexts) for one in read.values() for s in one.samples)
    settings = {
        "model": _model_name(output, given),
        "revision": None if revision in (None, "main") else str(revision),
        "checkpoint": str(given["peft"]) if given.get("peft") else None,
        "split": splits[next(iter(names))] if len(set(splits.values())) == 1 else None,
        "limit": limit,
        "sample": "first" if first else None,
        "seed": seed - LM_EVAL_SEED if shots and isinstance(seed, int) else 0,
        "fold": "all",
        "context": "none" if empty else "full",
        "bos": None,
        "chat_template": output.results.get("chat_template") is not None,
        "num_fewshot": shots,
        "dtype": _dtype(config, given),
        "device": str(config.get("device") or ""),
        "batch_tokens": None,
        "data_source": None,
        "compact": False,
    }
    return settings, notes


def _model_args(value: Any) -> dict[str, Any]:
    """lm-eval's model arguments: an object, or ``pretrained=gpt2,dtype=float32``."""
    if isinstance(value, dict):
        return value
    parts = [part.partition("=") for part in str(value or "").split(",")]
    return {key.strip(): text for key, sign, text in parts if sign}


def _model_name(output: LmEvalOutput, given: Mapping[str, Any]) -> str:
    for key in _MODEL_KEYS:
        if given.get(key):
            return str(given[key])
    config = output.section("config")
    return str(output.results.get("model_name") or config.get("model") or "unknown model")


def _dtype(config: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    text = str(config.get("model_dtype") or given.get("dtype") or "").removeprefix("torch.")
    return text if text and text != "auto" else None


def _split(task_config: Mapping[str, Any]) -> str | None:
    """lm-eval scores the test split where a task has one, else the validation split."""
    split = task_config.get("test_split") or task_config.get("validation_split")
    return str(split) if split else None


def _limit(
    output: LmEvalOutput, names: Mapping[str, str], read: Mapping[str, TaskSamples]
) -> tuple[int | None, list[str]]:
    """Items per task: None if every task is whole; the largest task's where nobody recorded it."""
    originals = {
        ours: output.row("n-samples", theirs).get("original") for theirs, ours in names.items()
    }
    if all(originals[ours] == len(one.samples) for ours, one in read.items()):
        return None, []
    said = output.section("config").get("limit")
    if isinstance(said, int | float) and said >= 1 and said == int(said):
        return int(said), []
    largest = max(len(one.samples) for one in read.values())
    if isinstance(said, float) and 0 < said < 1:
        return largest, [f"the limit was a share of each task, {said:g}"]
    if all(isinstance(n, int) for n in originals.values()):
        return largest, ["the items were chosen otherwise than by a limit"]
    return largest, [f"the limit is not recorded; the largest task has {largest:,} items"]


def facts_of(
    output: LmEvalOutput,
    names: Mapping[str, str],
    samples: Sequence[Sample],
    notes: Sequence[str],
) -> dict[str, Any]:
    """What stands beside the settings in ``config.json``."""
    results, config = output.results, output.section("config")
    versions = {"lm-eval": output.version, "transformers": results.get("transformers_version")}
    return {
        "kind": IMPORTED,
        "source": f"imported from lm-eval {output.version or 'of unknown version'}, "
        f"{date_of(output)}",
        "packages": {name: str(version) for name, version in versions.items() if version},
        "git_commit": None,
        "model_fingerprint": None,
        "tokenizer_fingerprint": None,
        "data_fingerprint": data_fingerprint(sample.item for sample in samples),
        "bos_added": None,
        "attention": None,
        "dtype": _dtype(config, _model_args(config.get("model_args"))),
        "imported": {
            "format": "lm-eval",
            "version": output.version or None,
            "date": date_of(output),
            "results_file": output.results_path.name,
            "task_names": {theirs: ours for theirs, ours in names.items() if theirs != ours},
            "task_versions": {t: output.section("versions").get(t) for t in names},
            "model": config.get("model"),
            "model_args": config.get("model_args"),
            "model_sha": config.get("model_sha") or None,
            "limit": config.get("limit"),
            "batch_size": config.get("batch_size"),
            "system_instruction": results.get("system_instruction"),
            "chat_template_sha": results.get("chat_template_sha"),
            "git_hash": results.get("git_hash"),
            "notes": list(notes),
        },
    }


def date_of(output: LmEvalOutput) -> str:
    """When it was run; the files' own time (local, of that machine) where it is not said."""
    date = output.results.get("date")
    if isinstance(date, int | float) and 0 < date < 4e9:
        return f"{datetime.fromtimestamp(date, UTC):%Y-%m-%d %H:%M} UTC"
    return output.time
