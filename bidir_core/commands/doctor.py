"""``doctor``: what this machine can do, and which models fit."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from bidir_core.cli import FAILED, OK
from bidir_core.jobs.doctor import diagnose, to_text


def fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument(
        "--families",
        action="store_true",
        help="probe a tiny random model of every known architecture, and print the table",
    )


def run(parsed: argparse.Namespace) -> int:
    if parsed.families:
        return _families(parsed.json)
    diagnosis = diagnose()
    print(json.dumps(asdict(diagnosis), indent=2) if parsed.json else to_text(diagnosis))
    return FAILED if diagnosis.problems else OK


def _families(as_json: bool) -> int:
    from bidir_core.common.progress import Progress
    from bidir_core.models.families import ALL_FAMILIES, probe_families, refusals, to_markdown

    results = []
    progress = Progress(len(ALL_FAMILIES), title="families", unit="family")
    for result in probe_families():
        results.append(result)
        progress.advance(1)
    progress.close()
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        print(to_markdown(results))
        print()
        for _, why in refusals():
            print(f"refused: {why}")
    failed = [result.family for result in results if not result.passed]
    if failed:
        print(f"error: the probe failed for {', '.join(failed)}", file=sys.stderr)
    return FAILED if failed else OK
