"""Regimes in real architectures: every way of laying tokens out gives the same logits."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from bidir_core.common.errors import UserError
from bidir_core.models.attention import check_supported, choose_implementation, install
from bidir_core.models.families import (
    FAMILIES,
    WINDOW,
    tiny_config,
    tiny_loaded,
    tiny_model,
)
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, parse_regime
from tests.regime_bias import score_bias
from tests.tiny_models import logits, logits_in_steps

REGIMES = (
    "causal",
    "bidirectional",
    "bidirectional:sink=1,layers=1-2",
    "bidirectional:rows=1-5,self=3,tail=1",
    "bidirectional:lambda=0.03",
    "bidirectional:sink=2,rows=0-7,self=4,hide=1,tail=1,layers=0-1,lambda=0.4",
    "causal:hide=0",
)
# Each family under these, and some of them under all.
FEW = ("causal", "bidirectional", REGIMES[-2])
GRID = [(family, regime) for family in FAMILIES for regime in FEW]
GRID += [(family, regime) for family in ("llama", "gemma3") for regime in {*REGIMES} - {*FEW}]
GRID.sort()
WINDOWED = ("mistral", "qwen2", "gemma2", "gemma3")
LENGTHS = ((9, 12), (1, 2), (6, 6), (3, 10))  # (prefix, total)
TOLERANCE = 2e-5


def token_ids(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(seed))


SEQUENCES = [token_ids(n_total, seed) for seed, (_, n_total) in enumerate(LENGTHS)]


def one_at_a_time(loaded: LoadedModel, regime: str) -> list[torch.Tensor]:
    return [
        logits(loaded, regime, Layout.pack([length]), ids[None])[0]
        for length, ids in zip(LENGTHS, SEQUENCES)
    ]


def assert_close(result: torch.Tensor, reference: torch.Tensor) -> None:
    torch.testing.assert_close(result, reference, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("family", "regime"), GRID)
def test_packed_padded_and_single_agree(family: str, regime: str) -> None:
    loaded = tiny_loaded(family)
    single = one_at_a_time(loaded, regime)
    packed = logits(loaded, regime, Layout.pack(LENGTHS), torch.cat(SEQUENCES)[None])[0]
    assert_close(packed, torch.cat(single))
    batch = torch.nn.utils.rnn.pad_sequence(SEQUENCES, batch_first=True, padding_value=7)
    padded = logits(loaded, regime, Layout.pad(LENGTHS), batch)
    for row, own in zip(padded, single):
        assert_close(row[: len(own)], own)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma2"])
def test_eager_and_sdpa_agree(family: str) -> None:
    loaded = [tiny_loaded(family, implementation=how) for how in ("sdpa", "eager")]
    for regime in FEW:
        sdpa, eager = (one_at_a_time(one, regime) for one in loaded)
        assert_close(torch.cat(sdpa), torch.cat(eager))


@pytest.mark.parametrize("family", FAMILIES)
def test_causal_is_the_model_as_it_came(family: str) -> None:
    """Against a second copy on which nothing was ever installed, and against ``native``."""
    untouched = tiny_model(family)
    untouched.set_attn_implementation(choose_implementation(untouched.config))
    loaded = tiny_loaded(family)
    for length, ids in zip(LENGTHS, SEQUENCES):
        with torch.no_grad():
            expected = untouched(input_ids=ids[None], use_cache=False).logits
            with loaded.handle.native():
                native = loaded.model(input_ids=ids[None], use_cache=False).logits
        ours = logits(loaded, "causal", Layout.pack([length]), ids[None])
        assert_close(ours, expected)
        assert torch.equal(native, expected)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "smollm3"])
def test_regimes_are_the_mask_that_transformers_is_given(family: str) -> None:
    """A 4-D additive mask from the visibility function, given to the model from outside."""
    untouched, loaded = tiny_model(family), tiny_loaded(family)
    for regime in ("bidirectional", "bidirectional:sink=2,tail=1,lambda=0.2"):
        (n_prefix, n_total), ids = LENGTHS[0], SEQUENCES[0][None]
        bias = torch.from_numpy(score_bias(parse_regime(regime), n_prefix, n_total)).float()
        with torch.no_grad():
            expected = untouched(input_ids=ids, attention_mask=bias[None, None]).logits
        assert_close(logits(loaded, regime, Layout.pack([LENGTHS[0]]), ids), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_regime_changes_something(family: str) -> None:
    """Equal numbers prove nothing if the switch is not connected."""
    loaded = tiny_loaded(family)
    layout, ids = Layout.pack([LENGTHS[0]]), SEQUENCES[0][None]
    results = [logits(loaded, regime, layout, ids) for regime in REGIMES]
    for index, one in enumerate(results):
        for other in results[:index]:
            assert (one - other).abs().max() > 1e-3


def tree_of_choices(choices: Sequence[Sequence[int]], n_prefix: int) -> Layout:
    """Choices behind one prefix, side by side: no shared tokens but the prefix."""
    n_total = n_prefix + sum(len(choice) for choice in choices)
    position, exits = list(range(n_prefix)), [n_total] * n_prefix
    for choice in choices:
        exits += [len(position) + len(choice)] * len(choice)
        position += range(n_prefix, n_prefix + len(choice))
    row = torch.tensor([position])
    return Layout(
        torch.zeros_like(row),
        row,
        torch.full_like(row, n_prefix),
        torch.tensor([exits]),
        spans=((0, n_total),),
    )


@pytest.mark.parametrize(("family", "regime"), GRID)
def test_choices_far_from_their_prefix_get_the_same_logits(family: str, regime: str) -> None:
    """The last choice stands 15 tokens behind its prefix, many windows away, and one position."""
    loaded, n_prefix = tiny_loaded(family), 7
    prefix = token_ids(n_prefix, seed=9)
    choices = [token_ids(5, seed) for seed in range(4)]
    layout = tree_of_choices([choice.tolist() for choice in choices], n_prefix)
    together = logits(loaded, regime, layout, torch.cat([prefix, *choices])[None])[0]
    for index, choice in enumerate(choices):
        plain = Layout.pack([(n_prefix, n_prefix + 5)])
        alone = logits(loaded, regime, plain, torch.cat([prefix, choice])[None])[0]
        start = n_prefix + 5 * index
        assert_close(together[start : start + 5], alone[n_prefix:])
        assert_close(together[:n_prefix], alone[:n_prefix])


@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_reaches_equally_far_ahead(family: str) -> None:
    """With every layer sliding, the first token's logits feel depth * (window - 1) ahead, no more."""
    config = tiny_config(family)
    n_layers = config.num_hidden_layers
    kinds = {"layer_types": ["sliding_attention"] * n_layers} if family != "mistral" else {}
    loaded = tiny_loaded(family, **kinds)
    reach = n_layers * (WINDOW - 1)
    layout = Layout.pack([(reach + 3, reach + 4)])
    ids = token_ids(reach + 4)
    base = logits(loaded, "bidirectional", layout, ids[None])[0, 0]
    for index, feels in ((reach, True), (reach + 1, False)):
        other = ids.clone()
        other[index] = (other[index] + 1) % 256
        moved = logits(loaded, "bidirectional", layout, other[None])[0, 0]
        assert torch.equal(base, moved) != feels


