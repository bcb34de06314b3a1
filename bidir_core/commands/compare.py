"""``compare``: two runs, item by item."""

from __future__ import annotations

import argparse
import json

from bidir_core.analyse import compare as words
from bidir_core.analyse.compare import compare
from bidir_core.commands.arguments import add_pairing
from bidir_core.common.errors import UserError
from bidir_core.common.formatting import visible
from bidir_core.runs.find import find_run


def fill(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m bidir_core compare``."""
    parser.add_argument("run_a", metavar="RUN_A", help="the baseline: a run id or folder")
    parser.add_argument("run_b", metavar="RUN_B", help="the candidate")
    parser.add_argument(
        "--intersect", action="store_true", help="pair only the items that both runs have"
    )
    parser.add_argument(
        "--floor",
        metavar="RUN",
        help="a no-context run: also print what is kept above its score and, of the same model, "
        "accuracy by mutual information",
    )
    add_pairing(parser)
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(parsed: argparse.Namespace) -> int:
    """Compare, and print what was found."""

    return compare_command(parsed)


def compare_command(args: argparse.Namespace) -> int:
    """``compare A B``: print a table, or JSON; 0 when done, UserError otherwise.

    Reads ``run_a``, ``run_b``, ``metric``, ``intersect``, ``json``, ``floor`` (a run) and
    ``margin`` (in points).
    """
    if not 0 < args.margin < 100:
        raise UserError(f"--margin {args.margin:g}: give a number of points above 0, such as 1")
    result = compare(
        find_run(args.run_a),
        find_run(args.run_b),
        metric=args.metric,
        intersect=args.intersect,
        floor=find_run(args.floor) if args.floor else None,
        margin=args.margin / 100,
    )
    if args.json:
        print(json.dumps(result.to_json(), indent=1))
    else:
        print(visible(words.comparison_text(result)))
    return 0
