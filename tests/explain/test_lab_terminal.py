"""What a sweep says in the terminal when it ends, and when it is asked for again."""

from __future__ import annotations

import pytest

from bidir_core.cli import main
from bidir_core.common import formatting
from bidir_core.explain import sweep as terminal
from bidir_core.explain.sweep_points import Point
from tests.lab_factory import LAMBDAS, SINKS, USUAL, make_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("runs"), (*SINKS, *LAMBDAS), n_items=150)


def test_a_finished_sweep_says_again_what_it_found(sweep, monkeypatch, capsys) -> None:
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(sweep.path.parents[1]))
    assert main(["lab", "--resume", sweep.id]) == 0
    output = capsys.readouterr()
    assert output.out == f"{sweep.path}\n"
    first, *again = output.err.splitlines()
    assert first == f"{sweep.id} is complete; nothing was run"
    assert again == terminal.lines(sweep.metrics)
    assert again[-1] == f"verdict: {sweep.metrics['best']['acc']['sentence']}"
    rows = [line.split() for line in again if line.startswith("bidirectional:sink=1 ")]
    delta = sweep.metrics["points"][2]["acc"]["delta"]["value"]
    assert "to causal, points" in again[0]
    assert rows[0][2] == formatting.points(delta, signed=True)


def test_controls_say_what_became_of_the_story_and_the_verdict_comes_last(tmp_path) -> None:
    """In this world the damage stays whatever the first token does."""
    points = [Point(r, USUAL, part="control") for r in (SINKS[0], "bidirectional:rows=0-0")]

    def world(point: Point) -> float:
        looks_ahead = point.regime.startswith("bidirectional") and "rows" not in point.regime
        return 0.1 if looks_ahead else 0.6

    run = make_sweep(tmp_path, (), extra=points, n_items=400, world=world)
    lines = terminal.lines(run.metrics)
    row = next(n for n, line in enumerate(lines) if line.startswith("controls of the story"))
    assert lines[row + 2].startswith(
        "Necessity (sink=1)      refuted       Keeping the first token "
    )
    assert any(line.startswith("Sufficiency (rows=0-0)  refuted ") for line in lines)
    finding = run.metrics["controls"][0]["finding"]
    column = lines[row + 1].index("what was found")
    wrapped = [line[column:] for line in lines[row + 2 :]]
    assert " ".join(wrapped).startswith(finding)
    assert not any(line.startswith("%") for line in wrapped)
    assert lines[-1].startswith("verdict: sink=1 removes ")


def test_a_sweep_without_controls_or_choice_has_no_empty_table(tmp_path) -> None:
    lines = terminal.lines(make_sweep(tmp_path, (), n_items=30).metrics)
    assert [line.split()[0] for line in lines] == ["point", "causal", "bidirectional"]
