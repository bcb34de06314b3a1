"""One sequence in full: what the ``attend`` command writes about a single prompt or item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bidir_core import attend_files as files
from bidir_core.encoding import EncodedItem
from bidir_core.errors import UserError
from bidir_core.regimes import Regime
from bidir_core.run_writer import RunWriter

if TYPE_CHECKING:
    from bidir_core.models import LoadedModel

# In float32 the observed pass and the scoring path must agree to this, in nats per token.
SAME_NATS = 1e-3


def observe_one(
    writer: RunWriter, loaded: LoadedModel, regimes: Sequence[Regime], encoded: EncodedItem
) -> dict[str, Any]:
    """Observe one sequence under each regime; writes its files and returns its metrics."""
    from bidir_core.attend_observe import observe, passage_of

    passage = passage_of(encoded)
    n_total, n_prefix = len(passage.ids), passage.n_prefix
    keeps = n_prefix <= files.MATRIX_PROMPT_TOKENS and n_total <= files.MATRIX_TOKENS
    pieces = token_pieces(loaded.tokenizer, encoded)
    files.write_tokens(writer.path, passage.ids.tolist(), pieces, n_prefix)
    seen, notes, agreement = [], [], []
    for number, regime in enumerate(regimes):

        def on_weights(layer: int, weights: Any, number: int = number) -> None:
            files.write_layer(writer.path, number, layer, weights.half().cpu().numpy())

        seen.append(
            observe(
                loaded, passage, regime, keep_hidden=True, on_weights=on_weights if keeps else None
            )
        )
        agreement.append(off_scoring(loaded, regime, encoded, seen[-1].token_ll))
        writer.heartbeat(number + 1, len(regimes))
    files.write_shares(writer.path, [one.shares for one in seen])
    drift = files.drift_between([one.hidden for one in seen])
    files.write_drift(writer.path, drift)
    if not keeps:
        notes.append(
            f"{n_total} tokens ({n_prefix} of prompt): only shares and drift are stored; matrices "
            f"are for prompts of up to {files.MATRIX_PROMPT_TOKENS} tokens, "
            f"{files.MATRIX_TOKENS} with their continuation"
        )
    n_layers, n_heads, _ = seen[0].shares.first.shape
    return {
        "mode": "sequence",
        "item": None if encoded.item.task == "prompt" else encoded.item.item_id,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_tokens": n_total,
        "n_prefix_tokens": n_prefix,
        "matrices": keeps,
        "windows": list(seen[0].windows),
        "observed": [
            {
                "regime": str(one.regime),
                "continuation_ll": float(one.token_ll.sum()) if len(one.token_ll) else None,
                "off_scoring_nats": off,
                "layers": layer_means(one.shares),
            }
            for one, off in zip(seen, agreement, strict=True)
        ],
        "notes": notes,
    }


def layer_means(shares: files.Shares) -> dict[str, dict[str, list[float] | None]]:
    """Part, then measure: the mean over heads, layer by layer. None for a part without tokens."""
    out: dict[str, dict[str, list[float] | None]] = {}
    for part in ("prefix", "start", "continuation"):
        means = {name: value.mean(-1) for name, value in shares.mean(part).items()}
        out[part] = {
            name: None if np.isnan(value).any() else [round(float(v), 6) for v in value]
            for name, value in means.items()
        }
    return out


def off_scoring(
    loaded: LoadedModel, regime: Regime, encoded: EncodedItem, token_ll: np.ndarray
) -> float | None:
    """How far the observed pass is from what an evaluation computes, in nats per token."""
    from bidir_core.attend_observe import attending_with
    from bidir_core.attention_choice import choose_implementation
    from bidir_core.scoring import Scorer, plan_scoring

    if not len(token_ll):
        return None
    plan = plan_scoring([encoded], regime=regime, device=loaded.device)
    with attending_with(loaded.handle, choose_implementation(loaded.model.config)):
        (score,) = Scorer(loaded.model, loaded.handle, plan).score([0])
    off = float(np.abs(score.token_ll[0] - token_ll).max())
    if loaded.dtype == "float32" and not off <= SAME_NATS:
        raise UserError(
            f"under {regime} the observed pass is {off:.2g} nats off the scoring path, so what was "
            "seen is not what an evaluation does"
        )
    return off


def token_pieces(tokenizer: Any, encoded: EncodedItem) -> list[str]:
    """The text in token pieces; a token without text of its own by its name."""
    context, (prefix,), (rest,) = encoded.contexts[0], encoded.prefixes, encoded.continuations
    text = context + _follows(encoded)
    offsets = [*prefix.offsets.tolist(), *(rest.offsets + len(context)).tolist()]
    pieces, position = [], 0
    for token, (start, end) in zip([*prefix.ids.tolist(), *rest.ids.tolist()], offsets):
        if start == end:
            pieces.append(str(tokenizer.convert_ids_to_tokens(token)))
            continue
        pieces.append(text[position:end])
        position = max(position, end)
    return pieces


def _follows(encoded: EncodedItem) -> str:
    """The continuation as it was tokenised: a chat template takes its leading space."""
    text = encoded.item.continuations[0]
    return text if encoded.contexts[0] == encoded.item.contexts[0] else text.removeprefix(" ")
