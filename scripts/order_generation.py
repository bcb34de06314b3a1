"""Greedy answers on the order tasks, read from text: do they agree with the scored choices?

    python -m scripts.order_generation MODEL ...    # into docs/tables/order_answers.jsonl.gz
    python -m scripts.findings                      # then the tables

The first ``--limit`` documents of each order task, in both orders, under causal attention,
``bidirectional``, the recommended ``layers=A-`` and causal with the prompt given twice. An answer is
the first line of what is generated. A line of the file is one arm on one task: its answers, and the
right ones; it replaces the one that the file has of the same.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bidir_core.common.files import replacing
from bidir_core.data.encoding import Encoder, vocabulary_of
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import read_items
from bidir_core.explain.generate import END_TEXTS, end_ids
from bidir_core.models import loading
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe import Prober
from bidir_core.regimes import Regime, parse_regime
from scripts.model_study import recommended, short
from scripts.pages import TABLES

ANSWERS = TABLES / "order_answers.jsonl.gz"
FAMILIES = ("sciq", "sciq_letters", "boolq")
NEW_TOKENS = 12
AT_ONCE = 50  # prompts
ARMS = ("causal", "bidirectional", "opened", "twice")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--limit", type=int, default=200, help="documents of each order")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--out", type=Path, default=ANSWERS)
    options = parser.parse_args(arguments)
    rows = {cell_of(row): row for row in read(options.out)}
    for model in options.models:
        for row in study(model, options.limit, options.device, options.arms):
            rows[cell_of(row)] = row
            write(options.out, list(rows.values()))


def cell_of(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row is the answers of; a later one of the same replaces it."""
    return row["model"], row["arm"], row["family"], row["order"]


def read(path: Path = ANSWERS) -> list[dict[str, Any]]:
    """The file's rows; none if there is no file."""
    if not path.is_file():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))


def study(
    model: str, limit: int, device: str, arms: Sequence[str] = ARMS
) -> Iterator[dict[str, Any]]:
    """A row for each arm, family and order."""
    loaded = loading.load(model, device=device)
    prober = Prober(loaded)
    for arm in arms:
        regime = recommended(model) if arm == "opened" else arm.replace("twice", "causal")
        times = 2 if arm == "twice" else 1
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
                row = {
                    "model": short(model),
                    "arm": arm,
                    "regime": regime,
                    "family": family,
                    "order": order,
                    "right": [item.continuations[item.gold].strip() for item in items],
                    "answers": answers,
                }
                print(*list(row.values())[:5], repr(answers[0]), flush=True)
                yield row


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


def ended(answer: str) -> str:
    """What stands before the first end mark: answers of 2026-11-30 run over ``<|endoftext|>``."""
    return re.split("|".join(map(re.escape, END_TEXTS)), answer)[0].strip()


ARTICLES = {"a", "an", "the"}


def normalised(text: str) -> str:
    """Lower case, without punctuation, surplus spaces and, unless nothing else is there, articles."""
    words = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def matches(answer: str, right: str) -> bool:
    """Exact match: equal without case, punctuation and articles, as SQuAD compares."""
    return normalised(answer) == normalised(right)


def begins_with(answer: str, right: str) -> bool:
    """Whether an answer begins with the right one's words; a letter ends there or has a mark behind it.

    ``D. nucleotides`` begins with ``D``, ``A wetland is`` does not with ``A``.
    """
    if len(right) == 1:
        return bool(re.match(rf"\(?{right}(\W*$|[^\w\s])", answer, re.IGNORECASE))
    words = normalised(right).split()
    return normalised(answer).split()[: len(words)] == words


if __name__ == "__main__":
    main()
