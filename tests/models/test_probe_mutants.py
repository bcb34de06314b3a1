"""Broken wrappers, each one small change to how a regime reaches the model: the probe names every one."""

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
    hidden, opened = (honest(layout, r, window, span) for r in (regime, open_regime))
    return tuple(torch.where(behind, *pair) for pair in zip(opened, hidden))


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


def causal_layer(index: int) -> Callable[[pytest.MonkeyPatch, LoadedModel], None]:
    """A mutant in which one layer stays causal."""
    return with_mask(lambda m, p, i: m(plan=causal_plan(p)) if i == index else m())


def mask_only_if(keep: Callable[..., bool]) -> Callable[[pytest.MonkeyPatch, LoadedModel], None]:
    """A mutant that drops the mask unless ``keep(plan, layer)``."""
    return with_mask(lambda m, p, i: m() * keep(p, i))


def is_short(plan: Any, layer: int) -> bool:
    return plan.layout.shape[1] <= 16


def with_lambda(change: Callable[..., float]) -> Callable[[pytest.MonkeyPatch, LoadedModel], None]:
    """A mutant whose lambda in a layer is ``change(lambda, layer)``."""

    def mask(honest_mask: Any, plan: Any, layer: int) -> Any:
        regime = dataclasses.replace(plan.regime, lam=change(plan.regime.lam, layer))
        return honest_mask(plan=attention.Plan(regime, plan.layout))

    return with_mask(mask)


def added_lambda(honest_mask: Any, plan: Any, layer: int) -> Any:
    mask = honest_mask()
    return mask.masked_fill((mask < 0) & (mask > -1e9), plan.regime.lam)


