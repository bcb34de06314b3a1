"""``report``: what runs show, written down."""

from __future__ import annotations

import argparse

from bidir_core.commands.arguments import add_pairing


def fill(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m bidir_core report``."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", help="run ids or folders; left out: a model's fullest set"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="where the report goes: .md for Markdown, .html for one self-contained page with "
        "interactive charts and the flips",
    )
    parser.add_argument("--html", metavar="FILE.html", help="also write the self-contained page")
    parser.add_argument(
        "--paper",
        metavar="DIR",
        help="write a folder for a paper: figures, LaTeX tables, methods, references and a ledger "
        "of claims; a new or empty folder, or one that this made",
    )
    parser.add_argument(
        "--sections",
        metavar="A,B,..",
        help="only these sections, by key; a wrong one lists them all",
    )
    parser.add_argument("--csv", action="store_true", help="also write each table beside it")
    parser.add_argument("--model", help="whose runs to choose when none are named")
    add_pairing(parser)
    parser.add_argument("--runs-dir", metavar="DIR", help="look for runs in this folder only")


def run(parsed: argparse.Namespace) -> int:
    """Write the report."""
    from bidir_core.report import report_command

    return report_command(parsed)
