"""Every page in every state, in a real browser: it says so, on a phone too, in the dark, accessibly."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bidir_core.runs import layout
from tests.app import STAGE2
from tests.e2e.driving import go, idle, main_text, visit
from tests.e2e.nursery import ALONE
from tests.e2e.server import serve
from tests.e2e.test_accessibility import wrong
from tests.factory import make_run
from tests.ui.test_app_states import TABLE

# What is on disk -> the pages to open there: their address, the query and what they must say.
Place = tuple[str, Mapping[str, str], str]
BY_DISK: dict[Callable[[Path], dict[str, str]], list[Place]] = {}
for key, cases in TABLE.items():
    for case in cases.values():
        place = ("" if key == "overview" else key, case.query, case.says)
        BY_DISK.setdefault(case.disk, []).append(place)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A runs folder without the committed runs beside it, here as in the server."""
    monkeypatch.setattr(layout, "COMMITTED_RUNS", tmp_path / "none")
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize("disk", BY_DISK, ids=lambda disk: disk.__name__)
def test_each_state_is_said_and_usable(disk, alone, nursery, tab):
    chosen = disk(alone)
    with serve(alone, nursery, **{ALONE: "yes"}) as own:
        go(tab, own.url("playground"))
        found: dict[Any, list[str]] = {}
        for page, query, says in BY_DISK[disk]:
            visit(tab, own.url(page, **chosen | dict(query)))
            assert says in main_text(tab).replace("\xa0", " "), page
            found[page, says] = wrong(tab, ("dark",), (390, 1280))
        assert not {where: what for where, what in found.items() if what}
        assert not tab.foreign()
        assert not tab.unexpected_errors()


def test_loading_says_what_it_does(tmp_path, nursery, tab):
    """A fresh server reads the hundreds of committed runs, and many more: what is quick says nothing."""
    run = make_run(tmp_path, STAGE2, n_items=2)
    for number in range(1500):
        shutil.copytree(run.path, run.path.with_name(f"20260101-000000_copy{number}"))
    with serve(tmp_path, nursery) as own:
        tab.page.goto(own.url("compare"), wait_until="commit")
        tab.page.get_by_text(re.compile("Reading (run folders|the evidence)")).first.wait_for()
        idle(tab)
        assert "Right and wrong, task by task" in main_text(tab)
