"""Tiny random models of every supported architecture, and a byte-level tokenizer for them.

They stand in for real ones wherever a test needs a model that runs in milliseconds: built from a
configuration, in fp32, without weights on disk. ``save_tiny_model`` writes one as a local folder
laid out like a hub snapshot.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bidir_core.models.families import tiny_model, tiny_tokenizer
from bidir_core.models.layout import Layout
from bidir_core.regimes import parse_regime


def save_tiny_model(
    folder: Path | str, family: str = "llama", *, seed: int = 0, **changes: Any
) -> Path:
    """Write a model and its tokenizer as a local folder like a hub snapshot."""
    folder = Path(folder)
    tiny_model(family, seed=seed, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(
    folder: Path,
    base: Path,
    targets: Sequence[str] = ("q_proj", "up_proj"),
    scale: float = 0.05,
    record: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Write a LoRA adapter with random values in everything that it trains.

    ``record``: what its ``bidir.json`` says, if it has one. ``settings`` are peft's.
    """
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    kind = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": list(targets), **settings}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**kind))
    torch.manual_seed(3)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data + torch.randn_like(weight) * scale
    adapted.save_pretrained(folder)
    if record:
        (folder / "bidir.json").write_text(json.dumps(record))
    return folder


@torch.no_grad()
def logits(loaded: Any, regime: str, layout: Layout, ids: torch.Tensor) -> torch.Tensor:
    """``[batch, time, vocab]`` of one pass under a regime."""
    with loaded.handle.use(parse_regime(regime), layout):
        return loaded.model(input_ids=ids, position_ids=layout.position, use_cache=False).logits


def logits_in_steps(
    loaded: Any, regime: str, n_prefix: int, ends: tuple[int, ...], ids: torch.Tensor, cache: Any
) -> torch.Tensor:
    """The same of one item, computed up to each of ``ends`` with a key/value cache."""
    found, start = [], 0
    for end in ends:
        layout = Layout.pack([(n_prefix, end)])
        with torch.no_grad(), loaded.handle.use(parse_regime(regime), layout):
            step = loaded.model(
                input_ids=ids[:, start:end],
                position_ids=layout.position[:, start:end],
                past_key_values=cache,
                use_cache=True,
            )
        found.append(step.logits)
        start = end
    return torch.cat(found, dim=1)
