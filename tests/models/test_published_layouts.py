"""Folders laid out like the published Ministral 3 repositories: 8-bit weights, shards, tekken."""

import base64
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bidir_core.common.errors import UserError
from bidir_core.models import loading
from bidir_core.models.families import tiny_model
from bidir_core.models.layout import Layout
from tests.eight_bit_models import in_eight_bits, in_shards
from tests.tiny_models import logits as logits_under
from tests.tiny_models import save_tiny_model


def logits(loaded) -> torch.Tensor:
    ids = torch.arange(17)[None] * 7 % 250
    return logits_under(loaded, "bidirectional", Layout.pack([(12, 17)]), ids)


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory) -> tuple[Path, Path]:
    return in_eight_bits(tmp_path_factory.mktemp("fp8"))


def test_eight_bits_are_dequantised_to_what_they_mean(eight_bits):
    folder, _ = eight_bits
    loaded, reference = (loading.load(str(f), dtype="float32", device="cpu") for f in eight_bits)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert torch.equal(logits(loaded), logits(reference))
    coarse = tiny_model("mistral3")
    assert not torch.equal(loaded.model.lm_head.weight, coarse.lm_head.weight), (
        "the fixture does not round"
    )
    half = loading.load(str(folder), dtype="bfloat16", device="cpu")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert (logits(half).float() - logits(reference)).abs().max() < 0.15


def test_the_vision_tower_is_dropped_where_nothing_needs_it(eight_bits):
    loaded = loading.load(str(eight_bits[1]), device="cpu")
    assert not [name for name, _ in loaded.model.named_parameters() if "vision" in name]
    whole = loading.load_weights(
        loading.preflight(str(eight_bits[1]), device="cpu"), keep_vision=True
    )
    assert [name for name, _ in whole.model.named_parameters() if "vision" in name]


def test_native_is_refused_where_it_cannot_be(eight_bits):
    with pytest.raises(UserError, match="cpu cannot multiply 8-bit weights"):
        loading.preflight(str(eight_bits[0]), device="cpu", weights="native")
    with pytest.raises(UserError, match="has no 8-bit weights"):
        loading.preflight(str(eight_bits[1]), device="cpu", weights="native")


def test_shards_are_one_model_and_a_missing_one_is_named(tmp_path, eight_bits):
    sharded, _ = in_shards(eight_bits[0], tmp_path / "sharded")
    one, two = (
        loading.load(str(f), dtype="float32", device="cpu") for f in (eight_bits[0], sharded)
    )
    assert torch.equal(logits(one), logits(two))
    assert one.fingerprint == two.fingerprint
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002"):
        loading.load(str(sharded), device="cpu")


@pytest.mark.parametrize("wrong", ["another", "of other shapes", "of another model"])
def test_a_wrong_shard_is_refused(tmp_path, eight_bits, wrong):
    sharded, weight_map = in_shards(eight_bits[1], tmp_path / "sharded")
    first, second = sorted(set(weight_map.values()))
    tensors = load_file(sharded / (first if wrong == "another" else second))
    if wrong == "of other shapes":
        tensors = {name: torch.cat([t, t]) for name, t in tensors.items()}
    if wrong == "of another model":
        tensors = {name.replace("layers.0", "layers.9"): t for name, t in tensors.items()}
    save_file(tensors, sharded / second, metadata={"format": "pt"})
    with pytest.raises(UserError, match="missing or misshapen, such as "):
        loading.load(str(sharded), device="cpu")


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
    tokenizer = loading.preflight(str(folder), device="cpu").tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    encoded = tokenizer("say the word", add_special_tokens=False, return_offsets_mapping=True)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"])[3] == "Ġthe"
    assert encoded["input_ids"][3] == 10 + 256 + 4  # special tokens come first
    assert encoded["offset_mapping"][3] == (3, 7)
    assert tokenizer.decode(encoded["input_ids"]) == "say the word"
