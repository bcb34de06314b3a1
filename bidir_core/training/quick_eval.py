"""Quick evaluations along the way: the points of the recovery curve.

A stratified few items per task from the explore fold, so that what is chosen by looking at the
curve is not chosen on the items that claims are made on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bidir_core.attention import Handle
from bidir_core.config import PUBLISHED_TASKS
from bidir_core.encoding import EncodedItem, Encoder
from bidir_core.regimes import Regime
from bidir_core.scoring import Scorer, ScoringPlan, plan_scoring
from bidir_core.tasks import load_items


class QuickEval:
    """Scores one fixed set of items, as often as asked."""

    def __init__(self, encoded: list[EncodedItem], device: torch.device):
        self.encoded = [one for one in encoded if one.error is None]
        self.device = device
        self.plans: dict[Regime, ScoringPlan] = {}

    @classmethod
    def on_benchmarks(
        cls, n_items: int, *, tokenizer: Any, chat_template: bool, device: torch.device
    ) -> QuickEval:
        """``n_items`` of each of the five tasks, tokenised."""
        items = load_items(PUBLISHED_TASKS, limit=n_items, sample="stratified", fold="explore")
        return cls(Encoder(tokenizer, chat_template=chat_template).encode(items), device)

    def run(self, model: Any, handle: Handle, regime: Regime) -> dict[str, Any]:
        """Macro ``acc``, ``acc_norm`` and ``gold_prob``, and ``acc`` by task, under the regime."""
        training = model.training
        model.eval()
        try:
            if regime not in self.plans:
                self.plans[regime] = plan_scoring(
                    self.encoded,
                    regime=regime,
                    device=self.device,
                    implementation=handle.implementation,
                )
            plan = self.plans[regime]
            scorer = Scorer(model, handle, plan)
            rows: dict[str, list[tuple[float, float, float]]] = {}
            # Layers compiled for training would be compiled again for each shape met here.
            with torch.compiler.set_stance("force_eager"):
                for _, scores in scorer.score_all(batch.items for batch in plan.batches):
                    for score in scores:
                        item = self.encoded[score.index].item
                        rows.setdefault(item.task, []).append(_judge(item, np.array(score.ll)))
        finally:
            model.train(training)
        means = {task: np.mean(values, axis=0) for task, values in sorted(rows.items())}
        macro = np.mean(list(means.values()), axis=0)
        names = ("acc", "acc_norm", "gold_prob")
        return {
            **{name: round(float(value), 6) for name, value in zip(names, macro)},
            "n": len(self.encoded),
            "tasks": {task: round(float(values[0]), 6) for task, values in means.items()},
        }


def _judge(item: Any, ll: np.ndarray) -> tuple[float, float, float]:
    """Right, right by length-normalised score, and the probability at the gold choice."""
    right = float(ll.argmax() == item.gold)
    norm = right  # lm-eval has no acc_norm where choices share one continuation
    if item.has_acc_norm:
        length = np.array([max(1, len(text) - 1) for text in item.continuations])
        norm = float((ll / length).argmax() == item.gold)
    probability = np.exp(ll - ll.max())
    return right, norm, float(probability[item.gold] / probability.sum())
