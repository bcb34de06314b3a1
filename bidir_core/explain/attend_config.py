"""What ``attend`` observes: one item, one prompt or many items, checked; and its command line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from bidir_core.common.errors import UserError
from bidir_core.common.settings import (
    check_config,
    command_line,
    join_list,
    same_as,
    setting,
    split_list,
)
from bidir_core.data.tasks import absolute_task
from bidir_core.evaluate.config import EvalConfig
from bidir_core.regimes import parse_regime

DEFAULT_REGIMES = ("causal", "bidirectional")
MOST_REGIMES = 4  # in one picture


@dataclass(frozen=True, kw_only=True)
class AttendConfig:
    """Whose attention to observe: an item, a prompt, or (``limit`` or ``items``) many items."""

    model: str = same_as(EvalConfig, "model")
    revision: str | None = same_as(EvalConfig, "revision")
    checkpoint: str | None = same_as(EvalConfig, "checkpoint")
    task: str | None = setting(
        None,
        help="a task's name, or the path of a JSONL file with your own items; averages take "
        "several, comma-separated",
        role="identity",
    )
    doc_id: int | None = setting(None, help="the item's number in its split", role="identity")
    choice: int | None = setting(
        None,
        help="which choice follows the item's prefix (the right one if left out)",
        role="identity",
    )
    prompt: str | None = setting(None, help="your own prompt, instead of --task", role="identity")
    continuation: str | None = setting(
        None, help="what follows your own prompt; begin it with its space", role="identity"
    )
    limit: int | None = setting(
        None, help="average over this many items of each task", role="identity", metavar="N"
    )
    items: tuple[str, ...] = setting(
        (), help="average over these items of the task: comma-separated numbers", role="identity"
    )
    sample: str = same_as(EvalConfig, "sample")
    seed: int = same_as(EvalConfig, "seed", help="for --sample random")
    split: str = same_as(EvalConfig, "split", help="which split of the task")
    regimes: tuple[str, ...] = setting(
        DEFAULT_REGIMES,
        help="the regimes, the first being what others are compared with",
        role="identity",
        cli=False,
    )
    dtype: str = same_as(EvalConfig, "dtype")
    device: str = same_as(EvalConfig, "device")
    bos: str = same_as(EvalConfig, "bos")
    chat_template: bool = same_as(
        EvalConfig, "chat_template", help="wrap the prompt as a user's turn in the chat template"
    )
    data_source: str = same_as(EvalConfig, "data_source")
    runs_dir: str | None = same_as(EvalConfig, "runs_dir")
    name: str | None = same_as(EvalConfig, "name")

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
        ways = [self.doc_id is not None, self.limit is not None, bool(self.items)]
        if self.prompt is not None and self.task is not None:
            raise UserError("--task and --prompt are both given; give one of them")
        if self.prompt is None and self.task is None:
            raise UserError(
                "nothing to observe; give --task T --doc-id I, --task T --limit N, or --prompt TEXT"
            )
        if self.prompt is not None:
            if not self.prompt.strip():
                raise UserError("--prompt is empty; give at least one word")
            if any(ways) or self.choice is not None:
                raise UserError(
                    "--doc-id, --choice, --limit and --items choose items of a task, and --prompt "
                    "is a text of your own; leave one out"
                )
            return
        if self.continuation is not None:
            raise UserError("--continuation follows --prompt; of an item, name a --choice instead")
        if len(self.tasks) > 1 and self.limit is None:
            raise UserError(
                f"--task names {len(self.tasks)} tasks; several go with --limit N (of each), and an "
                "item's number with one"
            )
        if sum(ways) != 1:
            raise UserError(
                "say which items of the task: exactly one of --doc-id I (one, in full), --limit N "
                "and --items I,J,.. (many, averaged)"
            )
        if self.is_summary and self.choice is not None:
            raise UserError("--choice goes with --doc-id; averages take each item's right choice")
        for number in self.items:
            if not number.isdecimal():
                raise UserError(
                    f"--items: '{number[:40]}' is not an item's number; numbers are 0 up"
                )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that ``--task`` names; empty for a prompt of one's own."""
        return split_list(self.task or "")

    @property
    def is_summary(self) -> bool:
        return self.limit is not None or bool(self.items)

    @property
    def what(self) -> str:
        """The item or items, or the prompt, in a few characters."""
        if self.prompt is not None:
            return "a prompt"
        if self.doc_id is not None:
            return f"{self.task}/{self.doc_id}"
        each = " each" if len(self.tasks) > 1 else ""
        return f"{self.limit or len(self.items)} items{each} of {', '.join(self.tasks)}"


def absolute_tasks(task: str) -> str:
    """``--task`` so that it means the same in every folder: files by their absolute paths."""
    return join_list(map(absolute_task, split_list(task)))


def attend_words(config: AttendConfig) -> tuple[str, ...]:
    """What follows ``python -m bidir_core`` on the line that runs this config."""
    words = shlex.split(command_line("attend", config))[3:]
    for regime in config.regimes:
        words += ["--regime", regime]
    return tuple(words)
