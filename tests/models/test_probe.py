"""The probe passes honest models under every regime, and names what is wrong with broken ones."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from bidir_core.common.errors import UserError
from bidir_core.models import attention
from bidir_core.models.families import FAMILIES, tiny_loaded, tiny_model
from bidir_core.models.layout import Layout
from bidir_core.models.layout import allowed_and_ahead as honest
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe import run_probe
from bidir_core.models.probe_checks import CHECKS
from bidir_core.regimes import CAUSAL

REGIMES = (
    "causal",
    "bidirectional",
    "bidirectional:sink=1",
    "bidirectional:layers=1-1",
    "bidirectional:lambda=0.03",
    "bidirectional:rows=2-4,self=3",
    "bidirectional:skip=40",
    "causal:hide=0",
    "bidirectional:hide=3,layers=1-",
    "bidirectional:sink=2,rows=1-40,self=25,hide=31,tail=9,layers=0-1,lambda=0.2",
)


def failed(report: Any) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_honest_model_passes(family: str, regime: str) -> None:
    report = run_probe(tiny_loaded(family), regime)
    assert report.passed, report.failures
    assert {check.name for check in report.checks} == set(CHECKS)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2"])
def test_no_false_alarm_in_half_precision(family: str, dtype: Any, implementation: str) -> None:
    loaded = tiny_loaded(family, dtype=dtype, implementation=implementation)
    for regime in (*REGIMES, "bidirectional:lambda=0.00001"):
        report = run_probe(loaded, regime)
        assert report.passed, (regime, report.failures)


@pytest.mark.parametrize("regime", ["bidirectional", "bidirectional:sink=30,rows=45-90"])
@pytest.mark.parametrize("window", [1, 2, 7, 8, 9, 64, 4096])
def test_no_false_alarm_for_windows_of_any_width(window: int, regime: str) -> None:
    """Depth times window does not reach everywhere; 4096 is more than the model can take."""
    report = run_probe(tiny_loaded("mistral", sliding_window=window), regime)
    assert report.passed, report.failures


def with_sharp_attention() -> LoadedModel:
    """A trained head may put all its weight on one key: the others underflow, and are still seen."""
    loaded = tiny_loaded()
    for layer in loaded.model.model.layers:
        layer.self_attn.q_proj.weight.data *= 100
    return loaded


def with_zero_embeddings() -> LoadedModel:
    """As a padding token's is: its hidden state says nothing about the scale of the others."""
    loaded = tiny_loaded()
    loaded.model.get_input_embeddings().weight.data[loaded.tokenizer("Tve").input_ids] = 0
    return loaded


def without_english() -> LoadedModel:
    return dataclasses.replace(tiny_loaded(), tokenizer=lambda *_, **__: {"input_ids": [5] * 40})


@pytest.mark.parametrize(
    ("build", "regimes"),
    [
        (with_sharp_attention, REGIMES),
        (with_zero_embeddings, ["bidirectional"]),
        (without_english, ["bidirectional"]),
        (  # look-ahead too weak to show
            lambda: tiny_loaded(dtype=torch.bfloat16),
            ["bidirectional:lambda=0.000000001,layers=0-0", f"bidirectional:lambda={1e-300}"],
        ),
        (  # dials beyond the model's length
            tiny_loaded,
            [f"bidirectional:{d}=100000" for d in ("sink", "tail", "self")]
            + ["bidirectional:rows=5-100000"],
        ),
    ],
)
def test_no_false_alarm(build: Callable[[], LoadedModel], regimes: list[str]) -> None:
    loaded = build()
    for regime in regimes:
        report = run_probe(loaded, regime)
        assert report.passed, (regime, report.failures)


def test_a_peft_model_passes_and_is_left_as_it_was() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        tiny_model("llama"),
        peft.LoraConfig(
            r=4, lora_dropout=0.5, init_lora_weights=False, target_modules=["q_proj", "v_proj"]
        ),
    )
    loaded = tiny_loaded(model=model.train())
    report = run_probe(loaded, "bidirectional:sink=1,lambda=0.5")
    assert report.passed, report.failures
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_nothing_stays_behind() -> None:
    """Neither hooks nor the measuring attention function outlive the probe."""
    loaded = tiny_loaded()
    before = attention.AttentionInterface()["bidir_sdpa"]
    run_probe(loaded, "bidirectional")
    assert attention.AttentionInterface()["bidir_sdpa"] is before
    assert "bidir_sdpa" not in attention_functions()._local_mapping
    assert not any(module._forward_hooks for module in loaded.model.modules())
    assert loaded.handle.plan is None
    with pytest.raises(RuntimeError, match="no regime is in force"):
        loaded.model(input_ids=torch.ones(1, 3, dtype=torch.int64))


