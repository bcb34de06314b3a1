"""What ``attend``, ``why`` and ``recommend`` are asked: checked, and free of torch."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.common.settings import (
    check_config,
    command_line,
    join_list,
    same_as,
    setting,
    split_list,
)
from bidir_core.data.items import name_of
from bidir_core.data.tasks import absolute_task
from bidir_core.evaluate.config import EvalConfig
from bidir_core.regimes import parse_regime


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which model reads, and how: as in an evaluation."""

    model: str | None = same_as(EvalConfig, "model")
    revision: str | None = same_as(EvalConfig, "revision")
    checkpoint: str | None = same_as(EvalConfig, "checkpoint")
    split: str = same_as(EvalConfig, "split")
    bos: str = same_as(EvalConfig, "bos")
    chat_template: bool = same_as(EvalConfig, "chat_template")
    data_source: str = same_as(EvalConfig, "data_source")
    dtype: str = same_as(EvalConfig, "dtype")
    device: str = same_as(EvalConfig, "device")
    runs_dir: str | None = same_as(EvalConfig, "runs_dir")
    name: str | None = same_as(EvalConfig, "name")


# --- attend ----------------------------------------------------------------------------------------

DEFAULT_REGIMES = ("causal", "bidirectional")
MOST_REGIMES = 4  # in one picture


