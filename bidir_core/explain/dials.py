"""One item's answers at every setting of three dials, put into a file (:mod:`bidir_core.runs.dials`): a
page then needs no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import EncodedItem
from bidir_core.evaluate import evaluate
from bidir_core.explain.variants import Rule, VariantScorer
from bidir_core.explain.why import read_item, resolve
from bidir_core.explain.why_config import WhyConfig
from bidir_core.models import loading
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import CAUSAL, parse_regime
from bidir_core.runs.dials import STRENGTHS, read_dials, write_dials


def export(config: WhyConfig, path: Path | str) -> dict[str, Any]:
    """Score the item at every setting and put it into the file. UserError, before anything is
    written, on bad input and for an item that has a context for each choice."""
    records = read_dials(path)
    config, reading, run = resolve(config)
    plan = evaluate.preflight(reading, parse_regime(reading.regime))
    encoded, _ = read_item(config, reading, plan, run)
    item = encoded.item
    if len(item.contexts) > 1:
        raise UserError(
            f"item {item.item_id} has a context for each choice; name one with a single one"
        )
    loaded = loading.load_weights(plan)
    record = {
        "model": config.model,
        "item": item.item_id,
        "run": run.id if run is not None else None,
        "dtype": loaded.dtype,
        "context": item.contexts[0],
        "choices": [text.strip() for text in item.continuations],
        "gold": item.gold,
        "n_prefix": len(encoded.prefixes[0]),
        "n_layers": loaded.n_layers,
        "scores": grid(loaded, encoded),
    }
    key = config.model, item.item_id
    others = [other for other in records if (other["model"], other["item"]) != key]
    write_dials([*others, record], path)
    return record


def grid(loaded: LoadedModel, encoded: EncodedItem) -> list[list[list[list[int]]]]:
    """``[2, n_layers + 1, len(STRENGTHS), n_choices]``, see :func:`bidir_core.runs.dials.read_dials`."""
    n_layers = loaded.n_layers
    places, variants = [], []
    for sink in (0, 1):
        for first in range(n_layers + 1):
            for step, strength in enumerate(STRENGTHS):
                rule = Rule(parse_regime(f"bidirectional:sink={sink},lambda={strength:g}"))
                places.append((sink, first, step))
                variants.append((Rule(CAUSAL),) * first + (rule,) * (n_layers - first))
    scores: list[list[list[list[int]]]] = [
        [[[] for _ in STRENGTHS] for _ in range(n_layers + 1)] for _ in (0, 1)
    ]
    for scored in VariantScorer(loaded, encoded).score(variants):
        sink, first, step = places[scored.variant]
        best = max(scored.ll)
        scores[sink][first][step] = [round(100 * (ll - best)) for ll in scored.ll]
    return scores
