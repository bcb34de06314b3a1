"""lm-eval's output as a run folder, so that its numbers can be compared with ours item by item."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.common.files import remove_left_overs
from bidir_core.data.items import LM_EVAL_SEED, data_fingerprint
from bidir_core.data.tasks import SELECTION, TASKS
from bidir_core.regimes import parse_regime
from bidir_core.runs.layout import (
    IMPORTED,
    check_new_run,
    evaluation_dir,
    new_run_folder,
    runs_roots,
)
from bidir_core.runs.lm_eval_read import (
    READ_VERSION,
    LmEvalOutput,
    Sample,
    choose_tasks,
    find_output,
    read_task,
)
from bidir_core.runs.records import make_record
from bidir_core.runs.run import Run
from bidir_core.runs.shapes import CONFIG, REGIME, SETTINGS, TEXT, Fields, Shape, problem
from bidir_core.runs.writer import RunWriter


@dataclass(frozen=True)
class Imported:
    """The new run folder, and what a reader of it should know."""

    path: Path
    notes: tuple[str, ...]


def import_results(
    path: Path | str,
    *,
    tasks: Sequence[str] = (),
    task_map: Mapping[str, str] | None = None,
    model: str | None = None,
    regime: str | None = None,
    name: str | None = None,
    runs_dir: Path | str | None = None,
) -> Imported:
    """Read lm-eval's output at ``path`` (its folder or results file) into a new run folder.

    ``tasks``: only these of its tasks. ``task_map``: its task's name -> ours. ``model``: what to
    call the model, so that it is the same as in other runs. ``regime``: what it attended under,
    ``causal`` unless the files say otherwise. Everything is read and checked before anything is
    written. Raises `UserError` with the reason.
    """
    check_new_run(runs_dir, name)
    if regime is not None:
        regime = str(parse_regime(regime))
    output = find_output(Path(path).expanduser())
    names = _names(choose_tasks(output, tasks), task_map or {})
    origin = read_origin(output)
    if origin and regime and origin["regime"] != regime:
        raise UserError(
            f"--regime {regime}: {output.results_path.name} says it was made under "
            f"{origin['regime']}; leave the flag out"
        )
    by_task = {task: read_task(output, lm_task, task) for lm_task, task in names.items()}
    samples = [sample for task_samples, _ in by_task.values() for sample in task_samples]
    settings, notes = _settings(output, names, {task: read[0] for task, read in by_task.items()})
    notes = [note for _, task_notes in by_task.values() for note in task_notes] + notes
    settings |= origin.get("settings", {}) | {"tasks": list(names.values()), "attn": None}
    settings["regime"] = origin.get("regime") or regime or "causal"
    settings["model"] = model or settings["model"]
    facts = _facts(output, names, samples, notes) | origin.get("facts", {})
    if origin:
        facts["source"] = f"imported from an export of '{origin['run']}', {_date(output)}"
    return Imported(_write(settings, facts, samples, name, runs_dir, output), tuple(notes))


def _names(chosen: Sequence[str], task_map: Mapping[str, str]) -> dict[str, str]:
    """lm-eval's task names -> ours, in the order they were run."""
    for lm_task in task_map:
        if lm_task not in chosen:
            raise UserError(
                f"--task-map {lm_task}={task_map[lm_task]}: there is no task {lm_task!r}; there are "
                f"{', '.join(chosen)}"
            )
    names = {lm_task: task_map.get(lm_task, lm_task) for lm_task in chosen}
    for lm_task, task in names.items():
        if not task or "/" in task or task != task.strip():
            raise UserError(
                f"the task {lm_task!r} cannot be called {task!r} here; name it with --task-map "
                f"{lm_task}=NAME"
            )
        if list(names.values()).count(task) > 1:
            raise UserError(f"two tasks would be called {task!r}; give each a name of its own")
    return names


def _shots(output: LmEvalOutput, names: Mapping[str, str]) -> int | None:
    """Solved examples before each item: one number for the run, None if nobody recorded it."""
    shots = {task: output.part("n-shot").get(task) for task in names}
    if len(set(map(str, shots.values()))) > 1:
        counts = ", ".join(f"{task} {n}" for task, n in shots.items())
        raise UserError(
            f"{output.results_path}: the tasks differ in few-shot examples ({counts}); a run has one "
            "number, so import them one by one with --tasks"
        )
    number = next(iter(shots.values()))
    return number if type(number) is int else None


