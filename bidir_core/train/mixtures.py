"""The embedded training mixtures, ``near``, ``far`` and ``farther``, from other tasks' requests.

The data wheel holds, beside the five evaluation tasks, some 45 other tasks as request files
(``<task>/<variant>/requests.jsonl.gz``). A training sample is the task's zero-shot prompt and its
right answer:

    {"task": "openbookqa", "prompt": "Question: ... they are known as\nAnswer:",
     "response": " Deep sea animals"}

``near`` holds all of those tasks, in the wording of their own prompts, which for many is the very
wording that PIQA and ARC use ("Question: ...\nAnswer:"). ``far`` leaves out the six tasks that
resemble the evaluation tasks in substance, and asks in other words: a line that starts with
"Question:" starts with "Request:" instead, "Answer:" becomes "Reply:", "Goal:" becomes "Aim:".

The order tasks (``builtin_tasks``) ask about SciQ's and BoolQ's validation documents. ``near`` holds
both, ``far`` holds BoolQ's, and a checkpoint trained on them is refused there.
``farther`` is ``far`` without BoolQ and without samples that share text with the order tasks.

Never used: the five evaluation tasks, and any benchmark whose authors put a canary string in
their data to say that nobody should train on it.
"""

from __future__ import annotations

import gzip
import html
import itertools
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from bidir_core.common.errors import UserError

Mixture = Literal["near", "far", "farther"]
MIXTURES: tuple[Mixture, ...] = ("near", "far", "farther")
NOT_IN_FAR = ("openbookqa", "sciq", "csqa", "socialiqa", "medmcqa", "medqa")
NOT_IN_FARTHER = (*NOT_IN_FAR, "boolq")

# Folder names that name an evaluation task in any spelling ("ARC-Easy", "val_piqa", ...).
_EVALUATION_NAME = re.compile(r"hellaswag|piqa|(^|[^a-z])arc([^a-z]|$)|winogrande", re.IGNORECASE)

# "rc" (each choice scored as a text) and "bpb" (the answer scored as a text): answers in words.
# In the other variants the answer is a letter.
_VARIANT = re.compile(r"(^|_)(rc|bpb)_")
_OTHER_WORDS = {"Question:": "Request:", "Answer:": "Reply:", "Goal:": "Aim:"}
_EVALUATION_WORDS = re.compile(r"(?m)^[ \t]*(Question:|Answer:|Goal:)")


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt and its response; ``task`` and ``index`` say where it came from.

    ``plain``: what both say, where a chat template was written around them.
    """

    prompt: str
    response: str
    task: str
    index: int
    plain: str | None = None

    @property
    def text(self) -> str:
        """Both sides, without the words of a chat template."""
        return self.plain or f"{self.prompt}\n{self.response}"


def read_mixture(mixture: Mixture, folder: Path) -> list[Sample]:
    """All samples of a mixture, without duplicates, in a fixed order.

    ``folder`` holds ``<task>/<variant>/requests.jsonl.gz``. Raises UserError if it holds none.
    """
    samples: list[Sample] = []
    for task, files in _files(mixture, folder):
        # keeps the first of each, in order
        pairs = dict.fromkeys(pair for path in files for pair, _ in _pairs_of(path, task))
        for index, (prompt, response) in enumerate(pairs):
            if mixture != "near":  # without the wording of the evaluation tasks' templates
                prompt = _EVALUATION_WORDS.sub(lambda match: _OTHER_WORDS[match[1]], prompt)
            samples.append(Sample(prompt, response, task, index))
    if not samples:
        raise UserError(f"no request files for training mixture '{mixture}' in {folder}")
    return without_duplicates(samples)


def usable(task: str, mixture: Mixture) -> bool:
    """Whether a task of the wheel belongs to the mixture, by its folder name."""
    if _EVALUATION_NAME.search(task):
        return False
    if mixture == "near":
        return True
    return not task.startswith(NOT_IN_FAR if mixture == "far" else NOT_IN_FARTHER)


def without_duplicates(samples: list[Sample]) -> list[Sample]:
    """The first of every (prompt, response), in order."""
    unique: dict[tuple[str, str], Sample] = {}
    for sample in samples:
        unique.setdefault((sample.prompt, sample.response), sample)
    return list(unique.values())


def outline(mixture: Mixture, folder: Path, per_file: int = 32) -> dict[tuple[str, str], float]:
    """The first prompts and responses of each file, and how many samples each stands for.

    To count with before a run, in a tenth of the time of :func:`read_mixture`: how many there are is
    told from the share of the file that the first ones take.
    """
    counts: dict[tuple[str, str], float] = {}
    for task, files in _files(mixture, folder):
        for path in files:
            first_pairs = list(itertools.islice(_pairs_of(path, task), per_file))
            stands_for = 1.0
            if len(first_pairs) == per_file:
                with open(path, "rb") as file:
                    file.seek(-4, 2)  # gzip ends with how long the whole text is
                    stands_for = int.from_bytes(file.read(), "little") / first_pairs[-1][1]
            for pair, _ in first_pairs:  # variants of a task hold the same ones
                counts.setdefault(pair, stands_for)
    return counts


def _files(mixture: Mixture, folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Each of the mixture's tasks, with its request files."""
    for task in sorted(path for path in folder.iterdir() if path.is_dir()):
        if usable(task.name, mixture):
            paths = sorted(task.glob("*/requests.jsonl.gz"))
            yield task.name, [path for path in paths if _VARIANT.search(path.parent.name)]


