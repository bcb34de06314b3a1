"""A tiny random model of every architecture that is known to work, and a tokenizer for them.

They answer, in seconds and without weights, whether an architecture can honour a regime on this
machine and with this version of transformers (``doctor``, ``doctor --families``); the tests use
them wherever a model must run in milliseconds. All are built from a configuration in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bidir_core.common.errors import UserError
from bidir_core.models.attention import (
    IMPLEMENTATIONS,
    check_supported,
    choose_implementation,
    install,
)
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe import ProbeReport, run_probe

VOCAB = 260  # 256 bytes, then <pad>, <bos>, <eos>, and one to spare

PAD, BOS, EOS = 256, 257, 258

MAX_LENGTH = 512
WINDOW = 4  # small, so that a short sequence reaches past it

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": MAX_LENGTH,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,  # large, so that attention matters to the logits
}

_WINDOWED = {"sliding_window": WINDOW}
_GEMMA = {"query_pre_attn_scalar": 24, **_WINDOWED}  # a scale of its own, not head_dim

_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_YARN = {  # Ministral 3 scales queries by position beyond the original window: a small one here
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 16.0,
    "original_max_position_embeddings": MAX_LENGTH // 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def _plain(name: str, **settings: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**{**_COMMON, **settings})


def _gpt_neox() -> Any:
    settings = {k: v for k, v in _COMMON.items() if k not in ("num_key_value_heads", "head_dim")}
    return transformers.GPTNeoXConfig(**settings)


def _gpt2() -> Any:
    return transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=MAX_LENGTH,
        n_embd=32,
        n_layer=4,
        n_head=4,
        initializer_range=0.2,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def _mistral3() -> Any:
    vision_settings: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "head_dim": 8,
    }
    vision = transformers.PixtralVisionConfig(**vision_settings)
    return transformers.Mistral3Config(
        vision_config=vision,
        text_config=_FAMILIES["ministral3"][0](),
        image_token_index=VOCAB - 1,
        spatial_merge_size=1,
        tie_word_embeddings=False,
    )


# A configuration, and published models of the family, by which users find theirs.
_FAMILIES: dict[str, tuple[Callable[[], Any], str]] = {
    "llama": (_plain("LlamaConfig"), "Llama 3, SmolLM2"),
    "mistral": (_plain("MistralConfig", **_WINDOWED), "Mistral 7B"),
    "ministral3": (
        _plain("Ministral3Config", num_hidden_layers=3, rope_parameters=_YARN),
        "Ministral 3, text",
    ),
    "mistral3": (_mistral3, "Ministral 3, Mistral Small 3"),
    "qwen2": (
        _plain("Qwen2Config", **_WINDOWED, use_sliding_window=True, max_window_layers=2),
        "Qwen2.5",
    ),
    "qwen3": (_plain("Qwen3Config"), "Qwen3"),
    "gemma2": (_plain("Gemma2Config", **_GEMMA, attn_logit_softcapping=5.0), "Gemma 2"),
    "gemma3": (
        _plain(
            "Gemma3TextConfig",
            **_GEMMA,
            layer_types=[f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding")],
            rope_parameters={"full_attention": _ROPE, "sliding_attention": _ROPE},
        ),
        "Gemma 3",
    ),
    "phi3": (_plain("Phi3Config", original_max_position_embeddings=MAX_LENGTH), "Phi-3, Phi-4"),
    "olmo2": (_plain("Olmo2Config"), "OLMo 2"),
    "smollm3": (_plain("SmolLM3Config", no_rope_layers=[1, 0, 1, 0]), "SmolLM3"),
    "gpt_neox": (_gpt_neox, "Pythia"),
    "gpt2": (_gpt2, "GPT-2"),
}

FAMILIES = tuple(_FAMILIES)

# Probed as well; the tests that go through every family keep to the ones above, for time.
_FAMILIES |= {
    "arcee": (_plain("ArceeConfig"), "AFM-4.5B"),
    "cohere2": (_plain("Cohere2Config", **_WINDOWED), "Command R7B"),
    "ernie4_5": (_plain("Ernie4_5Config"), "ERNIE-4.5-0.3B"),
    "exaone4": (_plain("Exaone4Config", **_WINDOWED), "EXAONE-4.0"),
    "gemma": (_plain("GemmaConfig"), "Gemma 1"),
    "glm4": (_plain("Glm4Config"), "GLM-4-0414"),
    "gpt_oss": (
        _plain("GptOssConfig", **_EXPERTS, **_WINDOWED, rope_parameters=_ROPE, swiglu_limit=7.0),
        "gpt-oss",
    ),
    "granite": (_plain("GraniteConfig"), "Granite 3"),
    "helium": (_plain("HeliumConfig"), "Helium 1"),
    "hunyuan_v1_dense": (_plain("HunYuanDenseV1Config"), "Hunyuan dense"),
    "mixtral": (_plain("MixtralConfig", **_EXPERTS), "Mixtral"),
    "nemotron": (_plain("NemotronConfig"), "Minitron"),
    "olmo3": (_plain("Olmo3Config", **_WINDOWED), "OLMo 3"),
    "opt": (_plain("OPTConfig"), "OPT"),
    "phi": (_plain("PhiConfig"), "Phi-2"),
    "qwen3_moe": (_plain("Qwen3MoeConfig", **_EXPERTS), "Qwen3 MoE"),
    "seed_oss": (_plain("SeedOssConfig"), "Seed-OSS"),
    "stablelm": (_plain("StableLmConfig"), "StableLM 2"),
    "starcoder2": (_plain("Starcoder2Config"), "StarCoder2"),
}

ALL_FAMILIES = tuple(sorted(_FAMILIES))


def tiny_config(family: str, **changes: Any) -> Any:
    """The configuration of one family, with ``changes`` made to its text side."""
    config = _FAMILIES[family][0]()
    for name, value in changes.items():
        setattr(config.get_text_config(), name, value)
    return config


def tiny_model(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random fp32 model in eval mode, without anything installed on it."""
    config = tiny_config(family, **changes)
    auto = (
        transformers.AutoModelForImageTextToText
        if family == "mistral3"
        else transformers.AutoModelForCausalLM
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float32)
        # Norms and biases are ones and zeros at first, and would hide a mistake in them.
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "norm" in name:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with offsets: one token a byte, plus ``<pad>``, ``<bos>``, ``<eos>``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    assert (fast.pad_token_id, fast.bos_token_id, fast.eos_token_id) == (PAD, BOS, EOS)
    return fast


