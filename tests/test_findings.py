"""docs/FINDINGS.md says what the committed runs say, and no more."""

from __future__ import annotations

import re

import pytest

from scripts import findings

TEXT = findings.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", findings.BLOCKS)
def test_every_table_is_what_the_runs_give(name: str) -> None:
    (block,) = (found[0] for found in findings._BLOCK.finditer(TEXT) if found[2] == name)
    assert block == findings._BLOCK.sub(lambda f: f[1] + findings.BLOCKS[name]() + f[3], block)


def test_the_words_around_them_hold_no_numbers_of_their_own() -> None:
    """A number in prose would be held to nothing; settings and names are no results."""
    prose = findings._BLOCK.sub("", TEXT)
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)|\d+ items|95 %|Float32|float32|H100|4-bit", "", prose)
    prose = re.sub(r"Gemma 3 270M|135M parameters|sink=1|first 500|tell?d? from 0|\b0\b", "", prose)
    assert re.findall(r"\d[\d.,]*", prose) == []


def test_no_more_is_claimed_than_was_run() -> None:
    """As long as no committed sweep has controls, necessity is all that may be said."""
    sweeps = [one for one in (findings.COMMITTED_RUNS / "lab").iterdir() if one.is_dir()]
    if not any(findings.Run(one).settings.get("controls") for one in sweeps):
        assert "Only necessity has been answered so far" in TEXT
        assert re.search(r"\*\*Sufficiency\.\*\*", TEXT)
