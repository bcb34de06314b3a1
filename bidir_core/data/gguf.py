"""What a GGUF file holds as transformers has it: weights, tokenizer, and whether they came out right.

transformers reads GGUF weights well but not every tokenizer: its converter drops the digit rule of
the ``smollm`` pre-tokenizer, calls ``<|im_start|>`` the end-of-sequence token and decodes the
character U+2581 as a space. So the weights go through transformers and the tokenizer is rebuilt
here from the file's own tables: ``smollm`` as llama.cpp defines it (every digit alone, then the
GPT-2 pattern), ``qwen2`` as the Qwen team's own tokenizer class does, Gemma's as what it is, a
SentencePiece BPE. :mod:`bidir_core.data.gguf_local` makes the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError

# GGUF's kinds of tokens: ordinary ones, names such as <|im_start|>, words that are cut out of a text
# first, and rows that only fill the embedding up to a round height.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# How Qwen2 cuts a text before it merges (transformers' PRETOKENIZE_REGEX): every digit alone.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

ENGLISH = (
    "Water boils when it is heated to one hundred degrees Celsius. The steam rises, cools down, "
    "and turns back into water. In the same way, the sun heats the water of the oceans, the vapour "
    "rises into the sky, forms clouds, and falls back to the ground as rain. Then the rain flows "
    "into the rivers, and the rivers flow back into the oceans."
)

UNKNOWN_PROBES = (
    "Question: What's 1234?\n\nAnswer:",
    "x  12 km² and ½ cup\n\n 3rd",
    "\u2581low  bar",
    " a  b\t c\r\n",
    "naïve 東京タワー \x07 \U00013000",
)

# Loss on ENGLISH that a model of any vocabulary may have. The embedded ones lie from 0.46 to 0.59;
# with every layer's queries and keys in the wrong order, from 0.77 to 1.93.
NATS_PER_CHARACTER = (0.2, 0.7)

# Queries in the wrong order move this by 0.1 in one late layer of SmolLM2, by 0.04 in the first of
# Gemma, by less than 0.01 in the first of Qwen (by 6 in all); other machines by less than 0.001.
ENGLISH_TOLERANCE = 0.02


def build_tokenizer(gguf: Path) -> Any:
    """A fast tokenizer from a GGUF file's tokens, merges, token types and special ids."""
    from gguf import GGUFReader
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(str(gguf)).fields

    def table(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    qwen = table("ggml.pre") == "qwen2"
    tokens, kinds = table("ggml.tokens"), table("ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in table("ggml.merges")]
    vocabulary = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != UNUSED
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    cut: Any = pre_tokenizers.Digits(individual_digits=True)
    if qwen:
        backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
        cut = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not qwen)]
    )
    # Offsets keep a token's leading space, so that the tokens of a text cover all its characters.
    backend.post_processor = processors.ByteLevel(trim_offsets=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special, defined = _of_kind(CONTROL, tokens, kinds), _of_kind(USER_DEFINED, tokens, kinds)
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in defined])

    def named(name: str) -> str | None:
        index = fields.get(f"tokenizer.ggml.{name}_token_id")
        return None if index is None else str(tokens[index.contents()])

    architecture = fields["general.architecture"].contents()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        # Qwen has none: the file names one because the format asks for it, and says not to add it.
        bos_token=None if qwen else named("bos"),
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        model_max_length=int(fields[f"{architecture}.context_length"].contents()),
        clean_up_tokenization_spaces=False,
    )
    chat_template = fields.get("tokenizer.chat_template")
    tokenizer.chat_template = None if chat_template is None else chat_template.contents()
    return tokenizer


def convert_weights(gguf: Path, out: Path) -> None:
    """Write the file's configuration and bf16 weights into a folder."""
    import torch
    from transformers import AutoModelForCausalLM

    # In float32 first: rounding happens once, at the end.
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # De-quantised weights are ordinary weights, but transformers refuses to save them while the
    # model remembers where they came from.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size="1TB")  # one file