def _pairs_of(path: Path, task: str) -> Iterator[tuple[tuple[str, str], int]]:
    """Prompts and responses of one file, and how many bytes of its text were read up to each."""
    previous: Any = None
    consumed = 0
    with gzip.open(path, "rb") as lines:
        for line in lines:
            consumed += len(line)
            doc = json.loads(line)["doc"]
            if doc != previous and "canary" not in doc:  # one request per choice follows
                prompt = _prompt(doc, task)
                yield (prompt, _response(doc, prompt)), consumed
            previous = doc


def _prompt(doc: dict[str, Any], task: str) -> str:
    """The zero-shot prompt. Every task says it in one of these fields."""
    if "evidence" in doc or "metadata" in doc:
        return f"{doc['source']}\nQuestion: {doc['question']}\nAnswer:"  # qasper, sciriff
    if "Question:" in doc.get("query", "") or doc.get("query", "").startswith("Problem:"):
        return doc["query"]
    if task.startswith("basic_skills") or "question" not in doc:
        # a text to go on with (lambada, basic_skills), or code to write
        if "text" in doc:
            return f"{doc['text']}\n```{doc.get('language', 'python')}\n"
        return doc.get("query") or doc.get("prompt") or doc["question"]
    return f"Question: {doc['question']}\nAnswer:"


def _response(doc: dict[str, Any], prompt: str) -> str:
    answer = doc["choices"][doc.get("gold") or 0]
    if isinstance(answer, list):  # drop: a list of spans
        answer = ", ".join(answer)
    answer = answer.replace("\r\n", "\n")
    return answer if prompt[-1:].isspace() else " " + answer.lstrip(" ")


# Leave out training samples that share text with the evaluation items.

SPAN = 13

_LABELS = (
    "question|answer|goal|request|reply|aim|passage|context|problem|solution|title|background|"
    "instruction|input|output|response|user|assistant|human|ai|q|a|ans|sol"
)

# Of lower-cased texts: "question:", "### question #3:", "**answer**:", "(q)" and "a." begin a line, or
# are all of it; "q:", "a:" and "[answer]" stand anywhere.
_LABEL = re.compile(
    rf"(?m)^[^\w\n]{{0,20}}(?:{_LABELS})[ \t]{{0,4}}#?\d{{0,6}}[ \t*_]{{0,4}}(?::|[.)\]–—-](?=\s|$)|$)"
)
_INLINE_LABEL = re.compile(
    r"\b(?:q|a|question|answer)[ \t]{0,4}\d{0,6}[ \t*]{0,4}:|[\[<]/?(?:q|a|question|answer)\d{0,6}[\]>]"
)
# Fillers, joiners and variation selectors: not seen, like the characters of category Cf.
_FILLERS = "\u034f\u115f\u1160\u180b\u180c\u180d" + "".join(map(chr, range(0xFE00, 0xFE10)))
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
    """Lower-cased, without punctuation, without template labels.

    Letters that only look otherwise (full width, ligatures, composed of parts, HTML's entities)
    become the plain ones, and characters that are not seen (soft hyphens, zero-width ones) go.
    """
    text = html.unescape(text)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_unseen())
    return _WORD.findall(_INLINE_LABEL.sub(" ", _LABEL.sub(" ", text.casefold())))


@cache
def _unseen() -> dict[int, None]:
    """What ``str.translate`` takes out: all characters that are not seen."""
    formats = (n for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n)) == "Cf")
    return dict.fromkeys([*formats, *map(ord, _FILLERS)])


def decontaminate(
    samples: Sequence[Sample], evaluation: Iterable[EvaluationText]
) -> tuple[list[Sample], list[Dropped]]:
    """Split ``samples`` into the clean ones, in order, and the dropped ones with their match."""
    held_out = list(evaluation)
    vocabulary: dict[str, int] = {}
    tests = _Texts([entry.text for entry in held_out], vocabulary)
    trains = _Texts([sample.text for sample in samples], vocabulary)
    match = np.full(len(samples), -1)
    shared = np.zeros(len(samples), dtype=np.int64)

    def compare(length: int, train: _Spans, test: _Spans) -> None:
        test = test.only(_is_in(test.hash, train.hash))
        train = train.only(_is_in(train.hash, test.hash))
        order = np.argsort(test.hash, kind="stable")
        first = np.searchsorted(test.hash[order], train.hash)
        for sample_index, item_index in zip(train.text, test.text[order][first]):
            if match[sample_index] < 0:
                match[sample_index], shared[sample_index] = item_index, length

    compare(SPAN, trains.spans(SPAN), tests.spans(SPAN))
    for length in range(SPAN - 1, 0, -1):  # shorter texts, as a whole
        test = tests.whole(length)
        if len(test.hash):
            compare(length, trains.spans(length), test)
        train = trains.whole(length)
        if len(train.hash):
            compare(length, train, tests.spans(length))
    clean = [sample for sample, item_index in zip(samples, match) if item_index < 0]
    dropped = [
        Dropped(sample.task, sample.index, held_out[i].task, held_out[i].index, int(n_words))
        for sample, i, n_words in zip(samples, match, shared)
        if i >= 0
    ]
    return clean, dropped


def _is_in(values: np.ndarray, others: np.ndarray) -> np.ndarray:
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
