"""The pages of findings say what the committed runs say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bidir_core.cli import build_parser
from bidir_core.common import formatting
from bidir_core.explain.sweep_points import Point
from bidir_core.explain.sweep_summary import Sweep
from bidir_core.runs.run import Run
from scripts import blocks, findings, findings_lab, findings_sweep
from tests.attend_factory import make_summary
from tests.lab_factory import LAMBDAS, N_LAYERS, SINKS, USUAL, WINDOWS, accuracy, make_sweep

TEXT = "".join(page.read_text(encoding="utf-8") for page in blocks.PAGES)


def on_page(name: str) -> str:
    """A block as it stands on the one page that has it."""
    found = blocks.pattern("findings").finditer(TEXT)
    (block,) = (one[0] for one in found if one[2] == name)
    return block


@pytest.mark.parametrize("name", findings.BLOCKS)
def test_every_block_is_what_the_runs_give(name: str) -> None:
    block = on_page(name)
    assert block == blocks.filled(block, "findings", findings.BLOCKS)


@pytest.mark.parametrize("name", findings.TABLES)
def test_every_table_is_what_the_runs_give(name: str) -> None:
    written = (blocks.TABLES / f"{name}.csv").read_text(encoding="utf-8")
    assert written == blocks.csv_text(findings.TABLES[name]())


def test_a_table_is_its_rows_once_and_then_its_sentences() -> None:
    table = blocks.table(["point", "a, b"], [["`sink=1`", "+1.0 (-1 to 2)"]])
    text = blocks.csv_text(f"Of `runs`, 3 items.\n\n{table}\n{table}")
    row = "sink=1,+1.0 (-1 to 2)\n"
    assert text == f'point,"a, b"\n{row}{row}"Of runs, 3 items.",\n'


def test_the_words_were_written_for_these_outcomes() -> None:
    """Other runs may give other outcomes; then the words beside the table want writing anew."""
    verdicts = {
        "Necessity": ("not refuted", "**refuted**"), "Sufficiency": ("undecided", "**refuted**"),
        "Placebo": ("not refuted", "not refuted"), "Relocated sink": ("undecided", "not refuted"),
        "Triviality": ("not refuted", "not refuted"),
        "Prompt conditions": ("not refuted", "**refuted**"),
        "Last prompt token": ("not refuted", "not refuted"),
    }  # fmt: skip
    lines = on_page("controls").splitlines()
    for control, (first, second) in verdicts.items():
        (row,) = (line for line in lines if line.startswith(f"| {control} "))
        cells = [cell.split(": ")[-1] for cell in row.strip("| ").split(" | ")]
        assert cells[-2:] == [first, second]


# The blocks of sweeps, controls and attention, from pretended runs


def block(root: Path, name: str) -> str:
    return {**findings_lab.blocks(root), **findings_lab.tables(root)}[name]()


def lab(root: Path, name: str, regimes=(), **more) -> Run:
    return make_sweep(root, regimes, name=name, n_items=150, **more)


@pytest.fixture(scope="module")
def pretended(tmp_path_factory) -> Path:
    """A first model with everything, among it runs that do not count; a second one in part."""
    root = tmp_path_factory.mktemp("runs")
    second = {"model": findings_lab.SECOND}
    make_sweep(root, SINKS[:1], name="sweep-small", n_items=50)
    lab(root, "sweep", (*SINKS, LAMBDAS[2], *WINDOWS[:8], "bidirectional:layers=10-29"))
    make_sweep(root, LAMBDAS, name="mine", n_items=300)
    points = [Point(r, USUAL, part="control") for r in (SINKS[0], "bidirectional:rows=0-0")]
    lab(root, "controls", extra=points, world=lambda point: accuracy(point, harm=0.4))
    lab(root, "gemma-sweep", SINKS[:1], config=second)
    regimes = ("causal", "bidirectional", "bidirectional:sink=1")
    for name, n_items in (("attention", 30), ("attention-less", 5)):
        make_summary(
            root, regimes, n_items=n_items, model=findings_lab.EMBEDDED, future=(0, 0.4, 0.25),
            name=name,
        )  # fmt: skip
    return root


def test_runs_are_chosen_by_model_name_and_size(pretended) -> None:
    found = findings_lab.evidence(findings_lab.EMBEDDED, pretended)
    assert [run and run.name for run in (found.sweep, found.controls, found.attention)] == [
        "sweep", "controls", "attention",
    ]  # fmt: skip
    other = findings_lab.evidence(findings_lab.SECOND, pretended)
    assert [run and run.name for run in (other.sweep, other.controls, other.attention)] == [
        "gemma-sweep", None, None,
    ]  # fmt: skip


def test_a_sweep_stands_beside_the_prototype(pretended) -> None:
    text = block(pretended, "sweep")
    assert "150 items, the first 500 of each task, float32" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip("| ") for row in rows] == [
        "causal", "bidirectional", "`sink=1`", "`sink=2`", "`sink=4`", "`lambda=0.03`",
        "`layers=0-4`", "`layers=10-29`",
    ]  # fmt: skip
    causal = Run(
        findings_lab.evidence(findings_lab.EMBEDDED, pretended).sweep.path / "points" / "causal"
    )
    apart = 100 * causal.metrics["macro"]["acc"] - 45.32
    assert rows[0][5:7] == ["45.3 (fp32)", f"{apart:+.2f}"]
    assert rows[3][5:] == ["", "", " |"]
    assert "Of the 6 points that the prototype has" in text
    # Other items, or another model, do not stand beside it.
    assert "prototype" not in block(pretended, "gemma_sweep")


def test_how_much_looking_ahead_a_regime_leaves(pretended) -> None:
    view = Sweep(findings_lab.evidence(findings_lab.EMBEDDED, pretended).sweep)
    left = {
        regime: findings_sweep.ahead_left(view, f"bidirectional:{regime}")
        for regime in ("sink=999", "sink=1", "lambda=0.03", "layers=0-4", "self=0")
    }
    assert (left["sink=999"], left["lambda=0.03"]) == (0.0, 1.0)
    assert left["layers=0-4"] == pytest.approx(5 / N_LAYERS)
    assert 0 < left["sink=1"] < 1
    assert left["self=0"] == pytest.approx(left["sink=1"])  # it sees nothing but itself
    assert findings_sweep.ahead_left(view, "causal") == 0


def test_whole_sets_are_told_without_their_items(tmp_path) -> None:
    second = {"model": findings_lab.SECOND, "limit": None}
    run = lab(tmp_path, "whole-gemma", SINKS[:1], config=second)
    before = block(tmp_path, "whole")
    run.path.joinpath("texts.parquet").unlink()
    for items in run.path.glob("points/*/items.parquet"):
        items.unlink()
    text = block(tmp_path, "whole")
    assert text == before
    assert "150 items, whole sets" in text
    (row,) = re.findall(r"\| `acc` \| `sink=1` \| (.*) \|", text)
    stored = run.metrics["points"][2]["acc"]
    assert row.startswith(f"{100 * stored['value']:.1f} | ")
    assert formatting.points(stored["delta"]["low"], signed=True) in row


def test_what_is_reproduced_and_what_is_not() -> None:
    near = [(0.3, "causal, `acc`", "fp32"), (-0.5, "causal, `acc_norm`", "fp32")]
    said = findings_sweep._reproduced(near)
    assert "all lie within 0.7 points of it; farthest is causal, `acc_norm`, -0.50" in said
    far = [*near, (0.71, "`lambda=0.3`, `acc`", "bf16"), (0.1, "`lambda=0.3`, `acc_norm`", "bf16")]
    said = findings_sweep._reproduced(far)
    assert "Of the 2 points" in said
    assert "3 of 4 numbers lie within" in said
    assert "These do not: `lambda=0.3`, `acc` +0.71 (prototype in bf16)." in said


def test_the_costliest_windows_of_layers(pretended) -> None:
    text = block(pretended, "layers")
    assert "Bidirectional in 5 layers only, at each of 8 places" in text
    assert "(each 99.4 %)" in text
    rows = [line for line in text.splitlines() if line.startswith("| `layers=")]
    assert len(rows) == findings_sweep.COSTLIEST
    costs = [float(row.split(" | ")[1].split(" ")[0]) for row in rows]
    assert costs == sorted(costs)
    assert "the other 2 lie between" in text


def test_controls_are_told_with_their_verdicts(pretended) -> None:
    rows = {
        line.split(" | ")[0].strip("| "): line
        for line in block(pretended, "controls").splitlines()
        if line.startswith("| ")
    }
    assert re.search(
        r"removes \d+ % \(\d+ to \d+ %\): not refuted \| not run \|$", rows["Necessity (sink=1)"]
    )
    assert rows["Placebo (skip=J)"].endswith("| not run | not run |")
    points = block(pretended, "points")
    assert [row.split(" | ")[0] for row in points.splitlines()[2:]] == [
        "| `sink=1`",
        "| `rows=0-0`",
    ]
    assert block(pretended, "prompts").count("\n") == 2  # no other prompt, and no floor
    assert "too short" not in points
    # Not measured in that sweep, but in the attention summary.
    assert rows["Triviality (attention ahead)"].endswith("| not refuted | not run |")


def test_a_moved_sink_is_judged_where_the_prompt_reaches(tmp_path) -> None:
    points = [Point("bidirectional:self=3", USUAL, part="control")]
    run = lab(tmp_path, "controls", extra=points)
    lengths = Sweep(run).runs["causal"].items_table(("n_prefix_tokens",)).to_pydict()
    n_short = sum(min(one) <= 3 for one in lengths["n_prefix_tokens"])
    assert f"\n{n_short} prompts are too short to have a token 3; in the others `self=3` " in block(
        tmp_path, "points"
    )


def test_a_refuted_story_is_called_so(tmp_path) -> None:
    def world(point: Point) -> float:
        return 0.2 if point.regime.startswith("bidirectional:") else accuracy(point, harm=0.4)

    points = [Point(r, USUAL, part="control") for r in (SINKS[0], "bidirectional:rows=0-0")]
    lab(tmp_path, "controls", extra=points, world=world)
    text = block(tmp_path, "controls")
    assert re.search(r"Necessity.*: \*\*refuted\*\* \|", text)
    assert re.search(r"Sufficiency.*: not refuted \|", text)


def test_what_is_missing_is_named_with_its_command(pretended) -> None:
    for name, line in (
        ("gemma_layers", "lab --model gemma3-270m --sweep layers=windows:5"),
        ("controls", "lab --model gemma3-270m --controls"),
        ("gemma_attention", "attend --model gemma3-270m --task"),
    ):
        said = block(pretended, name)
        assert "Not run yet at this size. It is made by `python -m bidir_core " in said
        (command,) = re.findall(r"`python -m bidir_core ([^`]*)`", said)
        assert command.startswith(line)
        build_parser().parse_args(command.split())
