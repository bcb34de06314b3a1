"""Watch a model attend: the attention weights and hidden states of one sequence under a regime.

The weights are those the forward pass really used: the model's own eager function computes them
under the regime's mask and hands them out on the way, so soft caps, windows and grouped heads are
in them. Nothing is recomputed afterwards, and no layer's weights are kept once they were looked at.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import EncodedItem, Tokens
from bidir_core.evaluate.scoring import score_one
from bidir_core.explain import attend_files as files
from bidir_core.explain.attend_files import Shares
from bidir_core.models.attention import Handle, choose_implementation
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import Regime
from bidir_core.runs.writer import RunWriter

# [head, query, key], in the model's number format, on its device
OnWeights = Callable[[int, torch.Tensor], None]
_watchers: weakref.WeakKeyDictionary[Any, Callable[..., None]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Passage:
    """Token ids of a prompt and what follows it; int64 ``[n_tokens]``."""

    ids: np.ndarray
    n_prefix: int


def passage_of(encoded: EncodedItem) -> Passage:
    """An item's prefix and its right choice."""
    gold = encoded.item.gold
    prefix, continuation = encoded.prefix(gold), encoded.continuations[gold]
    return Passage(np.concatenate([prefix.ids, continuation.ids]), len(prefix))


@dataclass(frozen=True)
class Observation:
    """What one forward pass showed.

    ``token_ll``: natural log-likelihood of each continuation token, float64. ``windows``: each
    layer's sliding window or None. ``hidden``: what each layer hands on, float32 ``[token,
    width]`` per layer on the CPU (empty unless asked for).
    """

    regime: Regime
    shares: Shares
    token_ll: np.ndarray
    windows: tuple[int | None, ...]
    hidden: tuple[np.ndarray, ...] = ()


def observe(
    loaded: LoadedModel,
    passage: Passage,
    regime: Regime,
    *,
    on_weights: OnWeights | None = None,
    keep_hidden: bool = False,
) -> Observation:
    """Run one sequence and report where each layer, head and query sent its attention.

    ``on_weights`` is called layer by layer with the weights ``[head, query, key]`` while the model
    runs. Works with a model loaded for either attention implementation: this pass is eager.
    Raises UserError when memory runs out.
    """
    n_total = len(passage.ids)
    layout = Layout.pack([(passage.n_prefix, n_total)]).to(loaded.device)
    ids = torch.from_numpy(passage.ids)[None].to(loaded.device)
    parts: dict[int, np.ndarray] = {}
    received: dict[int, np.ndarray] = {}
    windows: dict[int, int | None] = {}
    hidden: dict[int, np.ndarray] = {}

    def on_layer(module: Any, weights: torch.Tensor, window: int | None) -> None:
        layer = module.layer_idx
        parts[layer] = _measure(weights[0])
        # What each key gets on average from the prefix's queries, the first one's apart.
        queries = slice(min(1, passage.n_prefix - 1), passage.n_prefix)
        received[layer] = weights[0, :, queries].float().mean(1).cpu().numpy()
        windows[layer] = window
        if on_weights is not None:
            on_weights(layer, weights[0])

    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(loaded.handle.use(regime, layout))
            stack.enter_context(watching(loaded.handle, on_layer))
            if keep_hidden:
                stack.enter_context(_layer_outputs(loaded.handle, hidden))
            logits = loaded.model(
                input_ids=ids, position_ids=layout.position, use_cache=False
            ).logits[0]
            token_ll = _token_ll(logits, ids[0], passage.n_prefix)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory on a sequence of {n_total} tokens: eager attention holds all "
            f"{n_total} x {n_total} weights of a layer; shorten it or use a smaller --dtype"
        ) from error
    layers = sorted(parts)
    first, future, past, entropy = np.stack([parts[layer] for layer in layers], axis=1)
    received_by_layer = np.stack([received[layer] for layer in layers])
    return Observation(
        regime=regime,
        shares=Shares(passage.n_prefix, first, future, past, entropy, received_by_layer),
        token_ll=token_ll,
        windows=tuple(windows[layer] for layer in layers),
        hidden=tuple(hidden[layer] for layer in sorted(hidden)),
    )


@contextmanager
def watching(handle: Handle, on_layer: Callable[..., None]) -> Iterator[None]:
    """Forward passes inside are eager and call ``on_layer(module, weights, window)``."""
    _watchers[handle] = on_layer
    try:
        with attending_with(handle, "observed"):
            yield
    finally:
        del _watchers[handle]


@contextmanager
def attending_with(handle: Handle, implementation: str) -> Iterator[None]:
    """Use another of the registered attention functions for a while: sdpa, eager or observed."""
    handle.decoder.set_attn_implementation(f"bidir_{implementation}")
    try:
        yield
    finally:
        handle.decoder.set_attn_implementation(f"bidir_{handle.implementation}")


