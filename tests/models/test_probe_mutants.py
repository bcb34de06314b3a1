"""Broken wrappers, each one small change to how a regime reaches the model: the probe names every one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bidir_core.models import attention
from bidir_core.models.families import tiny_loaded
from bidir_core.models.layout import Layout
from bidir_core.models.layout import allowed_and_ahead as honest
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe import run_probe
from bidir_core.regimes import CAUSAL
from tests.models.test_probe import failed, sharing


def with_mask(change: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch, LoadedModel], None]:
    """A mutant of ``Plan.mask``: ``change(honest mask, plan, layer, window, dtype, span)``."""

    def mutate(patch: pytest.MonkeyPatch, _: LoadedModel) -> None:
        original = attention.Plan.mask

        def mask(
            self: Any, layer: int, window: Any, dtype: Any, span: Any = None, last: Any = None
        ) -> Any:
            return change(
                lambda plan=self, layer=layer, window=window: original(
                    plan, layer, window, dtype, span, last
                ),
                self,
                layer,
            )

        patch.setattr(attention.Plan, "mask", mask)

    return mutate


def with_rule(change: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch, LoadedModel], None]:
    """A mutant of the visibility over a layout: ``change(layout, regime, window, span)``."""

    def mutate(patch: pytest.MonkeyPatch, _: LoadedModel) -> None:
        patch.setattr(
            attention,
            "allowed_and_ahead",
            # Without a cache the last queries are all of them.
            lambda layout, regime, window, span=None, last=None: change(
                layout, regime, window, span
            ),
        )

    return mutate


def with_regime(**dials: Any) -> Callable[[pytest.MonkeyPatch, LoadedModel], None]:
    """A mutant that turns a dial back."""
    return with_rule(lambda x, r, w, s: honest(x, dataclasses.replace(r, **dials), w, s))


def causal_plan(plan: Any) -> Any:
    return attention.Plan(CAUSAL, plan.layout)


def shifted_prefix(by: int) -> Callable[..., Any]:
    def rule(layout: Layout, regime: Any, window: Any, span: Any) -> Any:
        shifted = dataclasses.replace(layout, n_prefix=layout.n_prefix + by * (layout.item >= 0))
        return honest(shifted, regime, window, span)

    return rule


def window_behind_only(layout: Layout, regime: Any, window: Any, span: Any) -> Any:
    allowed, ahead = honest(layout, regime, window, span)
    return allowed | honest(layout, regime, None, span)[1], ahead


def window_without_look_ahead(layout: Layout, regime: Any, window: Any, span: Any) -> Any:
    allowed, ahead = honest(layout, regime, window, span)
    return (allowed, ahead) if window is None else (allowed & ~ahead, ahead & False)


def window_by_index(layout: Layout, regime: Any, window: Any, span: Any) -> Any:
    allowed, ahead = honest(layout, regime, None, span)
    index = torch.arange(allowed.shape[-1])
    near = (index[:, None] - index[None, :]).abs() < (window or 10**9)
    return allowed & near, ahead


def window_too_wide(layout: Layout, regime: Any, window: Any, span: Any) -> Any:
    return honest(layout, regime, window and window + 1, span)


def hidden_from_itself(layout: Layout, regime: Any, window: Any, span: Any) -> Any:
    allowed, ahead = honest(layout, regime, window, span)
    start, end = span if span is not None else (0, layout.shape[1])
    place = -1 if regime.hide is None else regime.hide
    hidden = (layout.position == place)[:, None, start:end]
    return allowed & ~hidden, ahead & ~hidden


def hidden_from_prompt(layout: Layout, regime: Any, window: Any, span: Any) -> Any:
    """The continuation still reads the hidden token."""
    start, end = span if span is not None else (0, layout.shape[1])
    behind = (layout.position >= layout.n_prefix)[:, start:end, None]
    open_regime = dataclasses.replace(regime, hide=None)
    found = honest(layout, regime, window, span), honest(layout, open_regime, window, span)
    return tuple(torch.where(behind, other, one) for one, other in zip(*found))


def tree_as_sequence(layout: Layout, regime: Any, window: Any, span: Any) -> Any:
    """Choices see their elder siblings: the subtree's end is forgotten."""
    end = torch.zeros_like(layout.exit)
    for start, stop in layout.spans or ((0, layout.shape[1]),):
        end[:, start:stop] = stop
    return honest(dataclasses.replace(layout, exit=end), regime, window, span)


def everything(layout: Layout, regime: Any, window: Any, span: Any) -> Any:
    allowed, ahead = honest(layout, regime, window, span)
    return allowed | True, ahead


