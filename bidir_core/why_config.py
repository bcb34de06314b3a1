"""What ``why`` takes: one item, one model, one regime; often by way of a run that scored it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bidir_core.config import EvalConfig, check_config, from_json, same_as, setting, to_json
from bidir_core.custom_task import absolute_task, is_custom_task
from bidir_core.errors import UserError
from bidir_core.regimes import parse_regime
from bidir_core.run_layout import runs_roots
from bidir_core.store import Run, find_run

MAX_TOKEN_SPANS = 64  # a longer prompt is restored in spans of several tokens
# What a run decides where the command line does not.
_READING = (
    "model", "revision", "checkpoint", "split", "bos", "chat_template", "data_source",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WhyConfig:
    """Which item to explain, and everything that decides how it is read."""

    model: str | None = setting(
        None, help="an embedded name, a hub id or a folder (or name a run)", role="identity"
    )
    revision: str | None = same_as(EvalConfig, "revision")
    checkpoint: str | None = same_as(EvalConfig, "checkpoint")
    task: str = setting(help="the item's task, or the path of a JSONL file", role="identity")
    doc_id: int = setting(help="the item's number in its split", role="identity")
    regime: str | None = setting(
        None,
        help="the regime to explain (default: the run's, else bidirectional)",
        role="identity",
    )
    as_run: str | None = setting(
        None,
        help="a run that scored the item: everything left out here is as it was there",
        role="identity",
    )
    metric: str = setting(
        "acc", help="which score chooses the answer", role="identity", choices=("acc", "acc_norm")
    )
    split: str = same_as(EvalConfig, "split", help="which split of the task")
    bos: str = same_as(EvalConfig, "bos")
    chat_template: bool = same_as(EvalConfig, "chat_template")
    data_source: str = same_as(EvalConfig, "data_source")
    dtype: str = same_as(EvalConfig, "dtype")
    device: str = same_as(EvalConfig, "device")
    attn: str = same_as(EvalConfig, "attn")
    runs_dir: str | None = same_as(EvalConfig, "runs_dir")
    name: str | None = same_as(EvalConfig, "name")

    def __post_init__(self) -> None:
        check_config(self)
        if self.doc_id < 0:
            raise UserError(f"--doc-id {self.doc_id}: items are numbered from 0 up")
        if self.regime is not None:
            object.__setattr__(self, "regime", str(parse_regime(self.regime)))
        object.__setattr__(self, "task", absolute_task(self.task))

    @property
    def folder_name(self) -> str:
        """What the run folder is called behind its time stamp."""
        task = re.sub(r"[^A-Za-z0-9._-]+", "-", name_of(self.task))[:50]
        return self.name or f"why-{task}-{self.doc_id}"


def name_of(task: str) -> str:
    """The name under which a task's items are recorded: a file by its stem."""
    return Path(task).stem if is_custom_task(task) else task


def resolve(config: WhyConfig) -> tuple[WhyConfig, EvalConfig, Run | None]:
    """The config with nothing left open, how the item's run reads items, and that run.

    Raises UserError if the run is not there, is no evaluation, or never scored this item.
    """
    if config.as_run is None:
        if config.model is None:
            raise UserError(
                "--model is missing; name one, for example smollm2-135m-instruct, or --as-run RUN"
            )
        reading = EvalConfig(model=config.model, tasks=(config.task,))
        run = None
    else:
        own = [config.runs_dir] if config.runs_dir else []
        run = find_run(config.as_run, roots=[*own, *runs_roots()])
        if run.config.get("kind", "eval") != "eval" or run.is_reference or run.error:
            raise UserError(f"the run '{run.id}' holds no scored items; name an evaluation's run")
        reading = from_json(EvalConfig, run.settings)
        if reading.patch is not None:
            raise UserError(
                f"the run '{run.id}' has keys or values patched in, which no regime says; name a "
                "run without"
            )
        reading = replace(reading, tasks=(_task_of(config, reading, run),))
    given = {
        name: getattr(config, name)
        for name in _READING
        if getattr(config, name) != getattr(WhyConfig, name)
    }
    regime = config.regime or (reading.regime if run is not None else "bidirectional")
    if parse_regime(regime).is_causal:
        whose = f"the run '{run.id}' read causally" if config.regime is None and run else "causal"
        raise UserError(
            f"{whose}: there is nothing to explain; give a bidirectional --regime or --as-run such a run"
        )
    reading = replace(
        reading, **given, regime=regime, dtype=config.dtype, device=config.device,
        attn=config.attn, limit=None, sample="first", fold="all", batch_tokens=None,
    )  # fmt: skip
    kept = {f.name: getattr(reading, f.name) for f in fields(WhyConfig) if hasattr(reading, f.name)}
    for name in ("runs_dir", "name"):
        kept[name] = getattr(config, name)
    return replace(config, **kept, task=reading.tasks[0]), reading, run


def _task_of(config: WhyConfig, reading: EvalConfig, run: Run) -> str:
    """The run's own name or path of the task; its records must hold the item."""
    wanted = name_of(config.task)
    found = [task for task in reading.tasks if name_of(task) == wanted]
    if not found:
        raise UserError(
            f"the run '{run.id}' was not made on '{wanted}'; its tasks are {', '.join(run.tasks)}"
        )
    if run.item(wanted, config.doc_id) is None:
        raise UserError(
            f"the run '{run.id}' has no item {wanted}/{config.doc_id}; name one it scored"
        )
    return found[0]


def settings_for_run(config: WhyConfig) -> dict[str, Any]:
    """What ``config.json`` records: readers expect ``tasks`` beside the settings."""
    return to_json(config) | {"tasks": [config.task]}


def expected_tokens(
    n_prefix: Sequence[int], n_continuation: Sequence[int], n_layers: int = 30
) -> float:
    """About how many tokens explaining an item computes: rows of it times their length."""
    length = sum(n_prefix) + sum(n_continuation)
    return length * (1.5 * n_layers + min(max(n_prefix), MAX_TOKEN_SPANS) + 20)
