"""Folders laid out like the published Ministral 3 repositories: 8-bit weights, shards, tekken."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.eight_bits import is_linear, quantise
from bidir_core import models
from bidir_core.cli import main
from bidir_core.errors import UserError
from bidir_core.layout import Layout
from bidir_core.regimes import parse_regime
from bidir_core.store import Run
from tests.tiny_models import save_tiny_model, tiny_model


def logits(loaded, regime: str = "bidirectional") -> torch.Tensor:
    layout = Layout.pack([(12, 17)])
    ids = torch.arange(17)[None] * 7 % 250
    with torch.no_grad(), loaded.handle.use(parse_regime(regime), layout):
        return loaded.model(input_ids=ids, position_ids=layout.position, use_cache=False).logits


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory) -> tuple[Path, Path]:
    """A model in 8 bits, and the same numbers as an ordinary float32 model."""
    folder = save_tiny_model(tmp_path_factory.mktemp("fp8") / "eight", "mistral3")
    plain = shutil.copytree(folder, folder.parent / "plain")
    meant = quantise(folder)
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    return folder, plain


def test_eight_bits_are_dequantised_to_what_they_mean(eight_bits):
    folder, _ = eight_bits
    loaded, reference = (models.load(str(f), dtype="float32", device="cpu") for f in eight_bits)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert torch.equal(logits(loaded), logits(reference))
    coarse = tiny_model("mistral3")
    assert not torch.equal(loaded.model.lm_head.weight, coarse.lm_head.weight), (
        "the fixture does not round"
    )
    half = models.load(str(folder), dtype="bfloat16", device="cpu")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert (logits(half).float() - logits(reference)).abs().max() < 0.15


def test_the_vision_tower_is_dropped_where_nothing_needs_it(eight_bits):
    loaded = models.load(str(eight_bits[1]), device="cpu")
    assert not [name for name, _ in loaded.model.named_parameters() if "vision" in name]
    whole = models.load_weights(
        models.preflight(str(eight_bits[1]), device="cpu"), keep_vision=True
    )
    assert [name for name, _ in whole.model.named_parameters() if "vision" in name]


def test_native_is_refused_where_it_cannot_be(eight_bits):
    with pytest.raises(UserError, match="cpu cannot multiply 8-bit weights"):
        models.preflight(str(eight_bits[0]), device="cpu", weights="native")
    with pytest.raises(UserError, match="has no 8-bit weights"):
        models.preflight(str(eight_bits[1]), device="cpu", weights="native")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_fine_tune_of_eight_bits_is_read_back(eight_bits, own_items, runs_dir, tmp_path, method):
    """Trained, saved, and loaded by --checkpoint and by plain transformers."""
    data = tmp_path / "data.jsonl"
    lines = [{"prompt": f"say {i} then", "response": f" {i} it is"} for i in range(12)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [
        "--model", str(eight_bits[0]), "--prompt-bidir-response-causal-train", "--data", str(data),
        "--no-decontaminate", "--steps", "2", "--batch-samples", "4", "--max-tokens", "64",
        "--eval-every", "0", "--device", "cpu", "--method", method, "--lr", "1e-3",
    ]  # fmt: skip
    assert main(["finetune", *words]) == 0
    (folder,) = (runs_dir / "stage3_finetune_prefill_bidir").iterdir()
    final = folder / "final"
    from_checkpoint = models.load(str(eight_bits[0]), checkpoint=str(folder), device="cpu")
    base = models.load(str(eight_bits[0]), device="cpu")
    assert not torch.equal(logits(from_checkpoint), logits(base))
    if method == "full":
        assert "quantization_config" not in json.loads((final / "config.json").read_text())
        from transformers import AutoModelForImageTextToText

        plain = AutoModelForImageTextToText.from_pretrained(final).state_dict()
        for name, weight in from_checkpoint.model.state_dict().items():
            assert torch.equal(plain[name], weight), name
        assert any("vision" in name for name in plain)
    assert main([
        "eval", "--model", str(eight_bits[0]), "--checkpoint", str(folder), "--device", "cpu",
        "--tasks", str(own_items), "--limit", "4", "--prefill-bidirectional",
    ]) == 0  # fmt: skip
    (made,) = (runs_dir / "stage4_postft_eval").iterdir()
    assert Run(made).settings["weights"] == "dequantise"


def test_shards_are_one_model_and_a_missing_one_is_named(tmp_path, eight_bits):
    sharded = tmp_path / "sharded"
    shutil.copytree(eight_bits[0], sharded)
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}  # fmt: skip
    for file, inside in parts.items():
        save_file({n: tensors[n] for n in inside}, sharded / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: f for f, inside in parts.items() for n in inside}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    one, two = (
        models.load(str(f), dtype="float32", device="cpu") for f in (eight_bits[0], sharded)
    )
    assert torch.equal(logits(one), logits(two))
    assert one.fingerprint == two.fingerprint
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002"):
        models.load(str(sharded), device="cpu")


def test_a_shard_of_another_model_is_refused(tmp_path, eight_bits):
    folder = shutil.copytree(eight_bits[1], tmp_path / "wrong")
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if is_linear(name))
    tensors[lost.replace("layers.0", "layers.9")] = tensors.pop(lost)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="missing or misshapen"):
        models.load(str(folder), device="cpu")


def tekken(folder: Path) -> None:
    """Mistral's own tokenizer file: bytes, a few merges, special tokens in front."""

    def entry(rank: int, token: bytes) -> dict:
        return {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}

    merged = [b"th", b"the", b" t", b" th", b" the"]
    vocab = [entry(rank, bytes([rank])) for rank in range(256)]
    vocab += [entry(256 + rank, token) for rank, token in enumerate(merged)]
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"]
    content = {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
            "num_vocab_tokens": len(vocab),
            "default_vocab_size": len(vocab) + 10,
            "default_num_special_tokens": 10,
            "version": "v11",
        },
        "vocab": vocab,
        "special_tokens": [
            {"rank": rank, "token_str": token, "is_control": True}
            for rank, token in enumerate(special)
        ],
    }
    (folder / "tekken.json").write_text(json.dumps(content))


def test_a_tokenizer_of_mistrals_own_format_is_read(tmp_path):
    folder = save_tiny_model(tmp_path / "tekken", "ministral3")
    for path in [*folder.glob("tokenizer*"), *folder.glob("special_tokens*")]:
        path.unlink()
    tekken(folder)
    tokenizer = models.preflight(str(folder), device="cpu").tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    encoded = tokenizer("say the word", add_special_tokens=False, return_offsets_mapping=True)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"])[3] == "Ġthe"
    assert encoded["input_ids"][3] == 10 + 256 + 4  # special tokens come first
    assert encoded["offset_mapping"][3] == (3, 7)
    assert tokenizer.decode(encoded["input_ids"]) == "say the word"