def tiny_loaded(
    family: str = "llama",
    *,
    implementation: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    model: Any = None,
    **changes: Any,
) -> LoadedModel:
    """A tiny model with regimes installed; ``model`` takes its place (a PEFT-wrapped one).

    Raises UserError if ``implementation`` cannot compute the family right.
    """
    model = tiny_model(family, seed=seed, **changes) if model is None else model
    model = model.to(device=device, dtype=dtype)
    chosen = choose_implementation(model.config, implementation)
    text = model.config.get_text_config()
    return LoadedModel(
        model=model,
        tokenizer=tiny_tokenizer(),
        handle=install(model, chosen),
        name=f"tiny-{family}",
        fingerprint=f"tiny-{family}-{seed}",
        tokenizer_fingerprint="tiny",
        n_layers=text.num_hidden_layers,
        max_length=text.max_position_embeddings,
        device=torch.device(device),
        dtype=str(dtype).removeprefix("torch."),
        implementation=chosen,
    )


# Which architectures can honour a regime: each one built tiny and at random, and probed.

# A window, a depth and a strength of its own: every dial that a layer must see.
REGIMES = ("causal", "bidirectional", "bidirectional:sink=1,layers=1-2,lambda=0.1")

# Refused by name before weights are read, each for its own reason.
REFUSED = (
    "MambaConfig",
    "JambaConfig",
    "Qwen3NextConfig",
    "FalconH1Config",
    "Llama4TextConfig",
    "BloomConfig",
    "MptConfig",
    "GPTJConfig",
    "T5Config",
    "BertConfig",
)


@dataclass(frozen=True)
class FamilyResult:
    """The probe's result. ``outcomes``: attention implementation -> passes, FAILS or refused."""

    family: str
    example: str
    automatic: str
    outcomes: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether the implementation that ``--attn auto`` takes passes under every regime."""
        return self.outcomes[self.automatic] == "passes"


def probe_family(
    family: str,
    implementation: str,
    regime: str = "bidirectional",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ProbeReport:
    """The probe's report on a tiny random model of a family.

    Raises UserError if this implementation cannot compute the family right.
    """
    loaded = tiny_loaded(family, implementation=implementation, device=device, dtype=dtype)
    return run_probe(loaded, regime)


def probe_families() -> Iterator[FamilyResult]:
    """Every family under every implementation, one at a time, about 0.3 s each on a CPU."""
    for family in ALL_FAMILIES:
        outcomes: dict[str, str] = {}
        for implementation in IMPLEMENTATIONS:
            try:
                reports = [probe_family(family, implementation, regime) for regime in REGIMES]
                failed = sum(not report.passed for report in reports)
                outcomes[implementation] = "passes" if not failed else "FAILS"
            except UserError:
                outcomes[implementation] = "refused"
        automatic = choose_implementation(tiny_config(family))
        yield FamilyResult(family, _FAMILIES[family][1], automatic, outcomes)


def refusals() -> list[tuple[str, str]]:
    """(architecture, why it is refused) for kinds of model that no mask can open."""
    reasons = []
    for name in REFUSED:
        config = getattr(transformers, name)()
        try:
            check_supported(config)
        except UserError as error:
            reasons.append((config.model_type, str(error).split("; use")[0]))
    return reasons


def to_markdown(results: list[FamilyResult]) -> str:
    """The table of docs/MODELS.md: one line a family, the implementation that ``auto`` takes in bold."""
    lines = ["| family | for example | sdpa | eager |", "|---|---|---|---|"]
    for result in results:
        cells = [
            f"**{result.outcomes[name]}**" if name == result.automatic else result.outcomes[name]
            for name in ("sdpa", "eager")
        ]
        lines.append(f"| `{result.family}` | {result.example} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)
