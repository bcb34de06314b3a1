"""Qwen2.5-Coder Instruct, 0.5B and 1.5B: what a right conversion of the tested GGUF files gives.

The files hold the input embedding and the output head quantised apart, so they are two matrices
here, although the 0.5B and the 1.5B on the hub share one. No BOS is added.
"""

from __future__ import annotations

from bidir_core.data.gguf import Expected

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


def _expected(size: str, width: int, n_layers: int, english_nats: float) -> Expected:
    return Expected(
        probes=QWEN_PROBES,
        vocabulary_sha256="155f81496cab9b26c14e537194c2d81521a53d81fca8463a1eb70a0090150113",
        special=(None, "<|im_end|>", "<|endoftext|>"),
        n_tensors=12 * n_layers + 3,  # embedding, last norm, output head
        n_rows=151_936,
        width=width,
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
QWEN_BY_SHA256 = {
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32": _expected(
        "0.5B", width=896, n_layers=24, english_nats=2.618
    ),
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046": _expected(
        "1.5B", width=1536, n_layers=28, english_nats=2.010
    ),
}
