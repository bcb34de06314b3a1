"""Gemma 3 from a GGUF file: its tokenizer rebuilt as what it is, a SentencePiece BPE.

transformers' own conversion (5.17, ``GGUFGemmaConverter``) reads the file's scores as a Unigram
model's log-probabilities. They are merge ranks: "Question" falls into three tokens, no ``<bos>``
stands in front, and the model answers at chance. Here the tokenizer follows SentencePiece's rules:

1. user-defined pieces (runs of spaces and of newlines, HTML tags) are cut out first, the longest
   that fits;
2. in what is left, the two neighbours whose joint piece has the highest score are joined, again
   and again; only normal pieces come about this way;
3. a character that is no piece becomes its UTF-8 bytes.

One rule is the Gemma team's own tokenizer file's and not SentencePiece's: the name of a control
token in a text (``<bos>``) is that token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bidir_core.errors import UserError
from bidir_core.gguf_convert import Expected, convert

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # GGUF's kinds of tokens
SPACE = "\u2581"  # SentencePiece writes a space so

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
    n_tensors=236,
    width=640,
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


def convert_gemma(gguf: Path, out: Path, say: Callable[[str], None]) -> None:
    """Write Gemma 3 270M's configuration, weights (bf16) and tokenizer into ``out``, checked."""
    convert(gguf, out, say, build_tokenizer, GEMMA)


def build_tokenizer(gguf: Path) -> Any:
    """A fast tokenizer, with offsets, from a GGUF file's tokens, scores, kinds and special ids."""
    from gguf import GGUFReader

    fields = GGUFReader(str(gguf)).fields

    def table(name: str) -> Any:
        return fields[f"tokenizer.ggml.{name}"].contents()

    if (kind := table("model")) != "llama":
        raise UserError(f"{gguf.name}: tokenizer kind {kind} is not SentencePiece ('llama')")
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
    backend.add_tokens([AddedToken(t, normalized=False) for t in _of(USER_DEFINED, tokens, kinds)])
    # 6,242 '<unusedN>' mean nothing, and as special tokens would cost seconds at every start.
    meant = [t for t in _of(CONTROL, tokens, kinds) if not t.startswith("<unused")]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in meant])
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


def _of(kind: int, tokens: Sequence[str], kinds: Sequence[int]) -> list[str]:
    return [token for token, one in zip(tokens, kinds, strict=True) if one == kind]
