"""``from bidir_core import ...``: every public name is there, and readers never wait for torch."""

import importlib.util
import subprocess
import sys

import pytest

import bidir_core


def test_every_public_name_resolves_and_shadows_no_module():
    assert set(bidir_core.__all__) == set(bidir_core._PUBLIC)
    for name in bidir_core.__all__:
        assert callable(getattr(bidir_core, name)), name
        assert importlib.util.find_spec(f"bidir_core.{name}") is None, name
    with pytest.raises(AttributeError, match="no_such_name"):
        bidir_core.no_such_name  # noqa: B018


def test_reading_and_comparing_runs_needs_no_torch():
    names = "EvalConfig, UserError, build_report, compare_runs, find_run, list_runs, load_items"
    code = (
        f"import sys; from bidir_core import {names}, parse_regime, visibility\n"
        "import bidir_core.cli, bidir_core.report.report, bidir_core.report.paper\n"
        "import bidir_core.jobs.estimate, bidir_ui.report_view\n"
        "heavy = {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
