"""Greedy answers on the order tasks, read by exact match: do they agree with the scored choices?

    python -m scripts.order_generation MODEL ... --out docs/tables/order_generation.csv

The first ``--limit`` documents of each order task, in both orders, under causal attention,
``bidirectional``, the recommended ``layers=A-`` and causal with the prompt given twice. An answer is
the first line of what is generated; it counts if it equals the right answer after both are
lower-cased and freed of punctuation, articles and surplus spaces (as SQuAD's exact match does).
Rows of models named here replace those that the file has of them.
"""

from __future__ import annotations

import argparse
import csv
import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from bidir_core.data.encoding import Encoder, vocabulary_of
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import read_items
from bidir_core.explain.generate import end_ids
from bidir_core.models import loading
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe import Prober
from bidir_core.regimes import Regime, parse_regime
from scripts.model_study import recommended, short

FAMILIES = ("sciq", "sciq_letters", "boolq")
NEW_TOKENS = 12
AT_ONCE = 50  # prompts
COLUMNS = ("model", "arm", "regime", "family", "order", "n", "exact_match")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--limit", type=int, default=200, help="documents of each order")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    names = {short(model) for model in options.models}
    rows: list[dict[str, Any]] = []
    if options.out.is_file():
        with open(options.out, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["model"] not in names]
    for model in options.models:
        rows += study(model, options.limit, options.device)
        with open(options.out, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def study(model: str, limit: int, device: str) -> Iterable[dict[str, Any]]:
    """A row for each arm, family and order; ``exact_match`` is a share."""
    loaded = loading.load(model, device=device)
    prober = Prober(loaded)
    arms = {
        "causal": ("causal", 1),
        "bidirectional": ("bidirectional", 1),
        "opened": (recommended(model), 1),
        "twice": ("causal", 2),
    }
    for arm, (regime, times) in arms.items():
        prober.require(regime)
        for family in FAMILIES:
            for order in ("first", "last"):
                config = EvalConfig(
                    model=model, tasks=(f"{family}_{order}",), limit=limit, repeat_prompt=times
                )
                items = read_items(config)
                encoder = Encoder(loaded.tokenizer, vocabulary=vocabulary_of(loaded))
                prompts = [encoded.prefix(0).ids.tolist() for encoded in encoder.encode(items)]
                answers = greedy(loaded, prompts, parse_regime(regime), NEW_TOKENS)
                right = [
                    normalised(answer) == normalised(item.continuations[item.gold])
                    for answer, item in zip(answers, items, strict=True)
                ]
                row = (
                    short(model),
                    arm,
                    regime,
                    family,
                    order,
                    len(items),
                    sum(right) / len(right),
                )
                print(*row, repr(answers[0]), flush=True)
                yield dict(zip(COLUMNS, row, strict=True))


@torch.inference_mode()
def greedy(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], regime: Regime, new_tokens: int
) -> list[str]:
    """The first line that each prompt is continued with, many prompts at once.

    Everything is computed again for each token; ``bidir_core.explain.generate`` does one prompt
    with a cache, and gives the same.
    """
    ends, pad = end_ids(loaded), loaded.tokenizer.eos_token_id or 0
    generated: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(prompts), AT_ONCE):
        batch = range(start, min(start + AT_ONCE, len(prompts)))
        for _ in range(new_tokens):
            texts = [[*prompts[i], *generated[i]] for i in batch]
            layout = Layout.pad([(len(prompts[i]), len(text)) for i, text in zip(batch, texts)])
            ids = torch.full(layout.shape, pad)
            for row, text in enumerate(texts):
                ids[row, : len(text)] = torch.tensor(text)
            layout, last = layout.to(loaded.device), [len(text) - 1 for text in texts]
            with loaded.handle.use(regime, layout):
                hidden = loaded.handle.decoder(
                    input_ids=ids.to(loaded.device), position_ids=layout.position, use_cache=False
                ).last_hidden_state[range(len(batch)), last]
            chosen = loaded.model.get_output_embeddings()(hidden).argmax(-1).tolist()
            for i, token in zip(batch, chosen):
                generated[i].append(token)
    answers = []
    for tokens in generated:
        end = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
        answers.append(loaded.tokenizer.decode(tokens[:end]).strip().split("\n")[0])
    return answers


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and surplus spaces."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


if __name__ == "__main__":
    main()