def _write(
    settings: dict[str, Any],
    facts: dict[str, Any],
    samples: Sequence[Sample],
    name: str | None,
    runs_dir: Path | str | None,
    output: LmEvalOutput,
) -> Path:
    """Write the run out of sight, then give it its name: no reader meets half of it."""
    root = Path(runs_dir).expanduser().resolve() if runs_dir is not None else runs_roots()[0]
    stage = evaluation_dir(settings["regime"], checkpoint=settings["checkpoint"])
    remove_left_overs(root / stage, ".importing-*")
    hidden = root / stage / f".importing-{os.getpid()}"
    try:  # lm-eval's own seconds, which include loading; it counts no tokens
        seconds = round(float(str(output.results.get("total_evaluation_time_seconds"))), 3)
    except ValueError:
        seconds = None
    cost = {"seconds": seconds, "device": settings["device"]}
    order = [(sample.item.task, sample.item.doc_id) for sample in samples]
    try:
        with RunWriter.create(stage, settings, folder=hidden, **facts) as writer:
            writer.append(_record(sample) for sample in samples)
            writer.finish(cost=cost, order=order)
        (hidden / "log.txt").write_text(
            "\n".join([facts["source"], *facts["imported"]["notes"]]) + "\n", encoding="utf-8"
        )
        folder = new_run_folder(root, stage, name)
        hidden.rename(folder)  # takes the place of the empty folder
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return folder


def _record(sample: Sample) -> dict[str, Any]:
    item = sample.item
    record = make_record(
        task=item.task,
        doc_id=item.doc_id,
        doc_hash=item.doc_hash,
        gold=item.gold,
        contexts=item.contexts,
        continuations=item.continuations,
        n_prefix_tokens=(),
        n_continuation_tokens=(),
        ll=sample.ll,
        prompt_group=item.prompt_group,
    )
    # As many as there are contexts and choices, each unknown.
    record["n_prefix_tokens"] = [None] * len(item.contexts)
    record["n_continuation_tokens"] = [None] * item.n_choices
    return record


# What lm-eval's files say of a run, as the settings and facts of our ``config.json``.

# Where lm-eval's model arguments name the weights, in the order in which lm-eval looks.
_MODEL_KEYS = ("pretrained", "model", "path", "engine")
_TASK_VERSION = 1.0  # of lm-eval's tasks that ours equal


