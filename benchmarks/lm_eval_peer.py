"""lm-eval's own ``hf`` model on our items: the peer for parity and for speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bidir_core.data.encoding import EncodedItem
from bidir_core.data.items import Item
from bidir_core.evaluate.scoring import Scorer, plan_scoring
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import CAUSAL


class LmEvalPeer:
    """Scores items with lm-eval 0.4.13's ``HFLM``, in its native causal attention."""

    def __init__(
        self, model: Any, *, dtype: str = "float32", device: str = "cpu", tokenizer: Any = None
    ):
        """``model``: a folder, or a model in memory with its ``tokenizer``."""
        from lm_eval.models.huggingface import HFLM

        self.lm = HFLM(
            pretrained=model, tokenizer=tokenizer, dtype=dtype, device=device, batch_size=1
        )

    def score(self, items: Sequence[Item], batch_size: int) -> list[list[float]]:
        """Log-likelihood in nats of every choice of every item, tokenising included."""
        return self.score_requests(items, self.tokenise(items), batch_size)

    def tokenise(self, items: Sequence[Item]) -> list[Any]:
        """One request for each choice of each item, as lm-eval's own ``loglikelihood`` makes them."""
        return [
            ((context, continuation), *self.lm._encode_pair(context, continuation))
            for item in items
            for choice, continuation in enumerate(item.continuations)
            for context in (item.context(choice),)
        ]

    def score_requests(
        self, items: Sequence[Item], requests: list[Any], batch_size: int
    ) -> list[list[float]]:
        """The same from requests that are tokenised."""
        self.lm.batch_size_per_gpu = batch_size
        flat = iter(self.lm._loglikelihood_tokens(requests, disable_tqdm=True))
        return [[float(next(flat)[0]) for _ in item.continuations] for item in items]


def our_scores(loaded: LoadedModel, encoded: Sequence[EncodedItem]) -> list[list[float]]:
    """The same by ours under the causal regime, of items that are tokenised."""
    plan = plan_scoring(encoded, regime=CAUSAL, device=loaded.device)
    scorer = Scorer(loaded.model, loaded.handle, plan)
    by_index = {s.index: s.ll for batch in plan.batches for s in scorer.score(batch.items)}
    return [by_index[i] for i in range(len(encoded))]


def accuracy(items: Sequence[Item], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """``acc`` and ``acc_norm`` per task by lm-eval's rules, from log-likelihoods."""
    tasks: dict[str, list[tuple[bool, bool]]] = {}
    for item, ll in zip(items, scores):
        lengths = [len(text.removeprefix(" ")) for text in item.continuations]
        plain = int(np.argmax(ll)) == item.gold
        normed = int(np.argmax(np.array(ll) / lengths)) == item.gold
        tasks.setdefault(item.task, []).append((plain, normed))
    return {
        task: {"acc": np.mean([p for p, _ in hits]), "acc_norm": np.mean([n for _, n in hits])}
        for task, hits in tasks.items()
    }
