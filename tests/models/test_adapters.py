"""LoRA checkpoints, merged and beside, against peft itself."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers

from bidir_core.models import loading
from bidir_core.models.layout import Layout
from bidir_core.regimes import CAUSAL
from tests.tiny_models import save_tiny_model

IDS = torch.arange(5, 25)[None]


def adapter(folder: Path, model: Path, targets: list[str], scale: float = 0.05) -> Path:
    """A LoRA adapter with random values in both factors."""
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config)
    torch.manual_seed(3)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn_like(weight) * scale
    adapted.save_pretrained(folder)
    return folder


def by_peft(model: Path, folder: Path, dtype: torch.dtype) -> torch.Tensor:
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(base, str(folder)).eval()(IDS).logits.float()


def ours(model: Path, folder: Path, **settings: str) -> tuple[torch.Tensor, str | None]:
    loaded = loading.load(str(model), checkpoint=str(folder), device="cpu", **settings)
    return causal_logits(loaded), loaded.adapter


def causal_logits(loaded: loading.LoadedModel) -> torch.Tensor:
    layout = Layout.pack([(3, IDS.shape[1])])
    with torch.no_grad(), loaded.handle.use(CAUSAL, layout):
        return loaded.model(IDS, position_ids=layout.position, use_cache=False).logits.float()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_is_peft_unmerged(tmp_path: Path, tiny_folder: Path, dtype: str) -> None:
    folder = adapter(tmp_path / "adapter", tiny_folder, ["q_proj", "v_proj", "down_proj"])
    reference = by_peft(tiny_folder, folder, torch.float32)
    merged, how = ours(tiny_folder, folder, dtype=dtype)
    assert how == "merged"
    beside, how = ours(tiny_folder, folder, dtype=dtype, adapter="beside")
    assert how == "beside"
    # In 16 bits merging rounds each weight once, no worse than the layers beside round.
    allowed = 1e-5 if dtype == "float32" else 2 * float((beside - reference).abs().max())
    assert float((merged - reference).abs().max()) <= allowed
    plain = causal_logits(loading.load(str(tiny_folder), device="cpu"))
    assert float((plain - reference).abs().max()) > 3 * allowed  # the adapter does something


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_embedding_is_never_merged(tmp_path: Path, target: str, dtype: str) -> None:
    model = save_tiny_model(tmp_path / "model", "llama")
    config = transformers.AutoConfig.from_pretrained(model, tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(model)
    folder = adapter(tmp_path / "adapter", model, [target, "q_proj"], scale=0.3)
    logits, how = ours(model, folder, dtype=dtype)
    assert how == "beside"
    reference = by_peft(model, folder, getattr(torch, dtype))
    assert torch.allclose(logits, reference, atol=1e-4 if dtype == "float32" else 0.1)