def _observed(module: nn.Module, *arguments: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
    output, weights = ALL_ATTENTION_FUNCTIONS["bidir_eager"](module, *arguments, **kwargs)
    _watchers[module._bidir_handle](module, weights, kwargs.get("sliding_window"))
    return output, weights


AttentionInterface.register("bidir_observed", _observed)


def _measure(weights: torch.Tensor) -> np.ndarray:
    """first, future, past, entropy of weights ``[head, query, key]``: ``[measure, head, query]``."""
    weights = weights.float()
    past = torch.tril(weights, diagonal=-1).sum(-1)
    future = torch.triu(weights, diagonal=1).sum(-1)
    entropy = torch.special.entr(weights).sum(-1)
    return torch.stack([weights[..., 0], future, past, entropy]).cpu().numpy()


def _token_ll(logits: torch.Tensor, ids: torch.Tensor, n_prefix: int) -> np.ndarray:
    """``logits[t]`` predicts token t+1: those from the prefix's last token on are scored."""
    scored = logits[n_prefix - 1 : -1].float()
    token_ll = scored.log_softmax(-1).gather(-1, ids[n_prefix:, None])[:, 0]
    return token_ll.cpu().double().numpy()


@contextmanager
def _layer_outputs(handle: Handle, hidden: dict[int, np.ndarray]) -> Iterator[None]:
    """Keep what each decoder layer hands on."""
    with ExitStack() as hooks:
        for number, layer in enumerate(handle.layers()):

            def keep(_: Any, __: Any, output: Any, number: int = number) -> None:
                output = output[0] if isinstance(output, tuple) else output
                hidden[number] = output[0].float().cpu().numpy()

            hooks.callback(layer.register_forward_hook(keep).remove)
        yield


# One sequence in full: what the ``attend`` command writes about a single prompt or item.

# In float32 the observed pass and the scoring path must agree to this, in nats per token.
SAME_NATS = 1e-3


def observe_one(
    writer: RunWriter, loaded: LoadedModel, regimes: Sequence[Regime], encoded: EncodedItem
) -> dict[str, Any]:
    """Observe one sequence under each regime; writes its files and returns its metrics."""
    passage = passage_of(encoded)
    n_total, n_prefix = len(passage.ids), passage.n_prefix
    keeps_matrices = n_prefix <= files.MATRIX_PROMPT_TOKENS and n_total <= files.MATRIX_TOKENS
    pieces = token_pieces(loaded.tokenizer, encoded)
    files.write_tokens(writer.path, passage.ids.tolist(), pieces, n_prefix)
    observations, notes, off_by_regime = [], [], []
    for number, regime in enumerate(regimes):

        def on_weights(layer: int, weights: Any, number: int = number) -> None:
            files.write_layer(writer.path, number, layer, weights.half().cpu().numpy())

        callback = on_weights if keeps_matrices else None
        observations.append(observe(loaded, passage, regime, keep_hidden=True, on_weights=callback))
        off_by_regime.append(off_scoring(loaded, regime, encoded, observations[-1].token_ll))
        writer.heartbeat(number + 1, len(regimes))
    files.write_shares(writer.path, [observation.shares for observation in observations])
    drift = files.drift_between([observation.hidden for observation in observations])
    files.write_drift(writer.path, drift)
    if not keeps_matrices:
        notes.append(
            f"{n_total} tokens ({n_prefix} of prompt): only shares and drift are stored; matrices "
            f"are for prompts of up to {files.MATRIX_PROMPT_TOKENS} tokens, "
            f"{files.MATRIX_TOKENS} with their continuation"
        )
    n_layers, n_heads, _ = observations[0].shares.first.shape
    return {
        "mode": "sequence",
        "item": None if encoded.item.task == "prompt" else encoded.item.item_id,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_tokens": n_total,
        "n_prefix_tokens": n_prefix,
        "matrices": keeps_matrices,
        "windows": list(observations[0].windows),
        "observed": [
            {
                "regime": str(observation.regime),
                "continuation_ll": float(observation.token_ll.sum())
                if len(observation.token_ll)
                else None,
                "off_scoring_nats": off,
                "layers": layer_means(observation.shares),
            }
            for observation, off in zip(observations, off_by_regime, strict=True)
        ],
        "notes": notes,
    }


def layer_means(shares: files.Shares) -> dict[str, dict[str, list[float] | None]]:
    """Part, then measure: the mean over heads, layer by layer. None for a part without tokens."""
    by_part: dict[str, dict[str, list[float] | None]] = {}
    for part in files.PARTS:
        means = {name: value.mean(-1) for name, value in shares.mean(part).items()}
        by_part[part] = {
            name: None if np.isnan(value).any() else [round(float(v), 6) for v in value]
            for name, value in means.items()
        }
    return by_part


def off_scoring(
    loaded: LoadedModel, regime: Regime, encoded: EncodedItem, token_ll: np.ndarray
) -> float | None:
    """How far the observed pass is from what an evaluation computes, in nats per token."""
    if not len(token_ll):
        return None
    with attending_with(loaded.handle, choose_implementation(loaded.model.config)):
        score = score_one(loaded, encoded, regime)
    off = float(np.abs(score.token_ll[0] - token_ll).max())
    if loaded.dtype == "float32" and not off <= SAME_NATS:
        raise UserError(
            f"under {regime} the observed pass is {off:.2g} nats off the scoring path, so what was "
            "seen is not what an evaluation does"
        )
    return off


def token_pieces(tokenizer: Any, encoded: EncodedItem) -> list[str]:
    """The text in token pieces; a token without text of its own by its name."""
    context, text = encoded.contexts[0], encoded.item.continuations[0]
    if context != encoded.item.contexts[0]:
        text = text.removeprefix(" ")  # a chat template takes its leading space
    shown = []
    for part, (tokens,) in ((context, encoded.prefixes), (text, encoded.continuations)):
        cut = zip(tokens.ids.tolist(), tokens.offsets.tolist(), pieces(part, tokens), strict=True)
        for token, (start, end), piece in cut:
            has_text = start < end
            shown.append(piece if has_text else str(tokenizer.convert_ids_to_tokens(token)))
    return shown


def pieces(text: str, tokens: Tokens) -> list[str]:
    """The text cut at its tokens' ends; characters no token claims go with the one that follows."""
    cut, position = [], 0
    for _, end in tokens.offsets.tolist():
        end = max(min(end, len(text)), position)
        cut.append(text[position:end])
        position = end
    return cut
