"""Which implementation of attention a model can run under a regime, and which models none can.

Decided from a model's configuration alone, before any weight is loaded.
"""

from __future__ import annotations

from typing import Any, Literal

from bidir_core.errors import UserError

Implementation = Literal["sdpa", "eager", "flex", "split"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("sdpa", "eager")  # with a dense mask throughout
WITHOUT_MASK: tuple[Implementation, ...] = ("flex", "split")
SUPPORTED_LAYERS = frozenset({"full_attention", "sliding_attention"})


def choose_implementation(
    config: Any, requested: str = "auto", device_type: str = "cpu"
) -> Implementation:
    """``sdpa``, or ``eager`` where only that computes the model right (soft caps, score sinks).

    For an evaluation on ``device_type`` cuda, ``split`` stands for sdpa: the same but for long
    prefixes. ``flex`` is never chosen unasked. Raises UserError for an implementation that cannot
    honour a regime, by name.
    """
    text = config.get_text_config()
    caps = bool(getattr(text, "attn_logit_softcapping", None))
    sinks = text.model_type == "gpt_oss"
    if requested == "auto":
        if caps or sinks:
            return "eager"
        return "split" if device_type == "cuda" else "sdpa"
    if requested in ("sdpa", "split") and (caps or sinks):
        raise UserError(
            f"attention '{requested}' drops the soft caps or score sinks of {text.model_type}; "
            "use --attn eager"
        )
    if requested == "flex" and sinks:
        raise UserError(
            f"attention 'flex' drops the score sinks of {text.model_type}; use --attn eager"
        )
    if requested not in (*IMPLEMENTATIONS, *WITHOUT_MASK):
        raise UserError(
            f"attention '{requested}' ignores the dense mask that a regime needs; "
            "use --attn sdpa or --attn eager, or flex or split, which need none"
        )
    return requested  # type: ignore[return-value]


def own_implementation(config: Any, implementation: str) -> str:
    """The implementation as transformers knows it: what the model runs when no regime is asked of it."""
    if implementation in WITHOUT_MASK:
        return choose_implementation(config)
    return implementation


def check_supported(config: Any) -> None:
    """Raise UserError, before any weight is loaded, if this architecture cannot honour a regime."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
    )

    text, name = config.get_text_config(), config.model_type
    instead = "use a decoder with full or sliding attention, such as Llama, Qwen, Gemma or Mistral"
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"'{name}' is an encoder-decoder, not a decoder-only model; {instead}")
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        raise UserError(f"'{name}' is an encoder, not a decoder-only model; {instead}")
    mapping = (
        MODEL_FOR_CAUSAL_LM_MAPPING
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
        else MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    )
    if type(config) not in mapping:
        raise UserError(f"'{name}' is not a causal language model; {instead}")
    model_class: Any = mapping[type(config)]
    if not getattr(text, "num_attention_heads", 0):
        raise UserError(
            f"'{name}' is a state-space or recurrent model, which no mask can open; {instead}"
        )
    odd = sorted(set(getattr(text, "layer_types", None) or ()) - SUPPORTED_LAYERS)
    if odd:
        raise UserError(f"'{name}' has {', '.join(odd)} layers, which no mask can open; {instead}")
    if getattr(model_class, "_is_stateful", False):
        raise UserError(
            f"'{name}' is a state-space or recurrent model, which no mask can open; {instead}"
        )
    if not model_class._can_set_attn_implementation() or getattr(
        text, "reorder_and_upcast_attn", False
    ):
        raise UserError(f"'{name}' does not use transformers' attention interface; {instead}")