def _settings(
    output: LmEvalOutput, names: Mapping[str, str], samples: Mapping[str, Sequence[Sample]]
) -> tuple[dict[str, Any], list[str]]:
    """The settings of our evaluations as far as lm-eval recorded them, and notes on the rest."""
    config = output.part("config")
    arguments = _model_args(config.get("model_args"))
    # lm-eval scores the test split where a task has one, else the validation split.
    configs = {lm_task: output.part("configs", lm_task) for lm_task in names}
    splits = {t: c.get("test_split") or c.get("validation_split") for t, c in configs.items()}
    split = str(splits[next(iter(names))]) if len(set(map(str, splits.values()))) == 1 else None
    limit, notes = _limit(output, names, samples)
    if split is None:
        listed = ", ".join(f"{names[lm_task]} {name}" for lm_task, name in splits.items())
        notes.insert(0, f"the tasks are of different splits: {listed}")
    for lm_task, task in names.items():
        version = output.part("versions").get(lm_task)
        if task in TASKS and version not in (None, _TASK_VERSION):
            notes.append(f"{task}: version {version} of lm-eval's task; ours is {_TASK_VERSION}")
    if output.others:
        notes.append(f"the newest of {output.others + 1} sets of files was read: {output.time}")
    if output.version and not output.version.startswith("0.4."):
        notes.append(f"lm-eval {output.version} is newer than what is tested ({READ_VERSION})")
    shots, seed = _shots(output, names), config.get("fewshot_seed")
    from_start = all(rows[-1].item.doc_id == len(rows) - 1 for rows in samples.values())
    revision = config.get("model_revision") or arguments.get("revision")
    no_context = not any(any(row.item.contexts) for rows in samples.values() for row in rows)
    model = next((str(arguments[key]) for key in _MODEL_KEYS if arguments.get(key)), None)
    settings = {
        "model": model or str(output.results.get("model_name") or config.get("model")),
        "revision": None if revision in (None, "main") else str(revision),
        "checkpoint": str(arguments["peft"]) if arguments.get("peft") else None,
        "split": None if split in (None, "None") else split,
        "limit": limit,
        "sample": "first" if from_start else None,
        "seed": seed - LM_EVAL_SEED if shots and isinstance(seed, int) else 0,
        "fold": "all",
        "context": "none" if no_context else "full",
        "bos": None,
        "chat_template": output.results.get("chat_template") is not None,
        "num_fewshot": shots,
        "dtype": _dtype(output),
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
    pairs = [pair.partition("=") for pair in str(value or "").split(",")]
    return {key.strip(): text for key, sign, text in pairs if sign}


def _dtype(output: LmEvalOutput) -> str | None:
    """The number format of the weights, None where nobody recorded it."""
    config = output.part("config")
    dtype = config.get("model_dtype") or _model_args(config.get("model_args")).get("dtype")
    text = str(dtype or "").removeprefix("torch.")
    return text if text and text != "auto" else None


def _limit(
    output: LmEvalOutput, names: Mapping[str, str], samples: Mapping[str, Sequence[Sample]]
) -> tuple[int | None, list[str]]:
    """Items per task: None if every task is whole; the largest task's where nobody recorded it."""
    originals = [output.part("n-samples", lm_task).get("original") for lm_task in names]
    if originals == [len(samples[task]) for task in names.values()]:
        return None, []
    limit, largest = output.part("config").get("limit"), max(map(len, samples.values()))
    if isinstance(limit, int | float) and limit >= 1 and limit == int(limit):
        return int(limit), []
    if limit is None and all(isinstance(n, int) for n in originals):
        return largest, ["the items were chosen otherwise than by a limit"]
    reason = f"was a share of each task, {limit}" if limit else "is not recorded"
    return largest, [f"the limit {reason}; the largest task has {largest:,} items"]


def _facts(
    output: LmEvalOutput,
    names: Mapping[str, str],
    samples: Sequence[Sample],
    notes: Sequence[str],
) -> dict[str, Any]:
    """What stands beside the settings in ``config.json``."""
    transformers = output.results.get("transformers_version")
    versions = {"lm-eval": output.version, "transformers": transformers}
    return {
        "kind": IMPORTED,
        "source": f"imported from lm-eval {output.version or 'of unknown version'}, "
        f"{_date(output)}",
        "packages": {name: str(version) for name, version in versions.items() if version},
        "git_commit": None,
        "model_fingerprint": None,
        "tokenizer_fingerprint": None,
        "data_fingerprint": data_fingerprint(sample.item for sample in samples),
        "bos_added": None,
        "attention": None,
        "dtype": _dtype(output),
        "imported": {
            "format": "lm-eval",
            "version": output.version or None,
            "date": _date(output),
            "results_file": output.results_path.name,
            "task_names": {lm_task: task for lm_task, task in names.items() if lm_task != task},
            "model_args": output.part("config").get("model_args"),
            "notes": list(notes),
        },
    }


def _date(output: LmEvalOutput) -> str:
    """When it was run; the files' own time (local, of that machine) where it is not said."""
    date = output.results.get("date")
    if isinstance(date, int | float) and 0 < date < 4e9:
        return f"{datetime.fromtimestamp(date, UTC):%Y-%m-%d %H:%M} UTC"
    return output.time


# What an exported results file says about the run it came from, under the key ``bidir_core``.

KEY = "bidir_core"
_SETTINGS = [name for name in SELECTION if name not in ("tasks", "data_source", "items_file")]
_SETTINGS += ["model", "revision", "checkpoint", "bos", "patch", "chat_template"]
_FACTS = ["model_fingerprint", "tokenizer_fingerprint", "dtype", "attention", "bos_added"]
_ORIGIN: dict[str, Shape] = {"run": TEXT, "regime": REGIME, "settings": SETTINGS, "facts": CONFIG}


def origin_of(run: Run) -> dict[str, Any]:
    """What to write about a run; strings, numbers and truth values only."""
    return {
        "run": run.id,
        "regime": run.regime,
        "settings": {name: run.settings.get(name) for name in _SETTINGS},
        "facts": {name: run.config.get(name) for name in _FACTS},
    }


def read_origin(output: LmEvalOutput) -> dict[str, Any]:
    """Read it back, empty for a file of lm-eval's own; `UserError` where it was damaged."""
    block = output.results.get(KEY)
    if block is None:
        return {}
    if fault := problem(block, Fields(_ORIGIN, needs=tuple(_ORIGIN))):
        raise UserError(f"{output.results_path}: its part {KEY!r} is damaged: {fault}")
    return {
        "run": block["run"][:200],
        "regime": str(parse_regime(block["regime"])),
        "settings": {name: block["settings"].get(name) for name in _SETTINGS},
        "facts": {name: block["facts"].get(name) for name in _FACTS},
    }
