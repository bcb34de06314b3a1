"""Which item ``why`` explains and how it is read, checked; and how much work that is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bidir_core.common.errors import UserError
from bidir_core.common.settings import check_config, same_as, setting
from bidir_core.data.tasks import absolute_task, name_of
from bidir_core.evaluate.config import EvalConfig
from bidir_core.regimes import parse_regime

KIND = "why"  # of its runs
RESULT = "why.json"  # what a run found, in its folder
MAX_TOKEN_SPANS = 64  # a longer prompt is restored in spans of several tokens


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
        None, help="the regime to explain (default: the run's, else bidirectional)", role="identity"
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


def expected_tokens(n_prefix: Sequence[int], n_continuation: Sequence[int]) -> float:
    """About how many tokens explaining an item computes: rows of it (of a model of 30 layers) times
    their length."""
    length = sum(n_prefix) + sum(n_continuation)
    return length * (65 + min(max(n_prefix), MAX_TOKEN_SPANS))
