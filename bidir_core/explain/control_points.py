"""What the controls need to be run: their points, and the attention that triviality looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import EncodedItem
from bidir_core.data.items import Item
from bidir_core.evaluate import evaluate
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.scoring import ScoringPlan, plan_scoring
from bidir_core.explain.sweep_points import (
    SINK,
    Condition,
    LabConfig,
    Point,
    condition_of,
    control_points,
)
from bidir_core.models import loading
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, parse_regime

ITEMS_PER_TASK = 5  # for the attention that triviality looks at

ATTENTION_FILE = "attention.json"


def plan(prompts: Prompts) -> tuple[list[Point], list[str]]:
    """The points that the controls need, and a note for each that this model does not allow."""
    allowed, notes = [], []
    for condition in _conditions(prompts):
        try:
            prompts.of(condition)
            allowed.append(condition)
        except UserError as error:
            notes.append(f"no control with {condition.words(prompts.usual)}: {error}")
    return control_points(prompts.usual, middle_token(prompts), allowed), notes


def middle_token(prompts: Prompts) -> int:
    """The placebo's token: half the median prompt length, so that most prompts have it inside."""
    encoded = prompts.of(prompts.usual)[1]
    lengths = [len(prefix) for one in encoded if not one.error for prefix in one.prefixes]
    return max(2, int(np.median(lengths)) // 2) if lengths else 2


def _conditions(prompts: Prompts) -> list[Condition]:
    """The usual prompt with the BOS token the other way, and with the chat template so."""
    usual, tokenizer = prompts.usual, prompts.loaded.tokenizer
    bos_added = prompts.of(usual)[2]
    found = []
    if bos_added:
        found.append(usual._replace(bos="none"))
    elif tokenizer.bos_token_id is not None:
        found.append(usual._replace(bos="add"))
    if usual.chat_template or getattr(tokenizer, "chat_template", None):
        found.append(usual._replace(chat_template=not usual.chat_template))
    return found


def measure_attention(folder: Path, prompts: Prompts, loaded: LoadedModel) -> None:
    """Where attention goes under each reference regime, on a few items of each task.

    Written to ``attention.json``; a resumed sweep does not measure twice.
    """
    from bidir_core.common.files import write_json
    from bidir_core.explain.observe import attention_shares

    if (folder / ATTENTION_FILE).exists():
        return
    by_task: dict[str, list[Any]] = {}
    for one in prompts.of(prompts.usual)[1]:
        if not one.error and len(one.prefix(one.item.gold)) > 1:
            by_task.setdefault(one.item.task, []).append(one)
    chosen = []
    for members in by_task.values():
        places = np.linspace(0, len(members) - 1, min(ITEMS_PER_TASK, len(members)))
        chosen += [members[int(place)] for place in places]
    found: dict[str, Any] = {}
    for regime in (CAUSAL, BIDIRECTIONAL, SINK):
        means = [shares.mean() for _, shares in attention_shares(loaded, chosen, regime)]
        found[str(regime)] = {
            name: [round(float(mean[name].mean()), 5) for mean in means]
            for name in ("first", "future", "past")
        } | {
            f"{name}_by_layer": np.mean([m[name].mean(-1) for m in means], axis=0).round(5).tolist()
            for name in ("first", "future")
        }
    items = [one.item.item_id for one in chosen]
    write_json(folder / ATTENTION_FILE, {"schema": 1, "items": items, "regimes": found}, dense=True)


class Prompts:
    """The items of one model, encoded once per prompt condition."""

    def __init__(self, config: LabConfig, loaded: LoadedModel | loading.Preflight):
        self.config, self.loaded = config, loaded
        self.usual = condition_of(config)
        self._items: dict[str, list[Item]] = {}  # by context: nothing else changes them
        self._made: dict[Condition, tuple[list[Item], list[EncodedItem], bool]] = {}
        self._plans: dict[tuple[Condition, bool], ScoringPlan] = {}

    def evaluation(self, point: Point) -> EvalConfig:
        """The settings of one point as an evaluation."""
        return self.config.evaluation(
            regime=point.regime, patch=point.patch, name=None, **point.condition._asdict()
        )

    def of(self, condition: Condition) -> tuple[list[Item], list[EncodedItem], bool]:
        """Items, the same encoded, and whether a BOS stands in front."""
        if condition not in self._made:
            config = self.config.evaluation(**condition._asdict())
            if condition.context not in self._items:
                self._items[condition.context] = evaluate.read_items(config)
            items = self._items[condition.context]
            self._made[condition] = (items, *evaluate.encode(config, self.loaded, items))
        return self._made[condition]

    def plan(self, point: Point, loaded: LoadedModel) -> ScoringPlan:
        """The batch plan, as in an evaluation; regimes that are not causal share one."""
        regime = parse_regime(point.regime)
        slot = (point.condition, regime.is_causal)
        if slot not in self._plans:
            self._plans[slot] = plan_scoring(
                self.of(point.condition)[1],
                regime=CAUSAL if regime.is_causal else BIDIRECTIONAL,
                device=loaded.device,
                batch_tokens=self.config.batch_tokens,
                implementation=loaded.implementation,
            )
        return self._plans[slot]
