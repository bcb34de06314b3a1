"""lm-eval's output as a run folder, so that its numbers can be compared with ours item by item."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidir_core.errors import UserError
from bidir_core.interop.lm_eval_files import LmEvalOutput, choose_tasks, find_output
from bidir_core.interop.lm_eval_read import Sample, read_task
from bidir_core.interop.lm_eval_settings import date_of, facts_of, settings_of
from bidir_core.interop.origin import read_origin
from bidir_core.records import make_record
from bidir_core.regimes import parse_regime
from bidir_core.run_layout import check_new_run, new_run_folder, runs_roots, stage_dir_for
from bidir_core.run_writer import RunWriter


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
    if origin.regime and regime and origin.regime != regime:
        raise UserError(
            f"--regime {regime}: {output.results_path.name} says it was made under "
            f"{origin.regime}; leave the flag out"
        )
    shots = _shots(output, names)
    read = {ours: read_task(output, theirs, ours) for theirs, ours in names.items()}
    samples = [sample for one in read.values() for sample in one.samples]
    settings, notes = settings_of(output, names, read, shots)
    settings |= origin.settings | {"tasks": list(names.values()), "attn": None}
    settings["regime"] = origin.regime or regime or "causal"
    settings["model"] = model or settings["model"]
    facts = facts_of(output, names, samples, notes) | origin.facts
    if origin.run:
        facts["source"] = f"imported from an export of '{origin.run}', {date_of(output)}"
    return Imported(_write(settings, facts, samples, name, runs_dir, output), tuple(notes))


def _names(chosen: Sequence[str], task_map: Mapping[str, str]) -> dict[str, str]:
    """lm-eval's task names -> ours, in the order they were run."""
    for theirs in task_map:
        if theirs not in chosen:
            raise UserError(
                f"--task-map {theirs}={task_map[theirs]}: there is no task {theirs!r}; there are "
                f"{', '.join(chosen)}"
            )
    names = {theirs: task_map.get(theirs, theirs) for theirs in chosen}
    for theirs, ours in names.items():
        if not ours or "/" in ours or ours != ours.strip():
            raise UserError(
                f"the task {theirs!r} cannot be called {ours!r} here; name it with --task-map "
                f"{theirs}=NAME"
            )
        if list(names.values()).count(ours) > 1:
            raise UserError(f"two tasks would be called {ours!r}; give each a name of its own")
    return names


def _shots(output: LmEvalOutput, names: Mapping[str, str]) -> int | None:
    """Solved examples before each item: one number for the run, None if nobody recorded it."""
    found = {task: output.section("n-shot").get(task) for task in names}
    if len(set(map(str, found.values()))) > 1:
        said = ", ".join(f"{task} {n}" for task, n in found.items())
        raise UserError(
            f"{output.results_path}: the tasks differ in few-shot examples ({said}); a run has one number, so import "
            "them one by one with --tasks"
        )
    number = next(iter(found.values()))
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
    stage = stage_dir_for("eval", regime=settings["regime"], checkpoint=settings["checkpoint"])
    hidden = root / stage / f".importing-{os.getpid()}"
    try:
        with RunWriter.create(stage, settings, folder=hidden, **facts) as writer:
            writer.append(_record(sample) for sample in samples)
            writer.finish(cost=_cost(output), order=[_key(sample) for sample in samples])
        (hidden / "log.txt").write_text(
            "\n".join([facts["source"], *facts["imported"]["notes"]]) + "\n", encoding="utf-8"
        )
        folder = new_run_folder(root, stage, name)
        hidden.rename(folder)  # takes the place of the empty folder
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return folder


def _key(sample: Sample) -> tuple[str, int]:
    return sample.item.task, sample.item.doc_id


def _cost(output: LmEvalOutput) -> dict[str, Any]:
    """lm-eval's own seconds, which include loading; it counts no tokens."""
    try:
        seconds = round(float(str(output.results.get("total_evaluation_time_seconds"))), 3)
    except ValueError:
        seconds = None
    return {"seconds": seconds, "device": str(output.section("config").get("device") or "")}


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


def fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", help="lm-eval's output folder, or its results_<time>.json"
    )
    parser.add_argument(
        "--tasks", metavar="A,B", default="", help="only these of its tasks (default: all)"
    )
    parser.add_argument(
        "--task-map",
        metavar="THEIRS=OURS,..",
        default="",
        help="other names for tasks, so that they pair with ours",
    )
    parser.add_argument(
        "--model", help="call the model this, as your other runs do (default: as lm-eval has it)"
    )
    parser.add_argument(
        "--regime", help="what it attended under (default: causal, as lm-eval's models do)"
    )
    parser.add_argument("--name", help="a name at the end of the run folder")
    parser.add_argument(
        "--runs-dir", metavar="DIR", help="where run folders go (default: runs, or BIDIR_RUNS_DIR)"
    )


def run(parsed: argparse.Namespace) -> int:
    """``import PATH``: 0 when the run folder is on disk."""
    task_map = {}
    for part in filter(None, (part.strip() for part in parsed.task_map.split(","))):
        theirs, sign, ours = part.partition("=")
        if not sign:
            raise UserError(f"--task-map {part}: write THEIRS=OURS")
        task_map[theirs.strip()] = ours.strip()
    done = import_results(
        parsed.path,
        tasks=[part.strip() for part in parsed.tasks.split(",") if part.strip()],
        task_map=task_map,
        model=parsed.model,
        regime=parsed.regime,
        name=parsed.name,
        runs_dir=parsed.runs_dir,
    )
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(done.path)
    return 0
