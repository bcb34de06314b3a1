"""The one call that turns task names into items.

A name is a built-in task's (see `builtin_tasks`), or the path of a user's own JSONL file (see
`custom_task`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from bidir_core.common.errors import UserError
from bidir_core.data import sampling
from bidir_core.data.custom import is_custom_task, read_custom_task
from bidir_core.data.items import Item, ItemList, ItemSource, hash_doc
from bidir_core.data.sampling import Context, Fold, Sample, fewshot_prefixes
from bidir_core.data.source import Dataset, Doc, Rows, open_rows


@dataclass(frozen=True)
class _TaskRows:
    """A built-in task on one split: an `ItemSource`."""

    task: Task
    rows: Rows

    @property
    def name(self) -> str:
        return self.task.name

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, doc_ids: Sequence[int]) -> list[Item]:
        return [self.task.item(i, doc) for i, doc in zip(doc_ids, self.rows.take(doc_ids))]


def task_names(tasks: Sequence[str]) -> list[str]:
    """The names under which these tasks are recorded: a user's file by its stem.

    Needs no data, so that a typo is told before anything is fetched. `UserError` on an unknown
    task, a task given twice, a missing file, and a file named like a built-in task.
    """
    if not tasks:
        raise UserError(
            f"no task was given; tasks are {', '.join(TASKS)} or a path to a .jsonl file"
        )
    names: list[str] = []
    for task in tasks:
        name = task
        if is_custom_task(task) and task not in TASKS:
            name = Path(task).stem
            if not Path(task).is_file():
                raise UserError(
                    f"task file {task!r} does not exist or is not a file; give the path of a .jsonl "
                    "file with items"
                )
            if name in TASKS:
                raise UserError(
                    f"task file {task!r} is named like the built-in task {name!r}; rename the file"
                )
        elif task not in TASKS:
            close = get_close_matches(task, TASKS, n=1)
            raise UserError(
                f"unknown task {task!r}{f', did you mean {close[0]!r}' if close else ''}; use one "
                f"of {', '.join(TASKS)}, or the path of a .jsonl file"
            )
        if name in names:
            raise UserError(f"task {name!r} is given twice; name each task once")
        names.append(name)
    return names


def check_selection(
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    sample: str = "first",
    fold: str = "all",
    context: str = "full",
    num_fewshot: int = 0,
) -> None:
    """Every check of the arguments that needs no data; `UserError` with the remedy."""
    task_names(tasks)
    sampling.check_options(limit, sample, fold, context)
    if num_fewshot < 0:
        raise UserError(f"num_fewshot is {num_fewshot}; it is a count of examples, 0 or more")


def _open(task: str, split: str, data_source: str) -> ItemSource:
    if task in TASKS:
        return _TaskRows(TASKS[task], open_rows(task, TASKS[task].data, split, data_source))
    return ItemList(Path(task).stem, read_custom_task(Path(task)))


def _fewshot_pool(source: ItemSource, data_source: str) -> ItemSource:
    """Where few-shot examples come from: the training split, as in lm-eval; a user's own file."""
    if not isinstance(source, _TaskRows):
        return source
    try:
        return _open(source.name, "train", data_source)
    except UserError as error:
        raise UserError(
            f"{source.name}: few-shot examples come from the 'train' split, which this data source "
            f"does not have; use --data-source hub, a folder that has it, or --num-fewshot 0 "
            f"({error})"
        ) from error


def load_items(
    tasks: Sequence[str],
    *,
    split: str = "validation",
    limit: int | None = None,
    sample: Sample = "first",
    seed: int = 0,
    fold: Fold = "all",
    num_fewshot: int = 0,
    context: Context = "full",
    data_source: str = "auto",
) -> list[Item]:
    """The items to score, task by task in the order given, each task's in the order of its split.

    `limit` is per task and comes first (`sample` says how the limited items are drawn), `fold`
    then keeps a half of them. What an item looks like (its few-shot examples, its shuffled
    context) depends on the split and the seed alone, so two runs with other limits or folds still
    pair. A user's file is its own split: `split` does not apply to it.

    Raises `UserError` on bad arguments, data that is not there, and a selection that is empty.
    """
    check_selection(
        tasks, limit=limit, sample=sample, fold=fold, context=context, num_fewshot=num_fewshot
    )
    items: list[Item] = []
    for task in tasks:
        source = _open(task, split, data_source)
        chosen = sampling.choose(source, limit=limit, sample=sample, seed=seed)
        needed: Sequence[int] = chosen
        if context == "shuffled":  # an item's new context may come from anywhere in the split
            needed = range(len(source))
        elif num_fewshot:  # its examples come from a random stream over the rows before it
            needed = range(chosen[-1] + 1)
        found = source.take(needed)
        if num_fewshot:
            pool = _fewshot_pool(source, data_source)
            headroom = not (isinstance(source, _TaskRows) and split == "test")
            prefixes = fewshot_prefixes(pool, found, num_fewshot, seed=seed, headroom=headroom)
            found = [
                replace(item, contexts=tuple(prefix + text for text in item.contexts))
                for item, prefix in zip(found, prefixes)
            ]
        found = sampling.with_context(found, context, seed=seed)
        kept = set(chosen)
        found = sampling.fold_items((i for i in found if i.doc_id in kept), fold)
        if not found:
            raise UserError(
                f"{source.name}: fold {fold!r} holds none of the {len(chosen)} chosen items; "
                f"raise the limit"
            )
        items += found
    return items


def load_items_by_id(
    task: str, doc_ids: Sequence[int], *, split: str = "validation", data_source: str = "auto"
) -> list[Item]:
    """The zero-shot items of these rows: how readers of a compact run get its texts back.

    Compare each `doc_hash` with the record's: rows only say where to look.
    """
    task_names([task])
    source = _open(task, split, data_source)
    bad = [i for i in doc_ids if not 0 <= i < len(source)]
    if bad:
        raise UserError(
            f"{source.name}: row {bad[0]} is outside the {len(source)} rows of its split"
        )
    return source.take(doc_ids)


# The built-in tasks: where their documents are, and how one becomes an item.


@dataclass(frozen=True)
class Task:
    """A built-in multiple-choice task: where its documents are, and how one becomes an item.

    The functions take one document (a dict with the dataset's columns, in their order).
    `contexts` returns one prompt, or one per choice; `answers` one text per choice, or one shared
    by all; a space goes in front of each. `gold` is the index of the right choice. `derived`
    returns fields that lm-eval adds to the document: they are part of its hash.
    """

    name: str
    data: Dataset
    contexts: Callable[[Doc], list[str]]
    answers: Callable[[Doc], list[str]]
    gold: Callable[[Doc], int]
    derived: Callable[[Doc], Doc] | None = None
    group: Callable[[Doc], str] | None = None

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
        continuations = tuple(f" {answer}" for answer in answers)
        return Item(
            task=self.name,
            doc_id=doc_id,
            doc_hash=hash_doc(doc),
            gold=gold,
            contexts=tuple(contexts),
            continuations=continuations * n_choices if len(answers) == 1 else continuations,
            prompt_group=self.group(doc) if self.group else "",
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

PUBLISHED_TASKS = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande")