def test_the_report_is_plain_json() -> None:
    report = run_probe(tiny_loaded("gemma2"), "bidirectional:sink=1")
    data = json.loads(json.dumps(report.to_json()))
    assert data["passed"] is True
    assert (data["model"], data["regime"]) == ("tiny-gemma2", "bidirectional:sink=1")
    assert (data["dtype"], data["implementation"]) == ("float32", "eager")
    assert [set(check) for check in data["checks"]] == [{"name", "passed", "detail"}] * len(CHECKS)


def attention_functions() -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS


# Broken wrappers. Each is one small change to the way a regime reaches the model.


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


# What is wrong with a model or its files, and not with a mask, is called by its name.


def with_a_nan() -> LoadedModel:
    loaded = tiny_loaded()
    loaded.model.model.layers[2].mlp.up_proj.weight.data[3, 4] = float("nan")
    return loaded


def with_a_foreign_tokenizer() -> LoadedModel:
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    return tiny_loaded(vocab_size=60, **special)


@pytest.mark.parametrize(
    ("build", "cause"),
    [
        (with_a_nan, "NaN or infinite, such as in model.layers.2.mlp.up_proj.weight"),
        (with_a_foreign_tokenizer, "60 rows: the tokenizer belongs to another model"),
        (
            lambda: tiny_loaded("mistral", layer_types=["full_attention"] * 4),
            "layer 0 has no sliding window, but the layer's attention asks for a sliding window of 4",
        ),
        (lambda: tiny_loaded("gemma3", sliding_window=None), "no sliding window is set"),
        (lambda: tiny_loaded("qwen2", use_sliding_window=False), "no sliding window is set"),
    ],
)
def test_what_is_wrong_beside_the_mask_is_named(build: Any, cause: str) -> None:
    report = run_probe(build(), "bidirectional")
    assert failed(report) == {"model_runs"}
    assert cause in report.failures
    with pytest.raises(UserError, match=r"cannot be probed .*, so nothing counts") as raised:
        report.require("so nothing counts")
    assert cause in str(raised.value)
    assert "does not attend" not in str(raised.value)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("regime", ["causal", "bidirectional:sink=1"])
@pytest.mark.parametrize(
    ("family", "implementation"),
    [("llama", "sdpa"), ("llama", "split"), ("gemma3", "eager"), ("gpt2", "sdpa")],
)
def test_the_regime_decides_and_not_is_causal_in_the_configuration(
    family: str, implementation: str, regime: str, is_causal: bool
) -> None:
    """transformers opens the masks of a decoder whose configuration says ``is_causal: false``."""
    loaded = tiny_loaded(family, implementation=implementation, is_causal=is_causal)
    report = run_probe(loaded, regime)
    assert report.passed, report.failures
    assert loaded.handle.decoder.config.is_causal is is_causal  # left as it was


def sharing(kind: str) -> LoadedModel:
    """A model whose last layers attend to earlier layers' keys and values."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 260,
        "vocab_size_per_layer_input": 260,
        "hidden_size_per_layer_input": 8,
        "max_position_embeddings": 512,
        "sliding_window": 4,
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "initializer_range": 0.2,
    }
    config = (
        transformers.Gemma3nTextConfig(
            **sizes, laurel_rank=4, altup_num_inputs=2, activation_sparsity_pattern=[0.0] * 6
        )
        if kind == "gemma3n"
        else transformers.Gemma4TextConfig(**(sizes | {"global_head_dim": 8}))
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return tiny_loaded(kind, model=model.eval())


@pytest.mark.parametrize("regime", ["causal", "bidirectional", "bidirectional:sink=1,layers=2-"])
@pytest.mark.parametrize("kind", ["gemma3n", "gemma4"])
def test_models_that_share_keys_between_layers_pass(kind: str, regime: str) -> None:
    report = run_probe(sharing(kind), regime)
    assert report.passed, report.failures


def test_a_layer_with_another_layers_keys_is_held_to_the_regime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_mask(lambda m, p, i: m(plan=causal_plan(p)) if i == 5 else m())(monkeypatch, None)
    report = run_probe(sharing("gemma3n"), "bidirectional")
    assert {"visible_keys", "module_outputs", "real_length"} <= failed(report)
    assert "layer 5: " in report.failures


def test_the_probe_is_cheap() -> None:
    """Counted, not timed: no more than before it asked for real length and packed choices.

    Two layers as wide as the embedded model's, and as much of its vocabulary as goes with two.
    """
    loaded = tiny_loaded(
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        num_hidden_layers=2,
        vocab_size=3277,
    )
    passes = []
    loaded.handle.decoder.register_forward_hook(lambda *_: passes.append(1))
    with FlopCounterMode(display=False) as counter:
        assert run_probe(loaded, "bidirectional").passed
    assert len(passes) == 5
    assert counter.get_total_flops() <= 3_255_000_000


def test_a_dial_that_the_model_does_not_have_is_a_failed_check() -> None:
    report = run_probe(tiny_loaded(), "bidirectional:layers=0-4")
    assert failed(report) == {"model_runs"}
    assert "layers 0-3" in report.failures