CAUSAL_THROUGHOUT = with_mask(lambda m, p, i: m(plan=causal_plan(p)))
NEXT_LAYER = with_mask(lambda m, p, i: m(layer=i + 1))
LAMBDA_BUT_IN_ONE_LAYER = with_lambda(lambda lam, i: 1.0 if i == 1 else lam)
ONE_ROW_ONLY = mask_only_if(lambda p, i: len(p.layout.item) == 1)
SEVERAL_ROWS_ONLY = mask_only_if(lambda p, i: len(p.layout.item) > 1)
SHORT_IN_ONE_LAYER = mask_only_if(lambda p, i: is_short(p, i) or i != 2)
BIDIR, LAMBDA = "bidirectional", "bidirectional:lambda=0.03"
SEEN = "visible_keys module_outputs"
# The checks that must fail -> what is changed, in a model of which family, under which regime.
MUTANTS: dict[str, list[tuple[str, str, str, Any]]] = {
    f"{SEEN} continuation_leak look_ahead causal_is_native": [
        ("mask dropped", "llama", "causal", with_mask(lambda m, p, i: m() * 0)),
    ],
    f"{SEEN} continuation_leak": [
        ("mask dropped", "llama", BIDIR, with_mask(lambda m, p, i: m() * 0)),
        ("bool mask under eager", "gemma2", BIDIR, with_mask(lambda m, p, i: m() == 0)),
        ("prefix one too long", "llama", BIDIR, with_rule(shifted_prefix(1))),
        ("everything sees everything", "llama", BIDIR, with_rule(everything)),
        ("continuation leaks", "llama", BIDIR, with_rule(leaky_continuation)),
    ],
    f"{SEEN} look_ahead": [
        ("mask dropped, causal kernel", "llama", BIDIR, sdpa_as_causal),
        ("prefix one too short", "llama", BIDIR, with_rule(shifted_prefix(-1))),
        ("sink ignored", "llama", "bidirectional:sink=1", with_regime(sink=0)),
        ("rows ignored", "llama", "bidirectional:rows=2-3", with_regime(rows=None)),
        ("last token not hidden", "llama", "causal:hide=4", with_regime(hide=None)),
        ("tail ignored", "llama", "bidirectional:tail=1", with_regime(tail=0)),
        ("silently causal", "llama", BIDIR, CAUSAL_THROUGHOUT),
    ],
    SEEN: [
        ("one layer causal", "llama", BIDIR, causal_layer(2)),
        ("last layer causal", "gpt_neox", BIDIR, causal_layer(3)),
        ("window ignored", "mistral", BIDIR, with_mask(lambda m, p, i: m(window=None))),
        ("window ignored ahead", "mistral", BIDIR, with_rule(window_behind_only)),
        ("no look-ahead in windows", "gemma3", BIDIR, with_rule(window_without_look_ahead)),
        ("window by index", "qwen2", BIDIR, with_rule(window_by_index)),
        ("window one too wide", "mistral", BIDIR, with_rule(window_too_wide)),
        ("wide window ignored", "mistral:64", BIDIR, with_mask(lambda m, p, i: m(window=None))),
        ("wide window one too wide", "mistral:64", BIDIR, with_rule(window_too_wide)),
        ("far sink ignored", "llama", "bidirectional:sink=40", with_regime(sink=39)),
        ("far rows off by one", "llama", "bidirectional:rows=30-60", with_regime(rows=(30, 61))),
        ("self ignored", "llama", "bidirectional:self=3", with_regime(self_token=None)),
        ("skip ignored", "llama", "bidirectional:skip=3", with_regime(skip=None)),
        ("hide ignored", "llama", "causal:hide=3", with_regime(hide=None)),
        ("hide takes a layer too few", "llama", "causal:hide=0,layers=1-", causal_layer(3)),
        ("hidden from the prompt only", "llama", f"{BIDIR}:hide=0", with_rule(hidden_from_prompt)),
        ("far hide off by one", "llama", "bidirectional:hide=33", with_regime(hide=34)),
        ("far tail off by one", "llama", "bidirectional:tail=30", with_regime(tail=29)),
        ("layers off by one", "llama", "bidirectional:layers=1-2", NEXT_LAYER),
        ("choices see their siblings", "llama", BIDIR, with_rule(tree_as_sequence)),
    ],
    "layers_covered": [("one layer on its own", "llama", BIDIR, one_layer_goes_its_own_way)],
    "module_outputs continuation_leak look_ahead": [
        ("one layer mixes tokens", "llama", "causal", one_layer_mixes_tokens_elsewhere),
    ],
    "module_outputs": [("one layer returns nothing", "llama", BIDIR, one_layer_returns_nothing)],
    "lambda_strength": [
        ("lambda ignored", "llama", LAMBDA, with_lambda(lambda lam, i: 1.0)),
        ("lambda wrong", "llama", LAMBDA, with_lambda(lambda lam, i: lam**1.05)),
        ("lambda added, not its log", "gpt2", LAMBDA, with_mask(added_lambda)),
        ("lambda ignored in one layer", "llama", LAMBDA, LAMBDA_BUT_IN_ONE_LAYER),
    ],
    "causal_is_native": [("score scale forgotten", "llama", BIDIR, scale_forgotten)],
    "packed_choices": [
        ("position ids ignored", "llama", BIDIR, positions_ignored),
        ("position ids ignored", "gpt2", BIDIR, positions_ignored),
        ("position ids ignored in one layer", "llama", BIDIR, one_layer_counts_positions_itself),
    ],
    "real_length": [
        ("mask dropped beyond 16 tokens", "llama", BIDIR, mask_only_if(is_short)),
        ("mask dropped beyond 16 tokens in one layer", "gemma2", BIDIR, SHORT_IN_ONE_LAYER),
        ("causal beyond 16 tokens", "llama", BIDIR, causal_kernel_for_real_lengths),
    ],
    # McGill-NLP/llm2vec issue 74: no mask for a batch of one; and its reverse.
    "visible_keys real_length": [
        ("mask dropped for one row", "llama", BIDIR, SEVERAL_ROWS_ONLY),
    ],
    "visible_keys": [
        ("mask dropped for several rows", "llama", BIDIR, ONE_ROW_ONLY),
        ("hidden from itself", "llama", "causal:hide=3", with_rule(hidden_from_itself)),
    ],
    # bigscience-workshop/Megatron-DeepSpeed issue 303: only the first layer got the mask.
    f"{SEEN} real_length": [
        ("mask lost behind the first layer", "llama", BIDIR, mask_only_if(lambda p, i: i == 0)),
    ],
    "model_runs": [("model cannot run", "llama", BIDIR, shape_error)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("family", "regime", "mutate", "caught_by"),
    [
        pytest.param(family, regime, mutate, set(checks.split()), id=f"{what}-{family}-{regime}")
        for checks, mutants in MUTANTS.items()
        for what, family, regime, mutate in mutants
    ],
)
def test_a_broken_wrapper_is_caught_by_name(family, regime, mutate, caught_by, dtype, monkeypatch):
    family, _, window = family.partition(":")
    loaded = tiny_loaded(family, dtype=dtype, **({"sliding_window": int(window)} if window else {}))
    mutate(monkeypatch, loaded)
    report = run_probe(loaded, regime)
    assert not report.passed
    assert caught_by <= failed(report), report.failures
    assert "\n" not in report.failures


def test_a_mask_dropped_at_real_length_is_caught_under_split(monkeypatch):
    """Where a GPU evaluates: all but long prefixes have a dense mask there, too."""
    mask_only_if(is_short)(monkeypatch, None)
    report = run_probe(tiny_loaded(implementation="split"), "bidirectional")
    assert failed(report) == {"real_length"}


def test_one_ignored_layer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()
    causal_layer(2)(monkeypatch, loaded)
    report = run_probe(loaded, "bidirectional")
    visible = next(check for check in report.checks if check.name == "visible_keys")
    assert visible.detail.startswith("layer 2: token 0 (position 0) does not read token 1")


def test_a_layer_with_another_layers_keys_is_held_to_the_regime(monkeypatch):
    causal_layer(5)(monkeypatch, None)
    report = run_probe(sharing("gemma3n"), "bidirectional")
    assert {"visible_keys", "module_outputs", "real_length"} <= failed(report)
    assert "layer 5: " in report.failures
