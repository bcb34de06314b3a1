"""Texts of unknown origin where something would obey them: spreadsheets, terminals, report.md."""

import csv
import io
import logging

import pandas as pd
import pytest
import streamlit as st

from bidir_core.cli import main
from bidir_core.common.formatting import csv_cell, visible
from bidir_core.common.progress import logging_to
from bidir_core.report.markdown import code, escape
from bidir_ui.kit import widgets
from tests.factory import make_run, spread_items

HOSTILE = "\x1b[2J\x07 a\u202eb\u2066c\u200fd\x9b1m"


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", " =1", "-", "+a"]
)
def test_texts_are_no_formulas(text):
    assert csv_cell(text) == "'" + text.strip()


@pytest.mark.parametrize("value", ["-5.9", "+1.2", "-3", "1e-5", "-1.5e+10", -5.9, 3, 1.5, True])
def test_numbers_are_numbers(value):
    assert csv_cell(value) == value


def test_the_apps_csv_guards_texts_and_leaves_numbers(monkeypatch):
    given = {}
    monkeypatch.setattr(st, "download_button", lambda label, body, **more: given.update(body=body))
    frame = pd.DataFrame({"text": ["=1+1", "ok"], "delta": [-0.5, 1.0], "shown": ["-5.9", "+1.0"]})
    widgets.csv_button(frame, "x.csv", key="k")
    rows = list(csv.reader(io.StringIO(given["body"]().decode())))
    assert rows == [["text", "delta", "shown"], ["'=1+1", "-0.5", "-5.9"], ["ok", "1.0", "+1.0"]]


def shows_nothing_hidden(text: str) -> bool:
    return not any(
        (ord(c) < 32 and c not in "\n\t") or c in "\x7f\x9b\u202e\u2066\u200f" for c in text
    )


def test_what_an_import_and_an_export_say_is_shown_not_obeyed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(tmp_path / "runs"))
    run = make_run(tmp_path / "runs", items=spread_items(8, (HOSTILE,)), tasks=(HOSTILE,))
    assert main(["export", run.id, "--out", str(tmp_path / "log")]) == 0
    assert main(["import", str(tmp_path / "log")]) == 0
    out, err = capsys.readouterr()
    assert err.count("note: ") > 1
    assert "\\u001b[2J" in err
    assert shows_nothing_hidden(out + err)


def test_controls_and_direction_marks_are_shown_not_obeyed(tmp_path, capsys):
    assert visible("a\nb\tc é 日") == "a\nb\tc é 日"
    for made in (visible, escape, code):
        assert shows_nothing_hidden(made(HOSTILE)), made
    assert main(["compare", HOSTILE, "x"]) == 2
    with logging_to(tmp_path / "log.txt") as log:
        log.log(logging.INFO, "task %s", HOSTILE)
    said = capsys.readouterr().err
    assert "there is no run" in said
    assert shows_nothing_hidden(said + (tmp_path / "log.txt").read_text())