def vocabulary_checksum(tokenizer: Any) -> str:
    """sha256 over the vocabulary in id order: changes if any token moves."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def check(folder: Path, expected: Expected | None) -> None:
    """Raise UserError unless the folder's tokenizer and weights are what they must be.

    Of a model of which no right answers are known, gross faults only are seen: texts must survive,
    digits stand alone, special tokens be whole, and the loss on plain English be a language model's.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    faults = _faults(tokenizer, folder, expected) if expected else _gross_faults(tokenizer, folder)
    if fault := next(faults, None):
        raise UserError(
            f"the model converted into {folder} is wrong ({fault}); remove it and convert again, "
            "with the package versions of requirements.txt"
        )


def _faults(tokenizer: Any, folder: Path, expected: Expected) -> Iterator[str]:
    if vocabulary_checksum(tokenizer) != expected.vocabulary_sha256:
        yield "its vocabulary changed"
    for text, right in expected.probes.items():
        ids = tokenizer(text)["input_ids"]
        if ids != right:
            yield f"{text!r} became the tokens {ids}"
        if tokenizer.decode(ids) != expected.lead + text:
            yield f"{text!r} does not survive a round trip"
    if expected.hub is not None and (published := _cached_tokenizer(expected.hub)) is not None:
        for text in (*expected.probes, ENGLISH):
            if published(text)["input_ids"] != tokenizer(text)["input_ids"]:
                yield f"{text!r} has other tokens than {expected.hub} gives it"
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    if special != expected.special:
        yield f"special tokens {special}"
    if (expected.in_chat_template or "") not in (tokenizer.chat_template or ""):
        yield "no chat template"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name, value in expected.config.items():
        if config.get(name) != value:
            yield f"{name} is {config.get(name)} instead of {value}"
    # Heads in the wrong order leave every shape right; only what the model computes shows it.
    loss_nats, _ = _english_loss(folder, tokenizer)
    if not abs(loss_nats - expected.english_nats) < ENGLISH_TOLERANCE:
        yield f"{loss_nats:.3f} nats per token on plain English instead of {expected.english_nats}"


def _cached_tokenizer(hub: str) -> Any:
    """The publisher's own tokenizer if the hub's cache has it, else None; asks no network."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(hub, local_files_only=True)
    except (OSError, ValueError):
        return None


def _gross_faults(tokenizer: Any, folder: Path) -> Iterator[str]:
    for text in UNKNOWN_PROBES:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.decode(ids) != text:
            yield f"{text!r} does not survive a round trip"
        for piece in (tokenizer.decode([token_id]) for token_id in ids):
            if sum(c in "0123456789" for c in piece) > 1:
                yield f"the digits of {text!r} are joined to {piece!r}"
    if tokenizer.eos_token is None:
        yield "no end token"
    for token in tokenizer.all_special_tokens:
        ids = tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"]
        if tokenizer.convert_tokens_to_ids(token) not in ids:
            yield f"{token!r} in a text is not one token"
    loss_nats, n_predicted = _english_loss(folder, tokenizer)
    per_character = loss_nats * n_predicted / len(ENGLISH)
    low, high = NATS_PER_CHARACTER
    if not low < per_character < high:
        yield f"{per_character:.2f} nats per character on plain English, not {low} to {high}"


def _english_loss(folder: Path, tokenizer: Any) -> tuple[float, int]:
    """Nats per token on ``ENGLISH``, in float32, and how many tokens were predicted."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(ENGLISH, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float(model(ids, labels=ids).loss), ids.shape[1] - 1


SPACE = "\u2581"  # SentencePiece writes a space so


def build_gemma_tokenizer(gguf: Path) -> Any:
    """A fast tokenizer, with offsets, from a GGUF file's tokens, scores, kinds and special ids."""
    from gguf import GGUFReader

    fields = GGUFReader(str(gguf)).fields

    def table(name: str) -> Any:
        return fields[f"tokenizer.ggml.{name}"].contents()

    return tokenizer_of(
        table("tokens"),
        table("scores"),
        table("token_type"),
        special_ids={name: table(f"{name}_token_id") for name in ("bos", "eos", "padding")},
        max_length=int(fields["gemma3.context_length"].contents()),
    )