# A model's own cache differs from a plain one where it crops to a window.
@pytest.mark.parametrize(
    ("family", "cached"),
    [*((family, "plain") for family in FAMILIES), *((family, "model") for family in WINDOWED)],
)
@pytest.mark.parametrize(
    "regime", ["causal", "bidirectional", "bidirectional:sink=1,self=3,tail=2"]
)
def test_decoding_with_a_cache_equals_computing_all_at_once(family, regime, cached):
    """Prefix once, then continuation tokens in steps of 1, 1 and 3; ``model`` caches crop windows."""
    loaded, n_prefix, n_total = tiny_loaded(family), 8, 13
    ids = token_ids(n_total)[None]
    expected = logits(loaded, regime, Layout.pack([(n_prefix, n_total)]), ids)
    config = loaded.model.config.get_text_config()
    cache = (
        transformers.DynamicCache(config=config)
        if cached == "model"
        else transformers.DynamicCache()
    )
    stepwise = logits_in_steps(loaded, regime, n_prefix, (8, 9, 10, 13), ids, cache)
    assert_close(stepwise, expected)


def test_a_layout_of_another_length_is_refused() -> None:
    loaded = tiny_loaded()
    for layout in (Layout.pack([(4, 9)]), Layout.pack([(4, 7)])):
        with pytest.raises(RuntimeError, match="layout"), loaded.handle.use(BIDIRECTIONAL, layout):
            loaded.model(input_ids=token_ids(8)[None], use_cache=False)


@pytest.mark.parametrize("family", ["llama", "mistral3", "gemma2"])
def test_a_forward_outside_use_raises(family: str) -> None:
    loaded = tiny_loaded(family)
    ids, layout = token_ids(4)[None], Layout.pack([(3, 4)])
    with pytest.raises(RuntimeError, match="no regime is in force"):
        loaded.model(input_ids=ids)
    logits(loaded, "bidirectional", layout, ids)
    with pytest.raises(RuntimeError, match="no regime is in force"):
        loaded.model(input_ids=ids)
    with pytest.raises(ZeroDivisionError), loaded.handle.use(BIDIRECTIONAL, layout):
        _ = 1 / 0
    with pytest.raises(RuntimeError, match="no regime is in force"):
        loaded.model(input_ids=ids)


def test_two_models_keep_their_regimes_apart() -> None:
    one, other = tiny_loaded("llama"), tiny_loaded("qwen3")
    layout, ids = Layout.pack([LENGTHS[0]]), SEQUENCES[0][None]
    expected = logits(one, "causal", layout, ids)
    with other.handle.use(BIDIRECTIONAL, layout):
        assert torch.equal(logits(one, "causal", layout, ids), expected)
        with pytest.raises(RuntimeError, match="no regime is in force"):
            one.model(input_ids=ids)


