"""The shape of a model, as far as it can be known without its weights: what costs are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidir_core.config import EMBEDDED_MODEL
from bidir_core.errors import UserError
from bidir_core.weights import read_tensors


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
    guessed: bool = False  # all but the number of weights is

    @property
    def head(self) -> float:
        """Weights of the output head: used for every token that is predicted."""
        return float(self.vocabulary * self.hidden)

    @property
    def body(self) -> float:
        """Weights that every token passes: all but the embeddings, which are looked up."""
        return max(self.parameters - self.head * (1 if self.tied else 2), self.parameters / 3)


def _shape(config: Mapping[str, Any], source: str) -> Shape:
    """From a ``config.json``'s values, the parameters counted. KeyError where one is missing."""
    text = config.get("text_config") or config
    hidden = _first(text, "hidden_size", "n_embd")
    layers = _first(text, "num_hidden_layers", "n_layer")
    heads = _first(text, "num_attention_heads", "n_head")
    intermediate = text.get("intermediate_size") or text.get("n_inner") or 4 * hidden
    vocabulary = text["vocab_size"]
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True)))
    size = text.get("head_dim") or hidden // heads
    key_values = text.get("num_key_value_heads") or heads
    each = 2 * hidden * size * (heads + key_values) + 3 * hidden * intermediate + 2 * hidden
    total = vocabulary * hidden * (1 if tied else 2) + layers * each + hidden
    return Shape(total, layers, hidden, intermediate, vocabulary, tied, source)


def _first(text: Mapping[str, Any], *names: str) -> int:
    return next(int(text[name]) for name in names if text.get(name))


# The embedded models exactly; Ministral 3 as its configuration has it, without the vision tower.
KNOWN = {
    EMBEDDED_MODEL: Shape(134_515_008, 30, 576, 1536, 49_152),
    "gemma3-270m": Shape(268_098_176, 18, 640, 2048, 262_144),
    "mistralai/Ministral-3-3B-Instruct-2512": Shape(3_429_006_336, 26, 3072, 9216, 131_072),
}
KNOWN["mistralai/Ministral-3-3B-Instruct-2512-BF16"] = KNOWN[
    "mistralai/Ministral-3-3B-Instruct-2512"
]


def shape_of(model: str) -> Shape | None:
    """What is known of a model: by name, from its folder, the hub's cache, or the size in its name.

    A size alone is filled up with the proportions that decoders of that size have.
    """
    if model in KNOWN:
        return KNOWN[model]
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _of_folder(folder)
    cached = _cached_config(model)
    if cached is not None:
        try:
            return _shape(cached, "its configuration in the hub's cache")
        except (KeyError, StopIteration, TypeError, ValueError):
            pass
    size = _size_in(model)
    return _guessed(size, "the size in its name") if size else None


def parameters_of(model: str) -> float | None:
    """How many weights a model has, or None; see :func:`shape_of`."""
    shape = shape_of(model)
    return shape.parameters if shape else None


def _of_folder(folder: Path) -> Shape | None:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("snapshots/*/*.safetensors"))
    counted = 0
    for file in files:
        try:
            counted += sum(
                _numel(tensor.shape) for tensor in read_tensors(file) if "vision" not in tensor.name
            )
        except UserError:
            return None
    configs = [folder / "config.json", *sorted(folder.glob("snapshots/*/config.json"))]
    for path in configs:
        try:
            shape = _shape(json.loads(path.read_text(encoding="utf-8")), "its configuration")
        except (OSError, ValueError, KeyError, StopIteration, TypeError, AttributeError):
            continue
        if not counted:
            return shape
        return Shape(**{**vars(shape), "parameters": counted, "source": "its files"})
    return _guessed(counted, "its files") if counted else None


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _cached_config(model: str) -> dict[str, Any] | None:
    """A hub model's configuration if it has been downloaded before; asks no network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(model, "config.json")
        return json.loads(Path(path).read_text(encoding="utf-8")) if isinstance(path, str) else None
    except (HFValidationError, OSError, ValueError):
        return None


def _size_in(name: str) -> float | None:
    sizes = re.findall(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bBmM])(?![A-Za-z0-9])", name)
    if not sizes:
        return None
    number, unit = sizes[-1]
    return float(number) * (1e9 if unit in "bB" else 1e6)


def _guessed(parameters: float, source: str) -> Shape:
    """The usual proportions: about 115 hidden numbers a layer, and 12 hidden^2 weights in each."""
    hidden = round((parameters * 115 / 12) ** (1 / 3))
    layers = max(2, round(hidden / 115))
    vocabulary = int(min(131_072, parameters / 3 / max(hidden, 1)))
    return Shape(parameters, layers, hidden, 3 * hidden, vocabulary, True, source, True)
