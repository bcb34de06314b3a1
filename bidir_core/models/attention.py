"""Put a regime into a transformers model; only this module knows transformers' attention.

transformers 5 lets every decoder layer look its attention function up by name. ``bidir_sdpa`` and
``bidir_eager`` are registered here. Each replaces the mask by the one that the regime in force asks
for in that layer, and then calls the ordinary function, so that soft-capping, grouped queries and
scaling stay the model's own business.

``bidir_split`` is sdpa in two passes where no mask is needed: the prefix, then what continues it. Under
plain bidirectional prefill every prefix token sees the whole prefix, and under causal what precedes
it: neither needs a mask, so the fast kernels run, and at 16,384 tokens a mask of 16,384 squared is
never built. Only the continuation's few rows get one, ``[continuation, item]``:

                 prefix      continuation
    prefix       no mask     -
    contin.      the last rows of the mask

That takes two calls an item and layer, where one call with a dense mask serves a whole batch of
short items. So short prefixes go the ordinary way, as does a layer whose regime has dials that
narrow the view, or whose window is shorter than the prefix, and a batch that is not one row of
whole items.

The mask comes from a *handle* that :func:`install` hangs on the model's attention modules. A
forward pass outside ``handle.use(...)`` raises instead of quietly running causally: a switch that
silently stays causal is the classic fault of this kind of experiment.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.attention import SDPBackend
from transformers import AttentionInterface

from bidir_core.common.errors import UserError
from bidir_core.models import fused
from bidir_core.models.layout import Layout, allowed_and_ahead
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, Regime

# Prefix tokens from which an item goes the split way. In an evaluation's batch of 32,768 tokens that
# is at most 16 items, whose calls cost little beside the layers' matrix products; the dense masks of
# shorter ones, also a batch of them, take at most 0.27 GB in a 16-bit format.
SPLIT_FROM_TOKENS = 2048
# From here on attention takes long enough to earn a plan back. Long prefills were measured with
# cuDNN's kernel (docs/PERFORMANCE.md), at this length.
CUDNN_FROM_TOKENS = 16_384

Span = tuple[int, int]

# Sees each layer's keys and values, ``[batch, heads, time, head_dim]``, and may replace them.
Edit = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Plan:
    """A regime over a layout: hands out the attention mask of each layer, and remembers it."""

    def __init__(self, regime: Regime, layout: Layout, edit: Edit | None = None):
        self.regime = regime
        self.layout = layout
        self.edit = edit
        self._masks: dict[Any, torch.Tensor] = {}

    def mask(
        self,
        layer: int,
        window: int | None,
        dtype: torch.dtype,
        span: Span | None = None,
        last: int | None = None,
    ) -> torch.Tensor:
        """What this layer adds to its scores: ``[batch, 1, query, key]`` in ``dtype``.

        ``span`` is an index range of queries and keys; ``last`` keeps only so many queries, the
        last ones (decoding with a cache).
        """
        regime = self.regime.at_layer(layer)
        slot = (regime, window, dtype, span, last)
        if slot not in self._masks:
            allowed, ahead = allowed_and_ahead(self.layout, regime, window, span, last)
            # The lowest finite number, not -inf: a row of nothing but -inf would give NaN.
            mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
            if regime.lam != 1.0:
                mask.masked_fill_(ahead, math.log(regime.lam))
            mask.masked_fill_(~allowed, torch.finfo(dtype).min)
            self._masks[slot] = mask[:, None]
        return self._masks[slot]

    @cached_property
    def prefixes(self) -> tuple[tuple[int, int], ...] | None:
        """Per item of a packed row, its prefix's tokens and how far apart their positions lie.

        The second is what a window must hold. None for a layout that is not one row of items.
        """
        layout = self.layout
        if layout.spans is None or layout.shape[0] != 1:
            return None
        # -1 outside of prefixes; waits for the device once
        inside = torch.where(layout.position < layout.n_prefix, layout.position, -1)[0].tolist()
        items = [[p for p in inside[start:end] if p >= 0] for start, end in layout.spans]
        return tuple((len(positions), max(positions, default=0) + 1) for positions in items)


class Handle:
    """What ties one model's attention modules to the regime in force. Made by :func:`install`."""

    def __init__(self, decoder: Any, implementation: Implementation):
        self.decoder = decoder
        self.implementation: Implementation = implementation
        self.own_implementation = own_implementation(decoder.config, implementation)
        self.split_from = SPLIT_FROM_TOKENS
        self.plan: Plan | None = None

    def layers(self) -> list[nn.Module]:
        """The model's layers in order. UserError if it does not keep them in one list."""
        n_layers = self.decoder.config.get_text_config().num_hidden_layers
        for module in self.decoder.modules():
            if isinstance(module, nn.ModuleList) and len(module) == n_layers:
                return list(module)
        raise UserError(
            f"{type(self.decoder).__name__} keeps its layers in no list that can be found"
        )

    @contextmanager
    def use(self, regime: Regime, layout: Layout, edit: Edit | None = None) -> Iterator[Plan]:
        """Forward (and backward) passes inside attend as ``regime`` says over ``layout``.

        ``edit`` is called with every layer's number, keys and values before they are attended to.
        """
        with self.use_plan(Plan(regime, layout, edit)) as plan:
            yield plan

    @contextmanager
    def use_plan(self, plan: Plan) -> Iterator[Plan]:
        """The same for a ready-made plan, such as one whose rows follow different rules."""
        previous, self.plan = self.plan, plan
        try:
            yield plan
        finally:
            self.plan = previous

    @contextmanager
    def splitting_from(self, tokens: int) -> Iterator[None]:
        """Under ``split``, prefixes of so many tokens count as long ones inside."""
        previous, self.split_from = self.split_from, tokens
        try:
            yield
        finally:
            self.split_from = previous

    @contextmanager
    def native(self) -> Iterator[None]:
        """Run the model's own causal path: what transformers does when nothing is installed.

        A checkpoint whose configuration says ``is_causal: false`` has one, too.
        """
        config = self.decoder.config
        opened = getattr(config, "is_causal", None) is False
        self.decoder.set_attn_implementation(self.own_implementation)
        if opened:
            config.is_causal = True
        try:
            yield
        finally:
            if opened:
                config.is_causal = False
            self.decoder.set_attn_implementation(f"bidir_{self.implementation}")


