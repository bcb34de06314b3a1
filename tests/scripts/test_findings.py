"""docs/FINDINGS.md says what the committed runs say, and no more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bidir_core.cli import build_parser
from bidir_core.common import formatting
from bidir_core.explain.sweep_points import Point
from bidir_core.explain.sweep_summary import Sweep
from bidir_core.runs.run import Run
from scripts import findings, findings_lab, findings_sweep
from tests.attend_factory import make_summary
from tests.lab_factory import LAMBDAS, N_LAYERS, SINKS, USUAL, WINDOWS, accuracy, make_sweep

TEXT = findings.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", findings.BLOCKS)
def test_every_table_is_what_the_runs_give(name: str) -> None:
    (block,) = (found[0] for found in findings._BLOCK.finditer(TEXT) if found[2] == name)
    assert block == findings._BLOCK.sub(lambda f: f[1] + findings.BLOCKS[name]() + f[3], block)


def test_the_words_around_them_hold_no_numbers_of_their_own() -> None:
    """A number in prose would be held to nothing; settings and names are no results."""
    prose = findings._BLOCK.sub("", TEXT)
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)|\d+ items|95 %|[Ff]loat32|bfloat16|H100", "", prose)
    prose = re.sub(r"Gemma 3 270M|135M parameters|sink=1|first 500|\b0\b", "", prose)
    assert re.findall(r"\d[\d.,]*", prose) == []


@pytest.mark.parametrize(
    ("block", "verdicts"),
    [
        (
            "controls",
            {
                "Necessity": "not refuted", "Sufficiency": "undecided", "Placebo": "not refuted",
                "Relocated sink": "**refuted**", "Triviality": "not refuted",
                "Prompt conditions": "not refuted", "Last prompt token": "not refuted",
            },
        ),
        (
            "gemma_controls",
            {
                "Necessity": "**refuted**", "Sufficiency": "**refuted**", "Placebo": "not refuted",
                "Relocated sink": "not refuted", "Last prompt token": "not refuted",
            },
        ),
    ],
)  # fmt: skip
def test_the_words_were_written_for_these_outcomes(block: str, verdicts: dict[str, str]) -> None:
    """Other runs may give other outcomes; then the words beside the tables want writing anew."""
    (text,) = (found[0] for found in findings._BLOCK.finditer(TEXT) if found[2] == block)
    for control, verdict in verdicts.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {control} "))
        assert row.endswith(f"| {verdict} |"), row


def test_a_share_for_one_question_and_none_for_four_is_explained() -> None:
    """Where it is so, and only there; the blocks are held to the runs above."""
    (gemma,), (embedded,) = (
        [found[0] for found in findings._BLOCK.finditer(TEXT) if found[2] == name]
        for name in ("gemma_dials", "dials")
    )
    assert re.search(r"damage, -\S+ \(\S+ to -.*, leaves out 0, .* \(\S+ to \+.* 98\.75 %", gemma)
    assert "Why a share" not in embedded


# The blocks of sweeps, controls and attention, from pretended runs


def block(root: Path, name: str) -> str:
    return findings_lab.blocks(root)[name]()


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
    assert "- Of sink: " in block(pretended, "dials")


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
    before = block(tmp_path, "gemma_whole")
    run.path.joinpath("texts.parquet").unlink()
    for items in run.path.glob("points/*/items.parquet"):
        items.unlink()
    text = block(tmp_path, "gemma_whole")
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
    assert rows["Necessity (sink=1)"].endswith("| not refuted |")
    assert "95 % CI" in rows["Sufficiency (rows=0-0)"]
    assert rows["Placebo (skip=J)"].endswith("|  | not run |")
    points = block(pretended, "points")
    assert [row.split(" | ")[0] for row in points.splitlines()[2:]] == [
        "| `sink=1`",
        "| `rows=0-0`",
    ]
    assert block(pretended, "prompts").count("\n") == 2  # no other prompt, and no floor
    assert "too short" not in points
    # Not measured in that sweep, but in the attention summary.
    assert "send 25.0 % (95 % CI" in rows["Triviality (attention ahead)"]
    assert rows["Triviality (attention ahead)"].endswith("| not refuted |")


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
    assert re.search(r"Necessity.*\*\*refuted\*\* \|", text)
    assert re.search(r"Sufficiency.*not refuted \|", text)


def test_what_is_missing_is_named_with_its_command(pretended) -> None:
    for name, line in (
        ("gemma_layers", "lab --model gemma3-270m --sweep layers=windows:5"),
        ("gemma_controls", "lab --model gemma3-270m --controls"),
        ("gemma_attention", "attend --model gemma3-270m --task"),
    ):
        said = block(pretended, name)
        assert said.startswith("Not run yet at this size. It is made by `python -m bidir_core ")
        assert line in said
        command = said.split("`")[1].split()[3:]
        parser = build_parser()
        parser.parse_args(command)
