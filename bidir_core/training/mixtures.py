"""The two embedded training mixtures, ``near`` and ``far``, from other tasks' requests.

The data wheel holds, beside the five evaluation tasks, some 45 other tasks as request files
(``<task>/<variant>/requests.jsonl.gz``). A training sample is the task's zero-shot prompt and its
right answer:

    {"task": "openbookqa", "prompt": "Question: ... they are known as\\nAnswer:",
     "response": " Deep sea animals"}

``near`` holds all of those tasks, in the wording of their own prompts, which for many is the very
wording that PIQA and ARC use ("Question: ...\\nAnswer:"). ``far`` leaves out the six tasks that
resemble the evaluation tasks in substance, and asks in other words: a line that starts with
"Question:" starts with "Request:" instead, "Answer:" becomes "Reply:", "Goal:" becomes "Aim:".

Never used: the five evaluation tasks, and any benchmark whose authors put a canary string in
their data to say that nobody should train on it.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bidir_core.errors import UserError

Mixture = Literal["near", "far"]
MIXTURES: tuple[Mixture, ...] = ("near", "far")
EVALUATION_TASKS = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande")
NOT_IN_FAR = ("openbookqa", "sciq", "csqa", "socialiqa", "medmcqa", "medqa")

# Folder names that name an evaluation task in any spelling ("ARC-Easy", "val_piqa", ...).
_EVALUATION_NAME = re.compile(r"hellaswag|piqa|(^|[^a-z])arc([^a-z]|$)|winogrande", re.IGNORECASE)
# "rc" (each choice scored as a text) and "bpb" (the answer scored as a text): answers in words.
# In the other variants the answer is a letter.
_VARIANT = re.compile(r"(^|_)(rc|bpb)_")
_OTHER_WORDS = {"Question:": "Request:", "Answer:": "Reply:", "Goal:": "Aim:"}
_EVALUATION_WORDS = re.compile(r"(?m)^[ \t]*(Question:|Answer:|Goal:)")


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt and its response; ``task`` and ``index`` say where it came from."""

    prompt: str
    response: str
    task: str
    index: int


def read_mixture(mixture: Mixture, folder: Path) -> list[Sample]:
    """All samples of a mixture, without duplicates, in a fixed order.

    ``folder`` holds ``<task>/<variant>/requests.jsonl.gz``. Raises UserError if it holds none.
    """
    samples: list[Sample] = []
    for task_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        if usable(task_folder.name, mixture):
            pairs = dict.fromkeys(_pairs(task_folder))  # keeps the first of each, in order
            for index, (prompt, response) in enumerate(pairs):
                if mixture == "far":
                    prompt = in_other_words(prompt)
                samples.append(Sample(prompt, response, task_folder.name, index))
    if not samples:
        raise UserError(f"no request files for training mixture '{mixture}' in {folder}")
    return without_duplicates(samples)


def usable(task: str, mixture: Mixture) -> bool:
    """Whether a task of the wheel belongs to the mixture, by its folder name."""
    if _EVALUATION_NAME.search(task):
        return False
    return mixture == "near" or not task.startswith(NOT_IN_FAR)


def without_duplicates(samples: list[Sample]) -> list[Sample]:
    """The first of every (prompt, response), in order."""
    first: dict[tuple[str, str], Sample] = {}
    for sample in samples:
        first.setdefault((sample.prompt, sample.response), sample)
    return list(first.values())


def in_other_words(prompt: str) -> str:
    """The prompt without the wording of the evaluation tasks' templates."""
    return _EVALUATION_WORDS.sub(lambda match: _OTHER_WORDS[match[1]], prompt)


def has_evaluation_template(prompt: str) -> bool:
    """Whether a line of the prompt starts as PIQA's or ARC's templates do."""
    return bool(_EVALUATION_WORDS.search(prompt))


def _pairs(task_folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(task_folder.glob("*/requests.jsonl.gz")):
        if not _VARIANT.search(path.parent.name):
            continue
        previous: Any = None
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                doc = json.loads(line)["doc"]
                if doc != previous and "canary" not in doc:  # one request per choice follows
                    prompt = _prompt(doc, task_folder.name)
                    yield prompt, _response(doc, prompt)
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
