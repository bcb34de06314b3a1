"""``import``: lm-eval's logged samples as a run."""

from __future__ import annotations

import argparse
import sys

from bidir_core.common.errors import UserError
from bidir_core.common.files import visible
from bidir_core.runs.lm_eval_import import import_results


def fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", help="lm-eval's output folder, or its results_<time>.json"
    )
    parser.add_argument(
        "--tasks", metavar="A,B", default="", help="only these of its tasks (default: all)"
    )
    parser.add_argument(
        "--task-map",
        metavar="THEIRS=OURS,..",
        default="",
        help="other names for tasks, so that they pair with ours",
    )
    parser.add_argument(
        "--model", help="call the model this, as your other runs do (default: as lm-eval has it)"
    )
    parser.add_argument(
        "--regime", help="what it attended under (default: causal, as lm-eval's models do)"
    )
    parser.add_argument("--name", help="a name at the end of the run folder")
    parser.add_argument(
        "--runs-dir", metavar="DIR", help="where run folders go (default: runs, or BIDIR_RUNS_DIR)"
    )


def run(parsed: argparse.Namespace) -> int:
    """``import PATH``: 0 when the run folder is on disk."""
    task_map = {}
    for part in filter(None, (part.strip() for part in parsed.task_map.split(","))):
        theirs, sign, ours = part.partition("=")
        if not sign:
            raise UserError(f"--task-map {part}: write THEIRS=OURS")
        task_map[theirs.strip()] = ours.strip()
    imported = import_results(
        parsed.path,
        tasks=[part.strip() for part in parsed.tasks.split(",") if part.strip()],
        task_map=task_map,
        model=parsed.model,
        regime=parsed.regime,
        name=parsed.name,
        runs_dir=parsed.runs_dir,
    )
    for note in imported.notes:
        print(f"note: {visible(note)}", file=sys.stderr)
    print(imported.path)
    return 0
