"""Score planned items into a run folder: probe the model, run the batches, record, complete it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.common.process import ProcessLost
from bidir_core.common.progress import Progress, logging_to, terminable
from bidir_core.data.builtin_tasks import ORDER_TASKS
from bidir_core.data.encoding import EncodedItem
from bidir_core.data.items import is_custom_task
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.patching import parse_patch
from bidir_core.evaluate.processes import ALONE, PARTS, Part, Parts, Team, merge_parts, share
from bidir_core.evaluate.scoring import ItemScore, Scorer, ScoringPlan
from bidir_core.models import devices
from bidir_core.models.devices import device_name, forget_peak_memory, peak_memory_bytes
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe import run_probe
from bidir_core.regimes import Regime
from bidir_core.runs.records import Key, make_record
from bidir_core.runs.writer import RunWriter


def score_into(
    writer: RunWriter,
    config: EvalConfig,
    loaded: LoadedModel,
    regime: Regime,
    plan: ScoringPlan,
    previous_cost: Mapping[str, Any] | None = None,
    *,
    title: str = "",
    advanced: Callable[[int], None] | None = None,
    team: Team = ALONE,
) -> None:
    """Probe the model, score what the run has not recorded, and complete the run.

    ``plan``: of the items, causal exactly if ``regime`` is. ``previous_cost``: of the process that
    was killed, if the run is resumed. ``title`` names the progress bar; ``advanced`` is called with
    the number of items just done. This is the main process's part of a ``team``; the others run
    :func:`score_share`.
    """
    parts, encoded = Parts(writer.path, team), plan.encoded
    with (
        writer,
        terminable(),
        logging_to(writer.path / "log.txt") as log,
        devices.at_rest(),
        devices.reusing_memory(loaded.device),
        parts.asked_why(),
    ):
        # Costs so far, with those of other processes from before the run was stopped.
        spent: list[Mapping[str, Any]] = [previous_cost or {}, *merge_parts(writer)]
        log.info("%s under %s, %d items -> %s", config.model, regime, len(encoded), writer.id)
        for warning in writer.config.get("warnings") or []:
            log.warning("%s", warning)
        forget_peak_memory(loaded.device)

        def probe() -> None:
            report = run_probe(loaded, regime)
            writer.write_probe(report.to_json())
            report.require(_probe_advice(writer.path))

        # A GPU computes its first batches meanwhile; no score is looked at before the probe passes.
        probe_meanwhile = _probes_meanwhile(loaded)
        if not probe_meanwhile:
            probe()
        started = time.monotonic()
        done = team.on_main(lambda: writer.recorded)
        scorer = _scorer(config, loaded, regime, plan)
        n_elsewhere = 0  # items that the other processes have scored so far

        def cost() -> dict[str, Any]:
            return _cost(scorer, loaded, time.monotonic() - started, spent)

        progress = Progress(
            len(encoded),
            done=len(done),
            title=title or str(regime),
            report=lambda *a, **k: writer.heartbeat(*a, **k, cost=cost()),
        )

        def step(n: int) -> None:
            progress.advance(n)
            if advanced is not None:
                advanced(n)

        def report_elsewhere(n_done: int) -> None:
            nonlocal n_elsewhere
            step(n_done - n_elsewhere)
            n_elsewhere = n_done

        compact = config.compact or writer.is_slim
        batches = _share(scorer.plan, done, team)
        for items, scores in scorer.score_all(batches, probe if probe_meanwhile else None):
            writer.append(_record(encoded[s.index], s, compact) for s in scores)
            step(len(items))
            report_elsewhere(sum(state["done"] for state in parts.check().values()))
        unscorable = [item for item in encoded if item.error is not None and _key(item) not in done]
        writer.append(_record(item, None, compact) for item in unscorable)
        step(len(unscorable))
        if team.world > 1:
            parts.wait(report_elsewhere)
            spent += merge_parts(writer)
        progress.close()
        if lost := {_key(item) for item in encoded} - writer.recorded:
            # Parts can vanish: a killed launch's stray process, a folder that is slow to show files.
            raise ProcessLost(
                f"{len(lost)} of {len(encoded)} items were recorded by none of the processes; "
                "--resume scores them"
            )
        metrics = writer.finish(
            cost=cost() | ({"processes": team.world} if team.world > 1 else {}),
            order=map(_key, encoded),
        )
        for name, row in metrics["tasks"].items() if not writer.is_slim else ():
            log.info(
                "%-16s n=%-6d acc %.4f (standard error %.4f)%s",
                name,
                row["n"],
                row["acc"],
                row["acc_stderr"] or 0,
                "" if row["acc_norm"] is None else f"   acc_norm {row['acc_norm']:.4f}",
            )
        log.info(
            "%-16s          acc %.4f   acc_norm %.4f   (%d item errors)",
            "macro",
            metrics["macro"]["acc"],
            metrics["macro"]["acc_norm"],
            metrics["n_errors"],
        )


def score_share(
    run: Path,
    config: EvalConfig,
    loaded: LoadedModel,
    regime: Regime,
    plan: ScoringPlan,
    team: Team,
) -> None:
    """What every process of a launch but the main one does: score its share into a part file."""
    with terminable(), devices.at_rest(), devices.reusing_memory(loaded.device):
        # On a CPU now, as in the main process, before its clock starts; on a GPU during the scoring.
        report = None if _probes_meanwhile(loaded) else run_probe(loaded, regime)
        done: set[Key] = team.on_main(set)
        part = Part(run / PARTS, team.rank)

        def probe() -> None:
            (report or run_probe(loaded, regime)).require(_probe_advice(run))

        try:
            scorer = _scorer(config, loaded, regime, plan)
            for _, scores in scorer.score_all(_share(scorer.plan, done, team), probe):
                records = [_record(plan.encoded[s.index], s, config.compact) for s in scores]
                part.append(records, _cost(scorer, loaded, 0.0, ()))
        except BaseException as error:
            part.finish(error=" ".join(str(error).split())[:300] or type(error).__name__)
            raise
        part.finish()


def _probes_meanwhile(loaded: LoadedModel) -> bool:
    """Whether the probe runs while the first batches are computed."""
    return loaded.device.type == "cuda"


def _probe_advice(run: Path) -> str:
    return f"so its scores would mean nothing; see {run / 'probe.json'}"


def _scorer(config: EvalConfig, loaded: LoadedModel, regime: Regime, plan: ScoringPlan) -> Scorer:
    patch = parse_patch(config.patch) if config.patch else None
    return Scorer(loaded.model, loaded.handle, plan.under(regime, patch))


def _share(plan: ScoringPlan, done: set[Key], team: Team) -> list[list[int]]:
    """The batches left for this process; a batch keeps its other items when some are done."""
    todo = [[i for i in batch.items if _key(plan.encoded[i]) not in done] for batch in plan.batches]
    weights = [sum(map(len, segments)) for segments in plan.segments]
    return share([items for items in todo if items], weights, team)


def _key(encoded: EncodedItem) -> Key:
    return encoded.item.task, encoded.item.doc_id


def _record(encoded: EncodedItem, score: ItemScore | None, compact: bool) -> dict[str, Any]:
    return make_record(
        **item_fields(encoded, tokens=not compact),
        ll=None if score is None else score.ll,
        token_ll=None
        if score is None or compact
        else [np.round(t, 6).tolist() for t in score.token_ll],
        error=encoded.error,
        compact=compact,
    )


def item_fields(inputs: EncodedItem, *, tokens: bool = True) -> dict[str, Any]:
    """What a record says of an item before any model has seen it, with its ``tokens`` or without."""
    item = inputs.item
    fields = {
        "task": item.task,
        "doc_id": item.doc_id,
        "doc_hash": item.doc_hash,
        "gold": item.gold,
        "contexts": inputs.contexts,
        "continuations": item.continuations,
        "n_prefix_tokens": [len(sequence.ids) for sequence in inputs.prefixes],
        "n_continuation_tokens": [len(sequence.ids) for sequence in inputs.continuations],
        "prompt_group": item.prompt_group,
        "pair_id": item.pair_id,
    }
    if tokens:
        parts = {"prefix": inputs.prefixes, "continuation": inputs.continuations}
        for name, sequences in parts.items():
            fields[f"{name}_token_ids"] = [sequence.ids.tolist() for sequence in sequences]
            fields[f"{name}_token_offsets"] = [sequence.offsets.tolist() for sequence in sequences]
    return fields


def _cost(
    scorer: Scorer, loaded: LoadedModel, seconds: float, others: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What was spent, with what others spent for the same run: killed or parallel processes."""
    spent = {"seconds": round(seconds, 3), **vars(scorer.cost)}
    for name in spent:
        spent[name] += sum(other.get(name, 0) for other in others)
    return {
        **spent,
        "peak_memory_bytes": peak_memory_bytes(loaded.device),
        "device": device_name(loaded.device),
    }


