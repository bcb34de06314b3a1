"""Samples to token ids, cut into prompt and response exactly where evaluation would cut.

The boundary is lm-eval's, as in ``bidir_core.encoding``: white space that ends the prompt moves to
the response; the prompt alone and prompt plus response are tokenised separately, and the second is
cut at the length of the first. It matters more than usual, since bidirectional attention ends
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bidir_core.encoding import n_appended
from bidir_core.errors import UserError
from bidir_core.training.mixtures import Sample

OverLong = Literal["drop", "truncate"]


@dataclass(frozen=True)
class EncodedSamples:
    """All samples as one flat array: sample ``i`` is ``ids[start[i] : start[i] + n_total[i]]``.

    The first ``n_prompt[i]`` of them are its prompt. ``source[i]`` is its index in the list that
    was encoded. The counts say what did not come through whole.
    """

    ids: np.ndarray  # int32
    start: np.ndarray  # int64
    n_prompt: np.ndarray  # int64
    n_total: np.ndarray  # int64
    source: np.ndarray  # int64
    n_dropped_long: int = 0
    n_truncated: int = 0
    n_dropped_empty: int = 0
    n_boundary_merges: int = 0
    bos_added: bool = False

    def __len__(self) -> int:
        return len(self.start)

    def sample(self, index: int) -> np.ndarray:
        """The token ids of one sample: prompt, then response."""
        return self.ids[self.start[index] : self.start[index] + self.n_total[index]]


def encode_samples(
    samples: Sequence[Sample],
    tokenizer: Any,
    *,
    max_tokens: int,
    over_long: OverLong = "drop",
    append_eos: bool = True,
) -> EncodedSamples:
    """Tokenise all samples.

    ``over_long``: what happens to samples of more than ``max_tokens`` tokens. ``truncate`` cuts
    the beginning of the prompt, since its end holds the question, and keeps a leading BOS; a
    response that fills the window by itself is dropped all the same. ``append_eos`` ends each
    response with the tokenizer's EOS token, unless it ends with it already.
    """
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if append_eos and eos is None:
        raise UserError("this tokenizer has no EOS token to end a response with; --no-append-eos")
    kept: list[np.ndarray] = []
    n_prompt: list[int] = []
    source: list[int] = []
    long = truncated = empty = merges = 0
    for index, (prompt, response, merged) in enumerate(_encode_pairs(samples, tokenizer)):
        if append_eos and response[-1:] != [eos]:
            response = [*response, eos]
        if not prompt or len(response) <= int(append_eos):
            empty += 1
            continue
        room = max_tokens - len(response)
        if len(prompt) > room:
            head = prompt[:1] if prompt[0] == bos else []
            if over_long == "drop" or room <= len(head):
                long += 1
                continue
            prompt = head + prompt[len(prompt) - room + len(head) :]
            truncated += 1
        merges += merged
        kept.append(np.array(prompt + response, dtype=np.int32))
        n_prompt.append(len(prompt))
        source.append(index)
    if not kept:
        raise UserError(
            f"none of the {len(samples)} samples can be used: {long} have more than {max_tokens} "
            f"tokens and {empty} have an empty side; raise --max-tokens, or --over-long truncate"
        )
    n_total = np.array([len(ids) for ids in kept], dtype=np.int64)
    return EncodedSamples(
        ids=np.concatenate(kept),
        start=np.cumsum(n_total) - n_total,
        n_prompt=np.array(n_prompt, dtype=np.int64),
        n_total=n_total,
        source=np.array(source, dtype=np.int64),
        n_dropped_long=long,
        n_truncated=truncated,
        n_dropped_empty=empty,
        n_boundary_merges=merges,
        bos_added=bos is not None and any(ids[0] == bos for ids in kept),
    )


def _encode_pairs(
    samples: Sequence[Sample], tokenizer: Any
) -> list[tuple[list[int], list[int], bool]]:
    """Prompt ids, response ids, and whether a token reached across the boundary."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    bos = tokenizer.bos_token_id
    bos_text = None if bos is None else tokenizer.decode([bos])
    appended = n_appended(backend)
    stems = [sample.prompt.rstrip() for sample in samples]
    wholes = [sample.prompt + sample.response for sample in samples]

    def encode(texts: list[str]) -> list[list[int]]:
        # A text that brings its own BOS (chat templates do) gets none from the tokenizer.
        own = [bos_text is not None and text.startswith(bos_text) for text in texts]
        ids: list[list[int]] = [[]] * len(texts)
        for brings in (False, True):
            where = [i for i, has in enumerate(own) if has is brings]
            batch = [texts[i] for i in where]
            encoded = backend.encode_batch_fast(batch, add_special_tokens=not brings)
            tail = 0 if brings else appended
            for i, encoding in zip(where, encoded):
                ids[i] = encoding.ids[: len(encoding.ids) - tail]
        return ids

    pairs = []
    for stem, whole in zip(encode(stems), encode(wholes)):
        pairs.append((stem, whole[len(stem) :], whole[: len(stem)] != stem))
    return pairs
