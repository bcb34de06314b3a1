"""GGUF files on this machine as models: a tiny file of the Qwen2 kind, written here.

The faults to catch: a conversion that changes weights or tokens and says nothing, and a file of a
kind nobody has tested that is taken all the same.
"""

import copy
from pathlib import Path
from typing import Any

import pytest

from bidir_core.common.errors import UserError
from bidir_core.data import gguf as gguf_convert
from bidir_core.data import gguf_local
from bidir_core.data.gguf import QWEN_PROBES, Expected, vocabulary_checksum
from bidir_core.models import loading

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ["Ġ t", "h e", "Ġt he", "i n", "1 2", "Ã ©", "Ġ Ġ"]  # '1 2' must never come about
N_LAYERS, HEADS, KEY_HEADS, WIDTH, INNER = 2, 4, 2, 32, 48


def _tables() -> tuple[list[str], list[int]]:
    """Byte tokens, merged ones, special ones, a word that is cut out first, and unused rows."""
    from tokenizers import pre_tokenizers

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [merge.replace(" ", "") for merge in MERGES]
    kinds = [1] * len(tokens)
    tokens += [*SPECIAL, "<tool_call>", "[PAD0]", "[PAD1]"]
    return tokens, [*kinds, 3, 3, 3, 4, 5, 5]


def _model() -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": N_LAYERS}
    size |= {"num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS}
    size |= {"vocab_size": len(_tables()[0]), "max_position_embeddings": 128}
    rope = {"rope_theta": 10_000.0, "rope_type": "default"}
    config = Qwen2Config(**size, rope_parameters=rope, tie_word_embeddings=False)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.3)
    return model.eval()


NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
NAMES |= {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"} | {"model.layers.": "blk."}
NAMES |= {f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}
NAMES |= {"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm"}
NAMES |= {"post_attention_layernorm": "ffn_norm"}


def write_gguf(
    path: Path,
    model: Any,
    *,
    architecture: str = "qwen2",
    pre: str = "qwen2",
    scaling: str | None = None,
    merges: list[str] = MERGES,
) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), architecture)
    tokens, kinds = _tables()
    bos, eos = tokens.index(SPECIAL[0]), tokens.index(SPECIAL[2])
    values: dict[str, Any] = {"context_length": 128, "block_count": N_LAYERS}
    values |= {"embedding_length": WIDTH, "feed_forward_length": INNER}
    values |= {"head_count": HEADS, "head_count_kv": KEY_HEADS}
    values |= {"rope_freq_base": 10_000.0, "layer_norm_rms_eps": 1e-6}
    values |= {"tokenizer_model": "gpt2", "tokenizer_pre": pre, "token_merges": merges}
    values |= {"token_list": tokens, "token_types": kinds}
    values |= {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": bos}
    values |= {"chat_template": "{{ '<|im_start|>' }}{{ messages[0].content }}"}
    for name, value in values.items():
        getattr(writer, f"add_{name}")(value)
    if scaling is not None:
        writer.add_string(f"{architecture}.rope.scaling.type", scaling)
    for name, weight in model.named_parameters():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model() -> Any:
    return _model()


@pytest.fixture
def gguf(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIDIR_CACHE_DIR", str(tmp_path / "cache"))
    return write_gguf(tmp_path / "tiny.gguf", model)


def _reads_english(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let random weights through the check of what they make of plain English."""
    monkeypatch.setattr(gguf_convert, "NATS_PER_CHARACTER", (0.0, 99.0))


def test_weights_tokens_and_template_come_along(gguf, model, tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

    _reads_english(monkeypatch)
    loading.preflight(str(gguf))
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        rounded = copy.deepcopy(model).to(torch.bfloat16).to(torch.float32)
        assert torch.allclose(loaded(ids).logits, rounded(ids).logits, atol=1e-5)
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert gguf_local.folder_of(gguf) == folder  # converted once
    assert (folder / "model.safetensors").stat().st_mtime_ns == before

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens, kinds = _tables()
    assert len(tokenizer) == len(tokens) - kinds.count(5)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (None, "<|im_end|>")
    message = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "<|im_start|>Hi"
    # The Qwen team's own class, on the same vocabulary and merges.
    theirs = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens) if kinds[index] == 1},
        merges=[tuple(merge.split(" ")) for merge in MERGES],
    )
    ours = gguf_convert.build_tokenizer(gguf)
    for text in (*QWEN_PROBES, "in the 1212  cafe\u0301 I'LL\n\n x\r\n"):
        if "<|" not in text and "<tool" not in text:
            assert ours(text)["input_ids"] == theirs(text)["input_ids"]
            assert tokenizer(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours("e\u0301")["input_ids"] == [tokens.index("Ã©")]  # normalised to one character
    assert ours("12")["input_ids"] == [tokens.index("1"), tokens.index("2")]
    assert ours("a<tool_call>")["input_ids"] == [tokens.index("a"), tokens.index("<tool_call>")]


def test_what_does_not_read_english_is_refused_and_leaves_nothing(gguf, tmp_path):
    with pytest.raises(UserError, match="nats per character on plain English") as caught:
        loading.preflight(str(gguf))
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_joined_digits_do_not_pass(gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_convert, "QWEN2_PATTERN", r"\p{L}+|\p{N}+|[^\p{L}\p{N}]+")
    gguf_convert.build_tokenizer(gguf).save_pretrained(tmp_path / "out")
    with pytest.raises(UserError, match=r"the digits of .* are joined to '12'"):
        gguf_convert.check(tmp_path / "out", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre": "llama-bpe"}, "qwen2/gpt2/llama-bpe .* is none of"),
        ({"architecture": "phi3"}, "phi3/gpt2/qwen2 .* is none of"),
        ({"scaling": "yarn"}, "positions are scaled .yarn."),
    ],
)
def test_a_kind_that_is_not_known_to_convert_is_refused(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    monkeypatch.setenv("BIDIR_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=message) as caught:
        loading.preflight(str(write_gguf(tmp_path / "odd.gguf", model, **change)))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_and_a_revision_are_refused(gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[:3000])
    other = tmp_path / "other.gguf"
    other.write_text("not one")
    for path in (cut, other):
        with pytest.raises(UserError, match="not a whole GGUF file"):
            loading.preflight(str(path))
    with pytest.raises(UserError, match="only models on the hub"):
        loading.preflight(str(gguf), revision="v2")


def test_other_tokens_than_the_publishers_do_not_pass(gguf, model, tmp_path):
    """A folder stands in for the hub's cache."""
    ours = gguf_convert.build_tokenizer(gguf)
    ours.save_pretrained(tmp_path / "ours")
    fewer = write_gguf(tmp_path / "fewer.gguf", model, merges=MERGES[:2])
    gguf_convert.build_tokenizer(fewer).save_pretrained(tmp_path / "theirs")
    facts = {"english_nats": 0.0, "hub": str(tmp_path / "theirs")}
    facts["probes"] = {text: ours(text)["input_ids"] for text in ("in the", "he")}
    facts["vocabulary_sha256"] = vocabulary_checksum(ours)
    expected = Expected(**facts, special=(None, "<|im_end|>", "<|endoftext|>"))
    with pytest.raises(UserError, match=r"'in the' has other tokens than .*theirs gives"):
        gguf_convert.check(tmp_path / "ours", expected)
    wrong = facts | {"probes": {"in the": ours("he")["input_ids"]}}
    with pytest.raises(UserError, match="'in the' became the tokens"):
        gguf_convert.check(tmp_path / "ours", Expected(**wrong, special=expected.special))