def install(model: nn.Module, implementation: Implementation) -> Handle:
    """Make ``model`` (a causal LM, or an image-text model's text side) attend by regime.

    Raises UserError if the model does not look its attention up by name.
    """
    decoder = text_decoder(model)
    handle = Handle(decoder, implementation)
    modules = [m for m in decoder.modules() if hasattr(m, "layer_idx")]
    decoder.set_attn_implementation(f"bidir_{implementation}")
    in_force = decoder.config._attn_implementation
    if not modules or in_force != f"bidir_{implementation}":
        raise UserError(
            f"{type(model).__name__} does not let its attention be replaced; use a decoder that "
            "transformers serves through its attention interface, such as Llama, Qwen or Mistral"
        )
    for module in modules:
        module._bidir_handle = handle
    return handle


def text_decoder(model: nn.Module) -> Any:
    """The decoder stack that embeds tokens and runs layers, without head or vision tower."""
    unwrap: Any = getattr(model, "get_base_model", None)  # peft wraps the causal LM
    base: Any = unwrap() if unwrap else model
    return base.get_decoder()


def _attention(implementation: Implementation) -> Any:
    def forward(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention by the plan in force; q, k, v are ``[batch, heads, time, head_dim]``."""
        handle = getattr(module, "_bidir_handle", None)
        if handle is None or handle.plan is None:
            raise RuntimeError("no regime is in force: run the model inside handle.use(...)")
        plan: Plan = handle.plan
        kwargs.pop("is_causal", None)  # the configuration's; here the regime decides
        layer: int = module.layer_idx  # type: ignore[assignment]
        if plan.edit is not None:
            key, value = plan.edit(layer, key, value)
        spans, time = plan.layout.spans, plan.layout.shape[1]
        n_query, n_key = query.shape[2], key.shape[2]
        cropped = sliding_window is not None and n_key == sliding_window - 1 + n_query < time
        if n_key != time and not cropped:
            raise RuntimeError(f"the layout has {time} tokens where attention has {n_key} keys")
        run: Any = _sdpa
        if implementation == "eager":  # the model's own file knows its soft caps and sinks
            run = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
        splits = plan.prefixes if implementation == "split" and n_query == time else None
        if splits is None and (spans is None or len(spans) == 1 or n_query != time):
            # With a key/value cache the queries are the layout's last tokens; the keys are all of
            # them, or the last ones where the cache keeps no more than a sliding window needs.
            mask = plan.mask(layer, sliding_window, query.dtype, last=n_query)
            return run(module, query, key, value, mask[..., time - n_key :], **kwargs)
        regime, outputs = plan.regime.at_layer(layer), []
        for number, (start, end) in enumerate(spans or ()):
            tokens = slice(start, end)
            item = query[:, :, tokens], key[:, :, tokens], value[:, :, tokens]
            rule = partial(plan.mask, layer, sliding_window, query.dtype, (start, end))
            n_prefix, reach = splits[number] if splits is not None else (-1, 0)
            # Then prefix tokens see all of the prefix, or all before them.
            needs_no_mask = regime in (CAUSAL, BIDIRECTIONAL) and (
                sliding_window is None or sliding_window >= reach
            )
            if n_prefix >= handle.split_from and needs_no_mask:
                rest_mask = partial(rule, last=end - start - n_prefix)
                outputs.append(
                    _attend_split(
                        partial(run, module), *item, n_prefix, regime.is_causal, rest_mask, **kwargs
                    )
                )
            else:
                outputs.append(run(module, *item, rule(), **kwargs)[0])
        return torch.cat(outputs, dim=1), None

    return forward


def _attend_split(
    run: Callable[..., tuple[torch.Tensor, None]],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    n_prefix: int,
    causal: bool,
    rest_mask: Callable[[], torch.Tensor],
    **kwargs: Any,
) -> torch.Tensor:
    """One item: ``[1, heads, time, head_dim]`` in, ``[1, time, heads, head_dim]`` out.

    ``run`` is sdpa, which takes a mask or None with ``is_causal``; ``rest_mask`` builds the mask of
    the tokens behind the prefix, ``[1, 1, continuation, time]``.
    """
    outputs = []
    if n_prefix:
        inputs = (tensor[:, :, :n_prefix] for tensor in (query, key, value))
        outputs.append(run(*inputs, None, is_causal=causal, **kwargs)[0])
    if n_prefix < query.shape[2]:
        outputs.append(run(query[:, :, n_prefix:], key, value, rest_mask(), **kwargs)[0])
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


def _sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    for unable in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(unable) is not None:
            raise UserError(
                f"{type(module).__name__} needs '{unable}', which sdpa drops; use --attn eager"
            )
    if query.is_cuda and mask is not None and not dropout:
        fused_output = fused.attend(query, key, value, mask, scaling)
        if fused_output is not None:
            return fused_output, None
    grouped = query.shape[1] != key.shape[1]
    if grouped and not _takes_groups(query, key, value, mask, dropout, is_causal):
        n = query.shape[1] // key.shape[1]
        key, value = fused.repeat_heads(key, n), fused.repeat_heads(value, n)
        grouped = False
    output = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=grouped,
    )
    return output.transpose(1, 2), None


def _takes_groups(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    is_causal: bool,
) -> bool:
    """Whether the kernel that CUDA would choose for grouped heads is a fast one.

    Flash takes them without a mask, cuDNN's with one; where neither comes first, the slow math one
    would be left.
    """
    if query.device.type != "cuda":
        return True
    chosen = torch._fused_sdp_choice(query, key, value, mask, dropout, is_causal, enable_gqa=True)
    return SDPBackend(chosen) != SDPBackend.MATH


@contextmanager
def without_plans(device: torch.device, longest: int = 0) -> Iterator[None]:
    """sdpa inside leaves cuDNN's kernel out, unless ``longest``, in tokens, is long.

    That kernel makes a plan for each new shape, and shapes change from one batch to the next.
    Changes nothing on other devices. The switch is the process's, not the thread's.
    """
    if (
        device.type != "cuda"
        or longest >= CUDNN_FROM_TOKENS
        or not torch.backends.cuda.cudnn_sdp_enabled()  # by the user, who then knows why
    ):
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


Implementation = Literal["sdpa", "eager", "split"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("sdpa", "eager")  # with a dense mask throughout
ATTENTIONS = ("auto", *get_args(Implementation))  # what may be asked for

for _name in get_args(Implementation):
    AttentionInterface.register(f"bidir_{_name}", _attention(_name))

# Which implementation of attention a model can run under a regime, and which models none can.

SUPPORTED_LAYERS = frozenset({"full_attention", "sliding_attention"})


def rope_switch(config: Any) -> int | None:
    """The length in tokens beyond which a pass is read with other rotary frequencies, all of it.

    None for models without one. "longrope" is the only kind: "dynamic" frequencies change beyond
    the model's window, where nothing is run.
    """
    return next(
        (
            kind["original_max_position_embeddings"]
            for kind in rope_kinds(config)
            if kind.get("rope_type") == "longrope"
        ),
        None,
    )


def rope_kinds(config: Any) -> list[dict[str, Any]]:
    """The settings of a model's rotary frequencies, of which layers of different types have their own."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [parameters, *(kind for kind in parameters.values() if isinstance(kind, dict))]


def check_attention_name(requested: str) -> None:
    """UserError for an implementation that there is not."""
    if requested not in ATTENTIONS:
        choices = ", ".join(ATTENTIONS)
        raise UserError(f"--attn {requested}: choose one of {choices}; no other honours a regime")


def choose_implementation(
    config: Any, requested: str = "auto", device_type: str = "cpu"
) -> Implementation:
    """``sdpa``, or ``eager`` where only that computes the model right (soft caps, score sinks).

    For an evaluation on ``device_type`` cuda, ``split`` stands for sdpa: the same but for long
    prefixes. Raises UserError for an implementation that cannot honour a regime, by name.
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
    check_attention_name(requested)
    return requested  # type: ignore[return-value]


def own_implementation(config: Any, implementation: str) -> str:
    """The implementation as transformers knows it: what the model runs when no regime is asked of it."""
    return choose_implementation(config) if implementation == "split" else implementation


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
    recurrent = f"'{name}' is a state-space or recurrent model, which no mask can open; {instead}"
    if not getattr(text, "num_attention_heads", 0):
        raise UserError(recurrent)
    odd = sorted(set(getattr(text, "layer_types", None) or ()) - SUPPORTED_LAYERS)
    if odd:
        raise UserError(f"'{name}' has {', '.join(odd)} layers, which no mask can open; {instead}")
    if getattr(model_class, "_is_stateful", False):
        raise UserError(recurrent)
    if not model_class._can_set_attn_implementation() or getattr(
        text, "reorder_and_upcast_attn", False
    ):
        raise UserError(f"'{name}' does not use transformers' attention interface; {instead}")
