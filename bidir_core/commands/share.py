"""``share``: a small website of what the runs show, to open from disk or put anywhere."""

from __future__ import annotations

import argparse


def fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="where the site goes: a new or empty folder, or one that this made; open its index.html",
    )
    parser.add_argument("--runs-dir", metavar="DIR", help="look for runs in this folder only")


def run(parsed: argparse.Namespace) -> int:
    from bidir_core.report.share import write_site

    roots = [parsed.runs_dir] if parsed.runs_dir else None
    print(write_site(parsed.out, roots) / "index.html")
    return 0
