"""Items that a file names are evaluated, and no others; a name that fits none is refused."""

import pytest

from bidir_core.cli import main
from bidir_core.data.tasks import load_items
from bidir_core.runs.find import list_runs
from tests.factory import write_lines


@pytest.fixture
def line(tiny_folder, own_items, runs_dir, tmp_path):
    def ask(text: str, *more: str) -> int:
        path = tmp_path / "ids.txt"
        path.write_text(text)
        words = ["eval", "--model", str(tiny_folder), "--device", "cpu", *more]
        tasks = [] if "--resume" in more else ["--tasks", str(own_items)]
        return main([*words, *tasks, "--items", str(path)])  # short for --items-file

    return ask


def test_items_by_number_and_by_hash(line, own_items, runs_dir):
    items = load_items([str(own_items)])
    text = f"mine\t41\n\n{items[7].doc_hash}\nmine\t3\nmine\t3\n"
    assert line(text) == 0
    (run,) = list_runs([runs_dir])
    assert run.items(["doc_id"])["doc_id"].tolist() == [3, 7, 41]
    assert run.metrics["n_items"] == 3
    facts = run.config["given_items"]
    assert facts["count"] == 3
    assert len(facts["sha256"]) == 64
    assert line(text, "--resume", run.id) == 0  # the same file by the same name


def test_a_task_without_a_named_item_is_left_out_and_few_shot_examples_stay(own_items, tmp_path):
    other = write_lines(
        tmp_path / "other.jsonl",
        [{"contexts": ["a"], "continuations": [" b", " c"], "gold": 0}],
    )
    path = tmp_path / "ids.txt"
    path.write_text("mine\t12\nmine\t5\n")
    both, shots = [str(own_items), other], {"num_fewshot": 2}
    items = load_items(both, items_file=str(path), **shots)
    assert [item.item_id for item in items] == ["mine/5", "mine/12"]
    assert items == [item for item in load_items(both[:1], **shots) if item.doc_id in (5, 12)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mine\t3\nmine\t60\n", "line 2: mine has no item 60; its ids are 0 to 59"),
        ("piqa\t3\n", "line 1: 'piqa' is not one of --tasks mine"),
        (f"{'0' * 64}\n", f"line 1: no item of mine has the doc_hash {'0' * 64}"),
        ("mine 3\n", "line 1: 'mine 3' is neither task<TAB>doc_id nor a doc_hash"),
        ("mine\t-1\n", "is neither"),
        ("\n", "names no item"),
    ],
)
def test_a_name_that_fits_no_item_is_refused(line, text, says, runs_dir, capsys):
    assert line(text) == 2
    (error,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert says in error
    assert not runs_dir.exists()


def test_it_stands_alone(line, runs_dir, capsys):
    assert line("mine\t3\n", "--limit", "5") == 2
    assert "leave --limit and --fold out" in capsys.readouterr().err
    assert not runs_dir.exists()
