"""On which model and prompts ``recommend`` advises, checked; and what its result says in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bidir_core.common.settings import check_config, same_as, setting
from bidir_core.data.tasks import absolute_task
from bidir_core.evaluate.config import EvalConfig

KIND = "recommend"
PROMPTS_PER_TASK = 20


@dataclass(frozen=True, kw_only=True)
class RecommendConfig:
    """Which model to advise on, and on which prompts."""

    model: str = same_as(EvalConfig, "model")
    revision: str | None = same_as(EvalConfig, "revision")
    checkpoint: str | None = same_as(EvalConfig, "checkpoint")
    prompts: str | None = setting(
        None,
        help='a file with one prompt a line, or a .jsonl file whose lines have a "prompt" '
        "(default: the contexts of items of --tasks, their explore half)",
        role="identity",
        metavar="FILE",
    )
    tasks: tuple[str, ...] = same_as(
        EvalConfig, "tasks", help="tasks whose contexts are the prompts, without --prompts"
    )
    limit: int | None = setting(
        None,
        help=f"this many prompts of each task (default: {PROMPTS_PER_TASK}), or of the file "
        "(default: all)",
        role="identity",
        metavar="N",
    )
    positions: int = setting(
        1,
        help="how many next-token distributions are compared: behind the prompt, and behind each of "
        "N-1 tokens with which causal goes on",
        role="identity",
        metavar="N",
    )
    split: str = same_as(EvalConfig, "split")
    data_source: str = same_as(EvalConfig, "data_source")
    bos: str = same_as(EvalConfig, "bos")
    chat_template: bool = same_as(EvalConfig, "chat_template")
    dtype: str = same_as(EvalConfig, "dtype")
    device: str = same_as(EvalConfig, "device")
    attn: str = same_as(EvalConfig, "attn")
    batch_tokens: int | None = same_as(EvalConfig, "batch_tokens")
    runs_dir: str | None = same_as(EvalConfig, "runs_dir")
    name: str | None = same_as(EvalConfig, "name")

    def __post_init__(self) -> None:
        check_config(self, limit=1, positions=1, batch_tokens=1)
        if self.prompts is not None:
            path = os.path.abspath(os.path.expanduser(self.prompts))
            object.__setattr__(self, "prompts", path)
        object.__setattr__(self, "tasks", tuple(absolute_task(task) for task in self.tasks))


def sentence(result: Mapping[str, Any]) -> str:
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