def test_use_nests_and_gradients_flow_through_the_regime() -> None:
    loaded, ids, layout = tiny_loaded(), SEQUENCES[0][None], Layout.pack([LENGTHS[0]])
    with loaded.handle.use(BIDIRECTIONAL, layout):
        with loaded.handle.use(CAUSAL, layout):
            pass
        embeds = loaded.model.get_input_embeddings()(ids).detach().requires_grad_()
        output = loaded.model(inputs_embeds=embeds, position_ids=layout.position, use_cache=False)
        output.logits[0, 0].sum().backward()
    seen = embeds.grad[0].abs().sum(-1) > 0
    n_prefix, n_total = LENGTHS[0]
    assert seen.tolist() == [True] * n_prefix + [False] * (n_total - n_prefix)


@pytest.mark.parametrize("family", ["llama", "mistral3"])
def test_gradient_checkpointing_recomputes_under_the_regime(family: str) -> None:
    ids, layout = SEQUENCES[0][None], Layout.pack([LENGTHS[0]])
    gradients = []
    for checkpointing in (False, True):
        loaded = tiny_loaded(family)
        loaded.model.train()
        if checkpointing:
            loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
        with loaded.handle.use(BIDIRECTIONAL, layout):
            output = loaded.model(input_ids=ids, position_ids=layout.position, use_cache=False)
            output.logits.square().mean().backward()
        gradients.append(loaded.model.get_input_embeddings().weight.grad)
    assert_close(gradients[0], gradients[1])


def test_a_regime_in_a_peft_model() -> None:
    """Wrapped before or after installing, adapters change the weights and not the regime."""
    peft = pytest.importorskip("peft")
    layout, ids = Layout.pack([LENGTHS[0]]), SEQUENCES[0][None]
    expected = logits(tiny_loaded(), "bidirectional:sink=1", layout, ids)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    wrapped = tiny_loaded(model=peft.get_peft_model(tiny_model("llama"), settings))
    assert_close(logits(wrapped, "bidirectional:sink=1", layout, ids), expected)
    inner = tiny_loaded()
    model = peft.get_peft_model(inner.model, settings)
    with torch.no_grad(), inner.handle.use(parse_regime("bidirectional:sink=1"), layout):
        outer = model(input_ids=ids, position_ids=layout.position, use_cache=False).logits
    assert_close(outer, expected)


# What cannot honour a regime is refused by name, from the configuration alone


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("MambaConfig", "'mamba' is a state-space or recurrent model"),
        ("RecurrentGemmaConfig", "'recurrent_gemma'"),
        ("JambaConfig", "'jamba'"),
        ("FalconH1Config", "'falcon_h1'"),
        ("Qwen3NextConfig", "linear_attention"),
        ("Llama4TextConfig", "chunked_attention"),
        ("T5Config", "'t5' is an encoder-decoder"),
        ("BertConfig", "'bert' is an encoder"),
        ("ModernBertConfig", "'modernbert' is an encoder"),
        ("BloomConfig", "'bloom' does not use"),
        ("CLIPConfig", "'clip' is not a causal language model"),
        ("WhisperConfig", "'whisper' is an encoder-decoder"),
    ],
)
def test_unsupported_architectures_are_refused_by_name(config: str, named: str) -> None:
    if not hasattr(transformers, config):
        pytest.skip(f"this transformers has no {config}")
    with pytest.raises(UserError) as caught:
        check_supported(getattr(transformers, config)())
    message = str(caught.value)
    assert named in message
    assert "use a decoder" in message
    assert "\n" not in message


def test_the_kinds_of_layers_in_a_config_decide() -> None:
    settings = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    with pytest.raises(UserError, match="'lfm2' has conv layers, which no mask can open"):
        check_supported(transformers.Lfm2Config(**settings))
    check_supported(transformers.Lfm2Config(**settings | {"layer_types": ["full_attention"] * 2}))


def test_soft_caps_are_refused_under_sdpa() -> None:
    with pytest.raises(UserError, match=r"'sdpa' drops the soft caps.*gemma2.*use --attn eager"):
        choose_implementation(tiny_config("gemma2"), "sdpa")
    # Even installed by hand it does not compute something else.
    model = tiny_model("gemma2")
    handle, layout = install(model, "sdpa"), Layout.pack([(3, 4)])
    with pytest.raises(UserError, match="softcap"), handle.use(CAUSAL, layout):
        model(input_ids=token_ids(4)[None], position_ids=layout.position)


def test_a_model_without_replaceable_attention_is_refused_on_install() -> None:
    config = transformers.BloomConfig(
        vocab_size=32, hidden_size=16, n_layer=2, n_head=2, pad_token_id=0
    )
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match="BloomForCausalLM"):
        install(model, "sdpa")
