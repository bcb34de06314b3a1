"""Leave out training samples that share text with the evaluation items.

A sample is dropped if it shares 13 consecutive words with any evaluation item (the span of the
GPT-3 paper, appendix C), or, where one of the two texts is shorter than that, if the whole shorter
text occurs in the longer one. Words are lower-cased runs of letters and digits; the labels of
prompt templates at the start of a line ("Question:", "Answer:", "Reply:", ...) don't count, so
that the wording of a template neither hides nor makes a match.

Everything runs on 64-bit rolling hashes of word ids in numpy: 14,000 items with all their choices
against 50,000 samples take seconds. Two different spans share a hash with a probability of about
1e-6 for the whole comparison, which costs at most one sample dropped for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bidir_core.training.mixtures import Sample

SPAN = 13
_LABELS = "question|answer|goal|request|reply|aim|passage|context|problem|solution|title|background"
_LABEL = re.compile(rf"(?m)^[ \t]*(?:{_LABELS}):", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that powers never vanish mod 2**64


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """One text of an evaluation item: its context with one of its choices."""

    task: str
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """A training sample and the first evaluation item that it shares text with."""

    task: str
    index: int
    evaluation_task: str
    evaluation_index: int
    shared_words: int


def words(text: str) -> list[str]:
    """Lower-cased, without punctuation, without template labels."""
    return _WORD.findall(_LABEL.sub(" ", text).lower())


def decontaminate(
    samples: Sequence[Sample], evaluation: Iterable[EvaluationText]
) -> tuple[list[Sample], list[Dropped]]:
    """Split ``samples`` into the clean ones, in order, and the dropped ones with their match."""
    held_out = list(evaluation)
    vocabulary: dict[str, int] = {}
    tests = _Texts([entry.text for entry in held_out], vocabulary)
    trains = _Texts([f"{sample.prompt}\n{sample.response}" for sample in samples], vocabulary)
    match = np.full(len(samples), -1)
    shared = np.zeros(len(samples), dtype=np.int64)

    def compare(length: int, train: _Spans, test: _Spans) -> None:
        test = test.only(_among(test.hash, train.hash))
        train = train.only(_among(train.hash, test.hash))
        order = np.argsort(test.hash, kind="stable")
        first = np.searchsorted(test.hash[order], train.hash)
        for text, found in zip(train.text, test.text[order][first]):
            if match[text] < 0:
                match[text], shared[text] = found, length

    compare(SPAN, trains.spans(SPAN), tests.spans(SPAN))
    for length in range(SPAN - 1, 0, -1):
        for short, other in ((tests, trains), (trains, tests)):
            whole = short.whole(length)
            if len(whole.hash):
                both = (whole, other.spans(length))
                compare(length, *(both if short is trains else both[::-1]))
    clean = [sample for sample, found in zip(samples, match) if found < 0]
    dropped = [
        Dropped(
            sample.task, sample.index, held_out[found].task, held_out[found].index, int(n_words)
        )
        for sample, found, n_words in zip(samples, match, shared)
        if found >= 0
    ]
    return clean, dropped


def _among(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which ``values`` occur in ``others``, by binary search (np.isin hashes: 5 times slower)."""
    if not len(others):
        return np.zeros(len(values), dtype=bool)
    ordered = np.sort(others)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


class _Spans(NamedTuple):
    hash: np.ndarray  # uint64
    text: np.ndarray  # which text the span is from

    def only(self, keep: np.ndarray) -> _Spans:
        return _Spans(self.hash[keep], self.text[keep])


class _Texts:
    """Texts as one long array of word ids, with spans that never cross a text's end."""

    def __init__(self, texts: Sequence[str], vocabulary: dict[str, int]):
        split = [words(text) for text in texts]
        ids = [vocabulary.setdefault(word, len(vocabulary)) for text in split for word in text]
        # One multiplication and shift spreads the small ids over 64 bits.
        mixed = (np.array(ids, dtype=np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
        self.length = np.array([len(text) for text in split], dtype=np.int64)
        self.start = np.cumsum(self.length) - self.length
        self.text = np.repeat(np.arange(len(split)), self.length)
        # The hash of words i..j-1 is sum(word[k] * M**(k-i)), read off one running sum.
        power = np.full(len(ids) + 1, _MULTIPLIER, dtype=np.uint64)
        inverse = np.full(len(ids) + 1, pow(int(_MULTIPLIER), -1, 2**64), dtype=np.uint64)
        power[0] = inverse[0] = 1
        self.shrink = np.cumprod(inverse)
        self.running = np.zeros(len(ids) + 1, dtype=np.uint64)
        np.cumsum(mixed * np.cumprod(power)[:-1], out=self.running[1:])

    def spans(self, length: int) -> _Spans:
        """Hashes of all spans of ``length`` words."""
        count = max(len(self.text) - length + 1, 0)
        value = (self.running[length:] - self.running[:count]) * self.shrink[:count]
        inside = self.text[:count] == self.text[length - 1 :]
        return _Spans(value[inside], self.text[:count][inside])

    def whole(self, length: int) -> _Spans:
        """Hashes of the texts that are just ``length`` words long."""
        text = np.flatnonzero(self.length == length)
        start = self.start[text]
        value = (self.running[start + length] - self.running[start]) * self.shrink[start]
        return _Spans(value, text)
