"""The order tasks: two orders of the same document, balanced options, honest long passages."""

from collections import Counter
from pathlib import Path

import pytest

from bidir_core.common.errors import UserError
from bidir_core.data.builtin_tasks import LONG_CHARACTERS, ORDER_TASKS
from bidir_core.data.items import Item
from bidir_core.data.tasks import load_items
from tests.factory import write_lines

FAMILIES = sorted({task.family for task in ORDER_TASKS.values()})


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A small SciQ and BoolQ, made up, in the hub's columns."""
    sciq = [
        {
            "question": f"What is number {i}?",
            **{f"distractor{k}": f"{c} {i}" for k, c in enumerate(("red", "blue", "green"), 1)},
            "correct_answer": f"answer-{i}.",
            "support": f" Number {i} is answer-{i}. {'So it is said. ' * (i % 50)}" * (i != 3),
        }
        for i in range(203)
    ]
    sciq[5]["distractor1"] = sciq[5]["correct_answer"]  # no such item can be answered
    boolq = [
        {"question": f"is it {i}", "passage": f"It -- It is {i}.", "idx": i, "label": i % 3 % 2}
        for i in range(60)
    ]
    for name, docs in (("sciq", sciq), ("boolq", boolq)):
        write_lines(tmp_path / name / "validation.jsonl", docs)
    return str(tmp_path)


def both(family: str, source: str, **options) -> tuple[list[Item], list[Item]]:
    names = (f"{family}_first", f"{family}_last")
    return tuple(load_items([name], data_source=source, **options) for name in names)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_orders_ask_the_same_of_the_same_documents(family: str, folder: str) -> None:
    first, last = both(family, folder)
    assert len(first) == len(last) == (60 if family == "boolq" else 201)
    for a, b in zip(first, last):
        assert (a.pair_id, a.gold, a.continuations) == (b.pair_id, b.gold, b.continuations)
        one, other = (item.contexts[0].split("\n") for item in (a, b))
        assert one[0].startswith("Passage: ")
        assert other[0].startswith("Question: ")
        assert sorted(one) == sorted(other)
        assert one[-1] == other[-1] == "Answer:"
    assert len({item.doc_hash for item in first + last}) == 2 * len(first)
    assert len({item.pair_id for item in first}) == len(first)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fold_or_a_sample_takes_both_orders_of_a_document(family: str, folder: str) -> None:
    for options in (
        {"fold": "explore"},
        {"fold": "confirm"},
        {"limit": 9, "sample": "random", "seed": 3},
        {"limit": 9, "sample": "stratified"},
    ):
        first, last = both(family, folder, **options)
        assert [i.pair_id for i in first] == [i.pair_id for i in last]


@pytest.mark.parametrize("fold", ["explore", "confirm"])
def test_right_options_are_balanced_and_still_right(fold: str, folder: str) -> None:
    items, _ = both("sciq", folder, fold=fold)
    counts = Counter(item.gold for item in items)
    assert len(counts) == 4
    assert max(counts.values()) - min(counts.values()) <= 1
    for item in items:
        row = item.pair_id.removeprefix("sciq/")
        assert item.continuations[item.gold] == f" answer-{row}."
        wrong = {f" {colour} {row}" for colour in ("red", "blue", "green")}
        assert {*item.continuations} == wrong | {f" answer-{row}."}
    assert len({item.continuations.index(f" red {item.pair_id[5:]}") for item in items}) == 4


def test_letters_name_the_options_in_the_order_of_the_words(folder: str) -> None:
    words, _ = both("sciq", folder)
    letters, letters_last = both("sciq_letters", folder)
    for item, lettered, last in zip(words, letters, letters_last):
        assert lettered.continuations == (" A", " B", " C", " D")
        assert lettered.gold == item.gold
        listed = "".join(f"\n{x}.{text}" for x, text in zip("ABCD", item.continuations))
        assert f"?{listed}\nAnswer:" in lettered.contexts[0]
        assert f"?{listed}\nPassage: " in last.contexts[0]


def test_long_passages_hold_others_but_never_their_answer(folder: str) -> None:
    short, _ = both("sciq", folder)
    long, _ = both("sciq_long", folder)
    places = set()
    for item, whole in zip(short, long):
        passage = _passage(item)
        parts = _passage(whole).split("\n\n")
        assert parts.count(passage) == 1
        assert len(set(parts)) == len(parts)
        answer = item.continuations[item.gold].strip()
        assert not any(answer in part for part in parts if part != passage)
        assert LONG_CHARACTERS - 60 <= len(_passage(whole)) <= LONG_CHARACTERS
        places.add(parts.index(passage) / (len(parts) - 1))
    assert min(places) < 0.1
    assert max(places) > 0.9


def _passage(item: Item) -> str:
    return item.contexts[0].removeprefix("Passage: ").partition("\nQuestion: ")[0]


@pytest.mark.assets
def test_the_embedded_data_have_one_split() -> None:
    with pytest.raises(UserError, match=r"sciq_first has no split 'train'.*it has validation"):
        load_items(["sciq_first"], split="train", data_source="auto")


# --- the real data ----------------------------------------------------------------------------


@pytest.mark.assets
def test_real_documents_and_their_prompts() -> None:
    sizes = {family: len(load_items([f"{family}_last"])) for family in FAMILIES}
    kinds = ("sciq", "sciq_letters", "sciq_medium", "sciq_long")
    assert sizes == {**dict.fromkeys(kinds, 885), "boolq": 3270}
    wetland = next(item for item in load_items(["sciq_last"]) if item.pair_id == "sciq/3")
    assert wetland.contexts == (
        "Question: What is an area of land called that is wet for all or part of the year?\n"
        "Passage: A wetland is an area that is wet for all or part of the year. Wetlands are home "
        "to certain types of plants.\nAnswer:",
    )
    assert wetland.continuations[wetland.gold] == " wetland"
    tax = load_items(["boolq_last"], limit=2)[1]
    assert tax.contexts[0].startswith(
        "Question: is house tax and property tax are same?\nPassage: Property tax -- Property tax"
    )
    assert (tax.continuations, tax.gold) == ((" no", " yes"), 1)
    assert Counter(item.gold for item in load_items(["boolq_first"])) == {0: 1237, 1: 2033}
