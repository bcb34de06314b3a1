"""The probe passes honest models under every regime, and names what is wrong with broken ones."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from bidir_core.common.errors import UserError
from bidir_core.models import attention
from bidir_core.models.families import FAMILIES, tiny_loaded, tiny_model
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe import run_probe
from bidir_core.models.probe_checks import CHECKS

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

FEW = ("causal", "bidirectional", REGIMES[-1])


def failed(report: Any) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_honest_model_passes(family: str) -> None:
    """Every regime where layers are alike and where they are not; elsewhere all dials at once, and
    without any in jobs/test_doctor.py."""
    loaded = tiny_loaded(family)
    for regime in REGIMES if family in ("llama", "gemma3") else REGIMES[-1:]:
        report = run_probe(loaded, regime)
        assert report.passed, report.failures
        assert {check.name for check in report.checks} == set(CHECKS)


@pytest.mark.parametrize(
    ("dtype", "implementation"), [(torch.bfloat16, "sdpa"), (torch.float16, "eager")]
)
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2"])
def test_no_false_alarm_in_half_precision(family: str, dtype: Any, implementation: str) -> None:
    loaded = tiny_loaded(family, dtype=dtype, implementation=implementation)
    for regime in (*FEW, "bidirectional:lambda=0.00001"):
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


def attention_functions() -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS


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
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size_per_layer_input": 8}
    sizes |= {"vocab_size": 260, "vocab_size_per_layer_input": 260, "max_position_embeddings": 512}
    sizes |= {"layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 4}
    sizes |= {"num_hidden_layers": 6, "num_kv_shared_layers": 2, "initializer_range": 0.2}
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
