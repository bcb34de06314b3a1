"""``report``: what runs show, written down."""

from __future__ import annotations

import argparse
from pathlib import Path

from bidir_core.cli import add_pairing
from bidir_core.common.errors import UserError
from bidir_core.report.report import build_report, write_report
from bidir_core.report.sections import check_sections
from bidir_core.runs.find import find_run


def fill(parser: argparse.ArgumentParser) -> None:
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
        help="write a folder for a paper: figures, LaTeX and CSV tables, numbers as LaTeX macros "
        "and claims with their status; a new or empty folder, or one that this made",
    )
    parser.add_argument(
        "--sections",
        metavar="A,B,..",
        help="only these sections, by key; a wrong one lists them all",
    )
    parser.add_argument("--csv", action="store_true", help="also write each table beside it")
    parser.add_argument("--model", help="whose runs to choose when none are named")
    parser.add_argument(
        "--regime",
        metavar="R",
        help="the bidirectional regime that the answer is about (default: the plain one)",
    )
    add_pairing(parser)
    parser.add_argument("--runs-dir", metavar="DIR", help="look for runs in this folder only")


def report_file(flag: str, name: str, *suffixes: str) -> Path:
    """Where a report goes; UserError for a name that says no format that it is written in."""
    path = Path(name).expanduser()
    if path.suffix not in suffixes:
        kinds = {".md": ".md (Markdown)", ".html": ".html (one self-contained page)"}
        wanted = " or ".join(kinds[suffix] for suffix in suffixes)
        raise UserError(f"{flag} {name}: give a name that ends in {wanted}")
    return path


def run(args: argparse.Namespace) -> int:
    if args.out is None and args.paper is None:
        raise UserError("say where the report goes: --out FILE.md, --out FILE.html or --paper DIR")
    if args.out is None and (args.csv or args.html or args.sections):
        raise UserError("--csv, --html and --sections go with --out FILE; give one")
    if args.paper is not None:
        from bidir_core.report.paper import PAPER

        PAPER.check(args.paper)
    out = report_file("--out", args.out, ".md", ".html") if args.out is not None else None
    html = report_file("--html", args.html, ".html") if args.html else None
    only = [key for key in args.sections.split(",") if key] if args.sections else None
    check_sections(only)
    roots = [args.runs_dir] if args.runs_dir else None
    report = build_report(
        [find_run(run, roots) for run in args.runs],
        model=args.model,
        regime=args.regime,
        metric=args.metric,
        margin=args.margin,
        roots=roots,
    )
    if out is not None:
        for path in write_report(report, out, csv=args.csv, html=html, only=only):
            print(path)
    if args.paper is not None:
        from bidir_core.report.paper import write_paper

        print(write_paper(report, args.paper))
    return 0
