"""The pages of findings say what the committed runs say."""

import csv
import re
from collections.abc import Iterator

import pytest

from scripts import findings, findings_repair, pages

PAGES = {page.name: page.read_text(encoding="utf-8") for page in pages.PAGES}
TEXT = "".join(PAGES.values())


def on_page(name: str) -> str:
    """What stands in a block on the one page that has it."""
    (block,) = (match[3] for match in pages.BLOCK.finditer(TEXT) if match[2] == name)
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


def effects(value: object) -> Iterator[str]:
    """Every difference with its interval in a JSON file, as a page writes it."""
    if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        yield findings_repair.interval(value)
    for inner in value.values() if isinstance(value, dict) else ():
        yield from effects(inner)
    for inner in value if isinstance(value, list) else ():
        yield from effects(inner)


def test_what_is_recorded_of_the_repair_is_what_its_files_say() -> None:
    """Blocks and tables that nothing computes any more hold no other differences than the JSON files."""
    names = {match[2] for match in pages.BLOCK.finditer(TEXT)} - findings.BLOCKS.keys()
    assert names == {f"repair: {name}" for name in ("summary", "claims", "repeats", "recipe")}
    tables = [(pages.TABLES / f"repair_{name}.csv").read_text() for name in ("claims", "recipes")]
    known = (findings_repair.read(name) for name in ("claims", "recipes"))
    written = intervals("".join([*map(on_page, names), *tables]))
    assert len(written) > 50
    assert not written - intervals("\n".join(text for data in known for text in effects(data)))


TRAINED = "3B trained with `layers=A-`"


def test_the_words_were_written_for_these_outcomes() -> None:
    """Other runs may give other outcomes; then the words beside the table want writing anew."""
    kept, refuted, undecided = "not refuted", "**refuted**", "undecided"
    verdicts = {  # SmolLM2, Gemma, the smaller Qwen, the larger
        "Necessity": (kept, refuted, kept, kept),
        "Sufficiency": (undecided, refuted, undecided, undecided),
        "Placebo": (kept, kept, kept, kept),
        "Relocated sink": (undecided, kept, undecided, kept),
        "Random look-ahead": (undecided, kept, kept, kept),
        "Triviality": (kept, kept, kept, kept),
        "Prompt conditions": (kept, refuted, undecided, undecided),
        "Last prompt token": (kept, kept, kept, kept),
    }
    with (pages.TABLES / "controls.csv").open(encoding="utf-8", newline="") as file:
        rows = {row[0].partition(" (")[0]: row for row in csv.reader(file)}
    for control, outcomes in verdicts.items():
        assert tuple(cell.split(": ")[-1] for cell in rows[control][2:]) == outcomes


def test_the_words_on_prompt_order_were_written_for_these_outcomes() -> None:
    """Which way each arm moves each form's answers: + or - where the interval leaves out 0."""
    signs = {
        "bidirectional": "-----",
        "`sink=1`": "-----",
        "`layers=A-`": "++0--",
        "causal, prompt twice": "++0++",
        "`layers=A-` minus causal, prompt twice": "0----",
        f"{TRAINED}, `layers=A-` minus {TRAINED}, causal": "+-+00",
        f"{TRAINED}, `layers=A-` minus 3C, causal": "0-000",
    }
    rows = dict(
        line.strip("| ").split(" | ", 1) for line in on_page("order: effects").splitlines()[4:]
    )
    for arm, expected in signs.items():
        row = rows[arm]
        ends = [(float(low), float(high)) for low, high in re.findall(r"\((\S+) to (\S+)\)", row)]
        outcome = "".join("+" if low > 0 else "-" if high < 0 else "0" for low, high in ends)
        assert outcome == expected, arm


def test_the_words_on_generated_answers_were_written_for_these_outcomes() -> None:
    """On the larger Qwen, passage last, an arm moves generated answers as it moves scored ones."""
    with (pages.TABLES / "order_generation.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row[0] == "qwen-1.5b" and row[2] == "last"]
    changes = {(row[1], row[3]): float(row[7].split()[0]) for row in rows if row[7]}
    scored = dict(
        line.strip("| ").split(" | ", 1) for line in on_page("order: effects").splitlines()[4:]
    )
    arms = {"bidirectional": "bidirectional", "bidirectional:layers=2-": "`layers=A-`"}
    arms["causal, prompt twice"] = "causal, prompt twice"
    for (family, regime), change in changes.items():
        cell = scored[arms[regime]].split(" | ")[("sciq", "sciq_letters", "boolq").index(family)]
        assert change * float(cell.split()[0]) > 0, (family, regime)
    assert len(changes) == 9


def test_no_model_is_shown_to_gain_by_its_prompt_twice() -> None:
    for line in on_page("law: models").splitlines()[4:]:
        cell = line.strip("| ").split(" | ")[6]
        low, high = map(float, re.findall(r"\((\S+) to (\S+)\)", cell)[0])
        assert low < 0 < high, line