def leaky_continuation(layout: Layout, regime: Any, window: Any, span: Any) -> Any:
    """The whole sequence is taken for the prompt, as a leaky fine-tune does."""
    length = torch.where(layout.item >= 0, 10**6, 0)
    return honest(dataclasses.replace(layout, n_prefix=length), regime, window, span)


def sdpa_as_causal(patch: pytest.MonkeyPatch, _: LoadedModel) -> None:
    """The mask never arrives: a plain causal kernel runs."""
    original = attention._sdpa

    def run(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        n = query.shape[2]
        causal = torch.zeros(n, n).masked_fill(torch.ones(n, n).triu(1).bool(), -1e30)
        return original(module, query, key, value, causal[None, None], **kwargs)

    patch.setattr(attention, "_sdpa", run)


def one_layer_goes_its_own_way(_: pytest.MonkeyPatch, loaded: LoadedModel) -> None:
    """One module has a configuration of its own, and with it the library's causal attention."""
    module = loaded.model.model.layers[2].self_attn
    module.config = copy.deepcopy(module.config)
    module.config._attn_implementation_internal = "sdpa"


def one_layer_mixes_tokens_elsewhere(_: pytest.MonkeyPatch, loaded: LoadedModel) -> None:
    """The attention is right, but one module adds something that looks at every token."""
    module = loaded.model.model.layers[1].self_attn
    forward = module.forward

    def mixing(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        output, weights = forward(hidden_states=hidden_states, **kwargs)
        return output + 0.01 * hidden_states.mean(1, keepdim=True), weights

    module.forward = mixing


def one_layer_returns_nothing(_: pytest.MonkeyPatch, loaded: LoadedModel) -> None:
    """The attention is right and its result is thrown away."""
    module = loaded.model.model.layers[1].self_attn
    forward = module.forward
    module.forward = lambda **kwargs: (0 * forward(**kwargs)[0], None)


def scale_forgotten(patch: pytest.MonkeyPatch, _: LoadedModel) -> None:
    original = attention._sdpa
    patch.setattr(
        attention, "_sdpa", lambda *args, scaling=None, **kw: original(*args, scaling=1.0, **kw)
    )


def causal_kernel_for_real_lengths(patch: pytest.MonkeyPatch, _: LoadedModel) -> None:
    original = attention._sdpa

    def run(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        if query.shape[2] > 16:
            return original(module, query, key, value, None, **{**kwargs, "is_causal": True})
        return original(module, query, key, value, mask, **kwargs)

    patch.setattr(attention, "_sdpa", run)


def positions_ignored(_: pytest.MonkeyPatch, loaded: LoadedModel) -> None:
    """The model counts tokens by itself, so packed choices stand too far from their prefix."""

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        n_tokens = loaded.handle.plan.layout.shape[1]
        return args, kwargs | {"position_ids": torch.arange(n_tokens)[None]}

    loaded.handle.decoder.register_forward_pre_hook(count, with_kwargs=True)


def one_layer_counts_positions_itself(_: pytest.MonkeyPatch, loaded: LoadedModel) -> None:
    model = loaded.model.model

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = kwargs["hidden_states"]
        positions = torch.arange(hidden.shape[1])[None]
        return args, kwargs | {"position_embeddings": model.rotary_emb(hidden, positions)}

    model.layers[2].self_attn.register_forward_pre_hook(count, with_kwargs=True)


def shape_error(patch: pytest.MonkeyPatch, _: LoadedModel) -> None:
    patch.setattr(attention.Plan, "mask", lambda *_, **__: torch.zeros(1, 1, 3, 3))


LAMBDA = "bidirectional:lambda=0.03"
MUTANTS: list[tuple[str, str, str, Any, set[str]]] = [
    ("mask dropped", "llama", "bidirectional", with_mask(lambda m, p, i: m() * 0),
     {"visible_keys", "module_outputs", "continuation_leak"}),
    ("mask dropped", "llama", "causal", with_mask(lambda m, p, i: m() * 0),
     {"visible_keys", "module_outputs", "continuation_leak", "look_ahead", "causal_is_native"}),
    ("mask dropped, causal kernel", "llama", "bidirectional", sdpa_as_causal,
     {"visible_keys", "module_outputs", "look_ahead"}),
    ("bool mask under eager", "gemma2", "bidirectional", with_mask(lambda m, p, i: m() == 0),
     {"visible_keys", "module_outputs", "continuation_leak"}),
    ("one layer causal", "llama", "bidirectional",
     with_mask(lambda m, p, i: m(plan=causal_plan(p)) if i == 2 else m()),
     {"visible_keys", "module_outputs"}),
    ("last layer causal", "gpt_neox", "bidirectional",
     with_mask(lambda m, p, i: m(plan=causal_plan(p)) if i == 3 else m()),
     {"visible_keys", "module_outputs"}),
    ("one layer on its own", "llama", "bidirectional", one_layer_goes_its_own_way,
     {"layers_covered"}),
    ("one layer mixes tokens", "llama", "causal", one_layer_mixes_tokens_elsewhere,
     {"module_outputs", "continuation_leak", "look_ahead"}),
    ("one layer returns nothing", "llama", "bidirectional", one_layer_returns_nothing,
     {"module_outputs"}),
    ("prefix one too long", "llama", "bidirectional", with_rule(shifted_prefix(1)),
     {"visible_keys", "module_outputs", "continuation_leak"}),
    ("prefix one too short", "llama", "bidirectional", with_rule(shifted_prefix(-1)),
     {"visible_keys", "module_outputs", "look_ahead"}),
    ("window ignored", "mistral", "bidirectional", with_mask(lambda m, p, i: m(window=None)),
     {"visible_keys", "module_outputs"}),
    ("window ignored ahead", "mistral", "bidirectional", with_rule(window_behind_only),
     {"visible_keys", "module_outputs"}),
    ("no look-ahead in windows", "gemma3", "bidirectional", with_rule(window_without_look_ahead),
     {"visible_keys", "module_outputs"}),
    ("window by index", "qwen2", "bidirectional", with_rule(window_by_index),
     {"visible_keys", "module_outputs"}),
    ("window one too wide", "mistral", "bidirectional", with_rule(window_too_wide),
     {"visible_keys", "module_outputs"}),
    ("wide window ignored", "mistral:64", "bidirectional",
     with_mask(lambda m, p, i: m(window=None)), {"visible_keys", "module_outputs"}),
    ("wide window one too wide", "mistral:64", "bidirectional", with_rule(window_too_wide),
     {"visible_keys", "module_outputs"}),
    ("lambda ignored", "llama", LAMBDA, with_mask(
        lambda m, p, i: m(plan=attention.Plan(dataclasses.replace(p.regime, lam=1.0), p.layout))),
     {"lambda_strength"}),
    ("lambda wrong", "llama", LAMBDA, with_mask(
        lambda m, p, i: m(plan=attention.Plan(
            dataclasses.replace(p.regime, lam=p.regime.lam**1.05), p.layout))),
     {"lambda_strength"}),
    ("lambda added, not its log", "gpt2", LAMBDA, with_mask(
        lambda m, p, i: m().masked_fill((m() < 0) & (m() > -1e9), p.regime.lam)),
     {"lambda_strength"}),
    ("lambda ignored in one layer", "llama", LAMBDA, with_mask(
        lambda m, p, i: m(plan=attention.Plan(
            dataclasses.replace(p.regime, lam=1.0 if i == 1 else p.regime.lam), p.layout))),
     {"lambda_strength"}),
    ("sink ignored", "llama", "bidirectional:sink=1", with_regime(sink=0),
     {"visible_keys", "module_outputs", "look_ahead"}),
    ("far sink ignored", "llama", "bidirectional:sink=40", with_regime(sink=39),
     {"visible_keys", "module_outputs"}),
    ("rows ignored", "llama", "bidirectional:rows=2-3", with_regime(rows=None),
     {"visible_keys", "module_outputs", "look_ahead"}),
    ("far rows off by one", "llama", "bidirectional:rows=30-60", with_regime(rows=(30, 61)),
     {"visible_keys", "module_outputs"}),
    ("self ignored", "llama", "bidirectional:self=3", with_regime(self_token=None),
     {"visible_keys", "module_outputs"}),
    ("skip ignored", "llama", "bidirectional:skip=3", with_regime(skip=None),
     {"visible_keys", "module_outputs"}),
    ("hide ignored", "llama", "causal:hide=3", with_regime(hide=None),
     {"visible_keys", "module_outputs"}),
    ("hide takes a layer too few", "llama", "causal:hide=0,layers=1-",
     with_mask(lambda m, p, i: m(plan=causal_plan(p)) if i == 3 else m()),
     {"visible_keys", "module_outputs"}),
    ("hidden from itself", "llama", "causal:hide=3", with_rule(hidden_from_itself),
     {"visible_keys"}),
    ("hidden from the prompt only", "llama", "bidirectional:hide=0", with_rule(hidden_from_prompt),
     {"visible_keys", "module_outputs"}),
    ("far hide off by one", "llama", "bidirectional:hide=33", with_regime(hide=34),
     {"visible_keys", "module_outputs"}),
    ("last token not hidden", "llama", "causal:hide=4", with_regime(hide=None),
     {"visible_keys", "module_outputs", "look_ahead"}),
    ("tail ignored", "llama", "bidirectional:tail=1", with_regime(tail=0),
     {"visible_keys", "module_outputs", "look_ahead"}),
    ("far tail off by one", "llama", "bidirectional:tail=30", with_regime(tail=29),
     {"visible_keys", "module_outputs"}),
    ("layers off by one", "llama", "bidirectional:layers=1-2",
     with_mask(lambda m, p, i: m(layer=i + 1)), {"visible_keys", "module_outputs"}),
    ("everything sees everything", "llama", "bidirectional", with_rule(everything),
     {"visible_keys", "module_outputs", "continuation_leak"}),
    ("continuation leaks", "llama", "bidirectional", with_rule(leaky_continuation),
     {"visible_keys", "module_outputs", "continuation_leak"}),
    ("choices see their siblings", "llama", "bidirectional", with_rule(tree_as_sequence),
     {"visible_keys", "module_outputs"}),
    ("silently causal", "llama", "bidirectional", with_mask(lambda m, p, i: m(plan=causal_plan(p))),
     {"visible_keys", "module_outputs", "look_ahead"}),
    ("score scale forgotten", "llama", "bidirectional", scale_forgotten, {"causal_is_native"}),
    ("mask dropped beyond 16 tokens", "llama", "bidirectional",
     with_mask(lambda m, p, i: m() * (p.layout.shape[1] <= 16)), {"real_length"}),
    ("mask dropped beyond 16 tokens in one layer", "gemma2", "bidirectional",
     with_mask(lambda m, p, i: m() * (p.layout.shape[1] <= 16 or i != 2)), {"real_length"}),
    ("causal beyond 16 tokens", "llama", "bidirectional", causal_kernel_for_real_lengths,
     {"real_length"}),
    ("position ids ignored", "llama", "bidirectional", positions_ignored, {"packed_choices"}),
    ("position ids ignored", "gpt2", "bidirectional", positions_ignored, {"packed_choices"}),
    ("position ids ignored in one layer", "llama", "bidirectional",
     one_layer_counts_positions_itself, {"packed_choices"}),
    # McGill-NLP/llm2vec issue 74: no mask for a batch of one; and its reverse.
    ("mask dropped for one row", "llama", "bidirectional",
     with_mask(lambda m, p, i: m() * (p.layout.shape[0] > 1)), {"visible_keys", "real_length"}),
    ("mask dropped for several rows", "llama", "bidirectional",
     with_mask(lambda m, p, i: m() * (p.layout.shape[0] == 1)), {"visible_keys"}),
    # bigscience-workshop/Megatron-DeepSpeed issue 303: only the first layer got the mask.
    ("mask lost behind the first layer", "llama", "bidirectional",
     with_mask(lambda m, p, i: m() * (i == 0)), {"visible_keys", "module_outputs", "real_length"}),
    ("model cannot run", "llama", "bidirectional", shape_error, {"model_runs"}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("family", "regime", "mutate", "caught_by"),
    [mutant[1:] for mutant in MUTANTS],
    ids=[f"{what}-{family}-{regime}" for what, family, regime, *_ in MUTANTS],
)
def test_a_broken_wrapper_is_caught_by_name(
    family: str,
    regime: str,
    mutate: Any,
    caught_by: set[str],
    dtype: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family, _, window = family.partition(":")
    loaded = tiny_loaded(family, dtype=dtype, **({"sliding_window": int(window)} if window else {}))
    mutate(monkeypatch, loaded)
    report = run_probe(loaded, regime)
    assert not report.passed
    assert caught_by <= failed(report), report.failures
    assert "\n" not in report.failures


def test_a_mask_dropped_at_real_length_is_caught_under_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a GPU evaluates: all but long prefixes have a dense mask there, too."""
    drop = with_mask(lambda m, p, i: m() * (p.layout.shape[1] <= 16))
    drop(monkeypatch, None)
    report = run_probe(tiny_loaded(implementation="split"), "bidirectional")
    assert failed(report) == {"real_length"}


def test_one_ignored_layer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()
    with_mask(lambda m, p, i: m(plan=causal_plan(p)) if i == 2 else m())(monkeypatch, loaded)
    report = run_probe(loaded, "bidirectional")
    visible = next(check for check in report.checks if check.name == "visible_keys")
    assert visible.detail.startswith("layer 2: token 0 (position 0) does not read token 1")


def test_a_layer_with_another_layers_keys_is_held_to_the_regime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_mask(lambda m, p, i: m(plan=causal_plan(p)) if i == 5 else m())(monkeypatch, None)
    report = run_probe(sharing("gemma3n"), "bidirectional")
    assert {"visible_keys", "module_outputs", "real_length"} <= failed(report)
    assert "layer 5: " in report.failures
