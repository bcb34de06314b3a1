"""The command ``export``: a run in lm-eval's own format."""

from __future__ import annotations

import argparse
import sys

from bidir_core.common.files import visible
from bidir_core.runs.find import find_run
from bidir_core.runs.lm_eval_export import export_run


def fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="a run id or folder")
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="where lm-eval's files go, in a model's folder"
    )
    parser.add_argument("--runs-dir", metavar="DIR", help="look for the run in this folder only")


def run(parsed: argparse.Namespace) -> int:
    """``export RUN --out DIR``: 0 when the files are on disk."""
    source_run = find_run(parsed.run_id, [parsed.runs_dir] if parsed.runs_dir else None)
    files, notes = export_run(source_run, parsed.out)
    for note in notes:
        print(f"note: {visible(note)}", file=sys.stderr)
    for path in files:
        print(visible(path))
    return 0
