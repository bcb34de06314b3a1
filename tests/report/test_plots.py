"""Labels beside charts: whole, in lines that fit, and inert."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidir_core.report import plots

LONG = "3B (steps 25, lr 0.0003, warmup steps 5), bidirectional:sink=1,lambda=0.5"


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("3B LoRA, bidirectional:sink=1,lambda=0.5", []),
        ("3C (method lora), bidirectional:sink=1,lambda=0.5", ["(method lora),"]),
        (LONG, ["lr 0.0003,", "steps 5),"]),
        ("a name with neither comma nor any other mark in it", ["any other"]),
        ("", []),
    ],
)
def test_a_long_label_is_broken_where_it_reads_well(text, ends):
    *lines, last = plots.wrapped(text)
    assert " ".join([*lines, last]) == text
    assert len(lines) == len(ends)
    assert all(line.endswith(end) for line, end in zip(lines, ends))


@given(st.text(st.sampled_from("ab ,:<…"), max_size=150))
def test_lines_fit_and_hold_the_whole_label_or_say_that_they_do_not(text):
    lines = plots.wrapped(text)
    assert 1 <= len(lines) <= plots.LABEL_LINES
    assert all(len(line) <= plots.LABEL_WIDTH for line in lines)
    if "…" not in "".join(lines):
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def dots(*labels: str):
    row = {"value": 0.4, "low": 0.3, "high": 0.5, "text": "40 %", "colour": plots.BLUE}
    return plots.dots(
        pd.DataFrame([{**row, "label": label, "symbol": "circle"} for label in labels]), title="x"
    )


def test_rows_and_margin_have_room_for_the_lines():
    short, long = dots("stage 1", "stage 2"), dots("stage 1", LONG)
    assert long.layout.yaxis.ticktext[1].count("<br>") == 2
    assert long.layout.height - short.layout.height >= 2 * (
        3 * plots.LINE_PIXELS - plots.ROW_PIXELS
    )
    assert short.layout.margin.l < long.layout.margin.l <= 320
    assert dots("stage 1", "a " * 30).layout.height == short.layout.height


def test_markup_in_a_label_stays_text():
    (text,) = dots(
        '<a href="http://evil.example">an arm of which the name is long</a>'
    ).layout.yaxis.ticktext
    assert text.count("<") == text.count("<br>") > 0
