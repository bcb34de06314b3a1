"""``compare``: two runs, item by item."""

from __future__ import annotations

import argparse
import json

from bidir_core.analyse.compare import compare, comparison_text
from bidir_core.cli import add_pairing
from bidir_core.common.files import visible
from bidir_core.runs.find import find_run


def fill(parser: argparse.ArgumentParser) -> None:
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
    result = compare(
        find_run(parsed.run_a),
        find_run(parsed.run_b),
        metric=parsed.metric,
        intersect=parsed.intersect,
        floor=find_run(parsed.floor) if parsed.floor else None,
        margin=parsed.margin,
    )
    if parsed.json:
        print(json.dumps(result.to_json(), indent=1))
    else:
        print(visible(comparison_text(result)))
    return 0
