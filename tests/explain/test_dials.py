"""An item's answers at every dial: ends equal an evaluation's, files stay whole."""

import json

import pytest

from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.runs.dials import COMMITTED, STRENGTHS, read_dials
from bidir_core.runs.find import list_runs


def exported(tiny_folder, own_items, path, doc_id: int, *more: str) -> int:
    words = ["why", "--model", str(tiny_folder), "--task", str(own_items)]
    words += ["--doc-id", str(doc_id), "--export", str(path), "--device", "cpu", *more]
    return main(words)


def test_its_corners_are_evaluations(tiny_folder, own_items, runs_dir, tmp_path) -> None:
    path = tmp_path / "dials.json"
    assert exported(tiny_folder, own_items, path, 3) == 0
    (item,) = read_dials(path)
    assert not list_runs([runs_dir]), "it writes no run"
    n = item["n_layers"]
    assert [len(item["scores"]), len(item["scores"][0]), len(item["scores"][0][0])] == [
        *(2, n + 1),
        len(STRENGTHS),
    ]
    corners = {"causal": item["scores"][0][0][0], "bidirectional": item["scores"][0][0][-1]}
    corners |= {"bidirectional:sink=1": item["scores"][1][0][-1]}
    corners |= {"bidirectional:layers=1-,lambda=0.1": item["scores"][0][1][STRENGTHS.index(0.1)]}
    for regime, scores in corners.items():
        common = ["--model", str(tiny_folder), "--tasks", str(own_items), "--limit", "5"]
        assert main(["eval", *common, "--regime", regime, "--dtype", "float32"]) == 0
        run = next(run for run in list_runs([runs_dir]) if run.regime == regime)
        ll = run.item(own_items.stem, 3)["ll"]
        assert scores == pytest.approx([100 * (value - max(ll)) for value in ll], abs=1.5)
    for sink in (0, 1):  # nothing looks ahead
        assert item["scores"][sink][n] == [corners["causal"]] * len(STRENGTHS)


def test_an_item_is_added_once_and_a_wrong_file_is_left_alone(
    tiny_folder, own_items, runs_dir, tmp_path, capsys
) -> None:
    path = tmp_path / "dials.json"
    for doc_id in (1, 2, 1):
        assert exported(tiny_folder, own_items, path, doc_id) == 0
    assert [item["item"].split("/")[1] for item in read_dials(path)] == ["2", "1"]
    path.write_text('{"schema": 9}')
    assert exported(tiny_folder, own_items, path, 1) == 2
    assert "no file of `why --export`" in capsys.readouterr().err
    assert path.read_text() == '{"schema": 9}'
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_dials(path)


def test_the_committed_items_flip_both_ways() -> None:
    """What the Overview shows: several models, answers lost and answers won by looking ahead."""
    items = read_dials()
    assert len(items) >= 10
    assert len({item["model"] for item in items}) >= 2
    assert COMMITTED.stat().st_size < 300_000

    def right(item, strength: int) -> bool:
        scores = item["scores"][0][0][strength]
        return scores.index(max(scores)) == item["gold"]

    flips = [(right(item, 0), right(item, -1)) for item in items]
    assert (True, False) in flips
    assert (False, True) in flips
    assert all(before != after for before, after in flips)
    assert json.loads(COMMITTED.read_text())["strengths"] == list(STRENGTHS)
