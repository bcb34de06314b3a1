"""A user's own JSONL task: what it becomes, and how bad lines are told."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidir_core.common.errors import UserError
from bidir_core.data.items import choice_lengths
from bidir_core.data.tasks import MAX_LINE_BYTES, load_items, read_custom_task, task_names

GOOD = {"contexts": ["The capital of France is"], "continuations": [" Paris", " Rome"], "gold": 0}


def write(path: Path, *lines: object) -> str:
    """A file of these lines: bytes as they are, anything else as JSON."""
    path.write_bytes(
        b"".join((li if isinstance(li, bytes) else json.dumps(li).encode()) + b"\n" for li in lines)
    )
    return str(path)


@pytest.mark.parametrize("continuations", [[" was broke."], [" was broke.", " was broke."]])
def test_context_per_choice_with_a_shared_continuation(continuations, tmp_path):
    line = {"contexts": ["so Ann", "so Bea"], "continuations": continuations, "gold": 1}
    (item,) = load_items([write(tmp_path / "t.jsonl", line)])
    assert item.contexts == ("so Ann", "so Bea")
    assert item.continuations == (" was broke.", " was broke.")
    assert [item.context(k) for k in range(2)] == ["so Ann", "so Bea"]
    assert choice_lengths(item.continuations) is None


def test_key_order_and_extra_keys_do_not_change_the_hash(tmp_path):
    mixed = {"note": "x", **dict(reversed(GOOD.items()))}
    path = write(tmp_path / "t.jsonl", GOOD, mixed, GOOD | {"gold": 1})
    a, b, c = load_items([path])
    assert a.doc_hash == b.doc_hash != c.doc_hash


def test_blank_lines_bom_crlf_and_no_final_newline(tmp_path):
    line = json.dumps(GOOD, ensure_ascii=False).encode()
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n   \n" + line)
    assert [i.doc_id for i in load_items([str(path)])] == [0, 1]


def test_fewshot_examples_come_from_the_file_and_leave_the_item_out(tmp_path):
    lines = [GOOD | {"contexts": [f"[{i}]"], "gold": i % 2} for i in range(4)]
    path = write(tmp_path / "t.jsonl", *lines)
    for item in load_items([path], num_fewshot=3):
        *examples, question = item.contexts[0].split("\n\n")
        assert question == f"[{item.doc_id}]"
        others = {f"[{i}]{(' Paris', ' Rome')[i % 2]}" for i in range(4) if i != item.doc_id}
        assert set(examples) == others
    with pytest.raises(UserError, match="4 few-shot examples besides the item itself cannot"):
        load_items([path], num_fewshot=4)


def test_a_copy_of_the_item_is_no_example_for_it(tmp_path):
    other = GOOD | {"contexts": ["Other"]}
    path = write(tmp_path / "t.jsonl", GOOD, GOOD, GOOD, other)
    items = load_items([path], num_fewshot=1, limit=3)
    assert {i.contexts[0].split("\n\n")[0] for i in items} == {"Other Paris"}


texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.lists(texts.filter(str.strip), min_size=2, max_size=5, unique=True), texts, st.data())
def test_texts_arrive_exactly_as_written(tmp_path_factory, continuations, context, data):
    gold = data.draw(st.integers(0, len(continuations) - 1))
    record = {"contexts": [context], "continuations": continuations, "gold": gold}
    path = tmp_path_factory.getbasetemp() / "exact.jsonl"
    (item,) = read_custom_task(Path(write(path, record)))
    assert (item.contexts, item.continuations) == ((context,), tuple(continuations))
    assert item.gold == gold


# --- bad lines --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        pytest.param(b"[" * 100_000, "not JSON", id="deep"),
        (b"[1, 2]", "is a list, not a JSON object"),
        (b'{"contexts": ["\xff"]}', "not UTF-8 (byte 16)"),
        ({}, "has no 'contexts'"),
        ({"contexts": ["a"]}, "has no 'continuations'"),
        ({"contexts": ["a"], "continuations": [" b", " c"]}, "has no 'gold'"),
        (GOOD | {"contexts": "The capital"}, "'contexts' is a text; it must be a non-empty list"),
        (GOOD | {"contexts": []}, "'contexts' is an empty list"),
        (GOOD | {"continuations": [" a", 3]}, "continuations[1] is 3; it must be a text"),
        (GOOD | {"continuations": [" a", ""]}, "continuation 1 is ''"),
        (GOOD | {"continuations": [" a", " a"]}, "all its choices are the same text"),
        (GOOD | {"continuations": [" a"]}, "has one choice"),
        (GOOD | {"contexts": ["a", "b", "c"]}, "has 2 continuations for 3 choices; give 1 or 3"),
        (GOOD | {"contexts": ["a", "a"], "continuations": [" b"]}, "all its choices are the same"),
        (
            b'{"contexts": ["\\ud800"], "continuations": [" a", " b"], "gold": 0}',
            "holds a lone surrogate",
        ),
        (GOOD | {"gold": 2}, "'gold' is 2; it must be the index of the right choice, 0 to 1"),
        (GOOD | {"gold": float("nan")}, "'gold' is NaN"),
        (GOOD | {"gold": True}, "'gold' is true"),
        (GOOD | {"gold": "0"}, "'gold' is \"0\""),
        (GOOD | {"pair_id": 3}, "pair_id[0] is 3; it must be a text"),
        (
            b'{"contexts": ["a"], "continuations": [" a", " b"], "gold": 0, "pair_id": "\\ud800"}',
            "holds a lone surrogate",
        ),
    ],
)
def test_a_bad_line_names_the_file_and_the_line(line, message, tmp_path):
    path = write(tmp_path / "mine.jsonl", GOOD, b"", line, GOOD)
    with pytest.raises(UserError, match=re.escape(f"{path}, line 3: {message}")) as caught:
        load_items([path])
    assert len(str(caught.value)) < len(path) + 250
    assert "\n" not in str(caught.value)


def test_a_huge_line_is_refused_without_reading_it_whole(tmp_path):
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(GOOD).encode() + b'\n{"contexts": ["')
        file.seek(40 * MAX_LINE_BYTES)  # a sparse file: nothing but zeros up to here
        file.write(b'"]}\n')
    with pytest.raises(UserError, match=f"line 2: longer than {MAX_LINE_BYTES:,} bytes"):
        load_items([str(path)])


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_a_file_without_items(content, tmp_path):
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="holds no item"):
        load_items([str(tmp_path / "t.jsonl")])


def test_names_that_collide(tmp_path):
    ours = write(tmp_path / "piqa.jsonl", GOOD)
    with pytest.raises(UserError, match="named like the built-in task 'piqa'; rename"):
        task_names([ours])
    (tmp_path / "a").mkdir()
    paths = [write(p, GOOD) for p in (tmp_path / "t.jsonl", tmp_path / "a" / "t.jsonl")]
    with pytest.raises(UserError, match="task 't' is given twice"):
        task_names(paths)


def test_a_path_that_is_no_file(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        task_names([str(tmp_path) + "/"])
    with pytest.raises(UserError, match="does not exist"):
        task_names([str(tmp_path / "absent.jsonl")])


def test_two_orders_of_a_users_documents_share_their_fold_and_sample(tmp_path):
    lines = [GOOD | {"contexts": [f"{i}"], "pair_id": f"doc {i}"} for i in range(40)]
    first = write(tmp_path / "mine_first.jsonl", *lines)
    last = write(
        tmp_path / "mine_last.jsonl",
        *(li | {"contexts": ["x" + li["contexts"][0]]} for li in lines),
    )
    for options in ({"fold": "explore"}, {"limit": 7, "sample": "random", "seed": 2}):
        ids = [[i.pair_id for i in load_items([path], **options)] for path in (first, last)]
        assert ids[0] == ids[1]
        assert 0 < len(ids[0]) < 40