@dataclass(frozen=True, kw_only=True)
class AttendConfig(Reading):
    """Whose attention to observe: an item, a prompt, or (with ``limit``) many items."""

    model: str = same_as(EvalConfig, "model")
    task: str | None = setting(
        None,
        help="a task's name, or the path of a JSONL file with your own items; averages take "
        "several, comma-separated",
    )
    doc_id: int | None = setting(None, help="the item's number in its split")
    prompt: str | None = setting(None, help="your own prompt, instead of --task")
    continuation: str | None = setting(
        None, help="what follows your own prompt; begin it with its space"
    )
    limit: int | None = setting(None, help="average over this many items of each task", metavar="N")
    regimes: tuple[str, ...] = setting(
        DEFAULT_REGIMES,
        help="the regimes, the first being what others are compared with",
        cli=False,
    )

    def __post_init__(self) -> None:
        check_config(self)
        regimes = tuple(str(parse_regime(regime)) for regime in self.regimes)
        for regime in regimes:
            if regimes.count(regime) > 1:
                raise UserError(f"two of the regimes are '{regime}'; give different ones, or one")
        object.__setattr__(self, "regimes", regimes or DEFAULT_REGIMES)
        self._check_what()
        most = MOST_REGIMES if self.is_summary else 2
        if len(regimes) > most:
            allowed = "averages take up to four" if self.is_summary else "one text takes one or two"
            raise UserError(f"--regime is given {len(regimes)} times; {allowed}")
        if self.task is not None:
            object.__setattr__(self, "task", absolute_tasks(self.task))

    def _check_what(self) -> None:
        """Exactly one thing to observe."""
        if self.prompt is not None and self.task is not None:
            raise UserError("--task and --prompt are both given; give one of them")
        if self.prompt is None and self.task is None:
            raise UserError(
                "nothing to observe; give --task T --doc-id I, --task T --limit N, or --prompt TEXT"
            )
        if self.prompt is not None:
            if not self.prompt.strip():
                raise UserError("--prompt is empty; give at least one word")
            if self.doc_id is not None or self.limit is not None:
                raise UserError(
                    "--doc-id and --limit choose items of a task, and --prompt is a text of your own; "
                    "leave one out"
                )
            return
        if self.continuation is not None:
            raise UserError("--continuation follows --prompt; an item has its own")
        if len(self.tasks) > 1 and self.limit is None:
            raise UserError(
                f"--task names {len(self.tasks)} tasks; several go with --limit N (of each), and an "
                "item's number with one"
            )
        if (self.doc_id is None) == (self.limit is None):
            raise UserError(
                "say which items of the task: exactly one of --doc-id I (one, in full) and --limit N "
                "(the first N, averaged)"
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that ``--task`` names; empty for a prompt of one's own."""
        return split_list(self.task or "")

    @property
    def is_summary(self) -> bool:
        return self.limit is not None

    @property
    def what(self) -> str:
        """The item or items, or the prompt, in a few characters."""
        if self.prompt is not None:
            return "a prompt"
        if self.doc_id is not None:
            return f"{self.task}/{self.doc_id}"
        each = " each" if len(self.tasks) > 1 else ""
        return f"{self.limit} items{each} of {', '.join(self.tasks)}"


def absolute_tasks(task: str) -> str:
    """``--task`` so that it means the same in every folder: files by their absolute paths."""
    return join_list(map(absolute_task, split_list(task)))


def attend_words(config: AttendConfig) -> tuple[str, ...]:
    """What follows ``python -m bidir_core`` on the line that runs this config."""
    words = shlex.split(command_line("attend", config))[3:]
    for regime in config.regimes:
        words += ["--regime", regime]
    return tuple(words)


# --- why -------------------------------------------------------------------------------------------

RESULT = "why.json"  # what ``why`` found, in its folder
MAX_TOKEN_SPANS = 64  # a longer prompt is restored in spans of several tokens


@dataclass(frozen=True, kw_only=True)
class WhyConfig(Reading):
    """Which item to explain, and everything that decides how it is read."""

    model: str | None = setting(None, help="an embedded name, a hub id or a folder (or name a run)")
    task: str = setting(help="the item's task, or the path of a JSONL file")
    doc_id: int = setting(help="the item's number in its split")
    regime: str | None = setting(
        None, help="the regime to explain (default: the run's, else bidirectional)"
    )
    as_run: str | None = setting(
        None, help="a run that scored the item: everything left out here is as it was there"
    )
    metric: str = setting("acc", help="which score chooses the answer", choices=("acc", "acc_norm"))
    attn: str = same_as(EvalConfig, "attn")

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


def expected_tokens(n_prefix: Sequence[int], n_continuation: Sequence[int]) -> float:
    """About how many tokens explaining an item computes: rows of it (of a model of 30 layers) times
    their length."""
    length = sum(n_prefix) + sum(n_continuation)
    return length * (65 + min(max(n_prefix), MAX_TOKEN_SPANS))


# --- recommend ------------------------------------------------------------------------------------

PROMPTS_PER_TASK = 20


@dataclass(frozen=True, kw_only=True)
class RecommendConfig(Reading):
    """Which model to advise on, and on which prompts."""

    model: str = same_as(EvalConfig, "model")
    prompts: str | None = setting(
        None,
        help='a file with one prompt a line, or a .jsonl file whose lines have a "prompt" '
        "(default: the contexts of items of --tasks, their explore half)",
        metavar="FILE",
    )
    tasks: tuple[str, ...] = same_as(
        EvalConfig, "tasks", help="tasks whose contexts are the prompts, without --prompts"
    )
    limit: int | None = setting(
        None,
        help=f"this many prompts of each task (default: {PROMPTS_PER_TASK}), or of the file "
        "(default: all)",
        metavar="N",
    )
    attn: str = same_as(EvalConfig, "attn")
    batch_tokens: int | None = same_as(EvalConfig, "batch_tokens")

    def __post_init__(self) -> None:
        check_config(self, limit=1, batch_tokens=1)
        if self.prompts is not None:
            path = os.path.abspath(os.path.expanduser(self.prompts))
            object.__setattr__(self, "prompts", path)
        object.__setattr__(self, "tasks", tuple(absolute_task(task) for task in self.tasks))


def recommendation(result: Mapping[str, Any]) -> str:
    """What was found, for people. ``result``: the run's ``metrics.json``."""
    best, limit = result["recommended"], result["thresholds"]["kl"]
    plain_kl = result["curves"]["kl"][0]
    if best["first_layer"] == 0:
        return (
            f"all layers may look ahead: plain bidirectional is {plain_kl:.3g} nats from causal, below "
            f"the threshold of {limit}"
        )
    if best["first_layer"] >= result["n_layers"] - 1:
        return (
            f"no regime layers=A- that changes a prediction is within {limit} nats of causal "
            f"(bidirectional in all layers: {plain_kl:.3g})"
        )
    return (
        f"leave the first {best['first_layer']} of {result['n_layers']} layers causal "
        f"({best['regime']}): then next-token predictions stay within {limit} nats of causal, "
        f"{best['mean_kl']:.3g} on average, against {plain_kl:.3g} with every layer looking ahead"
    )
