"""LoRA checkpoints, merged and beside, against peft itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bidir_core.common.errors import UserError
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.models import checkpoint, loading
from bidir_core.models.layout import Layout
from bidir_core.runs.run import Run
from tests.tiny_models import logits, save_adapter, save_tiny_model

IDS = torch.arange(5, 25)[None]
Damage = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def tied_model(folder: Path) -> Path:
    """A model whose output head is its embedding."""
    save_tiny_model(folder, "llama")
    config = transformers.AutoConfig.from_pretrained(folder, tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def by_peft(model: Path, folder: Path, dtype: torch.dtype) -> torch.Tensor:
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(base, str(folder)).eval()(IDS).logits.float()


def ours(model: Path, folder: Path, **settings: str) -> tuple[torch.Tensor, str | None]:
    loaded = loading.load(str(model), checkpoint=str(folder), device="cpu", **settings)
    return causal_logits(loaded), loaded.adapter


def causal_logits(loaded: loading.LoadedModel) -> torch.Tensor:
    return logits(loaded, "causal", Layout.pack([(3, IDS.shape[1])]), IDS).float()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_is_peft_unmerged(tmp_path: Path, tiny_folder: Path, dtype: str) -> None:
    targets = ["q_proj", "v_proj", "down_proj"]
    folder = save_adapter(tmp_path / "adapter", tiny_folder, targets, record={"regime": "causal"})
    reference = by_peft(tiny_folder, folder, torch.float32)
    merged, how = ours(tiny_folder, folder, dtype=dtype)
    assert how == "merged"
    beside, how = ours(tiny_folder, folder, dtype=dtype, adapter="beside")
    assert how == "beside"
    # In 16 bits merging rounds each weight once, no worse than the layers beside round.
    allowed = 2e-5 if dtype == "float32" else 2 * float((beside - reference).abs().max())
    assert float((merged - reference).abs().max()) <= allowed
    base, tuned = (
        loading.load(str(tiny_folder), checkpoint=checkpoint, device="cpu", dtype=dtype)
        for checkpoint in (None, str(folder))
    )
    # the adapter does something
    assert float((causal_logits(base) - reference).abs().max()) > 3 * allowed
    assert tuned.fingerprint != base.fingerprint
    assert tuned.training_record == {"regime": "causal"}
    assert not isinstance(tuned.model, peft.PeftModel)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_embedding_is_never_merged(tmp_path: Path, target: str, dtype: str) -> None:
    model = tied_model(tmp_path / "model")
    folder = save_adapter(tmp_path / "adapter", model, [target, "q_proj"], scale=0.3)
    logits, adapter = ours(model, folder, dtype=dtype)
    assert adapter == "beside"
    reference = by_peft(model, folder, getattr(torch, dtype))
    assert torch.allclose(logits, reference, atol=1e-4 if dtype == "float32" else 0.1)


KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    # settings, and how the adapter stands in a tied and in an untied model
    "rslora": ({"use_rslora": True}, "merged", "merged"),
    "dora": ({"use_dora": True}, "merged", "merged"),
    "head saved": ({"modules_to_save": ["lm_head"]}, "merged", "merged"),
    "embedding saved": ({"modules_to_save": ["embed_tokens"]}, "merged", "merged"),
    "both tied": (
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        "merged",
        "merged",
    ),
    "tokens": ({"trainable_token_indices": [5, 6, 7]}, "beside", "merged"),
    "biases": ({"lora_bias": True}, "beside", "beside"),
    "ranks": ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 32}}, "merged", "merged"),
    "one layer": ({"layers_to_transform": [1]}, "merged", "merged"),
    "pissa": ({"init_lora_weights": "pissa"}, "merged", "merged"),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_as_peft_runs_it(tmp_path, tiny_folder, kind, tied):
    settings, when_tied, when_untied = KINDS[kind]
    model = tied_model(tmp_path / "model") if tied else tiny_folder
    folder = save_adapter(
        tmp_path / "adapter", model, ["q_proj", "down_proj"], scale=0.1, **settings
    )
    reference = by_peft(model, folder, torch.float32)
    logits, adapter = ours(model, folder, dtype="float32")
    assert adapter == (when_tied if tied else when_untied)
    assert torch.allclose(logits, reference, atol=1e-4)
    plain = causal_logits(loading.load(str(model), device="cpu", dtype="float32"))
    assert not torch.allclose(logits, plain, atol=1e-2)


def only(kept: Callable[[str], bool]) -> Damage:
    return lambda held: {name: tensor for name, tensor in held.items() if kept(name)}


def renamed(old: str, new: str) -> Damage:
    return lambda held: {name.replace(old, new): tensor for name, tensor in held.items()}


def with_one(name: str, tensor: torch.Tensor) -> Damage:
    return lambda held: held | {f"base_model.model.model.layers.{name}.weight": tensor}


HEADLESS = only(lambda name: "lm_head" not in name)
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no tensors": (only(lambda name: False), r"25 of the 25 tensors .* missing or .*lm_head"),
    "half its layers": (
        only(lambda name: "layers.2." not in name and "layers.3." not in name),
        r"not whole: 12 of the 25 .* such as .*layers\.2\.mlp\.down_proj",
    ),
    "lora_A only": (only(lambda name: "lora_A" in name), r"17 of the 25 .* such as .*lm_head"),
    "an empty tensor": (  # as ZeRO-3 saves what it did not gather
        with_one("1.self_attn.q_proj.lora_A", torch.empty(0)),
        r"not whole: 1 of the 25 .* such as .*layers\.1\.self_attn\.q_proj\.lora_A",
    ),
    "without its head": (HEADLESS, r"not whole: 1 of the 25 .* such as .*lm_head\.weight"),
    "of a compiled model": (
        renamed("model.l", "_orig_mod.model.l"),
        r"names its tensors as a wrapped model does",
    ),
    "of a model on several GPUs": (
        renamed("model.l", "module.model.l"),
        r"names its tensors as a wrapped model does .*module\.",
    ),
    "of a model without its head": (  # as AutoModel, not AutoModelForCausalLM, makes it
        lambda held: renamed("model.model.", "model.")(HEADLESS(held)),
        r"as a model without its head does .* such as base_model\.model\.model\.layers\.0",
    ),
    "of another kind": (
        with_one("0.self_attn.q_proj.extra", torch.ones(2)),
        r"q_proj\.extra\.weight by \(2,\), which the model does not have",
    ),
}


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory) -> Path:
    """An adapter that is taken."""
    kinds = {"use_dora": True, "modules_to_save": ["lm_head"]}
    folder = tmp_path_factory.mktemp("whole") / "adapter"
    save_adapter(folder, tiny_folder, ["q_proj", "down_proj"], **kinds)
    loading.preflight(str(tiny_folder), checkpoint=str(folder), device="cpu")
    return folder


@pytest.mark.parametrize("how", DAMAGES)
def test_an_adapter_that_is_not_whole_is_refused(tmp_path, tiny_folder, whole, how):
    damage, message = DAMAGES[how]
    file = shutil.copytree(whole, tmp_path / "adapter") / "adapter_model.safetensors"
    save_file(damage(load_file(file)), file)
    with pytest.raises(UserError, match=message):
        loading.preflight(str(tiny_folder), checkpoint=str(file.parent), device="cpu")


ENDLESS = r"([a-z_.0-9]+)+#"


@pytest.mark.parametrize(
    "endless",
    [
        {"target_modules": ENDLESS},
        {"rank_pattern": {"(": 1, ENDLESS: 4}},
        {"modules_to_save": [ENDLESS]},
        {"layers_to_transform": [0], "layers_pattern": ENDLESS},
    ],
)
def test_a_pattern_that_never_ends_is_given_up(endless, tmp_path, tiny_folder, monkeypatch):
    folder = save_adapter(tmp_path / "adapter", tiny_folder, ["q_proj"])
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | endless))
    monkeypatch.setattr(checkpoint, "TEMPLATE_SECONDS", 0.3)
    with pytest.raises(UserError, match=r"^checkpoint .*: matching its patterns took longer"):
        loading.preflight(str(tiny_folder), checkpoint=str(folder), device="cpu")


def test_an_adapter_for_added_tokens_needs_the_base_with_them(tmp_path, tiny_folder):
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    base.resize_token_embeddings(base.config.vocab_size + 3)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(base, config).save_pretrained(
        tmp_path / "adapter", save_embedding_layers=True
    )
    with pytest.raises(UserError, match=r"with the tokens that were added to it"):
        loading.preflight(str(tiny_folder), checkpoint=str(tmp_path / "adapter"), device="cpu")


def test_embeddings_saved_beside_an_adapter_are_applied(tmp_path: Path, tiny_folder: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config)
    base.get_input_embeddings().weight.data += 0.3
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    logits, _ = ours(tiny_folder, tmp_path / "adapter", dtype="float32")
    with torch.no_grad():
        assert torch.allclose(logits, adapted.eval()(IDS).logits, atol=1e-4)


def test_an_adapter_left_over_in_a_models_folder_is_refused(tmp_path, tiny_folder):
    """transformers would add it to the weights once more, unasked."""
    both = tmp_path / "both"
    shutil.copytree(tiny_folder, both)
    save_adapter(both, tiny_folder, ["q_proj"])
    with pytest.raises(UserError, match=r"would be applied to them; remove it if they are merged"):
        loading.preflight(str(both), device="cpu")
    with pytest.raises(UserError, match="holds a whole model and a LoRA adapter"):
        loading.preflight(str(tiny_folder), checkpoint=str(both), device="cpu")


def test_an_adapter_of_a_base_by_another_name_is_remarked_on(tmp_path, tiny_folder):
    folder = save_adapter(tmp_path / "adapter", tiny_folder, ["q_proj"])
    assert not loading.load(str(tiny_folder), checkpoint=str(folder), device="cpu").notes
    settings = folder / "adapter_config.json"
    named = json.loads(settings.read_text()) | {"base_model_name_or_path": "someone/other-model"}
    settings.write_text(json.dumps(named))
    (note,) = loading.load(str(tiny_folder), checkpoint=str(folder), device="cpu").notes
    assert "names 'someone/other-model' as its base model" in note
    named["base_model_name_or_path"] = f"someone/{tiny_folder.name}"  # a folder of the same name
    settings.write_text(json.dumps(named))
    assert not loading.load(str(tiny_folder), checkpoint=str(folder), device="cpu").notes


def test_tensors_that_a_model_has_no_place_for_are_named(
    tmp_path: Path, tiny_folder: Path, own_items: Path, runs_dir: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(tiny_folder, cut)
    config = json.loads((cut / "config.json").read_text()) | {"num_hidden_layers": 3}
    config.pop("layer_types", None)
    (cut / "config.json").write_text(json.dumps(config))
    run = Run(evaluate(EvalConfig(model=str(cut), tasks=(str(own_items),), device="cpu")))
    (warning,) = run.config["warnings"]
    assert "9 tensors in the weights" in warning
    assert "model.layers.3." in warning
    assert warning in (run.path / "log.txt").read_text()
