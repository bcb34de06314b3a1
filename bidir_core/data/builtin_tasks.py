"""The built-in tasks: where their documents are, and how one becomes an item.

Prompts, choices, gold answers and document hashes are those of lm-eval 0.4.13's tasks of the same
names (version 1.0); a test builds lm-eval's own tasks on the same data and compares. A further
built-in task is one more entry in `TASKS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bidir_core.common.errors import UserError
from bidir_core.data.items import Item, hash_doc
from bidir_core.data.source import Dataset, Doc, Rows, open_rows


@dataclass(frozen=True)
class Task:
    """A built-in multiple-choice task: where its documents are, and how one becomes an item.

    The functions take one document (a dict with the dataset's columns, in their order).
    `contexts` returns one prompt, or one per choice; `answers` one text per choice, or one shared
    by all; a space goes in front of each. `gold` is the index of the right choice. `derived`
    returns fields that lm-eval adds to the document: they are part of its hash.

    `prepare` makes the documents of a task from all rows of its split, where one document is not
    enough to say what is asked (options balanced over a set). Tasks of one `family` ask about the
    same documents, which share a `pair_id`; a random sample takes the same ones in each.
    """

    name: str
    data: Dataset
    contexts: Callable[[Doc], list[str]]
    answers: Callable[[Doc], list[str]]
    gold: Callable[[Doc], int]
    derived: Callable[[Doc], Doc] | None = None
    group: Callable[[Doc], str] | None = None
    prepare: Callable[[Sequence[Doc]], list[Doc]] | None = None
    family: str = ""

    def rows(self, split: str, data_source: str) -> Rows:
        """The task's documents in this split; `UserError` where there are none."""
        rows = open_rows(self.name, self.data, split, data_source)
        if self.prepare is None:
            return rows
        docs = self.prepare(rows.take(range(len(rows))))
        return Rows(docs, None, f"{self.name} ({split})")

    def item(self, doc_id: int, doc: Doc) -> Item:
        """The item of one document; `UserError` where the document gives none."""
        try:
            doc = doc | self.derived(doc) if self.derived else doc
            contexts, answers, gold = self.contexts(doc), self.answers(doc), self.gold(doc)
        except (ValueError, IndexError, KeyError) as error:
            raise UserError(
                f"{self.name}: row {doc_id} gives no question with a known answer ({error}); "
                f"is this split published with its answers? 'validation' is"
            ) from error
        n_choices = max(len(contexts), len(answers))
        if not 0 <= gold < n_choices:
            raise UserError(
                f"{self.name}: row {doc_id} has answer number {gold} of {n_choices} choices; "
                f"is this split published with its answers? 'validation' is"
            )
        if n_choices < 2:
            raise UserError(
                f"{self.name}: row {doc_id} has one choice, so there is nothing to choose from; "
                "leave it out of the data"
            )
        continuations = tuple(f" {answer}" for answer in answers)
        return Item(
            task=self.name,
            doc_id=doc_id,
            doc_hash=hash_doc(doc),
            gold=gold,
            contexts=tuple(contexts),
            continuations=continuations * n_choices if len(answers) == 1 else continuations,
            prompt_group=self.group(doc) if self.group else "",
            pair_id=doc.get("pair_id"),
        )


# --- hellaswag ------------------------------------------------------------------------------


def _hellaswag_clean(text: str) -> str:
    """lm-eval's clean-up of WikiHow's markers: titles become sentences, other brackets go."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _hellaswag_derived(doc: Doc) -> Doc:
    # capitalize() also lower-cases the rest of ctx_b; lm-eval does so, and scores depend on it.
    context = f"{doc['ctx_a']} {doc['ctx_b'].capitalize()}"
    return {
        "query": _hellaswag_clean(f"{doc['activity_label']}: {context}"),
        "choices": [_hellaswag_clean(ending) for ending in doc["endings"]],
        "gold": int(doc["label"]),
    }


HELLASWAG = Task(
    # <activity_label>: <ctx_a> <Ctx_b> | <ending>
    # "Roof shingle removal: A man is sitting on a roof. He" | " starts pulling up roofing on a roof."
    name="hellaswag",
    data=Dataset(
        hub_id="Rowan/hellaswag",
        folder="hellaswag/none",
        columns={
            "ind": int,
            "activity_label": str,
            "ctx_a": str,
            "ctx_b": str,
            "ctx": str,
            "endings": [str],
            "source_id": str,
            "split": str,
            "split_type": str,
            "label": str,
        },
    ),
    derived=_hellaswag_derived,
    contexts=lambda doc: [doc["query"]],
    answers=lambda doc: doc["choices"],
    gold=lambda doc: int(doc["label"]),
    # source_id is "activitynet~v_-JhWjGDPHMY" or "wikihow~23242".
    group=lambda doc: doc["source_id"].partition("~")[0],
)

# --- piqa -----------------------------------------------------------------------------------

PIQA = Task(
    # Question: <goal>\nAnswer: | <sol1 or sol2>
    # "Question: How do I ready a guinea pig cage for it's new occupants?\nAnswer:"
    # | " Provide the guinea pig with a cage full of a few inches of bedding made of ripped paper [..]"
    name="piqa",
    data=Dataset(
        hub_id="baber/piqa",
        folder="piqa/plain_text",
        columns={"goal": str, "sol1": str, "sol2": str, "label": int},
    ),
    contexts=lambda doc: [f"Question: {doc['goal']}\nAnswer:"],
    answers=lambda doc: [doc["sol1"], doc["sol2"]],
    gold=lambda doc: doc["label"],
)

# --- arc ------------------------------------------------------------------------------------


def _arc(name: str, config: str) -> Task:
    # Question: <question>\nAnswer: | <choice>        (3 to 5 choices, labelled A.. or 1..)
    # "Question: Which technology was developed most recently?\nAnswer:" | " cellular telephone"
    return Task(
        name=name,
        data=Dataset(
            hub_id="allenai/ai2_arc",
            hub_config=config,
            folder=f"ai2_arc/{config}",
            columns={
                "id": str,
                "question": str,
                "choices": {"text": [str], "label": [str]},
                "answerKey": str,
            },
        ),
        contexts=lambda doc: [f"Question: {doc['question']}\nAnswer:"],
        answers=lambda doc: doc["choices"]["text"],
        gold=lambda doc: doc["choices"]["label"].index(doc["answerKey"]),
    )


# --- winogrande -----------------------------------------------------------------------------

WINOGRANDE = Task(
    # <before _><option> | <after _>        (the context differs per choice, the continuation is shared)
    # "Sarah was a much better surgeon than Maria so Sarah", "[..] so Maria"
    # | " always got the easier cases."
    name="winogrande",
    data=Dataset(
        hub_id="allenai/winogrande",
        hub_config="winogrande_xl",
        folder="winogrande/winogrande_xl",
        columns={"sentence": str, "option1": str, "option2": str, "answer": str},
    ),
    contexts=lambda doc: [
        doc["sentence"][: doc["sentence"].index("_")] + doc[option]
        for option in ("option1", "option2")
    ],
    answers=lambda doc: [doc["sentence"].partition("_")[2].strip()],
    gold=lambda doc: ("1", "2").index(doc["answer"]),
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        HELLASWAG,
        PIQA,
        _arc("arc_easy", "ARC-Easy"),
        _arc("arc_challenge", "ARC-Challenge"),
        WINOGRANDE,
    )
}
