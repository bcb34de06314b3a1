"""The pages of findings say what the committed runs say."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from bidir_core.common.errors import UserError
from bidir_core.explain.sweep_points import Point
from bidir_core.runs.run import Run
from scripts import findings, findings_lab, pages
from tests.attend_factory import make_summary
from tests.lab_factory import LAMBDAS, SINKS, USUAL, WINDOWS, accuracy, make_sweep

PAGES = {page.name: page.read_text(encoding="utf-8") for page in pages.PAGES}
TEXT = "".join(PAGES.values())


def on_page(name: str) -> str:
    """What stands in a block on the one page that has it."""
    (block,) = (found[3] for found in pages.BLOCK.finditer(TEXT) if found[2] == name)
    return block


@pytest.mark.parametrize("name", findings.BLOCKS)
def test_every_block_is_what_the_runs_give(name: str) -> None:
    assert on_page(name) == findings.BLOCKS[name]()


@pytest.mark.parametrize("name", findings.TABLES)
def test_every_table_is_what_the_runs_give(name: str) -> None:
    written = (pages.TABLES / f"{name}.csv").read_text(encoding="utf-8")
    assert written == pages.csv_text(findings.TABLES[name]())


@pytest.mark.parametrize("page", ["RESULTS.md", "FINDINGS.md"])
def test_the_words_around_the_results_hold_none(page: str) -> None:
    """A number in prose would be held to nothing; settings and names are no results."""
    prose = pages.BLOCK.sub("", PAGES[page])
    prose = re.sub(r"## Prior work.*?\n## ", "", prose, flags=re.DOTALL)  # others' numbers
    prose = re.sub(
        r"`[^`]*`|\]\([^)]*\)|3[BC]\b|SmolLM2(-135M)?|Gemma 3 270M|95 %|[Ss]tage\s1|b?float\d\d|"
        r"\d+ steps|\d+ bits|first 500|leaves out 0|holds 0|seed\n?0|^\d\.",
        "",
        prose,
        flags=re.MULTILINE,
    )
    assert re.findall(r"\d[\d.,]*", prose) == []


def intervals(text: str) -> set[tuple[str, ...]]:
    """Every ``+1.2 points (95 % CI +0.1 to +2.3`` and, of a table, ``+1.2,+0.1 to +2.3``."""
    number = r"([+-]\d+\.\d)"
    pattern = rf"{number}(?: points)?(?: \(|,)(?:95 % CI )?{number} to {number}"
    return set(re.findall(pattern, text))


def test_the_front_page_quotes_what_was_computed() -> None:
    """Each difference in the README stands on a page of claims or in a table."""
    readme = (pages.DOCS.parent / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"## The answer in brief.*?(?=\n## )", readme, re.DOTALL)
    quoted = intervals(" ".join(section.split()))
    assert len(quoted) >= 7
    known = [intervals(path.read_text()) for path in (*pages.PAGES, *pages.TABLES.glob("*.csv"))]
    assert not quoted - set.union(*known)


TRAINED = "3B trained with `layers=A-`"


def test_the_words_were_written_for_these_outcomes() -> None:
    """Other runs may give other outcomes; then the words beside the table want writing anew."""
    verdicts = {
        "Necessity": ("not refuted", "**refuted**"),
        "Sufficiency": ("undecided", "**refuted**"),
        "Placebo": ("not refuted", "not refuted"),
        "Relocated sink": ("undecided", "not refuted"),
        "Triviality": ("not refuted", "not refuted"),
        "Prompt conditions": ("not refuted", "**refuted**"),
        "Last prompt token": ("not refuted", "not refuted"),
    }
    with (pages.TABLES / "controls.csv").open(encoding="utf-8", newline="") as file:
        rows = {row[0].partition(" (")[0]: row for row in csv.reader(file)}
    for control, outcomes in verdicts.items():
        assert tuple(cell.split(": ")[-1] for cell in rows[control][-2:]) == outcomes


def test_the_words_on_prompt_order_were_written_for_these_outcomes() -> None:
    """Which way each arm moves each form's answers: + or - where the interval leaves out 0."""
    signs = {
        "bidirectional": "-----",
        "`sink=1`": "-----",
        "`layers=A-`, A recommended": "++0--",
        "causal, prompt twice": "++0++",
        "`layers=A-`, A recommended, minus: causal, prompt twice": "0----",
        f"{TRAINED}, `layers=A-`, minus: {TRAINED}, causal": "+-+00",
        f"{TRAINED}, `layers=A-`, minus: 3C, causal": "0-000",
    }
    rows = dict(
        line.strip("| ").split(" | ", 1) for line in on_page("order: effects").splitlines()[4:]
    )
    for arm, expected in signs.items():
        row = rows.get(arm) or rows[f"{arm}, minus causal"]
        ends = [(float(low), float(high)) for low, high in re.findall(r"\((\S+) to (\S+)\)", row)]
        found = "".join("+" if low > 0 else "-" if high < 0 else "0" for low, high in ends)
        assert found == expected, arm


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
    for name, n_items in (("attention", 30), ("attention-less", 5)):
        summary(root, name, n_items)
    return root


def summary(root: Path, name: str = "attention", n_items: int = 30) -> None:
    regimes = ("causal", "bidirectional", "bidirectional:sink=1")
    model, future = findings_lab.EMBEDDED, (0, 0.4, 0.25)
    make_summary(root, regimes, n_items=n_items, model=model, future=future, name=name)


def test_runs_are_chosen_by_model_name_and_size(pretended) -> None:
    for name in ("sweep", "controls", "attention"):
        assert findings_lab.evidence(findings_lab.EMBEDDED, name, pretended).name == name
    assert findings_lab.evidence(findings_lab.SECOND, "sweep", pretended).name == "gemma-sweep"
    with pytest.raises(UserError, match="no finished run of gemma3-270m with 'controls'"):
        findings_lab.evidence(findings_lab.SECOND, "controls", pretended)


def test_a_sweep_has_every_point_but_windows(pretended) -> None:
    text = block(pretended, "sweep")
    assert "150 items, the first 500 of each task, float32" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    dials = ("sink=1", "sink=2", "sink=4", "lambda=0.03", "layers=10-29")
    names = ["causal", "bidirectional", *(f"`{dial}`" for dial in dials)]
    assert [row[0].strip("| ") for row in rows] == names


def test_the_costliest_windows_of_layers(pretended) -> None:
    text = findings_lab.tables(pretended)["layers"]()
    assert "Bidirectional in 5 layers only, at each of 8 places" in text
    assert "(each 99.4 %)" in text
    rows = [line for line in text.splitlines() if line.startswith("| `layers=")]
    assert len(rows) == findings_lab.COSTLIEST
    costs = [float(row.split(" | ")[1].split(" ")[0]) for row in rows]
    assert costs == sorted(costs)
    assert "the other 2 lie between" in text


def test_controls_are_told_with_their_verdicts(pretended) -> None:
    cells = findings_lab.outcomes_of_controls(findings_lab.EMBEDDED, pretended)
    assert re.fullmatch(r"removes \d+ % \(\d+ to \d+ %\): not refuted", cells["necessity"])
    assert "placebo" not in cells
    # Not measured in that sweep, but in the attention summary.
    assert cells["triviality"] == "not refuted"
    points = block(pretended, "points")
    names = [row.split(" | ")[0] for row in points.splitlines()[2:]]
    assert names == ["| `sink=1`", "| `rows=0-0`"]
    assert block(pretended, "prompts").count("\n") == 2  # no other prompt, and no floor
    assert "too short" not in points
