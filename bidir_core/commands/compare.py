"""``compare``: two runs, item by item."""

from __future__ import annotations

import argparse

from bidir_core.commands.arguments import add_pairing


def fill(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m bidir_core compare``."""
    parser.add_argument("run_a", metavar="RUN_A", help="the baseline: a run id or folder")
    parser.add_argument("run_b", metavar="RUN_B", help="the candidate")
    parser.add_argument(
        "--intersect", action="store_true", help="pair only the items that both runs have"
    )
    parser.add_argument(
        "--floor", metavar="RUN", help="a no-context run: also print what is kept above its score"
    )
    add_pairing(parser)
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(parsed: argparse.Namespace) -> int:
    """Compare, and print what was found."""
    from bidir_core.compare import compare_command

    return compare_command(parsed)
