"""A table sorts, and is taken along as CSV and as Markdown."""

import csv
from pathlib import Path

import pytest

from tests.e2e.driving import chosen, go

pytest.importorskip("playwright")

EVIL = ["=1+1", "![x](http://evil.test/a.png)"]
SAY = """said => document.querySelectorAll('.b-taken td').forEach(
    (cell, at) => { if (at < said.length) cell.textContent = said[at] })"""


def saved(tab, table) -> tuple[str, list[list[str]]]:
    """The name and rows of the CSV that a click gives."""
    with tab.page.expect_download() as wait:
        table.get_by_role("button", name="CSV").click()
    text = Path(wait.value.path()).read_text(encoding="utf-8")
    return wait.value.suggested_filename, list(csv.reader(text.splitlines()))


def copied(tab, table) -> str:
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    table.get_by_role("button", name="Markdown").click()
    table.get_by_role("button", name="Copied").wait_for()
    return tab.page.evaluate("navigator.clipboard.readText()")


def test_a_table_sorts_by_key_and_is_saved_as_it_stands(server, runs, tab):
    run = runs["stage1"]
    go(tab, server.url("run", id=run.id))
    tab.page.wait_for_function("window.bidirTables")
    table = tab.page.locator(".b-taken", has_text="95 % low")
    head = table.locator("th", has_text="acc").first
    head.focus()
    for way in ("ascending", "descending"):
        tab.page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == way
        shown = [
            float(cell.split()[0]) for cell in table.locator("td:nth-child(3)").all_inner_texts()
        ]
        *tasks, _ = shown  # the mean stays the last
        assert tasks == sorted(tasks, reverse=way == "descending")
    name, rows = saved(tab, table)
    assert name == f"scores_{run.id.replace('/', '_')}.csv"
    assert rows[0][:5] == ["Task", "n", "acc", "95 % low", "95 % high"]
    assert [float(row[2]) for row in rows[1:]] == shown
    assert all(float(row[3]) < float(row[2]) < float(row[4]) for row in rows[1:])
    assert copied(tab, table).startswith("| Task | n | acc | 95 % low |")


def test_what_is_taken_along_is_inert(server, runs, tab):
    """A spreadsheet would run the one cell; who reads Markdown would fetch the other."""
    go(tab, server.url("runs", **chosen(runs)))
    tab.page.wait_for_function("window.bidirTables")
    table = tab.page.locator(".b-taken").first
    tab.page.evaluate(SAY, EVIL)
    assert saved(tab, table)[1][1][:2] == ["'=1+1", EVIL[1]]
    text = copied(tab, table)
    assert "![x](" not in text
    assert "://" not in text
