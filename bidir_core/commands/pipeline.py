"""``pipeline``: the whole experiment, and its report."""

from __future__ import annotations

import argparse
from pathlib import Path

from bidir_core.cli import (
    add_arguments,
    add_estimate,
    estimate_instead,
    given_in,
    require_model,
)
from bidir_core.common.errors import UserError
from bidir_core.common.process import is_helper
from bidir_core.jobs.pipeline import dry_run, run_pipeline
from bidir_core.jobs.pipeline_config import PRESETS, PUBLISHED, PipelineConfig, from_preset


def fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        default=PUBLISHED,
        metavar="{" + ",".join(PRESETS) + "}",
        help=f"settings to start from; other flags win over them (default: {PUBLISHED})",
    )
    add_arguments(parser, PipelineConfig)
    parser.add_argument("--out", metavar="FILE.md", help="the report (default: in runs/reports)")
    parser.add_argument("--csv", action="store_true", help="also write the report's tables")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the stages, their command lines and what those left would take, and stop",
    )
    add_estimate(parser)


def run(parsed: argparse.Namespace) -> int:
    given = given_in(parsed, "preset", "out", "csv", "dry_run", "estimate")
    require_model(given)
    if hasattr(parsed, "estimate"):
        return estimate_instead(lambda: from_preset(given, parsed.preset), parsed)
    config = from_preset(given, parsed.preset)
    target = Path(parsed.out).expanduser() if parsed.out else None
    if target is not None and target.suffix != ".md":
        raise UserError(f"--out {parsed.out}: a report is Markdown; give a name that ends in .md")
    if parsed.dry_run:
        print(dry_run(config))
        return 0
    path = run_pipeline(config, out=target, csv=parsed.csv)
    if not is_helper():
        print(path)
    return 0