# Whether a checkpoint was trained on a task: then its score there says nothing.

# How data sets that hold an evaluation task are called, wherever they come from.
_NAMES = {
    "hellaswag": r"hella_?swag",
    "piqa": r"piqa",
    "arc_easy": r"^(?!.*challenge).*(?<![a-z])arc(?![a-z])",
    "arc_challenge": r"^(?!.*easy).*(?<![a-z])arc(?![a-z])",
    "winogrande": r"winogrande",
    # the order tasks, by the folder of their documents
    "sciq": r"(?<![a-z])sci_?q(?![a-z])",
    "boolq": r"bool_?q",
}


def refuse_trained_tasks(tasks: Sequence[str], record: Mapping[str, Any] | None) -> None:
    """Raise UserError if one of ``tasks`` was training data, by a checkpoint's ``bidir.json``.

    Names are compared, not texts: that a sample resembles an evaluation item is what
    decontamination looks for when the data is read.
    """
    for source in (record or {}).get("trained_tasks") or ():
        for task in tasks:
            if _same(task, str(source)) and not _another_file(task, record or {}):
                raise UserError(
                    f"the checkpoint was trained on '{source}', so its score on '{task}' would "
                    "say nothing; evaluate it on other tasks"
                )


def _another_file(task: str, record: Mapping[str, Any]) -> bool:
    """Whether a user's own task lies elsewhere than the file of that name that was trained on."""
    data = record.get("data")
    return is_custom_task(task) and isinstance(data, str) and os.path.isabs(data) and data != task


def same_name_sentences(tasks: Sequence[str], record: Mapping[str, Any] | None) -> list[str]:
    """What to say of a user's own task named as the training data was: a name shows no overlap."""
    record = record or {}
    return [
        f"warning: the checkpoint was trained on another file of the name of '{task}' "
        f"({record['data']}); whether they share items was not checked"
        for source in record.get("trained_tasks") or ()
        for task in tasks
        if _same(task, str(source)) and _another_file(task, record)
    ]


def _same(task: str, source: str) -> bool:
    name = source.lower().replace("-", "_")
    documents = ORDER_TASKS[task].data.folder if task in ORDER_TASKS else task
    if documents in _NAMES:
        return re.search(_NAMES[documents], name) is not None
    return PurePath(task).stem.lower().replace("-", "_") == PurePath(name).stem
