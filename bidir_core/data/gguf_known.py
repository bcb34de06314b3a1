"""What a right conversion of the tested GGUF files gives: SmolLM2, Gemma 3 270M, Qwen2.5-Coder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