def tokenizer_of(
    tokens: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    *,
    special_ids: Mapping[str, int],
    max_length: int,
) -> Any:
    """The same from the tables themselves."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = next((t for t in tokens if t == "<unk>"), None)
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges_by_score(tokens, scores, kinds),
            byte_fallback=True,
            unk_token=unknown,
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", SPACE)  # type: ignore[assignment]
    backend.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    defined = _of_kind(USER_DEFINED, tokens, kinds)
    backend.add_tokens([AddedToken(t, normalized=False) for t in defined])
    # 6,242 '<unusedN>' mean nothing, and as special tokens would cost seconds at every start.
    special = [t for t in _of_kind(CONTROL, tokens, kinds) if not t.startswith("<unused")]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    bos, eos, padding = (tokens[special_ids[name]] for name in ("bos", "eos", "padding"))
    backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, special_ids["bos"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=padding,
        unk_token=unknown,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def merges_by_score(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """Every way to make a normal piece of two others, best score first.

    SentencePiece joins whatever gives a piece, so a piece has as many merges as it has splits.
    """
    normal = {t: s for t, s, kind in zip(tokens, scores, kinds, strict=True) if kind == NORMAL}
    best_first = sorted(normal, key=lambda piece: -normal[piece])
    return [
        (piece[:cut], piece[cut:])
        for piece in best_first
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]


def _of_kind(kind: int, tokens: Sequence[str], kinds: Sequence[int]) -> list[str]:
    return [token for token, token_kind in zip(tokens, kinds, strict=True) if token_kind == kind]


# What a right conversion of the tested files gives: SmolLM2, Gemma 3 270M, Qwen2.5-Coder.


@dataclass(frozen=True)
class Expected:
    """What a right conversion gives; any other answer means a damaged file or a changed library.

    ``probes`` are texts and their token ids, ``lead`` what decoding puts in front of a text (a BOS
    that the tokenizer adds), ``special`` the BOS, EOS and padding tokens, ``config`` entries of
    ``config.json``. ``english_nats`` is the model's loss per token on plain English; ``hub`` the id of
    the publisher's repository, whose tokenizer must give the same ids if the hub's cache has it.
    """

    probes: Mapping[str, list[int]]
    vocabulary_sha256: str
    special: tuple[str | None, str, str]
    english_nats: float
    lead: str = ""
    in_chat_template: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    hub: str | None = None


SMOLLM2_PROBES: dict[str, list[int]] = {
    "Question: What's 1234?\n\nAnswer:": [
        *(17872, 42, 1812, 506, 216, 33, 34, 35, 36, 47, 198, 198, 21350, 42),
    ],
    # Two spaces before a digit are one token, and every digit is its own.
    "x  12 km² and ½ cup\n\n 3rd": [
        *(104, 256, 33, 34, 6381, 19133, 284, 216, 16738, 7118, 8866, 35, 7212),
    ],
    "<|im_start|>user\nHi<|im_end|>\n": [1, 4093, 198, 26843, 2, 198],
    "\u2581low  bar": [11007, 219, 683, 216, 2753],
    " a  b\t c\r\n": [253, 216, 278, 197, 265, 2738],
}

SMOLLM2 = Expected(
    probes=SMOLLM2_PROBES,
    vocabulary_sha256="736ce3145b64b3bc260106f595039c0bb43d1d61451311bc654abdc39aee89ae",
    special=("<|im_start|>", "<|im_end|>", "<|im_end|>"),
    english_nats=2.549,
    in_chat_template="<|im_start|>",
)

# Token ids that the slow reference in the tests gives too; each begins with <bos>.
GEMMA_PROBES: dict[str, list[int]] = {
    # "Question" is one token, and every digit is its own.
    "Question: What's 1234?\n\nAnswer:": [
        *(2, 14977, 236787, 2900, 236789, 236751, 236743, 236770, 236778, 236800, 236812, 236881),
        *(108, 7925, 236787),
    ],
    "x  12 km² and ½ cup\n\n 3rd": [
        *(2, 236781, 138, 236770, 236778, 7251, 238131, 532, 47041, 8578, 108, 236743, 236800),
        7221,
    ],
    # Runs of spaces and tabs are one token, a carriage return has none.
    "a   b\t\tc\r\n": [2, 236746, 139, 236763, 255969, 236755, 251, 107],
    " " * 35 + "x": [2, 167, 140, 236781],
    " Leading and trailing  ": [2, 74924, 532, 45330, 138],
    # A control character and a rare script become bytes.
    "naïve 東京タワー \x07 \U00013000": [
        *(2, 1789, 238527, 560, 86459, 237312, 43071, 236743, 245, 236743, 478, 385, 366, 366),
    ],
    "<start_of_turn>user\nHi<end_of_turn>\n": [2, 105, 2364, 107, 10979, 106, 107],
    "<b>bold</b> <table>\n\n\n": [2, 200, 15640, 209, 236743, 168, 109],
}

GEMMA = Expected(
    probes=GEMMA_PROBES,
    vocabulary_sha256="0fe407bee335c74156d2f25e6de1394c77417e6f2b6af6266a5010b7f7dc9f5d",
    special=("<bos>", "<eos>", "<pad>"),
    english_nats=2.227,
    lead="<bos>",
    config={
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
        "sliding_window": 512,
        "query_pre_attn_scalar": 256,
        "rope_parameters": {
            "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
            "full_attention": {"rope_theta": 1_000_000.0, "rope_type": "default"},
        },
        "vocab_size": 262_144,
    },
)


# Qwen2.5-Coder Instruct, 0.5B and 1.5B. The files hold the input embedding and the output head
# quantised apart, so they are two matrices here, although on the hub they share one. No BOS is added.

# "Question" is one token, every digit is its own, and what is unused has no token.
QWEN_PROBES: dict[str, list[int]] = {
    "Question: What's 1234?\n\nAnswer:": [
        *(14582, 25, 3555, 594, 220, 16, 17, 18, 19, 1939, 16141, 25),
    ],
    "x  12 km² and ½ cup\n\n 3rd": [
        *(87, 220, 220, 16, 17, 13136, 29456, 323, 220, 26062, 10525, 271, 220, 18, 6498),
    ],
    "<|im_start|>user\nHi<|im_end|>\n": [151644, 872, 198, 13048, 151645, 198],
    "\u2581low  bar": [10417, 223, 10303, 220, 3619],
    " a  b\t c\r\n": [264, 220, 293, 197, 272, 319],
    "naïve 東京タワー \x07 \U00013000": [
        *(3376, 37572, 586, 60596, 109, 46553, 46207, 125980, 220, 195, 220, 124373, 222, 222),
    ],
    "DON'T I'll  <tool_call>{}</tool_call><|endoftext|>": [
        *(84641, 17323, 358, 3278, 256, 151657, 6257, 151658, 151643),
    ],
}


def _qwen(size: str, n_layers: int, english_nats: float) -> Expected:
    return Expected(
        probes=QWEN_PROBES,
        vocabulary_sha256="155f81496cab9b26c14e537194c2d81521a53d81fca8463a1eb70a0090150113",
        special=(None, "<|im_end|>", "<|endoftext|>"),
        english_nats=english_nats,
        in_chat_template="<|im_start|>",
        config={
            "num_hidden_layers": n_layers,
            "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"},
            "tie_word_embeddings": False,
            "use_sliding_window": False,
        },
        hub=f"Qwen/Qwen2.5-Coder-{size}-Instruct",
    )


# By the sha256 of the GGUF file.
EXPECTED = {
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53": SMOLLM2,
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818": GEMMA,
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32": _qwen("0.5B", 24, 2.618),
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046": _qwen("1.5B", 28, 2.010),
}
