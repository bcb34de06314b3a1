"""Which architectures can honour a regime: each one built tiny and at random, and probed.

The table in the README is this module's: ``python -m bidir_core doctor --families``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import transformers

from bidir_core.attention_choice import IMPLEMENTATIONS, check_supported, choose_implementation
from bidir_core.errors import UserError
from bidir_core.families import ALL_FAMILIES, tiny_config, tiny_loaded
from bidir_core.probe import ProbeReport, run_probe

# A window, a depth and a strength of its own: every dial that a layer must see.
REGIMES = ("causal", "bidirectional", "bidirectional:sink=1,layers=1-2,lambda=0.1")
# A published model of each family, so that one finds one's own.
EXAMPLES = {
    "arcee": "AFM-4.5B",
    "cohere2": "Command R7B",
    "ernie4_5": "ERNIE-4.5-0.3B",
    "exaone4": "EXAONE-4.0",
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "glm4": "GLM-4-0414",
    "gpt2": "GPT-2",
    "gpt_neox": "Pythia",
    "gpt_oss": "gpt-oss",
    "granite": "Granite 3",
    "helium": "Helium 1",
    "hunyuan_v1_dense": "Hunyuan dense",
    "llama": "Llama 3, SmolLM2",
    "ministral3": "Ministral 3, text",
    "mistral": "Mistral 7B",
    "mistral3": "Ministral 3, Mistral Small 3",
    "mixtral": "Mixtral",
    "nemotron": "Minitron",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "opt": "OPT",
    "phi": "Phi-2",
    "phi3": "Phi-3, Phi-4",
    "qwen2": "Qwen2.5",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3 MoE",
    "seed_oss": "Seed-OSS",
    "smollm3": "SmolLM3",
    "stablelm": "StableLM 2",
    "starcoder2": "StarCoder2",
}
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
    """What the probe said of one family. ``outcomes``: attention implementation -> word."""

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
    return run_probe(loaded, regime)  # type: ignore[arg-type]


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
        yield FamilyResult(family, EXAMPLES.get(family, ""), automatic, outcomes)


def refusals() -> list[tuple[str, str]]:
    """(architecture, why it is refused) for kinds of model that no mask can open."""
    said = []
    for name in REFUSED:
        config = getattr(transformers, name)()
        try:
            check_supported(config)
        except UserError as error:
            said.append((config.model_type, str(error).split("; use")[0]))
    return said


def to_markdown(results: list[FamilyResult]) -> str:
    """The README's table: one line a family, the implementation that ``auto`` takes in bold."""
    lines = ["| family | for example | sdpa | eager |", "|---|---|---|---|"]
    for one in results:
        cells = [
            f"**{one.outcomes[name]}**" if name == one.automatic else one.outcomes[name]
            for name in ("sdpa", "eager")
        ]
        lines.append(f"| `{one.family}` | {one.example} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)
